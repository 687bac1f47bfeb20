//! What the kernel programs and the agent say to each other: keys and values of the eBPF maps.
//!
//! Conventions of this crate:
//! - Addresses are `[u32; W]` with `W` = 1 (IPv4) or 4 (IPv6): the bytes of the packet, in network order, loaded as
//!   they lie. Ports are `u16` in network order (raw). Everything else is in host order.
//! - No type has padding and every type is plain old data; `plain!` refuses anything else at compile time.
//! - Time is in *ticks* of 2^20 ns (about 1.05 ms) of the monotonic clock, wrapping in a `u32` after 52 days.
//! - Layouts are additive: a field is only ever appended, so that a program one version older or newer still
//!   reads the fields it knows.
#![no_std]

mod announce;
mod hash;
mod layout;
mod liveness;
mod maps;
mod reason;

pub use announce::*;
pub use hash::{affinity_hash, flow_hash};
pub use layout::Plain;
pub use liveness::*;
pub use maps::*;
pub use reason::Reason;

/// Version of the map layouts; part of the pin path. Changes only when a layout stops being additive.
pub const LAYOUT: u32 = 1;

/// Number of 32-bit words of an IPv4 address.
pub const V4: usize = 1;
/// Number of 32-bit words of an IPv6 address.
pub const V6: usize = 4;

/// IP protocol numbers (IANA) that the programs know.
pub mod proto {
    /// ICMP for IPv4 (RFC 792).
    pub const ICMP: u8 = 1;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// ICMP for IPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
}

/// Nanoseconds to ticks is a shift by this many bits.
pub const TICK_SHIFT: u32 = 20;

/// Ticks of a number of seconds, rounded up; at most `u32::MAX / 2`, where the wrapping comparison ends.
pub const fn ticks(seconds: u32) -> u32 {
    let ticks = ((seconds as u64) * 1_000_000_000).div_ceil(1 << TICK_SHIFT);
    if ticks > (u32::MAX / 2) as u64 { u32::MAX / 2 } else { ticks as u32 }
}
