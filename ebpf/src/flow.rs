//! Rows of flows: found, judged, written, moved and ended.
//!
//! A flow has up to three rows (see `culvert_abi::role`), each of which holds the whole flow and so finds the others.
//! Rows lie in `FLOWS_NEW` until the client speaks after a reply was seen, then in `FLOWS`: a flood of new flows
//! evicts new flows only. Those of a closed flow lie in `FLOWS_NEW` again: what is over evicts no connection that lives,
//! however long that is silent.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use culvert_abi::{Flow, FlowKey, config, flow, idle, proto, role, ticks};

use crate::{choose, clock, count, maps, migrate, words};

/// `bpf_map_update_elem`: insert, and fail if the key exists.
const NO_EXIST: u64 = 1;

/// A row in a map. Other CPUs use it at the same time, and the map may give it to another flow at any moment: what
/// leads somewhere is copied out and compared with the packet ([`Row::is_of`]).
#[derive(Clone, Copy)]
pub struct Row<const W: usize> {
    at: *mut Flow<W>,
    /// It lies in `FLOWS`.
    pub established: bool,
}

/// Whether another layout's maps are in use beside ours. Read-only data: without it the verifier drops the code.
#[inline(always)]
pub fn migrating() -> bool {
    maps::config::flags() & config::MIGRATING != 0
}

/// Finds a row.
#[inline(always)]
pub fn find<const W: usize>(key: &FlowKey<W>) -> Option<Row<W>> {
    let row = find_here(key);
    if row.is_none() && migrating() && migrate::take_over(key) { find_here(key) } else { row }
}

#[inline(always)]
fn find_here<const W: usize>(key: &FlowKey<W>) -> Option<Row<W>> {
    if let Some(at) = maps::flows::<W>().get_ptr_mut(key) {
        return Some(Row { at, established: true });
    }
    maps::flows_new::<W>().get_ptr_mut(key).map(|at| Row { at, established: false })
}

impl<const W: usize> Row<W> {
    /// The flow. Fields are read one by one, when they are used.
    #[inline(always)]
    pub fn flow(&self) -> &Flow<W> {
        // SAFETY: the map's memory stays while the program runs (RCU); any bytes are a value.
        unsafe { &*self.at }
    }

    #[inline(always)]
    pub fn has(&self, flag: u32) -> bool {
        self.flow().flags & flag != 0
    }

    /// Counts a packet on the row. Rows have one direction, and a direction has one CPU most of the time: a lost
    /// count now and then is cheaper than an atomic addition for each packet.
    #[inline(always)]
    pub fn count(&self, bytes: u32) {
        // SAFETY: as in `flow`.
        unsafe {
            (*self.at).packets += 1;
            (*self.at).bytes += bytes as u64;
        }
    }

    /// Renews the row's clock, at most once a second: a cache line that is only read stays shared.
    #[inline(always)]
    pub fn touch(&self, now: u32) {
        if clock::elapsed(now, self.flow().seen) >= const { ticks(1) } {
            // SAFETY: as in `flow`.
            unsafe { (*self.at).seen = now };
        }
    }

    /// Sets flags on this row.
    #[inline(always)]
    pub fn set(&self, flags: u32) {
        // SAFETY: as in `flow`.
        unsafe { (*self.at).flags |= flags };
    }

    /// Writes the source that was chosen.
    #[inline(always)]
    pub fn set_source(&self, addr: &[u32; W], port: u16) {
        // SAFETY: as in `flow`.
        unsafe {
            words::copy(&mut (*self.at).source, addr);
            (*self.at).source_port = port;
        }
    }

