//! Living with an operator and with other projects: broken files, hooks that somebody removes, programs beside ours, two agents
//! on a node, pods that come and go, and leaving without a trace.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_tests::agent::{Agent, Options, SocketMode};
use culvert_tests::manifests::Service;
use culvert_tests::matrix::PORT;
use culvert_tests::place::{Family, Place};
use culvert_tests::process::eventually;
use culvert_tests::shell::sh;
use culvert_tests::stage::{Scenery, Stage, answered, everywhere};
use culvert_tests::topology::{PodLinks, cluster_ip, external_ip};
use culvert_tests::traffic::{Ask, Server};
use serde_json::Value;

/// A Service with one backend on each node, and agents in the mode in which every hook is on the way.
fn stage() -> Result<Stage> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let service = web(&scenery.cast.a, &scenery.cast.c);
    scenery.start(&Options::new(SocketMode::Host)?, [&service])
}

fn web(a: &Place, c: &Place) -> Service {
    everywhere("web", 1).ready("n1", a).ready("n2", c)
}

/// Outside, from a pod and from the host: each must be answered.
fn works(stage: &Stage) -> Result<()> {
    for family in Family::BOTH {
        let lb = external_ip(family, 101);
        let cluster = cluster_ip(family, 1);
        for (from, to) in [(&stage.cluster.lab.client, lb), (&stage.cast.p, cluster), (&stage.cast.n1, cluster)] {
            for ask in [Ask::tcp((to, PORT)), Ask::udp((to, PORT))] {
                answered(&from.ask(&ask)?).with_context(|| format!("{} -> {to}", from.name()))?;
            }
        }
    }
    Ok(())
}

fn answers(from: &Place, to: IpAddr) -> Result<bool> {
    Ok(from.ask(&Ask::tcp((to, PORT)).patience(Duration::from_millis(50)))?.answer().is_some())
}

#[test]
fn a_broken_file_keeps_its_last_good_state() -> Result<()> {
    let mut stage = stage()?;
    works(&stage)?;
    let good = std::fs::read_to_string(stage.cluster.lab.manifests.dir().join("web.yaml"))?;
    for (broken, words) in [
        (good.replace("kind: Service\n", "kind: Service\nbad: [\n"), vec!["web.yaml"]),
        (good.replace("port: 80\n", "port: 800000\n"), vec!["web.yaml", "port"]),
    ] {
        ensure!(broken != good, "the file has another form than this test knows:\n{good}");
        stage.cluster.lab.manifests.write("web", &broken)?;
        // Something else changes meanwhile, and takes effect.
        stage.cluster.lab.manifests.apply(&everywhere("other", 2).ready("n1", &stage.cast.a))?;
        let other = cluster_ip(Family::V4, 2);
        eventually("the other file is in force", Duration::from_secs(5), || {
            Ok(answers(&stage.cast.p, other)?.then_some(()))
        })?;
        works(&stage)?;
        let agent = &stage.cluster.agents[0];
        eventually("the broken file is reported by name, line and field", Duration::from_secs(5), || {
            let errors = agent.status()?["sources"][0]["errors"].to_string();
            ensure!(words.iter().all(|word| errors.contains(word)), "{errors}");
            Ok(Some(()))
        })?;
        stage.cluster.lab.manifests.remove("other")?;
        stage.cluster.lab.manifests.write("web", &good)?;
        stage.cluster.settle()?;
        works(&stage)?;
    }
    Ok(())
}

/// The ids of the tcx links in a node's namespace, on links whose name passes.
fn tcx_links(node: &Place, device: impl Fn(&str) -> bool) -> Result<Vec<u64>> {
    let links: Value = serde_json::from_str(&node.sh("bpftool --json link show")?)?;
    let links = links.as_array().cloned().unwrap_or_default();
    let here = |link: &Value| link["type"] == "tcx" && link["devname"].as_str().is_some_and(&device);
    Ok(links.iter().filter(|link| here(link)).filter_map(|link| link["id"].as_u64()).collect())
}

#[test]
fn a_hook_that_somebody_removes_is_back_within_a_second() -> Result<()> {
    let stage = stage()?;
    works(&stage)?;
    let (n1, client, p) = (&stage.cast.n1, &stage.cluster.lab.client, &stage.cast.p);
    for (device, from, to) in [("eth0", client, external_ip(Family::V4, 101)), ("veth-p", p, cluster_ip(Family::V4, 1))]
    {
        let links = tcx_links(n1, |name| name == device)?;
        if links.is_empty() {
            // Before 6.6: clsact.
            n1.sh(&format!("tc qdisc delete dev {device} clsact"))?;
        }
        for id in links {
            n1.sh(&format!("bpftool link detach id {id}"))?;
        }
        let start = Instant::now();
        ensure!(!answers(from, to)?, "{device}: it answers without our hooks");
        eventually(&format!("{device} is hooked again"), Duration::from_secs(1), || {
            Ok(answers(from, to)?.then_some(()))
        })?;
        println!("{device}: back after {:?}", start.elapsed());
        works(&stage)?;
    }
    Ok(())
}

