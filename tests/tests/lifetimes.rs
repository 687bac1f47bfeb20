//! How long things last: affinity, flows whose backend goes, Services that go, addresses that are not ours.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_tests::agent::{Options, SocketMode};
use culvert_tests::manifests::Service;
use culvert_tests::matrix::{PORT, TARGET, node_port};
use culvert_tests::place::{Family, Place};
use culvert_tests::process::eventually;
use culvert_tests::stage::{Scenery, Stage, answered, everywhere, session};
use culvert_tests::topology::{PodLinks, cluster_ip, external_ip};
use culvert_tests::traffic::{Ask, Outcome, Protocol, Server};

const MODES: [SocketMode; 2] = [SocketMode::All, SocketMode::Host];
const SHORT: Duration = Duration::from_millis(400);

fn ask(from: &Place, to: (IpAddr, u16)) -> Result<String> {
    answered(&from.ask(&Ask::tcp(to))?).with_context(|| format!("{} -> {to:?}", from.name()))
}

#[test]
fn affinity_holds_by_client_and_expires() -> Result<()> {
    const SECONDS: u32 = 3;
    /// Enough Services that a new choice is seen: all of them stay by chance once in 4,000 times for each family, mode and try.
    const SERVICES: u8 = 12;
    for mode in MODES {
        let scenery = Scenery::new(PodLinks::Routed)?;
        let service = |n: u8| {
            everywhere(&format!("sticky-{n}"), n)
                .affinity(SECONDS)
                .ready("n1", &scenery.cast.a)
                .ready("n2", &scenery.cast.c)
        };
        let services: Vec<_> = (1..=SERVICES).map(service).collect();
        let stage = scenery.start(&Options::new(mode)?, &services)?;
        let p = &stage.cast.p;
        for family in Family::BOTH {
            let choose = || (1..=SERVICES).map(|n| ask(p, (cluster_ip(family, n), PORT))).collect::<Result<Vec<_>>>();
            let first = choose()?;
            ensure!(
                first.iter().collect::<BTreeSet<_>>().len() == 2,
                "{mode:?} {family:?}: one backend took all: {first:?}"
            );
            // Used again and again, affinity lasts longer than its limit.
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(u64::from(SECONDS) + 2) {
                ensure!(choose()? == first, "{mode:?} {family:?}: moved after {:?}", start.elapsed());
                std::thread::sleep(Duration::from_millis(500));
            }
            // Left alone, it ends. (The wait is what is tested.)
            std::thread::sleep(Duration::from_secs(u64::from(SECONDS) + 2));
            let later = choose()?;
            ensure!(later != first, "{mode:?} {family:?}: all {SERVICES} clients were kept after the limit");
        }
        // Outside, the client's address counts: one backend for all its ports, NodePort and address alike.
        for family in Family::BOTH {
            let client = &stage.cluster.lab.client;
            let frontends = [(external_ip(family, 101), PORT), (stage.cast.n1.ip(family), node_port(1))];
            let first = ask(client, frontends[0])?;
            for to in frontends.into_iter().cycle().take(20) {
                ensure!(ask(client, to)? == first, "{mode:?} {to:?}");
            }
            let choose = || {
                (1..=SERVICES)
                    .map(|n| ask(client, (stage.cast.n1.ip(family), node_port(n))))
                    .collect::<Result<Vec<_>>>()
            };
            let first = choose()?;
            // Its time over, the address is not bound to the backend that its hash says. (The wait is what is tested.)
            std::thread::sleep(Duration::from_secs(u64::from(SECONDS) + 2));
            ensure!(choose()? != first, "{mode:?} {family:?}: all {SERVICES} Services kept a client from outside");
        }
    }
    Ok(())
}

/// The Service `dns` with its endpoints at the pods that are named.
fn dns(pods: &[(&str, &Place)]) -> Service {
    pods.iter().fold(everywhere("dns", 1), |service, (node, pod)| service.ready(node, pod))
}

/// Who asks the Service, and where.
fn askers(stage: &Stage, family: Family) -> Vec<(&Place, Ask)> {
    vec![
        (&stage.cluster.lab.client, Ask::udp((external_ip(family, 101), PORT))),
        (&stage.cluster.lab.client, Ask::udp((stage.cast.n1.ip(family), node_port(1)))),
        (&stage.cast.p, Ask::udp((cluster_ip(family, 1), PORT))),
        (&stage.cast.n1, Ask::udp((cluster_ip(family, 1), PORT))),
    ]
}

