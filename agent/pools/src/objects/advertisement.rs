//! `L2Advertisement` and `BGPAdvertisement`.

use culvert_model::object;
use culvert_model::objects::ObjectMeta;

use super::LabelSelector;

object! {
    /// `metallb.io/v1beta1` L2Advertisement.
    pub struct L2Advertisement {
        /// `metadata`.
        pub metadata: ObjectMeta,
        /// `spec`.
        pub spec: L2AdvertisementSpec,
    }
}

object! {
    /// `spec` of an L2Advertisement.
    pub struct L2AdvertisementSpec {
        /// Pools by name.
        #[serde(rename = "ipAddressPools")]
        pub ip_address_pools: Vec<String>,
        /// Pools by label; without these and names, all pools.
        #[serde(rename = "ipAddressPoolSelectors")]
        pub ip_address_pool_selectors: Vec<LabelSelector>,
        /// Nodes that may announce; empty = all.
        pub node_selectors: Vec<LabelSelector>,
        /// Interfaces to announce on; empty = all.
        pub interfaces: Vec<String>,
        /// Services that are announced; empty = all.
        pub service_selectors: Vec<LabelSelector>,
        /// Nodes that should announce rather than others.
        pub preferred_node_selectors: Vec<NodePreference>,
    }
}

object! {
    /// `spec.preferredNodeSelectors[]`.
    pub struct NodePreference {
        /// 1 to 100; the weights of all preferences that match a node are added up.
        pub weight: i64,
        /// Which nodes.
        pub preference: LabelSelector,
    }
}

object! {
    /// `metallb.io/v1beta1` BGPAdvertisement.
    pub struct BgpAdvertisement {
        /// `metadata`.
        pub metadata: ObjectMeta,
        /// `spec`.
        pub spec: BgpAdvertisementSpec,
    }
}

object! {
    /// `spec` of a BGPAdvertisement.
    pub struct BgpAdvertisementSpec {
        /// Prefix length that IPv4 addresses are rolled up to, 1 to 32; absent = 32.
        pub aggregation_length: Option<i64>,
        /// The same for IPv6, 1 to 128; absent = 128.
        pub aggregation_length_v6: Option<i64>,
        /// `LOCAL_PREF` towards internal peers; 0 = not set.
        pub local_pref: i64,
        /// How often our AS number is put in front of the path once more, 1 to 10; absent = not at all.
        pub as_path_prepend: Option<i64>,
        /// `A:B`, `large:A:B:C`, or names that Community objects give.
        pub communities: Vec<String>,
        /// Pools by name.
        #[serde(rename = "ipAddressPools")]
        pub ip_address_pools: Vec<String>,
        /// Pools by label; without these and names, all pools.
        #[serde(rename = "ipAddressPoolSelectors")]
        pub ip_address_pool_selectors: Vec<LabelSelector>,
        /// Nodes that announce; empty = all.
        pub node_selectors: Vec<LabelSelector>,
        /// BGPPeers by name; empty = all.
        pub peers: Vec<String>,
        /// Services that are announced; empty = all.
        pub service_selectors: Vec<LabelSelector>,
    }
}
