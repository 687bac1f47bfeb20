//! Addresses announced in layer 2: what neighbours on the link and clients behind a router see, with ordinary sockets and
//! tools.

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::agent::{Agent, Options, SocketMode};
use culvert_tests::manifests::Service;
use culvert_tests::matrix::{PORT, TARGET};
use culvert_tests::neighbors::{arping, mac, near, neighbor, pings, pool, ranges};
use culvert_tests::place::{Family, Place};
use culvert_tests::process::{eventually, slowness};
use culvert_tests::shell;
use culvert_tests::stage::{Scenery, answered};
use culvert_tests::topology::{PodLinks, Uplink, has_uplink};
use culvert_tests::traffic::{Ask, Load};
use serde_json::{Value, json};

/// An address is probed for up to 7 seconds before it is announced.
const SOON: Duration = Duration::from_secs(40);

/// A pool of the numbers 200 to 209, announced on the links that are named, or all.
fn configuration(interfaces: &[&str]) -> String {
    pool(&ranges(200, 209), interfaces)
}

fn service(name: &str, n: u8, pod: &Place) -> Service {
    Service::new(name, n).with("type", json!("LoadBalancer")).port("TCP", PORT, TARGET).ready("n1", pod)
}

/// A lab with one Service at number 200, and one node.
struct Segment {
    agent: Agent,
    scenery: Scenery,
    device: &'static str,
}

impl Segment {
    fn new(uplink: Uplink) -> Result<Self> {
        let segment = Self::without_agent(uplink)?;
        segment.announced()?;
        Ok(segment)
    }

    /// The agent has been started, and no address is waited for.
    fn without_agent(uplink: Uplink) -> Result<Self> {
        let scenery = Scenery::with_uplink(PodLinks::Routed, uplink)?;
        Self::of(scenery, uplink)
    }

    fn of(scenery: Scenery, uplink: Uplink) -> Result<Self> {
        let lab = &scenery.lab;
        lab.manifests.remove("node-n2")?;
        lab.manifests.write("addresses", &configuration(&[]))?;
        lab.manifests.apply(&service("web", 1, &scenery.cast.a))?;
        let mut agent = Agent::start(lab, 0, &Options::new(SocketMode::All)?)?;
        agent.settle()?;
        Ok(Self { agent, device: uplink.device(), scenery })
    }

    fn router(&self) -> &Place {
        &self.scenery.lab.router
    }

    fn client(&self) -> &Place {
        &self.scenery.lab.client
    }

    fn host(&self) -> &Place {
        &self.scenery.cast.n1
    }

    /// Waits until both addresses of the Service are answered for.
    fn announced(&self) -> Result<()> {
        for to in Family::BOTH.map(|family| near(family, 200)) {
            self.reachable(to)?;
        }
        Ok(())
    }

    fn reachable(&self, to: IpAddr) -> Result<()> {
        eventually(&format!("{to} answers"), SOON, || Ok(pings(self.router(), to)?.then_some(())))
            .with_context(|| format!("the agent's log:\n{}", self.agent.log()))
    }

    /// The link address that the router has for an address of the segment.
    fn neighbor(&self, address: IpAddr) -> Result<Option<String>> {
        neighbor(self.router(), self.device, address)
    }

    /// What the router knows of an address is forgotten.
    fn forget(&self, address: IpAddr) -> Result<()> {
        self.router().sh(&format!("ip neigh flush to {address} dev {}", self.device)).map(drop)
    }
}

fn output(place: &Place, line: &str) -> Result<Output> {
    place.run(|| Ok(shell::split(line).output()?)).with_context(|| line.to_owned())
}

/// A kernel that lacks a kind of link cannot show it: said in the output. `cargo xtask vm` boots kernels that have all.
fn neighbours_and_clients_reach_an_address_that_no_link_carries(uplink: Uplink) -> Result<()> {
    if !has_uplink(uplink)? {
        writeln!(std::io::stderr(), "{uplink:?}: not run, for this kernel has no such links")?;
        return Ok(());
    }
    let segment = Segment::new(uplink)?;
    reached(&segment).with_context(|| format!("the agent's log:\n{}", segment.agent.log()))
}

#[test]
fn on_a_plain_link() -> Result<()> {
    neighbours_and_clients_reach_an_address_that_no_link_carries(Uplink::Plain)
}

