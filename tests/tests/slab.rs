//! The slab as the agent writes it, through mappings of parts of it, beside the slab as the kernel has it.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use aya::maps::{Array, Map, MapData};
use culvert_abi::PAGE_UNITS;
use culvert_dataplane::store::Store as _;
use culvert_dataplane::{Dataplane, Options, limits::Limits};
use culvert_tests::place::Place;
use culvert_tests::scope::Scope;

/// Pages of the slab: no multiple of the 16 (64 KiB) that a mapping begins and ends at.
const PAGES: u32 = 67;
const UNITS: u32 = PAGES * PAGE_UNITS as u32;
/// Units of 64 KiB.
const GRAIN: u32 = 32_768;

type Pages = Array<MapData, [u16; PAGE_UNITS]>;

/// The whole slab, read page by page with system calls.
fn whole(pages: &Pages) -> Result<Vec<u16>> {
    let pages = (0..PAGES).map(|index| pages.get(&index, 0)).collect::<Result<Vec<_>, _>>()?;
    Ok(pages.into_iter().flatten().collect())
}

/// How many maps are mapped into this process.
fn mappings() -> Result<usize> {
    Ok(fs::read_to_string("/proc/self/maps")?.lines().filter(|line| line.ends_with("bpf-map")).count())
}

#[test]
fn slices_land_where_they_belong_and_nowhere_else() -> Result<()> {
    let scope = Scope::open()?;
    let cgroup = scope.cgroup("node")?;
    let netns = scope.netns("host")?;
    let host = Place::new("node", netns, &cgroup, scope.dir(), Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    let bpffs = scope.bpffs("bpf")?;
    let limits = Limits { slab_bytes: PAGES * 4_096, ..Limits::default() };
    let options = Options { bpffs: bpffs.clone(), cgroup: Some(cgroup), limits, ..Options::default() };
    host.block_on(async || {
        let mut store = Dataplane::open(options)?.store;
        let pages: Pages = Map::Array(MapData::from_pin(bpffs.join("culvert/v1/maps/SLAB"))?).try_into()?;
        ensure!(store.slab_capacity() == UNITS);
        let mapped = mappings()?;

        let mut wanted = vec![0_u16; UNITS as usize];
        let slices = [
            (0, 1),
            (2, 5_003),
            (GRAIN - 2, 2),           // up to an edge
            (GRAIN, 20),              // from one on
            (2 * GRAIN - 10, 12_007), // across one
            (GRAIN - 7, 2 * GRAIN),   // across two, over what is there
            (UNITS - 3, 3),           // up to the end
            (0, UNITS),               // all of it
            (UNITS - 12_007, 12_007), // from within the last whole piece into the rest
        ];
        for (round, (base, count)) in slices.into_iter().enumerate() {
            let units: Vec<u16> = (0..count).map(|n| (n * 7 + round as u32 + 1) as u16).collect();
            store.write_slab(base, &units)?;
            wanted[base as usize..][..count as usize].copy_from_slice(&units);
            ensure!(whole(&pages)? == wanted, "{count} units written at {base}");
            ensure!(store.read_slab(base, count as usize)? == units, "{count} units read at {base}");
            let (before, after) = (base.saturating_sub(5), (base + count + 5).min(UNITS));
            let around = store.read_slab(before, (after - before) as usize)?;
            ensure!(around == wanted[before as usize..after as usize], "around {count} units at {base}");
        }

        // What does not fit is no part of the slab, and nothing of it is written.
        for (base, count) in [(UNITS - 1, 2), (UNITS, 1), (0, UNITS + 1), (u32::MAX, 1)] {
            let refused = store.write_slab(base, &vec![0xffff; count as usize]);
            ensure!(refused.is_err() && store.read_slab(base, count as usize).is_err(), "{count} units at {base}");
        }
        store.write_slab(UNITS, &[])?;
        ensure!(store.read_slab(UNITS, 0)?.is_empty());
        ensure!(whole(&pages)? == wanted);
        // A mapping's pages would count as the agent's memory.
        ensure!(mappings()? == mapped, "{} mappings instead of {mapped}", mappings()?);
        Ok(())
    })
}
