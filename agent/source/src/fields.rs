//! The fields that objects have in the API, so that a misspelt one is pointed out instead of ignored.

use crate::object::Kind;
use crate::tree::{Node, Tree};

/// Where in an object which fields may stand; `[]` stands for each item of a list.
const SERVICE: &[(&str, &[&str])] = &[
    ("", &["apiVersion", "kind", "metadata", "spec", "status"]),
    (
        "spec",
        &[
            "allocateLoadBalancerNodePorts",
            "clusterIP",
            "clusterIPs",
            "externalIPs",
            "externalName",
            "externalTrafficPolicy",
            "healthCheckNodePort",
            "internalTrafficPolicy",
            "ipFamilies",
            "ipFamilyPolicy",
            "loadBalancerClass",
            "loadBalancerIP",
            "loadBalancerSourceRanges",
            "ports",
            "publishNotReadyAddresses",
            "selector",
            "sessionAffinity",
            "sessionAffinityConfig",
            "trafficDistribution",
            "type",
        ],
    ),
    ("spec.ports[]", &["appProtocol", "name", "nodePort", "port", "protocol", "targetPort"]),
    ("spec.sessionAffinityConfig", &["clientIP"]),
    ("spec.sessionAffinityConfig.clientIP", &["timeoutSeconds"]),
    ("status", &["conditions", "loadBalancer"]),
    ("status.loadBalancer", &["ingress"]),
    ("status.loadBalancer.ingress[]", &["hostname", "ip", "ipMode", "ports"]),
];

const ENDPOINT_SLICE: &[(&str, &[&str])] = &[
    ("", &["addressType", "apiVersion", "endpoints", "kind", "metadata", "ports"]),
    (
        "endpoints[]",
        &["addresses", "conditions", "deprecatedTopology", "hints", "hostname", "nodeName", "targetRef", "zone"],
    ),
    ("endpoints[].conditions", &["ready", "serving", "terminating"]),
    ("endpoints[].hints", &["forNodes", "forZones"]),
    ("ports[]", &["appProtocol", "name", "port", "protocol"]),
];

const SELECTOR: &[&str] = &["matchExpressions", "matchLabels"];

/// What addresses are configured with.
const ADDRESSES: &[(culvert_pools::Kind, &[&str])] = &[
    (culvert_pools::Kind::IpAddressPool, &["addresses", "autoAssign", "avoidBuggyIPs", "serviceAllocation"]),
    (
        culvert_pools::Kind::L2Advertisement,
        &[
            "interfaces",
            "ipAddressPoolSelectors",
            "ipAddressPools",
            "nodeSelectors",
            "preferredNodeSelectors",
            "serviceSelectors",
        ],
    ),
    (
        culvert_pools::Kind::BgpAdvertisement,
        &[
            "aggregationLength",
            "aggregationLengthV6",
            "asPathPrepend",
            "communities",
            "ipAddressPoolSelectors",
            "ipAddressPools",
            "localPref",
            "nodeSelectors",
            "peers",
            "serviceSelectors",
        ],
    ),
    (culvert_pools::Kind::Community, &["communities"]),
    (
        culvert_pools::Kind::BgpPeer,
        &[
            "bfdProfile",
            "connectTime",
            "disableMP",
            "dualStackAddressFamily",
            "dynamicASN",
            "ebgpMultiHop",
            "enableGracefulRestart",
            "holdTime",
            "interface",
            "keepaliveTime",
            "localASN",
            "myASN",
            "nodeSelectors",
            "password",
            "passwordSecret",
            "peerASN",
            "peerAddress",
            "peerPort",
            "routerID",
            "sourceAddress",
            "vrf",
        ],
    ),
    (
        culvert_pools::Kind::BfdProfile,
        &[
            "detectMultiplier",
            "echoInterval",
            "echoMode",
            "minimumTtl",
            "passiveMode",
            "receiveInterval",
            "transmitInterval",
        ],
    ),
];

/// Places below `spec`, of whatever kind has them.
const BELOW: &[(&str, &[&str])] = &[
    ("", &["apiVersion", "kind", "metadata", "spec", "status"]),
    ("spec.serviceAllocation", &["namespaceSelectors", "namespaces", "priority", "serviceSelectors"]),
    ("spec.serviceAllocation.namespaceSelectors[]", SELECTOR),
    ("spec.serviceAllocation.serviceSelectors[]", SELECTOR),
    ("spec.ipAddressPoolSelectors[]", SELECTOR),
    ("spec.nodeSelectors[]", SELECTOR),
    ("spec.serviceSelectors[]", SELECTOR),
    ("spec.preferredNodeSelectors[]", &["preference", "weight"]),
    ("spec.preferredNodeSelectors[].preference", SELECTOR),
    ("spec.passwordSecret", &["name", "namespace"]),
];

/// Calls `report` with the path and the line of each field that the API does not know. The API server only warns
/// about them unless it is asked to be strict, and so does a source.
pub fn unknown(kind: Kind, object: &Tree, report: &mut dyn FnMut(String, u64)) {
    let spec;
    let places: Vec<&(&str, &[&str])> = match kind {
        Kind::Service => SERVICE.iter().collect(),
        Kind::EndpointSlice => ENDPOINT_SLICE.iter().collect(),
        Kind::Node => return,
        Kind::Addresses(kind) => {
            let Some((_, known)) = ADDRESSES.iter().find(|(of, _)| *of == kind) else { return };
            spec = ("spec", *known);
            BELOW.iter().chain([&spec]).collect()
        }
    };
    for (place, known) in places {
        visit(object, place, "", &mut |at, path| {
            let Node::Map(entries) = &at.node else { return };
            for (key, value) in entries.iter().filter(|(key, _)| !known.contains(&key.as_str())) {
                report(join(path, key), value.line);
            }
        });
    }
}

/// Calls `found` with each node at a place.
fn visit(at: &Tree, place: &str, path: &str, found: &mut dyn FnMut(&Tree, &str)) {
    if place.is_empty() {
        return found(at, path);
    }
    let (step, rest) = place.split_once('.').unwrap_or((place, ""));
    let name = step.strip_suffix("[]");
    let Some(next) = at.get(name.unwrap_or(step)) else { return };
    let path = join(path, name.unwrap_or(step));
    if name.is_none() {
        return visit(next, rest, &path, found);
    }
    for (i, item) in next.items().iter().enumerate() {
        visit(item, rest, &format!("{path}[{i}]"), found);
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
