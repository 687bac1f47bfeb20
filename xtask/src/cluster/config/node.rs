//! What a node is told: its runtime, its kubelet, its network.

use std::path::Path;

use serde_json::{Value, json};

use crate::cluster::{
    options::Cni,
    plan::{Family, Plan, zone},
};

/// The image that holds a pod's namespaces.
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.2";

/// containerd's configuration.
pub fn containerd(runc: &Path) -> String {
    let runc = runc.display();
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
address = "/run/containerd/containerd.sock"

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"

[plugins."io.containerd.cri.v1.runtime"]
# Without CAP_SYS_RESOURCE, as in many a virtual machine of CI's, nobody can make a process dearer than it is.
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = false
"#
    )
}

/// kubelet's configuration. `authority` is the file of the cluster's certificate authority.
pub fn kubelet(plan: &Plan, authority: &Path, resolv_conf: &Path) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": authority},
        },
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "staticPodPath": "/etc/kubernetes/manifests",
        "clusterDomain": "cluster.local",
        "clusterDNS": plan.dns_services(),
        "resolvConf": resolv_conf,
        // A node is a cgroup namespace: its root is the node's own directory.
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": "/",
        "failCgroupV1": false,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "oomScoreAdj": 0,
        // The disk is shared with everybody else on this machine: nothing is evicted and no image removed for its sake.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": false,
        // How soon a deleted mirror pod is back: upstream waits for the API server's.
        "syncFrequency": "10s",
        "registerWithTaints": [],
    })
}

/// The Node object, with what nobody else would fill in.
pub fn object(plan: &Plan, node: u8) -> Value {
    let ranges: Vec<String> = plan.families().iter().map(|family| plan.node_pods(node, *family).to_string()).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": format!("n{node}"),
            "labels": {"topology.kubernetes.io/zone": zone(node), "topology.kubernetes.io/region": "region"},
        },
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
    })
}

/// The configuration of a node's pod network: name of the file and content. None if the network writes it itself.
pub fn cni(plan: &Plan, node: u8) -> Option<(&'static str, Value)> {
    let ranges: Vec<Value> =
        plan.families().iter().map(|family| json!([{"subnet": plan.node_pods(node, *family).to_string()}])).collect();
    let routes: Vec<Value> = plan.families().iter().map(|family| json!({"dst": everywhere(*family)})).collect();
    let ipam = json!({"type": "host-local", "ranges": ranges, "routes": routes});
    let main = match plan.cni {
        Cni::Bridge => {
            json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": false, "ipam": ipam})
        }
        Cni::Ptp => json!({"type": "ptp", "ipMasq": false, "ipam": ipam}),
        Cni::Flannel => return None,
    };
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true});
    Some(("10-pods.conflist", json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [main, portmap]})))
}

/// The default route's destination.
pub fn everywhere(family: Family) -> &'static str {
    match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{options::Families, plan::tests::plan};

    #[test]
    fn the_pod_network_has_the_ranges_of_the_node_object() {
        let plan = plan(Families::Dual);
        let (_, network) = cni(&plan, 2).unwrap();
        let node = object(&plan, 2);
        let ranges = &network["plugins"][0]["ipam"]["ranges"];
        for (index, range) in node["spec"]["podCIDRs"].as_array().unwrap().iter().enumerate() {
            assert_eq!(&ranges[index][0]["subnet"], range);
        }
        assert_eq!(node["spec"]["podCIDR"], "10.67.2.0/24");
        assert_eq!(node["metadata"]["labels"]["topology.kubernetes.io/zone"], "zone-b");
    }

    #[test]
    fn flannel_writes_its_own() {
        let plan = Plan { cni: Cni::Flannel, ..plan(Families::V4) };
        assert!(cni(&plan, 1).is_none());
    }
}
