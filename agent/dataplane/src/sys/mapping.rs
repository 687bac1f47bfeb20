//! Arrays mapped into the process.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
    sync::atomic::{AtomicU16, AtomicU64},
};

use aya_obj::generated::{BPF_F_MMAPABLE, bpf_map_type};

use super::Map;

/// Parts begin and end at multiples of this, which is a multiple of every page size.
const GRAIN: usize = 1 << 16;

/// A mapping of an array or a part of it. The programs read it while we write, so it is seen through atomics only.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<libc::c_void>,
    length: usize,
}

// SAFETY: the memory is shared with the kernel anyway and reached through atomics only.
unsafe impl Send for Mapping {}
// SAFETY: likewise.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps an array that was made with `BPF_F_MMAPABLE`; its values must be a multiple of 8 bytes long.
    pub fn new(map: &Map) -> io::Result<Self> {
        let shape = map.shape();
        Self::map(map, 0, shape.value as usize * shape.rows as usize)
    }

    /// Maps the part of such an array that holds these bytes, and a little around it; the second value is where they begin
    /// in the mapping. The kernel maps every page at once: a part costs what it holds, the whole what the array holds.
    pub fn part(map: &Map, bytes: Range<usize>) -> io::Result<(Self, usize)> {
        let shape = map.shape();
        let length = shape.value as usize * shape.rows as usize;
        if bytes.start >= bytes.end || bytes.end > length {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let start = bytes.start - bytes.start % GRAIN;
        let end = bytes.end.next_multiple_of(GRAIN).min(length);
        Ok((Self::map(map, start, end - start)?, bytes.start - start))
    }

    fn map(map: &Map, offset: usize, length: usize) -> io::Result<Self> {
        let shape = map.shape();
        let array = shape.is(bpf_map_type::BPF_MAP_TYPE_ARRAY) && shape.flags & BPF_F_MMAPABLE != 0;
        if !array || !shape.value.is_multiple_of(8) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an array that can be mapped"));
        }
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, map.as_fd().as_raw_fd(), offset) };
        match NonNull::new(base) {
            Some(base) if base.as_ptr() != libc::MAP_FAILED => Ok(Self { base, length }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The array as words of 64 bits.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped, page-aligned, `length` bytes long, and atomics allow others to write.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.length / 8) }
    }

    /// The array as units of 16 bits.
    pub fn units(&self) -> &[AtomicU16] {
        // SAFETY: as in `words`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.length / 2) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the borrow checker ended all slices of it.
        unsafe { libc::munmap(self.base.as_ptr(), self.length) };
    }
}
