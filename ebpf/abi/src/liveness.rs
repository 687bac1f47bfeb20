//! Who may speak for addresses in layer 2: beats and grants, as `docs/DATAPATH.md` says. Times are nanoseconds of the boot
//! clock, which goes on while the machine is suspended.

use crate::layout::{Plain, plain};

/// The most nodes whose grants can count.
pub const VOTERS: usize = 256;
/// The most sets of nodes of each of which there must be a majority.
pub const ELECTORATES: usize = 8;

plain! {
    /// Value of `LIVENESS` (a hash of one row, so that a row is replaced as a whole; key 0). The agent writes it, at most once
    /// a millisecond. Without a row the node may not speak.
    pub struct Liveness {
        /// This node's number.
        pub id: u64,
        /// Random, of the boot.
        pub boot: u64,
        /// The version of its claims that a grant must have to count.
        pub version: u64,
        /// Its agent is there until then.
        pub agent_until: u64,
        /// The witness stands with it until then.
        pub witness_until: u64,
        /// How long a grant lasts from its stamp.
        pub lease: u64,
        /// HMAC-SHA-256 of beats: the state of SHA-256 behind the key's inner block.
        pub inner: [u32; 8],
        /// Likewise, behind its outer block.
        pub outer: [u32; 8],
        /// The sets; the first is the present one.
        pub electorates: [Electorate; ELECTORATES],
        /// How many of `voters` there are.
        pub count: u32,
        /// Zero.
        pub zero: u32,
        /// The nodes in any set, this one included if it is.
        pub voters: [Voter; VOTERS],
    }
}

plain! {
    /// A set of nodes.
    pub struct Electorate {
        /// It counts until then; of the first set this says nothing.
        pub until: u64,
        /// How many nodes it has.
        pub size: u32,
        /// Zero.
        pub zero: u32,
    }
}

plain! {
    /// A node whose grants count.
    pub struct Voter {
        /// Its number.
        pub id: u64,
        /// Its sets: 1 in lane i (16 bits each, the lowest first) for the set i.
        pub sets: [u64; 2],
    }
}

plain! {
    /// Value of `GRANTS` (a hash by the node's number), written by the program alone.
    pub struct Grant {
        /// The `seq` of its last beat that was taken.
        pub seen: u64,
        /// The stamp that its grant runs from; 0 = none.
        pub stamp: u64,
        /// The version that it is for.
        pub version: u64,
    }
}

plain! {
    /// Value of `BEATS` (a per-CPU array of one row): what became of beats.
    pub struct BeatCounters {
        /// They were answered.
        pub echoed: u64,
        /// They were made with another key, or changed on their way.
        pub refused: u64,
        /// They were for another node, of a stranger, or no newer than the last one of their sender.
        pub ignored: u64,
    }
}

/// Rows of `PROGRAMS` (a program array): where `node_ingress` goes on.
pub mod program {
    /// Beats: `node_beat`.
    pub const BEAT: u32 = 0;
    /// How many there are.
    pub const COUNT: u32 = 1;
}

/// The sizes of a beat and of its echo.
pub mod beat {
    /// Bytes before the tag.
    pub const HEADER: usize = 54;
    /// Bytes of the tag.
    pub const TAG: usize = 16;
}

impl Voter {
    /// Puts the node into a set.
    pub const fn join(&mut self, set: usize) {
        self.sets[set / 4 % 2] |= 1 << (16 * (set % 4));
    }

    /// Whether it is in a set.
    pub const fn is_in(&self, set: usize) -> bool {
        self.sets[set / 4 % 2] >> (16 * (set % 4)) & 1 != 0
    }
}

const _: () = {
    assert!(VOTERS < 1 << 16 && ELECTORATES == 8);
    let _ = Liveness::zeroed();
    let _ = Electorate::zeroed();
    let _ = Voter::zeroed();
    let _ = Grant::zeroed();
    let _ = BeatCounters::zeroed();
};
