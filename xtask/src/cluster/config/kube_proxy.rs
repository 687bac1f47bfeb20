//! kube-proxy as kubeadm would install it.

use serde_json::{Value, json};

use super::{account, list, pod_kubeconfig};
use crate::cluster::plan::Plan;

/// Its objects, for a mode of its own.
pub fn objects(plan: &Plan, image: &str, mode: &str) -> Value {
    let configuration = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "bindAddress": if plan.api().is_ipv4() { "0.0.0.0" } else { "::" },
        "clusterCIDR": plan.pods(),
        "detectLocalMode": "ClusterCIDR",
        "clientConnection": {"kubeconfig": "/etc/kube-proxy/kubeconfig"},
        // The size of the connection table belongs to the machine, not to a network namespace.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "1h0m0s"},
    });
    // Without itself, the Service `kubernetes` leads nowhere.
    let kubeconfig = pod_kubeconfig(&plan.api_url());
    let mut items = account("kube-proxy", "system:node-proxier");
    items.push(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
        "data": {"config": configuration.to_string(), "kubeconfig": kubeconfig.to_string()},
    }));
    items.push(daemon_set(image));
    list(&items)
}

fn daemon_set(image: &str) -> Value {
    let labels = json!({"k8s-app": "kube-proxy"});
    let command = ["kube-proxy", "--config=/etc/kube-proxy/config", "--hostname-override=$(NODE)", "--v=2"];
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-proxy", "namespace": "kube-system", "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "hostNetwork": true,
                    "priorityClassName": "system-node-critical",
                    "serviceAccountName": "kube-proxy",
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{
                        "name": "kube-proxy",
                        "image": image,
                        "imagePullPolicy": "IfNotPresent",
                        "command": command,
                        "env": [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                        "readinessProbe": {"httpGet": {"port": 10256, "path": "/healthz"}, "periodSeconds": 1},
                        "securityContext": {"privileged": true},
                        "volumeMounts": [
                            {"name": "configuration", "mountPath": "/etc/kube-proxy"},
                            {"name": "lock", "mountPath": "/run/xtables.lock"},
                        ],
                    }],
                    "volumes": [
                        {"name": "configuration", "configMap": {"name": "kube-proxy"}},
                        {"name": "lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}},
                    ],
                },
            },
        },
    })
}
