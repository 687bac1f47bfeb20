//! The objects of a size: Services with one slice each, as the controllers of a cluster write them, and the probe, a Service with
//! a single endpoint that moves.

use std::fmt;
use std::net::Ipv4Addr;
use std::ops::Range;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use serde_json::{Value, json};

/// Port of every Service.
pub const PORT: u16 = 80;
/// Port of every endpoint.
pub const TARGET: u16 = 8_080;
/// The namespace of all objects but the Node.
pub const NAMESPACE: &str = "bench";
/// The probe's name. It comes after all others in every order.
pub const PROBE: &str = "zz-probe";
/// Where endpoints are.
pub const PODS: &str = "10.128.0.0/10";

/// ClusterIPs begin here; those below are the API server's to give out.
const SERVICES: u32 = 0x0a60_0100; // 10.96.1.0
/// Endpoints begin here.
const ENDPOINTS: u32 = 0x0a80_0000; // 10.128.0.0
/// The places of the probe's endpoint are at the end of [`PODS`].
const PROBE_ENDPOINTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 191, 255, 1), Ipv4Addr::new(10, 191, 255, 2)];
/// As many as there are addresses, but for some that are left to others.
const MOST_SERVICES: u32 = 65_000;
const MOST_ENDPOINTS: u32 = 4_000_000;
/// A slice can hold as many (`maxEndpoints` in Kubernetes' pkg/apis/discovery/validation).
const MOST_IN_SLICE: u32 = 1_000;
/// Endpoints of a Service where a size does not say.
const USUAL: u32 = 10;
/// Nodes that endpoints are spread over.
const NODES: u32 = 100;

/// So many Services, each with so many endpoints; the probe comes on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Services.
    pub services: u32,
    /// Endpoints of each.
    pub endpoints: u32,
}

impl FromStr for Size {
    type Err = String;

    /// `10000` or `5000x50`.
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number > 0);
        let (services, endpoints) = match text.split_once('x') {
            Some((services, endpoints)) => (number(services), number(endpoints)),
            None => (number(text), Some(USUAL)),
        };
        let (Some(services), Some(endpoints)) = (services, endpoints) else {
            return Err("neither SERVICES nor SERVICESxENDPOINTS".to_owned());
        };
        if services > MOST_SERVICES || endpoints > MOST_IN_SLICE || services * endpoints > MOST_ENDPOINTS {
            return Err(format!(
                "more than {MOST_SERVICES} Services, {MOST_IN_SLICE} endpoints of one, or {MOST_ENDPOINTS} of all"
            ));
        }
        Ok(Self { services, endpoints })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.services, self.endpoints)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One Service of a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    number: u32,
    endpoints: u32,
}

impl Size {
    /// All Services but the probe, in the order of their names.
    pub fn all(self) -> impl Iterator<Item = Service> {
        (0..self.services).map(move |number| Service { number, endpoints: self.endpoints })
    }

    /// At most `count` Services, the first and the last among them, at equal distances.
    pub fn sample(self, count: u32) -> Vec<Service> {
        let count = count.clamp(1, self.services);
        let last = u64::from(self.services - 1);
        let numbers = (1..=count).map(|n| u64::from(n) * last / u64::from(count));
        let numbers = std::iter::once(0).chain(numbers).map(|number| number as u32);
        let mut sample: Vec<_> = numbers.map(|number| Service { number, endpoints: self.endpoints }).collect();
        sample.dedup();
        sample
    }
}

impl Service {
    /// Its address.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::from(SERVICES + self.number)
    }

    /// Whether an address is one of its endpoints.
    pub fn has(self, endpoint: Ipv4Addr) -> bool {
        self.endpoint_numbers().contains(&endpoint.into())
    }

    fn endpoint_addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        self.endpoint_numbers().map(Ipv4Addr::from)
    }

    fn endpoint_numbers(self) -> Range<u32> {
        let first = ENDPOINTS + self.number * self.endpoints;
        first..first + self.endpoints
    }

    fn name(self) -> String {
        format!("service-{:05}", self.number)
    }

    /// The Service itself.
    pub fn object(self) -> Value {
        service(&self.name(), self.address())
    }

    /// Its slice.
    pub fn slice(self) -> Value {
        slice(&self.name(), &self.endpoint_addresses().map(endpoint).collect::<Vec<_>>())
    }
}

