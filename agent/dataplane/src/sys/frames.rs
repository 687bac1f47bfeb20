//! Frames that are sent as they are, and the groups whose frames a link is to let through.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::raw;

/// A socket for whole frames. It receives none.
#[derive(Debug)]
pub struct Frames(OwnedFd);

impl Frames {
    /// Needs `NET_RAW`.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(Self(socket(AddressFamily::Packet, SockType::Raw, flags, None)?))
    }

    /// Sends a frame, Ethernet header included, out of a link.
    pub fn send(&self, link: u32, frame: &[u8]) -> io::Result<()> {
        // SAFETY: integers and arrays of them.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = link.cast_signed();
        let (fd, size) = (self.0.as_fd().as_raw_fd(), size_of_val(&to) as libc::socklen_t);
        // SAFETY: both pointers are valid for the lengths given.
        let sent = unsafe { libc::sendto(fd, frame.as_ptr().cast(), frame.len(), 0, (&raw const to).cast(), size) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Lets a link receive frames to a group, until [`Self::close_to`]: also when this process has ended. No error if it does
    /// already. Needs `NET_ADMIN`.
    pub fn open_to(&self, link: &str, group: [u8; 6]) -> io::Result<()> {
        match self.filter(libc::SIOCADDMULTI, link, group) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result,
        }
    }

    /// Takes that back. No error if it is not so, or the link is gone.
    pub fn close_to(&self, link: &str, group: [u8; 6]) -> io::Result<()> {
        match self.filter(libc::SIOCDELMULTI, link, group) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
            result => result,
        }
    }

    fn filter(&self, request: libc::c_ulong, link: &str, group: [u8; 6]) -> io::Result<()> {
        // SAFETY: integers and arrays of them.
        let mut question: libc::ifreq = unsafe { std::mem::zeroed() };
        // One byte less than there is room for: the name ends with a zero.
        let (_, name) = question.ifr_name.split_last_mut().ok_or(io::ErrorKind::InvalidInput)?;
        if link.len() > name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in name.iter_mut().zip(link.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        // SAFETY: integers and arrays of them.
        let mut address: libc::sockaddr = unsafe { std::mem::zeroed() };
        for (to, from) in address.sa_data.iter_mut().zip(group) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        question.ifr_ifru.ifru_hwaddr = address;
        let fd = raw(&self.0).cast_signed();
        // SAFETY: the kernel reads one `ifreq`.
        let result = unsafe { libc::ioctl(fd, request as _, &raw const question) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
