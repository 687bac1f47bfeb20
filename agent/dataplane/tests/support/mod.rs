//! Plans to feed the reconciler with, and what the maps then mean: read back from the fake kernel without the reconciler.

#![allow(dead_code)] // each test binary uses its part

pub mod watched;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use culvert_abi::{Table, address, backend, maglev_size, verdict};
use culvert_api::plan::{
    Audience, BackendPlan, BackendState, ClientAddress, FrontendKind, FrontendPlan, Protocol, ServiceKind, ServicePlan,
    Topology, Verdict,
};
use culvert_dataplane::{
    codec::{self, At, Family, FrontendAt},
    fake::FakeStore,
    store::{Map, Store},
};
use ipnet::IpNet;

/// A time of the monotonic clock.
pub fn at(seconds: u64) -> Duration {
    Duration::from_secs(1_000 + seconds)
}

// ===== plans =====

/// A plan without frontends.
pub fn service(name: &str) -> ServicePlan {
    ServicePlan {
        namespace: "default".into(),
        name: name.into(),
        kind: ServiceKind::ClusterIP,
        addresses: vec![],
        pool: None,
        skipped: None,
        problems: vec![],
        health_check: None,
        frontends: vec![],
        refused: vec![],
    }
}

/// A frontend for everybody that balances over `backends`, or refuses if there are none.
pub fn frontend(kind: FrontendKind, address: &str, port: u16, backends: &[BackendPlan]) -> FrontendPlan {
    FrontendPlan {
        address: address.parse().unwrap(),
        port,
        protocol: Protocol::Tcp,
        kind,
        audience: Audience::Any,
        source_ranges: vec![],
        affinity_seconds: None,
        topology: Topology::None,
        client_address: ClientAddress::Kept,
        verdict: if backends.is_empty() { Verdict::Reject } else { Verdict::Balance },
        backends: backends.to_vec().into(),
        draining: [].into(),
        port_name: String::new(),
        policy_local: false,
    }
}

/// Backends `10.0.0.n:8080`.
pub fn backends(numbers: impl IntoIterator<Item = u8>) -> Vec<BackendPlan> {
    numbers.into_iter().map(|n| backend_plan(IpAddr::from([10, 0, 0, n]), 8080)).collect()
}

/// A ready backend elsewhere.
pub fn backend_plan(address: IpAddr, port: u16) -> BackendPlan {
    BackendPlan { address, port, node: None, state: BackendState::Ready, local: false }
}

// ===== meaning =====

/// What an audience gets: verdict, flags, and the backends of the list with the shares of their slots' size class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub verdict: u8,
    pub flags: u8,
    pub backends: Vec<(At, u16)>,
    /// The backend at each slot, for tables with slots.
    pub slots: Vec<At>,
}

/// What a frontend means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meaning {
    pub flags: u32,
    pub affinity_seconds: u32,
    pub ranges: Vec<IpNet>,
    pub views: [View; 3],
}

/// What the maps mean.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub frontends: BTreeMap<FrontendAt, Meaning>,
    /// Without those that only linger.
    pub addresses: BTreeMap<IpAddr, u32>,
    /// Backends that are alive, by Service port (its identity).
    pub alive: BTreeSet<(u64, At, u16)>,
}

/// Reads the maps, and checks on the way that all references hold.
pub fn state(store: &FakeStore) -> State {
    let mut state = State::default();
    let mut ranges: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
    let mut ports: BTreeMap<u32, u64> = BTreeMap::new();
    for family in Family::ALL {
        let read_range = &mut |key: &[u8], _: &[u8]| {
            let (id, net) = codec::decode_range_key(family, key).unwrap();
            ranges.entry(id).or_default().push(net);
        };
        store.for_each(family.ranges(), read_range).unwrap();
    }
    for nets in ranges.values_mut() {
        nets.sort();
    }
    for family in Family::ALL {
        let read_frontend = &mut |key: &[u8], value: &[u8]| {
            let at = codec::decode_frontend_key(family, key);
            let row = codec::decode_frontend(value);
            assert_eq!(*ports.entry(row.service).or_insert(row.identity), row.identity, "an id with two owners");
            let views = row.views.map(|view| View {
                verdict: view.verdict,
                flags: view.flags,
                backends: list(store, family, view.table, row.service, view.verdict == verdict::BALANCE),
                slots: slots(store, family, view.table),
            });
            let ranges = if row.ranges == 0 { vec![] } else { ranges[&row.ranges].clone() };
            let meaning = Meaning { flags: row.flags, affinity_seconds: row.affinity_seconds, ranges, views };
            state.frontends.insert(at, meaning);
        };
        store.for_each(family.frontends(), read_frontend).unwrap();
        let read_address = &mut |key: &[u8], value: &[u8]| {
            let flags = codec::decode_word(value);
            if flags != address::LINGER {
                state.addresses.insert(codec::decode_address(family, key), flags);
            }
        };
        store.for_each(family.addresses(), read_address).unwrap();
        let read_backend = &mut |_: &[u8], value: &[u8]| {
            let row = codec::decode_backend(family, value);
            if row.flags & backend::ALIVE != 0 {
                let identity = ports.get(&row.service).copied().unwrap_or(0);
                let at = At { address: row.address, port: row.port };
                assert!(state.alive.insert((identity, at, row.flags)), "{at:?} is there twice");
            }
        };
        store.for_each(family.backends(), read_backend).unwrap();
    }
    for at in state.frontends.keys() {
        let flags = state.addresses.get(&at.address).copied().unwrap_or(0);
        assert!(flags & address::FRONTEND != 0, "{at:?}: the address does not say so");
    }
    state
}

