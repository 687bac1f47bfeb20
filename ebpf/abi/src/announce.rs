//! Addresses that are answered for in layer 2, as `docs/DATAPATH.md` says.

use crate::layout::{Plain, plain};

plain! {
    /// Key of `ANNOUNCED` and `ANNOUNCED_COUNTERS` (hashes): an address on a link.
    pub struct AnnouncedKey {
        /// Address (IPv4 in the first word).
        pub addr: [u32; 4],
        /// 4 or 6.
        pub family: u32,
        /// Link.
        pub ifindex: u32,
    }
}

plain! {
    /// Value of `ANNOUNCED`: the node may answer for the address there. The agent writes it.
    pub struct Announced {
        /// Nanoseconds of the monotonic clock: not longer than until then; `u64::MAX` = always.
        pub until: u64,
        /// Until then (likewise) what stands of TCP and is not known here is handed to the node that had the address before.
        pub before_until: u64,
        /// Bits of [`announced`].
        pub flags: u32,
        /// That node's link address.
        pub before: [u8; 6],
        /// Zero.
        pub zero: [u8; 6],
    }
}

/// Bits of [`Announced::flags`].
pub mod announced {
    /// ARP requests and neighbour solicitations are answered. Without it the row only says that rivals are to be told of.
    pub const ANSWER: u32 = 1;
    /// So are echo requests (ping).
    pub const ECHO: u32 = 1 << 1;
    /// Nothing is answered unless a majority grants it ([`crate::Liveness`]).
    pub const QUORUM: u32 = 1 << 2;
}

plain! {
    /// Value of `ANNOUNCED_COUNTERS`: atomically added to; rows are made and removed by the agent.
    pub struct AnnouncedCounters {
        /// ARP requests and neighbour solicitations for the address.
        pub requests: u64,
        /// Those that were answered.
        pub answers: u64,
        /// Those that were not, for want of the right to.
        pub refusals: u64,
        /// Echo requests that were answered.
        pub echoes: u64,
        /// Packets in which another host uses the address, or asks whether it may while this node does not answer.
        pub rivals: u64,
        /// When the agent was last told of one: nanoseconds of the monotonic clock.
        pub told: u64,
    }
}

plain! {
    /// A record of the ring buffer `RIVALS`: another host uses an announced address, or is about to. At most ten a second
    /// for an address on a link.
    pub struct Rival {
        /// Address (IPv4 in the first word).
        pub addr: [u32; 4],
        /// When: nanoseconds of the monotonic clock.
        pub at: u64,
        /// Link.
        pub ifindex: u32,
        /// 4 or 6.
        pub family: u8,
        /// One of [`rival`].
        pub kind: u8,
        /// Its link address.
        pub mac: [u8; 6],
        /// Zero.
        pub zero: u32,
    }
}

/// Values of [`Rival::kind`].
pub mod rival {
    /// It says that the address is its own.
    pub const USES: u8 = 1;
    /// It asks whether anybody has the address, before it uses it; told only while this node does not answer.
    pub const ASKS: u8 = 2;
}

const _: () = {
    assert!(size_of::<AnnouncedKey>() == 24 && size_of::<Announced>() == 32 && size_of::<Rival>() == 40);
    let _ = AnnouncedKey::zeroed();
    let _ = Announced::zeroed();
    let _ = AnnouncedCounters::zeroed();
    let _ = Rival::zeroed();
};
