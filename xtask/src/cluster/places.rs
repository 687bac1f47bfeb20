//! The places of a cluster: how one is started, and how a process gets there.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};

use super::{
    cgroup::Hierarchies,
    plan::{Place, Plan},
};
use crate::{process::tail, vm::quote};

const SCRIPT: &str = include_str!("place.sh");
const ENTER: &str = include_str!("enter.sh");

/// A place's files on the disk.
pub fn directory(files: &Path, place: Place) -> PathBuf {
    files.join(place.name())
}

/// The script that runs a command in a place.
pub fn enter_script(files: &Path, place: Place) -> PathBuf {
    directory(files, place).join("enter")
}

/// A command in a place.
pub fn enter(files: &Path, place: Place, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(enter_script(files, place));
    command.arg(program);
    command
}

/// Starts places of a cluster whose network namespaces exist.
pub fn start(plan: &Plan, files: &Path, which: impl Iterator<Item = Place>) -> Result<()> {
    let hierarchies = &Hierarchies::find()?;
    fs::write(files.join("place.sh"), SCRIPT)?;
    thread::scope(|scope| {
        let starts: Vec<_> =
            which.map(|place| (place, scope.spawn(move || start_one(plan, files, place, hierarchies)))).collect();
        for (place, start) in starts {
            let outcome = start.join().ok().context("the thread was lost").and_then(|result| result);
            outcome.with_context(|| format!("starting {}", place.name()))?;
        }
        Ok(())
    })
}

fn start_one(plan: &Plan, files: &Path, place: Place, hierarchies: &Hierarchies) -> Result<()> {
    let name = plan.machine_name(place);
    let directory = directory(files, place);
    fs::create_dir_all(directory.join("log"))?;
    hierarchies.create(&name)?;
    let groups = words(&hierarchies.processes(&name));
    let script = ENTER
        .replace("@DIRECTORY@", &directory.display().to_string())
        .replace("@NAME@", &name)
        .replace("@GROUPS@", &groups);
    let enter = enter_script(files, place);
    fs::write(&enter, script)?;
    fs::set_permissions(&enter, fs::Permissions::from_mode(0o755))?;

    let log = directory.join("log/place.log");
    let mut first = first_process(&name, &words(&hierarchies.directories(&name)), &files.join("place.sh"));
    first
        .env("HOST_NAME", place.name())
        .env("DIRECTORY", &directory)
        .env("NODE", if matches!(place, Place::Node(_)) { "1" } else { "0" })
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(&log)?)
        // A Ctrl-C on the terminal is not meant for it.
        .process_group(0);
    let mut child = first.spawn().context("sh")?;
    let mut said = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut said)?;
    }
    if said != "ready\n" {
        bail!("{}", tail(&log, 5));
    }
    hierarchies.settle(&name)
}

/// Joins the cgroups before the cgroup namespace is made, for its root is where its first process is.
fn first_process(name: &str, groups: &str, script: &Path) -> Command {
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!(
        r#"set -e
for group in {groups}; do echo 0 > "$group/cgroup.procs"; done
exec nsenter --net=/run/netns/{name} unshare --mount --uts --ipc --pid --cgroup --fork sh {script}"#,
        script = quote(&script.display().to_string())
    ));
    command
}

fn words(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| quote(&path.display().to_string())).collect::<Vec<_>>().join(" ")
}

/// A program that runs in a place until the cluster goes.
pub struct Daemon<'a> {
    /// The cluster's files.
    pub files: &'a Path,
    /// Where it runs.
    pub place: Place,
    /// The program.
    pub program: &'a Path,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl Daemon<'_> {
    /// Starts it; a child of the place's first process then.
    pub fn start(&self, environment: &[(&str, &OsStr)]) -> Result<()> {
        let log = self.log();
        let mut command = enter(self.files, self.place, "setsid");
        command.args(["--fork", "sh", "-c", r#"exec "$@" >> "$0" 2>&1 < /dev/null"#]).arg(&log);
        command.arg(self.program).args(&self.arguments);
        command.envs(environment.iter().copied());
        // The daemon has a log of its own by the time that this ends.
        let output = command.stdin(Stdio::null()).output().with_context(|| self.program.display().to_string())?;
        if !output.status.success() {
            bail!(
                "{} in {}: {}",
                self.program.display(),
                self.place.name(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Where its output goes.
    pub fn log(&self) -> PathBuf {
        let name = self.program.file_name().unwrap_or_default().to_string_lossy();
        directory(self.files, self.place).join("log").join(format!("{name}.log"))
    }
}
