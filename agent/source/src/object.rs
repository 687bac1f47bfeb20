//! The objects that a source delivers.

use std::fmt;
use std::sync::Arc;

use culvert_model::objects::{EndpointSlice, Node, ObjectKey, ObjectMeta, Service};
use culvert_pools::Resource;

/// The kinds that are read; all others in a folder are none of our business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node.
    Node,
    /// What address pools and announcements are configured with.
    Addresses(culvert_pools::Kind),
}

impl Kind {
    /// Whether objects of the kind are in a namespace.
    pub const fn is_namespaced(self) -> bool {
        match self {
            Self::Service | Self::EndpointSlice => true,
            Self::Node => false,
            Self::Addresses(kind) => kind.is_namespaced(),
        }
    }

    /// The word in `kind`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::Addresses(kind) => kind.name(),
        }
    }
}

/// Which object: kind, namespace and name.
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

/// An object, with the API server's defaults, and valid.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// A Service.
    Service(Arc<Service>),
    /// A slice of endpoints.
    EndpointSlice(Arc<EndpointSlice>),
    /// A Node.
    Node(Arc<Node>),
    /// A part of the configuration of addresses.
    Addresses(Resource),
}

impl Object {
    /// Which object it is.
    pub fn id(&self) -> Id {
        Id { kind: self.kind(), key: self.metadata().key() }
    }

    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Node(_) => Kind::Node,
            Self::Addresses(resource) => Kind::Addresses(resource.kind()),
        }
    }

    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Service(service) => &service.metadata,
            Self::EndpointSlice(slice) => &slice.metadata,
            Self::Node(node) => &node.metadata,
            Self::Addresses(resource) => resource.metadata(),
        }
    }
}

/// One change of the wanted state.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// An object is new or different.
    Upsert(Object),
    /// An object is gone.
    Remove(Id),
}
