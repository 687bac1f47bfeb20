//! Hooks on links and sockets: set, taken over, put back, removed. With the four capabilities of an agent, in namespaces
//! of the test's own.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_dataplane::links::hooks::Method;
use culvert_dataplane::links::task::{Hooked, Report};
use culvert_dataplane::links::{Links, Role};
use culvert_dataplane::{Dataplane, Options, cleanup, limits::Limits};
use culvert_tests::place::Place;
use culvert_tests::scope::Scope;
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(10);

/// A node with an uplink and two pods, one routed, one in a bridge.
struct Node {
    host: Place,
    bpffs: PathBuf,
    cgroup: PathBuf,
    scope: Scope,
}

impl Node {
    fn new() -> Result<Self> {
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

    fn options(&self, method: Method) -> Options {
        Options {
            bpffs: self.bpffs.clone(),
            cgroup: Some(self.cgroup.clone()),
            limits: small(),
            method: Some(method),
            ..Options::default()
        }
    }

    fn index(&self, link: &str) -> Result<u32> {
        let line = self.host.sh(&format!("ip -o link show dev {link}"))?;
        line.split(':').next().and_then(|index| index.parse().ok()).with_context(|| line.clone())
    }
}

fn small() -> Limits {
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

fn node_addresses() -> Option<BTreeSet<IpAddr>> {
    Some(BTreeSet::from([Ipv4Addr::new(198, 51, 100, 11).into()]))
}

/// Runs the task that keeps the hooks beside `work`.
async fn beside<T>(links: Links, work: impl AsyncFnOnce() -> Result<T>) -> Result<T> {
    tokio::select! {
        ended = links.run() => anyhow::bail!("the task ended: {ended:?}"),
        result = work() => result,
    }
}

/// Waits for a report that fits.
async fn report(
    reports: &mut watch::Receiver<std::sync::Arc<Report>>,
    fits: impl Fn(&Report) -> bool,
) -> Result<std::sync::Arc<Report>> {
    let waiting = async { Ok(reports.wait_for(|report| fits(report)).await?.clone()) };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(report) => report,
        Err(_) => anyhow::bail!("no such report: {:#?}", reports.borrow()),
    }
}

fn link<'a>(report: &'a Report, name: &str) -> Option<&'a Hooked> {
    report.links.iter().find(|link| link.wanted.name == name)
}

#[test]
fn links_are_told_apart_hooked_and_left_without_a_trace() -> Result<()> {
    for method in [Method::Tcx, Method::Clsact] {
        let node = Node::new()?;
        node.host.block_on(async || {
            let mut plane = Dataplane::open(node.options(method))?;
            ensure!(plane.first_start, "there were pins");
            plane.node_addresses.send_replace(node_addresses());
            beside(plane.links, async || {
                let report = report(&mut plane.report, |report| report.links.len() == 3).await?;
                let roles = ["up0", "pod0", "pod1"].map(|name| link(&report, name).map(|link| link.wanted.role));
                ensure!(roles == [Some(Role::Node), Some(Role::Pod), Some(Role::Pod)], "{method:?}: {roles:?}");
                for hooked in &report.links {
                    ensure!(hooked.ingress.len() == 1 && hooked.egress.len() == 1, "{hooked:?}");
                }
                let source = |name| link(&report, name).and_then(|link| link.wanted.source.v4);
                ensure!(source("up0") == Some(Ipv4Addr::new(198, 51, 100, 11)), "{report:?}");
                ensure!(source("pod0") == Some(Ipv4Addr::new(10, 244, 1, 1)), "{report:?}");
                ensure!(source("pod1") == Some(Ipv4Addr::new(10, 244, 2, 1)), "{report:?}");
                ensure!(report.addresses.contains(&IpAddr::from(Ipv4Addr::new(10, 244, 2, 1))), "{report:?}");
                Ok(())
            })
            .await
        })?;
        node.host.run(|| Ok(cleanup(&node.bpffs)?))?;
        ensure!(
            !node.bpffs.join("culvert").exists(),
            "pins are left: {}",
            node.host.sh(&format!("find {}", node.bpffs.display()))?
        );
        let attached = node.host.sh("bpftool net")?;
        ensure!(!attached.contains("ingress") && !attached.contains("egress"), "{method:?}: {attached}");
        let qdiscs = node.host.sh("tc qdisc show")?;
        ensure!(!qdiscs.contains("clsact"), "{method:?}: {qdiscs}");
        let cgroup = culvert_tests::shell::sh(&format!("bpftool cgroup show {}", node.cgroup.display()))?;
        ensure!(!cgroup.contains("connect"), "{cgroup}");
        drop(node.scope);
    }
    Ok(())
}

#[test]
fn hooks_outlive_the_agent_and_its_successor_takes_them_over() -> Result<()> {
    for method in [Method::Tcx, Method::Clsact] {
        let node = Node::new()?;
        let mut programs = Vec::new();
        for start in 0..2 {
            let seen = node.host.block_on(async || {
                let mut plane = Dataplane::open(node.options(method))?;
                ensure!(plane.first_start == (start == 0));
                // Only the first knows the Node object; its successor goes by what it finds.
                if start == 0 {
                    plane.node_addresses.send_replace(node_addresses());
                }
                beside(plane.links, async || report(&mut plane.report, |report| report.links.len() == 3).await).await
            })?;
            programs.push(seen.links.clone());
        }
        let [first, second] = &programs[..] else { unreachable!() };
        for (first, second) in first.iter().zip(second) {
            ensure!(first.wanted == second.wanted, "{first:?} became {second:?}");
            ensure!(first.ingress != second.ingress && second.ingress.len() == 1, "{first:?}, {second:?}");
            ensure!(first.egress != second.egress && second.egress.len() == 1, "{first:?}, {second:?}");
        }
    }
    Ok(())
}

#[test]
fn a_removed_hook_is_back_within_a_second() -> Result<()> {
    for method in [Method::Tcx, Method::Clsact] {
        let node = Node::new()?;
        let up0 = node.index("up0")?;
        node.host.block_on(async || {
            let mut plane = Dataplane::open(node.options(method))?;
            plane.node_addresses.send_replace(node_addresses());
            beside(plane.links, async || {
                report(&mut plane.report, |report| report.links.len() == 3).await?;
                let removed = Instant::now();
                match method {
                    Method::Tcx => std::fs::remove_file(node.bpffs.join(format!("culvert/v1/links/ingress_{up0}")))?,
                    Method::Clsact => drop(culvert_tests::shell::sh("tc qdisc del dev up0 clsact")?),
                }
                loop {
                    let back = match method {
                        Method::Tcx => node.bpffs.join(format!("culvert/v1/links/ingress_{up0}")).exists(),
                        Method::Clsact => {
                            let filters = culvert_tests::shell::sh("tc filter show dev up0 ingress")?;
                            filters.contains("culvert/node_ingress")
                        }
                    };
                    if back {
                        break;
                    }
                    ensure!(
                        removed.elapsed() < Duration::from_secs(1),
                        "{method:?}: not back, {:?}",
                        plane.report.borrow()
                    );
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(())
            })
            .await
        })?;
    }
    Ok(())
}
