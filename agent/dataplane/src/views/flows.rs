//! Flows, one for each ORIGIN row and the PATH row beside it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use culvert_abi::{flow as bits, role};
use culvert_api::flows::Flow;

use super::Names;
use crate::{
    codec::{self, At, Family, FlowRow, index_key},
    flow,
    reconcile::Reconciler,
    store::Store,
};

impl<S: Store> Reconciler<S> {
    /// Calls `each` for every flow that the kernel holds and that is not expired, in no order.
    pub fn view_flows(&self, now: Duration, each: &mut dyn FnMut(Flow)) -> io::Result<()> {
        let names = Names::of(self);
        let now = flow::tick(now);
        for family in Family::ALL {
            for (map, established) in family.flow_maps() {
                let mut failed = None;
                self.store().for_each(map, &mut |key, value| {
                    let row = codec::decode_flow(family, established, key, value);
                    if row.role != role::ORIGIN {
                        return;
                    }
                    match self.view_flow(family, &row, &names, now) {
                        Ok(flow) => flow.into_iter().for_each(&mut *each),
                        Err(error) => failed = Some(error),
                    }
                })?;
                if let Some(error) = failed {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn view_flow(&self, family: Family, origin: &FlowRow, names: &Names<'_>, now: u32) -> io::Result<Option<Flow>> {
        let path = self.path(family, origin)?;
        // A flow lives while one of its rows does (docs/DATAPATH.md, "Expired").
        if flow::expired(origin, now) && path.is_none_or(|path| flow::expired(&path, now)) {
            return Ok(None);
        }
        let Some(protocol) = codec::protocol(origin.proto) else { return Ok(None) };
        let idle = |row: &FlowRow| flow::elapsed(now, row.seen);
        let idle = path.iter().map(idle).chain([idle(origin)]).min().unwrap_or(0);
        let foreign = origin.flags & bits::FOREIGN != 0;
        let name = if foreign { None } else { names.get(origin.service) };
        Ok(Some(Flow {
            service: name.map(|(key, _)| key.to_string()),
            port: name.map(|(_, port)| port.name.clone()).filter(|name| !name.is_empty()),
            protocol,
            client: socket(origin.client),
            frontend: socket(origin.frontend),
            backend: (!foreign).then(|| socket(origin.backend)),
            source: (origin.source.port != 0).then(|| socket(origin.source)),
            state: flow::state(origin),
            backend_alive: !foreign && self.backend_alive(family, origin)?,
            from_pod: origin.flags & bits::FROM_POD != 0,
            local: origin.flags & bits::LOCAL != 0,
            age_seconds: flow::span(flow::elapsed(now, origin.born)).as_secs(),
            idle_seconds: flow::span(idle).as_secs(),
            idle_limit_seconds: flow::limit(origin).into(),
            packets: origin.packets,
            bytes: origin.bytes,
            reply_packets: path.map_or(0, |path| path.packets),
            reply_bytes: path.map_or(0, |path| path.bytes),
        }))
    }

    /// The PATH row of a flow, in whichever map it is.
    fn path(&self, family: Family, origin: &FlowRow) -> io::Result<Option<FlowRow>> {
        let path = FlowRow { src: origin.backend, dst: origin.client, role: role::PATH, ..*origin };
        let (key, _) = codec::flow(&path);
        for (map, established) in family.flow_maps().into_iter().rev() {
            if let Some(value) = self.store().get(map, &key)? {
                return Ok(Some(codec::decode_flow(family, established, &key, &value)));
            }
        }
        Ok(None)
    }

    fn backend_alive(&self, family: Family, flow: &FlowRow) -> io::Result<bool> {
        let row = self.store().get(family.backends(), &index_key(flow.backend_id))?;
        let row = row.map(|row| codec::decode_backend(family, &row));
        Ok(row.is_some_and(|row| row.flags != 0 && row.generation == flow.generation && row.service == flow.service))
    }
}

/// An IPv4 or IPv6 address with a port.
fn socket(at: At) -> SocketAddr {
    let address: IpAddr = at.address;
    SocketAddr::new(address, at.port)
}
