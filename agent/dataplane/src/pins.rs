//! Where things are pinned: one directory of a bpf file system for a node.
//!
//! ```text
//! <bpffs>/culvert/v1/        1 = the layout's number, `culvert_abi::LAYOUT`
//!   maps/NAME                the maps in force
//!   maps_next/NAME           maps of another shape while they take over
//!   links/ingress_7          tcx links by direction and ifindex
//!   links/connect4           cgroup links by program
//!   qdiscs/7                 directories: links whose clsact qdisc is ours
//! ```
//! No name holds a dot: bpffs refuses those.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use culvert_abi::LAYOUT;

use crate::{Error, links::Direction};

/// The directory of one node's agent.
#[derive(Clone, Debug)]
pub struct Pins {
    base: PathBuf,
    root: PathBuf,
}

/// Held while an agent runs; the kernel lets go of it with the process.
#[derive(Debug)]
pub struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread is about to start holds a copy of the descriptor until it executes.
        let _ = self.0.unlock();
    }
}

impl Pins {
    /// The directory below a bpf file system.
    pub fn new(bpffs: &Path) -> Self {
        let base = bpffs.join("culvert");
        Self { root: base.join(format!("v{LAYOUT}")), base }
    }

    /// Makes the directories that are missing.
    pub fn create(&self) -> Result<(), Error> {
        for directory in [self.maps(), self.links(), self.qdiscs()] {
            fs::create_dir_all(&directory).map_err(Error::at(&directory))?;
        }
        Ok(())
    }

    /// All of Culvert's pins, of every layout.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The maps in force.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    /// Maps that take over, or that have been taken over from.
    pub fn maps_next(&self) -> PathBuf {
        self.root.join("maps_next")
    }

    /// The links.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Marks of our own qdiscs.
    pub fn qdiscs(&self) -> PathBuf {
        self.root.join("qdiscs")
    }

    /// The pin of a packet hook.
    pub fn hook(&self, direction: Direction, index: u32) -> PathBuf {
        self.links().join(format!("{}_{index}", direction.name()))
    }

    /// The packet hooks that are pinned.
    pub fn hooks(&self) -> Result<Vec<(Direction, u32)>, Error> {
        Ok(names(&self.links())?.iter().filter_map(|name| parse_hook(name)).collect())
    }

    /// The pin of a socket program.
    pub fn socket(&self, program: &str) -> PathBuf {
        self.links().join(program)
    }

    /// Waits until no other agent uses the directory; calls `waiting` once if there is one.
    pub fn lock(&self, waiting: impl FnOnce(&Path)) -> Result<Lock, Error> {
        if let Some(lock) = self.try_lock()? {
            return Ok(lock);
        }
        waiting(&self.base);
        let directory = File::open(&self.base).map_err(Error::at(&self.base))?;
        directory.lock().map_err(Error::at(&self.base))?;
        Ok(Lock(directory))
    }

    /// Takes the lock unless another agent holds it.
    pub fn try_lock(&self) -> Result<Option<Lock>, Error> {
        fs::create_dir_all(&self.base).map_err(Error::at(&self.base))?;
        let directory = File::open(&self.base).map_err(Error::at(&self.base))?;
        match directory.try_lock() {
            Ok(()) => Ok(Some(Lock(directory))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(Error::at(&self.base)(error)),
        }
    }
}

/// Names in a directory; none if it is not there.
pub fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::at(directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(Error::at(directory))?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// Removes a pin that may be gone already.
pub fn unpin(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::at(path)(error)),
        _ => Ok(()),
    }
}

fn parse_hook(name: &str) -> Option<(Direction, u32)> {
    let (direction, index) = name.split_once('_')?;
    Some((Direction::ALL.into_iter().find(|known| known.name() == direction)?, index.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_found_by_name() {
        assert_eq!(parse_hook("ingress_12"), Some((Direction::Ingress, 12)));
        assert_eq!(parse_hook("egress_3"), Some((Direction::Egress, 3)));
        for name in ["connect4", "ingress_", "ingress_eth0", "sideways_3"] {
            assert_eq!(parse_hook(name), None, "{name}");
        }
    }

    #[test]
    fn one_agent_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let pins = Pins::new(directory.path());
        let first = pins.try_lock().unwrap();
        assert!(first.is_some());
        assert!(pins.try_lock().unwrap().is_none());
        // What a child has between fork and exec.
        let inherited = first.as_ref().unwrap().0.try_clone().unwrap();
        drop(first);
        let mut waited = false;
        let _again = pins.lock(|_| waited = true).unwrap();
        assert!(!waited);
        drop(inherited);
    }
}
