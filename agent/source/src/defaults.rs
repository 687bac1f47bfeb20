//! What the API server fills in when a manifest is applied (pkg/apis/core/v1/defaults.go, pkg/apis/discovery/v1/defaults.go
//! and the Service strategy), so that a folder means the same as a cluster. What the API server allocates (cluster addresses,
//! node ports, health check ports) is not invented here: what a manifest leaves out does not exist.

use std::net::IpAddr;

use culvert_model::objects::{ClientIpConfig, EndpointSlice, IntOrString, ObjectMeta, Service, ServiceSpec};

/// Seconds of session affinity when the manifest names none.
const AFFINITY_SECONDS: i32 = 10_800;

/// `metadata` of a namespaced object: the namespace is `default` if none is named.
pub fn namespaced(metadata: &mut ObjectMeta) {
    fill(&mut metadata.namespace, "default");
}

/// Fills in a Service.
pub fn service(service: &mut Service) {
    namespaced(&mut service.metadata);
    let spec = &mut service.spec;
    fill(&mut spec.kind, "ClusterIP");
    for port in &mut spec.ports {
        fill(&mut port.protocol, "TCP");
        let unset = match &port.target_port {
            None | Some(IntOrString::Int(0)) => true,
            Some(IntOrString::Int(_)) => false,
            Some(IntOrString::String(name)) => name.is_empty(),
        };
        if unset {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
    affinity(spec);
    policies(spec);
    cluster_ips(spec);
    if service.spec.kind == "LoadBalancer" {
        for ingress in service.status.load_balancer.ingress.iter_mut().filter(|ingress| !ingress.ip.is_empty()) {
            ingress.ip_mode.get_or_insert_with(|| "VIP".into());
        }
    }
}

/// Fills in a slice.
pub fn endpoint_slice(slice: &mut EndpointSlice) {
    namespaced(&mut slice.metadata);
    for port in &mut slice.ports {
        port.name.get_or_insert_default();
        port.protocol.get_or_insert_with(|| "TCP".into());
    }
}

/// Whether a Service can be reached from outside the cluster at all, as the API server sees it.
pub fn externally_accessible(spec: &ServiceSpec) -> bool {
    match spec.kind.as_str() {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !spec.external_ips.is_empty(),
        _ => false,
    }
}

fn affinity(spec: &mut ServiceSpec) {
    fill(&mut spec.session_affinity, "None");
    match spec.session_affinity.as_str() {
        "None" => spec.session_affinity_config = None,
        "ClientIP" => {
            let config = spec.session_affinity_config.get_or_insert_default();
            let client = config.client_ip.get_or_insert_with(ClientIpConfig::default);
            client.timeout_seconds.get_or_insert(AFFINITY_SECONDS);
        }
        _ => {}
    }
}

fn policies(spec: &mut ServiceSpec) {
    if spec.kind != "ExternalName" {
        spec.internal_traffic_policy.get_or_insert_with(|| "Cluster".into());
    }
    if externally_accessible(spec) {
        fill(&mut spec.external_traffic_policy, "Cluster");
    }
    if spec.kind == "LoadBalancer" {
        spec.allocate_load_balancer_node_ports.get_or_insert(true);
    }
}

/// `clusterIP` and `clusterIPs` follow each other; families and policy follow the addresses.
fn cluster_ips(spec: &mut ServiceSpec) {
    if spec.cluster_ips.is_empty() && !spec.cluster_ip.is_empty() {
        spec.cluster_ips.push(spec.cluster_ip.clone());
    }
    if spec.kind == "ExternalName" {
        return;
    }
    if let ("", Some(first)) = (spec.cluster_ip.as_str(), spec.cluster_ips.first()) {
        spec.cluster_ip.clone_from(first);
    }
    let families = spec.cluster_ips.iter().skip(spec.ip_families.len()).map_while(|ip| family(ip)).map(str::to_owned);
    spec.ip_families.extend(families.collect::<Vec<_>>());
    let dual = spec.ip_families.len() > 1;
    spec.ip_family_policy.get_or_insert_with(|| if dual { "RequireDualStack" } else { "SingleStack" }.into());
}

fn family(ip: &str) -> Option<&'static str> {
    match ip.parse().ok()? {
        IpAddr::V4(_) => Some("IPv4"),
        IpAddr::V6(_) => Some("IPv6"),
    }
}

fn fill(field: &mut String, value: &str) {
    if field.is_empty() {
        value.clone_into(field);
    }
}
