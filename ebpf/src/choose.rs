//! The choice of a backend: by affinity, else from the table, at a Maglev slot or at random.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use culvert_abi::{
    Affinity, AffinityKey, Backend, Frontend, PAGE_SHIFT, PAGE_UNITS, Table, View, affinity, backend, maglev_size,
    ticks, view,
};

use crate::{clock, maps, words::wide};

/// A chosen backend.
#[derive(Clone, Copy)]
pub struct Chosen<const W: usize> {
    /// Its id: the index into `BACKENDS_V4/V6`.
    pub id: u32,
    /// The row.
    pub backend: Backend<W>,
}

/// Where in the table to look.
#[derive(Clone, Copy)]
pub enum Spot {
    /// The slot of a hash, which every node computes alike; at random where the table has no slots.
    Hash(Hashes),
    /// Anywhere in the list.
    Random,
}

impl Spot {
    /// Where to look for a client whose time is over. By its address it would get the same backend for ever.
    #[inline(always)]
    fn anew(self) -> Self {
        match self {
            Self::Hash(Hashes { flow, .. }) => Self::Hash(Hashes { flow, client: flow }),
            Self::Random => Self::Random,
        }
    }
}

/// What a slot is found by.
#[derive(Clone, Copy)]
pub struct Hashes {
    /// Of the connection.
    pub flow: u32,
    /// Of whom it comes from: the client's address with affinity, else the connection.
    pub client: u32,
}

/// What is known of a client with affinity.
enum Memory<const W: usize> {
    /// The backend that it may have again.
    Backend(Chosen<W>),
    /// It had one for so long that it is to be chosen for anew.
    Expired,
    /// Nothing that counts.
    Nothing,
}

/// The affinity key of a client address.
#[inline(always)]
pub fn by_address<const W: usize>(client: &[u32; W], service: u32) -> AffinityKey {
    AffinityKey { client: wide(client), service, kind: affinity::ADDRESS }
}

/// The affinity key of a network namespace.
#[inline(always)]
pub fn by_namespace(cookie: u64, service: u32) -> AffinityKey {
    AffinityKey { client: [cookie as u32, (cookie >> 32) as u32, 0, 0], service, kind: affinity::NAMESPACE }
}

/// The live row of a backend: alive, of this Service, and of this generation if one is given.
#[inline(always)]
pub fn live<const W: usize>(id: u32, service: u32, generation: Option<u32>) -> Option<Chosen<W>> {
    if id == 0 {
        return None;
    }
    let backend = *maps::backends::<W>().get(id)?;
    let current = match generation {
        Some(generation) => generation == backend.generation,
        None => true,
    };
    (current && backend.flags & backend::ALIVE != 0 && backend.service == service).then_some(Chosen { id, backend })
}

/// Chooses a backend for a new flow or connection, and renews the client's affinity.
///
/// `attempt` counts the choices before this one that could not be used; from the second on affinity is not asked
/// and the list is walked on. `None`: no table, an empty one, or nobody alive at the place and the next.
#[inline(always)]
pub fn choose<const W: usize>(
    frontend: &Frontend,
    view: &View,
    client: &AffinityKey,
    spot: Spot,
    attempt: u32,
) -> Option<Chosen<W>> {
    if frontend.affinity_seconds == 0 {
        return from_table(view.table, frontend.service, spot, attempt);
    }
    let now = clock::now();
    let memory = if attempt == 0 { remembered(client, frontend, view, now) } else { Memory::Nothing };
    let spot = match memory {
        Memory::Backend(chosen) => return Some(chosen),
        Memory::Expired => spot.anew(),
        Memory::Nothing => spot,
    };
    let chosen = from_table(view.table, frontend.service, spot, attempt)?;
    let row = Affinity { backend: chosen.id, generation: chosen.backend.generation, seen: now, zero: 0 };
    // A full table costs the client its stickiness, not its connection.
    let _ = maps::AFFINITY.insert(client, row, 0);
    Some(chosen)
}

