//! A Service that is imported from another cluster (KEP-1645): the controllers of the multi-cluster API derive a Service
//! without selector from the `ServiceImport`, and copy the other cluster's slices beside it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use culvert_tests::cluster::traffic::{Load, Server};
use culvert_tests::cluster::{LIMIT, Site, objects};
use culvert_tests::process::eventually;
use serde_json::{Value, json};

use super::Stage;

const PORT: u16 = 7000;
const DERIVED: &str = "derived-hjk4lmn5op";

/// A slice as it is copied from another cluster: its nodes and zones are none of this one's.
fn slice(cluster: &str, server: &Site) -> Result<Value> {
    let (name, zone) = (format!("imported-{cluster}-web"), format!("{cluster}-1a"));
    let mut slice = objects::slice(&name, DERIVED, server.address()?, PORT);
    let labels = &mut slice["metadata"]["labels"];
    labels["multicluster.kubernetes.io/service-name"] = "web".into();
    labels["multicluster.kubernetes.io/source-cluster"] = cluster.into();
    labels["endpointslice.kubernetes.io/managed-by"] = "imports.example.com".into();
    let endpoint = &mut slice["endpoints"][0];
    endpoint["conditions"] = json!({"ready": true, "serving": true, "terminating": false});
    endpoint["nodeName"] = format!("{cluster}-worker-1").into();
    endpoint["hints"] = json!({"forZones": [{"name": zone}]});
    endpoint["zone"] = zone.into();
    Ok(slice)
}

pub fn import(stage: &Stage) -> Result<()> {
    let (cluster, namespace) = (&stage.cluster, &stage.namespace);
    // The other clusters' pods: outside of this one's nodes, behind a router, and on that router.
    let foreign = [("west", cluster.site("client")?), ("east", cluster.site("hub")?)];
    let servers = foreign.iter().map(|(_, site)| Server::start(site, PORT)).collect::<Result<Vec<_>>>()?;
    let mut derived = objects::service(DERIVED, "", PORT);
    derived["spec"]["selector"] = Value::Null;
    derived["metadata"]["labels"] = json!({"multicluster.kubernetes.io/service-name": "web"});
    namespace.apply(&[derived, slice("west", &foreign[0].1)?, slice("east", &foreign[1].1)?])?;
    stage.client()?;
    let front: SocketAddr = namespace.front(DERIVED)?;
    let clients = [namespace.pod("client")?, cluster.site("n2")?];
    served(&clients, front, &["client", "hub"])?;
    // One cluster withdraws, and comes back.
    namespace.kubectl(&["delete", "endpointslice", "imported-east-web"])?;
    served(&clients, front, &["client"])?;
    namespace.apply(&[slice("east", &foreign[1].1)?])?;
    served(&clients, front, &["client", "hub"])?;
    drop(servers);
    Ok(())
}

/// Waits until exactly these servers answer, and nothing is lost.
fn served(clients: &[Site], front: SocketAddr, expected: &[&str]) -> Result<()> {
    for from in clients {
        eventually(&format!("{expected:?} answer {}", from.name()), LIMIT, || {
            let report = Load::brief(from, front, 200)?;
            ensure!(report.clean(), "{report}");
            let servers: Vec<&str> = report.connects.servers.keys().map(String::as_str).collect();
            ensure!(servers == expected, "{servers:?}");
            Ok(Some(()))
        })?;
    }
    Ok(())
}
