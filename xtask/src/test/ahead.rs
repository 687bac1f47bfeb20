//! Parts of test clusters are built while tests run that need none of them.
//!
//! Compiling Kubernetes takes two processors for twenty minutes, and tests wait more than they compute. So another xtask
//! builds with what they leave: it is in the class of processes that run when nothing else wants to. Who needs a part before
//! it is done waits for it (`parts::programs`), and builds it if the other one could not.

use std::{
    fs::File,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{
    image::Profile,
    process::kill_tree,
    ui::say,
    workspace::{Workspace, search_path},
};

/// What `cargo xtask cluster build` calls them, those that are needed first at the front.
const PARTS: &[&str] = &["cluster", "helm", "metallb", "tests", "agent", "flannel"];

/// The other xtask; it ends with this value.
pub struct Ahead(Child);

impl Ahead {
    /// Begins.
    ///
    /// # Errors
    /// If its log cannot be written, or it cannot be started.
    pub fn begin(workspace: &Workspace) -> Result<Self> {
        let path = workspace.log("ahead");
        let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let xtask = std::env::current_exe().context("this program's path")?;
        // It does not outlive this process, however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "chrt", "--idle", "0"])
            .arg(xtask)
            .args(["cluster", "build"])
            .args(PARTS)
            .env("PATH", search_path())
            .env(Profile::VARIABLE, workspace.image.name())
            .stdin(Stdio::null())
            .stderr(log.try_clone().context("no log")?)
            .stdout(log)
            .spawn()
            .context("cannot start setpriv")?;
        say(&format!("      parts of test clusters are built meanwhile; log: {}", path.display()));
        Ok(Self(child))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        kill_tree(self.0.id());
        let _ = self.0.wait();
    }
}
