//! From a source's objects to the model's changes.

use culvert_model::{Change, ServiceKey};
use culvert_source::{Id, Kind, Object};

/// An object that is new or different.
pub fn upsert(object: Object) -> Change {
    match object {
        Object::Service(service) => Change::Service(service),
        Object::EndpointSlice(slice) => Change::EndpointSlice(slice),
        Object::Node(node) => Change::Node(node),
    }
}

/// An object that is gone.
pub fn remove(Id { kind, key }: &Id) -> Change {
    match kind {
        Kind::Service => {
            Change::ServiceGone(ServiceKey { namespace: key.namespace.to_string(), name: key.name.to_string() })
        }
        Kind::EndpointSlice => Change::EndpointSliceGone(key.clone()),
        Kind::Node => Change::NodeGone(key.name.to_string()),
    }
}
