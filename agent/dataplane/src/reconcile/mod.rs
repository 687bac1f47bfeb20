//! The reconciler: three idempotent operations, `upsert`, `remove` and `prune`, that bring the kernel's maps to what the
//! plans say. A change costs what it changes. An error concerns one Service, which keeps its last good rows and is tried again.
//!
//! ```text
//! ServicePlan ─ rows ─► apply: the difference to what is held ─► Ledger: ids, slices, undo ─► Store
//! restart:   maps ─ restore ─► unclaimed ports ─ upsert claims ─► held;  prune removes the rest
//! ```
//!
//! `now` is always the time of the monotonic clock (`CLOCK_MONOTONIC`), as the programs see it.

mod apply;
mod held;
mod linger;
mod repair;
mod restore;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use culvert_abi::{address, flow as flow_bits, role};
use culvert_api::plan::{ServiceKey, ServicePlan};
use thiserror::Error;

use crate::{
    codec::{self, At, Family, FlowRow},
    flow,
    ledger::{Cause, Ledger},
    rows::{self, ServiceRows},
    store::Store,
};

pub use held::{Held, HeldBackend, HeldTable, Port};
use linger::Sweep;
use restore::Unclaimed;

/// Back-off of a Service that could not be programmed: the first pause, which doubles.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const RETRY_LAST: Duration = Duration::from_secs(64);

/// A Service (or what an earlier agent left, `None`) that could not be programmed.
#[derive(Debug, Error)]
#[error("{}: not programmed", name(.service.as_ref()))]
pub struct Error {
    /// The Service.
    pub service: Option<ServiceKey>,
    /// Why.
    #[source]
    pub cause: Cause,
}

/// A Service that waits for its next try.
#[derive(Clone, Debug)]
pub struct Failed {
    /// What is wanted; `None` = to be removed.
    plan: Option<Box<ServicePlan>>,
    /// Why it failed last.
    pub message: String,
    /// Tries so far.
    pub attempts: u32,
    /// When it is tried again.
    pub next: Duration,
}

/// A connection that netfilter translates since before the agent came; it is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Foreign {
    /// Who opened it.
    pub client: At,
    /// The address and port that it asked for.
    pub frontend: At,
    /// IP protocol number.
    pub proto: u8,
}

/// The reconciler. It is the only writer of the maps of addresses, frontends, backends, tables and ranges.
pub struct Reconciler<S> {
    ledger: Ledger<S>,
    services: BTreeMap<ServiceKey, Held>,
    unclaimed: Unclaimed,
    pruned: bool,
    own: Vec<IpAddr>,
    /// Plans with source ranges: what they mean for the host depends on the node's addresses.
    ranged: HashMap<ServiceKey, Box<ServicePlan>>,
    failed: BTreeMap<ServiceKey, Failed>,
    sweep: Sweep,
    /// Not before then is the kernel compared with the books again, after a rollback that failed.
    repair_at: Duration,
}

impl<S: Store> Reconciler<S> {
    /// Takes over the maps as they are, empty or left by another agent. Nothing is removed before `prune`.
    pub fn restore(store: S, now: Duration) -> io::Result<Self> {
        let (ledger, unclaimed) = restore::restore(store, now)?;
        let mut sweep = Sweep::default();
        if ledger.lingering().next().is_some() {
            sweep.wake(now);
        }
        Ok(Self {
            ledger,
            services: BTreeMap::new(),
            unclaimed,
            pruned: false,
            own: Vec::new(),
            ranged: HashMap::new(),
            failed: BTreeMap::new(),
            sweep,
            repair_at: Duration::ZERO,
        })
    }

    /// Programs a Service as its plan says. On an error it keeps its last good rows, and `retry` tries again.
    pub fn upsert(&mut self, plan: &ServicePlan, now: Duration) -> Result<(), Error> {
        let key = plan.key();
        let rows = rows::rows(plan, &self.own);
        if rows.ports.iter().flat_map(|port| &port.frontends).any(|frontend| !frontend.ranges.is_empty()) {
            self.ranged.insert(key.clone(), Box::new(plan.clone()));
        } else {
            self.ranged.remove(&key);
        }
        let result = self.apply(&key, &rows, now);
        self.settle(key, Some(plan), result, now)
    }

