//! A Service, digested: what it claims and how it wants its traffic handled, the same on every node.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_api::plan::{FrontendKind, Problem, Protocol, ServiceKey, ServiceKind};
use jiff::Timestamp;

use crate::Config;
use crate::address::{self, Family};
use crate::claims::Claim;
use crate::grant::Grant;
use crate::objects::{Service, ServicePort};
use crate::problem::{self, Reason};
use crate::ranges::SourceRanges;

/// Default and limit of the affinity time-out in seconds (Kubernetes' `DefaultClientIPServiceAffinitySeconds` and
/// `MaxClientIPServiceAffinitySeconds`).
const AFFINITY_SECONDS: u32 = 10_800;
const AFFINITY_SECONDS_MAX: i32 = 86_400;

/// A Service that is another proxy's business carries this label.
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";

/// A Service, digested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceInfo {
    pub kind: ServiceKind,
    pub created: Option<Timestamp>,
    pub skipped: Option<&'static str>,
    /// Unique addresses.
    pub addresses: Vec<ServiceAddress>,
    /// Our own pool that all `LoadBalancer` addresses are from, if one is.
    pub pool: Option<Arc<str>>,
    /// Ports, unique by number and protocol.
    pub ports: Vec<PortInfo>,
    pub families: Vec<Family>,
    pub ranges: SourceRanges,
    pub affinity_seconds: Option<u32>,
    pub internal_local: bool,
    pub external_local: bool,
    pub health_check_port: Option<u16>,
    pub problems: Vec<Problem>,
}

/// One address of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceAddress {
    pub address: IpAddr,
    pub kind: FrontendKind,
    pub field: AddressField,
}

/// Where in the Service an address stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressField {
    ClusterIp,
    ClusterIps(usize),
    ExternalIps(usize),
    Ingress(usize),
}

impl fmt::Display for AddressField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterIp => f.write_str("spec.clusterIP"),
            Self::ClusterIps(i) => write!(f, "spec.clusterIPs[{i}]"),
            Self::ExternalIps(i) => write!(f, "spec.externalIPs[{i}]"),
            Self::Ingress(i) => write!(f, "status.loadBalancer.ingress[{i}].ip"),
        }
    }
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortInfo {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
    /// Index in `spec.ports`.
    pub index: usize,
}

impl ServiceInfo {
    /// Digests a Service, with what our own pools say of it.
    pub(crate) fn new(service: &Service, grant: &Grant, config: &Config) -> Self {
        let mut digest = Digest { service, grant, key: service.key(), config, problems: Vec::new() };
        let kind = digest.kind();
        let mut info = Self {
            kind,
            created: service.metadata.creation_timestamp,
            skipped: skipped(service, kind),
            addresses: Vec::new(),
            pool: None,
            ports: Vec::new(),
            families: Vec::new(),
            ranges: SourceRanges::default(),
            affinity_seconds: None,
            internal_local: false,
            external_local: false,
            health_check_port: None,
            problems: Vec::new(),
        };
        if info.skipped.is_none() {
            digest.fill(&mut info);
        }
        info.problems = digest.problems;
        info
    }

    /// Everything that only one Service can have.
    pub(crate) fn claims(&self) -> impl Iterator<Item = Claim> {
        let addresses = self.addresses.iter().flat_map(|address| {
            self.ports.iter().map(|port| Claim::Address(address.address, port.port, port.protocol))
        });
        let node_ports = self.ports.iter().filter_map(|port| Some(Claim::NodePort(port.node_port?, port.protocol)));
        addresses.chain(node_ports).chain(self.health_check_port.map(|port| Claim::NodePort(port, Protocol::Tcp)))
    }

    /// Adds an address unless an earlier field had it. `LoadBalancer` addresses come before external ones, so that
    /// source ranges hold for an address that is both.
    fn add(&mut self, address: IpAddr, kind: FrontendKind, field: AddressField) {
        if self.addresses.iter().all(|known| known.address != address) {
            self.addresses.push(ServiceAddress { address, kind, field });
        }
    }

    /// Addresses of one kind.
    pub(crate) fn addresses_of(&self, kind: FrontendKind) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter(move |address| address.kind == kind).map(|address| address.address)
    }
}

/// Why a Service has no frontends, if so: what kube-proxy's watches and `ShouldSkipService` leave out.
fn skipped(service: &Service, kind: ServiceKind) -> Option<&'static str> {
    if service.metadata.labels.contains_key(PROXY_NAME) {
        return Some("serviceProxyName");
    }
    if kind == ServiceKind::ExternalName {
        return Some("externalName");
    }
    let spec = &service.spec;
    (spec.cluster_ip == "None" || spec.cluster_ips.iter().any(|ip| ip == "None")).then_some("headless")
}

