//! The time between two map layouts: old and new programs run side by side while links are swapped one by one, and
//! must see one set of flows.
//!
//! Layouts are additive, so each one begins with the fields of the first, which are the ones that the programs need. What
//! another layout has behind them is not known here: a row is read through that prefix, and written with zeros behind.

use core::ptr;

use aya_ebpf::{
    macros::map,
    maps::{LruHashMap, PerCpuArray},
};
use culvert_abi::{Flow, FlowKey, role};

use crate::{
    flow::{Slot, key_of},
    maps,
};

/// Bytes that a flow may have in any layout.
const LARGEST: usize = 256;

/// A row for another layout's map. Private to the programs.
#[map]
static MIGRATED: PerCpuArray<[u64; LARGEST / 8]> = PerCpuArray::with_max_entries(1, 0);

/// Bytes of a flow in the first layout.
const fn shared<const W: usize>() -> usize {
    48 + 16 * W
}

/// Copies a row of the other layout's maps into ours; whether there was one.
#[inline(never)]
pub fn take_over<const W: usize>(key: &FlowKey<W>) -> bool {
    let (row, established) = match maps::previous_flows::<W>().get_ptr(key) {
        Some(row) => (row, true),
        None => match maps::previous_flows_new::<W>().get_ptr(key) {
            Some(row) => (row, false),
            None => return false,
        },
    };
    let Some(copy) = widened(row) else { return false };
    let map = if established { maps::flows::<W>() } else { maps::flows_new::<W>() };
    map.insert(key, copy, 0).is_ok()
}

/// Writes a new row where the other layout's programs look for it.
#[inline(never)]
pub fn write_along<const W: usize>(key: &FlowKey<W>, row: &Flow<W>) {
    if let Some(copy) = widened(row) {
        // The map copies as many bytes as its own values have, at most `LARGEST`: the verifier sees to it.
        let _ = maps::previous_flows_new::<W>().insert(key, copy, 0);
    }
}

/// Removes a row there, so that a miss here does not bring it back.
#[inline(always)]
pub fn remove<const W: usize>(key: &FlowKey<W>) {
    let _ = maps::previous_flows::<W>().remove(key);
    let _ = maps::previous_flows_new::<W>().remove(key);
}

/// Brings what changed in a flow (its flags, and the source chosen for it) to its rows there.
#[inline(never)]
pub fn follow<const W: usize>(flow: &Flow<W>, proto: u8) {
    follow_row(flow, proto, role::ORIGIN);
    follow_row(flow, proto, role::PATH);
}

#[inline(always)]
fn follow_row<const W: usize>(flow: &Flow<W>, proto: u8, role: u8) {
    let Some(key) = key_of(flow, proto, role, Slot::Here) else { return };
    update(maps::previous_flows::<W>(), key, flow);
    update(maps::previous_flows_new::<W>(), key, flow);
}

#[inline(always)]
fn update<const W: usize>(map: &LruHashMap<FlowKey<W>, Flow<W>>, key: &FlowKey<W>, flow: &Flow<W>) {
    let Some(row) = map.get_ptr_mut(key) else { return };
    // SAFETY: these fields lie in the part that all layouts share.
    unsafe {
        (*row).flags = flow.flags;
        (*row).source = flow.source;
        (*row).source_port = flow.source_port;
    }
}

/// The source that the other layout's programs chose for a flow whose PATH row has this key.
#[inline(always)]
pub fn source<const W: usize>(path: &FlowKey<W>) -> Option<([u32; W], u16)> {
    let row = match maps::previous_flows::<W>().get_ptr(path) {
        Some(row) => row,
        None => maps::previous_flows_new::<W>().get_ptr(path)?,
    };
    // SAFETY: as in `update`.
    let (addr, port) = unsafe { ((*row).source, (*row).source_port) };
    (port != 0).then_some((addr, port))
}

/// A copy of the shared part of a row, with zeros behind it.
#[inline(always)]
fn widened<const W: usize>(row: *const Flow<W>) -> Option<&'static Flow<W>> {
    let copy = MIGRATED.get_ptr_mut(0)?.cast::<u64>();
    // SAFETY: `row` has at least the shared part, `copy` has `LARGEST` bytes, and what is behind the shared part is
    // never written but with the zeros it began with. Word by word, because a call of `memcpy` could not be proven.
    unsafe {
        let mut i = 0;
        while i < shared::<W>() / 8 {
            *copy.add(i) = ptr::read_volatile(row.cast::<u64>().add(i));
            i += 1;
        }
    }
    // SAFETY: a whole flow, zeros where the other layout has nothing; this CPU's own.
    Some(unsafe { &*copy.cast() })
}

const _: () = assert!(shared::<1>() == 64 && shared::<4>() == 112 && size_of::<Flow<4>>() <= LARGEST);
