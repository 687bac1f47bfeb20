//! An EndpointSlice, digested.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_api::plan::{Problem, Protocol};

use crate::address::{self, Family};
use crate::intern::Interner;
use crate::objects::{Endpoint, EndpointPort, EndpointSlice, HintTarget, ObjectKey};
use crate::problem::{self, Reason};
use crate::service::{parse_port, parse_protocol};

/// Slices of headless Services carry this label; no proxy reads them.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// What the model keeps of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SliceInfo {
    pub family: Family,
    pub ports: Box<[SlicePort]>,
    pub endpoints: Box<[EndpointInfo]>,
    pub problems: Vec<Problem>,
}

/// A port of all endpoints of the slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlicePort {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
}

/// An endpoint of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EndpointInfo {
    pub address: IpAddr,
    pub state: EndpointState,
    pub node: Option<Arc<str>>,
    pub zone_hints: Box<[Arc<str>]>,
    pub node_hints: Box<[Arc<str>]>,
}

/// What an endpoint can do, in the order of who wins if an address is listed twice. That happens while an endpoint
/// moves from slice to slice, and where a new pod has the address of one that still terminates: then the new one counts, even
/// if it is not ready yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EndpointState {
    /// Gets traffic.
    Ready,
    /// Gets none, and does not terminate.
    NotReady,
    /// Terminates and serves still: gets traffic if nobody is ready.
    Terminating,
}

impl SliceInfo {
    /// Digests a slice; `None` for one that no proxy reads.
    pub(crate) fn new(slice: &EndpointSlice, names: &mut Interner) -> Option<Self> {
        if slice.metadata.labels.contains_key(HEADLESS) {
            return None;
        }
        let key = slice.key();
        let mut problems = Vec::new();
        let Some(family) = Family::named(&slice.address_type) else {
            // DNS names are an API of their own; kube-proxy does not read them either.
            if slice.address_type == "FQDN" {
                return None;
            }
            let message = format!("{:?} is none of IPv4, IPv6 and FQDN", slice.address_type);
            problems.push(problem::of_slice(Reason::InvalidAddressType, &key, "addressType", message));
            return Some(Self { family: Family::V4, ports: Box::default(), endpoints: Box::default(), problems });
        };
        let ports =
            slice.ports.iter().enumerate().filter_map(|(i, port)| parse(i, port, &key, &mut problems)).collect();
        let endpoints = (slice.endpoints.iter().enumerate())
            .filter_map(|(i, endpoint)| {
                let address = usable_address(i, endpoint, family, &key, &mut problems)?;
                EndpointInfo::new(endpoint, address, names)
            })
            .collect();
        Some(Self { family, ports, endpoints, problems })
    }

    /// Whether any endpoint has a hint for zones, so that the node's zone matters.
    pub(crate) fn has_zone_hints(&self) -> bool {
        self.endpoints.iter().any(|endpoint| !endpoint.zone_hints.is_empty())
    }
}

/// A port that is to be served; one without a number is not (kube-proxy leaves it out as well).
fn parse(i: usize, port: &EndpointPort, key: &ObjectKey, problems: &mut Vec<Problem>) -> Option<SlicePort> {
    let number = port.port.filter(|number| *number != 0)?;
    let protocol = port.protocol.as_deref().unwrap_or_default();
    let Some(protocol) = parse_protocol(protocol) else {
        let message = format!("{protocol:?} is none of TCP, UDP and SCTP");
        problems.push(problem::of_slice(Reason::InvalidProtocol, key, format_args!("ports[{i}].protocol"), message));
        return None;
    };
    let Some(port_number) = parse_port(number) else {
        let message = format!("{number} is outside 1 to 65535");
        problems.push(problem::of_slice(Reason::InvalidEndpointPort, key, format_args!("ports[{i}].port"), message));
        return None;
    };
    Some(SlicePort { name: port.name.as_deref().unwrap_or_default().into(), protocol, port: port_number })
}

/// An endpoint's address, if traffic may go there. Only the first counts: all of them are the same endpoint.
fn usable_address(
    i: usize,
    endpoint: &Endpoint,
    family: Family,
    key: &ObjectKey,
    problems: &mut Vec<Problem>,
) -> Option<IpAddr> {
    let text = endpoint.addresses.first()?;
    let mut refuse = |reason, message| {
        problems.push(problem::of_slice(reason, key, format_args!("endpoints[{i}].addresses[0]"), message));
        None
    };
    let Some(address) = address::parse(text) else {
        return refuse(Reason::InvalidEndpointAddress, format!("{text:?} is no IP address"));
    };
    if Family::of(address) != family {
        return refuse(Reason::InvalidEndpointAddress, format!("{address} is not of the slice's address type"));
    }
    match address::unfit_for_endpoint(address) {
        Some(what) => refuse(Reason::EndpointAddressRefused, format!("{address} is {what}; no traffic is sent there")),
        None => Some(address),
    }
}

impl EndpointInfo {
    /// An endpoint, unless it terminates and no longer serves. An absent `serving` is true, whatever `ready` is
    /// (kube-proxy's `addEndpoints`).
    fn new(endpoint: &Endpoint, address: IpAddr, names: &mut Interner) -> Option<Self> {
        let conditions = &endpoint.conditions;
        let ready = conditions.ready.unwrap_or(true);
        let serving = conditions.serving.unwrap_or(true);
        let terminating = conditions.terminating.unwrap_or(false);
        let state = match (ready, terminating, serving) {
            (true, ..) => EndpointState::Ready,
            (false, false, _) => EndpointState::NotReady,
            (false, true, true) => EndpointState::Terminating,
            (false, true, false) => return None,
        };
        let mut intern = |targets: &[HintTarget]| targets.iter().map(|target| names.get(&target.name)).collect();
        let (zone_hints, node_hints) = match &endpoint.hints {
            Some(hints) => (intern(&hints.for_zones), intern(&hints.for_nodes)),
            None => (Box::default(), Box::default()),
        };
        let node = endpoint.node_name.as_deref().filter(|name| !name.is_empty()).map(|name| names.get(name));
        Some(Self { address, state, node, zone_hints, node_hints })
    }
}
