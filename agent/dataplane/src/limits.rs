//! How large the maps are, and what memory that takes.

use std::collections::BTreeMap;

use aya_obj::generated::{BPF_F_NO_PREALLOC, bpf_map_type};

use crate::sys::Shape;

/// Sizes of the maps; each counts rows of one address family, unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Service ports (both families together): ids, each with counters on each CPU.
    pub services: u32,
    /// Frontends: address, port and protocol.
    pub frontends: u32,
    /// Backends: endpoints of Service ports.
    pub backends: u32,
    /// Backend lists (both families together).
    pub tables: u32,
    /// Bytes for the lists and their Maglev slots (both families together).
    pub slab_bytes: u32,
    /// Prefixes in all `loadBalancerSourceRanges` together.
    pub ranges: u32,
    /// Rows of flows seen in both directions; a flow takes two, or three with a translated source.
    pub flows: u32,
    /// Rows of flows whose client has not answered to a reply yet.
    pub flows_new: u32,
    /// Clients with session affinity, by Service port (both families together).
    pub affinity: u32,
    /// Peers of unconnected UDP sockets (both families together).
    pub datagrams: u32,
    /// Fragmented datagrams under way.
    pub fragments: u32,
    /// Hooked links.
    pub links: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services: 16_384,
            frontends: 65_536,
            backends: 262_144,
            tables: 65_536,
            slab_bytes: 32 << 20,
            ranges: 16_384,
            flows: 131_072,
            flows_new: 65_536,
            affinity: 65_536,
            datagrams: 65_536,
            fragments: 8_192,
            links: 4_096,
        }
    }
}

/// Each CPU takes rows of an LRU map in batches: with fewer rows than this for each, it evicts live ones.
const LRU_ROWS_PER_CPU: u32 = 1_024;

impl Limits {
    /// Rows of the map `name`; `None` for maps whose size the programs set themselves.
    pub fn rows(&self, name: &str, cpus: u32) -> Option<u32> {
        let lru = |rows: u32| rows.max(LRU_ROWS_PER_CPU.saturating_mul(cpus));
        let family = name.strip_suffix("_V4").or_else(|| name.strip_suffix("_V6")).unwrap_or(name);
        let rows = match family {
            "ADDRESSES" | "FRONTENDS" => self.frontends,
            "BACKENDS" | "BACKEND_COUNTERS" => self.backends,
            "RANGES" => self.ranges,
            "FLOWS" => lru(self.flows),
            "FLOWS_NEW" => lru(self.flows_new),
            "FRAGMENTS" => lru(self.fragments),
            "TABLES" => self.tables,
            "SLAB" => self.slab_bytes.div_ceil(2 * culvert_abi::PAGE_UNITS as u32),
            "AFFINITY" => lru(self.affinity),
            "DATAGRAMS" => lru(self.datagrams),
            "LINKS" => self.links,
            "SERVICE_COUNTERS" => self.services,
            _ => return None,
        };
        Some(rows.max(1))
    }
}

/// Bytes of kernel memory that each map takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// By map: what it takes from the start, and what it takes when it is full.
    pub maps: BTreeMap<String, Footprint>,
}

/// Bytes of kernel memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Allocated with the map.
    pub empty: u64,
    /// When it holds all the rows that it can.
    pub full: u64,
}

impl Memory {
    /// Of all maps together.
    pub fn total(&self) -> Footprint {
        let sum = |pick: fn(&Footprint) -> u64| self.maps.values().map(pick).sum();
        Footprint { empty: sum(|map| map.empty), full: sum(|map| map.full) }
    }
}

/// Memory of one map, by its shape and the number of possible CPUs. From arraymap, hashtab and LPM trie in the kernel:
///
/// | type | bytes |
/// |---|---|
/// | array | rows * up8(value) |
/// | per-CPU array | rows * (8 + CPUs * up8(value)) |
/// | hash, LRU hash | 16 * power of two >= rows, and a row: 48 + up8(key) + up8(value) |
/// | LPM trie | a row: 40 + key - 4 + value, twice (inner nodes) |
/// | ring buffer | its size and two pages |
///
/// LRU rows and arrays are allocated with the map, the others as they fill.
pub fn footprint(shape: Shape, cpus: u64) -> Footprint {
    let (rows, key, value) = (u64::from(shape.rows), u64::from(shape.key), u64::from(shape.value));
    let up8 = |bytes: u64| bytes.next_multiple_of(8);
    let fixed = |bytes: u64| Footprint { empty: bytes, full: bytes };
    if shape.is(bpf_map_type::BPF_MAP_TYPE_ARRAY) || shape.is(bpf_map_type::BPF_MAP_TYPE_PROG_ARRAY) {
        return fixed(rows * up8(value));
    }
    if shape.per_cpu() {
        return fixed(rows * (8 + cpus * up8(value)));
    }
    if shape.is(bpf_map_type::BPF_MAP_TYPE_RINGBUF) {
        return fixed(rows + 2 * 4096);
    }
    if shape.is(bpf_map_type::BPF_MAP_TYPE_LPM_TRIE) {
        return Footprint { empty: 0, full: 2 * rows * (40 + key - 4 + value) };
    }
    let hash = shape.is(bpf_map_type::BPF_MAP_TYPE_HASH) || shape.is(bpf_map_type::BPF_MAP_TYPE_LRU_HASH);
    if !hash {
        return Footprint::default();
    }
    let buckets = 16 * rows.next_power_of_two();
    let full = buckets + rows * (48 + up8(key) + up8(value));
    let empty = if shape.flags & BPF_F_NO_PREALLOC == 0 { full } else { buckets };
    Footprint { empty, full }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lru_maps_have_room_for_every_cpu() {
        let limits = Limits { flows: 10, ..Limits::default() };
        assert_eq!(limits.rows("FLOWS_V4", 2), Some(2_048));
        assert_eq!(limits.rows("FLOWS_V6", 64), Some(65_536));
        assert_eq!(limits.rows("FLOWS_NEW_V4", 2), Some(65_536));
    }

    #[test]
    fn the_slab_is_counted_in_pages() {
        let limits = Limits { slab_bytes: 4_097, ..Limits::default() };
        assert_eq!(limits.rows("SLAB", 2), Some(2));
    }

    #[test]
    fn private_maps_keep_their_own_size() {
        for name in ["REASONS", "EVENTS", "SAMPLING", ".rodata", "SOCKETS", "PREVIOUS_FLOWS_V4"] {
            assert_eq!(Limits::default().rows(name, 2), None, "{name}");
        }
    }

    #[test]
    fn a_lru_row_is_paid_at_once_and_a_hash_row_when_it_comes() {
        let hash = Shape { kind: bpf_map_type::BPF_MAP_TYPE_HASH as u32, key: 20, value: 48, rows: 1_000, flags: 1 };
        assert_eq!(footprint(hash, 2), Footprint { empty: 16 * 1_024, full: 16 * 1_024 + 1_000 * (48 + 24 + 48) });
        let lru = Shape { kind: bpf_map_type::BPF_MAP_TYPE_LRU_HASH as u32, flags: 0, ..hash };
        assert_eq!(footprint(lru, 2).empty, footprint(lru, 2).full);
    }
}
