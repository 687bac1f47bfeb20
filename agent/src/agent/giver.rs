//! Who gives addresses to the Services of a folder: the decisions of [`Addresses`], the record of what is held, and the words in the
//! log. In a cluster the controller does all that, and the agent sees the status that it writes.

use std::path::Path;

use culvert_model::Change;
use culvert_pools::Decision;
use culvert_source::{Change as Told, Fault};

use super::record::Record;
use crate::addresses::{Addresses, Decided};

/// Addresses, and the record of those that are held.
pub struct Giver {
    addresses: Addresses,
    record: Record,
}

impl Giver {
    /// Begins with what the last agent left in a state directory.
    pub fn open(state: &Path) -> Self {
        let (record, held) = Record::open(state);
        Self { addresses: Addresses::new(held), record }
    }

    /// Takes a change, as [`Addresses::take`].
    pub fn take(&mut self, change: &Told) -> Option<Change> {
        self.addresses.take(change)
    }

    /// Decides, and records what is held before anybody is told.
    pub fn decide(&mut self, complete: bool) -> Vec<Change> {
        let Decided { changes, decisions, moved } = self.addresses.decide(complete);
        if moved || self.record.is_behind() {
            self.record.keep(self.addresses.held());
        }
        decisions.iter().for_each(tell);
        changes
    }

    /// The addresses that it gives.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// What is wrong with the record.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.record.faults()
    }
}

fn tell(Decision { service, events, .. }: &Decision) {
    for event in events {
        let (reason, message) = (event.reason.name(), &event.message);
        if event.reason.is_warning() {
            tracing::warn!(%service, reason, "{message}");
        } else {
            tracing::info!(%service, reason, "{message}");
        }
    }
}
