//! Which LoadBalancer addresses does each Service hold? A pure function of the objects and of what was held before,
//! kept up incrementally. No I/O, no clock.
//!
//! ```text
//! MetalLB's resources ─► Resources ─► Config: pools, advertisements, all valid or none of it
//!                                        │
//! Services ─► Wish: what is asked for ─► Allocator ─► Decision: addresses, pool, events
//!                                        │   ▲
//!                              Ledger: who holds what, and what is free
//! ```
//!
//! - [`objects`]: MetalLB's resources as they are written; [`Resources`] is a set of them.
//! - [`config`]: what they mean together, or everything that is wrong with them.
//! - `wish`: a Service, digested: whose it is, and which addresses it asks for.
//! - `ledger`: addresses in use, with their users, and ranges of free ones. Its cost is that of what is used.
//! - [`Allocator`]: the decisions. A change costs what it changes; what has no reason to move stays.
//!
//! The rules are those of MetalLB 0.16 (`internal/allocator`, `controller/service.go`, `internal/config`); where they
//! differ, `docs/ADDRESSES.md` says so. The table tests in `tests/cases` are the rules in examples.

mod allocator;
pub mod config;
mod event;
mod ledger;
pub mod objects;
mod range;
mod resources;
mod selector;
mod waiting;
mod wish;

pub use allocator::{Allocator, Assignment, Change, Decision, Outcome, PoolStatus, Settings, Settled, StatusIs, Work};
pub use config::{Config, Finding};
pub use event::{Event, Failure, Reason};
pub use range::Range;
pub use resources::{Id, Kind, Resource, Resources};
pub use selector::Selector;
