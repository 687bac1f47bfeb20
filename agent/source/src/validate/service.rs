//! Rules of a Service.

use std::collections::BTreeSet;
use std::net::IpAddr;

use culvert_model::objects::{IntOrString, LoadBalancerIngress, Service, ServicePort, ServiceSpec};

use super::{PROTOCOLS, Path, Rules, Violation, Violations, names, special};
use crate::defaults::externally_accessible;

const SPEC: Path<'static> = Path::root("spec");
const ONLY_LOAD_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";
const EXTERNAL_NAME: &str = "may not be set for ExternalName services";
/// Source ranges as manifests wrote them before there was a field.
const RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
/// A day: the longest session affinity.
const MAX_AFFINITY_SECONDS: i32 = 86_400;

/// What is wrong with a Service that has its defaults.
pub fn service(service: &Service, rules: &Rules) -> Vec<Violation> {
    let mut found = Violations::default();
    let spec = &service.spec;
    found.metadata(&service.metadata, true, names::label);
    found.one_of(SPEC.field("type"), &spec.kind, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    ports(&mut found, spec, rules);
    affinity(&mut found, spec);
    match spec.kind.as_str() {
        "ExternalName" => external_name(&mut found, spec),
        _ => cluster_ips(&mut found, spec),
    }
    for (i, ip) in spec.external_ips.iter().enumerate() {
        let at = SPEC.field("externalIPs");
        let at = at.index(i);
        if let Some(rule) = found.ip(at, ip).and_then(special) {
            found.invalid(at, ip, rule);
        }
    }
    source_ranges(&mut found, service);
    load_balancer(&mut found, spec);
    policies(&mut found, spec);
    status(&mut found, service);
    found.into_vec()
}

fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ips.first().is_some_and(|ip| ip == "None")
}

fn ports(found: &mut Violations, spec: &ServiceSpec, rules: &Rules) {
    let at = SPEC.field("ports");
    if spec.ports.is_empty() && !is_headless(spec) && spec.kind != "ExternalName" {
        found.required(at, "");
    }
    let mut names = BTreeSet::new();
    let mut numbers = BTreeSet::new();
    let mut node_ports = BTreeSet::new();
    for (i, port) in spec.ports.iter().enumerate() {
        let at = at.index(i);
        if port.name.is_empty() {
            if spec.ports.len() > 1 {
                found.required(at.field("name"), "");
            }
        } else if let Err(rule) = names::label(&port.name) {
            found.invalid(at.field("name"), &port.name, rule);
        } else if !names.insert(port.name.as_str()) {
            found.duplicate(at.field("name"), &port.name);
        }
        self::port(found, at, port);
        if !numbers.insert((port.protocol.as_str(), port.port)) {
            found.duplicate(at, format!("{}/{}", port.port, port.protocol));
        }
        if port.node_port == 0 {
            continue;
        }
        let at = at.field("nodePort");
        if !matches!(spec.kind.as_str(), "NodePort" | "LoadBalancer") {
            found.forbidden(at, &format!("may not be used when `type` is '{}'", spec.kind));
        } else if !u16::try_from(port.node_port).is_ok_and(|port| rules.node_ports.contains(&port)) {
            let (low, high) = (rules.node_ports.start(), rules.node_ports.end());
            found.invalid(
                at,
                port.node_port,
                format_args!("provided port is not in the valid range. The range of valid ports is {low}-{high}"),
            );
        } else if !node_ports.insert((port.protocol.as_str(), port.node_port)) {
            found.duplicate(at, port.node_port);
        }
    }
}

fn port(found: &mut Violations, at: Path<'_>, port: &ServicePort) {
    found.port(at.field("port"), port.port);
    found.one_of(at.field("protocol"), &port.protocol, &PROTOCOLS);
    match &port.target_port {
        // Without a number of its own the target is the port itself, which has been checked.
        Some(IntOrString::Int(target)) if *target != port.port => found.port(at.field("targetPort"), *target),
        Some(IntOrString::String(name)) => {
            if let Err(rule) = names::port(name) {
                found.invalid(at.field("targetPort"), name, rule);
            }
        }
        _ => {}
    }
    if let Some(protocol) = port.app_protocol.as_deref()
        && let Err(rule) = names::qualified(protocol)
    {
        found.invalid(at.field("appProtocol"), protocol, rule);
    }
}