#[test]
fn foreign_programs_stay_where_they_are() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let n1 = scenery.cast.n1.clone();
    // Another project's classifiers: one that counts everything, one that drops a port.
    for device in ["eth0", "veth-a", "veth-p"] {
        n1.sh(&format!("tc qdisc add dev {device} clsact"))?;
        for direction in ["ingress", "egress"] {
            n1.sh(&format!("tc filter add dev {device} {direction} protocol all pref 7 matchall action pass"))?;
            n1.sh(&format!(
                "tc filter add dev {device} {direction} protocol ip pref 5 flower ip_proto udp dst_port 9999 action drop"
            ))?;
        }
    }
    let filters = |direction: &str| -> Result<String> {
        ["eth0", "veth-a", "veth-p"]
            .iter()
            .map(|device| n1.sh(&format!("tc filter show dev {device} {direction}")))
            .collect()
    };
    let foreign = |text: &str| text.matches("matchall").count().min(6) + text.matches("dst_port 9999").count();
    let before = [filters("ingress")?, filters("egress")?].map(|text| foreign(&text));
    ensure!(before.iter().all(|&count| count > 0));

    let service = web(&scenery.cast.a, &scenery.cast.c).port("UDP", 9999, 8080);
    let mut stage = scenery.start(&Options::new(SocketMode::Host)?, [&service])?;
    works(&stage)?;
    let same = || -> Result<()> {
        let now = [filters("ingress")?, filters("egress")?].map(|text| foreign(&text));
        ensure!(now == before, "{now:?} instead of {before:?}");
        Ok(())
    };
    same()?;
    let counted = n1.sh("tc -s filter show dev veth-a egress")?;
    ensure!(counted.contains("matchall"), "{counted}");
    stage.cluster.agents[0].kill()?;
    stage.cluster.agents[0].restart(None)?;
    stage.cluster.settle()?;
    works(&stage)?;
    same()?;
    stage.cluster.agents[0].terminate()?;
    stage.cluster.agents[0].cleanup()?;
    same()
}

#[test]
fn a_second_agent_waits_for_the_first() -> Result<()> {
    let mut stage = stage()?;
    let options = Options::new(SocketMode::Host)?;
    let mut second = Agent::start_named(&stage.cluster.lab, 0, &options, "second")?;
    // It has said that it waits, and goes on waiting while the first one works.
    eventually("the second agent says that it waits", Duration::from_secs(5), || {
        ensure!(second.alive(), "it ended: {}", second.log());
        Ok(second.log().contains("wait").then_some(()))
    })?;
    ensure!(second.status().is_err(), "two agents are ready");
    works(&stage)?;
    stage.cluster.agents[0].kill()?;
    second.ready()?;
    works(&stage)?;
    let moved = everywhere("web", 1).ready("n2", &stage.cast.c);
    stage.cluster.lab.manifests.apply(&moved)?;
    second.settle()?;
    let client = &stage.cluster.lab.client;
    ensure!(answered(&client.ask(&Ask::tcp((external_ip(Family::V4, 101), PORT)))?)? == "c");
    Ok(())
}

/// What the machine shows of programs in a node's namespace, cgroup and bpffs.
fn traces(stage: &Stage) -> Result<[String; 3]> {
    let node = &stage.cluster.lab.nodes[0];
    let hooks: Value = serde_json::from_str(&node.host.sh("bpftool --json net show")?)?;
    let hooks = hooks.get(0).and_then(|net| net.get("tc")).map(Value::to_string).unwrap_or_default();
    let cgroup = sh(&format!("bpftool --json cgroup show {}", node.host.cgroup().display()))?;
    let pins = sh(&format!("find {} -mindepth 1", node.bpffs.display()))?;
    let links = tcx_links(&node.host, |_| true)?;
    Ok([format!("{hooks} {links:?}"), cgroup.trim().to_owned(), pins])
}

#[test]
fn cleanup_leaves_no_trace() -> Result<()> {
    let mut stage = stage()?;
    works(&stage)?;
    let full = traces(&stage)?;
    ensure!(full[1] != "[]" && !full[2].is_empty(), "this test does not see what is there: {full:?}");
    for ended in ["terminated", "killed"] {
        match ended {
            "terminated" => drop(stage.cluster.agents[0].terminate()?),
            _ => stage.cluster.agents[0].kill()?,
        }
        // Nothing is detached when an agent ends.
        works(&stage)?;
        stage.cluster.agents[0].cleanup()?;
        let left = traces(&stage)?;
        let expected = ["[] []", "[]", ""].map(str::to_owned);
        ensure!(left == expected, "{ended}: {left:?}");
        ensure!(!answers(&stage.cast.p, cluster_ip(Family::V4, 1))?);
        // And again from nothing.
        stage.cluster.agents[0].restart(None)?;
        stage.cluster.settle()?;
        works(&stage)?;
    }
    Ok(())
}

#[test]
fn pods_come_and_go() -> Result<()> {
    for links in [PodLinks::Routed, PodLinks::Bridged] {
        let scenery = Scenery::new(links)?;
        let service = web(&scenery.cast.a, &scenery.cast.c);
        let mut stage = scenery.start(&Options::new(SocketMode::Host)?, [&service])?;
        let late = stage.cluster.lab.pod(0, "late")?;
        let to = cluster_ip(Family::V4, 1);
        eventually("a pod born later is served", Duration::from_secs(2), || Ok(answers(&late, to)?.then_some(())))?;
        let server = Server::echo(&late, culvert_tests::matrix::TARGET)?;
        stage.cluster.apply([&everywhere("web", 1).ready("n1", &late)])?;
        for family in Family::BOTH {
            let to = external_ip(family, 101);
            let outcome = stage.cluster.lab.client.ask(&Ask::tcp((to, PORT)))?;
            ensure!(outcome.server() == Some("late"), "{links:?} {outcome}");
        }
        drop(server);
        stage.cluster.lab.unplug(0, &late)?;
        stage.cluster.apply([&service])?;
        works(&stage)?;
        // A restart finds nothing strange in the pins of a link that is gone.
        stage.cluster.agents[0].kill()?;
        stage.cluster.agents[0].restart(None)?;
        stage.cluster.settle()?;
        works(&stage)?;
    }
    Ok(())
}
