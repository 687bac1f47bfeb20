//! The two phases of a start: everything into the kernel, then changes one by one.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::Plan;
use super::cluster::{Api, Cluster};
use super::figures::{Changes, Load};
use super::node::Node;
use super::objects::{Probe, Service};
use super::probe::{ask, wait};
use super::proxy::{Proxy, Running};
use super::usage::{anonymous, at_rest, cpu, quiet};

/// Services that are looked at while everything is on its way into the kernel; all the others are at the end.
const SAMPLE: u32 = 64;
/// Starts a proxy and waits until the kernel holds everything.
pub fn load(plan: &Plan, node: &Node, cluster: &Cluster, proxy: Proxy) -> Result<(Running, Load)> {
    let quiet = quiet()?;
    let start = Instant::now();
    let mut running = proxy.start(node, cluster)?;
    let loaded = node.host.run(|| Ok(served(cluster, start, plan.start_limit)))?;
    running.alive()?;
    at_rest(running.id())?;
    if loaded.is_some() {
        running.check()?;
    }
    let load = Load {
        seconds: loaded.map(|time| time.as_secs_f64()),
        sync_seconds: loaded.map(|_| running.syncing(node)).transpose()?,
        cpu_seconds: cpu(running.id())?.as_secs_f64(),
        anonymous_kib: anonymous(running.id())?,
        quiet,
    };
    Ok((running, load))
}

/// When all Services are served, `None` if they are not within the limit.
fn served(cluster: &Cluster, start: Instant, limit: Duration) -> Option<Duration> {
    let mut time = Duration::ZERO;
    for service in cluster.size.sample(SAMPLE) {
        time = wait(start, limit, || serves(service))?;
    }
    // To look at all takes time itself: it counts only if one has to be waited for.
    let late: Vec<Service> = cluster.size.all().filter(|service| !serves(*service)).collect();
    for service in late {
        time = wait(start, limit, || serves(service))?;
    }
    Some(time)
}

fn serves(service: Service) -> bool {
    ask(service.address()).is_ok_and(|endpoint| service.has(endpoint))
}

/// Moves the probe's endpoint again and again, and waits each time until the kernel sends connections to the new place.
pub fn change(plan: &Plan, node: &Node, cluster: &Cluster, running: &mut Running) -> Result<Changes> {
    let (before, pause) = (cpu(running.id())?, running.pause());
    let moves = node.host.block_on(|| moves(plan, cluster, pause))?;
    running.alive()?;
    at_rest(running.id())?;
    let sorted = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times.iter().map(|time| time.as_secs_f64() * 1_000.0).collect()
    };
    Ok(Changes {
        wanted: plan.changes,
        write_milliseconds: sorted(moves.writes),
        kernel_milliseconds: sorted(moves.seen),
        failed_connections: moves.failed,
        cpu_seconds: cpu(running.id())?.saturating_sub(before).as_secs_f64(),
        anonymous_kib: anonymous(running.id())?,
    })
}

/// What moves took.
#[derive(Debug, Default)]
struct Moves {
    /// The API server's answer, since it was asked.
    writes: Vec<Duration>,
    /// The first connection to the new place, since the API server's answer.
    seen: Vec<Duration>,
    /// Connections meanwhile that nobody answered.
    failed: usize,
}

async fn moves(plan: &Plan, cluster: &Cluster, pause: Duration) -> Result<Moves> {
    let api = Api::new(cluster).await?;
    let mut moves = Moves::default();
    let begun = Instant::now();
    for number in 1..=plan.changes {
        tokio::time::sleep(pause).await;
        let asked = Instant::now();
        api.move_probe(number).await?;
        let answered = Instant::now();
        let seen = wait(answered, plan.change_limit.saturating_sub(begun.elapsed()), || {
            let place = ask(Probe.address()).ok();
            moves.failed += usize::from(place.is_none());
            place == Some(Probe.place(number))
        });
        let Some(seen) = seen else { break };
        moves.writes.push(answered - asked);
        moves.seen.push(seen);
    }
    // Where the next proxy expects it.
    api.move_probe(0).await?;
    Ok(moves)
}
