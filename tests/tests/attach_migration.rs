//! Maps of another shape: noticed, replaced beside the old ones, with their rows; and whatever a crash left is put right.

mod attach;

use anyhow::{Context as _, Result, ensure};
use attach::{Node, beside, node_addresses, report, small};
use culvert_abi::{Flow, FlowKey, Plain, Table, proto, role};
use culvert_dataplane::kernel::KernelStore;
use culvert_dataplane::limits::Limits;
use culvert_dataplane::links::hooks::Method;
use culvert_dataplane::store::{Map, Store};
use culvert_dataplane::{Dataplane, Options};

const PORTS: std::ops::Range<u16> = 1_000..2_000;

fn key(port: u16) -> FlowKey<1> {
    FlowKey { src: [1], dst: [2], sport: port, dport: 80, proto: proto::TCP, role: role::ORIGIN, zero: 0 }
}

/// A row of each kind of map.
fn fill(store: &mut KernelStore) -> Result<()> {
    for port in PORTS {
        let mut flow = Flow::<1>::zeroed();
        flow.client_port = port;
        store.put(Map::FLOWS_V4, key(port).bytes(), flow.bytes())?;
    }
    store.put(Map::ADDRESSES_V4, &[10, 96, 0, 1], &3_u32.to_ne_bytes())?;
    store.put(Map::BACKEND_COUNTERS_V6, &7_u32.to_ne_bytes(), &[5; 24])?;
    let counters = store.get(Map::SERVICE_COUNTERS, &9_u32.to_ne_bytes())?.context("no counters")?;
    store.put(Map::SERVICE_COUNTERS, &9_u32.to_ne_bytes(), &vec![6; counters.len()])?;
    store.publish_table(3, Table { base: 4, count: 2, class: 0 }.pack());
    store.write_slab(4, &[1, 0, 2, 0])?;
    Ok(())
}

fn check(store: &KernelStore) -> Result<()> {
    for port in PORTS {
        let row = store.get(Map::FLOWS_V4, key(port).bytes())?.with_context(|| format!("flow {port} is gone"))?;
        ensure!(Flow::<1>::from_prefix(&row).client_port == port, "flow {port} became {row:?}");
    }
    let address = store.get(Map::ADDRESSES_V4, &[10, 96, 0, 1])?;
    ensure!(address.as_deref() == Some(&3_u32.to_ne_bytes()), "{address:?}");
    let counters = store.get(Map::BACKEND_COUNTERS_V6, &7_u32.to_ne_bytes())?;
    ensure!(counters == Some(vec![5; 24]), "{counters:?}");
    let counters = store.get(Map::SERVICE_COUNTERS, &9_u32.to_ne_bytes())?.context("no counters")?;
    ensure!(counters.iter().all(|byte| *byte == 6), "{counters:?}");
    ensure!(Table::unpack(store.table(3)) == Table { base: 4, count: 2, class: 0 }, "{:x}", store.table(3));
    ensure!(store.read_slab(4, 4)? == [1, 0, 2, 0], "{:?}", store.read_slab(4, 4)?);
    Ok(())
}

fn larger() -> Limits {
    let Limits { services, backends, tables, slab_bytes, flows, frontends, .. } = small();
    Limits {
        services: services * 2,
        backends: backends * 2,
        tables: tables * 2,
        slab_bytes: slab_bytes * 2,
        flows: flows * 2,
        frontends: frontends * 2,
        ..small()
    }
}

#[test]
fn rows_and_hooks_go_over_to_larger_maps_and_back() -> Result<()> {
    let node = Node::new()?;
    let next = node.bpffs.join("culvert/v1/maps_next");
    node.host.block_on(async || {
        let mut links = None;
        for limits in [small(), larger(), small()] {
            let mut plane = Dataplane::open(Options { limits, ..node.options(Method::probe()) })?;
            ensure!(!next.exists(), "what was replaced is left");
            ensure!(plane.store.capacity(Map::FLOWS_V4) == limits.flows, "{}", plane.store.capacity(Map::FLOWS_V4));
            ensure!(plane.store.table_capacity() == limits.tables);
            match &links {
                None => fill(&mut plane.store)?,
                Some(_) => check(&plane.store).with_context(|| format!("{limits:?}"))?,
            }
            plane.node_addresses.send_replace(Some(node_addresses()));
            let seen = beside(plane.links, async || {
                Ok(report(&mut plane.report, |report| report.links.len() == 3).await?.links.clone())
            });
            let seen: Vec<_> =
                seen.await?.into_iter().map(|link| (link.index, link.wanted, link.ingress.len())).collect();
            ensure!(links.is_none_or(|before| before == seen), "{seen:?}");
            links = Some(seen);
        }
        Ok(())
    })
}

#[test]
fn a_crash_at_any_step_is_put_right() -> Result<()> {
    let node = Node::new()?;
    let (maps, next) = (node.bpffs.join("culvert/v1/maps"), node.bpffs.join("culvert/v1/maps_next"));
    let open = |limits| {
        node.host.block_on(async || {
            let mut plane = Dataplane::open(Options { limits, ..node.options(Method::probe()) })?;
            ensure!(!next.exists(), "what was replaced is left");
            plane.node_addresses.send_replace(Some(node_addresses()));
            beside(plane.links, async || report(&mut plane.report, |report| report.links.len() == 3).await).await?;
            Ok(plane.store)
        })
    };
    fill(&mut open(small())?)?;
    // Before the exchange: new maps are there, with or without rows; those in force are the old ones.
    std::fs::create_dir(&next)?;
    check(&open(small())?)?;
    std::fs::create_dir(&next)?;
    std::fs::write(next.join("stray"), "").ok();
    check(&open(larger())?)?;
    // After it: the old ones lie where the new ones were.
    let aside = node.bpffs.join("culvert/v1/aside");
    std::fs::create_dir(&aside)?;
    std::fs::rename(&aside, &next)?;
    check(&open(larger())?)?;
    // While the first maps were made: what is missing is made.
    std::fs::remove_file(maps.join("FRAGMENTS_V4"))?;
    check(&open(larger())?)
}