    /// Removes all rows of a Service. One that is not there is no error.
    pub fn remove(&mut self, key: &ServiceKey, now: Duration) -> Result<(), Error> {
        self.ranged.remove(key);
        let result = self.apply(key, &ServiceRows::default(), now);
        self.settle(key.clone(), None, result, now)
    }

    /// Removes everything that no wanted Service has, and repairs rows that somebody else changed (`repair` does
    /// the slots too). To be called once all
    /// sources have delivered their first full list and all wanted Services were upserted; and again at will.
    pub fn prune(&mut self, wanted: &HashSet<ServiceKey>, now: Duration) -> Vec<Error> {
        let gone: Vec<ServiceKey> = self.services.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        let mut errors: Vec<Error> = gone.iter().filter_map(|key| self.remove(key, now).err()).collect();
        self.pruned = true;
        errors.extend(self.drop_unclaimed(now).err());
        errors.extend(self.repair_rows().err());
        errors
    }

    /// What is due: slices and ids that have rested, addresses that nobody uses any more. Cheap when nothing is.
    pub fn tick(&mut self, now: Duration) -> Result<(), Error> {
        self.ledger.reclaim(now);
        if self.ledger.take_lingers() {
            self.sweep.wake(now);
        }
        if self.ledger.unsure() && self.repair_at <= now {
            self.repair_at = now + RETRY_FIRST;
            self.repair_rows()?;
        }
        let idle = self.sweep.step(&self.ledger, now).map_err(left_over)?;
        self.transaction(now, |ledger| {
            idle.into_iter().try_for_each(|at| {
                ledger.change_address(at, |state| state.linger = false);
                ledger.write_address(at)
            })
        })
    }

    /// Tries again what failed and is due: the Services tried, and how it went.
    pub fn retry(&mut self, now: Duration) -> Vec<(ServiceKey, Result<(), Error>)> {
        let due = self.failed.iter().filter(|(_, failed)| failed.next <= now);
        let due: Vec<(ServiceKey, Option<Box<ServicePlan>>)> =
            due.map(|(key, failed)| (key.clone(), failed.plan.clone())).collect();
        due.into_iter()
            .map(|(key, plan)| {
                let result = match plan {
                    Some(plan) => self.upsert(&plan, now),
                    None => self.remove(&key, now),
                };
                (key, result)
            })
            .collect()
    }

    /// When `tick` or `retry` has something to do; `None`: not before something changes.
    pub fn deadline(&self) -> Option<Duration> {
        let retry = self.failed.values().map(|failed| failed.next).min();
        let repair = self.ledger.unsure().then_some(self.repair_at);
        [self.ledger.rested_at(), self.sweep.due(), retry, repair].into_iter().flatten().min()
    }

    /// Tells all addresses that the node's links carry: translated sources may be among them, and they decide whether the
    /// host is inside a Service's source ranges.
    pub fn set_node_addresses(&mut self, addresses: &BTreeSet<IpAddr>, now: Duration) -> Vec<Error> {
        let own: Vec<IpAddr> = addresses.iter().copied().filter(|address| usable(*address)).collect();
        let before = self.ledger.addresses.iter();
        let before = before.filter(|(_, state)| state.flags() & address::SOURCE != 0).map(|(at, _)| *at);
        let touched: BTreeSet<IpAddr> = before.chain(own.iter().copied()).collect();
        let result = self.transaction(now, |ledger| {
            touched.into_iter().try_for_each(|at| {
                let carried = own.binary_search(&at).is_ok();
                ledger.change_address(at, |state| {
                    state.own = carried;
                    state.kept &= !address::SOURCE;
                });
                ledger.write_address(at)
            })
        });
        let mut errors: Vec<Error> = result.err().into_iter().collect();
        if own == self.own {
            return errors;
        }
        self.own = own;
        let ranged: Vec<Box<ServicePlan>> = self.ranged.values().cloned().collect();
        errors.extend(ranged.iter().filter_map(|plan| self.upsert(plan, now).err()));
        errors
    }

    /// Leaves connections alone that netfilter translates: how many were not known yet.
    pub fn import_foreign(&mut self, flows: impl IntoIterator<Item = Foreign>, now: Duration) -> io::Result<usize> {
        let tick = flow::tick(now);
        let mut new = 0;
        for foreign in flows {
            let family = Family::of(foreign.client.address);
            if Family::of(foreign.frontend.address) == family {
                let (key, value) = codec::flow(&foreign_row(foreign, tick));
                new += usize::from(self.ledger.store.insert(family.flows(), &key, &value)?);
            }
        }
        Ok(new)
    }

