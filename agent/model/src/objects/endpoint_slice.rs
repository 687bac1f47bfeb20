//! `discovery.k8s.io/v1` EndpointSlice.

use super::{ObjectKey, ObjectMeta, ObjectReference, object};

object! {
    /// Some of a Service's endpoints.
    pub struct EndpointSlice {
        /// `metadata`; the label `kubernetes.io/service-name` names the Service.
        pub metadata: ObjectMeta,
        /// `IPv4`, `IPv6` or `FQDN`.
        pub address_type: String,
        /// The endpoints.
        pub endpoints: Vec<Endpoint>,
        /// Ports that every endpoint of this slice has.
        pub ports: Vec<EndpointPort>,
    }
}

impl EndpointSlice {
    /// Namespace and name of the slice itself.
    pub fn key(&self) -> ObjectKey {
        self.metadata.key()
    }

    /// Name of the Service that it belongs to, from its label.
    pub fn service_name(&self) -> Option<&str> {
        self.metadata.labels.get("kubernetes.io/service-name").map(String::as_str).filter(|name| !name.is_empty())
    }
}

object! {
    /// `endpoints[]`.
    pub struct Endpoint {
        /// Addresses; all but the first are ignored, as in kube-proxy.
        pub addresses: Vec<String>,
        /// State.
        pub conditions: EndpointConditions,
        /// Host name, for DNS.
        pub hostname: Option<String>,
        /// The node that it runs on.
        pub node_name: Option<String>,
        /// The zone that it runs in.
        pub zone: Option<String>,
        /// Who should use it.
        pub hints: Option<EndpointHints>,
        /// The object behind it.
        pub target_ref: Option<ObjectReference>,
    }
}

object! {
    /// `endpoints[].conditions`.
    pub struct EndpointConditions {
        /// Takes new connections; absent = yes.
        pub ready: Option<bool>,
        /// Answers, be it terminating or not; absent = as `ready`.
        pub serving: Option<bool>,
        /// Is being deleted; absent = no.
        pub terminating: Option<bool>,
    }
}

object! {
    /// `endpoints[].hints`.
    pub struct EndpointHints {
        /// Zones that should use it.
        pub for_zones: Vec<HintTarget>,
        /// Nodes that should use it.
        pub for_nodes: Vec<HintTarget>,
    }
}

object! {
    /// One zone or node of a hint.
    pub struct HintTarget {
        /// Its name.
        pub name: String,
    }
}

object! {
    /// `ports[]`.
    pub struct EndpointPort {
        /// Name of the Service port; absent or empty for a Service with one unnamed port.
        pub name: Option<String>,
        /// `TCP`, `UDP` or `SCTP`; absent = TCP.
        pub protocol: Option<String>,
        /// Port of the endpoints; absent = none is to be served.
        pub port: Option<i32>,
        /// The application's protocol, for information.
        pub app_protocol: Option<String>,
    }
}