/// The backend that a client had last, if it may have it again. Renews the row.
#[inline(always)]
fn remembered<const W: usize>(client: &AffinityKey, frontend: &Frontend, view: &View, now: u32) -> Memory<W> {
    let Some(row) = maps::AFFINITY.get_ptr_mut(client) else { return Memory::Nothing };
    // SAFETY: the pointer is to a live row of plain data; a row reused meanwhile names another client's backend, and
    // `live` checks that it is one of this Service.
    let (id, generation, seen) = unsafe { ((*row).backend, (*row).generation, (*row).seen) };
    if clock::elapsed(now, seen) >= ticks(frontend.affinity_seconds) {
        return Memory::Expired;
    }
    let Some(chosen) = live(id, frontend.service, Some(generation)) else { return Memory::Nothing };
    // It may live for the sake of another view of the Service: one of another traffic policy has another list.
    if !listed(&chosen.backend, view) {
        return Memory::Nothing;
    }
    // SAFETY: as above; writing through the pointer keeps the row's place in the LRU, an update would evict others.
    unsafe { (*row).seen = now };
    Memory::Backend(chosen)
}

/// Whether a backend of a Service is in the list of one of its views.
#[inline(always)]
fn listed<const W: usize>(backend: &Backend<W>, view: &View) -> bool {
    let absent =
        if view.flags & view::LOCAL_LIST != 0 { backend::NOT_IN_LOCAL_LIST } else { backend::NOT_IN_CLUSTER_LIST };
    backend.flags & absent == 0
}

/// Chooses from a table. A backend that died while its table is being replaced is passed over once.
#[inline(always)]
fn from_table<const W: usize>(table: u32, service: u32, spot: Spot, attempt: u32) -> Option<Chosen<W>> {
    let table = load(table)?;
    let count = table.count as u32;
    let mut index = (first_index(table, spot)? + attempt).checked_rem(count)?;
    let mut tries = 0;
    while tries < 2 {
        if let Some(chosen) = live(entry(table.base, index), service, None) {
            return Some(chosen);
        }
        index = if index + 1 >= count { 0 } else { index + 1 };
        tries += 1;
    }
    None
}

/// The descriptor of a table, if it has backends.
#[inline(always)]
fn load(index: u32) -> Option<Table> {
    if index == 0 {
        return None;
    }
    // SAFETY: an aligned word of a map, published by a 64-bit store; volatile, so that it is read once and whole.
    let table = Table::unpack(unsafe { maps::TABLES.get_ptr(index)?.read_volatile() });
    (table.count != 0).then_some(table)
}

/// The place in the list to begin at.
#[inline(always)]
fn first_index(table: Table, spot: Spot) -> Option<u32> {
    let count = table.count as u32;
    let slots = maglev_size(table.class);
    match spot {
        Spot::Hash(hashes) if slots != 0 => {
            let index = unit(table.base + 2 * count + scale(hashes.client, slots))? as u32;
            (index < count).then_some(index)
        }
        // SAFETY: the helper takes nothing and returns a number.
        _ => Some(scale(unsafe { bpf_get_prandom_u32() }, count)),
    }
}

/// Maps a hash onto `0..size`, evenly and without a division.
#[inline(always)]
fn scale(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}

/// The backend id at a place of the list; 0, which is nobody, outside the slab.
#[inline(always)]
fn entry(base: u32, index: u32) -> u32 {
    let at = base + 2 * index;
    match (unit(at), unit(at + 1)) {
        (Some(low), Some(high)) => low as u32 | (high as u32) << 16,
        _ => 0,
    }
}

/// One unit of the slab.
#[inline(always)]
fn unit(at: u32) -> Option<u16> {
    let page = maps::SLAB.get_ptr(at >> PAGE_SHIFT)?.cast::<u16>();
    let offset = (at as usize) & (PAGE_UNITS - 1);
    // SAFETY: the mask keeps the offset within the page.
    Some(unsafe { *page.add(offset) })
}
