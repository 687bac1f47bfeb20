//! Several nodes that hear each other: addresses move when a node fails, and never have two that answer.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_tests::agent::{Agent, Options, SocketMode};
use culvert_tests::matrix::PORT;
use culvert_tests::neighbors::{near, neighbor, pings};
use culvert_tests::place::{Family, Place};
use culvert_tests::process::{eventually, slowness};
use culvert_tests::segment::Segment;
use culvert_tests::traffic::Load;

/// Probing takes up to 7 seconds, and addresses may wait for a majority before.
const SOON: Duration = Duration::from_mins(1);

/// A network with agents, and some Services.
struct Stage {
    agents: Vec<Agent>,
    segment: Segment,
    services: u8,
}

impl Stage {
    /// Waits until every address answers.
    fn new(nodes: u8, services: u8) -> Result<Self> {
        let segment = Segment::new(nodes)?;
        segment.services(services)?;
        let agents = segment.start_all(&Options::new(SocketMode::All)?)?;
        let stage = Self { agents, segment, services };
        stage.all_answer().with_context(|| stage.logs())?;
        Ok(stage)
    }

    fn router(&self) -> &Place {
        &self.segment.router
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let numbers = 100..100 + self.services;
        numbers.flat_map(|n| Family::BOTH.map(|family| near(family, n)))
    }

    fn all_answer(&self) -> Result<()> {
        self.addresses().try_for_each(|to| {
            eventually(&format!("{to} answers"), SOON, || Ok(pings(self.router(), to)?.then_some(())))
        })
    }

    /// The node (from 0) that the router's neighbour cache points to, after it asked anew.
    fn owner(&self, to: IpAddr) -> Result<Option<usize>> {
        self.router().sh(&format!("ip neigh flush to {to} dev eth0"))?;
        self.segment.owner(to)
    }

    fn owners(&self) -> Result<Vec<Option<usize>>> {
        self.addresses().map(|to| self.owner(to)).collect()
    }

    /// Waits until all addresses answer, none of them from these nodes.
    fn elsewhere(&self, than: &[usize]) -> Result<Duration> {
        let start = Instant::now();
        eventually("others answer for all addresses", SOON, || {
            let owners = self.owners()?;
            Ok(owners.iter().all(|owner| owner.is_some_and(|owner| !than.contains(&owner))).then_some(()))
        })
        .with_context(|| self.logs())?;
        Ok(start.elapsed())
    }

