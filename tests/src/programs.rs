//! Programs of Kubernetes that tests run: API server, etcd, kubectl, kube-proxy, helm.
//!
//! They are looked for in the directories that `$CULVERT_KUBERNETES` lists, then in those of `$PATH`. `cargo xtask test`
//! builds them and sets the variable; `cargo xtask cluster build` builds them too, and says where they are. A test that
//! misses one fails: nothing is passed over.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

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
