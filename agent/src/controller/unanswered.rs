//! Services that may still be written though nobody waits for it: a request that was given up may be carried out later. Whoever leads
//! next, another one or this one again, must not read what is there before that.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use culvert_model::ServiceKey;

/// Services whose last write has no answer. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub struct Unanswered(Arc<Mutex<BTreeSet<ServiceKey>>>);

impl Unanswered {
    /// A Service is about to be written.
    pub fn begin(&self, key: &ServiceKey) {
        self.lock().insert(key.clone());
    }

    /// The server has answered: whatever was asked before, of the version that it was made from, is done or never will be.
    pub fn answered(&self, key: &ServiceKey) {
        self.lock().remove(key);
    }

    /// So much time has gone by that nothing is carried out any more.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Whether everything has an answer.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<ServiceKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
