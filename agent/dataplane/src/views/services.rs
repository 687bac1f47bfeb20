//! Services, port by port.

use std::{io, net::SocketAddr, time::Duration};

use culvert_abi::{ServiceCounters, Table, frontend, maglev_size, verdict, view};
use culvert_api::{
    plan::{Audience, ClientAddress, ServiceKey, Verdict},
    services::{Counters, Frontend, Kind, Service, ServicePort, View},
};

use crate::{
    codec::{self, Family, FrontendAt, index_key},
    drift::Comparison,
    reconcile::{Held, Port, Reconciler},
    store::{Map, Store},
};

impl<S: Store> Reconciler<S> {
    /// All Services that have rows, sorted, as the kernel has them now.
    pub fn view_services(&self, now: Duration) -> io::Result<Vec<Service>> {
        self.services().keys().filter_map(|key| self.view_service(key, now).transpose()).collect()
    }

    /// One Service as the kernel has it now; `None` if it has no rows. Its slots are not compared; `drift` does that.
    pub fn view_service(&self, key: &ServiceKey, now: Duration) -> io::Result<Option<Service>> {
        let Some(held) = self.services().get(key) else { return Ok(None) };
        let ports = held.ports.iter().map(|port| self.view_port(port)).collect::<io::Result<_>>()?;
        Ok(Some(Service {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            failure: self.failure(key, now),
            ports,
            drift: self.service_drift(key, held)?,
        }))
    }

    fn service_drift(&self, key: &ServiceKey, held: &Held) -> io::Result<Vec<culvert_api::status::Drift>> {
        let mut comparison = Comparison::new(self.ledger());
        comparison.rows(key, held)?;
        Ok(comparison.finish().iter().map(Into::into).collect())
    }

    fn view_port(&self, port: &Port) -> io::Result<ServicePort> {
        let frontends = port.frontends.iter().filter_map(|(at, _)| self.view_frontend(port.family, *at).transpose());
        Ok(ServicePort {
            name: port.name.clone(),
            protocol: port.protocol,
            family: port.family as u8,
            id: port.id,
            counters: self.counters(port.id)?,
            backends: port.backends.len(),
            frontends: frontends.collect::<io::Result<_>>()?,
        })
    }

    fn view_frontend(&self, family: Family, at: FrontendAt) -> io::Result<Option<Frontend>> {
        let Some(row) = self.store().get(family.frontends(), &codec::frontend_key(at))? else { return Ok(None) };
        let row = codec::decode_frontend(&row);
        let [pods, host, external] = row.views;
        let views = if pods == host && host == external {
            vec![self.view(family, Audience::Any, pods)?]
        } else {
            vec![
                self.view(family, Audience::Pods, pods)?,
                self.view(family, Audience::Host, host)?,
                self.view(family, Audience::External, external)?,
            ]
        };
        let ranges = self.ledger().ranges.get(row.ranges).unwrap_or_default();
        Ok(Some(Frontend {
            address: at.address,
            port: at.port,
            kind: kind(row.flags),
            affinity_seconds: (row.affinity_seconds != 0).then_some(row.affinity_seconds),
            source_ranges: ranges.to_vec(),
            views,
        }))
    }

    fn view(&self, family: Family, audience: Audience, row: culvert_abi::View) -> io::Result<View> {
        let table = Table::unpack(if row.table == 0 { 0 } else { self.store().table(row.table) });
        let list = 2 * usize::from(table.count);
        let units = if list == 0 { Vec::new() } else { self.store().read_slab(table.base, list)? };
        let mut backends = Vec::with_capacity(usize::from(table.count));
        for [low, high] in units.as_chunks::<2>().0 {
            let id = u32::from(*low) | u32::from(*high) << 16;
            if let Some(row) = self.store().get(family.backends(), &index_key(id))? {
                let row = codec::decode_backend(family, &row);
                backends.push(SocketAddr::new(row.address, row.port));
            }
        }
        let replaced = row.flags & view::REPLACE_CLIENT != 0;
        Ok(View {
            audience,
            verdict: match row.verdict {
                verdict::BALANCE => Verdict::Balance,
                verdict::REJECT => Verdict::Reject,
                _ => Verdict::Drop,
            },
            client_address: if replaced { ClientAddress::Replaced } else { ClientAddress::Kept },
            slots: maglev_size(table.class),
            backends,
        })
    }

    fn counters(&self, service: u32) -> io::Result<Counters> {
        let row = self.store().get(Map::SERVICE_COUNTERS, &index_key(service))?.unwrap_or_default();
        let ServiceCounters { connections, packets, bytes, reply_packets, reply_bytes, rejected, dropped } =
            codec::decode_service_counters(&row);
        Ok(Counters { connections, packets, bytes, reply_packets, reply_bytes, rejected, dropped })
    }
}

fn kind(flags: u32) -> Kind {
    match flags {
        frontend::CLUSTER_IP => Kind::ClusterIP,
        frontend::NODE_PORT => Kind::NodePort,
        _ => Kind::External,
    }
}
