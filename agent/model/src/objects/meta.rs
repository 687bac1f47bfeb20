//! `metadata`, and the names that objects go by.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;

use super::object;

object! {
    /// `metadata` of an object.
    pub struct ObjectMeta {
        /// Name.
        pub name: String,
        /// Namespace; empty for a Node.
        pub namespace: String,
        /// Labels.
        pub labels: BTreeMap<String, String>,
        /// Annotations.
        pub annotations: BTreeMap<String, String>,
        /// When it was created; absent in a manifest.
        pub creation_timestamp: Option<Timestamp>,
        /// Set once deletion has begun.
        pub deletion_timestamp: Option<Timestamp>,
        /// Unique id.
        pub uid: String,
        /// Version of the stored object.
        pub resource_version: String,
        /// Who has to let go before the object goes. Decoded for whoever writes the object.
        pub finalizers: Vec<String>,
    }
}

impl ObjectMeta {
    /// Namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(&self.namespace, &self.name)
    }
}

object! {
    /// A reference to another object (`targetRef`).
    pub struct ObjectReference {
        /// Kind, such as `Pod`.
        pub kind: String,
        /// Namespace.
        pub namespace: String,
        /// Name.
        pub name: String,
        /// Unique id.
        pub uid: String,
    }
}

/// Namespace and name of an object, cheap to clone; ordered by namespace, then name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace; empty for objects without one.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key of its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            return f.write_str(&self.name);
        }
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
