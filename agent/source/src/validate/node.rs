//! Rules of a Node.

use culvert_model::objects::Node;

use super::{Path, Violation, Violations, names};

/// What is wrong with a Node.
pub fn node(node: &Node) -> Vec<Violation> {
    let mut found = Violations::default();
    found.metadata(&node.metadata, false, names::subdomain);
    let spec = Path::root("spec");
    let cidrs = spec.field("podCIDRs");
    let parsed: Vec<_> =
        node.spec.pod_cidrs.iter().enumerate().filter_map(|(i, cidr)| found.cidr(cidrs.index(i), cidr)).collect();
    let v4 = parsed.iter().filter(|cidr| cidr.addr().is_ipv4()).count();
    if v4 > 1 || parsed.len() - v4 > 1 {
        found.invalid(cidrs, &node.spec.pod_cidrs, "may specify no more than one CIDR for each IP family");
    }
    let status = Path::root("status");
    let addresses = status.field("addresses");
    for (i, address) in node.status.addresses.iter().enumerate() {
        let at = addresses.index(i);
        if matches!(address.kind.as_str(), "InternalIP" | "ExternalIP") {
            found.ip(at.field("address"), &address.address);
        }
    }
    found.into_vec()
}
