//! Test programs, by what they need.

use std::process::Command;

use anyhow::{Result, bail};

use super::build;
use crate::{
    cargo::{Artifacts, Executable, TEST_PACKAGE},
    step::{Job, Verdict},
    workspace::search_path,
};

/// Tests of [`TEST_PACKAGE`] that feed prepared packets to the kernel programs.
const PACKETS: &[&str] = &["prog_run"];
/// Those that compare the kernel programs with the oracle.
const ORACLE: &[&str] = &["oracle"];
/// Generated packets of the oracle's, unless `CULVERT_ORACLE_PACKETS` says more.
const ORACLE_PACKETS: &str = "2000000";

/// A set of test programs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Those of all other packages.
    Unit,
    /// Packet fixtures.
    Packets,
    /// The oracle.
    Oracle,
    /// All else of [`TEST_PACKAGE`].
    Namespaces,
}

impl Suite {
    fn of(executable: &Executable) -> Self {
        let name = executable.name.as_str();
        match executable.package == TEST_PACKAGE {
            false => Self::Unit,
            true if PACKETS.contains(&name) => Self::Packets,
            true if ORACLE.contains(&name) => Self::Oracle,
            true => Self::Namespaces,
        }
    }

    /// The suite's test programs.
    pub fn programs(self, artifacts: &Artifacts) -> impl Iterator<Item = &Executable> {
        artifacts.executables.iter().filter(move |executable| executable.test && Self::of(executable) == self)
    }

    /// Runs the suite to its end, and fails if one of its programs did.
    pub fn run(self, job: &mut Job) -> Result<Verdict> {
        let artifacts = build(job)?;
        let mut failed = Vec::new();
        let mut any = false;
        for program in self.programs(&artifacts) {
            any = true;
            let mut command = Command::new(&program.path);
            command.current_dir(&program.directory).env("CARGO_MANIFEST_DIR", &program.directory);
            for (name, value) in environment(&artifacts)? {
                command.env(name, value);
            }
            if let Err(error) = job.run(command) {
                job.note(&format!("{} of {}: {error:#}", program.name, program.package));
                failed.push(program.name.as_str());
            }
        }
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        if !any {
            return Ok(Verdict::NotRun("there are no such tests".to_owned()));
        }
        Ok(Verdict::Passed)
    }
}

/// What test programs find in their environment: the programs and the object under test.
pub fn environment(artifacts: &Artifacts) -> Result<Vec<(&'static str, String)>> {
    let packets = std::env::var("CULVERT_ORACLE_PACKETS").unwrap_or_else(|_| ORACLE_PACKETS.to_owned());
    Ok(vec![
        ("PATH", search_path().to_string_lossy().into_owned()),
        ("CULVERT_BIN", artifacts.binary("culvert")?.display().to_string()),
        ("CULVERT_EBPF_OBJECT", artifacts.kernel_object()?.display().to_string()),
        ("CULVERT_ORACLE_PACKETS", packets),
    ])
}
