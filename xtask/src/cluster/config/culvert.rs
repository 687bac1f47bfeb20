//! The values that the agent's chart is installed with.

use std::path::Path;

use serde_json::{Value, json};

use super::list;
use crate::cluster::plan::Plan;

/// The DaemonSet that the chart makes.
pub const DAEMON_SET: &str = "daemonset/culvert-agent";

/// The Deployment that gives addresses, where there is one.
pub const CONTROLLER: &str = "deployment/culvert-controller";

/// The chart's values. `image` is the agent's full name; `cgroup2` is where nodes have it.
pub fn values(plan: &Plan, image: &str, cgroup2: &Path) -> Value {
    let (repository, tag) = image.rsplit_once(':').unwrap_or((image, ""));
    let v4 = plan.api().is_ipv4();
    json!({
        "image": {"repository": repository, "tag": tag},
        "apiServers": [plan.api_url()],
        "socketMode": plan.sockets.to_string(),
        "hostPaths": {"cgroup": cgroup2},
        // What upstream's Disruptive specs delete to see Services go on.
        "podLabels": {"k8s-app": "kube-proxy"},
        // Documentation ranges, which upstream's spec of externalIPs takes its addresses from.
        "allowExternalIPs": ["203.0.113.0/24", "2001:db8::/32"],
        "healthz": {"bindAddress": if v4 { "0.0.0.0:10256" } else { "[::]:10256" }},
        "metrics": {"bindAddress": if v4 { "127.0.0.1:10249" } else { "[::1]:10249" }},
        // The size of the connection table belongs to the machine, not to a network namespace.
        "nodeSetup": {"conntrack": {"maxPerCore": 0}},
        "controller": {
            "enabled": plan.loadbalancers,
            "replicas": 1,
            "bindAddress": if v4 { "0.0.0.0:7472" } else { "[::]:7472" },
        },
        "layer2": {"enabled": plan.loadbalancers},
    })
}

/// The definitions that [`configuration`] is of.
pub const DEFINITIONS: [&str; 2] = ["crd/ipaddresspools.metallb.io", "crd/l2advertisements.metallb.io"];

/// A pool of the nodes' network, and that it is announced there.
pub fn configuration(plan: &Plan) -> Value {
    let object = |kind: &str, spec: Value| {
        let metadata = json!({"name": "nodes", "namespace": "kube-system"});
        json!({"apiVersion": "metallb.io/v1beta1", "kind": kind, "metadata": metadata, "spec": spec})
    };
    let pool = object("IPAddressPool", json!({"addresses": plan.load_balancers()}));
    list(&[pool, object("L2Advertisement", json!({}))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{options::Families, plan::tests::plan};

    #[test]
    fn the_agent_is_told_what_the_cluster_is() {
        let values = values(&plan(Families::V6), "ghcr.io/culvert/culvert:0.1.0", Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(values["image"]["tag"], "0.1.0");
        assert_eq!(values["apiServers"][0], "https://[fd00:c1:3:1::b]:6443");
        assert_eq!(values["healthz"]["bindAddress"], "[::]:10256");
        assert_eq!(values["socketMode"], "all");
        assert_eq!(values["layer2"]["enabled"], false);
    }
}
