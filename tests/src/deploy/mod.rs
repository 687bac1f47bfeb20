//! What a user installs from `deploy/`: the chart as Helm renders it, and what the API server would say of it.
//!
//! [`chart`] runs helm and kubectl, [`objects`] compares what they render, [`schema`] checks objects against the API
//! server's own schema.

use std::path::{Path, PathBuf};

pub mod chart;
pub mod objects;
pub mod schema;

/// A file or directory of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
