//! hostPorts, which the CNI plugin portmap makes of netfilter's rules.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use culvert_tests::cluster::traffic::{Load, Server};
use culvert_tests::cluster::{Site, objects};
use serde_json::json;

use super::Stage;

const PORT: u16 = 7000;
const HOST_PORT: u16 = 7080;

/// Requests for a moment, over TCP and UDP, all of which the pod must answer.
fn answered(from: &Site, to: SocketAddr, name: &str) -> Result<()> {
    let report = Load::brief(from, to, 200)?;
    ensure!(report.clean() && report.sent() > 0, "from {} to {to}: {report}", from.name());
    for tally in [&report.streams, &report.connects, &report.datagrams] {
        ensure!(tally.servers.keys().all(|server| server == name), "from {} to {to}: {:?}", from.name(), tally.servers);
    }
    Ok(())
}

pub fn portmap(stage: &Stage) -> Result<()> {
    let (cluster, namespace) = (&stage.cluster, &stage.namespace);
    let image = cluster.image("busybox")?;
    let mut served = objects::pod("served", "served", "n2", image);
    served["spec"]["containers"][0]["ports"] = ["TCP", "UDP"]
        .map(|protocol| json!({"containerPort": PORT, "hostPort": HOST_PORT, "protocol": protocol}))
        .into();
    let near = objects::pod("near", "near", "n2", image);
    let far = objects::pod("far", "far", "n1", image);
    namespace.apply(&[served, near, far])?;
    namespace.await_pods(&["pod/served", "pod/near", "pod/far"])?;
    let _server = Server::start(&namespace.pod("served")?, PORT)?;
    let to = (cluster.address("n2")?, HOST_PORT).into();
    for from in ["client", "n1", "n2"] {
        answered(&cluster.site(from)?, to, "served")?;
    }
    for from in ["near", "far", "served"] {
        answered(&namespace.pod(from)?, to, "served")?;
    }
    Ok(())
}
