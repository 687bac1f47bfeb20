//! Runs upstream's tests on a cluster: in parallel what may, one by one what disturbs others.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{
    Trial,
    junit::{self, Outcome, Spec},
    results::Results,
    selection::Selection,
};
use crate::{
    cluster::{self, parts::Program},
    step::Job,
    workspace::{Workspace, search_path},
};

/// A part of the specs.
struct Part {
    name: &'static str,
    filter: &'static str,
    processes: usize,
}

const PARTS: [Part; 2] = [
    Part { name: "parallel", filter: "!Disruptive && !Serial", processes: 6 },
    Part { name: "serial", filter: "Disruptive || Serial", processes: 1 },
];

/// Where reports are kept.
pub fn reports(workspace: &Workspace) -> PathBuf {
    workspace.root.join("target/e2e")
}

/// A title as a part of a file's name.
pub fn file_name(title: &str) -> String {
    title.replace([' ', ':'], "-")
}

/// Runs what is selected. The reports are `target/e2e/TITLE-PART.xml`.
///
/// # Errors
/// If the tests could not be run. Failed specs are results.
pub fn run(job: &mut Job, cluster: &cluster::Up, trial: &Trial) -> Result<Results> {
    let directory = reports(job.workspace);
    let title = file_name(trial.title);
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let dry = directory.join(format!("{title}-selection.xml"));
    let selection = match trial.sample {
        None => trial.selection,
        Some(sample) => {
            let names = selected(job, cluster, trial.selection, &dry)?;
            &trial.selection.sampled(&names, sample)
        }
    };
    let wanted = selected(job, cluster, selection, &dry)?;
    // A sample, and the core, are what they are: only what a user leaves out is a spec that is skipped.
    let all = if trial.whole { selected(job, cluster, &selection.without_skips(), &dry)? } else { wanted.clone() };
    let mut specs = Vec::new();
    for part in &PARTS {
        let path = directory.join(format!("{title}-{}.xml", part.name));
        // What is read afterwards is of this run.
        let _ = fs::remove_file(&path);
        job.note(&format!("{title}: {} specs", part.name));
        let mut command = ginkgo(cluster, selection, &path)?;
        command.arg(format!("--label-filter={}", part.filter)).arg(format!("--procs={}", part.processes));
        test_program(&mut command, cluster)?;
        let outcome = listen(job, command);
        specs.push(report(&path, outcome)?);
    }
    let left_out = |name: &str| (!wanted.iter().any(|one| one == name)).then(|| selection.why_not(name));
    Ok(Results::new(&all, &specs, left_out))
}

/// A failed spec fails the runner, which is no error as long as there is a report.
fn report(path: &Path, outcome: Result<()>) -> Result<Vec<Spec>> {
    match (junit::read(path), outcome) {
        (Ok(specs), _) => Ok(specs),
        (Err(_), Err(error)) | (Err(error), Ok(())) => Err(error),
    }
}

/// The names of all specs that would be run: what a dry run selects.
fn selected(job: &mut Job, cluster: &cluster::Up, selection: &Selection, path: &Path) -> Result<Vec<String>> {
    let _ = fs::remove_file(path);
    let mut command = ginkgo(cluster, selection, path)?;
    command.args(["--dry-run", "--procs=1"]);
    test_program(&mut command, cluster)?;
    job.run(command)?;
    let specs = junit::read(path)?;
    let names = specs.into_iter().filter(|spec| spec.outcome != Outcome::Unselected).map(|spec| spec.name);
    Ok(names.collect())
}

fn ginkgo(cluster: &cluster::Up, selection: &Selection, report: &Path) -> Result<Command> {
    let file = report.file_name().context("a report without a name")?;
    let directory = report.parent().context("a report without a directory")?;
    let mut command = cluster.outside(cluster.programs.path(Program::Ginkgo)?);
    let kubectl = cluster.programs.path(Program::Kubectl)?.parent().context("kubectl")?.to_owned();
    let mut path = kubectl.into_os_string();
    path.push(":");
    path.push(search_path());
    command.env("PATH", path).current_dir(directory);
    command.args(["--no-color", "--v", "--flake-attempts=1", "--timeout=2h", "--poll-progress-after=0"]);
    command.args(selection.focus.iter().map(|focus| format!("--focus={focus}")));
    command.args(selection.skips().map(|skip| format!("--skip={skip}")));
    command.arg(format!("--output-dir={}", directory.display())).arg(format!("--junit-report={}", file.display()));
    Ok(command)
}

fn test_program(command: &mut Command, cluster: &cluster::Up) -> Result<()> {
    command.arg(cluster.programs.path(Program::E2eTest)?).arg("--");
    command.arg(format!("--kubeconfig={}", cluster.kubeconfig().display()));
    command.arg(format!("--num-nodes={}", cluster.nodes()));
    command.args(["--provider=skeleton", "--dump-logs-on-failure=false"]);
    Ok(())
}

/// Runs ginkgo with its output in the log; progress is how many specs have ended.
fn listen(job: &mut Job, command: Command) -> Result<()> {
    let mut ended = 0;
    job.watch(command, |line| {
        let bullet = line.starts_with("• [") || line.starts_with("S [");
        ended += usize::from(bullet);
        bullet.then(|| format!("{ended} specs have ended"))
    })
}
