//! What clusters exist on this machine, and how they go away again.
//!
//! Each has a directory `/run/culvert-cluster/NAME` with its options, its slot and where its files are. Everything else
//! that it has on this machine (namespaces, cgroups, its link) begins with its prefix. The run that makes, uses or removes
//! one holds a lock on its directory; one that is neither complete nor locked was left by a killed run, and is swept.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use serde_json::{Value, json};

use super::{
    cgroup::Hierarchies,
    options::{Cni, Families, Name, Options, Proxy, Sockets},
    plan::{Place, Plan, SLOTS, prefix},
};
use crate::process::output;

const ROOT: &str = "/run/culvert-cluster";
const NETNS: &str = "/run/netns";

/// A cluster's entry, with its lock.
pub struct Entry {
    /// Its plan.
    pub plan: Plan,
    /// Its files on the disk.
    pub files: PathBuf,
    directory: PathBuf,
    _lock: File,
}

impl Entry {
    /// Makes a place for a new cluster whose files will be in `files`, after a sweep of what killed runs left.
    ///
    /// # Errors
    /// If one of this name exists, or as many as there can be.
    pub fn open(options: &Options, files: &Path) -> Result<Self> {
        let _gate = gate()?;
        sweep()?;
        let existing = all()?;
        if existing.iter().any(|one| one.plan.name == options.name) {
            bail!("cluster {0} exists; `cargo xtask cluster down --name {0}` removes it", options.name);
        }
        let free = (0..SLOTS).find(|slot| existing.iter().all(|one| one.plan.slot != *slot));
        let slot = free.with_context(|| format!("there are {SLOTS} clusters already"))?;
        let directory = Path::new(ROOT).join(options.name.as_str());
        fs::create_dir_all(&directory)?;
        let Some(lock) = lock(&directory)? else { bail!("cluster {} is being made", options.name) };
        let files = files.join(options.name.as_str());
        fs::write(directory.join("cluster.json"), write(options, slot, &files).to_string())?;
        remove_files(&files)?;
        fs::create_dir_all(&files).with_context(|| files.display().to_string())?;
        Ok(Self { plan: Plan::new(options, slot), files, directory, _lock: lock })
    }

    /// The cluster stays until somebody removes it. Without this, it goes when the next run finds its owner gone.
    pub fn keep(self) -> Result<()> {
        let path = self.directory.join("complete");
        fs::write(&path, "").with_context(|| path.display().to_string())
    }

    /// Removes the cluster.
    pub fn remove(self) -> Result<()> {
        remove_locked(&self.plan.name, &self.directory)
    }
}

/// Holds off other runs that would add to the list of clusters.
pub fn gate() -> Result<File> {
    fs::create_dir_all(ROOT).context(ROOT)?;
    let gate = File::create(Path::new(ROOT).with_extension("lock"))?;
    gate.lock().context("cannot lock the list of clusters")?;
    Ok(gate)
}

/// A cluster that is there.
pub struct Existing {
    /// Its plan.
    pub plan: Plan,
    /// Its files on the disk.
    pub files: PathBuf,
}

/// The cluster of that name.
pub fn find(name: &Name) -> Result<Existing> {
    let found = all()?.into_iter().find(|one| one.plan.name == *name && runs(&one.plan));
    found.with_context(|| format!("there is no cluster {name}; `cargo xtask cluster up --name {name}` makes it"))
}

/// All clusters that have an entry, complete or not.
pub fn all() -> Result<Vec<Existing>> {
    let Ok(entries) = fs::read_dir(ROOT) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path().join("cluster.json");
        // Without it, nothing was made yet.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        found.push(read(&text).with_context(|| path.display().to_string())?);
    }
    found.sort_by(|a, b| a.plan.name.as_str().cmp(b.plan.name.as_str()));
    Ok(found)
}

/// Removes a cluster with all that it has on this machine. Whether there was one.
pub fn remove(name: &Name) -> Result<bool> {
    let directory = Path::new(ROOT).join(name.as_str());
    if !directory.exists() {
        return Ok(false);
    }
    let Some(_lock) = lock(&directory)? else { bail!("cluster {name} is being made, used or removed by another run") };
    remove_locked(name, &directory)?;
    Ok(true)
}