    /// Waits until nobody answers for any address, as seen from a place on the network.
    fn silent(&self, from: &Place) -> Result<()> {
        eventually("nobody answers", SOON, || {
            for to in self.addresses() {
                from.sh(&format!("ip neigh flush to {to} dev eth0"))?;
                if pings(from, to)? {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .with_context(|| self.logs())
    }

    fn logs(&self) -> String {
        let log = |agent: &Agent| {
            let said = agent.cli_json("l2").map_or_else(|error| format!("{error:#}"), |said| format!("{said:#}"));
            format!("{}:\n{}\n{said}", agent.node(), agent.log())
        };
        self.agents.iter().map(log).collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn of_three_nodes_each_has_its_share_and_one_that_is_off_loses_it() -> Result<()> {
    let stage = Stage::new(3, 3)?;
    let count = |owners: &[Option<usize>], node| owners.iter().filter(|owner| **owner == Some(node)).count();
    let before = stage.owners()?;
    ensure!((0..3).all(|node| count(&before, node) == 2), "{before:?}");
    // To ARP, one answers.
    for to in stage.addresses().filter(IpAddr::is_ipv4) {
        let answering = stage.segment.answering(stage.router(), to)?;
        ensure!(answering.len() == 2 && answering[0] == answering[1], "{to}: {answering:?}");
    }
    stage.segment.cut(0, true)?;
    stage.elsewhere(&[0])?;
    let after = stage.owners()?;
    for (before, after) in before.iter().zip(&after) {
        ensure!(*before == Some(0) || before == after, "what was elsewhere has moved: {before:?} -> {after:?}");
    }
    ensure!(count(&after, 1) == 3 && count(&after, 2) == 3, "{after:?}");
    // Back, it waits before it is given anything.
    stage.segment.cut(0, false)?;
    stage.segment.heard(0, &stage.agents)?;
    let back = stage.owners()?;
    ensure!(back == after, "{back:?} instead of {after:?}");
    eventually("n1 has its share again", SOON, || Ok((count(&stage.owners()?, 0) == 2).then_some(())))
        .with_context(|| stage.logs())
}

#[test]
fn agents_that_are_killed_and_started_again_are_not_noticed() -> Result<()> {
    let mut stage = Stage::new(3, 1)?;
    let load = Load { sockets: 0, ..Load::mixed((near(Family::V4, 100), PORT).into(), 500 / slowness()) };
    let load = load.start(&stage.segment.client)?;
    let before = stage.owners()?;
    for node in 0..3 {
        stage.agents[node].kill()?;
        for _ in 0..5 {
            ensure!(stage.owners()? == before, "{before:?} became {:?}", stage.owners()?);
        }
        stage.agents[node].restart(None)?;
        stage.agents[node].ready()?;
        eventually("it takes part again", SOON, || {
            Ok(stage.agents[node].cli_json("l2")?["quorum"].as_bool().filter(|quorum| *quorum))
        })?;
    }
    ensure!(stage.owners()? == before, "{before:?} became {:?}", stage.owners()?);
    let report = load.finish();
    ensure!(report.clean() && report.connects.answered > 0, "{report}\n{}", stage.logs());
    Ok(())
}

#[test]
fn a_node_that_is_drained_hands_over_without_a_loss() -> Result<()> {
    let stage = Stage::new(3, 1)?;
    let to = near(Family::V4, 100);
    let owner = stage.owner(to)?.context("no owner")?;
    let load = Load { sockets: 0, streams: 0, ..Load::mixed((to, PORT).into(), 500 / slowness()) };
    let load = load.start(&stage.segment.client)?;
    stage.agents[owner].cli_json("drain")?;
    stage.elsewhere(&[owner])?;
    ensure!(stage.agents[owner].cli_json("drain --show")?["drained"] == true);
    stage.agents[owner].cli_json("drain --undo")?;
    let report = load.finish();
    ensure!(report.clean() && report.connects.answered > 0, "{report}\n{}", stage.logs());
    Ok(())
}

#[test]
fn where_the_network_is_cut_the_majority_answers() -> Result<()> {
    let stage = Stage::new(3, 3)?;
    stage.segment.part(2, true)?;
    stage.elsewhere(&[2])?;
    stage.silent(&stage.segment.nodes[2].host)?;
    stage.segment.part(2, false)?;
    stage.all_answer()
}

#[test]
fn of_five_nodes_two_alone_are_silent() -> Result<()> {
    let stage = Stage::new(5, 3)?;
    for node in 0..3 {
        stage.segment.cut(node, true)?;
    }
    stage.silent(stage.router())?;
    stage.segment.cut(0, false)?;
    stage.elsewhere(&[1, 2])?;
    Ok(())
}

#[test]
fn of_two_nodes_the_one_that_reaches_the_gateway_answers() -> Result<()> {
    let stage = Stage::new(2, 2)?;
    stage.segment.cut(0, true)?;
    stage.elsewhere(&[0])?;
    stage.segment.cut(0, false)?;
    stage.all_answer()?;
    stage.segment.cut(1, true)?;
    stage.elsewhere(&[1])?;
    Ok(())
}

#[test]
fn one_node_always_answers() -> Result<()> {
    Stage::new(1, 1).map(drop)
}

#[test]
fn five_hundred_addresses_of_a_node_move_at_once() -> Result<()> {
    let segment = Segment::new(2)?;
    let addresses = segment.crowd(500)?;
    let mut stage = Stage { agents: Vec::new(), segment, services: 0 };
    let options = Options::new(SocketMode::All)?;
    stage.agents = stage.segment.start_all(&options)?;
    let all_from = |stage: &Stage, wanted: &dyn Fn(usize, usize) -> bool| -> Result<Option<()>> {
        stage.router().sh("ip neigh flush dev eth0")?;
        // One process for all of them.
        let list = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let line = format!("for a in {list}; do ping -n -c 1 -W 1 $a > /dev/null & done; wait; ip neigh show dev eth0");
        let known = stage.router().run(|| Ok(std::process::Command::new("sh").args(["-c", &line]).output()?.stdout))?;
        let known = String::from_utf8_lossy(&known).into_owned();
        let macs = stage.segment.macs()?;
        let of = |mac: &String| known.lines().filter(|line| line.starts_with("198.18.") && line.contains(mac)).count();
        let [first, second] = [of(&macs[0]), of(&macs[1])];
        ensure!(wanted(first, second), "{first} and {second} of {}", addresses.len());
        Ok(Some(()))
    };
    eventually("each has its half", SOON, || all_from(&stage, &|first, second| first == 250 && second == 250))
        .with_context(|| stage.logs())?;
    stage.segment.cut(0, true)?;
    eventually("the other has all", SOON, || all_from(&stage, &|_, second| second == 500))
}

#[test]
fn a_link_that_goes_down_takes_its_addresses_elsewhere() -> Result<()> {
    let stage = Stage::new(3, 1)?;
    let owner = stage.owner(near(Family::V4, 100))?.context("no owner")?;
    stage.segment.fabric.ip_batch(&format!("link set n{} down\n", owner + 1))?;
    stage.elsewhere(&[owner])?;
    stage.segment.fabric.ip_batch(&format!("link set n{} up\n", owner + 1))?;
    stage.all_answer()
}

/// Makes a neighbour believe no word that it has not asked for, and ask again after some seconds. (Left alone, Linux takes up to
/// 45 s until it doubts what it knows, 5 until it asks, and 3 until it asks everybody.)
fn believes_nobody(place: &Place) -> Result<()> {
    for setting in ["ipv4/conf/eth0/drop_gratuitous_arp", "ipv6/conf/eth0/drop_unsolicited_na"] {
        place.sysctl(setting, "1")?;
    }
    for family in ["ipv4", "ipv6"] {
        place.sysctl(&format!("{family}/neigh/eth0/base_reachable_time_ms"), "2000")?;
        place.sysctl(&format!("{family}/neigh/eth0/delay_first_probe_time"), "1")?;
    }
    Ok(())
}

/// Such a neighbour learns of a new owner only when the old one answers no more. The old one lives, so it serves what still comes
/// to it.
#[test]
fn a_neighbour_that_believes_nobody_loses_nothing_by_a_drain() -> Result<()> {
    let stage = Stage::new(3, 1)?;
    believes_nobody(stage.router())?;
    let macs = stage.segment.macs()?;
    for to in Family::BOTH.map(|family| near(family, 100)) {
        let owner = stage.owner(to)?.context("no owner")?;
        // The sockets of the client confirm even the router's entries, for all is one kernel here: while connections are
        // answered, the router does not come to doubt.
        let load = Load { sockets: 0, streams: 0, ..Load::mixed((to, PORT).into(), 500 / slowness()) };
        let load = load.start(&stage.segment.client)?;
        stage.agents[owner].cli_json("drain")?;
        eventually("another node has it", SOON, || {
            let said = stage.agents[(owner + 1) % 3].layer2(to)?;
            Ok((said["node"] != stage.agents[owner].node()).then_some(()))
        })?;
        std::thread::sleep(Duration::from_secs(2));
        let known = neighbor(stage.router(), "eth0", to)?;
        ensure!(known.as_ref() == Some(&macs[owner]), "the router has heard of it: {known:?}, not {}", macs[owner]);
        let report = load.finish();
        ensure!(report.clean() && report.connects.answered > 0, "{to}: {report}\n{}", stage.logs());
        eventually("the router has found the new one", SOON, || {
            pings(stage.router(), to)?;
            Ok(neighbor(stage.router(), "eth0", to)?.filter(|mac| *mac != macs[owner]))
        })
        .with_context(|| stage.logs())?;
        ensure!(pings(stage.router(), to)?, "{to} has no answer");
        stage.agents[owner].cli_json("drain --undo")?;
    }
    Ok(())
}

#[test]
fn a_neighbour_that_believes_nobody_finds_the_successor_by_itself() -> Result<()> {
    let stage = Stage::new(3, 1)?;
    believes_nobody(stage.router())?;
    for to in stage.addresses() {
        let owner = stage.owner(to)?.context("no owner")?;
        stage.segment.cut(owner, true)?;
        eventually(&format!("{to} answers"), SOON, || Ok(pings(stage.router(), to)?.then_some(())))
            .with_context(|| stage.logs())?;
        ensure!(stage.segment.owner(to)? != Some(owner), "it does not answer");
        stage.segment.cut(owner, false)?;
        stage.segment.heard(owner, &stage.agents)?;
    }
    Ok(())
}
