//! From a node's plan to rows in the kernel's maps, and from programs to hooks.
//!
//! ```text
//! ServicePlan ─► rows (pure) ─► reconcile: what changed? ─► Store ─► the kernel's maps ─► views
//!                                  │    │
//!                      maglev, slab, ids (who owns what)
//! ```

pub mod codec;
pub mod fake;
pub mod flow;
mod hash;
pub mod ids;
pub mod ledger;
pub mod maglev;
pub mod reconcile;
pub mod rows;
pub mod slab;
pub mod store;