fn affinity(found: &mut Violations, spec: &ServiceSpec) {
    found.one_of(SPEC.field("sessionAffinity"), &spec.session_affinity, &["ClientIP", "None"]);
    let seconds = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    if let Some(seconds) = seconds.and_then(|client| client.timeout_seconds)
        && !(1..=MAX_AFFINITY_SECONDS).contains(&seconds)
    {
        let at = SPEC.field("sessionAffinityConfig");
        let at = at.field("clientIP");
        let rule = format_args!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
        found.invalid(at.field("timeoutSeconds"), seconds, rule);
    }
}

fn external_name(found: &mut Violations, spec: &ServiceSpec) {
    if !spec.cluster_ips.is_empty() {
        found.forbidden(SPEC.field("clusterIPs"), EXTERNAL_NAME);
    }
    if !spec.ip_families.is_empty() {
        found.forbidden(SPEC.field("ipFamilies"), EXTERNAL_NAME);
    }
    if spec.ip_family_policy.is_some() {
        found.forbidden(SPEC.field("ipFamilyPolicy"), EXTERNAL_NAME);
    }
    let at = SPEC.field("externalName");
    let name = spec.external_name.strip_suffix('.').unwrap_or(&spec.external_name);
    if name.is_empty() {
        found.required(at, "");
    } else if let Err(rule) = names::subdomain(name) {
        found.invalid(at, &spec.external_name, rule);
    }
}

fn cluster_ips(found: &mut Violations, spec: &ServiceSpec) {
    let at = SPEC.field("clusterIPs");
    if spec.cluster_ips.first().is_some_and(|first| *first != spec.cluster_ip) {
        found.invalid(at, &spec.cluster_ips, "first value must match `clusterIP`");
    }
    families(found, spec);
    if is_headless(spec) {
        if spec.cluster_ips.len() > 1 {
            found.invalid(at, &spec.cluster_ips, "'None' must be the first and only value");
        }
        if matches!(spec.kind.as_str(), "NodePort" | "LoadBalancer") {
            found.invalid(at.index(0), "None", format_args!("may not be set to 'None' for {} services", spec.kind));
        }
        return;
    }
    let ips: Vec<_> =
        spec.cluster_ips.iter().enumerate().filter_map(|(i, ip)| found.ip(at.index(i), ip).map(|ip| (i, ip))).collect();
    for &(i, ip) in &ips {
        if let Some(rule) = special(ip) {
            found.invalid(at.index(i), ip, rule);
        }
        let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
        if let Some(wanted) = spec.ip_families.get(i).filter(|wanted| *wanted != family) {
            let rule = format_args!("expected an {wanted} value as indicated by `ipFamilies[{i}]`");
            found.invalid(at.index(i), ip, rule);
        }
    }
    let v4 = ips.iter().filter(|(_, ip)| matches!(ip, IpAddr::V4(_))).count();
    if spec.cluster_ips.len() > 2 {
        found.invalid(at, &spec.cluster_ips, "may only hold up to 2 values");
    } else if v4 > 1 || ips.len() - v4 > 1 {
        found.invalid(at, &spec.cluster_ips, "may specify no more than one IP for each IP family");
    }
}

