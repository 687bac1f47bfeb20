//! What a source delivers at a time.

use crate::fault::Fault;
use crate::object::Change;

/// Changes, and what is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// What changed since the last batch; at first, everything.
    pub changes: Vec<Change>,
    /// All that is wrong at present.
    pub faults: Vec<Fault>,
    /// How much of the whole has been delivered.
    pub progress: Progress,
}

/// How much of what a source knows has been delivered so far, with the batch that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A part, and the rest is on its way. Nothing is to be programmed yet: a Service without its endpoints would be refused.
    Loading,
    /// All that can be read. What the rest held before the agent started is not known: nothing is to be removed for being absent.
    Partial,
    /// Everything: what has not been delivered does not exist.
    Complete,
}
