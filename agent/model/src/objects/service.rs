//! `v1` Service.

use std::collections::BTreeMap;

use culvert_api::plan::ServiceKey;
use serde::Deserialize;

use super::{ObjectMeta, object};

object! {
    /// A Service.
    pub struct Service {
        /// `metadata`.
        pub metadata: ObjectMeta,
        /// `spec`.
        pub spec: ServiceSpec,
        /// `status`.
        pub status: ServiceStatus,
    }
}

impl Service {
    /// Namespace and name.
    pub fn key(&self) -> ServiceKey {
        ServiceKey { namespace: self.metadata.namespace.clone(), name: self.metadata.name.clone() }
    }
}

object! {
    /// `spec` of a Service.
    pub struct ServiceSpec {
        /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
        #[serde(rename = "type")]
        pub kind: String,
        /// Labels of the pods behind it (the slice controller's business).
        pub selector: BTreeMap<String, String>,
        /// Its ports.
        pub ports: Vec<ServicePort>,
        /// The first of `cluster_ips`; `None` (the word) for a headless Service.
        #[serde(rename = "clusterIP")]
        pub cluster_ip: String,
        /// At most one address of each family.
        #[serde(rename = "clusterIPs")]
        pub cluster_ips: Vec<String>,
        /// `IPv4` and `IPv6`, in the order of `cluster_ips`.
        pub ip_families: Vec<String>,
        /// `SingleStack`, `PreferDualStack` or `RequireDualStack`.
        pub ip_family_policy: Option<String>,
        /// Addresses that the user routes to the nodes.
        #[serde(rename = "externalIPs")]
        pub external_ips: Vec<String>,
        /// The DNS name of an ExternalName Service.
        pub external_name: String,
        /// A wanted LoadBalancer address (deprecated upstream, in use all the same).
        #[serde(rename = "loadBalancerIP")]
        pub load_balancer_ip: String,
        /// Who provides the LoadBalancer address.
        pub load_balancer_class: Option<String>,
        /// Prefixes that may reach the LoadBalancer addresses. Older manifests have them in an annotation.
        pub load_balancer_source_ranges: Vec<String>,
        /// `None` (the word) or `ClientIP`.
        pub session_affinity: String,
        /// How long affinity lasts.
        pub session_affinity_config: Option<SessionAffinityConfig>,
        /// `Cluster` or `Local`, for ClusterIPs.
        pub internal_traffic_policy: Option<String>,
        /// `Cluster` or `Local`, for traffic from outside.
        pub external_traffic_policy: String,
        /// TCP port of the health check server with `externalTrafficPolicy: Local`; 0 without.
        pub health_check_node_port: i32,
        /// Whether endpoints count as ready whatever their pods say (the slice controller's business).
        pub publish_not_ready_addresses: bool,
        /// A wish about topology, which the slice controller turns into hints.
        pub traffic_distribution: Option<String>,
        /// Whether a LoadBalancer Service gets node ports; absent = yes.
        pub allocate_load_balancer_node_ports: Option<bool>,
    }
}

object! {
    /// `spec.ports[]` of a Service.
    pub struct ServicePort {
        /// Name, unique in the Service; may be empty if it is the only port.
        pub name: String,
        /// `TCP`, `UDP` or `SCTP`; empty = TCP.
        pub protocol: String,
        /// The application's protocol, for information.
        pub app_protocol: Option<String>,
        /// Port on the Service's addresses.
        pub port: i32,
        /// Port of the pods, by number or name; the slices carry the outcome.
        pub target_port: Option<IntOrString>,
        /// Port on each node; 0 = none.
        pub node_port: i32,
    }
}

/// A number or a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(untagged)]
pub enum IntOrString {
    /// A number.
    Int(i32),
    /// A name.
    String(String),
}

object! {
    /// `spec.sessionAffinityConfig`.
    pub struct SessionAffinityConfig {
        /// For `ClientIP`.
        #[serde(rename = "clientIP")]
        pub client_ip: Option<ClientIpConfig>,
    }
}

object! {
    /// `spec.sessionAffinityConfig.clientIP`.
    pub struct ClientIpConfig {
        /// Seconds, 1 to 86,400; absent = 10,800.
        pub timeout_seconds: Option<i32>,
    }
}

object! {
    /// `status` of a Service.
    pub struct ServiceStatus {
        /// What the LoadBalancer provider wrote.
        pub load_balancer: LoadBalancerStatus,
    }
}

object! {
    /// `status.loadBalancer`.
    pub struct LoadBalancerStatus {
        /// Addresses or names of the Service.
        pub ingress: Vec<LoadBalancerIngress>,
    }
}

object! {
    /// `status.loadBalancer.ingress[]`.
    pub struct LoadBalancerIngress {
        /// An address; may be empty.
        pub ip: String,
        /// A DNS name; may be empty.
        pub hostname: String,
        /// `VIP` (absent = VIP) or `Proxy`: whether packets arrive with this destination.
        pub ip_mode: Option<String>,
        /// The provider's word on each port.
        pub ports: Vec<PortStatus>,
    }
}

object! {
    /// `status.loadBalancer.ingress[].ports[]`.
    pub struct PortStatus {
        /// Port.
        pub port: i32,
        /// Protocol.
        pub protocol: String,
        /// Why the port is not served, if so.
        pub error: Option<String>,
    }
}
