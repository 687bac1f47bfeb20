//! Who gives addresses to Services of type `LoadBalancer`, as the main loop sees it.

use std::sync::Arc;

use culvert_model::objects::Service;
use culvert_model::{Change, ServiceKey};
use culvert_pools::{Config, Finding};
use culvert_source::{Change as Told, Fault};

use super::giver::Giver;
use crate::objects::{remove, upsert};
use crate::statuses::Statuses;

/// Who gives addresses.
pub enum Ipam {
    /// Whoever writes the status. Of pools nothing is known, and nothing is announced.
    Anybody,
    /// The agent itself, out of a folder's pools.
    Folder(Box<Giver>),
    /// The cluster's controller, which writes the status.
    Cluster(Box<Statuses>),
}

impl Ipam {
    /// Takes a change of what is served. The answer is what it is to the model at once.
    pub fn take(&mut self, change: &Told) -> Option<Change> {
        match (self, change) {
            (Self::Folder(giver), change) => giver.take(change),
            (Self::Cluster(statuses), change) => statuses.take(change),
            (Self::Anybody, Told::Upsert(object)) => upsert(object.clone()),
            (Self::Anybody, Told::Remove(id)) => remove(id),
        }
    }

    /// What the model is told besides. `complete`: the source has delivered everything.
    pub fn decide(&mut self, complete: bool) -> Vec<Change> {
        match self {
            Self::Anybody => Vec::new(),
            Self::Folder(giver) => giver.decide(complete),
            Self::Cluster(statuses) => statuses.decide(),
        }
    }

    /// The configuration in force; `None` before there was a valid one.
    pub fn config(&self) -> Option<&Arc<Config>> {
        match self {
            Self::Anybody => None,
            Self::Folder(giver) => giver.addresses().config(),
            Self::Cluster(statuses) => statuses.config(),
        }
    }

    /// A Service of type `LoadBalancer`, where pools are known.
    pub fn service(&self, key: &ServiceKey) -> Option<&Service> {
        match self {
            Self::Anybody => None,
            Self::Folder(giver) => giver.addresses().service(key),
            Self::Cluster(statuses) => statuses.service(key),
        }
    }

    /// What is wrong, besides what the source tells.
    pub fn faults(&self) -> Vec<Fault> {
        match self {
            Self::Anybody => Vec::new(),
            Self::Folder(giver) => giver.faults().cloned().collect(),
            Self::Cluster(statuses) => statuses.findings().iter().map(fault).collect(),
        }
    }
}

/// The controller tells it on the object itself.
fn fault(finding: &Finding) -> Fault {
    Fault::warning(format!("the last valid configuration of addresses stays in force: {finding}"))
}
