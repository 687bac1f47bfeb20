//! A node for the tests of hooks and pins.
#![allow(dead_code, missing_docs)] // each test file uses a part of it

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use culvert_dataplane::Options;
use culvert_dataplane::limits::Limits;
use culvert_dataplane::links::Links;
use culvert_dataplane::links::hooks::Method;
use culvert_dataplane::links::task::{Hooked, Report};
use culvert_tests::place::Place;
use culvert_tests::scope::Scope;
use tokio::sync::watch;

/// The ways to hook that this kernel has.
pub fn methods() -> &'static [Method] {
    const ALL: [Method; 2] = [Method::Clsact, Method::Tcx];
    match Method::probe() {
        Method::Tcx => &ALL,
        Method::Clsact => &ALL[..1],
    }
}

/// Whether this kernel has tcx; says so if it has not, for a test that is about tcx alone.
pub fn has_tcx() -> Result<bool> {
    let has = Method::probe() == Method::Tcx;
    if !has {
        writeln!(std::io::stderr(), "not run, for this kernel has no tcx")?;
    }
    Ok(has)
}

pub const PATIENCE: Duration = Duration::from_secs(10);

/// A node with an uplink and two pods, one routed, one in a bridge.
pub struct Node {
    /// The host.
    pub host: Place,
    /// Its bpffs.
    pub bpffs: PathBuf,
    /// Its cgroup.
    pub cgroup: PathBuf,
    /// The run.
    pub scope: Scope,
}

impl Node {
    pub fn new() -> Result<Self> {
        let scope = Scope::open()?;
        let netns = scope.netns("host")?;
        let [world, pod, bridged] = ["world", "pod", "bridged"].map(|name| scope.netns(name));
        let (world, pod, bridged) = (world?, pod?, bridged?);
        let cgroup = scope.cgroup("node")?;
        let host = Place::new("node", netns, &cgroup, scope.dir(), Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        host.ip_batch(&format!(
            "link set lo up\n\
             link add up0 type veth peer name eth0 netns {world}\n\
             link add pod0 type veth peer name eth0 netns {pod}\n\
             link add pod1 type veth peer name eth0 netns {bridged}\n\
             link add cni0 type bridge\n\
             link set pod1 master cni0\n\
             addr add 198.51.100.11/24 dev up0\n\
             addr add 2001:db8:51::11/64 dev up0 nodad\n\
             addr add 10.244.1.1/32 dev pod0\n\
             addr add 10.244.2.1/24 dev cni0\n\
             link set up0 up\nlink set pod0 up\nlink set pod1 up\nlink set cni0 up\n"
        ))?;
        let bpffs = scope.bpffs("bpf")?;
        Ok(Self { host, bpffs, cgroup, scope })
    }

    pub fn options(&self, method: Method) -> Options {
        Options {
            bpffs: self.bpffs.clone(),
            cgroup: Some(self.cgroup.clone()),
            limits: small(),
            method: Some(method),
            ..Options::default()
        }
    }

    pub fn index(&self, link: &str) -> Result<u32> {
        let line = self.host.sh(&format!("ip -o link show dev {link}"))?;
        line.split(':').next().and_then(|index| index.parse().ok()).with_context(|| line.clone())
    }
}

pub fn small() -> Limits {
    Limits {
        services: 64,
        frontends: 256,
        backends: 256,
        tables: 256,
        slab_bytes: 1 << 20,
        ranges: 64,
        flows: 4_096,
        flows_new: 2_048,
        affinity: 2_048,
        datagrams: 2_048,
        fragments: 2_048,
        links: 64,
    }
}

pub fn node_addresses() -> BTreeSet<IpAddr> {
    BTreeSet::from([Ipv4Addr::new(198, 51, 100, 11).into()])
}

/// Runs the task that keeps the hooks beside `work`.
pub async fn beside<T>(links: Links, work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    tokio::select! {
        ended = links.run() => anyhow::bail!("the task ended: {ended:?}"),
        result = work() => result,
    }
}

/// Waits for a report that fits.
pub async fn report(
    reports: &mut watch::Receiver<std::sync::Arc<Report>>,
    fits: impl Fn(&Report) -> bool,
) -> Result<std::sync::Arc<Report>> {
    let waiting = async { Ok(reports.wait_for(|report| fits(report)).await?.clone()) };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(report) => report,
        Err(_) => anyhow::bail!("no such report: {:#?}", reports.borrow()),
    }
}

pub fn link<'a>(report: &'a Report, name: &str) -> Option<&'a Hooked> {
    report.links.iter().find(|link| link.wanted.name == name)
}
