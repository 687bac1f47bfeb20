//! Objects of Kubernetes as JSON, with what tests say of them and no more.

use std::net::IpAddr;

use serde_json::{Value, json};

/// A pod that does nothing itself: programs are put into it. `app` is its label.
pub fn pod(name: &str, app: &str, node: &str, image: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "containers": [container(image, &["sleep", "infinity"])],
        },
    })
}

/// A container named `main` that runs these words.
pub fn container(image: &str, words: &[&str]) -> Value {
    json!({
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": words,
        // A share of the processors, in competition with the node's own programs.
        "resources": {"requests": {"cpu": "100m"}},
    })
}

/// A Deployment whose pods have the label `app` of its name, spread over the nodes.
pub fn deployment(name: &str, replicas: u32, container: &Value) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "automountServiceAccountToken": false,
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "DoNotSchedule",
                        "labelSelector": {"matchLabels": labels},
                    }],
                    "containers": [container],
                },
            },
        },
    })
}

/// A Service of one port, for TCP and for UDP, in front of the pods with a label `app`.
pub fn service(name: &str, app: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": app}, "ports": ports(port)},
    })
}

/// A slice of a Service that has no selector, for TCP and for UDP, with one endpoint.
pub fn slice(name: &str, service: &str, address: IpAddr, port: u16) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
        "ports": ports(port),
        "endpoints": [{"addresses": [address.to_string()]}],
    })
}

/// Ports of one number, named by their protocols.
fn ports(port: u16) -> [Value; 2] {
    ["TCP", "UDP"].map(|protocol| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": port}))
}

/// A probe that asks over HTTP once a second.
pub fn http_probe(port: u16, path: &str) -> Value {
    json!({"httpGet": {"port": port, "path": path}, "periodSeconds": 1})
}

/// The same with node ports. The first port is the one for TCP, and the one for UDP has the same number.
pub fn node_port_service(name: &str, app: &str, port: u16, node_port: u16) -> Value {
    let mut service = service(name, app, port);
    service["spec"]["type"] = "NodePort".into();
    for index in 0..2 {
        service["spec"]["ports"][index]["nodePort"] = node_port.into();
    }
    service
}
