//! Hooks on links and sockets: set, taken over, put back, removed, in namespaces of the test's own.

mod attach;

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use attach::{Node, beside, has_tcx, link, methods, node_addresses, report};
use aya::programs::{SchedClassifier, TcAttachType};
use culvert_dataplane::links::Role;
use culvert_dataplane::links::hooks::Method;
use culvert_dataplane::{Dataplane, Options, cleanup};
use culvert_tests::shell::{feed, run, sh, split};

#[test]
fn links_are_told_apart_hooked_and_left_without_a_trace() -> Result<()> {
    for &method in methods() {
        let node = Node::new()?;
        node.host.block_on(async || {
            let mut plane = Dataplane::open(node.options(method))?;
            ensure!(plane.first_start, "there were pins");
            plane.node_addresses.send_replace(Some(node_addresses()));
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
        let cgroup = sh(&format!("bpftool cgroup show {}", node.cgroup.display()))?;
        ensure!(!cgroup.contains("connect"), "{cgroup}");
    }
    Ok(())
}

#[test]
fn hooks_outlive_the_agent_and_its_successor_takes_them_over() -> Result<()> {
    for &method in methods() {
        let node = Node::new()?;
        let (mut programs, mut beats) = (Vec::new(), Vec::new());
        for start in 0..2 {
            let seen = node.host.block_on(async || {
                let mut plane = Dataplane::open(node.options(method))?;
                ensure!(plane.first_start, "nobody has programmed a Service");
                // Only the first knows the Node object; its successor goes by what it finds.
                if start == 0 {
                    plane.node_addresses.send_replace(Some(node_addresses()));
                }
                beside(plane.links, async || report(&mut plane.report, |report| report.links.len() == 3).await).await
            })?;
            programs.push(seen.links.clone());
            // What they go on with is there while no agent is.
            let map = node.bpffs.join("culvert/v1/maps/PROGRAMS");
            beats.push(sh(&format!("bpftool --json map lookup pinned {} key 0 0 0 0", map.display()))?);
        }
        ensure!(beats[0].contains("value") && beats[0] != beats[1], "{beats:?}");
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
    for &method in methods() {
        let node = Node::new()?;
        let up0 = node.index("up0")?;
        node.host.block_on(async || {
            let mut plane = Dataplane::open(node.options(method))?;
            plane.node_addresses.send_replace(Some(node_addresses()));
            beside(plane.links, async || {
                report(&mut plane.report, |report| report.links.len() == 3).await?;
                let removed = Instant::now();
                match method {
                    Method::Tcx => {
                        let pin = node.bpffs.join(format!("culvert/v1/links/ingress_{up0}"));
                        run(Command::new("bpftool").args(["link", "detach", "pinned"]).arg(pin))?;
                    }
                    Method::Clsact => drop(sh("tc qdisc del dev up0 clsact")?),
                }
                ensure!(!hooked("up0", method)?, "the hook was not removed");
                while !hooked("up0", method)? {
                    ensure!(removed.elapsed() < Duration::from_secs(1), "{method:?}: {:?}", plane.report.borrow());
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(())
            })
            .await
        })?;
    }
    Ok(())
}

#[test]
fn a_removed_pin_is_back_and_its_hook_never_gone() -> Result<()> {
    if !has_tcx()? {
        return Ok(());
    }
    let node = Node::new()?;
    let pin = node.bpffs.join(format!("culvert/v1/links/egress_{}", node.index("pod0")?));
    let socket = node.bpffs.join("culvert/v1/links/connect4");
    node.host.block_on(async || {
        let mut plane = Dataplane::open(node.options(Method::Tcx))?;
        plane.node_addresses.send_replace(Some(node_addresses()));
        beside(plane.links, async || {
            let before = report(&mut plane.report, |report| report.links.len() == 3).await?;
            let removed = Instant::now();
            std::fs::remove_file(&pin)?;
            std::fs::remove_file(&socket)?;
            while !pin.exists() || !socket.exists() {
                ensure!(removed.elapsed() < Duration::from_secs(1), "not back");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            ensure!(before.links == plane.report.borrow().links, "a link was hooked anew");
            Ok(())
        })
        .await
    })
}

#[test]
fn links_come_and_go_and_move_into_bridges() -> Result<()> {
    for &method in methods() {
        let node = Node::new()?;
        let peer = node.scope.netns("late")?;
        node.host.block_on(async || {
            let mut plane = Dataplane::open(node.options(method))?;
            plane.node_addresses.send_replace(Some(node_addresses()));
            beside(plane.links, async || {
                report(&mut plane.report, |report| report.links.len() == 3).await?;
                sh(&format!("ip link add late0 type veth peer name eth0 netns {peer}"))?;
                let seen = report(&mut plane.report, |report| link(report, "late0").is_some()).await?;
                let late = link(&seen, "late0").context("late0")?;
                ensure!(late.wanted.role == Role::Pod && late.ingress.len() == 1, "{late:?}");
                sh("ip addr add 10.244.9.1/32 dev late0")?;
                let with = |v4| {
                    move |report: &culvert_dataplane::links::task::Report| {
                        link(report, "late0").is_some_and(|link| link.wanted.source.v4 == Some(v4))
                    }
                };
                report(&mut plane.report, with(Ipv4Addr::new(10, 244, 9, 1))).await?;
                sh("ip addr del 10.244.9.1/32 dev late0")?;
                sh("ip link set late0 master cni0")?;
                report(&mut plane.report, with(Ipv4Addr::new(10, 244, 2, 1))).await?;
                let pin = node.bpffs.join(format!("culvert/v1/links/ingress_{}", late.index));
                ensure!(pin.exists() == (method == Method::Tcx), "{}", pin.display());
                sh("ip link del late0")?;
                report(&mut plane.report, |report| link(report, "late0").is_none()).await?;
                ensure!(!pin.exists(), "the pin of a link that is gone is left");
                Ok(())
            })
            .await
        })?;
    }
    Ok(())
}

#[test]
fn hooks_of_links_that_went_while_no_agent_ran_are_pruned() -> Result<()> {
    if !has_tcx()? {
        return Ok(());
    }
    let node = Node::new()?;
    let pin = node.bpffs.join(format!("culvert/v1/links/ingress_{}", node.index("pod0")?));
    for links in [3, 2] {
        node.host.block_on(async || {
            let mut plane = Dataplane::open(node.options(Method::Tcx))?;
            plane.node_addresses.send_replace(Some(node_addresses()));
            beside(plane.links, async || report(&mut plane.report, |report| report.links.len() == links).await).await
        })?;
        ensure!(pin.exists() == (links == 3), "{links} links: {}", pin.display());
        node.host.sh(if links == 3 { "ip link del pod0" } else { "true" })?;
    }
    Ok(())
}

#[test]
fn another_method_leaves_no_hooks_of_the_first() -> Result<()> {
    if !has_tcx()? {
        return Ok(());
    }
    let node = Node::new()?;
    node.host.block_on(async || {
        for method in [Method::Tcx, Method::Clsact, Method::Tcx] {
            let mut plane = Dataplane::open(node.options(method))?;
            plane.node_addresses.send_replace(Some(node_addresses()));
            beside(plane.links, async || report(&mut plane.report, |report| report.links.len() == 3).await).await?;
            for (other, wanted) in [(Method::Tcx, method == Method::Tcx), (Method::Clsact, method == Method::Clsact)] {
                ensure!(hooked("up0", other)? == wanted, "{other:?} with {method:?}");
            }
        }
        Ok(())
    })
}

/// Notifications that did not fit into the sockets of the caller's namespace.
fn lost_notifications() -> Result<u64> {
    let sockets = sh("cat /proc/net/netlink")?;
    // sk, Eth, Pid, Groups, Rmem, Wmem, Dump, Locks, Drops, Inode
    let drops = sockets.lines().skip(1).filter_map(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok());
    Ok(drops.sum())
}

#[test]
fn a_link_whose_notification_is_lost_is_hooked_all_the_same() -> Result<()> {
    const ROUNDS: u32 = 40;
    for &method in methods() {
        let node = Node::new()?;
        let pod = node.scope.netns("late")?;
        node.host.block_on(async || {
            let mut plane = Dataplane::open(node.options(method))?;
            plane.node_addresses.send_replace(Some(node_addresses()));
            beside(plane.links, async || {
                report(&mut plane.report, |report| report.links.len() == 3).await?;
                // Nobody listens while this thread works. Notifications about queues, none of which is a reason to look
                // at the links, fill the room; the one about the new link finds none.
                sh("tc qdisc add dev lo root pfifo limit 1")?;
                for round in 0..ROUNDS {
                    let line = |n: u32| format!("qdisc change dev lo root pfifo limit {}\n", round * 1_000 + n + 2);
                    feed(&mut split("tc -batch -"), &(0..1_000).map(line).collect::<String>())?;
                    if lost_notifications()? > 0 {
                        break;
                    }
                }
                ensure!(lost_notifications()? > 0, "{method:?}: there was room for everything");
                sh(&format!("ip link add pod2 type veth peer name eth0 netns {pod}"))?;
                let report = report(&mut plane.report, |report| link(report, "pod2").is_some()).await?;
                let programs = link(&report, "pod2").map(|link| (link.ingress.len(), link.egress.len()));
                ensure!(programs == Some((1, 1)), "{method:?}: {report:?}");
                Ok(())
            })
            .await
        })?;
    }
    Ok(())
}

#[test]
fn foreign_filters_and_their_qdisc_stay() -> Result<()> {
    let node = Node::new()?;
    node.host.block_on(async || {
        sh("tc qdisc add dev up0 clsact")?;
        // A classic filter that takes every packet and says nothing of it.
        let filter = "filter add dev up0 ingress prio 1 handle 1 bpf bytecode".split(' ');
        run(Command::new("tc").args(filter).args(["1,6 0 0 0,", "flowid", "1:1"]))?;
        for &method in methods() {
            let mut plane = Dataplane::open(node.options(method))?;
            plane.node_addresses.send_replace(Some(node_addresses()));
            beside(plane.links, async || report(&mut plane.report, |report| report.links.len() == 3).await).await?;
            ensure!(hooked("up0", method)?, "{method:?}");
            ensure!(cleanup(&node.bpffs).is_err(), "an agent holds the lock");
            drop(plane.lock);
            cleanup(&node.bpffs)?;
            let filters = sh("tc filter show dev up0 ingress")?;
            ensure!(filters.contains("bytecode") && !filters.contains("culvert"), "{method:?}: {filters}");
        }
        Ok(())
    })
}

#[test]
fn foreign_programs_stay_on_the_side_of_the_stack() -> Result<()> {
    if !has_tcx()? {
        return Ok(());
    }
    let node = Node::new()?;
    // Another project, played by an agent with pins of its own.
    let foreign = Options { bpffs: node.scope.bpffs("foreign")?, ..node.options(Method::Tcx) };
    node.host.block_on(async || {
        let open = async |options: Options| {
            let mut plane = Dataplane::open(options)?;
            plane.node_addresses.send_replace(Some(node_addresses()));
            beside(plane.links, async || report(&mut plane.report, |report| report.links.len() == 3).await).await
        };
        let theirs = open(foreign).await?;
        let both = open(node.options(Method::Tcx)).await?;
        for (theirs, both) in theirs.links.iter().zip(&both.links) {
            let ([ingress], [egress]) = (&theirs.ingress[..], &theirs.egress[..]) else { bail!("{theirs:?}") };
            ensure!(both.ingress.len() == 2 && both.ingress[1] == *ingress, "{both:?} beside {theirs:?}");
            ensure!(both.egress.len() == 2 && both.egress[0] == *egress, "{both:?} beside {theirs:?}");
        }
        cleanup(&node.bpffs)?;
        let left = SchedClassifier::query_tcx("up0", TcAttachType::Ingress)?.1.len();
        ensure!(left == 1, "{left} programs are left beside {theirs:?}");
        Ok(())
    })
}

/// Whether a program of ours runs at the ingress of a link of the caller's namespace.
fn hooked(link: &str, method: Method) -> Result<bool> {
    Ok(match method {
        Method::Tcx => !SchedClassifier::query_tcx(link, TcAttachType::Ingress)?.1.is_empty(),
        Method::Clsact => sh(&format!("tc filter show dev {link} ingress"))?.contains("culvert/node_ingress"),
    })
}
