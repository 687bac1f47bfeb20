//! Calls of kubectl, as the cluster's administrator.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{node::Materials, parts::Program};
use crate::process::output;

/// kubectl with a kubeconfig.
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Materials<'_> {
    /// kubectl for this cluster.
    pub fn kubectl(&self) -> Result<Kubectl> {
        Ok(Kubectl::new(self.programs.path(Program::Kubectl)?, &self.kubeconfig()))
    }
}

impl Kubectl {
    /// That program with that kubeconfig.
    pub fn new(program: &Path, kubeconfig: &Path) -> Self {
        Self { program: program.to_owned(), kubeconfig: kubeconfig.to_owned() }
    }

    /// A call of it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kubeconfig").arg(&self.kubeconfig).arg("--request-timeout=10m").args(arguments);
        command
    }

    /// Runs it to its end, and returns what it says.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.command(arguments))
    }

    /// Makes objects be as given.
    pub fn apply(&self, objects: &Value) -> Result<()> {
        let mut command = self.command(&["apply", "--server-side", "--force-conflicts", "-f", "-"]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("kubectl")?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(objects.to_string().as_bytes()).context("kubectl apply")?;
        }
        let output = child.wait_with_output().context("kubectl apply")?;
        if !output.status.success() {
            bail!("kubectl apply: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}
