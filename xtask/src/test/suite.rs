//! Test programs, by what they need.

use std::process::Command;

use anyhow::{Result, bail};

use super::{kit::Kit, kubernetes};
use crate::{
    cargo::{Artifacts, Executable, TEST_PACKAGE},
    step::{Job, Verdict},
};

/// Tests of [`TEST_PACKAGE`] that feed prepared packets to the kernel programs.
const PACKETS: &[&str] = &["prog_run"];
/// Those that compare the kernel programs with the oracle.
const ORACLE: &[&str] = &["oracle"];

/// Those that need what no kernel of a build machine has; the steps of virtual machines run them.
const MACHINES: &[&str] = &["ipvs"];
/// Those that need programs of Kubernetes.
const KUBERNETES: &[&str] = &[
    "deploy",
    "kube_agent",
    "kube_controller",
    "kube_layer2",
    "kube_metallb",
    "kube_proxy_itself",
    "kube_source",
    "metallb_manifests",
];

/// Those that need a cluster, and those that reboot its nodes.
const CLUSTER: &[&str] = &["cluster_addresses", "cluster_api_server", "cluster_software", "cluster_survival"];
const REBOOT: &[&str] = &["cluster_reboot"];

/// Those that run side by side, for they wait most of the time, for timers to end and for nodes to be missed, and load nothing; or compute
/// with one thread. Those that take longest come first.
const SIDE_BY_SIDE: &[&str] = &[
    "liveness",
    "orders",
    "spread",
    "failover",
    "kube_layer2",
    "lifetimes",
    "kube_metallb",
    "layer2",
    "kube_controller",
    "operation",
    "kube_source",
    "paths",
    "services",
    "kube_agent",
    "takeover",
    "health",
    "kube_proxy",
    "addresses",
    "reuse",
    "attach_migration",
];
/// How many of them at the same time.
const AT_ONCE: usize = 2;

/// A set of test programs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// Those of all other packages.
    Unit,
    /// Packet fixtures.
    Packets,
    /// The oracle.
    Oracle,
    /// Those of other kernels.
    Machines,
    /// Those with programs of Kubernetes.
    Kubernetes,
    /// Those on a cluster.
    Cluster,
    /// Those on a cluster whose nodes are rebooted.
    Reboot,
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
            true if MACHINES.contains(&name) => Self::Machines,
            true if KUBERNETES.contains(&name) => Self::Kubernetes,
            true if CLUSTER.contains(&name) => Self::Cluster,
            true if REBOOT.contains(&name) => Self::Reboot,
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
        let environment = if self == Self::Kubernetes { kubernetes::environment(job)? } else { Vec::new() };
        self.run_with(job, &kit, environment)
    }

    /// Runs it with what was built for it, and with more in its environment.
    pub fn run_with(self, job: &mut Job, kit: &Kit, more: Vec<(&'static str, String)>) -> Result<Verdict> {
        let mut environment = kit.environment()?;
        environment.extend(more);
        let command = |program: &Executable| {
            let mut command = Command::new(&program.path);
            command.current_dir(&program.directory).env("CARGO_MANIFEST_DIR", &program.directory);
            command.envs(environment.iter().map(|(name, value)| (name, value)));
            if matches!(self, Self::Namespaces | Self::Kubernetes | Self::Cluster | Self::Reboot) {
                // What a test measures must not depend on what another one does meanwhile.
                command.args(["--test-threads", "1"]);
            }
            command
        };
        let mut failures = Failures::default();
        let (mut side_by_side, alone): (Vec<_>, Vec<_>) =
            self.programs(&kit.artifacts).partition(|program| self == Self::Unit || place(program).is_some());
        for program in &alone {
            failures.begin(&program.name);
            if let Err(error) = job.listen(command(program), |line| failures.take(line)) {
                failures.end(&format!("{error:#}"));
            }
        }
        side_by_side.sort_by_key(|program| place(program).unwrap_or(usize::MAX));
        let outcomes = job.side_by_side(&side_by_side, AT_ONCE, |program| command(program));
        for (program, (lines, result)) in side_by_side.iter().zip(outcomes) {
            failures.begin(&program.name);
            for line in lines {
                failures.take(&line);
            }
            if let Err(error) = result {
                failures.end(&format!("{error:#}"));
            }
        }
        failures.tell(job)?;
        if alone.is_empty() && side_by_side.is_empty() {
            return Ok(Verdict::NotRun("there are no such tests".to_owned()));
        }
        Ok(Verdict::Passed)
    }
}

/// The place of a program in [`SIDE_BY_SIDE`].
fn place(program: &Executable) -> Option<usize> {
    SIDE_BY_SIDE.iter().position(|name| program.name == *name)
}

/// What failed, told once more at the end, where one looks first.
#[derive(Default)]
pub struct Failures {
    current: String,
    /// What the program that runs says of its failures, so far.
    said: Option<Vec<String>>,
    failed: Vec<String>,
    report: Vec<String>,
}

impl Failures {
    /// A test program begins.
    pub fn begin(&mut self, program: &str) {
        program.clone_into(&mut self.current);
        self.said = None;
    }

    /// Sees a line of its output, and takes none away.
    pub fn take(&mut self, line: &str) -> bool {
        if line == "failures:" && self.said.is_none() {
            self.said = Some(Vec::new());
        }
        if let Some(said) = &mut self.said {
            said.push(line.to_owned());
        }
        false
    }

    /// The program failed.
    pub fn end(&mut self, how: &str) {
        self.failed.push(std::mem::take(&mut self.current));
        self.report.push(how.to_owned());
        self.report.extend(self.said.take().into_iter().flatten());
    }

    /// Writes what failed to the end of the log.
    ///
    /// # Errors
    /// If anything did.
    pub fn tell(self, job: &mut Job) -> Result<()> {
        for line in &self.report {
            job.note(line);
        }
        if !self.failed.is_empty() {
            bail!("failed: {}", self.failed.join(", "));
        }
        Ok(())
    }
}
