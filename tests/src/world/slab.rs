//! Tables laid out in the slab.

use std::collections::BTreeMap;

use culvert_abi::{PAGE_UNITS, Table as Descriptor};

use super::Table;

/// The slab's pages, and the descriptors by table index.
pub(super) struct Slab {
    pub(super) pages: Vec<[u16; PAGE_UNITS]>,
    pub(super) descriptors: BTreeMap<u32, u64>,
}

/// Lays the tables one after the other, each at an even unit.
pub(super) fn lay_out(tables: &BTreeMap<u32, Table>) -> Slab {
    let mut units: Vec<u16> = Vec::new();
    let mut descriptors = BTreeMap::new();
    for (&index, table) in tables {
        let descriptor = Descriptor { base: units.len() as u32, count: table.list.len() as u16, class: table.class };
        descriptors.insert(index, descriptor.pack());
        units.extend(table.list.iter().flat_map(|id| [*id as u16, (*id >> 16) as u16]));
        units.extend(&table.slots);
        units.resize(units.len().next_multiple_of(2), 0);
    }
    let page = |units: &[u16]| {
        let mut page = [0; PAGE_UNITS];
        page[..units.len()].copy_from_slice(units);
        page
    };
    Slab { pages: units.chunks(PAGE_UNITS).map(page).collect(), descriptors }
}
