//! Where a process of a cluster runs.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::shell::{run, split};

/// Joins a pod's cgroups (one a line) and network, and becomes the command. It keeps this machine's files.
const JOIN: &str = r#"
while read -r group; do echo 0 > "$group/cgroup.procs" || exit; done <<< "$1"
exec nsenter --net="/proc/$2/ns/net" --uts="/proc/$2/ns/uts" -- "$0" "${@:3}"
"#;

/// A node, the client outside, or a pod: programs that are started there have its network and its cgroup, so that an agent
/// sees them as the pod's own. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Site {
    name: String,
    way: Way,
    addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug)]
enum Way {
    /// A script that runs a command there.
    Script(PathBuf),
    /// A container: its cgroups of all hierarchies, one a line, and the number of a process in it.
    Container { cgroups: String, process: u32 },
}

impl Site {
    /// A place of the cluster's that has a script to get there.
    pub fn place(name: &str, enter: &Path, addresses: Vec<IpAddr>) -> Self {
        Self { name: name.to_owned(), way: Way::Script(enter.to_owned()), addresses }
    }

    /// A container with that id, somewhere below a node's cgroup.
    ///
    /// # Errors
    /// If it does not run.
    pub fn container(name: &str, node: &Path, id: &str, addresses: Vec<IpAddr>) -> Result<Self> {
        let cgroup = find(node, id).with_context(|| format!("{name}: no cgroup {id} below {}", node.display()))?;
        let process =
            processes(&cgroup)?.first().copied().with_context(|| format!("{name}: container {id} is empty"))?;
        let cgroups = cgroups(process).with_context(|| format!("the cgroups of {name}"))?;
        Ok(Self { name: name.to_owned(), way: Way::Container { cgroups, process }, addresses })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses, the primary family's first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its first address.
    pub fn address(&self) -> Result<IpAddr> {
        self.addresses.first().copied().with_context(|| format!("{} has no address", self.name))
    }

    /// A command there.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match &self.way {
            Way::Script(enter) => {
                let mut command = Command::new(enter);
                command.arg(program);
                command
            }
            Way::Container { cgroups, process } => {
                let mut command = Command::new("bash");
                command.args(["-c", JOIN]).arg(program).arg(cgroups).arg(process.to_string());
                command
            }
        }
    }

    /// Runs a command line there, split at white space, and returns its output.
    pub fn sh(&self, line: &str) -> Result<String> {
        let words = split(line);
        let mut command = self.command(words.get_program());
        command.args(words.get_args());
        run(&mut command).with_context(|| format!("at {}", self.name))
    }

    /// Runs a script of the shell's there.
    pub fn script(&self, script: &str) -> Result<String> {
        let mut command = self.command("sh");
        command.args(["-ec", script]);
        run(&mut command).with_context(|| format!("at {}", self.name))
    }
}

/// The cgroups of a process, in every hierarchy that is mounted: a program that joins only some gets another share of the
/// processors than the container has.
fn cgroups(process: u32) -> Result<String> {
    let path = format!("/proc/{process}/cgroup");
    let own = fs::read_to_string(&path).context(path)?;
    let mounts = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    let mounts: Vec<Vec<&str>> = mounts.lines().map(|mount| mount.split(' ').collect()).collect();
    Ok(own.lines().filter_map(|line| directory(line, &mounts)).collect::<Vec<_>>().join("\n"))
}

/// The directory that a line of `/proc/PID/cgroup` means: `4:cpu,cpuacct:/path`, or `0::/path` for cgroup2.
fn directory(line: &str, mounts: &[Vec<&str>]) -> Option<String> {
    let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
    let has = |options: &str| controllers.split(',').all(|one| options.split(',').any(|option| option == one));
    let mount = mounts.iter().find(|mount| match mount[..] {
        [_, _, "cgroup2", ..] => controllers.is_empty(),
        [_, _, "cgroup", options, ..] => !controllers.is_empty() && has(options),
        _ => false,
    })?;
    Some(format!("{}{path}", mount[1]))
}

/// The processes of a cgroup, not of those below.
pub fn processes(cgroup: &Path) -> Result<Vec<u32>> {
    let path = cgroup.join("cgroup.procs");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

/// The directory of that name below another one.
pub fn find(below: &Path, name: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(below).ok()?.flatten().map(|entry| entry.path());
    let directories: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    let here = directories.iter().find(|path| path.file_name().is_some_and(|found| found == name)).cloned();
    here.or_else(|| directories.iter().find_map(|path| find(path, name)))
}

#[cfg(test)]
mod tests {
    use super::directory;

    #[test]
    fn cgroups_of_both_generations_are_found() {
        let mounts = [
            "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu,cpuacct 0 0",
            "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0",
        ];
        let mounts = mounts.map(|mount| mount.split(' ').collect());
        assert_eq!(directory("4:cpu,cpuacct:/a/b", &mounts).as_deref(), Some("/sys/fs/cgroup/cpu/a/b"));
        assert_eq!(directory("0::/a/b", &mounts).as_deref(), Some("/sys/fs/cgroup/unified/a/b"));
        // Not mounted anywhere.
        assert_eq!(directory("7:pids:/a", &mounts), None);
    }
}
