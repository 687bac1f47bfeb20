//! Namespaces, links, addresses and routes, as lines of `ip -batch`.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{
    options::Cni,
    plan::{Family, Network, Place, Plan},
};

/// Makes all of it.
pub fn create(plan: &Plan) -> Result<()> {
    batch(None, &machine(plan))?;
    batch(Some(&plan.machine_name(Place::Hub)), &hub(plan))?;
    batch(Some(&plan.machine_name(Place::Client)), &client(plan))?;
    create_nodes(plan)?;
    // The way in from this machine, once the hub's end has its addresses.
    batch(None, &machine_routes(plan))
}

/// Makes the nodes and their links to the hub.
pub fn create_nodes(plan: &Plan) -> Result<()> {
    let names = plan.nodes().map(|node| format!("netns add {}", plan.machine_name(Place::Node(node))));
    batch(None, &names.collect::<Vec<_>>())?;
    batch(Some(&plan.machine_name(Place::Hub)), &cables(plan))?;
    for node in plan.nodes() {
        batch(Some(&plan.machine_name(Place::Node(node))), &self::node(plan, node))?;
    }
    Ok(())
}

fn batch(namespace: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(name) = namespace {
        command.args(["-n", name]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("ip")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all((lines.join("\n") + "\n").as_bytes()).context("ip -batch")?;
    }
    let output = child.wait_with_output().context("ip -batch")?;
    if !output.status.success() {
        bail!(
            "ip -batch in {}: {}",
            namespace.unwrap_or("this machine"),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

fn machine(plan: &Plan) -> Vec<String> {
    let mut lines: Vec<String> =
        [Place::Hub, Place::Client].map(|place| format!("netns add {}", plan.machine_name(place))).into();
    let link = plan.machine_link();
    lines.push(format!("link add {link} type veth peer name machine netns {}", plan.machine_name(Place::Hub)));
    lines.extend(addresses(plan, &link, |family| plan.peer(Network::Machine, family).to_string()));
    lines
}

fn machine_routes(plan: &Plan) -> Vec<String> {
    let link = plan.machine_link();
    let mut lines = Vec::new();
    for family in plan.families() {
        let hub = plan.hub(Network::Machine, *family).address;
        let to =
            [plan.network(Network::Nodes, *family), plan.network(Network::Client, *family), plan.all_pods(*family)];
        lines.extend(to.iter().map(|prefix| format!("route add {prefix} via {hub} dev {link}")));
    }
    lines
}

fn hub(plan: &Plan) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    lines.push("link add br0 type bridge mcast_snooping 0".to_owned());
    lines.push(format!("link add client type veth peer name eth0 netns {}", plan.machine_name(Place::Client)));
    for (link, network) in [("br0", Network::Nodes), ("client", Network::Client), ("machine", Network::Machine)] {
        lines.extend(addresses(plan, link, |family| plan.hub(network, family).to_string()));
    }
    lines.extend(plan.nodes().flat_map(|node| pod_routes(plan, node)));
    lines
}

/// The nodes' links to the bridge.
fn cables(plan: &Plan) -> Vec<String> {
    let cable = |node| {
        let name = Place::Node(node).name();
        let there = plan.machine_name(Place::Node(node));
        [format!("link add {name} type veth peer name eth0 netns {there}"), format!("link set {name} master br0 up")]
    };
    plan.nodes().flat_map(cable).collect()
}

fn client(plan: &Plan) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    lines.extend(addresses(plan, "eth0", |family| plan.peer(Network::Client, family).to_string()));
    lines.extend(default_routes(plan, Network::Client));
    lines
}

fn node(plan: &Plan, node: u8) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned()];
    lines.extend(addresses(plan, "eth0", |family| plan.node(node, family).to_string()));
    lines.extend(default_routes(plan, Network::Nodes));
    if plan.cni != Cni::Flannel {
        lines.extend(plan.nodes().filter(|other| *other != node).flat_map(|other| pod_routes(plan, other)));
    }
    lines
}

/// Addresses are usable at once: nobody else has them, and waiting for duplicates to answer takes a second.
fn addresses(plan: &Plan, link: &str, address: impl Fn(Family) -> String) -> Vec<String> {
    let mut lines = vec![format!("link set {link} up")];
    lines.extend(plan.families().iter().map(|family| {
        let flag = if *family == Family::V6 { " nodad" } else { "" };
        format!("address add {} dev {link}{flag}", address(*family))
    }));
    lines
}

fn default_routes(plan: &Plan, network: Network) -> Vec<String> {
    let families = plan.families().iter();
    families.map(|family| format!("route add default via {}", plan.hub(network, *family).address)).collect()
}

fn pod_routes(plan: &Plan, node: u8) -> Vec<String> {
    let families = plan.families().iter();
    families
        .map(|family| format!("route add {} via {}", plan.node_pods(node, *family), plan.node(node, *family).address))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{options::Families, plan::tests::plan};

    #[test]
    fn nodes_know_the_way_to_each_others_pods() {
        let dual = plan(Families::Dual);
        let lines = node(&dual, 1);
        assert!(lines.contains(&"address add fd00:c1:3:1::b/64 dev eth0 nodad".to_owned()), "{lines:?}");
        assert!(lines.contains(&"route add 10.67.2.0/24 via 10.131.0.12".to_owned()), "{lines:?}");
        assert!(lines.contains(&"route add fd00:c1:3:102::/64 via fd00:c1:3:1::c".to_owned()), "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains("10.67.1.0")), "{lines:?}");
    }

    #[test]
    fn an_overlay_has_no_routes_below() {
        let plan = Plan { cni: Cni::Flannel, ..plan(Families::V4) };
        assert!(!node(&plan, 1).iter().any(|line| line.contains("10.67.2.0")));
    }
}
