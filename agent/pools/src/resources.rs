//! A set of resources, as a source delivers them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::objects::{Node, ObjectKey, ObjectMeta};
use culvert_model::parse_address;
use serde::{Deserialize, Deserializer};

use crate::objects::{BfdProfile, BgpAdvertisement, BgpPeer, Community, IpAddressPool, L2Advertisement, Namespace};

/// The kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A pool of addresses.
    IpAddressPool,
    /// Announcement by ARP and NDP.
    L2Advertisement,
    /// Announcement by BGP.
    BgpAdvertisement,
    /// Names of communities.
    Community,
    /// A BGP neighbour.
    BgpPeer,
    /// Settings of BFD.
    BfdProfile,
    /// A `v1` Namespace, which pools select by label.
    Namespace,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::IpAddressPool,
        Self::L2Advertisement,
        Self::BgpAdvertisement,
        Self::Community,
        Self::BgpPeer,
        Self::BfdProfile,
        Self::Namespace,
    ];

    /// The word in `kind`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::IpAddressPool => "IPAddressPool",
            Self::L2Advertisement => "L2Advertisement",
            Self::BgpAdvertisement => "BGPAdvertisement",
            Self::Community => "Community",
            Self::BgpPeer => "BGPPeer",
            Self::BfdProfile => "BFDProfile",
            Self::Namespace => "Namespace",
        }
    }

    /// The word in the API server's paths.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::IpAddressPool => "ipaddresspools",
            Self::L2Advertisement => "l2advertisements",
            Self::BgpAdvertisement => "bgpadvertisements",
            Self::Community => "communities",
            Self::BgpPeer => "bgppeers",
            Self::BfdProfile => "bfdprofiles",
            Self::Namespace => "namespaces",
        }
    }

    /// The kind of `apiVersion` and `kind`.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|found| found.name() == kind)?;
        found.api_versions().contains(&api_version).then_some(found)
    }

    /// Whether objects of the kind are in a namespace.
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace)
    }

    /// The versions that are read, the newest first.
    pub const fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::BgpPeer => &["metallb.io/v1beta2", "metallb.io/v1beta1"],
            Self::Namespace => &["v1"],
            _ => &["metallb.io/v1beta1"],
        }
    }
}

/// Which resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// Its kind.
    pub kind: Kind,
    /// Namespace and name.
    pub key: ObjectKey,
}

/// `Kind/namespace/name`, as problems name objects.
impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.name(), self.key)
    }
}

/// A resource, cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// A pool of addresses.
    IpAddressPool(Arc<IpAddressPool>),
    /// Announcement by ARP and NDP.
    L2Advertisement(Arc<L2Advertisement>),
    /// Announcement by BGP.
    BgpAdvertisement(Arc<BgpAdvertisement>),
    /// Names of communities.
    Community(Arc<Community>),
    /// A BGP neighbour.
    BgpPeer(Arc<BgpPeer>),
    /// Settings of BFD.
    BfdProfile(Arc<BfdProfile>),
    /// A Namespace.
    Namespace(Arc<Namespace>),
}

