//! The demo: Culvert's main job on real servers, as a table a person enjoys.
//!
//! Two nodes with an agent each, a folder of ordinary manifests, and NGINX, HAProxy, a name server and etcd in pods. Clients
//! outside, in pods and on a node ask every kind of address. Then, under load, a backend is scaled away, and an agent is
//! killed and comes back.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use self::load::{Chapter, Kind, Load, Traffic};
use self::request::Request;
use self::servers::{Servers, manifests};
use self::ways::every_way_in;
use crate::agent::{Cluster, Options, SocketMode};
use crate::place::Family;
use crate::topology::{Lab, PodLinks, cluster_ip, external_ip};

mod dns;
mod load;
mod report;
mod request;
mod servers;
mod ways;

/// How long each chapter of the load lasts.
const CHAPTER: Duration = Duration::from_secs(3);

/// Runs the demo; whether all of it held. `keep` leaves everything running.
pub fn run(keep: bool) -> Result<bool> {
    report::say("Two nodes, a client behind a router, and twelve pods, each a network namespace ...");
    let mut lab = Lab::new(PodLinks::Routed)?;
    report::say("NGINX, HAProxy, dnsmasq and etcd start in their pods ...");
    let mut servers = Servers::start(&mut lab)?;
    copy_manifests(&lab)?;
    report::say("An agent on each node reads the manifests ...");
    let mut cluster = Cluster::start(lab, &Options::new(SocketMode::All)?)?;
    report::picture();

    let mut held = report::ways(&every_way_in(&cluster, &servers)?);
    held &= story(&mut cluster, &servers)?;
    report::verdict(held);
    if keep {
        servers.processes.iter_mut().for_each(crate::process::Process::keep);
        cluster.agents.iter_mut().for_each(crate::agent::Agent::keep);
        cluster.lab.keep();
        report::look_around(&cluster);
    }
    drop(servers);
    Ok(held)
}

/// Ends what `--keep` left.
pub fn remove() -> Result<()> {
    let removed = crate::scope::remove_kept()?;
    report::say(&if removed.is_empty() {
        "Nothing was kept.".to_owned()
    } else {
        format!("Removed {}.", removed.join(", "))
    });
    Ok(())
}

/// Puts the manifests of the repository in place of the lab's own.
fn copy_manifests(lab: &Lab) -> Result<()> {
    for node in ["node-n1", "node-n2"] {
        lab.manifests.remove(node)?;
    }
    for file in std::fs::read_dir(manifests())? {
        let path = file?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).context("a file name")?;
        lab.manifests.write(name, &std::fs::read_to_string(&path)?)?;
    }
    Ok(())
}

/// The chapters of the load, and what must hold in each.
fn story(cluster: &mut Cluster, servers: &Servers) -> Result<bool> {
    let mut chapters = vec!["All is as the manifests say"];
    report::say("Load from outside and from a pod ...");
    let load = Load::start(kinds(cluster, servers)?);
    std::thread::sleep(CHAPTER);

    report::say("web-2 is taken out of its EndpointSlices ...");
    chapters.push("web-2 is being scaled away");
    load.next_chapter();
    let file = cluster.lab.manifests.dir().join("web.yaml");
    let scaled = without_endpoint(&std::fs::read_to_string(file)?, "web-2")?;
    cluster.lab.manifests.write("web", &scaled)?;
    cluster.settle()?;
    chapters.push("web-2 is gone; open connections may stay");
    load.next_chapter();
    std::thread::sleep(CHAPTER);

    report::say("The agent of n1 is killed (kill -9) ...");
    chapters.push("The agent of n1 is dead (kill -9)");
    load.next_chapter();
    cluster.agents[0].kill()?;
    std::thread::sleep(CHAPTER);

    report::say("... and comes back");
    chapters.push("The agent of n1 is back");
    load.next_chapter();
    cluster.agents[0].restart(None)?;
    cluster.settle()?;
    std::thread::sleep(CHAPTER);

    let booked = load.finish()?;
    let mut held = report::chapters(&chapters, &booked);
    held &= report::check("the load ran in every chapter", booked.len() == chapters.len() && booked.iter().all(busy));
    let web_2 =
        |chapter: &Chapter| chapter.get(NEW_WEB).map_or(0, |tally| tally.servers.get("web-2").copied().unwrap_or(0));
    held &= report::check(
        "web-2 answered new connections before",
        booked.first().is_some_and(|chapter| web_2(chapter) > 0),
    );
    held &= report::check("and none once it was gone", booked.iter().skip(2).all(|chapter| web_2(chapter) == 0));
    Ok(held)
}

const NEW_WEB: &str = "new connections, pod to web (ClusterIP)";

fn kinds(cluster: &Cluster, servers: &Servers) -> Result<Vec<Kind>> {
    let client = cluster.lab.client.clone();
    let shell = servers.pod("shell-1")?.clone();
    let node_port = |family| (cluster.lab.nodes[0].host.ip(family), 30_080).into();
    let separate = Traffic::Separate;
    Ok(vec![
        Kind {
            name: NEW_WEB,
            from: shell.clone(),
            to: (cluster_ip(Family::V4, 80), 80).into(),
            rate: 200,
            traffic: separate(Request::Web),
        },
        Kind {
            name: "20 open connections, client to web (NodePort, IPv6)",
            from: client.clone(),
            to: node_port(Family::V6),
            rate: 500,
            traffic: Traffic::KeptOpen(20),
        },
        Kind {
            name: "new connections, client to edge (LoadBalancer)",
            from: client.clone(),
            to: (external_ip(Family::V4, 80), 80).into(),
            rate: 100,
            traffic: separate(Request::Web),
        },
        Kind {
            name: "DNS over UDP, client to dns (LoadBalancer)",
            from: client,
            to: (external_ip(Family::V4, 53), 53).into(),
            rate: 200,
            traffic: separate(Request::DnsUdp),
        },
        Kind {
            name: "DNS over UDP, pod to dns (ClusterIP, IPv6)",
            from: shell,
            to: (cluster_ip(Family::V6, 53), 53).into(),
            rate: 200,
            traffic: separate(Request::DnsUdp),
        },
    ])
}

/// Whether every kind of traffic flowed in a chapter.
fn busy(chapter: &Chapter) -> bool {
    chapter.len() == 5 && chapter.values().all(|tally| tally.sent > 0)
}

/// A manifest without the endpoints of a pod: the lines that its name ends, and the `nodeName` below each.
fn without_endpoint(text: &str, pod: &str) -> Result<String> {
    let mut kept = String::new();
    let mut removed = 0;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.ends_with(&format!("# {pod}")) {
            ensure!(lines.next().is_some_and(|next| next.contains("nodeName:")), "{pod}: an endpoint of another form");
            removed += 1;
        } else {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    if removed == 0 {
        bail!("no endpoint of {pod}")
    }
    Ok(kept)
}
