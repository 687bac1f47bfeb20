//! Which node may speak for an address: leases that a majority gives, without the API server.
//!
//! ```text
//!  agent i                              kernel j                     agent j
//!     │ beat: grant of version 7, stamp 41 │                            │
//!     ├───────────────────────────────────►│ lease from i: 41 + lease   │
//!     │            echo: stamp 43, boot    │                            │
//!     │◄───────────────────────────────────┤                            │
//!     │                                    │                            │
//!     │              claims: version 8, these addresses                 │
//!     │◄────────────────────────────────────────────────────────────────┤
//!     │ noted: nobody else that i supports claims one of them           │
//!     │ beat: grant of version 8, stamp 43 │                            │
//!     ├───────────────────────────────────►│ a majority grants 8 ──────►│ activate 8
//! ```
//!
//! A *grant* of node i says: I know what you claim, up to this version, and nobody else whom I support claims any of it.
//! A kernel speaks for its addresses while a majority of the *electorate* grants what is in force there. Its lease runs
//! from a *stamp* of its own clock that the grant brings back, so a late packet prolongs nothing, and clocks need not
//! agree. Node i withdraws its support when it has heard nothing for `silence`, counted from the echo that brought the
//! last stamp: later than the stamp was made. `silence` is longer than the lease by more than clocks can differ, so the
//! lease has ended by then.
//!
//! Why no two speak for one address: each of them would have the grants of a majority; two majorities have a node in
//! common; and that one would support two nodes that claim the same address.
//!
//! - [`Kernel`]: what the kernel program does with beats; needs no agent, for a minute.
//! - [`Agent`]: who is heard, what others claim, what this node claims.
//! - [`Electorate`]: who counts, and what a majority is.
//! - [`wire`]: the messages as bytes, and their key.

mod agent;
mod electorate;
mod kernel;
mod said;
pub mod wire;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

pub use agent::{Action, Agent};
pub use electorate::Electorate;
pub use kernel::{Grant, Held, Kernel};
pub use said::{Link, Said};

pub use crate::hold::Time;

/// A node's number: the first eight bytes of the SHA-256 of its name ([`wire::node_id`]).
pub type NodeId = u64;

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// From one beat to the next.
    pub beat: Duration,
    /// How long a grant lasts, from the stamp that it brings back.
    pub lease: Duration,
    /// After so long without an echo a node counts as dead, and has no support any more. Longer than `lease`.
    pub silence: Duration,
    /// How long a kernel goes on without its agent.
    pub agent: Duration,
    /// How long a claim waits for a majority before what is refused is given up for as long.
    pub patience: Duration,
    /// How long an address that is not wanted any more is kept for want of a successor.
    pub linger: Duration,
    /// How long an earlier electorate counts too.
    pub settle: Duration,
}

impl Default for Times {
    /// A dead node's successor speaks 700 ms after the last echo, and what a round trip takes. A stamp is up to two beats
    /// old when the next beat should come, so three beats in a row may be lost without any effect.
    fn default() -> Self {
        let ms = Duration::from_millis;
        let (agent, linger, settle) = (Duration::from_mins(1), Duration::from_secs(2), Duration::from_secs(10));
        Self { beat: ms(100), lease: ms(600), silence: ms(700), agent, patience: ms(300), linger, settle }
    }
}

/// Sent by agents every [`Times::beat`] to each other node; read and echoed by its kernel program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Who sends it.
    pub from: NodeId,
    /// To whom.
    pub to: NodeId,
    /// Grows with every message of the sender, also over restarts.
    pub seq: u64,
    /// The receiver's last stamp that the sender got.
    pub stamp: Stamp,
    /// The version of the receiver's claims that the sender supports.
    pub grant: Option<u64>,
}

/// A time on a kernel's clock, which starts anew with each boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Random, of the boot.
    pub boot: u64,
    /// Since then; whole nanoseconds.
    pub time: Time,
}

/// The kernel's answer to a beat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Echo {
    /// Who answers.
    pub from: NodeId,
    /// Whose beat it was.
    pub to: NodeId,
    /// That of the beat.
    pub seq: u64,
    /// When it was answered.
    pub stamp: Stamp,
    /// Its agent has been away for so long that it speaks for nothing any more; no earlier grant counts.
    pub mute: bool,
}

/// From agent to agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Letter {
    /// All that the sender claims and says.
    Claims {
        /// Grows with every change, also over restarts.
        version: u64,
        /// Addresses for which it speaks or wants to.
        addresses: BTreeSet<IpAddr>,
        /// What it says beside that.
        said: Said,
    },
    /// The receiver's claims in this version are not supported: others claim these of them.
    Refusal {
        /// The version.
        version: u64,
        /// The addresses.
        addresses: BTreeSet<IpAddr>,
    },
    /// The receiver is asked for its claims.
    Ask,
}
