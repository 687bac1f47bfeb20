//! The cgroups of a cluster's places: one directory for each place, in every hierarchy that is mounted.
//!
//! All that a place runs stays below its directory of cgroup2, pods too. So an agent finds a node's processes there, and
//! `down` ends them all by one write.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// The hierarchies of this machine.
pub struct Hierarchies {
    unified: PathBuf,
    legacy: Vec<PathBuf>,
}

impl Hierarchies {
    /// Those that are mounted.
    pub fn find() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/mounts").context("/proc/mounts")?)
    }

    fn parse(mounts: &str) -> Result<Self> {
        let of = |kind: &str| -> Vec<PathBuf> {
            let lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            lines
                .filter(|fields| fields.get(2) == Some(&kind))
                .filter_map(|fields| fields.get(1).map(PathBuf::from))
                .collect()
        };
        let unified = of("cgroup2").into_iter().next().context("no cgroup2 is mounted")?;
        Ok(Self { unified, legacy: of("cgroup") })
    }

    /// Whether cgroup2 has the controllers too. Then a directory with processes cannot hand them on, and a place's own
    /// processes need one beside those of the pods.
    fn only_unified(&self) -> bool {
        self.legacy.is_empty()
    }

    /// The root of cgroup2, which is at the same path in a place.
    pub fn unified(&self) -> &Path {
        &self.unified
    }

    /// Makes the directories of a place, named `name`.
    pub fn create(&self, name: &str) -> Result<()> {
        for directory in self.directories(name) {
            fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
            fill_cpuset(&directory)?;
        }
        if self.only_unified() {
            fs::create_dir_all(self.unified.join(name).join("init"))?;
            hand_on_controllers(&self.unified)?;
        }
        Ok(())
    }

    /// The place's directory in each hierarchy: what is the root to its processes.
    pub fn directories(&self, name: &str) -> Vec<PathBuf> {
        self.legacy.iter().chain([&self.unified]).map(|root| root.join(name)).collect()
    }

    /// Where processes go that run in the place but in no pod.
    pub fn processes(&self, name: &str) -> Vec<PathBuf> {
        if self.only_unified() { vec![self.unified.join(name).join("init")] } else { self.directories(name) }
    }

    /// After the place's first process has made its namespaces: moves it where it stays.
    pub fn settle(&self, name: &str) -> Result<()> {
        if !self.only_unified() {
            return Ok(());
        }
        let directory = self.unified.join(name);
        for process in fs::read_to_string(directory.join("cgroup.procs"))?.lines() {
            fs::write(directory.join("init/cgroup.procs"), process)?;
        }
        hand_on_controllers(&directory)
    }

    /// Ends all processes of the places whose names are chosen, and removes the directories.
    pub fn remove(&self, chosen: impl Fn(&str) -> bool) -> Result<()> {
        let places = children(&self.unified, &chosen);
        for place in &places {
            fs::write(place.join("cgroup.kill"), "1").with_context(|| format!("{}: cgroup.kill", place.display()))?;
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        for root in self.legacy.iter().chain([&self.unified]) {
            for place in children(root, &chosen) {
                remove_tree(&place, deadline)?;
            }
        }
        Ok(())
    }
}

/// A cpuset without processors takes no process.
fn fill_cpuset(directory: &Path) -> Result<()> {
    let Some(parent) = directory.parent() else { return Ok(()) };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), directory.join(file));
        if from.exists() && to.exists() {
            fs::write(&to, fs::read_to_string(&from)?.trim()).with_context(|| to.display().to_string())?;
        }
    }
    Ok(())
}

fn hand_on_controllers(directory: &Path) -> Result<()> {
    let controllers = fs::read_to_string(directory.join("cgroup.controllers"))?;
    for controller in controllers.split_whitespace() {
        let file = directory.join("cgroup.subtree_control");
        fs::write(&file, format!("+{controller}")).with_context(|| format!("{}: +{controller}", file.display()))?;
    }
    Ok(())
}

fn children(root: &Path, chosen: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let named = |path: &PathBuf| path.file_name().is_some_and(|name| chosen(&name.to_string_lossy()));
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir() && named(path)).collect()
}

/// Removes a directory and those below; processes on their way out are given until `deadline`.
fn remove_tree(directory: &Path, deadline: Instant) -> Result<()> {
    for child in children(directory, |_| true) {
        remove_tree(&child, deadline)?;
    }
    loop {
        match fs::remove_dir(directory) {
            Err(_) if !directory.exists() => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                let left = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
                bail!("{}: {error}; processes {:?}", directory.display(), left.split_whitespace().collect::<Vec<_>>());
            }
            Err(_) => thread::sleep(Duration::from_millis(10)),
            Ok(()) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_generations_are_found() {
        let both =
            "cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let both = Hierarchies::parse(both).unwrap();
        assert_eq!(both.processes("x"), [Path::new("/sys/fs/cgroup/cpu/x"), Path::new("/sys/fs/cgroup/unified/x")]);
        let one = Hierarchies::parse("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n").unwrap();
        assert_eq!(one.processes("x"), [Path::new("/sys/fs/cgroup/x/init")]);
        assert!(Hierarchies::parse("proc /proc proc rw 0 0\n").is_err());
    }
}