fn families(found: &mut Violations, spec: &ServiceSpec) {
    let at = SPEC.field("ipFamilies");
    let mut seen = BTreeSet::new();
    for (i, family) in spec.ip_families.iter().enumerate() {
        found.one_of(at.index(i), family, &["IPv4", "IPv6"]);
        if !seen.insert(family.as_str()) {
            found.duplicate(at.index(i), family);
        }
    }
    let Some(policy) = spec.ip_family_policy.as_deref() else { return };
    let at = SPEC.field("ipFamilyPolicy");
    found.one_of(at, policy, &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    if policy == "SingleStack" && spec.cluster_ips.len() == 2 {
        let rule = "must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs are specified";
        found.invalid(at, policy, rule);
    }
}

fn source_ranges(found: &mut Violations, service: &Service) {
    let spec = &service.spec;
    let is_load_balancer = spec.kind == "LoadBalancer";
    if !spec.load_balancer_source_ranges.is_empty() {
        let at = SPEC.field("loadBalancerSourceRanges");
        if !is_load_balancer {
            found.forbidden(at, ONLY_LOAD_BALANCER);
        }
        for (i, range) in spec.load_balancer_source_ranges.iter().enumerate() {
            found.cidr(at.index(i), range.trim());
        }
        return;
    }
    let Some(ranges) = service.metadata.annotations.get(RANGES_ANNOTATION) else { return };
    let metadata = Path::root("metadata");
    let annotations = metadata.field("annotations");
    let at = annotations.key(RANGES_ANNOTATION);
    if !is_load_balancer {
        found.forbidden(at, ONLY_LOAD_BALANCER);
    }
    for range in ranges.trim().split(',').map(str::trim).filter(|_| !ranges.trim().is_empty()) {
        found.cidr(at, range);
    }
}

fn load_balancer(found: &mut Violations, spec: &ServiceSpec) {
    let class = SPEC.field("loadBalancerClass");
    if spec.kind == "LoadBalancer" {
        if let Some(name) = spec.load_balancer_class.as_deref()
            && let Err(rule) = names::qualified(name)
        {
            found.invalid(class, name, rule);
        }
        if !spec.load_balancer_ip.is_empty() {
            found.ip(SPEC.field("loadBalancerIP"), &spec.load_balancer_ip);
        }
        return;
    }
    if spec.load_balancer_class.is_some() {
        found.forbidden(class, ONLY_LOAD_BALANCER);
    }
    if spec.allocate_load_balancer_node_ports.is_some() {
        found.forbidden(SPEC.field("allocateLoadBalancerNodePorts"), ONLY_LOAD_BALANCER);
    }
}

fn policies(found: &mut Violations, spec: &ServiceSpec) {
    let external = SPEC.field("externalTrafficPolicy");
    if externally_accessible(spec) {
        found.one_of(external, &spec.external_traffic_policy, &["Cluster", "Local"]);
    } else if !spec.external_traffic_policy.is_empty() {
        found.invalid(external, &spec.external_traffic_policy, "may only be set for externally-accessible services");
    }
    if let Some(internal) = spec.internal_traffic_policy.as_deref() {
        found.one_of(SPEC.field("internalTrafficPolicy"), internal, &["Cluster", "Local"]);
    }
    if spec.health_check_node_port != 0 {
        let at = SPEC.field("healthCheckNodePort");
        if spec.kind == "LoadBalancer" && spec.external_traffic_policy == "Local" {
            found.port(at, spec.health_check_node_port);
        } else {
            let rule = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            found.invalid(at, spec.health_check_node_port, rule);
        }
    }
    if let Some(wish) = spec.traffic_distribution.as_deref() {
        let words = ["PreferClose", "PreferSameNode", "PreferSameZone"];
        found.one_of(SPEC.field("trafficDistribution"), wish, &words);
    }
}

fn status(found: &mut Violations, service: &Service) {
    let status = Path::root("status");
    let load_balancer = status.field("loadBalancer");
    let at = load_balancer.field("ingress");
    let ingress = &service.status.load_balancer.ingress;
    if !ingress.is_empty() && service.spec.kind != "LoadBalancer" {
        return found.forbidden(at, "may only be used when `spec.type` is 'LoadBalancer'");
    }
    for (i, one) in ingress.iter().enumerate() {
        self::ingress(found, at.index(i), one);
    }
}

fn ingress(found: &mut Violations, at: Path<'_>, ingress: &LoadBalancerIngress) {
    if !ingress.ip.is_empty() {
        found.ip(at.field("ip"), &ingress.ip);
    }
    match ingress.ip_mode.as_deref() {
        Some(_) if ingress.ip.is_empty() => {
            found.forbidden(at.field("ipMode"), "may not be specified when `ip` is not set");
        }
        Some(mode) => found.one_of(at.field("ipMode"), mode, &["Proxy", "VIP"]),
        None => {}
    }
    if ingress.hostname.is_empty() {
        return;
    }
    if ingress.hostname.parse::<IpAddr>().is_ok() {
        found.invalid(at.field("hostname"), &ingress.hostname, "must be a DNS name, not an IP address");
    } else if let Err(rule) = names::subdomain(&ingress.hostname) {
        found.invalid(at.field("hostname"), &ingress.hostname, rule);
    }
}
