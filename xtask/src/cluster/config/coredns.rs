//! CoreDNS behind the Service `kube-dns`.

use serde_json::{Value, json};

use super::{account, list, pod_kubeconfig};
use crate::cluster::plan::Plan;

const COREFILE: &str = "\
.:53 {
    errors
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig /etc/coredns/kubeconfig
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }
    cache 30
}
";

/// Its objects. It asks the API server directly, so that names resolve no later than Services do.
pub fn objects(plan: &Plan, image: &str) -> Value {
    let mut items = account("coredns", "culvert-cluster:coredns");
    items.push(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "culvert-cluster:coredns"},
        "rules": [
            {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ],
    }));
    items.push(json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "coredns", "namespace": "kube-system"},
        "data": {"Corefile": COREFILE, "kubeconfig": pod_kubeconfig(&plan.api_url()).to_string()},
    }));
    items.push(service(plan));
    items.push(deployment(image));
    list(&items)
}

fn service(plan: &Plan) -> Value {
    let port = |name: &str, protocol: &str, port: u16| json!({"name": name, "protocol": protocol, "port": port});
    let addresses = plan.dns_services();
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
        "spec": {
            "selector": {"k8s-app": "kube-dns"},
            "ipFamilyPolicy": if addresses.len() == 2 { "RequireDualStack" } else { "SingleStack" },
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ports": [port("dns", "UDP", 53), port("dns-tcp", "TCP", 53)],
        },
    })
}

fn deployment(image: &str) -> Value {
    let labels = json!({"k8s-app": "kube-dns"});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "coredns", "namespace": "kube-system", "labels": labels},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "priorityClassName": "system-cluster-critical",
                    "serviceAccountName": "coredns",
                    "dnsPolicy": "Default",
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": {"matchLabels": labels},
                    }],
                    "containers": [{
                        "name": "coredns",
                        "image": image,
                        "imagePullPolicy": "IfNotPresent",
                        "args": ["-conf", "/etc/coredns/Corefile"],
                        "readinessProbe": {"httpGet": {"port": 8181, "path": "/ready"}, "periodSeconds": 1},
                        "volumeMounts": [{"name": "configuration", "mountPath": "/etc/coredns"}],
                    }],
                    "volumes": [{"name": "configuration", "configMap": {"name": "coredns"}}],
                },
            },
        },
    })
}
