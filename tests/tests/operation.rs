//! Living with an operator and with other projects: broken files, hooks that somebody removes, programs beside ours, two agents
//! on a node, pods that come and go, and leaving without a trace.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use culvert_tests::agent::{Agent, Options, SocketMode};
use culvert_tests::manifests::Service;
use culvert_tests::matrix::PORT;
use culvert_tests::place::{Family, Place};
use culvert_tests::process::eventually;
use culvert_tests::shell::{run, sh, split};
use culvert_tests::stage::{Scenery, Stage, answered, everywhere};
use culvert_tests::topology::{Lab, PodLinks, cluster_ip, external_ip};
use culvert_tests::traffic::{Ask, Outcome, Protocol, Server};
use nix::net::if_::if_nametoindex;

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

/// How many tcx programs hang at a link of a place.
fn tcx_programs(place: &Place, device: &str) -> Result<usize> {
    place.run(|| {
        let count = |hook| SchedClassifier::query_tcx(device, hook).map(|(_, programs)| programs.len());
        // Kernels before 6.6 have none.
        Ok(count(TcAttachType::Ingress).unwrap_or(0) + count(TcAttachType::Egress).unwrap_or(0))
    })
}

/// Takes our programs off a link, as somebody might who thinks that they are in the way.
fn unhook(stage: &Stage, device: &str) -> Result<()> {
    let node = &stage.cluster.lab.nodes[0];
    if tcx_programs(&node.host, device)? == 0 {
        return node.host.sh(&format!("tc qdisc delete dev {device} clsact")).map(drop);
    }
    let index = node.host.run(|| Ok(if_nametoindex(device)?))?;
    for direction in ["ingress", "egress"] {
        let pins = sh(&format!("find {} -name {direction}_{index}", node.bpffs.display()))?;
        let pin = pins.lines().next().with_context(|| format!("{device}: no pin of {direction}"))?;
        sh(&format!("bpftool link detach pinned {pin}"))?;
    }
    Ok(())
}

