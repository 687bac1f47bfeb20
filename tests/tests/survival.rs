//! What an agent's death costs those whose traffic it set up: nothing.
//!
//! Each scenario runs under open-loop load of more than 5,000 requests a second, half from outside and half from a pod. What that gives is
//! printed; if something was lost, an equal run in which nothing happens stands next to it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use culvert_tests::agent::{Agent, Options, SocketMode};
use culvert_tests::matrix::PORT;
use culvert_tests::place::Family;
use culvert_tests::stage::{Scenery, Stage, everywhere};
use culvert_tests::topology::{PodLinks, cluster_ip, external_ip};
use culvert_tests::traffic::load::full_rate;
use culvert_tests::traffic::{Load, Report};

/// How long load goes before and after each event.
const BREATH: Duration = Duration::from_millis(700);

fn stage(mode: SocketMode) -> Result<Stage> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    scenery.lab.firewall()?;
    let service = everywhere("web", 1).ready("n1", &scenery.cast.a).ready("n2", &scenery.cast.c);
    scenery.start(&Options::new(mode)?, [&service])
}

/// Does `work` to the agent of n1 under load from the client and from a pod of n1, half of the rate each.
fn under_load(stage: &mut Stage, family: Family, work: impl FnOnce(&mut Agent) -> Result<()>) -> Result<[Report; 2]> {
    let half = |to| Load::mixed(to, full_rate() / 2);
    let outside = half((external_ip(family, 101), PORT).into()).start(&stage.cluster.lab.client)?;
    let inside = half((cluster_ip(family, 1), PORT).into()).start(&stage.cast.p)?;
    std::thread::sleep(BREATH);
    work(&mut stage.cluster.agents[0])?;
    std::thread::sleep(BREATH);
    Ok([outside.finish(), inside.finish()])
}

/// How often work is done again because the machine lost something by itself.
const ATTEMPTS: usize = 3;

/// Does the work under load: nothing may be lost. If something is, the same load for the same time without the work tells whose fault it
/// is: where that loses something too, the machine was busy with other things, and the work is done once more.
fn survives(
    name: &str,
    mode: SocketMode,
    family: Family,
    mut work: impl FnMut(&mut Agent) -> Result<()>,
) -> Result<()> {
    let mut stage = stage(mode)?;
    for _ in 0..ATTEMPTS {
        let hit = under_load(&mut stage, family, &mut work)?;
        tell(&format!("{name}, {mode:?}, {family:?}"), &hit)?;
        if untroubled(&hit) {
            return Ok(());
        }
        let calm = hit[0].seconds.saturating_sub(BREATH * 2);
        let control = under_load(&mut stage, family, |_| {
            std::thread::sleep(calm);
            Ok(())
        })?;
        tell("the same without", &control)?;
        ensure!(!untroubled(&control), "{name}: {}\n{}", hit[0], hit[1]);
    }
    bail!("{name}: {ATTEMPTS} times the same load was in trouble without it, too");
}

/// Nothing was lost, and all was sent that was meant to be.
fn untroubled(reports: &[Report; 2]) -> bool {
    let rate = reports[0].rate() + reports[1].rate();
    reports.iter().all(Report::clean) && rate >= u64::from(full_rate()) * 25 / 26
}

/// Past the capture of the test's output: these figures are wanted when all is well, too.
fn tell(what: &str, [outside, inside]: &[Report; 2]) -> Result<()> {
    writeln!(std::io::stderr(), "{what}, from outside: {outside}\n{what}, from a pod: {inside}\n")?;
    Ok(())
}

/// Kills the agent, and starts it again once the load has gone on without it for a while.
fn replace(agent: &mut Agent, binary: Option<&Path>) -> Result<()> {
    agent.kill()?;
    std::thread::sleep(BREATH);
    agent.restart(binary)?;
    agent.settle()
}

#[test]
fn kill_and_restart() -> Result<()> {
    for (mode, family) in [(SocketMode::Host, Family::V4), (SocketMode::All, Family::V6)] {
        survives("kill -9 and restart", mode, family, |agent| replace(agent, None))?;
    }
    Ok(())
}

#[test]
fn killed_again_and_again_while_it_starts() -> Result<()> {
    // At another moment of its start each time: what a crash leaves at any point is put right.
    let again = |agent: &mut Agent| {
        agent.kill()?;
        for milliseconds in [2, 5, 10, 20, 40, 80, 160, 320] {
            agent.restart(None)?;
            std::thread::sleep(Duration::from_millis(milliseconds));
            agent.kill()?;
        }
        agent.restart(None)?;
        agent.settle()
    };
    survives("killed while it starts", SocketMode::Host, Family::V4, again)
}

#[test]
fn terminate_and_restart() -> Result<()> {
    survives("SIGTERM and restart", SocketMode::Host, Family::V6, |agent| {
        let status = agent.terminate()?;
        ensure!(status.success(), "{status}: {}", agent.log());
        std::thread::sleep(BREATH);
        agent.restart(None)?;
        agent.settle()
    })
}

#[test]
fn upgrade_and_downgrade_to_another_map_layout() -> Result<()> {
    // Built with `--features layout-next`: a flow row has one field more.
    let next = std::env::var_os("CULVERT_NEXT_BIN").map(PathBuf::from);
    let next = next.context("CULVERT_NEXT_BIN names no agent of the other map layout")?;
    let this = Options::new(SocketMode::Host)?.binary;
    for (mode, family) in [(SocketMode::Host, Family::V4), (SocketMode::All, Family::V6)] {
        survives("upgrade, downgrade, upgrade", mode, family, |agent| {
            [&next, &this, &next].into_iter().try_for_each(|binary| replace(agent, Some(binary)))
        })?;
    }
    Ok(())
}

#[test]
fn endpoints_change_under_load() -> Result<()> {
    let mut stage = stage(SocketMode::Host)?;
    let (a, c) = (stage.cast.a.clone(), stage.cast.c.clone());
    for family in Family::BOTH {
        let load = Load { sockets: 0, ..Load::mixed((external_ip(family, 101), PORT).into(), full_rate() / 2) };
        let load = load.start(&stage.cluster.lab.client)?;
        for service in [
            everywhere("web", 1).ready("n2", &c),
            everywhere("web", 1).ready("n1", &a).ready("n2", &c),
            everywhere("web", 1).ready("n1", &a),
            everywhere("web", 1).ready("n1", &a).ready("n2", &c),
        ] {
            std::thread::sleep(BREATH);
            stage.cluster.apply([&service])?;
        }
        std::thread::sleep(BREATH);
        let report = load.finish();
        writeln!(std::io::stderr(), "endpoints come and go, {family:?}: {report}\n")?;
        ensure!(report.clean(), "{report}");
        ensure!(report.connects.servers.len() == 2, "{:?}", report.connects.servers);
    }
    Ok(())
}