/// Parses a protocol; empty is TCP.
pub(crate) fn parse_protocol(name: &str) -> Option<Protocol> {
    match name {
        "" | "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// Parses a port; zero is none.
pub(crate) fn parse_port(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

/// The work of digesting: the Service, and the problems found on the way.
struct Digest<'a> {
    service: &'a Service,
    grant: &'a Grant,
    key: ServiceKey,
    config: &'a Config,
    problems: Vec<Problem>,
}

impl Digest<'_> {
    fn problem(&mut self, reason: Reason, field: impl fmt::Display, message: String) {
        self.problems.push(problem::of_service(reason, &self.key, field, message));
    }

    fn kind(&mut self) -> ServiceKind {
        match self.service.spec.kind.as_str() {
            "" | "ClusterIP" => ServiceKind::ClusterIP,
            "NodePort" => ServiceKind::NodePort,
            "LoadBalancer" => ServiceKind::LoadBalancer,
            "ExternalName" => ServiceKind::ExternalName,
            other => {
                let message = format!("{other:?} is no type of Service; served as ClusterIP");
                self.problem(Reason::InvalidType, "spec.type", message);
                ServiceKind::ClusterIP
            }
        }
    }

    fn fill(&mut self, info: &mut ServiceInfo) {
        let spec = &self.service.spec;
        info.internal_local = spec.internal_traffic_policy.as_deref() == Some("Local");
        info.external_local = spec.external_traffic_policy == "Local";
        info.affinity_seconds = self.affinity();
        self.ports(info);
        self.cluster_ips(info);
        if info.kind == ServiceKind::LoadBalancer {
            info.ranges = SourceRanges::new(self.service, &self.key, &mut self.problems);
            if info.external_local {
                info.health_check_port = self.health_check_port(info);
            }
            self.load_balancer(info);
        }
        self.external_ips(info);
        let nothing = info.addresses.is_empty() && info.ports.iter().all(|port| port.node_port.is_none());
        if nothing && spec.cluster_ip.is_empty() && spec.cluster_ips.is_empty() {
            info.skipped = Some("noClusterIP");
        }
    }

    fn affinity(&mut self) -> Option<u32> {
        let spec = &self.service.spec;
        if spec.session_affinity != "ClientIP" {
            return None;
        }
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        match config.and_then(|config| config.timeout_seconds) {
            None => Some(AFFINITY_SECONDS),
            Some(seconds @ 1..=AFFINITY_SECONDS_MAX) => Some(seconds.unsigned_abs()),
            Some(seconds) => {
                let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
                let message = format!(
                    "{seconds} is outside 1 to {AFFINITY_SECONDS_MAX} seconds; {AFFINITY_SECONDS} is used instead"
                );
                self.problem(Reason::InvalidAffinityTimeout, field, message);
                Some(AFFINITY_SECONDS)
            }
        }
    }

    fn ports(&mut self, info: &mut ServiceInfo) {
        let with_node_ports = matches!(info.kind, ServiceKind::NodePort | ServiceKind::LoadBalancer);
        let (mut ports, mut node_ports) = (BTreeSet::new(), BTreeSet::new());
        for (index, port) in self.service.spec.ports.iter().enumerate() {
            let Some(mut parsed) = self.port(index, port) else { continue };
            if !ports.insert((parsed.port, parsed.protocol)) {
                let message =
                    format!("{} is listed twice; the first one counts", Claim::port(parsed.port, parsed.protocol));
                self.problem(Reason::ConflictPort, format_args!("spec.ports[{index}].port"), message);
                continue;
            }
            parsed.node_port = if with_node_ports { self.node_port(index, port) } else { None };
            if let Some(node_port) = parsed.node_port
                && !node_ports.insert((node_port, parsed.protocol))
            {
                let message = format!(
                    "node port {} is held by another port of this Service",
                    Claim::port(node_port, parsed.protocol)
                );
                self.problem(Reason::ConflictNodePort, format_args!("spec.ports[{index}].nodePort"), message);
                parsed.node_port = None;
            }
            info.ports.push(parsed);
        }
    }

    fn port(&mut self, index: usize, port: &ServicePort) -> Option<PortInfo> {
        let Some(protocol) = parse_protocol(&port.protocol) else {
            let message = format!("{:?} is none of TCP, UDP and SCTP", port.protocol);
            self.problem(Reason::InvalidProtocol, format_args!("spec.ports[{index}].protocol"), message);
            return None;
        };
        let Some(number) = parse_port(port.port) else {
            let message = format!("{} is outside 1 to 65535", port.port);
            self.problem(Reason::InvalidPort, format_args!("spec.ports[{index}].port"), message);
            return None;
        };
        Some(PortInfo { name: port.name.as_str().into(), protocol, port: number, node_port: None, index })
    }

    fn node_port(&mut self, index: usize, port: &ServicePort) -> Option<u16> {
        if port.node_port == 0 {
            return None;
        }
        let parsed = parse_port(port.node_port);
        if parsed.is_none() {
            let message = format!("{} is outside 1 to 65535", port.node_port);
            self.problem(Reason::InvalidNodePort, format_args!("spec.ports[{index}].nodePort"), message);
        }
        parsed
    }

    fn health_check_port(&mut self, info: &ServiceInfo) -> Option<u16> {
        let field = "spec.healthCheckNodePort";
        let wanted = self.service.spec.health_check_node_port;
        if wanted == 0 {
            return None;
        }
        let Some(port) = parse_port(wanted) else {
            self.problem(Reason::InvalidNodePort, field, format!("{wanted} is outside 1 to 65535"));
            return None;
        };
        if info.ports.iter().any(|other| other.node_port == Some(port) && other.protocol == Protocol::Tcp) {
            let message = format!("node port {port}/TCP is held by a port of this Service");
            self.problem(Reason::ConflictHealthCheckNodePort, field, message);
            return None;
        }
        Some(port)
    }

    /// ClusterIPs decide the families: kube-proxy serves no address of a family without one. A manifest that no API
    /// server completed may have none at all; `ipFamilies` decides then, or nothing.
    fn cluster_ips(&mut self, info: &mut ServiceInfo) {
        let spec = &self.service.spec;
        let listed = spec.cluster_ips.iter().enumerate().map(|(i, ip)| (AddressField::ClusterIps(i), ip));
        let single = spec.cluster_ips.is_empty().then_some((AddressField::ClusterIp, &spec.cluster_ip));
        for (field, text) in listed.chain(single).filter(|(_, text)| !text.is_empty()) {
            let Some(address) = self.address(field, text) else { continue };
            info.families.push(Family::of(address));
            info.add(address, FrontendKind::ClusterIP, field);
        }
        if spec.cluster_ip.is_empty() && spec.cluster_ips.is_empty() {
            info.families.extend(spec.ip_families.iter().filter_map(|name| Family::named(name)));
            // Our pools may give both where both are only preferred.
            let given = self.grant.given.iter().flat_map(|given| &given.addresses);
            info.families.extend(given.map(|address| Family::of(*address)));
            if info.families.is_empty() {
                info.families.extend(Family::BOTH);
            }
        }
        info.families.sort_unstable();
        info.families.dedup();
    }

    /// LoadBalancer addresses: those of our own pools, as if they stood in the status, else those that do.
    fn load_balancer(&mut self, info: &mut ServiceInfo) {
        let Grant { given, pool, failure } = self.grant;
        if let Some(failure) = failure {
            let reason = if given.is_some() { Reason::LoadBalancerFailed } else { Reason::AllocationFailed };
            self.problem(reason, &failure.field, failure.message.clone());
        }
        let Some(given) = given else {
            info.pool.clone_from(pool);
            return self.ingress(info);
        };
        for (i, address) in given.addresses.iter().enumerate() {
            let field = AddressField::Ingress(i);
            if self.is_fit(field, *address) {
                info.add(*address, FrontendKind::LoadBalancer, field);
            }
        }
        info.pool = Some(Arc::clone(&given.pool));
    }

    /// LoadBalancer addresses, whoever wrote them; a provider in mode `Proxy` sends its traffic to other addresses.
    fn ingress(&mut self, info: &mut ServiceInfo) {
        for (i, ingress) in self.service.status.load_balancer.ingress.iter().enumerate() {
            if ingress.ip.is_empty() || ingress.ip_mode.as_deref() == Some("Proxy") {
                continue;
            }
            let field = AddressField::Ingress(i);
            let Some(address) = self.address(field, &ingress.ip) else { continue };
            // Not a problem: a provider may list addresses that it translates itself.
            if info.families.contains(&Family::of(address)) {
                info.add(address, FrontendKind::LoadBalancer, field);
            }
        }
    }

    fn external_ips(&mut self, info: &mut ServiceInfo) {
        for (i, text) in self.service.spec.external_ips.iter().enumerate() {
            let field = AddressField::ExternalIps(i);
            let Some(address) = self.address(field, text) else { continue };
            if !info.families.contains(&Family::of(address)) {
                let message = format!("{address} is not served: the Service has no ClusterIP of its family");
                self.problem(Reason::AddressFamilyNotServed, field, message);
                continue;
            }
            if !self.config.allow_external_ips.iter().any(|prefix| prefix.contains(&address)) {
                let message = format!("{address} is outside --allow-external-ips");
                self.problem(Reason::ExternalIPNotAllowed, field, message);
                continue;
            }
            info.add(address, FrontendKind::ExternalIP, field);
        }
    }

    /// A usable address of a field.
    fn address(&mut self, field: AddressField, text: &str) -> Option<IpAddr> {
        let Some(address) = address::parse(text) else {
            self.problem(Reason::InvalidAddress, field, format!("{text:?} is no IP address"));
            return None;
        };
        self.is_fit(field, address).then_some(address)
    }

    /// Whether an address can be a Service's; if not, that is a problem.
    fn is_fit(&mut self, field: AddressField, address: IpAddr) -> bool {
        let Some(what) = address::unfit_for_frontend(address) else { return true };
        self.problem(Reason::UnusableAddress, field, format!("{address} is {what}"));
        false
    }
}
