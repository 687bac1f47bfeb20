//! The Kubernetes objects that the model reads, with the fields that it reads.
//!
//! Decoding is as lenient as the API machinery's: unknown fields are ignored, `null` is the zero value, strings that
//! stand for enumerations and numbers of any size are taken as they are. Checking them is the source's job; the
//! model survives whatever is in them.

mod endpoint_slice;
mod meta;
mod node;
mod service;

pub use endpoint_slice::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, HintTarget};
pub use meta::{ObjectKey, ObjectMeta, ObjectReference};
pub use node::{Node, NodeAddress, NodeCondition, NodeSpec, NodeStatus, Taint};
pub use service::{
    ClientIpConfig, IntOrString, LoadBalancerIngress, LoadBalancerStatus, PortStatus, Service, ServicePort,
    ServiceSpec, ServiceStatus, SessionAffinityConfig,
};

use serde::{Deserialize, Deserializer};

/// `null` as the type's zero value, as Go decodes it (`creationTimestamp: null` is what `kubectl` itself prints).
pub fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(decoder: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(decoder)?.unwrap_or_default())
}

/// Declares an object or a part of one: camelCase names, every field optional, `null` allowed everywhere.
///
/// A crate that uses it needs serde, and [`null_as_default`](crate::objects::null_as_default) as
/// `crate::objects::null_as_default`: attributes take paths as text, which knows no other crate.
#[macro_export]
macro_rules! object {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$fmeta:meta])* pub $field:ident: $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $($(#[$fmeta])* #[serde(deserialize_with = "crate::objects::null_as_default")] pub $field: $ty,)*
        }
    };
}
pub(crate) use object;