/// The Service whose endpoint moves.
#[derive(Clone, Copy, Debug)]
pub struct Probe;

impl Probe {
    /// Its address.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::from(SERVICES + MOST_SERVICES)
    }

    /// Where its endpoint is after so many moves.
    pub fn place(self, moves: usize) -> Ipv4Addr {
        PROBE_ENDPOINTS[moves % 2]
    }

    /// The Service itself.
    pub fn object(self) -> Value {
        service(PROBE, self.address())
    }

    /// Its slice after so many moves.
    pub fn slice(self, moves: usize) -> Value {
        slice(PROBE, &[endpoint(self.place(moves))])
    }

    /// The name of its slice.
    pub fn slice_name(self) -> String {
        slice_name(PROBE)
    }
}

/// The Node of a proxy.
pub fn node(name: &str, address: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": "zone-1"}},
        "status": {"addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]},
    })
}

fn service(name: &str, address: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app.kubernetes.io/name": name}},
        "spec": {
            "clusterIP": address,
            "selector": {"app.kubernetes.io/name": name},
            "ports": [{"name": "http", "port": PORT, "targetPort": TARGET, "protocol": "TCP"}],
        },
    })
}

fn slice(service: &str, endpoints: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": slice_name(service), "namespace": NAMESPACE,
            "labels": {
                "app.kubernetes.io/name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": service,
            },
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": TARGET, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

fn slice_name(service: &str) -> String {
    format!("{service}-x7k2p")
}

fn endpoint(address: Ipv4Addr) -> Value {
    let number = u32::from(address) - ENDPOINTS;
    json!({
        "addresses": [address],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": format!("node-{}", number % NODES),
        "zone": format!("zone-{}", number % 3 + 1),
        "targetRef": {
            "kind": "Pod", "namespace": NAMESPACE, "name": format!("pod-{number:07}"),
            "uid": format!("5f1c2a70-7d63-4c1e-9a44-{number:012}"),
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!("10000".parse(), Ok(Size { services: 10_000, endpoints: 10 }));
        assert_eq!("5000x50".parse(), Ok(Size { services: 5_000, endpoints: 50 }));
        for wrong in ["", "0", "x", "5x", "x5", "-1", "1x0", "70000", "1x1001", "65000x1000", "99999999999"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_sample_has_both_ends_and_nothing_twice() {
        for services in [1, 2, 63, 64, 65, 10_000] {
            let size = Size { services, endpoints: 3 };
            let sample: Vec<u32> = size.sample(64).iter().map(|service| service.number).collect();
            assert_eq!((sample.first(), sample.last()), (Some(&0), Some(&(services - 1))));
            assert!(sample.is_sorted_by(|a, b| a < b) && sample.len() <= 65, "{sample:?}");
            assert!(sample.len() >= services.min(64) as usize, "{services}: {}", sample.len());
        }
    }

    #[test]
    fn no_address_is_given_twice() {
        let size: Size = "65000x61".parse().unwrap();
        let (mut services, mut endpoints) = (HashSet::from([Probe.address()]), HashSet::new());
        let pods: ipnet::Ipv4Net = PODS.parse().unwrap();
        for place in [Probe.place(0), Probe.place(1)] {
            assert!(endpoints.insert(place) && pods.contains(&place));
        }
        for service in size.all() {
            assert!(services.insert(service.address()));
            for endpoint in service.endpoint_addresses() {
                assert!(endpoints.insert(endpoint) && pods.contains(&endpoint), "{endpoint}");
            }
        }
        assert!(services.iter().all(|address| address.octets()[..2] == [10, 96]));
    }
}
