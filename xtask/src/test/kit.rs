//! What tests are given: the programs that were built, and how they find them.

use std::{env, fs, path::PathBuf};

use anyhow::{Context, Result};

use super::{build, build_targets};
use crate::{cargo::Artifacts, step::Job, workspace::search_path};

/// Generated packets of the oracle's, unless `CULVERT_ORACLE_PACKETS` says more.
const ORACLE_PACKETS: &str = "2000000";

/// Everything built for the tests.
pub struct Kit {
    /// Programs and test harnesses.
    pub artifacts: Artifacts,
    /// The agent with another layout of its maps, to upgrade to and come back from.
    next: PathBuf,
}

impl Kit {
    /// Builds it; after the first time this takes a second or two.
    pub fn build(job: &mut Job) -> Result<Self> {
        // Both agents are the same target to cargo: the other one is set aside before the usual one takes its place.
        let other = build_targets(job, &["--bin", "culvert", "--features", "culvert-dataplane/layout-next"])?;
        let next = job.workspace.cache.join("next/culvert");
        set_aside(&other, &next).with_context(|| format!("cannot write {}", next.display()))?;
        Ok(Self { artifacts: build(job)?, next })
    }

    /// What test programs find in their environment.
    pub fn environment(&self) -> Result<Vec<(&'static str, String)>> {
        let packets = env::var("CULVERT_ORACLE_PACKETS").unwrap_or_else(|_| ORACLE_PACKETS.to_owned());
        Ok(vec![
            ("PATH", search_path().to_string_lossy().into_owned()),
            ("CULVERT_BIN", self.artifacts.binary("culvert")?.display().to_string()),
            ("CULVERT_TRAFFIC_BIN", self.artifacts.binary("culvert-traffic")?.display().to_string()),
            ("CULVERT_NEXT_BIN", self.next.display().to_string()),
            ("CULVERT_ORACLE_PACKETS", packets),
            // Errors say what they are about; where they passed through only hides it. Panics keep theirs.
            ("RUST_LIB_BACKTRACE", "0".to_owned()),
        ])
    }
}

fn set_aside(artifacts: &Artifacts, to: &PathBuf) -> Result<()> {
    fs::create_dir_all(to.parent().context("no directory")?)?;
    // A new file, for the old one may be running.
    let _ = fs::remove_file(to);
    fs::copy(artifacts.binary("culvert")?, to)?;
    Ok(())
}
