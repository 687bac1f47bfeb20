//! Test programs, by what they need.

use std::process::Command;

use anyhow::{Result, bail};

use super::kit::Kit;
use crate::{
    cargo::{Artifacts, Executable, TEST_PACKAGE},
    step::{Job, Verdict},
};

/// Tests of [`TEST_PACKAGE`] that feed prepared packets to the kernel programs.
const PACKETS: &[&str] = &["prog_run"];
/// Those that compare the kernel programs with the oracle.
const ORACLE: &[&str] = &["oracle"];

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
        let kit = Kit::build(job)?;
        let environment = kit.environment()?;
        let mut failed = Vec::new();
        let mut any = false;
        for program in self.programs(&kit.artifacts) {
            any = true;
            let mut command = Command::new(&program.path);
            command.current_dir(&program.directory).env("CARGO_MANIFEST_DIR", &program.directory);
            command.envs(environment.iter().map(|(name, value)| (name, value)));
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
