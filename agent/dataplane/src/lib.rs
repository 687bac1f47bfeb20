//! From a node's plan to rows in the kernel's maps, and from programs to hooks.
//!
//! ```text
//! ServicePlan ─► rows (pure) ─► reconcile: what changed? ─► Store ─► the kernel's maps ─► views
//!                                  │    │
//!                      maglev, slab, ids (who owns what)
//!
//! announced: addresses that are answered for in layer 2 ─► Store
//!
//! Dataplane::open ─► pins, migrate ─► object (aya) ─► sockets, links: hooks ─► kernel: Store
//! ```
#![deny(unsafe_code)] // but in `sys`, the one module that talks to the kernel itself

pub mod announced;
pub mod codec;
pub mod conntrack;
mod dataplane;
pub mod drift;
mod error;
pub mod fake;
pub mod flow;
mod hash;
pub mod ids;
pub mod kernel;
pub mod ledger;
pub mod limits;
pub mod links;
pub mod liveness;
pub mod maglev;
mod migrate;
pub mod netlink;
pub mod netns;
pub mod object;
mod pins;
pub mod reconcile;
pub mod rows;
pub mod slab;
mod sockets;
pub mod store;
mod sys;
mod views;

pub use dataplane::{Dataplane, Options, SocketMode, cleanup};
pub use error::Error;
pub use sys::{Frames, xtables};
