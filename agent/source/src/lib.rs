//! Where Services, EndpointSlices, Nodes and the configuration of addresses come from. Two sources deliver the same [`Batch`]es of the same objects:
//!
//! - [`kube`]: an API server.
//! - `dir` ([`watch`]): a folder of Kubernetes manifests, which gets the API server's defaults and its validation before anybody sees
//!   an object.
//!
//! What is wrong goes back to the API server as [`events`].
//!
//! ```text
//! watch: inotify, debounce ──► scan: list, read ──► manifest: documents ──► tree: nodes with lines
//!                                  │                    │ defaults, validate, fields
//!                                  ▼                    ▼
//!                              folder: last good state of each file, who defines what ──► changes, faults
//! ```

mod batch;
pub mod defaults;
pub mod events;
mod fault;
mod fields;
mod folder;
mod inotify;
pub mod kube;
mod manifest;
mod object;
mod replace;
mod scan;
mod tree;
pub mod validate;
mod watch;

pub use batch::{Batch, Progress};
pub use fault::{Fault, Severity};
pub use manifest::Placed;
pub use object::{Change, Id, Kind, Object};
pub use replace::replace;
pub use scan::{Loaded, load, load_files};
pub use validate::Rules;
pub use watch::watch;
