//! The kernel's row and grants, in the words of the model.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use culvert_announce::liveness::{Electorate, Grant, Held, Kernel, NodeId, Times};
use culvert_dataplane::liveness::{self, Liveness};

use crate::agent::layer2::random;

/// What a kernel holds that has this row, or none.
pub fn held(row: Option<Liveness>, claims: BTreeSet<IpAddr>) -> io::Result<Held> {
    let Some(row) = row else {
        return Ok(Held { boot: random()?, claims, ..Held::default() });
    };
    Ok(Held {
        boot: row.boot,
        // The row has the newest of them first.
        electorate: Electorate::of(row.nodes, row.earlier),
        claims,
        version: row.version,
        agent_until: row.agent_until,
        witness_until: row.witness_until,
    })
}

/// The row of a kernel.
pub fn of(id: NodeId, kernel: &Kernel, times: Times, key: [[u32; 8]; 2]) -> Liveness {
    let (nodes, earlier) = kernel.electorate().parts();
    let (agent_until, witness_until) = kernel.until();
    Liveness {
        id,
        boot: kernel.boot(),
        version: kernel.version(),
        agent_until,
        witness_until,
        lease: times.lease,
        key,
        nodes: nodes.clone(),
        earlier: earlier.to_vec(),
    }
}

/// Grants that the kernel program noted.
pub fn grants(noted: BTreeMap<u64, liveness::Grant>) -> BTreeMap<NodeId, Grant> {
    let grant = |liveness::Grant { stamp, version }| Grant { stamp, version };
    noted.into_iter().map(|(id, noted)| (id, grant(noted))).collect()
}
