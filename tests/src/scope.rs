//! What one run may leave on the machine, and how it goes away again.
//!
//! Every namespace, cgroup and mount of a run begins with the run's prefix, and everything else lies in its directory
//! below `/run/culvert-tests`. A lock on a file there says that the run is alive: what a run left that was killed is
//! swept by the next one, whoever starts it.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::shell::sh;

const ROOT: &str = "/run/culvert-tests";
/// Held while runs are swept and opened, so that a new directory is locked before anybody looks at it.
const GATE: &str = "/run/culvert-tests.lock";
const NETNS: &str = "/run/netns";

/// One run: a prefix nobody else uses, a directory, and the promise that both are gone when it is dropped.
#[derive(Debug)]
pub struct Scope {
    prefix: String,
    dir: PathBuf,
    lock: Option<Flock<File>>,
    keep: bool,
}

impl Scope {
    /// Sweeps what dead runs left, then opens a new run.
    pub fn open() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let gate = File::create(GATE).context(GATE)?;
        let _gate = Flock::lock(gate, FlockArg::LockExclusive).map_err(|(_, error)| error).context(GATE)?;
        fs::create_dir_all(ROOT)?;
        sweep()?;
        loop {
            let prefix = format!("cvt{:x}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let dir = Path::new(ROOT).join(&prefix);
            match fs::create_dir(&dir) {
                Ok(()) => {
                    let lock = acquire(&dir)?.with_context(|| format!("{} is locked", dir.display()))?;
                    return Ok(Self { prefix, dir, lock: Some(lock), keep: false });
                }
                // A process of the same number left it, and keeps it alive (`--keep`).
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| dir.display().to_string()),
            }
        }
    }

    /// The prefix of all names.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The run's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A name of this run.
    pub fn name(&self, what: &str) -> String {
        format!("{}-{what}", self.prefix)
    }

    /// Makes a network namespace `PREFIX-what` and returns its name.
    pub fn netns(&self, what: &str) -> Result<String> {
        let name = self.name(what);
        sh(&format!("ip netns add {name}"))?;
        Ok(name)
    }

    /// Makes a cgroup `PREFIX-what` that threads may join one by one, below the root of cgroup2.
    pub fn cgroup(&self, what: &str) -> Result<PathBuf> {
        let path = cgroup2()?.join(self.name(what));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        fs::write(path.join("cgroup.type"), "threaded").with_context(|| format!("{}: threaded", path.display()))?;
        Ok(path)
    }

    /// Makes a directory below the run's own.
    pub fn directory(&self, what: &str) -> Result<PathBuf> {
        let path = self.dir.join(what);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Mounts a bpffs of its own at `DIR/what`.
    pub fn bpffs(&self, what: &str) -> Result<PathBuf> {
        let path = self.directory(what)?;
        mount(Some("bpffs"), &path, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("bpffs at {}", path.display()))?;
        Ok(path)
    }

    /// Leaves everything in place after the drop, until [`remove_kept`].
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        if self.keep {
            let _ = fs::write(self.dir.join("keep"), "");
            return;
        }
        if let Err(error) = remove(&self.prefix, &self.dir) {
            eprintln!("{}: {error:#}", self.prefix);
        }
        drop(self.lock.take());
    }
}

/// Removes a run that was kept (`culvert-demo --keep`), or all of them.
pub fn remove_kept() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for (prefix, dir) in runs()? {
        if dir.join("keep").exists() {
            remove(&prefix, &dir)?;
            removed.push(prefix);
        }
    }
    Ok(removed)
}

/// The root of the cgroup2 hierarchy.
pub fn cgroup2() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&"cgroup2"))
        .and_then(|fields| fields.get(1).map(PathBuf::from))
        .context("no cgroup2 is mounted")
}

fn runs() -> Result<Vec<(String, PathBuf)>> {
    let mut runs = Vec::new();
    for entry in fs::read_dir(ROOT).with_context(|| ROOT.to_owned())? {
        let entry = entry?;
        runs.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(runs)
}

/// Takes the run's lock; `None` if somebody holds it.
fn acquire(dir: &Path) -> Result<Option<Flock<File>>> {
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    Ok(Flock::lock(file, FlockArg::LockExclusiveNonblock).ok())
}

fn sweep() -> Result<()> {
    for (prefix, dir) in runs()? {
        if dir.join("keep").exists() {
            continue;
        }
        let Ok(Some(_lock)) = acquire(&dir) else { continue };
        if let Err(error) = remove(&prefix, &dir) {
            eprintln!("sweeping {prefix}: {error:#}");
        }
    }
    Ok(())
}

/// Removes all that bears the prefix: processes, namespaces, mounts, cgroups, files.
fn remove(prefix: &str, dir: &Path) -> Result<()> {
    end_processes(prefix)?;
    for name in names_in(Path::new(NETNS), prefix)? {
        sh(&format!("ip netns delete {name}"))?;
    }
    let mounts = fs::read_to_string("/proc/mounts")?;
    for path in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|path| Path::new(path).starts_with(dir))
    {
        umount2(path, MntFlags::MNT_DETACH).with_context(|| format!("umount {path}"))?;
    }
    let root = cgroup2()?;
    for name in names_in(&root, prefix)? {
        remove_cgroup(&root.join(name))?;
    }
    fs::remove_dir_all(dir).with_context(|| dir.display().to_string())
}

/// Entries of a directory that begin with `PREFIX-`; none if there is no such directory.
fn names_in(dir: &Path, prefix: &str) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-')) {
            names.push(name);
        }
    }
    Ok(names)
}

/// Kills every process with a thread in the run's cgroups and waits until they are gone. Threads of this process
/// (a server whose guard lives longer than its lab) are moved out.
fn end_processes(prefix: &str) -> Result<()> {
    let root = cgroup2()?;
    let deadline = Instant::now() + Duration::from_secs(5);
    for name in names_in(&root, prefix)? {
        let threads = root.join(name).join("cgroup.threads");
        loop {
            let list = fs::read_to_string(&threads).unwrap_or_default();
            let (own, others): (Vec<_>, Vec<_>) =
                list.split_whitespace().filter(|tid| !zombie(tid)).partition(|tid| own(tid));
            for tid in own {
                let _ = fs::write(root.join("cgroup.threads"), tid);
            }
            if others.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                bail!("{}: {others:?} do not end", threads.display());
            }
            for pid in others.into_iter().filter_map(|tid| tid.parse().ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

fn own(tid: &str) -> bool {
    Path::new("/proc/self/task").join(tid).exists()
}

/// A zombie only waits for its parent.
fn zombie(tid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{tid}/stat"));
    stat.map_or(true, |stat| stat.contains(") Z ") || stat.contains(") X "))
}

/// Removes a cgroup; threads that are on their way out are given a moment.
fn remove_cgroup(path: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error).with_context(|| path.display().to_string()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
