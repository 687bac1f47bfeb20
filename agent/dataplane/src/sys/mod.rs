//! The one module that talks to the kernel without a library between: bpf(2) where aya has no call for it (links by
//! ifindex, their replacement, pins of both, rows as bytes, batches), mappings of arrays, socket options.
//!
//! Everything here is safe to call: lengths are checked against what the kernel says of the object.
#![allow(unsafe_code)]

mod frames;
mod link;
mod map;
mod mapping;
mod socket;
pub mod xtables;

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attr, bpf_cmd};

pub use frames::Frames;
pub use link::{Anchor, Attached, Link, Target, query};
pub use map::{Map, Shape, Write, cpus};
pub use mapping::Mapping;
pub use socket::netns_cookie;

/// An attribute of nothing but zeros, to be filled in.
fn attr() -> bpf_attr {
    // SAFETY: a union of plain integers and arrays of them; the kernel wants unused bytes to be zero.
    unsafe { std::mem::zeroed() }
}

/// bpf(2).
///
/// # Safety
/// Each pointer and length in `attr` must be valid for what `command` reads and writes through it.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is as long as it is said to be; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// Takes over the descriptor that a command returned.
fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made the descriptor for us, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Pins a map, program or link. Names with a dot are refused by bpffs (EPERM).
pub fn pin(fd: impl AsFd, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = raw(&fd);
    // SAFETY: `path` is a C string that outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens what is pinned at a path; `None` if nothing is.
pub fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    let c_path = c_path(path)?;
    let mut attr = attr();
    attr.__bindgen_anon_4.pathname = c_path.as_ptr() as u64;
    // SAFETY: as in `pin`.
    match unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) } {
        Ok(fd) => Ok(Some(owned(fd))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// `BPF_OBJ_GET_INFO_BY_FD`. `T` is the kernel's info struct for the kind of object behind `fd`.
///
/// # Safety
/// `T` must be made of integers only, and hold no pointer for the kernel to write through.
unsafe fn info<T: Copy>(fd: impl AsFd) -> io::Result<T> {
    // SAFETY: all-zero bytes are a value of a type of integers.
    let mut info: T = unsafe { std::mem::zeroed() };
    let mut attr = attr();
    attr.info.bpf_fd = raw(&fd);
    attr.info.info_len = size_of::<T>() as u32;
    attr.info.info = std::ptr::from_mut(&mut info) as u64;
    // SAFETY: the kernel writes at most `info_len` bytes to `info`.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

fn raw(fd: &impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