impl Resource {
    /// Decodes a resource of a kind, without checking it.
    pub fn deserialize<'de, D: Deserializer<'de>>(kind: Kind, decoder: D) -> Result<Self, D::Error> {
        Ok(match kind {
            Kind::IpAddressPool => Self::IpAddressPool(Arc::new(Deserialize::deserialize(decoder)?)),
            Kind::L2Advertisement => Self::L2Advertisement(Arc::new(Deserialize::deserialize(decoder)?)),
            Kind::BgpAdvertisement => Self::BgpAdvertisement(Arc::new(Deserialize::deserialize(decoder)?)),
            Kind::Community => Self::Community(Arc::new(Deserialize::deserialize(decoder)?)),
            Kind::BgpPeer => Self::BgpPeer(Arc::new(Deserialize::deserialize(decoder)?)),
            Kind::BfdProfile => Self::BfdProfile(Arc::new(Deserialize::deserialize(decoder)?)),
            Kind::Namespace => Self::Namespace(Arc::new(Deserialize::deserialize(decoder)?)),
        })
    }

    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::IpAddressPool(_) => Kind::IpAddressPool,
            Self::L2Advertisement(_) => Kind::L2Advertisement,
            Self::BgpAdvertisement(_) => Kind::BgpAdvertisement,
            Self::Community(_) => Kind::Community,
            Self::BgpPeer(_) => Kind::BgpPeer,
            Self::BfdProfile(_) => Kind::BfdProfile,
            Self::Namespace(_) => Kind::Namespace,
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::IpAddressPool(pool) => &pool.metadata,
            Self::L2Advertisement(advertisement) => &advertisement.metadata,
            Self::BgpAdvertisement(advertisement) => &advertisement.metadata,
            Self::Community(community) => &community.metadata,
            Self::BgpPeer(peer) => &peer.metadata,
            Self::BfdProfile(profile) => &profile.metadata,
            Self::Namespace(namespace) => &namespace.metadata,
        }
    }

    /// Its metadata, to be changed.
    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::IpAddressPool(pool) => &mut Arc::make_mut(pool).metadata,
            Self::L2Advertisement(advertisement) => &mut Arc::make_mut(advertisement).metadata,
            Self::BgpAdvertisement(advertisement) => &mut Arc::make_mut(advertisement).metadata,
            Self::Community(community) => &mut Arc::make_mut(community).metadata,
            Self::BgpPeer(peer) => &mut Arc::make_mut(peer).metadata,
            Self::BfdProfile(profile) => &mut Arc::make_mut(profile).metadata,
            Self::Namespace(namespace) => &mut Arc::make_mut(namespace).metadata,
        }
    }

    /// Which one it is.
    pub fn id(&self) -> Id {
        Id { kind: self.kind(), key: self.metadata().key() }
    }
}

/// What the configuration depends on of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
}

/// A set of resources, from which a [`Config`](crate::Config) is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    objects: BTreeMap<Id, Resource>,
    nodes: BTreeMap<String, NodeFacts>,
}

impl Resources {
    /// Adds a resource, or takes its new state; `true` if the set is another one now.
    pub fn upsert(&mut self, resource: Resource) -> bool {
        let id = resource.id();
        let changed = self.objects.get(&id) != Some(&resource);
        self.objects.insert(id, resource);
        changed
    }

    /// Removes a resource; `true` if it was there.
    pub fn remove(&mut self, id: &Id) -> bool {
        self.objects.remove(id).is_some()
    }

    /// Takes a Node's state; `true` if that is of any concern.
    pub fn upsert_node(&mut self, node: &Node) -> bool {
        let addresses = node.status.addresses.iter().filter(|a| matches!(&*a.kind, "InternalIP" | "ExternalIP"));
        let facts = NodeFacts {
            labels: node.metadata.labels.clone(),
            addresses: addresses.filter_map(|address| parse_address(&address.address)).collect(),
        };
        let changed = self.nodes.get(&node.metadata.name) != Some(&facts);
        self.nodes.insert(node.metadata.name.clone(), facts);
        changed
    }

    /// Removes a Node; `true` if it was there.
    pub fn remove_node(&mut self, name: &str) -> bool {
        self.nodes.remove(name).is_some()
    }

    /// All resources, sorted by kind, namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Resource> {
        self.objects.values()
    }

    pub(crate) fn nodes(&self) -> &BTreeMap<String, NodeFacts> {
        &self.nodes
    }
}

impl FromIterator<Resource> for Resources {
    fn from_iter<T: IntoIterator<Item = Resource>>(resources: T) -> Self {
        Self { objects: resources.into_iter().map(|one| (one.id(), one)).collect(), nodes: BTreeMap::new() }
    }
}