/// Checks that whatever a packet can reach now leads to live backends of its Service.
pub fn assert_serves(store: &FakeStore) {
    for family in Family::ALL {
        let check = &mut |key: &[u8], value: &[u8]| {
            let address = codec::decode_frontend_key(family, key).address;
            let flags = store.get(family.addresses(), &codec::address_key(address)).unwrap();
            if flags.is_none_or(|flags| codec::decode_word(&flags) & address::FRONTEND == 0) {
                return;
            }
            let row = codec::decode_frontend(value);
            for view in row.views {
                list(store, family, view.table, row.service, view.verdict == verdict::BALANCE);
            }
            if row.ranges != 0 {
                let mut ranges = 0;
                let read = &mut |key: &[u8], _: &[u8]| {
                    ranges += usize::from(codec::decode_range_key(family, key).is_some_and(|(id, _)| id == row.ranges));
                };
                store.for_each(family.ranges(), read).unwrap();
                assert_ne!(ranges, 0, "set {} is empty", row.ranges);
            }
        };
        store.for_each(family.frontends(), check).unwrap();
    }
}

fn ids(store: &FakeStore, table: u32) -> (Table, Vec<u32>) {
    let descriptor = Table::unpack(store.table(table));
    let units = store.read_slab(descriptor.base, 2 * usize::from(descriptor.count)).unwrap();
    (descriptor, units.chunks(2).map(|pair| u32::from(pair[0]) | u32::from(pair[1]) << 16).collect())
}

fn list(store: &FakeStore, family: Family, table: u32, service: u32, balances: bool) -> Vec<(At, u16)> {
    assert_eq!(table != 0, balances, "a table where the verdict is to balance, and only there");
    if table == 0 {
        return vec![];
    }
    let (_, ids) = ids(store, table);
    assert!(!ids.is_empty(), "table {table} is empty");
    ids.into_iter()
        .map(|id| {
            let row = store.get(family.backends(), &id.to_ne_bytes()).unwrap().unwrap();
            let row = codec::decode_backend(family, &row);
            assert!(
                row.flags & backend::ALIVE != 0 && row.service == service,
                "table {table} names a stranger {row:?}"
            );
            (At { address: row.address, port: row.port }, row.flags)
        })
        .collect()
}

fn slots(store: &FakeStore, family: Family, table: u32) -> Vec<At> {
    if table == 0 {
        return vec![];
    }
    let (descriptor, ids) = ids(store, table);
    let base = descriptor.base + 2 * u32::from(descriptor.count);
    let slots = store.read_slab(base, maglev_size(descriptor.class) as usize).unwrap();
    let at = |id: u32| {
        let row = store.get(family.backends(), &id.to_ne_bytes()).unwrap().unwrap();
        let row = codec::decode_backend(family, &row);
        At { address: row.address, port: row.port }
    };
    slots.into_iter().map(|slot| at(ids[usize::from(slot)])).collect()
}

/// Rows of the maps that the reconciler writes, as they are.
pub fn rows(store: &FakeStore) -> Vec<(Map, Vec<u8>, Vec<u8>)> {
    let maps = Family::ALL.map(|family| [family.addresses(), family.frontends(), family.backends(), family.ranges()]);
    let mut rows = vec![];
    for map in maps.into_iter().flatten() {
        store.for_each(map, &mut |key, value| rows.push((map, key.to_vec(), value.to_vec()))).unwrap();
    }
    rows
}
