//! The API server's validation (pkg/apis/core/validation, pkg/apis/discovery/validation), so that a folder takes what a
//! cluster would take. Field paths and the form of the messages are Kubernetes' own.

mod addresses;
mod names;
mod node;
mod path;
mod service;
mod slice;

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

pub use addresses::addresses;
pub use node::node;
pub use path::Path;
pub use service::service;
pub use slice::endpoint_slice;

use culvert_model::objects::ObjectMeta;
pub use culvert_pools::config::Violation;
use ipnet::IpNet;

/// What validation depends on besides the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Ports that `nodePort` may have (`--service-node-port-range` of the API server).
    pub node_ports: RangeInclusive<u16>,
}

impl Default for Rules {
    fn default() -> Self {
        Self { node_ports: 30_000..=32_767 }
    }
}

/// Protocols of Service and slice ports.
const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

/// Collects violations.
#[derive(Debug, Default)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// What was found.
    pub fn into_vec(self) -> Vec<Violation> {
        self.0
    }

    fn add(&mut self, field: Path<'_>, message: String) {
        self.0.push(Violation { field: field.to_string(), message });
    }

    fn invalid(&mut self, field: Path<'_>, value: impl fmt::Debug, detail: impl fmt::Display) {
        self.add(field, format!("Invalid value: {value:?}: {detail}"));
    }

    fn required(&mut self, field: Path<'_>, detail: &str) {
        let colon = if detail.is_empty() { "" } else { ": " };
        self.add(field, format!("Required value{colon}{detail}"));
    }

    fn forbidden(&mut self, field: Path<'_>, detail: &str) {
        self.add(field, format!("Forbidden: {detail}"));
    }

    fn duplicate(&mut self, field: Path<'_>, value: impl fmt::Debug) {
        self.add(field, format!("Duplicate value: {value:?}"));
    }

    fn too_many(&mut self, field: Path<'_>, count: usize, limit: usize) {
        self.add(field, format!("Too many: {count}: must have at most {limit} items"));
    }

    /// `value` must be one of the words.
    fn one_of(&mut self, field: Path<'_>, value: &str, words: &[&str]) {
        if words.contains(&value) {
            return;
        }
        if value.is_empty() {
            return self.required(field, "");
        }
        let words = words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ");
        self.add(field, format!("Unsupported value: {value:?}: supported values: {words}"));
    }

    fn port(&mut self, field: Path<'_>, port: i32) {
        if !(1..=65_535).contains(&port) {
            self.invalid(field, port, "must be between 1 and 65535, inclusive");
        }
    }

    /// An address, strictly: no leading zeros, no zone, not IPv4 mapped into IPv6.
    fn ip(&mut self, field: Path<'_>, text: &str) -> Option<IpAddr> {
        match text.parse::<IpAddr>() {
            Ok(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_some() => {
                self.invalid(field, text, "must not be an IPv4-mapped IPv6 address");
                None
            }
            Ok(ip) => Some(ip),
            Err(_) => {
                self.invalid(field, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
                None
            }
        }
    }

    /// A prefix; bits beyond its length are allowed, as in the fields' history.
    fn cidr(&mut self, field: Path<'_>, text: &str) -> Option<IpNet> {
        let strict_length = text.split_once('/').is_some_and(|(_, len)| len == "0" || !len.starts_with(['0', '+']));
        match text.parse::<IpNet>() {
            Ok(net) if strict_length => Some(net),
            _ => {
                self.invalid(field, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
                None
            }
        }
    }

    /// `metadata`: the name, and the namespace where there is one.
    fn metadata(&mut self, metadata: &ObjectMeta, namespaced: bool, name: fn(&str) -> Result<(), &'static str>) {
        let path = Path::root("metadata");
        if metadata.name.is_empty() {
            self.required(path.field("name"), "name or generateName is required");
        } else if let Err(rule) = name(&metadata.name) {
            self.invalid(path.field("name"), &metadata.name, rule);
        }
        if !namespaced {
            if !metadata.namespace.is_empty() {
                self.forbidden(path.field("namespace"), "not allowed on this type");
            }
        } else if let Err(rule) = names::label(&metadata.namespace) {
            self.invalid(path.field("namespace"), &metadata.namespace, rule);
        }
    }
}

/// Why an address can be nobody's service: the API server's "non-special" rule, and multicast of any scope.
fn special(ip: IpAddr) -> Option<&'static str> {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match ip {
        _ if ip.is_unspecified() => Some("may not be unspecified (0.0.0.0 or ::)"),
        _ if ip.is_loopback() => Some("may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        _ if link_local => Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        _ if ip.is_multicast() => Some("may not be in the multicast range (224.0.0.0/4, ff00::/8)"),
        _ => None,
    }
}
