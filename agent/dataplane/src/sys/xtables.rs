//! The tables of iptables-legacy: socket options of a raw socket (`linux/netfilter_ipv4/ip_tables.h` and its sibling for IPv6).

use std::{
    ffi::{c_int, c_void},
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// Hooks of netfilter that a table can stand at: PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING.
pub const HOOKS: usize = 5;
/// Bytes of a table's name, with the zero at its end.
const NAME: usize = 32;
/// `IPT_SO_GET_INFO`, `IPT_SO_SET_REPLACE` and their likes for IPv6; the next number is `..._GET_ENTRIES` and
/// `..._SET_ADD_COUNTERS`.
const FIRST: c_int = 64;
// With pointers of 4 bytes `struct ipt_replace` looks different.
const _: () = assert!(size_of::<usize>() == 8);
/// How often a table that changes while it is read is read again.
const TRIES: u32 = 100;

/// Packets and bytes that a rule matched (`struct xt_counters`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A table as the kernel hands it out and takes it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Bit mask of the hooks that it stands at.
    pub valid_hooks: u32,
    /// For each hook, offset of its chain's first entry.
    pub hook_entry: [u32; HOOKS],
    /// For each hook, offset of its chain's policy.
    pub underflow: [u32; HOOKS],
    /// How many entries there are.
    pub count: u32,
    /// `struct ipt_entry` or `ip6t_entry`, one behind the other.
    pub entries: Vec<u8>,
}

/// `struct ipt_getinfo`, which is the same for IPv6.
#[repr(C)]
struct Info {
    name: [u8; NAME],
    valid_hooks: u32,
    hook_entry: [u32; HOOKS],
    underflow: [u32; HOOKS],
    count: u32,
    size: u32,
}

/// Bytes of `struct ipt_get_entries` before the entries, which are aligned to 8.
const GET_ENTRIES: usize = NAME + 8;

/// The tables of one address family in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct Xtables {
    socket: OwnedFd,
    level: c_int,
}

impl Xtables {
    /// Opens a socket to ask for the tables of IPv4 or IPv6.
    ///
    /// # Errors
    /// Needs `CAP_NET_RAW`; `EAFNOSUPPORT` without the family.
    pub fn open(ipv6: bool) -> io::Result<Self> {
        let (family, level) =
            if ipv6 { (AddressFamily::Inet6, libc::SOL_IPV6) } else { (AddressFamily::Inet, libc::SOL_IP) };
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
        Ok(Self { socket, level })
    }

    /// Reads a table.
    ///
    /// # Errors
    /// `ENOENT` if the kernel has no such table; asking makes one that it could have.
    pub fn read(&self, table: &str) -> io::Result<Table> {
        for _ in 0..TRIES {
            match self.read_once(table) {
                // It changed its size between the two questions.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                result => return result,
            }
        }
        Err(io::ErrorKind::ResourceBusy.into())
    }

    fn read_once(&self, table: &str) -> io::Result<Table> {
        let name = name(table)?;
        let mut info = Info { name, valid_hooks: 0, hook_entry: [0; HOOKS], underflow: [0; HOOKS], count: 0, size: 0 };
        // SAFETY: the kernel reads and writes one `Info`, which is made of integers.
        unsafe { self.get(FIRST, std::ptr::from_mut(&mut info).cast(), size_of::<Info>()) }?;
        // `struct ipt_get_entries`
        let mut buffer = name.to_vec();
        buffer.extend(info.size.to_ne_bytes());
        buffer.resize(GET_ENTRIES + info.size as usize, 0);
        // SAFETY: the kernel writes the head and at most `size` bytes of entries; the buffer has room for both.
        unsafe { self.get(FIRST + 1, buffer.as_mut_ptr().cast(), buffer.len()) }?;
        Ok(Table {
            valid_hooks: info.valid_hooks,
            hook_entry: info.hook_entry,
            underflow: info.underflow,
            count: info.count,
            entries: buffer.split_off(GET_ENTRIES),
        })
    }

    /// Puts a table in the place of one of `old_count` entries; returns the counters that those had at the last moment.
    ///
    /// # Errors
    /// `EAGAIN` if the table has another number of entries by now.
    pub fn replace(&self, table: &str, new: &Table, old_count: u32) -> io::Result<Vec<Counters>> {
        let mut counters = vec![Counters::default(); old_count as usize];
        let size = u32::try_from(new.entries.len()).map_err(io::Error::other)?;
        // `struct ipt_replace`: no padding where a pointer has 8 bytes.
        let mut buffer = name(table)?.to_vec();
        let numbers = [new.valid_hooks, new.count, size].into_iter().chain(new.hook_entry).chain(new.underflow);
        numbers.chain([old_count]).for_each(|number| buffer.extend(number.to_ne_bytes()));
        buffer.extend((counters.as_mut_ptr() as usize).to_ne_bytes());
        buffer.extend_from_slice(&new.entries);
        // SAFETY: the kernel reads the buffer, of which `size` bytes are entries, and writes `old_count` counters to
        // `counters`, which outlives the call.
        unsafe { self.set(FIRST, &buffer) }?;
        Ok(counters)
    }

    /// Adds to the counters of a table, one for each of its entries.
    pub fn add_counters(&self, table: &str, counters: &[Counters]) -> io::Result<()> {
        // `struct xt_counters_info`, whose counters are aligned to 8.
        let mut buffer = name(table)?.to_vec();
        buffer.extend(u32::try_from(counters.len()).map_err(io::Error::other)?.to_ne_bytes());
        buffer.extend([0; 4]);
        for Counters { packets, bytes } in counters {
            buffer.extend(packets.to_ne_bytes());
            buffer.extend(bytes.to_ne_bytes());
        }
        // SAFETY: the kernel reads the buffer, which holds as many counters as it says.
        unsafe { self.set(FIRST + 1, &buffer) }
    }

    /// # Safety
    /// The kernel may write `length` bytes to `value`.
    unsafe fn get(&self, option: c_int, value: *mut c_void, length: usize) -> io::Result<()> {
        let mut length = libc::socklen_t::try_from(length).map_err(io::Error::other)?;
        // SAFETY: the caller's promise.
        let result = unsafe { libc::getsockopt(self.socket.as_raw_fd(), self.level, option, value, &raw mut length) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// # Safety
    /// Pointers inside `value` must be valid for what the option writes through them.
    unsafe fn set(&self, option: c_int, value: &[u8]) -> io::Result<()> {
        let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
        // SAFETY: the kernel reads `length` bytes of `value`; the rest is the caller's promise.
        let result =
            unsafe { libc::setsockopt(self.socket.as_raw_fd(), self.level, option, value.as_ptr().cast(), length) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn name(table: &str) -> io::Result<[u8; NAME]> {
    let mut name = [0; NAME];
    match name.get_mut(..table.len()) {
        Some(place) if table.len() < NAME => place.copy_from_slice(table.as_bytes()),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    Ok(name)
}
