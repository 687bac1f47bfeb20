//! From a source's objects to the model's changes.

use culvert_model::objects::ObjectKey;
use culvert_model::{Change, ServiceKey};
use culvert_source::{Id, Kind, Object};

/// An object that is new or different; `None` if it is nothing to the model.
pub fn upsert(object: Object) -> Option<Change> {
    match object {
        Object::Service(service) => Some(Change::Service(service)),
        Object::EndpointSlice(slice) => Some(Change::EndpointSlice(slice)),
        Object::Node(node) => Some(Change::Node(node)),
        Object::Addresses(_) => None,
    }
}

/// An object that is gone; `None` if it is nothing to the model.
pub fn remove(Id { kind, key }: &Id) -> Option<Change> {
    let change = match kind {
        Kind::Service => Change::ServiceGone(service_key(key)),
        Kind::EndpointSlice => Change::EndpointSliceGone(key.clone()),
        Kind::Node => Change::NodeGone(key.name.to_string()),
        Kind::Addresses(_) => return None,
    };
    Some(change)
}

/// A Service's key.
pub fn service_key(key: &ObjectKey) -> ServiceKey {
    ServiceKey { namespace: key.namespace.to_string(), name: key.name.to_string() }
}