    /// Whether the row is in fact of this key: it may have been reused since it was found. Ports and the last words
    /// of the addresses tell enough, for this happens once in a blue moon.
    #[inline(always)]
    pub fn is_of(&self, key: &FlowKey<W>) -> bool {
        let flow = self.flow();
        let (src, sport, dst, dport) = match key.role {
            role::ORIGIN => (&flow.client, flow.client_port, &flow.frontend, flow.frontend_port),
            role::PATH => (&flow.backend, flow.backend_port, &flow.client, flow.client_port),
            _ => (&flow.backend, flow.backend_port, &flow.source, flow.source_port),
        };
        sport == key.sport && dport == key.dport && src.last() == key.src.last() && dst.last() == key.dst.last()
    }
}

/// Keys that are being used. In a map, because functions that call each other share 512 bytes of stack. Private to the
/// programs.
#[map]
static KEYS: PerCpuArray<[u64; 5]> = PerCpuArray::with_max_entries(2, 0);

const _: () = assert!(size_of::<FlowKey<4>>() <= 40);

/// Who uses a key.
#[derive(Clone, Copy)]
pub enum Slot {
    /// Who writes a flow: kept until it is written.
    Writer,
    /// The functions here: from writing it to the next call.
    Here,
}

/// Writes the key of one of a flow's rows to a slot.
#[inline(always)]
pub fn key_of<const W: usize>(flow: &Flow<W>, proto: u8, role: u8, slot: Slot) -> Option<&'static mut FlowKey<W>> {
    let key = KEYS.get_ptr_mut(slot as u32)?.cast::<FlowKey<W>>();
    // SAFETY: this CPU's own row, large enough for either family's key; any bytes are a key. `Slot` says for how long.
    let key = unsafe { &mut *key };
    let (src, dst) = match role {
        role::ORIGIN => {
            (key.sport, key.dport) = (flow.client_port, flow.frontend_port);
            (&flow.client, &flow.frontend)
        }
        role::PATH => {
            (key.sport, key.dport) = (flow.backend_port, flow.client_port);
            (&flow.backend, &flow.client)
        }
        _ => {
            (key.sport, key.dport) = (flow.backend_port, flow.source_port);
            (&flow.backend, &flow.source)
        }
    };
    words::copy(&mut key.src, src);
    words::copy(&mut key.dst, dst);
    key.proto = proto;
    key.role = role;
    key.zero = 0;
    Some(key)
}

/// Whether a connection is over: a reset, or a FIN from both sides.
#[inline(always)]
pub fn closed(flags: u32) -> bool {
    const BOTH: u32 = flow::CLIENT_FIN | flow::BACKEND_FIN;
    flags & flow::RESET != 0 || flags & BOTH == BOTH
}

/// Ticks that a row may be idle. A reply alone gives it no more time, nor does a client's FIN: both can be had with a
/// source address that is somebody else's. Only who answers to the reply lives there.
#[inline(always)]
fn limit(proto: u8, flags: u32, established: bool) -> u32 {
    match proto {
        proto::UDP if established => const { ticks(idle::UDP) },
        proto::UDP => const { ticks(idle::UDP_NEW) },
        _ if closed(flags) => const { ticks(idle::CLOSED) },
        _ if !established => const { ticks(idle::OPENING) },
        _ if flags & (flow::CLIENT_FIN | flow::BACKEND_FIN) != 0 => const { ticks(idle::CLOSING) },
        _ => const { ticks(idle::ESTABLISHED) },
    }
}

#[inline(always)]
fn is_idle<const W: usize>(row: &Row<W>, proto: u8, now: u32) -> bool {
    clock::elapsed(now, row.flow().seen) > limit(proto, row.flow().flags, row.established)
}

/// Whether a flow is expired, seen from its row `role` (ORIGIN or PATH): that row is idle, and so is the other.
#[inline(always)]
pub fn expired<const W: usize>(row: &Row<W>, proto: u8, role: u8, now: u32) -> bool {
    is_idle(row, proto, now) && other_is_idle(row, proto, role, now)
}

