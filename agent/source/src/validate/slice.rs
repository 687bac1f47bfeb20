//! Rules of an EndpointSlice.

use std::collections::BTreeSet;
use std::net::IpAddr;

use culvert_model::objects::{Endpoint, EndpointPort, EndpointSlice, HintTarget};

use super::{PROTOCOLS, Path, Violation, Violations, names};

const MAX_ENDPOINTS: usize = 1_000;
const MAX_PORTS: usize = 100;
const MAX_ADDRESSES: usize = 100;
const MAX_HINTS: usize = 8;

/// What is wrong with a slice. One rule of the API server is left to the model: an address that can be nobody's
/// (loopback, link-local, multicast, unspecified) is refused there by itself, with a reason, and not with its whole slice.
pub fn endpoint_slice(slice: &EndpointSlice) -> Vec<Violation> {
    let mut found = Violations::default();
    found.metadata(&slice.metadata, true, names::subdomain);
    found.one_of(Path::root("addressType"), &slice.address_type, &["FQDN", "IPv4", "IPv6"]);

    let at = Path::root("endpoints");
    if slice.endpoints.len() > MAX_ENDPOINTS {
        found.too_many(at, slice.endpoints.len(), MAX_ENDPOINTS);
    } else {
        for (i, one) in slice.endpoints.iter().enumerate() {
            endpoint(&mut found, at.index(i), one, &slice.address_type);
        }
    }
    ports(&mut found, Path::root("ports"), &slice.ports);
    found.into_vec()
}

fn endpoint(found: &mut Violations, at: Path<'_>, endpoint: &Endpoint, address_type: &str) {
    let addresses = at.field("addresses");
    match endpoint.addresses.len() {
        0 => found.required(addresses, "must contain at least 1 address"),
        count if count > MAX_ADDRESSES => found.too_many(addresses, count, MAX_ADDRESSES),
        _ => {}
    }
    for (i, address) in endpoint.addresses.iter().enumerate() {
        self::address(found, addresses.index(i), address, address_type);
    }
    if let Some(node) = endpoint.node_name.as_deref()
        && let Err(rule) = names::subdomain(node)
    {
        found.invalid(at.field("nodeName"), node, rule);
    }
    if let Some(hostname) = endpoint.hostname.as_deref()
        && let Err(rule) = names::label(hostname)
    {
        found.invalid(at.field("hostname"), hostname, rule);
    }
    if let Some(hints) = &endpoint.hints {
        let at = at.field("hints");
        self::hints(found, at.field("forZones"), &hints.for_zones);
        self::hints(found, at.field("forNodes"), &hints.for_nodes);
    }
}

fn address(found: &mut Violations, at: Path<'_>, address: &str, address_type: &str) {
    match address_type {
        "IPv4" | "IPv6" => match (found.ip(at, address), address_type) {
            (Some(IpAddr::V6(_)), "IPv4") => found.invalid(at, address, "must be a valid IPv4 address"),
            (Some(IpAddr::V4(_)), "IPv6") => found.invalid(at, address, "must be a valid IPv6 address"),
            _ => {}
        },
        "FQDN" => {
            if let Err(rule) = names::subdomain(address.strip_suffix('.').unwrap_or(address)) {
                found.invalid(at, address, rule);
            }
        }
        _ => {}
    }
}

fn hints(found: &mut Violations, at: Path<'_>, targets: &[HintTarget]) {
    if targets.len() > MAX_HINTS {
        return found.too_many(at, targets.len(), MAX_HINTS);
    }
    let mut seen = BTreeSet::new();
    for (i, target) in targets.iter().enumerate() {
        let at = at.index(i);
        if target.name.is_empty() {
            found.required(at.field("name"), "");
        } else if !seen.insert(target.name.as_str()) {
            found.duplicate(at.field("name"), &target.name);
        }
    }
}

fn ports(found: &mut Violations, at: Path<'_>, ports: &[EndpointPort]) {
    if ports.len() > MAX_PORTS {
        return found.too_many(at, ports.len(), MAX_PORTS);
    }
    let mut seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let at = at.index(i);
        let name = port.name.as_deref().unwrap_or_default();
        if !name.is_empty()
            && let Err(rule) = names::label(name)
        {
            found.invalid(at.field("name"), name, rule);
        }
        if !seen.insert(name) {
            found.duplicate(at.field("name"), name);
        }
        found.one_of(at.field("protocol"), port.protocol.as_deref().unwrap_or_default(), &PROTOCOLS);
        if let Some(port) = port.port {
            found.port(at.field("port"), port);
        }
        if let Some(protocol) = port.app_protocol.as_deref()
            && let Err(rule) = names::qualified(protocol)
        {
            found.invalid(at.field("appProtocol"), protocol, rule);
        }
    }
}
