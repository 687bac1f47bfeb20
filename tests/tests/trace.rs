//! `--trace-datapath`: what the kernel programs do with each packet is in the agent's log, and only then.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::agent::{Options, SocketMode};
use culvert_tests::matrix::{PORT, TARGET};
use culvert_tests::place::Family;
use culvert_tests::process::eventually;
use culvert_tests::stage::{Scenery, Stage, answered, everywhere, session};
use culvert_tests::topology::{PodLinks, cluster_ip, external_ip};
use culvert_tests::traffic::{Ask, Outcome};

/// A port of the Service's addresses that it does not serve.
const CLOSED: u16 = 81;

/// A Service with one backend, and agents with these flags in the mode in which every hook is on the way.
fn stage(flags: &[&str]) -> Result<Stage> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let service = everywhere("web", 1).ready("n1", &scenery.cast.a);
    let mut options = Options::new(SocketMode::Host)?;
    options.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    scenery.start(&options, [&service])
}

/// Sends packets that are translated and one that is refused; what is to be told of them.
fn traffic(stage: &Stage, family: Family) -> Result<Vec<String>> {
    let backend = stage.cast.a.socket(family, TARGET);
    let mut lines = Vec::new();
    for (from, to, ingress, egress) in [
        (&stage.cluster.lab.client, external_ip(family, 101), "hook 2: 6", "hook 3: 6"),
        (&stage.cast.p, cluster_ip(family, 1), "hook 0: 6", "hook 1: 6"),
    ] {
        let ask = Ask::tcp((to, PORT));
        let mut session = session(from, &ask)?;
        let client = session.local()?;
        answered(&session.exchange())?;
        lines.push(format!("{ingress} {client} > {}: now {backend}", ask.to));
        lines.push(format!("{egress} {backend} > {client}: now {}", ask.to));
    }
    let closed = Ask::tcp((cluster_ip(family, 1), CLOSED));
    let outcome = stage.cast.p.ask(&closed)?;
    ensure!(outcome == Outcome::Refused, "{outcome}");
    lines.push(format!(" > {}: reason {}", closed.to, culvert_abi::Reason::PortNotServed as u8));
    Ok(lines)
}

#[test]
fn each_packet_is_told_of() -> Result<()> {
    let stage = stage(&["--trace-datapath"])?;
    for family in Family::BOTH {
        let wanted = traffic(&stage, family)?;
        let agent = &stage.cluster.agents[0];
        let told = eventually("the log tells of each packet", Duration::from_secs(10), || {
            let log = agent.log();
            let missing = wanted.iter().find(|line| !log.contains(*line));
            missing.map_or(Ok(Some(())), |line| anyhow::bail!("nothing says {line:?}"))
        });
        told.with_context(|| format!("the log:\n{}", agent.log()))?;
    }
    Ok(())
}

#[test]
fn nothing_is_told_by_default() -> Result<()> {
    let stage = stage(&["--log-level", "trace"])?;
    for family in Family::BOTH {
        traffic(&stage, family)?;
    }
    let log = stage.cluster.agents[0].log();
    ensure!(!log.is_empty() && !log.contains("hook 2: 6"), "the log:\n{log}");
    Ok(())
}
