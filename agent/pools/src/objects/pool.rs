//! `IPAddressPool`, and the Namespaces that it selects.

use culvert_model::object;
use culvert_model::objects::ObjectMeta;

use super::LabelSelector;

object! {
    /// `metallb.io/v1beta1` IPAddressPool.
    pub struct IpAddressPool {
        /// `metadata`; the name is the pool's.
        pub metadata: ObjectMeta,
        /// `spec`.
        pub spec: IpAddressPoolSpec,
    }
}

object! {
    /// `spec` of an IPAddressPool.
    pub struct IpAddressPoolSpec {
        /// CIDRs, or ranges `FIRST-LAST`; at least one.
        pub addresses: Vec<String>,
        /// Whether Services that do not name the pool may get its addresses; absent = true.
        pub auto_assign: Option<bool>,
        /// Leaves out IPv4 addresses that end in .0 or .255.
        #[serde(rename = "avoidBuggyIPs")]
        pub avoid_buggy_ips: bool,
        /// Which Services the pool is for; absent = all.
        pub service_allocation: Option<ServiceAllocation>,
    }
}

object! {
    /// `spec.serviceAllocation`: makes a pool one of certain Services' own, which they take before any other.
    pub struct ServiceAllocation {
        /// The lower, the sooner; 0 last.
        pub priority: i64,
        /// Namespaces by name.
        pub namespaces: Vec<String>,
        /// Namespaces by label.
        pub namespace_selectors: Vec<LabelSelector>,
        /// Services by label.
        pub service_selectors: Vec<LabelSelector>,
    }
}

object! {
    /// `v1` Namespace.
    pub struct Namespace {
        /// `metadata`.
        pub metadata: ObjectMeta,
    }
}
