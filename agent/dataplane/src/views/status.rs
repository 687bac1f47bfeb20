//! What is in `culvert status` of the maps: failures, how full they are, and why packets were not served.

use std::{io, time::Duration};

use culvert_abi::Reason;
use culvert_api::{
    plan::ServiceKey,
    status::{Failure, MapUsage, ReasonCount, ServiceCount},
};

use crate::{
    codec::{self, Family, index_key},
    reconcile::Reconciler,
    store::{Map, Store},
};

impl<S: Store> Reconciler<S> {
    /// Why the latest plan of a Service is not programmed; `None` if it is.
    pub fn failure(&self, key: &ServiceKey, now: Duration) -> Option<Failure> {
        let failed = self.failed().get(key)?;
        Some(Failure {
            service: key.to_string(),
            message: failed.message.clone(),
            attempts: failed.attempts,
            retry_in_seconds: failed.next.saturating_sub(now).as_secs(),
        })
    }

    /// All Services whose latest plan is not programmed.
    pub fn view_failures(&self, now: Duration) -> Vec<Failure> {
        self.failed().keys().filter_map(|key| self.failure(key, now)).collect()
    }

    /// Services with rows and Services that failed; `total` is what the model says.
    pub fn count_services(&self, total: usize) -> ServiceCount {
        ServiceCount { total, programmed: self.services().len(), failed: self.failed().len() }
    }

    /// How full the maps are that the reconciler writes: from its books, so that it costs nothing.
    pub fn view_usage(&self) -> Vec<MapUsage> {
        let ledger = self.ledger();
        let usage = |map: &str, used: usize, capacity: u32| MapUsage {
            map: String::from(map),
            used: used as u64,
            capacity: capacity.into(),
        };
        let mut all = Vec::new();
        for family in Family::ALL {
            let addresses = ledger.addresses.keys().filter(|at| Family::of(**at) == family).count();
            let frontends = ledger.owners.keys().filter(|at| Family::of(at.address) == family).count();
            let backends = &ledger.backends[family.index()];
            let ranges = ledger.ranges.iter().flat_map(|(_, nets)| nets);
            let ranges = ranges.filter(|net| Family::of(net.addr()) == family).count();
            let row = |map: Map, used| usage(&format!("{map:?}"), used, ledger.store.capacity(map));
            all.push(row(family.addresses(), addresses));
            all.push(row(family.frontends(), frontends));
            all.push(usage(&format!("{:?}", family.backends()), backends.used() as usize, backends.capacity()));
            all.push(row(family.ranges(), ranges));
        }
        let slab = ledger.slab.occupancy();
        all.push(usage("SERVICE_COUNTERS", ledger.services.used() as usize, ledger.services.capacity()));
        all.push(usage("TABLES", ledger.tables.used() as usize, ledger.tables.capacity()));
        all.push(usage("SLAB", slab.used as usize, slab.capacity));
        all
    }

    /// How full the flow maps are. Reads all of their rows; those of ended flows count until they are overwritten.
    pub fn view_flow_usage(&self) -> io::Result<Vec<MapUsage>> {
        let maps = Family::ALL.into_iter().flat_map(|family| [family.flows_new(), family.flows()]);
        maps.map(|map| {
            let mut used = 0;
            self.store().for_each(map, &mut |_, _| used += 1)?;
            Ok(MapUsage { map: format!("{map:?}"), used, capacity: self.store().capacity(map).into() })
        })
        .collect()
    }

    /// How often each reason was met, in the order of their numbers, zeros included.
    pub fn view_reasons(&self) -> io::Result<Vec<ReasonCount>> {
        let count = |reason: &Reason| {
            let row = self.store().get(Map::REASONS, &index_key(*reason as u32))?;
            let packets = row.as_deref().map_or(0, codec::decode_count);
            Ok(ReasonCount { reason: String::from(reason.name()), packets })
        };
        Reason::ALL.iter().map(count).collect()
    }
}
