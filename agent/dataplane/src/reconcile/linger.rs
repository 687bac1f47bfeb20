//! Addresses whose last frontend went stay known to the programs while flows to them live. A sweep over the flow maps finds out,
//! a bounded number of rows at a time.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use crate::{
    codec::{self, Family},
    flow,
    ledger::{Cause, Ledger},
    store::{Cursor, Map, Store},
};

/// Rows read at one step.
const ROWS: usize = 4_096;
/// From one step of a sweep to the next.
const STEP: Duration = Duration::from_millis(20);
/// From one sweep to the next.
const PAUSE: Duration = Duration::from_secs(10);

/// The sweep, or when the next begins.
#[derive(Debug, Default)]
pub struct Sweep {
    due: Option<Duration>,
    pass: Option<Pass>,
}

/// A sweep under way.
#[derive(Debug)]
struct Pass {
    /// Lingering addresses that no live flow was found for.
    idle: BTreeSet<IpAddr>,
    /// Maps to read still, the next one last, and whether it is that of the established. A flow moves from the new ones to
    /// the others; the new ones come first, so that none slips through. Only a closed one moves back, and needs no waiting for.
    maps: Vec<(Family, Map, bool)>,
    cursor: Cursor,
}

impl Sweep {
    /// When it wants to go on.
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// There is something to look for.
    pub fn wake(&mut self, now: Duration) {
        self.due.get_or_insert(now + PAUSE);
    }

    /// Goes on, if it is time: the addresses that no live flow refers to any more.
    pub fn step<S: Store>(&mut self, ledger: &Ledger<S>, now: Duration) -> Result<BTreeSet<IpAddr>, Cause> {
        if self.due.is_none_or(|due| due > now) {
            return Ok(BTreeSet::new());
        }
        self.due = Some(now + STEP);
        let mut pass = self.pass.take().unwrap_or_else(|| Pass::new(ledger));
        if pass.read(&ledger.store, now)? {
            self.pass = Some(pass);
            return Ok(BTreeSet::new());
        }
        self.due = (ledger.lingering().count() > pass.idle.len()).then_some(now + PAUSE);
        Ok(pass.idle)
    }
}

impl Pass {
    fn new<S: Store>(ledger: &Ledger<S>) -> Self {
        let idle: BTreeSet<IpAddr> = ledger.lingering().collect();
        let families = Family::ALL.into_iter().filter(|family| idle.iter().any(|at| Family::of(*at) == *family));
        let maps = families.flat_map(|family| family.flow_maps().map(|(map, established)| (family, map, established)));
        Self { maps: maps.rev().collect(), idle, cursor: Cursor::default() }
    }

    /// Reads on; `false` when there is nothing more to learn.
    fn read(&mut self, store: &impl Store, now: Duration) -> Result<bool, Cause> {
        let Some((family, map, established)) = self.maps.last().copied() else { return Ok(false) };
        let now = flow::tick(now);
        let idle = &mut self.idle;
        let more = store.scan(map, &mut self.cursor, ROWS, &mut |key, value| {
            let row = codec::decode_flow(family, established, key, value);
            if !flow::expired(&row, now) {
                idle.remove(&row.frontend.address);
            }
        });
        if !more.map_err(|source| Cause::Store { map, source })? {
            self.maps.pop();
        }
        Ok(!self.maps.is_empty() && !self.idle.is_empty())
    }
}