#[test]
fn on_a_vlan() -> Result<()> {
    neighbours_and_clients_reach_an_address_that_no_link_carries(Uplink::Vlan)
}

#[test]
fn on_a_bond() -> Result<()> {
    neighbours_and_clients_reach_an_address_that_no_link_carries(Uplink::Bond)
}

fn reached(segment: &Segment) -> Result<()> {
    let (router, device) = (segment.router(), segment.device);
    let own = mac(segment.host(), device)?;
    for family in Family::BOTH {
        let to = near(family, 200);
        ensure!(segment.neighbor(to)?.as_ref() == Some(&own), "{to}: {:?}", segment.neighbor(to)?);
        let said = router.sh(&format!("ping -n -c 5 -i 0.05 -s 1400 -W 1 {to}"))?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
        for place in [router, segment.client()] {
            answered(&place.ask(&Ask::tcp((to, PORT)))?).with_context(|| format!("{to} from {}", place.name()))?;
        }
        ensure!(!segment.host().sh("ip addr")?.contains(&to.to_string()), "a link carries {to}");
    }
    for to in Family::BOTH.map(|family| near(family, 200)) {
        // An announcement may have come before the answer to a question.
        segment.forget(to)?;
        segment.reachable(to)?;
        let told = segment.agent.layer2(to)?;
        let link = &told["links"][0];
        ensure!(told["node"] == "n1" && told["services"] == json!(["default/web"]), "{told}");
        ensure!(link["interface"] == device && link["state"] == "announced" && link["rival"].is_null(), "{told}");
        for count in ["requests", "answers", "echoes", "gratuitous"] {
            ensure!(link[count].as_u64() > Some(0), "{count}: {told}");
        }
    }
    // Requests and probes, by tools of their own.
    let to = near(Family::V4, 200);
    ensure!(arping(router, device, to)? == [own.clone(), own.clone()], "{:?}", arping(router, device, to)?);
    let probe = output(router, &format!("arping -D -c 2 -w 3 -I {device} {to}"))?;
    ensure!(probe.status.code() == Some(1), "arping -D finds nobody: {probe:?}");
    let free = output(router, &format!("arping -D -c 2 -w 3 -I {device} {}", near(Family::V4, 209)))?;
    ensure!(free.status.code() == Some(0), "arping -D of a free address: {free:?}");
    let to = near(Family::V6, 200);
    let found = output(router, &format!("ndisc6 -q -m -r 1 -w 1000 {to} {device}"))?;
    let found = String::from_utf8_lossy(&found.stdout).to_lowercase();
    ensure!(found.lines().collect::<Vec<_>>() == [&own], "ndisc6 finds {found:?} instead of {own}");
    let nobody = output(router, &format!("ndisc6 -q -1 -r 1 -w 1000 {} {device}", near(Family::V6, 209)))?;
    ensure!(!nobody.status.success() && nobody.stdout.is_empty(), "ndisc6 of a free address: {nobody:?}");
    // And the kernel's own duplicate address detection.
    for (setting, value) in [("accept_dad", "1"), ("dad_transmits", "1")] {
        router.sysctl(&format!("ipv6/conf/{device}/{setting}"), value)?;
    }
    router.ip_batch(&format!("addr add {to}/128 dev {device}\n"))?;
    eventually("duplicate address detection finds the node", SOON, || {
        let links: Value = serde_json::from_str(&router.sh(&format!("ip -6 -j addr show dev {device}"))?)?;
        let addresses = links[0]["addr_info"].as_array().context("addr_info")?;
        let address = addresses.iter().find(|one| one["local"] == json!(to)).context("it has gone")?;
        ensure!(address["tentative"] == json!(true), "it is in use: {address}");
        Ok((address["dadfailed"] == json!(true)).then_some(()))
    })?;
    router.ip_batch(&format!("addr del {to}/128 dev {device}\n"))?;
    // Without an advertisement nobody answers.
    segment.scenery.lab.manifests.write("addresses", configuration(&[]).split("---").next().unwrap_or_default())?;
    for to in Family::BOTH.map(|family| near(family, 200)) {
        eventually(&format!("{to} is withdrawn"), SOON, || {
            segment.forget(to)?;
            Ok((!pings(router, to)?).then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn a_link_that_is_named_is_the_only_one() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    scenery.lab.manifests.write("addresses", &configuration(&["eth9"]))?;
    let segment = Segment::of(scenery, Uplink::Plain)?;
    let plan = |segment: &Segment| Ok::<_, anyhow::Error>(segment.agent.plan()?["announcements"].clone());
    let all = plan(&segment)?;
    let want = Family::BOTH.map(|family| {
        json!({"address": near(family, 200), "protocol": "layer2", "interface": null, "reason": "the only node"})
    });
    ensure!(all == json!(want), "{all}");
    segment.announced()?;
    segment.scenery.lab.manifests.write("addresses", &configuration(&["eth9"]))?;
    for to in Family::BOTH.map(|family| near(family, 200)) {
        eventually(&format!("{to} is withdrawn"), SOON, || {
            segment.forget(to)?;
            Ok((!pings(segment.router(), to)?).then_some(()))
        })?;
    }
    let told = segment.agent.layer2(near(Family::V4, 200))?;
    let why = "it has none of the interfaces that the L2Advertisements name";
    ensure!(told["node"].is_null() && told["reason"] == why && told["links"] == json!([]), "{told}");
    let named = plan(&segment)?;
    ensure!(named[0]["interface"] == "eth9" && named[1]["interface"] == "eth9", "{named}");
    // The address is the node's still: it is not probed again.
    segment.scenery.lab.manifests.write("addresses", &configuration(&["eth0"]))?;
    segment.announced()
}

#[test]
fn an_agent_that_is_killed_and_started_again_is_not_noticed() -> Result<()> {
    let mut segment = Segment::new(Uplink::Plain)?;
    let (router, client) = (segment.router().clone(), segment.client().clone());
    for family in Family::BOTH {
        let to = near(family, 200);
        // Each is waited for until it is at work.
        let load = Load { sockets: 0, ..Load::mixed((to, PORT).into(), 1_000 / slowness()) }.start(&client)?;
        let mut command = Command::new("ping");
        command.args(["-n", "-i", "0.02", "-W", "1", "-O", &to.to_string()]);
        let mut ping = router.start(command)?;
        let replies = |count: usize| {
            let what = format!("{count} more echo replies from {to}");
            let start = ping.output().matches("bytes from").count();
            eventually(&what, SOON, || Ok((ping.output().matches("bytes from").count() >= start + count).then_some(())))
        };
        replies(30)?;
        for _ in 0..2 {
            segment.agent.kill()?;
            // Without an agent, neighbours that have to ask find the address too.
            for _ in 0..5 {
                segment.forget(to)?;
                replies(5)?;
            }
            segment.agent.restart(None)?;
            segment.agent.settle()?;
            segment.forget(to)?;
            replies(30)?;
        }
        ping.signal(nix::sys::signal::Signal::SIGINT)?;
        ping.wait(SOON)?;
        let said = ping.output();
        let last = said.lines().find(|line| line.contains("packets transmitted")).context("ping says nothing")?;
        ensure!(last.contains(" 0% packet loss"), "{to}: {last}");
        let report = load.finish();
        ensure!(report.clean() && report.connects.answered > 0, "{to}: {report}");
        std::fs::remove_file(ping.log())?;
    }
    Ok(())
}

#[test]
fn an_address_that_another_host_has_is_not_announced() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let stranger = scenery.cast.n2.clone();
    let theirs = mac(&stranger, "eth0")?;
    for to in Family::BOTH.map(|family| near(family, 200)) {
        let length = if to.is_ipv4() { 32 } else { 128 };
        stranger.ip_batch(&format!("addr add {to}/{length} dev eth0 nodad\n"))?;
    }
    let segment = Segment::of(scenery, Uplink::Plain)?;
    for to in Family::BOTH.map(|family| near(family, 200)) {
        eventually(&format!("the conflict about {to} is told of"), SOON, || {
            let log = segment.agent.log();
            let told = log.lines().any(|line| {
                line.contains("another host uses an address")
                    && line.contains(&to.to_string())
                    && line.contains(&theirs)
            });
            Ok(told.then_some(()))
        })
        .with_context(|| segment.agent.log())?;
        let told = segment.agent.layer2(to)?;
        let link = &told["links"][0];
        ensure!(link["state"] == "taken" && link["rival"]["mac"] == theirs, "{told}");
        ensure!(pings(segment.router(), to)?, "{to}: its owner does not answer");
        ensure!(segment.neighbor(to)?.as_ref() == Some(&theirs), "{to}: {:?}", segment.neighbor(to)?);
    }
    // All other addresses are.
    segment.scenery.lab.manifests.apply(&service("api", 2, &segment.scenery.cast.a))?;
    for to in Family::BOTH.map(|family| near(family, 201)) {
        segment.reachable(to)?;
    }
    let replies = arping(segment.router(), segment.device, near(Family::V4, 200))?;
    ensure!(replies == [theirs.clone(), theirs], "{replies:?}");
    Ok(())
}

#[test]
fn an_address_is_defended_against_a_host_that_takes_it() -> Result<()> {
    let segment = Segment::new(Uplink::Plain)?;
    let stranger = &segment.scenery.cast.n2;
    let (own, theirs, to) = (mac(segment.host(), "eth0")?, mac(stranger, "eth0")?, near(Family::V4, 200));
    ensure!(segment.neighbor(to)?.as_ref() == Some(&own));
    stranger.ip_batch(&format!("addr add {to}/32 dev eth0\n"))?;
    stranger.sh(&format!("arping -U -c 1 -I eth0 -s {to} {to}"))?;
    eventually("the conflict is told of", SOON, || {
        let log = segment.agent.log();
        Ok(log.lines().any(|line| line.contains("it is defended") && line.contains(&theirs)).then_some(()))
    })
    .with_context(|| segment.agent.log())?;
    eventually("the router knows the node again", SOON, || {
        Ok((segment.neighbor(to)?.as_ref() == Some(&own)).then_some(()))
    })
}

#[test]
fn neighbours_are_told_again_when_the_link_comes_back() -> Result<()> {
    let segment = Segment::new(Uplink::Plain)?;
    let own = mac(segment.host(), "eth0")?;
    let wrong = "02:00:00:00:00:99";
    for to in Family::BOTH.map(|family| near(family, 200)) {
        segment.router().sh(&format!("ip neigh replace {to} lladdr {wrong} dev eth0 nud reachable"))?;
        ensure!(segment.neighbor(to)?.as_deref() == Some(wrong));
    }
    segment.scenery.lab.fabric.ip_batch("link set n1 down\nlink set n1 up\n")?;
    for to in Family::BOTH.map(|family| near(family, 200)) {
        eventually(&format!("the router is told of {to}"), SOON, || {
            Ok((segment.neighbor(to)?.as_ref() == Some(&own)).then_some(()))
        })
        .with_context(|| segment.agent.log())?;
    }
    Ok(())
}

#[test]
fn of_two_nodes_one_answers_for_each_address() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let lab = &scenery.lab;
    lab.manifests.write("addresses", &configuration(&[]))?;
    for n in 1..=4 {
        lab.manifests.apply(&service(&format!("s{n}"), n, &scenery.cast.a))?;
    }
    let options = Options::new(SocketMode::All)?;
    let mut agents = [Agent::start(lab, 0, &options)?, Agent::start(lab, 1, &options)?];
    agents.iter_mut().try_for_each(Agent::settle)?;
    let macs = [mac(&scenery.cast.n1, "eth0")?, mac(&scenery.cast.n2, "eth0")?];
    let mut counts = [0, 0];
    for (agent, (own, count)) in agents.iter().zip(macs.iter().zip(&mut counts)) {
        for one in agent.plan()?["announcements"].as_array().context("announcements")? {
            let to: IpAddr = one["address"].as_str().context("address")?.parse()?;
            *count += 1;
            eventually(&format!("{to} answers"), SOON, || Ok(pings(&lab.router, to)?.then_some(())))
                .with_context(|| agent.log())?;
            answered(&lab.client.ask(&Ask::tcp((to, PORT)))?).with_context(|| to.to_string())?;
            let known = neighbor(&lab.router, "eth0", to)?;
            ensure!(known.as_ref() == Some(own), "{to}: {known:?} instead of {own}");
            if to.is_ipv4() {
                let replies = arping(&lab.router, "eth0", to)?;
                ensure!(replies == [own.clone(), own.clone()], "{to}: {replies:?}");
            }
        }
    }
    ensure!(counts == [4, 4], "{counts:?}");
    Ok(())
}
