//! What nobody claimed goes, and what somebody else changed is put right.

use std::{io, time::Duration};

use culvert_abi::address;

use super::{Error, Held, Reconciler, apply, restore::Unclaimed};
use crate::{
    drift::{Comparison, Drift},
    ledger::{Cause, Ledger, Release},
    rows::ServiceRows,
    store::Store,
};

impl Unclaimed {
    /// Whether everything was claimed or removed.
    pub fn is_empty(&self) -> bool {
        let Self { ports, backends, tables, frontends } = self;
        ports.is_empty() && backends.is_empty() && tables.is_empty() && frontends.is_empty()
    }
}

impl<S: Store> Reconciler<S> {
    /// Removes what a restart found and no Service claimed. On an error all of it stays for the next `prune`.
    pub(super) fn drop_unclaimed(&mut self, now: Duration) -> Result<(), Error> {
        let unclaimed = std::mem::take(&mut self.unclaimed);
        let result = self.transaction(now, |ledger| drop_rows(ledger, &unclaimed));
        if result.is_err() {
            self.unclaimed = unclaimed;
            return result;
        }
        self.ledger.release_unused_ranges(now);
        result
    }

    /// Repairs rows that somebody else changed: what `drift` finds.
    pub fn repair(&mut self) -> Result<(), Error> {
        let drifts = self.drift().map_err(unreadable)?;
        self.put_right(drifts)
    }

    /// Repairs rows, but for Maglev slots, which take longest to compare and which only a mapping can change.
    pub(super) fn repair_rows(&mut self) -> Result<(), Error> {
        let drifts = self.row_drift().map_err(unreadable)?.finish();
        self.put_right(drifts)
    }

    fn put_right(&mut self, mut drifts: Vec<Drift>) -> Result<(), Error> {
        drifts.sort_by_key(Drift::rank);
        for drift in drifts {
            drift.repair(&mut self.ledger.store).map_err(|cause| Error { service: drift.service.clone(), cause })?;
        }
        self.ledger.sure();
        Ok(())
    }

    /// Where the kernel's rows are not as they were programmed. Reads all of them, and computes all Maglev tables anew
    /// (some 50 µs for one of 10 backends).
    pub fn drift(&self) -> io::Result<Vec<Drift>> {
        let mut comparison = self.row_drift()?;
        for (key, held) in &self.services {
            comparison.slots(key, held)?;
        }
        Ok(comparison.finish())
    }

    fn row_drift(&self) -> io::Result<Comparison<'_, S>> {
        let mut comparison = Comparison::new(&self.ledger);
        for (key, held) in &self.services {
            comparison.rows(key, held)?;
        }
        comparison.shared()?;
        // Before, a stranger may be what an earlier agent left for a Service that is still to come.
        if self.pruned && self.unclaimed.is_empty() {
            comparison.strangers(self.services.values())?;
        }
        Ok(comparison)
    }
}

fn unreadable(source: io::Error) -> Error {
    Error { service: None, cause: Cause::Read { source } }
}

fn drop_rows<S: Store>(ledger: &mut Ledger<S>, unclaimed: &Unclaimed) -> Result<(), Cause> {
    let unconfirmed = ledger.addresses.iter().filter(|(_, state)| state.kept & !address::SOURCE != 0);
    let unconfirmed: Vec<_> = unconfirmed.map(|(at, _)| *at).collect();
    for at in &unconfirmed {
        ledger.change_address(*at, |state| state.kept &= address::SOURCE);
    }
    let ports = unclaimed.ports.values().cloned().collect();
    apply::apply(ledger, &Held { ports, refused: Vec::new() }, &ServiceRows::default())?;
    unconfirmed.into_iter().try_for_each(|at| ledger.write_address(at))?;
    for (at, value) in &unclaimed.frontends {
        if !ledger.owners.contains_key(at) {
            ledger.delete_frontend(*at, value)?;
        }
    }
    for (index, word) in &unclaimed.tables {
        ledger.release(Release::Table { index: *index, word: *word });
    }
    unclaimed.backends.iter().try_for_each(|(id, row)| ledger.change_backend(*id, *row, 0))
}