#[inline(never)]
fn other_is_idle<const W: usize>(row: &Row<W>, proto: u8, role: u8, now: u32) -> bool {
    match other(row, proto, role) {
        Some(other) => is_idle(&other, proto, now),
        None => true,
    }
}

/// The PATH row of an ORIGIN row, and the reverse.
#[inline(always)]
fn other<const W: usize>(row: &Row<W>, proto: u8, role: u8) -> Option<Row<W>> {
    find(key_of(row.flow(), proto, if role == role::ORIGIN { role::PATH } else { role::ORIGIN }, Slot::Here)?)
}

/// Who has a source. A number, because it is returned by functions of the kernel's machine; the greater, the better is it
/// to take it from there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder(u32);

impl Holder {
    /// A flow that lives.
    pub const ALIVE: Self = Self(0);
    /// A flow that is expired, or has another source by now.
    pub const GONE: Self = Self(u32::MAX - 1);
    /// There is no row.
    pub const NOBODY: Self = Self(u32::MAX);

    /// A flow that is closed, and had no packet for so many ticks.
    #[inline(always)]
    fn closed(idle: u32) -> Self {
        Self(idle + 1)
    }
}

/// Who has the source of a RETURN row's key.
#[inline(always)]
pub fn holder<const W: usize>(key: &FlowKey<W>, now: u32) -> Holder {
    let Some(row) = find(key) else { return Holder::NOBODY };
    let Some(path) = path_of(&row, key.proto) else { return Holder::GONE };
    if expired(&path, key.proto, role::PATH, now) {
        return Holder::GONE;
    }
    if closed(path.flow().flags) { Holder::closed(clock::elapsed(now, path.flow().seen)) } else { Holder::ALIVE }
}

/// The PATH row of a RETURN row, if it speaks of the same source.
#[inline(always)]
fn path_of<const W: usize>(row: &Row<W>, proto: u8) -> Option<Row<W>> {
    let path = find(key_of(row.flow(), proto, role::PATH, Slot::Here)?)?;
    let same = path.flow().source == row.flow().source && path.flow().source_port == row.flow().source_port;
    same.then_some(path)
}

/// Takes the source of a RETURN row from its flow, unless that lives: its PATH row is there, speaks of the same source, and
/// is neither expired nor closed. The flow is ended, for nobody may ever ask for it again.
#[inline(always)]
pub fn vacate<const W: usize>(key: &FlowKey<W>, now: u32) -> bool {
    if let Some(row) = find(key)
        && let Some(path) = path_of(&row, key.proto)
    {
        if !closed(path.flow().flags) && !expired(&path, key.proto, role::PATH, now) {
            return false;
        }
        end(&path, key.proto, role::PATH);
    }
    remove(key);
    true
}

/// Whether the backend that a row names is still the one that was chosen, and alive.
#[inline(always)]
pub fn backend_lives<const W: usize>(flow: &Flow<W>) -> bool {
    choose::live::<W>(flow.backend_id, flow.service, Some(flow.generation)).is_some()
}

/// Sets flags on both the row that was found (ORIGIN or PATH) and the other. A flow that they close is moved to `FLOWS_NEW`.
#[inline(never)]
pub fn mark<const W: usize>(row: &Row<W>, proto: u8, role: u8, flags: u32) {
    row.set(flags);
    if let Some(other) = other(row, proto, role) {
        other.set(flags);
    }
    if migrating() {
        migrate::follow(row.flow(), proto);
    }
    if row.established && closed(row.flow().flags) {
        move_rows(row, proto, role, false);
    }
}

/// Copies the source that was written to a PATH row to its ORIGIN row.
#[inline(always)]
pub fn share_source<const W: usize>(path: &Row<W>, proto: u8) {
    if let Some(origin) = other(path, proto, role::PATH) {
        origin.set_source(&path.flow().source, path.flow().source_port);
    }
    if migrating() {
        migrate::follow(path.flow(), proto);
    }
}

