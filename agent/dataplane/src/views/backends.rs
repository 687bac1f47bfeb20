//! Backends, with what their live flows add to their counters.

use std::{collections::HashMap, io, net::SocketAddr, time::Duration};

use culvert_abi::{BackendCounters, backend, role};
use culvert_api::{
    backends::Backend,
    plan::{BackendState, ServiceKey},
};

use crate::{
    codec::{self, Family, index_key},
    flow,
    reconcile::{HeldBackend, Port, Reconciler},
    store::Store,
};

/// What the live flows of a backend hold.
#[derive(Clone, Copy, Default)]
struct Live {
    flows: u64,
    packets: u64,
    bytes: u64,
}

/// Live flows by family, backend id and generation.
type LiveByBackend = HashMap<(Family, u32, u32), Live>;

impl<S: Store> Reconciler<S> {
    /// All backends of all Services, or of one, sorted by Service and address. Reads the flow maps once.
    pub fn view_backends(&self, only: Option<&ServiceKey>, now: Duration) -> io::Result<Vec<Backend>> {
        let live = self.live(now)?;
        let mut backends = Vec::new();
        for (key, held) in self.services().iter().filter(|(key, _)| only.is_none_or(|only| only == *key)) {
            for port in &held.ports {
                for held in &port.backends {
                    backends.extend(self.view_backend(key, port, held, &live)?);
                }
            }
        }
        Ok(backends)
    }

    fn view_backend(
        &self,
        key: &ServiceKey,
        port: &Port,
        held: &HeldBackend,
        live: &LiveByBackend,
    ) -> io::Result<Option<Backend>> {
        let Some(row) = self.store().get(port.family.backends(), &index_key(held.id))? else { return Ok(None) };
        let row = codec::decode_backend(port.family, &row);
        if row.flags & backend::ALIVE == 0 {
            return Ok(None);
        }
        let ended = self.store().get(port.family.backend_counters(), &index_key(held.id))?.unwrap_or_default();
        let BackendCounters { connections, packets, bytes } = codec::decode_backend_counters(&ended);
        let live = live.get(&(port.family, held.id, row.generation)).copied().unwrap_or_default();
        let terminating = row.flags & backend::TERMINATING != 0;
        Ok(Some(Backend {
            service: key.to_string(),
            port: port.name.clone(),
            protocol: port.protocol,
            address: SocketAddr::new(row.address, row.port),
            state: if terminating { BackendState::Terminating } else { BackendState::Ready },
            local: row.flags & backend::LOCAL != 0,
            id: held.id,
            generation: row.generation,
            connections,
            packets: packets + live.packets,
            bytes: bytes + live.bytes,
            flows: live.flows,
        }))
    }

    fn live(&self, now: Duration) -> io::Result<LiveByBackend> {
        let now = flow::tick(now);
        let mut live = LiveByBackend::new();
        for family in Family::ALL {
            for (map, established) in family.flow_maps() {
                self.store().for_each(map, &mut |key, value| {
                    let row = codec::decode_flow(family, established, key, value);
                    // Both rows carry packets: ORIGIN the client's, PATH the replies. One of them stands for the flow.
                    if row.backend_id == 0 || row.role == role::RETURN {
                        return;
                    }
                    let backend = live.entry((family, row.backend_id, row.generation)).or_default();
                    backend.packets += row.packets;
                    backend.bytes += row.bytes;
                    backend.flows += u64::from(row.role == role::ORIGIN && !flow::expired(&row, now));
                })?;
            }
        }
        Ok(live)
    }
}
