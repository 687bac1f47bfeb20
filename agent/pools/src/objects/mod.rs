//! MetalLB's resources (group `metallb.io`) with the fields that are read, as lenient as the API machinery: unknown fields are
//! ignored, `null` is the zero value, numbers of any size are taken as they are. [`config`](crate::config) checks them.

mod advertisement;
mod bgp;
mod pool;
mod selector;

pub use advertisement::{BgpAdvertisement, BgpAdvertisementSpec, L2Advertisement, L2AdvertisementSpec, NodePreference};
pub use bgp::{
    BfdProfile, BfdProfileSpec, BgpPeer, BgpPeerSpec, Community, CommunityAlias, CommunitySpec, SecretReference,
};
pub(crate) use culvert_model::objects::null_as_default;
pub use pool::{IpAddressPool, IpAddressPoolSpec, Namespace, ServiceAllocation};
pub use selector::{LabelSelector, LabelSelectorRequirement};
