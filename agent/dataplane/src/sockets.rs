//! The socket programs at the node's cgroup: one pinned link each, whose program a newer agent exchanges.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use aya_obj::generated::bpf_attach_type;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

use crate::{
    Error,
    object::{Object, SOCKET_PROGRAMS},
    pins::{Pins, unpin},
    sys::{Anchor, Attached, Link, Target},
};

/// The socket hooks of one cgroup.
#[derive(Debug)]
pub struct Sockets {
    directory: File,
    id: u64,
}

impl Sockets {
    /// Opens the cgroup; `None`: where cgroup2 is mounted.
    pub fn open(cgroup: Option<&Path>) -> Result<Self, Error> {
        let path = match cgroup {
            Some(path) => path.to_owned(),
            None => mount_point()?,
        };
        let directory = File::open(&path).map_err(Error::at(&path))?;
        let kind = fstatfs(&directory).map_err(|error| Error::at(&path)(error.into()))?.filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            return Err(Error::NoCgroup(path));
        }
        // A cgroup's id is the inode number of its directory.
        let id = directory.metadata().map_err(Error::at(&path))?.ino();
        Ok(Self { directory, id })
    }

    /// Makes every hook run the programs of `object`: exchanges the program of a pinned link, or attaches and pins anew.
    /// Returns how many were attached anew.
    pub fn attach(&self, object: &Object, pins: &Pins) -> Result<usize, Error> {
        let mut created = 0;
        for name in SOCKET_PROGRAMS {
            created += usize::from(self.attach_one(object, pins, name)?);
        }
        Ok(created)
    }

    fn attach_one(&self, object: &Object, pins: &Pins, name: &'static str) -> Result<bool, Error> {
        let failed = |source| Error::Socket { name, source };
        let (program, path) = (object.program(name)?, pins.socket(name));
        let kind = attach_type(name);
        if let Some(link) = Link::open(&path).map_err(failed)? {
            if link.attached().map_err(failed)? == Attached::Cgroup(self.id, kind as u32) {
                link.replace(&program).map_err(failed)?;
                return Ok(false);
            }
            // Detached by somebody, or of a cgroup that this node no longer uses.
            unpin(&path)?;
        }
        let target = Target::Cgroup(self.directory.as_fd());
        let link = Link::create(&program, target, kind, Anchor::Last).map_err(failed)?;
        link.pin(&path).map_err(failed)?;
        Ok(true)
    }

    /// Whether every hook is pinned and attached.
    pub fn intact(&self, pins: &Pins) -> bool {
        self.attached(pins).len() == SOCKET_PROGRAMS.len()
    }

    /// The programs whose hooks are pinned and attached.
    pub fn attached(&self, pins: &Pins) -> Vec<&'static str> {
        let mut programs = SOCKET_PROGRAMS.to_vec();
        programs.retain(|name| {
            let link = Link::open(&pins.socket(name)).ok().flatten();
            let attached = Attached::Cgroup(self.id, attach_type(name) as u32);
            link.is_some_and(|link| link.attached().is_ok_and(|found| found == attached))
        });
        programs
    }
}

fn attach_type(name: &str) -> bpf_attach_type {
    match name {
        "connect4" => bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
        "connect6" => bpf_attach_type::BPF_CGROUP_INET6_CONNECT,
        "sendmsg4" => bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG,
        "sendmsg6" => bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG,
        "recvmsg4" => bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG,
        "recvmsg6" => bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG,
        "getpeername4" => bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME,
        _ => bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME,
    }
}

/// Where cgroup2 is mounted.
pub fn mount_point() -> Result<PathBuf, Error> {
    let path = Path::new("/proc/self/mountinfo");
    let mounts = std::fs::read_to_string(path).map_err(Error::at(path))?;
    mounted(&mounts, "cgroup2").ok_or_else(|| Error::NoCgroup("/sys/fs/cgroup".into()))
}

/// The first mount point of a type of file system in `/proc/self/mountinfo` (proc(5)).
fn mounted(mounts: &str, kind: &str) -> Option<PathBuf> {
    let line = mounts.lines().find(|line| {
        let after_separator = line.split(" - ").nth(1).unwrap_or_default();
        after_separator.split(' ').next() == Some(kind)
    })?;
    // Blanks in the path are written as \040.
    Some(line.split(' ').nth(4)?.replace("\\040", " ").into())
}

/// Removes the socket hooks.
pub fn detach(pins: &Pins) -> Result<(), Error> {
    for name in SOCKET_PROGRAMS {
        let path = pins.socket(name);
        let failed = |source| Error::Socket { name, source };
        let Some(link) = Link::open(&path).map_err(failed)? else { continue };
        match link.detach() {
            // The cgroup is gone, and the hook with it.
            Err(error) if !gone(&error) => return Err(failed(error)),
            _ => unpin(&path)?,
        }
    }
    Ok(())
}

fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV | libc::ENOENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_beside_cgroup1() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n\
                      31 30 0:27 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                      32 30 0:28 / /sys/fs/cgroup/uni\\040fied rw shared:10 master:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(mounted(mounts, "cgroup2"), Some("/sys/fs/cgroup/uni fied".into()));
        assert_eq!(mounted(mounts, "bpf"), None);
    }
}
