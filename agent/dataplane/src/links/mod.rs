//! The packet hooks: which links get which programs, and that they keep them.
//!
//! ```text
//! netlink ─► state (links, addresses, default routes) ─► classify (pure) ─► hooks: attach, verify, prune
//!                                                           │                  │
//!                                     addresses of the node (watch)        LINKS map
//! ```

pub mod classify;
mod clsact;
pub mod hooks;
pub mod patterns;
pub mod state;
pub mod task;

pub use classify::{Role, Wanted};
pub use hooks::Hooks;
pub use patterns::Patterns;
pub use task::Links;

/// The two ways of a packet through a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the link to the stack.
    Ingress,
    /// From the stack to the link.
    Egress,
}

impl Direction {
    /// Both, in the order in which programs are exchanged: a new egress program finds what an old ingress program
    /// wrote, but not the other way round.
    pub const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    /// The name in pins and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}
