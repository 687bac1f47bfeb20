//! A socket option that the libraries do not have.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Cookie of the network namespace that a socket lives in (`SO_NETNS_COOKIE`, Linux 5.14).
pub fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    let value = std::ptr::from_mut(&mut cookie).cast();
    // SAFETY: the kernel writes at most `length` bytes to `cookie`.
    let result = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, value, &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
