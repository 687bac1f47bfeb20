//! Links: a program at a hook, as an object that can be pinned and whose program can be exchanged.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya_obj::generated::{BPF_F_AFTER, BPF_F_BEFORE, bpf_attach_type, bpf_cmd, bpf_link_info, bpf_link_type};

use super::{attr, bpf, info, open_pin, owned, pin, raw};

/// Where a program is hooked.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A network link of the caller's namespace, by ifindex.
    Interface(u32),
    /// A directory of cgroup2.
    Cgroup(BorrowedFd<'a>),
}

/// The place of a new tcx program among those that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// Before all of them.
    First,
    /// After all of them.
    Last,
}

/// A BPF link.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// Where a link is attached; the attach type is `bpf_attach_type` as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// A network link: its ifindex and the attach type. Index 0: it is gone, or the program was detached.
    Interface(u32, u32),
    /// A cgroup: its id (inode number of the directory) and the attach type. Id 0: gone or detached.
    Cgroup(u64, u32),
    /// Something that Culvert never makes.
    Other,
}

impl Link {
    /// Attaches a program. `anchor` counts for tcx only.
    pub fn create(program: impl AsFd, target: Target<'_>, kind: bpf_attach_type, anchor: Anchor) -> io::Result<Self> {
        let mut attr = attr();
        attr.link_create.__bindgen_anon_1.prog_fd = raw(&program);
        attr.link_create.attach_type = kind as u32;
        match target {
            Target::Cgroup(directory) => attr.link_create.__bindgen_anon_2.target_fd = raw(&directory),
            Target::Interface(index) => {
                attr.link_create.__bindgen_anon_2.target_ifindex = index;
                attr.link_create.flags = match anchor {
                    Anchor::First => BPF_F_BEFORE,
                    Anchor::Last => BPF_F_AFTER,
                };
            }
        }
        // SAFETY: no pointers.
        unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }.map(|fd| Self(owned(fd)))
    }

    /// Opens a pinned link; `None` if nothing is pinned there.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        Ok(open_pin(path)?.map(Self))
    }

    /// Pins the link, so that it outlives the process.
    pub fn pin(&self, path: &Path) -> io::Result<()> {
        pin(&self.0, path)
    }

    /// Exchanges the program: each packet meets the old one or the new one, none meets neither.
    pub fn replace(&self, program: impl AsFd) -> io::Result<()> {
        let mut attr = attr();
        attr.link_update.link_fd = raw(&self.0);
        attr.link_update.__bindgen_anon_1.new_prog_fd = raw(&program);
        // SAFETY: no pointers.
        unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
    }

    /// Takes the program off the hook, whoever else holds the link.
    pub fn detach(&self) -> io::Result<()> {
        let mut attr = attr();
        attr.link_detach.link_fd = raw(&self.0);
        // SAFETY: no pointers.
        unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(drop)
    }

    /// Where it is attached.
    pub fn attached(&self) -> io::Result<Attached> {
        // SAFETY: `bpf_link_info` is made of integers; its pointers are u64 that stay zero, which the kernel heeds.
        let info: bpf_link_info = unsafe { info(&self.0) }?;
        let details = info.__bindgen_anon_1;
        Ok(if info.type_ == bpf_link_type::BPF_LINK_TYPE_TCX as u32 {
            // SAFETY: the kernel filled in the variant of the type.
            let tcx = unsafe { details.tcx };
            Attached::Interface(tcx.ifindex, tcx.attach_type)
        } else if info.type_ == bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
            // SAFETY: likewise.
            let cgroup = unsafe { details.cgroup };
            Attached::Cgroup(cgroup.cgroup_id, cgroup.attach_type)
        } else {
            Attached::Other
        })
    }
}

/// Ids of the programs at a hook, in the order in which they run. EINVAL: the kernel does not know the hook.
pub fn query(target: Target<'_>, kind: bpf_attach_type) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; 64];
    loop {
        let mut attr = attr();
        match target {
            Target::Interface(index) => attr.query.__bindgen_anon_1.target_ifindex = index,
            Target::Cgroup(directory) => attr.query.__bindgen_anon_1.target_fd = raw(&directory),
        }
        attr.query.attach_type = kind as u32;
        attr.query.prog_ids = ids.as_mut_ptr() as u64;
        attr.query.__bindgen_anon_2.count = ids.len() as u32;
        // SAFETY: the kernel writes at most `count` ids.
        let result = unsafe { bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr) };
        // SAFETY: both variants are the same integer.
        let count = unsafe { attr.query.__bindgen_anon_2.count } as usize;
        match result {
            Ok(_) => {
                ids.truncate(count);
                return Ok(ids);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && count > ids.len() => ids.resize(count, 0),
            Err(error) => return Err(error),
        }
    }
}