#[test]
fn udp_follows_its_backend_away_and_back() -> Result<()> {
    for mode in MODES {
        let mut stage = Stage::new(mode, [])?;
        let cast = stage.cast.clone();
        let (a, c) = (("n1", &cast.a), ("n2", &cast.c));
        for family in Family::BOTH {
            stage.cluster.apply([&dns(&[a])])?;
            let mut sessions = Vec::new();
            for (from, ask) in askers(&stage, family) {
                for ask in [ask.clone(), ask.unconnected()] {
                    let mut session = session(from, &ask.patience(SHORT))?;
                    ensure!(answered(&session.exchange())? == "a");
                    sessions.push((from.name().to_owned(), session));
                }
            }
            // The backend ends, and serves until then: it keeps these sockets, and new ones get the other.
            stage.cluster.apply([&everywhere("dns", 1).terminating("n1", &cast.a).ready("n2", &cast.c)])?;
            for (from, session) in &mut sessions {
                let outcome = session.exchange();
                ensure!(outcome.server() == Some("a"), "{mode:?} {family:?} from {from}: {outcome} while a terminates");
            }
            for (from, ask) in askers(&stage, family) {
                let server = answered(&from.ask(&ask)?)?;
                ensure!(server == "c", "{mode:?} {family:?} new from {}: {server} while a terminates", from.name());
            }
            // The backend moves: the same sockets reach the new one. A connected one may be told once.
            stage.cluster.apply([&dns(&[c])])?;
            for (from, session) in &mut sessions {
                let outcome = match session.exchange() {
                    Outcome::Refused => session.exchange(),
                    outcome => outcome,
                };
                // A socket that was connected to the old backend in the kernel's view asks anew.
                let moved = answered(&outcome).is_ok_and(|server| server == "c");
                let refused = outcome == Outcome::Refused;
                ensure!(moved || refused, "{mode:?} {family:?} from {from}: {outcome} instead of c");
            }
            // None is left: refused, as soon as a socket can be told, and never a word from the one that is gone.
            stage.cluster.apply([&dns(&[])])?;
            for (from, session) in &mut sessions {
                let outcome = session.exchange();
                ensure!(
                    matches!(outcome, Outcome::Refused | Outcome::Silence),
                    "{mode:?} {family:?} from {from}: {outcome} without endpoints"
                );
            }
            for (from, ask) in askers(&stage, family) {
                let outcome = from.ask(&ask)?;
                ensure!(outcome == Outcome::Refused, "{mode:?} {family:?} from {}: {outcome}", from.name());
            }
            // It comes back: the packet hooks serve the old sockets, and every new one works.
            stage.cluster.apply([&dns(&[a])])?;
            for (from, ask) in askers(&stage, family) {
                ensure!(answered(&from.ask(&ask)?)? == "a", "{mode:?} {family:?} from {}", from.name());
            }
            for (from, session) in sessions.iter_mut().filter(|(from, _)| from == "client") {
                let outcome = match session.exchange() {
                    Outcome::Refused => session.exchange(),
                    outcome => outcome,
                };
                ensure!(answered(&outcome)? == "a", "{mode:?} {family:?} from {from}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_stream_outlives_its_endpoint_and_its_service() -> Result<()> {
    for mode in MODES {
        let mut stage = Stage::new(mode, [])?;
        let cast = stage.cast.clone();
        let service = everywhere("dns", 1).ready("n1", &cast.a).ready("n2", &cast.c);
        for family in Family::BOTH {
            stage.cluster.apply([&service])?;
            let mut sessions = Vec::new();
            for (from, ask) in askers(&stage, family) {
                for _ in 0..4 {
                    let mut session = session(from, &Ask::tcp(ask.to))?;
                    let server = answered(&session.exchange())?;
                    sessions.push((from.name().to_owned(), server, session));
                }
            }
            let check = |sessions: &mut Vec<(String, String, culvert_tests::traffic::Session)>, when: &str| {
                sessions.iter_mut().try_for_each(|(from, server, session)| {
                    let outcome = session.exchange();
                    ensure!(outcome.server() == Some(server), "{mode:?} {family:?} {from}, {when}: {outcome}");
                    Ok(())
                })
            };
            check(&mut sessions, "as it was")?;
            stage.cluster.apply([&everywhere("dns", 1).ready("n2", &cast.c)])?;
            check(&mut sessions, "endpoint a removed")?;
            stage.cluster.apply([&service.clone().no_endpoints()])?;
            check(&mut sessions, "no endpoints")?;
            for (from, ask) in askers(&stage, family) {
                let outcome = from.ask(&Ask::tcp(ask.to))?;
                ensure!(outcome == Outcome::Refused, "{mode:?} {family:?} new from {}: {outcome}", from.name());
            }
            stage.cluster.lab.manifests.remove("dns")?;
            stage.cluster.settle()?;
            check(&mut sessions, "Service deleted")?;
            for (from, ask) in askers(&stage, family) {
                let outcome = from.ask(&Ask::tcp(ask.to).patience(SHORT))?;
                ensure!(outcome.answer().is_none(), "{mode:?} {family:?} from {}: {outcome}", from.name());
            }
        }
    }
    Ok(())
}

/// Listens where SSH would, and where nothing of ours is.
const SSH: u16 = 22;

#[test]
fn a_nodes_own_address_stays_its_own() -> Result<()> {
    for mode in MODES {
        let scenery = Scenery::new(PodLinks::Routed)?;
        let [v4, v6] = Family::BOTH.map(|family| scenery.cast.n1.ip(family));
        let greedy = everywhere("greedy", 1)
            .with("externalIPs", serde_json::json!([v4, v6]))
            .ingress(v4)
            .ingress(v6)
            .ready("n2", &scenery.cast.c);
        let ssh = Server::start(&scenery.cast.n1, &[(Protocol::Tcp, SSH), (Protocol::Udp, SSH)])?;
        let mut options = Options::new(mode)?;
        options.arguments.extend(["--allow-external-ips", "198.51.100.0/24,2001:db8:2::/64"].map(str::to_owned));
        let stage = scenery.start(&options, [&greedy])?;
        let lab = &stage.cluster.lab;
        for family in Family::BOTH {
            let node = lab.nodes[0].host.ip(family);
            for from in [&lab.client, &stage.cast.n2, &stage.cast.p, &stage.cast.q, &stage.cast.n1] {
                for ask in [Ask::tcp((node, SSH)), Ask::udp((node, SSH)), Ask::tcp((node, TARGET))] {
                    let outcome = from.ask(&ask)?;
                    ensure!(outcome.server() == Some("n1"), "{mode:?} {} -> {}: {outcome}", from.name(), ask.to);
                }
                // Nobody listens there: the node's own word, not ours.
                let outcome = from.ask(&Ask::tcp((node, 23)))?;
                ensure!(outcome == Outcome::Refused, "{mode:?} {} -> {node} 23: {outcome}", from.name());
                // What the Service claims there is served all the same.
                let outcome = from.ask(&Ask::tcp((node, PORT)))?;
                ensure!(outcome.server() == Some("c"), "{mode:?} {} -> {node} {PORT}: {outcome}", from.name());
            }
        }
        drop(ssh);
    }
    Ok(())
}

#[test]
fn a_cluster_ip_on_a_link_of_the_node_is_left_alone() -> Result<()> {
    for mode in MODES {
        let scenery = Scenery::new(PodLinks::Routed)?;
        let service = everywhere("dns", 1).ready("n2", &scenery.cast.c);
        let mut stage = scenery.start(&Options::new(mode)?, [&service])?;
        let n1 = stage.cast.n1.clone();
        for family in Family::BOTH {
            let ip = cluster_ip(family, 1);
            let expect = |server: &str| -> Result<()> {
                for from in [&stage.cast.p, &stage.cast.n1] {
                    for ask in [Ask::tcp((ip, PORT)), Ask::udp((ip, PORT))] {
                        let what = format!("{mode:?} {} -> {ip} answered by {server}", from.name());
                        eventually(&what, Duration::from_secs(3), || {
                            let outcome = from.ask(&ask)?;
                            ensure!(outcome.server() == Some(server), "{outcome}");
                            Ok(Some(()))
                        })?;
                    }
                }
                ensure!(stage.cast.q.ask(&Ask::tcp((ip, PORT)))?.server() == Some("c"), "n2 is not concerned");
                Ok(())
            };
            expect("c")?;
            // As NodeLocal DNSCache does: the node carries the address and listens there.
            let bits = if family == Family::V4 { 32 } else { 128 };
            n1.sh(&format!("ip address add {ip}/{bits} dev lo"))?;
            // The kernel takes a moment until an IPv6 address may be bound to.
            let ports = [(Protocol::Tcp, PORT), (Protocol::Udp, PORT)];
            let local = eventually("a server there", Duration::from_secs(2), || {
                Server::start_at(&n1, &[ip], &ports).map(Some)
            })?;
            expect("n1")?;
            drop(local);
            n1.sh(&format!("ip address delete {ip}/{bits} dev lo"))?;
            expect("c")?;
        }
        stage.cluster.settle()?;
    }
    Ok(())
}

#[test]
fn a_silent_connection_outlives_thousands_that_come_and_go() -> Result<()> {
    /// The fewest rows that the map can have (`culvert_dataplane::limits`); each connection here has three.
    const ROWS: usize = 1_024;
    let scenery = Scenery::new(PodLinks::Routed)?;
    let service = everywhere("web", 1).ready("n2", &scenery.cast.c);
    let mut options = Options::new(SocketMode::Host)?;
    options.flags.push("--limit=flows=1".to_owned());
    let stage = scenery.start(&options, [&service])?;
    let (client, node) = (&stage.cluster.lab.client, &stage.cast.n1);
    for family in Family::BOTH {
        let to = (node.ip(family), node_port(1));
        let mut silent = session(client, &Ask::tcp(to))?;
        ensure!(answered(&silent.exchange())? == "c");
        let cpus = std::thread::available_parallelism()?.get();
        for _ in 0..ROWS * cpus {
            ensure!(ask(client, to)? == "c");
        }
        let outcome = silent.exchange();
        ensure!(outcome.server() == Some("c"), "{family:?}: {outcome}");
    }
    Ok(())
}
