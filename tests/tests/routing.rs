//! The harness itself: plain routing between all places, without any agent.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use culvert_tests::place::{Family, Place};
use culvert_tests::scope::Scope;
use culvert_tests::topology::{Lab, PodLinks, Uplink, has_uplink};
use culvert_tests::traffic::load::full_rate;
use culvert_tests::traffic::{Ask, Load, Outcome, Server, Session};

fn asks(target: &Place, family: Family) -> [Ask; 3] {
    let to = target.socket(family, 8080);
    [Ask::tcp(to), Ask::udp(to), Ask::udp(to).unconnected()]
}

#[test]
fn every_place_reaches_every_pod_and_is_seen_with_its_address() -> Result<()> {
    let uplinks =
        Uplink::ALL.into_iter().filter_map(|uplink| has_uplink(uplink).map(|has| has.then_some(uplink)).transpose());
    let labs = uplinks.map(|uplink| Ok((PodLinks::Routed, uplink?))).chain([Ok((PodLinks::Bridged, Uplink::Plain))]);
    for (links, uplink) in labs.collect::<Result<Vec<_>>>()? {
        let mut lab = Lab::with_uplink(links, uplink)?;
        let (a, b, c) = (lab.pod(0, "a")?, lab.pod(0, "b")?, lab.pod(1, "c")?);
        if links == PodLinks::Bridged {
            lab.firewall()?;
        }
        let pods = [&a, &b, &c];
        let servers = pods.map(|pod| Server::echo(pod, 8080));
        let [n1, n2] = [&lab.nodes[0].host, &lab.nodes[1].host];
        for from in [&lab.client, n1, n2, &a, &b, &c] {
            for pod in pods {
                for family in Family::BOTH {
                    for ask in asks(pod, family) {
                        let outcome = from.ask(&ask)?;
                        let what = format!("{links:?} {uplink:?} {} -> {} {ask:?}: {outcome}", from.name(), pod.name());
                        let Some(answer) = outcome.answer() else { anyhow::bail!(what) };
                        ensure!(answer.server == pod.name(), what);
                        // A node speaks to its own pods from its gateway address.
                        let gateway = lab.nodes.iter().any(|node| node.host.name() == from.name());
                        ensure!(gateway || from.is(answer.peer.ip()), what);
                    }
                }
            }
        }
        drop(servers);
        for family in Family::BOTH {
            let to = c.socket(family, 8080);
            ensure!(lab.client.ask(&Ask::tcp(to))? == Outcome::Refused);
            ensure!(lab.client.ask(&Ask::udp(to))? == Outcome::Refused);
        }
    }
    Ok(())
}

#[test]
fn a_session_lives_on_and_large_messages_arrive_whole() -> Result<()> {
    let mut lab = Lab::new(PodLinks::Routed)?;
    let pod = lab.pod(1, "a")?;
    let server = Server::echo(&pod, 8080)?;
    for family in Family::BOTH {
        for ask in asks(&pod, family) {
            let ask = ask.sizes(9_000, 20_000);
            let mut session = Session::open(&lab.client, &ask)?.map_err(|outcome| anyhow::anyhow!("{outcome}"))?;
            for _ in 0..3 {
                let outcome = session.exchange();
                let answer = outcome.answer().ok_or_else(|| anyhow::anyhow!("{ask:?}: {outcome}"))?;
                ensure!((answer.received, answer.size) == (9_000, 20_000), "{answer:?}");
            }
        }
    }
    let mut session =
        Session::open(&lab.client, &Ask::tcp(pod.socket(Family::V4, 8080)))?.map_err(|o| anyhow::anyhow!("{o}"))?;
    ensure!(session.exchange().server() == Some("a"));
    drop(server);
    ensure!(matches!(session.exchange(), Outcome::Closed | Outcome::Reset));
    Ok(())
}

#[test]
fn a_load_is_accounted_for_to_the_last_request() -> Result<()> {
    let mut lab = Lab::new(PodLinks::Routed)?;
    let pod = lab.pod(1, "a")?;
    let server = Server::echo(&pod, 8080)?;
    let load = Load::mixed(pod.socket(Family::V4, 8080), full_rate()).start(&lab.client)?;
    std::thread::sleep(Duration::from_secs(2));
    let report = load.finish();
    println!("{report}");
    ensure!(report.clean() && report.rate() > u64::from(full_rate()) * 9 / 10, "{report}");

    // And it can fail: a link that is away for a while loses datagrams.
    let load = Load::mixed(pod.socket(Family::V4, 8080), full_rate()).start(&lab.client)?;
    std::thread::sleep(Duration::from_millis(300));
    lab.router.sh("ip link set eth1 down")?;
    std::thread::sleep(Duration::from_millis(200));
    lab.router.sh("ip link set eth1 up")?;
    std::thread::sleep(Duration::from_millis(300));
    let report = load.finish();
    println!("{report}");
    ensure!(report.datagrams.lost() > 0, "{report}");
    drop(server);
    Ok(())
}

#[test]
fn a_dropped_lab_leaves_nothing_behind() -> Result<()> {
    let start = Instant::now();
    let mut lab = Lab::new(PodLinks::Bridged)?;
    let pod = lab.pod(0, "a")?;
    println!("built in {:?}", start.elapsed());
    let prefix = lab.prefix().to_owned();
    let dir = lab.dir().to_owned();
    // A program that nobody ends, as one that a panicking test leaves.
    let mut sleeper = pod.start(culvert_tests::shell::split("sleep 1000"))?;
    sleeper.keep();
    let start = Instant::now();
    drop(lab);
    println!("removed in {:?}", start.elapsed());
    ensure!(!dir.exists());
    ensure!(!culvert_tests::shell::sh("ip netns list")?.contains(&prefix));
    ensure!(!std::fs::read_to_string("/proc/mounts")?.contains(&prefix));
    ensure!(!sleeper.alive());
    let _other = Scope::open()?;
    Ok(())
}