fn remove_locked(name: &Name, directory: &Path) -> Result<()> {
    let prefix = prefix(name);
    Hierarchies::find()?.remove(|name| name.starts_with(&prefix))?;
    for name in names_in(NETNS, &prefix) {
        output(Command::new("ip").args(["netns", "delete", &name]))?;
    }
    if let Some(existing) = fs::read_to_string(directory.join("cluster.json")).ok().and_then(|text| read(&text).ok()) {
        let link = existing.plan.machine_link();
        if Path::new("/sys/class/net").join(&link).exists() {
            // It may have gone just now, with the hub's end.
            let _ = output(Command::new("ip").args(["link", "delete", &link]));
        }
        remove_files(&existing.files)?;
    }
    fs::remove_dir_all(directory).with_context(|| directory.display().to_string())
}

/// Removes what runs left that were killed, or that did not survive the machine's last start.
fn sweep() -> Result<()> {
    for one in all()? {
        let name = &one.plan.name;
        let directory = Path::new(ROOT).join(name.as_str());
        let Some(_lock) = lock(&directory)? else { continue };
        if complete(name) && runs(&one.plan) {
            continue;
        }
        remove_locked(name, &directory).with_context(|| format!("sweeping cluster {name}"))?;
    }
    Ok(())
}

fn complete(name: &Name) -> bool {
    Path::new(ROOT).join(name.as_str()).join("complete").exists()
}

fn runs(plan: &Plan) -> bool {
    Path::new(NETNS).join(plan.machine_name(Place::Hub)).exists()
}

fn lock(directory: &Path) -> Result<Option<File>> {
    let file = File::create(directory.join("lock")).with_context(|| directory.display().to_string())?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("{}: lock", directory.display())),
    }
}

fn remove_files(files: &Path) -> Result<()> {
    // A mount of the machine's below would be emptied with it; a cluster's own are in namespaces that are gone.
    let mounts = fs::read_to_string("/proc/mounts")?;
    let below = |line: &&str| line.split(' ').nth(1).is_some_and(|path| Path::new(path).starts_with(files));
    if let Some(mount) = mounts.lines().find(below) {
        bail!("{} is not removed, for there is a mount below: {mount}", files.display());
    }
    match fs::remove_dir_all(files) {
        Err(error) if files.exists() => Err(error).with_context(|| files.display().to_string()),
        _ => Ok(()),
    }
}

fn names_in(directory: &str, prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

fn write(options: &Options, slot: u8, files: &Path) -> Value {
    json!({
        "name": options.name.as_str(),
        "nodes": options.nodes,
        "proxy": options.proxy.to_string(),
        "families": options.families.to_string(),
        "cni": options.cni.to_string(),
        "sockets": options.sockets.to_string(),
        "loadbalancers": options.loadbalancers,
        "slot": slot,
        "files": files,
    })
}

fn read(text: &str) -> Result<Existing> {
    fn value<T: ValueEnum>(text: &str) -> Result<T> {
        T::from_str(text, false).map_err(|error| anyhow!("{error}"))
    }
    let json: Value = serde_json::from_str(text)?;
    let word = |key: &str| json[key].as_str().with_context(|| format!("no {key}"));
    let number = |key: &str| json[key].as_u64().and_then(|n| u8::try_from(n).ok()).with_context(|| format!("no {key}"));
    let options = Options {
        name: word("name")?.parse().map_err(|error| anyhow!("name: {error}"))?,
        nodes: number("nodes")?,
        proxy: value::<Proxy>(word("proxy")?)?,
        families: value::<Families>(word("families")?)?,
        cni: value::<Cni>(word("cni")?)?,
        sockets: value::<Sockets>(word("sockets")?)?,
        loadbalancers: json["loadbalancers"].as_bool().unwrap_or_default(),
    };
    Ok(Existing { plan: Plan::new(&options, number("slot")?), files: word("files")?.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_what_the_cluster_is() {
        let options = Options {
            name: "one".parse().unwrap(),
            nodes: 3,
            proxy: Proxy::Iptables,
            families: Families::Dual,
            cni: Cni::Ptp,
            sockets: Sockets::Host,
            loadbalancers: true,
        };
        let existing = read(&write(&options, 7, Path::new("/files/one")).to_string()).unwrap();
        assert_eq!(existing.plan, Plan::new(&options, 7));
        assert_eq!(existing.files, Path::new("/files/one"));
    }

    #[test]
    fn a_damaged_entry_is_an_error() {
        for text in ["", "{}", r#"{"name": "../x"}"#] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
