//! What pools and announcements are configured with, and what of it is in force. Pure.
//!
//! Resources that are not valid together change nothing: the last configuration that was valid stays in force.

use std::collections::BTreeSet;
use std::mem;
use std::sync::Arc;

use culvert_pools::{Config, Finding, Resource, Resources};
use culvert_source::{Change, Id, Kind, Object};

/// The resources, and the configuration in force.
#[derive(Debug, Default)]
pub struct Configuration {
    /// Namespaces whose resources count; `None` = all.
    namespaces: Option<BTreeSet<String>>,
    resources: Resources,
    /// The resources are those that were compiled last.
    compiled: bool,
    config: Option<Arc<Config>>,
    findings: Vec<Finding>,
}

impl Configuration {
    /// Made of the resources of some namespaces.
    pub fn of(namespaces: BTreeSet<String>) -> Self {
        Self { namespaces: Some(namespaces), ..Self::default() }
    }

    /// Takes a change of a resource or a Node; others are nothing to it.
    pub fn take(&mut self, change: &Change) {
        let changed = match change {
            Change::Upsert(Object::Node(node)) => self.resources.upsert_node(node),
            Change::Remove(Id { kind: Kind::Node, key }) => self.resources.remove_node(&key.name),
            Change::Upsert(Object::Addresses(resource)) => {
                self.counts(resource) && self.resources.upsert(resource.clone())
            }
            Change::Remove(Id { kind: Kind::Addresses(kind), key }) => {
                self.resources.remove(&culvert_pools::Id { kind: *kind, key: key.clone() })
            }
            Change::Upsert(Object::Service(_) | Object::EndpointSlice(_))
            | Change::Remove(Id { kind: Kind::Service | Kind::EndpointSlice, .. }) => false,
        };
        self.compiled &= !changed;
    }

    /// Puts the resources in force, if they are other ones and valid together. Whether they are in force now and were not before.
    pub fn settle(&mut self) -> bool {
        if mem::replace(&mut self.compiled, true) {
            return false;
        }
        match Config::new(&self.resources) {
            Ok(config) => {
                self.findings.clear();
                self.config = Some(Arc::new(config));
                true
            }
            Err(findings) => {
                self.findings = findings;
                false
            }
        }
    }

    /// The configuration in force; `None` before there was a valid one.
    pub fn config(&self) -> Option<&Arc<Config>> {
        self.config.as_ref()
    }

    /// What is wrong with the resources; the last configuration that was valid is in force.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    fn counts(&self, resource: &Resource) -> bool {
        let namespace = &resource.metadata().namespace;
        self.namespaces.as_ref().is_none_or(|counted| counted.contains(namespace))
    }
}
