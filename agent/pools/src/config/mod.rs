//! What the resources mean together: all of it, or everything that is wrong and nothing of it, so that the last good
//! configuration can stay in force.

mod advertisement;
mod bgp;
mod community;
mod compile;
mod pool;
mod violations;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

pub use advertisement::{BgpAdvertisement, L2Advertisement, PoolChoice};
pub use bgp::duration;
pub use community::Community;
pub use pool::{Allocation, Candidate, Pool};
pub use violations::Violation;
pub(crate) use violations::Violations;

use crate::objects::{BfdProfile, BgpPeer};
use crate::range::Range;
use crate::resources::{Id, Resource, Resources};

/// A valid configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Pools by name.
    pub pools: BTreeMap<Arc<str>, Arc<Pool>>,
    /// Announcements by ARP and NDP.
    pub layer2: Vec<L2Advertisement>,
    /// Announcements by BGP.
    pub bgp: Vec<BgpAdvertisement>,
    /// BGP neighbours; every rule of their fields holds.
    pub peers: Vec<Arc<BgpPeer>>,
    /// BFD settings by name; every rule of their fields holds.
    pub bfd_profiles: BTreeMap<String, Arc<BfdProfile>>,
}

/// Something about an object of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The object.
    pub object: Id,
    /// Path of the field, such as `spec.addresses[0]`.
    pub field: String,
    /// What is to be said.
    pub message: String,
}

/// `Kind/namespace/name: field: message`.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.object, self.field, self.message)
    }
}

impl Config {
    /// Makes a configuration of resources.
    ///
    /// # Errors
    /// Everything that is wrong, sorted by object.
    pub fn new(resources: &Resources) -> Result<Self, Vec<Finding>> {
        compile::config(resources)
    }

    /// The pool that an address is of: it is of one at most.
    pub fn pool_of(&self, address: IpAddr) -> Option<&Arc<Pool>> {
        self.pools.values().find(|pool| pool.contains(address))
    }

    /// What is allowed and hardly meant, sorted by object.
    pub fn warnings(&self, resources: &Resources) -> Vec<Finding> {
        compile::warnings(self, resources)
    }
}

/// What is wrong with one object, whatever there is beside it: what the API server refuses by schema.
pub fn violations(resource: &Resource) -> Vec<Violation> {
    let mut found = Violations::default();
    match resource {
        Resource::IpAddressPool(pool) => drop(Pool::new(pool, &mut found)),
        Resource::L2Advertisement(advertisement) => drop(L2Advertisement::new(advertisement, &mut found)),
        Resource::BgpAdvertisement(advertisement) => drop(BgpAdvertisement::alone(advertisement, &mut found)),
        Resource::Community(community) => drop(community::aliases(community, &mut found)),
        Resource::BgpPeer(peer) => bgp::peer(peer, &mut found),
        Resource::BfdProfile(profile) => bgp::bfd_profile(profile, &mut found),
        Resource::Namespace(_) => {}
    }
    found.into_vec()
}