    /// The store, to read from.
    pub fn store(&self) -> &S {
        &self.ledger.store
    }

    /// The store, for what is not the reconciler's: links, and tests.
    pub fn store_mut(&mut self) -> &mut S {
        &mut self.ledger.store
    }

    /// Gives the store back; the maps stay as they are.
    pub fn into_store(self) -> S {
        self.ledger.store
    }

    /// Whether everything is programmed: `prune` was called, and no Service waits to be tried again.
    pub fn settled(&self) -> bool {
        self.pruned && self.failed.is_empty() && self.unclaimed.is_empty() && !self.ledger.unsure()
    }

    /// Services that wait to be tried again.
    pub fn failed(&self) -> &BTreeMap<ServiceKey, Failed> {
        &self.failed
    }

    /// What the kernel holds for each Service.
    pub fn services(&self) -> &BTreeMap<ServiceKey, Held> {
        &self.services
    }

    pub(crate) fn ledger(&self) -> &Ledger<S> {
        &self.ledger
    }

    fn apply(&mut self, key: &ServiceKey, rows: &ServiceRows, now: Duration) -> Result<(), Cause> {
        self.ledger.reclaim(now);
        let mut held = self.services.remove(key).unwrap_or_default();
        for port in &rows.ports {
            if held.port(port.identity).is_none() {
                held.ports.extend(self.unclaimed.ports.remove(&port.identity));
            }
        }
        let result = apply::apply(&mut self.ledger, &held, rows);
        let result = match result {
            Ok(new) => {
                self.ledger.commit(now);
                held = new;
                Ok(())
            }
            Err(cause) => {
                self.ledger.rollback(now);
                Err(cause)
            }
        };
        if !held.is_empty() {
            self.services.insert(key.clone(), held);
        }
        if self.ledger.take_lingers() {
            self.sweep.wake(now);
        }
        result
    }

    /// Notes how it went.
    fn settle(
        &mut self,
        key: ServiceKey,
        plan: Option<&ServicePlan>,
        result: Result<(), Cause>,
        now: Duration,
    ) -> Result<(), Error> {
        let before = self.failed.remove(&key);
        let Err(cause) = result else { return Ok(()) };
        let attempts = before.map_or(0, |failed| failed.attempts) + 1;
        let pause = RETRY_FIRST.saturating_mul(1 << (attempts - 1).min(6)).min(RETRY_LAST);
        let plan = plan.map(|plan| Box::new(plan.clone()));
        self.failed.insert(key.clone(), Failed { plan, message: cause.to_string(), attempts, next: now + pause });
        Err(Error { service: Some(key), cause })
    }

    fn transaction(
        &mut self,
        now: Duration,
        change: impl FnOnce(&mut Ledger<S>) -> Result<(), Cause>,
    ) -> Result<(), Error> {
        let result = change(&mut self.ledger);
        match &result {
            Ok(()) => self.ledger.commit(now),
            Err(_) => self.ledger.rollback(now),
        }
        result.map_err(left_over)
    }
}

/// An address that a packet from or to another node can carry.
fn usable(address: IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !(link_local || address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

/// The ORIGIN row of a connection that is left alone. It needs no other: netfilter gives the replies their source back before
/// they leave.
fn foreign_row(foreign: Foreign, tick: u32) -> FlowRow {
    let Foreign { client, frontend, proto } = foreign;
    let nobody: IpAddr = match client.address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let nobody = At { address: nobody, port: 0 };
    FlowRow {
        src: client,
        dst: frontend,
        proto,
        role: role::ORIGIN,
        client,
        frontend,
        backend: nobody,
        source: nobody,
        packets: 0,
        bytes: 0,
        backend_id: 0,
        generation: 0,
        service: 0,
        seen: tick,
        born: tick,
        flags: flow_bits::FOREIGN | flow_bits::REPLIED,
        established: true,
    }
}

fn left_over(cause: Cause) -> Error {
    Error { service: None, cause }
}

fn name(service: Option<&ServiceKey>) -> String {
    service.map_or_else(|| String::from("rows of no Service"), |key| format!("Service {key}"))
}
