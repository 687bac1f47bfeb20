//! Which addresses have ever been a flow's backend: what an egress program asks before it looks for a flow.
//!
//! Most packets that leave a link belong to no flow of ours. Looking that up costs four misses in tables that no cache
//! holds; one bit per address, picked by its hash, says the same of nearly all of them for a few nanoseconds. A bit is
//! set before the flow's rows are written and never cleared, so a zero is certain; a one costs the look-up.

use core::arch::asm;

use culvert_abi::affinity_hash;

use crate::maps;

/// log2 of the bits: 2^20 of them, 128 KiB, for at most some 250,000 backends.
const BITS: u32 = 20;
/// Words of 64 bits that hold them.
pub const WORDS: u32 = 1 << (BITS - 6);

/// The word and the bit of an address.
#[inline(always)]
fn place<const W: usize>(addr: &[u32; W]) -> (u32, u64) {
    let hash = affinity_hash(addr) >> (32 - BITS);
    (hash >> 6, 1 << (hash & 63))
}

/// Whether the address may be a backend of a flow.
#[inline(always)]
pub fn has<const W: usize>(addr: &[u32; W]) -> bool {
    let (word, bit) = place(addr);
    maps::BACKEND_FILTER.get(word).is_some_and(|word| *word & bit != 0)
}

/// Remembers that the address is a backend of a flow.
#[inline(always)]
pub fn add<const W: usize>(addr: &[u32; W]) {
    if has(addr) {
        return;
    }
    let (word, bit) = place(addr);
    let Some(word) = maps::BACKEND_FILTER.get_ptr_mut(word) else { return };
    // SAFETY: an aligned word of a map, which every CPU changes like this only. In assembly because `core` offers no
    // atomic operation for this target.
    unsafe { asm!("lock *(u64 *)({word} + 0) |= {bit}", word = in(reg) word, bit = in(reg) bit, options(nostack)) };
}