/// Inserts a row beside those that its flow has already, and where another layout's programs look for it.
#[inline(always)]
pub fn insert<const W: usize>(key: &FlowKey<W>, row: &Flow<W>, established: bool) -> bool {
    let map = if established { maps::flows::<W>() } else { maps::flows_new::<W>() };
    if migrating() {
        migrate::write_along(key, row);
    }
    map.insert(key, row, NO_EXIST).is_ok()
}

/// Moves the rows of a flow whose ORIGIN row was found from `FLOWS_NEW` to `FLOWS`.
#[inline(never)]
pub fn establish<const W: usize>(row: &Row<W>, proto: u8) {
    move_rows(row, proto, role::ORIGIN, true);
}

/// Moves the rows of a flow to `FLOWS`, or to `FLOWS_NEW`.
#[inline(always)]
fn move_rows<const W: usize>(row: &Row<W>, proto: u8, role: u8, established: bool) {
    move_row(row.flow(), proto, role::RETURN, established);
    move_row(row.flow(), proto, if role == role::ORIGIN { role::PATH } else { role::ORIGIN }, established);
    // The row that was found goes last: with it the others are found.
    move_row(row.flow(), proto, role, established);
}

#[inline(always)]
fn move_row<const W: usize>(flow: &Flow<W>, proto: u8, role: u8, established: bool) {
    if role == role::RETURN && flow.source_port == 0 {
        return;
    }
    let Some(key) = key_of(flow, proto, role, Slot::Here) else { return };
    let key = &*key;
    let (new, old) = (maps::flows_new::<W>(), maps::flows::<W>());
    let (from, to) = if established { (new, old) } else { (old, new) };
    let Some(row) = from.get_ptr_mut(key) else { return };
    // SAFETY: as in `Row::flow`; the map copies the value.
    let row = unsafe { &*row };
    if to.insert(key, row, NO_EXIST).is_ok() {
        let _ = from.remove(key);
    }
}

/// Ends a flow: folds its counters into its backend's, and removes its rows everywhere.
#[inline(never)]
pub fn end<const W: usize>(row: &Row<W>, proto: u8, role: u8) {
    fold(row, proto, role);
    let flow = row.flow();
    release_source(flow, proto);
    // The row that was found goes last: until then it names the other.
    let other = if role == role::ORIGIN { role::PATH } else { role::ORIGIN };
    for role in [other, role] {
        if let Some(key) = key_of(flow, proto, role, Slot::Here) {
            remove(key);
        }
    }
}

/// Gives up the source of a flow, if it is this flow's still: an expired one loses it to whoever comes.
#[inline(always)]
fn release_source<const W: usize>(flow: &Flow<W>, proto: u8) {
    if flow.source_port == 0 {
        return;
    }
    let Some(key) = key_of(flow, proto, role::RETURN, Slot::Here) else { return };
    let Some(row) = find(key) else { return };
    if row.flow().client_port == flow.client_port && row.flow().client == flow.client {
        remove(key);
    }
}

/// Removes a row, wherever it is.
#[inline(always)]
pub fn remove<const W: usize>(key: &FlowKey<W>) {
    let _ = maps::flows::<W>().remove(key);
    let _ = maps::flows_new::<W>().remove(key);
    if migrating() {
        migrate::remove(key);
    }
}

#[inline(never)]
fn fold<const W: usize>(row: &Row<W>, proto: u8, role: u8) {
    let flow = row.flow();
    // The id may have a new owner by now, whose counters these packets are not.
    let current = maps::backends::<W>().get(flow.backend_id).is_some_and(|row| row.generation == flow.generation);
    if !current {
        return;
    }
    let (mut packets, mut bytes) = (flow.packets, flow.bytes);
    if let Some(other) = other(row, proto, role) {
        packets += other.flow().packets;
        bytes += other.flow().bytes;
    }
    count::ended::<W>(flow.backend_id, packets, bytes);
}
