//! `v1` Node.

use super::{ObjectMeta, object};

object! {
    /// A Node.
    pub struct Node {
        /// `metadata`.
        pub metadata: ObjectMeta,
        /// `spec`.
        pub spec: NodeSpec,
        /// `status`.
        pub status: NodeStatus,
    }
}

impl Node {
    /// The zone, from the label `topology.kubernetes.io/zone`.
    pub fn zone(&self) -> Option<&str> {
        self.metadata.labels.get("topology.kubernetes.io/zone").map(String::as_str).filter(|zone| !zone.is_empty())
    }
}

object! {
    /// `spec` of a Node.
    pub struct NodeSpec {
        /// Prefixes of the node's pods.
        #[serde(rename = "podCIDRs")]
        pub pod_cidrs: Vec<String>,
        /// The first of `pod_cidrs`.
        #[serde(rename = "podCIDR")]
        pub pod_cidr: String,
        /// Taints.
        pub taints: Vec<Taint>,
        /// No new pods are scheduled here.
        pub unschedulable: bool,
    }
}

object! {
    /// `spec.taints[]`.
    pub struct Taint {
        /// Key.
        pub key: String,
        /// Value.
        pub value: String,
        /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
        pub effect: String,
    }
}

object! {
    /// `status` of a Node.
    pub struct NodeStatus {
        /// Its addresses.
        pub addresses: Vec<NodeAddress>,
        /// Its conditions.
        pub conditions: Vec<NodeCondition>,
    }
}

object! {
    /// `status.addresses[]`.
    pub struct NodeAddress {
        /// `InternalIP`, `ExternalIP`, `Hostname`, ...
        #[serde(rename = "type")]
        pub kind: String,
        /// The address or name.
        pub address: String,
    }
}

object! {
    /// `status.conditions[]`.
    pub struct NodeCondition {
        /// `Ready`, ...
        #[serde(rename = "type")]
        pub kind: String,
        /// `True`, `False` or `Unknown`.
        pub status: String,
    }
}
