//! Rendering: `helm template` and `kubectl kustomize`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::deploy::repository;
use crate::programs;
use crate::shell::{feed, run};

/// The chart, which helm renders.
#[derive(Debug)]
pub struct Chart {
    path: PathBuf,
}

impl Chart {
    /// The repository's chart.
    pub fn new() -> Self {
        Self::at(repository("deploy/helm/culvert"))
    }

    /// A chart elsewhere.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The objects that it renders with these values, in `kube-system`.
    pub fn render(&self, values: &Value) -> Result<Vec<Value>> {
        let text = feed(&mut self.template()?, &values.to_string()).context("the chart does not render")?;
        documents(&text)
    }

    /// What helm says of values that the chart refuses.
    pub fn refusal(&self, values: &Value) -> Result<String> {
        match feed(&mut self.template()?, &values.to_string()) {
            Err(error) => Ok(format!("{error:#}")),
            Ok(text) => bail!("{values} is taken:\n{text}"),
        }
    }

    /// `helm lint --strict`.
    pub fn lint(&self) -> Result<()> {
        run(Command::new(programs::find("helm")?).args(["lint", "--strict"]).arg(&self.path)).map(drop)
    }

    fn template(&self) -> Result<Command> {
        let mut command = Command::new(programs::find("helm")?);
        command.args(["template", "culvert"]).arg(&self.path).args(["--namespace", "kube-system", "--values", "-"]);
        Ok(command)
    }
}

impl Default for Chart {
    fn default() -> Self {
        Self::new()
    }
}

/// The objects of a kustomization.
pub fn kustomize(directory: &Path) -> Result<Vec<Value>> {
    let text = run(Command::new(programs::find("kubectl")?).arg("kustomize").arg(directory))?;
    documents(&text)
}

/// Asks a cluster's API server whether it would take these objects (`--dry-run=server`), unknown fields being errors.
pub fn try_on(kubeconfig: &Path, objects: &[Value]) -> Result<()> {
    let mut command = Command::new(programs::find("kubectl")?);
    command.arg("--kubeconfig").arg(kubeconfig);
    command.args(["apply", "--dry-run=server", "--validate=strict", "--filename", "-"]);
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
    feed(&mut command, &list.to_string()).map(drop)
}

/// The objects of a YAML text.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    let documents = serde_saphyr::from_multiple::<Value>(text).with_context(|| format!("no YAML:\n{text}"))?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}
