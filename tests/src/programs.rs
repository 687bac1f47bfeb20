//! Programs of Kubernetes that tests run: API server, etcd, kubectl, kube-proxy, helm; MetalLB's controller. And the Go modules
//! that they are built from, where tests read what lies in those.
//!
//! They are looked for in the directories that `$CULVERT_KUBERNETES` lists, then in those of `$PATH`. `cargo xtask test`
//! builds them and sets the variable; `cargo xtask cluster build` builds them too, and says where they are. A test that
//! misses one fails: nothing is passed over.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::deploy::objects::text;
use crate::deploy::repository;
use crate::shell::run;

/// The variable that lists directories, separated as in `$PATH`.
const VARIABLE: &str = "CULVERT_KUBERNETES";

/// Where a program is.
pub fn find(name: &str) -> Result<PathBuf> {
    let lists = [VARIABLE, "PATH"].map(|list| std::env::var_os(list).unwrap_or_default());
    let mut paths = lists.iter().flat_map(std::env::split_paths).map(|directory| directory.join(name));
    paths.find(|path| path.is_file()).with_context(|| {
        format!("no {name} in a directory of {VARIABLE} or PATH; `cargo xtask cluster build` builds it and says where")
    })
}

/// Where the source of a Go module lies, of the version that a directory of `tests/cluster` pins.
pub fn module(directory: &str, module: &str) -> Result<PathBuf> {
    let mut download = Command::new("go");
    download.args(["mod", "download", "-json", module]);
    let answer = run(download.current_dir(repository("tests/cluster").join(directory)))?;
    let answer: Value = serde_json::from_str(&answer)?;
    Ok(text(&answer, "/Dir")?.into())
}
