//! `BGPPeer`, `Community` and `BFDProfile`.

use culvert_model::object;
use culvert_model::objects::ObjectMeta;

use super::LabelSelector;

object! {
    /// `metallb.io` BGPPeer, v1beta1 or v1beta2: the older version has fewer fields of the same names and meanings.
    pub struct BgpPeer {
        /// `metallb.io/v1beta1` or `metallb.io/v1beta2`.
        pub api_version: String,
        /// `metadata`.
        pub metadata: ObjectMeta,
        /// `spec`.
        pub spec: BgpPeerSpec,
    }
}

object! {
    /// `spec` of a BGPPeer.
    pub struct BgpPeerSpec {
        /// Our AS number.
        #[serde(rename = "myASN")]
        pub my_asn: i64,
        /// The peer's AS number; 0 or absent with `dynamicASN`.
        #[serde(rename = "peerASN")]
        pub peer_asn: i64,
        /// `internal` or `external`: any AS number of the peer's that is, or is not, ours.
        #[serde(rename = "dynamicASN")]
        pub dynamic_asn: String,
        /// An AS number to show to this peer instead of `myASN`.
        #[serde(rename = "localASN")]
        pub local_asn: Option<i64>,
        /// The peer's address.
        pub peer_address: String,
        /// Instead of the address, the interface that leads to the peer.
        pub interface: String,
        /// Address to speak from.
        pub source_address: String,
        /// TCP port; absent = 179.
        pub peer_port: Option<i64>,
        /// Go duration, such as `90s`.
        pub hold_time: Option<String>,
        /// Go duration.
        pub keepalive_time: Option<String>,
        /// Go duration.
        pub connect_time: Option<String>,
        /// BGP identifier, an IPv4 address.
        #[serde(rename = "routerID")]
        pub router_id: String,
        /// Nodes that speak to this peer; empty = all.
        pub node_selectors: Vec<LabelSelector>,
        /// TCP MD5 password.
        pub password: String,
        /// A Secret that holds the password.
        pub password_secret: SecretReference,
        /// Name of a BFDProfile; empty = no BFD.
        pub bfd_profile: String,
        /// Whether the peer keeps routes while we restart.
        pub enable_graceful_restart: bool,
        /// Whether an external peer may be more than one hop away.
        pub ebgp_multi_hop: bool,
        /// The VRF that leads to the peer.
        pub vrf: String,
        /// Deprecated: one family a session.
        #[serde(rename = "disableMP")]
        pub disable_mp: bool,
        /// Both families in one session.
        pub dual_stack_address_family: bool,
    }
}

object! {
    /// `spec.passwordSecret`.
    pub struct SecretReference {
        /// Name.
        pub name: String,
        /// Namespace; empty = the peer's own.
        pub namespace: String,
    }
}

object! {
    /// `metallb.io/v1beta1` Community.
    pub struct Community {
        /// `metadata`.
        pub metadata: ObjectMeta,
        /// `spec`.
        pub spec: CommunitySpec,
    }
}

object! {
    /// `spec` of a Community.
    pub struct CommunitySpec {
        /// Names for communities.
        pub communities: Vec<CommunityAlias>,
    }
}

object! {
    /// `spec.communities[]`.
    pub struct CommunityAlias {
        /// The name.
        pub name: String,
        /// What it stands for: `A:B` or `large:A:B:C`.
        pub value: String,
    }
}

object! {
    /// `metallb.io/v1beta1` BFDProfile.
    pub struct BfdProfile {
        /// `metadata`.
        pub metadata: ObjectMeta,
        /// `spec`.
        pub spec: BfdProfileSpec,
    }
}

object! {
    /// `spec` of a BFDProfile. Intervals are in milliseconds.
    pub struct BfdProfileSpec {
        /// 10 to 60,000.
        pub receive_interval: Option<i64>,
        /// 10 to 60,000.
        pub transmit_interval: Option<i64>,
        /// 2 to 255.
        pub detect_multiplier: Option<i64>,
        /// 10 to 60,000.
        pub echo_interval: Option<i64>,
        /// Whether echo packets are sent.
        pub echo_mode: Option<bool>,
        /// Whether the peer has to begin.
        pub passive_mode: Option<bool>,
        /// 1 to 254.
        pub minimum_ttl: Option<i64>,
    }
}