#[test]
fn a_hook_that_somebody_removes_is_back_within_a_second() -> Result<()> {
    let stage = stage()?;
    works(&stage)?;
    let (client, p) = (&stage.cluster.lab.client, &stage.cast.p);
    for (device, from, to) in [("eth0", client, external_ip(Family::V4, 101)), ("veth-p", p, cluster_ip(Family::V4, 1))]
    {
        unhook(&stage, device)?;
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

/// A port that another project drops.
const FORBIDDEN: u16 = 9999;

/// Another project's classifier at both hooks of a link: it drops datagrams to [`FORBIDDEN`] and lets all else pass.
fn foreign_classifier(node: &Place, device: &str) -> Result<()> {
    let program = sh(&format!("tcpdump -ddd -y EN10MB udp dst port {FORBIDDEN}"))?;
    // The program says how much of a packet to keep. As a classifier with direct action it says 2, which is drop, and 0, pass.
    let whole =
        program.lines().filter_map(|line| line.strip_prefix("6 0 0 ")).find(|keep| *keep != "0").context("no match")?;
    let bytecode = program.trim().replace(&format!("6 0 0 {whole}"), "6 0 0 2").replace('\n', ",");
    node.sh(&format!("tc qdisc add dev {device} clsact"))?;
    for direction in ["ingress", "egress"] {
        let add = format!("tc filter add dev {device} {direction} protocol all pref 7 bpf da bytecode");
        let mut command = split(&add);
        command.arg(&bytecode);
        node.run(|| run(&mut command))?;
    }
    Ok(())
}

#[test]
fn foreign_programs_stay_where_they_are() -> Result<()> {
    let devices = ["eth0", "veth-a", "veth-p"];
    let scenery = Scenery::new(PodLinks::Routed)?;
    let (n1, a) = (scenery.cast.n1.clone(), scenery.cast.a.clone());
    devices.iter().try_for_each(|device| foreign_classifier(&n1, device))?;
    let filters = || -> Result<usize> {
        let show = |device: &&str| {
            ["ingress", "egress"].map(|hook| n1.sh(&format!("tc filter show dev {device} {hook} pref 7")))
        };
        let shown = devices.iter().flat_map(show).collect::<Result<Vec<_>>>()?;
        Ok(shown.iter().filter(|text| text.contains("bytecode")).count())
    };
    let forbidden = Server::start(&a, &[(Protocol::Udp, FORBIDDEN)])?;
    let service = web(&a, &scenery.cast.c);
    let mut stage = scenery.start(&Options::new(SocketMode::Host)?, [&service])?;
    let theirs = |stage: &Stage, when: &str| -> Result<()> {
        ensure!(filters()? == 2 * devices.len(), "{when}: filters are gone");
        let ask = Ask::udp(a.socket(Family::V4, FORBIDDEN)).patience(Duration::from_millis(300));
        let outcome = stage.cluster.lab.client.ask(&ask)?;
        ensure!(outcome == Outcome::Silence, "{when}: the forbidden port: {outcome}");
        Ok(())
    };
    let both = |stage: &Stage, when: &str| works(stage).context(when.to_owned()).and_then(|()| theirs(stage, when));
    both(&stage, "at first")?;
    stage.cluster.agents[0].kill()?;
    stage.cluster.agents[0].restart(None)?;
    stage.cluster.settle()?;
    both(&stage, "after a restart")?;
    stage.cluster.agents[0].terminate()?;
    stage.cluster.agents[0].cleanup()?;
    theirs(&stage, "after cleanup")?;
    drop(forbidden);
    Ok(())
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

#[test]
fn an_agent_that_is_ended_while_it_waits_takes_nothing_of_the_others() -> Result<()> {
    let stage = stage()?;
    let mut second = Agent::start(&stage.cluster.lab, 0, &Options::new(SocketMode::Host)?)?;
    eventually("the second agent says that it waits", Duration::from_secs(5), || {
        ensure!(second.alive(), "it ended: {}", second.log());
        Ok(second.log().contains("waiting").then_some(()))
    })?;
    second.terminate()?;
    stage.cluster.agents[0].status().context("the first agent's socket")?;
    works(&stage)
}

/// What the machine shows of programs at the links of n1, in its cgroup and in its bpffs.
fn traces(lab: &Lab) -> Result<Vec<String>> {
    let node = &lab.nodes[0];
    let mut traces = Vec::new();
    for device in ["eth0", "veth-a", "veth-p"] {
        traces.push(format!("{device}: {} tcx programs", tcx_programs(&node.host, device)?));
        traces.push(format!("{device}: {}", node.host.sh(&format!("tc qdisc show dev {device}"))?));
    }
    traces.push(sh(&format!("bpftool cgroup show {}", node.host.cgroup().display()))?);
    let mut pins: Vec<_> =
        sh(&format!("find {} -mindepth 1", node.bpffs.display()))?.lines().map(str::to_owned).collect();
    pins.sort();
    traces.extend(pins);
    Ok(traces)
}

#[test]
fn cleanup_leaves_no_trace() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let empty = traces(&scenery.lab)?;
    let service = web(&scenery.cast.a, &scenery.cast.c);
    let mut stage = scenery.start(&Options::new(SocketMode::Host)?, [&service])?;
    for end in [|agent: &mut Agent| agent.terminate().map(drop), |agent: &mut Agent| agent.kill()] {
        works(&stage)?;
        let full = traces(&stage.cluster.lab)?;
        ensure!(full.len() > empty.len() + 30, "this test does not see what is there: {full:?}");
        end(&mut stage.cluster.agents[0])?;
        // Nothing is detached when an agent ends.
        works(&stage)?;
        let left = traces(&stage.cluster.lab)?;
        ensure!(left == full, "{left:#?} instead of {full:#?}");
        stage.cluster.agents[0].cleanup()?;
        let left = traces(&stage.cluster.lab)?;
        ensure!(left == empty, "{left:#?} instead of {empty:#?}");
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
