//! What the kernel's maps say, in the words of `culvert status`, `services`, `backends` and `flows`. Everything that is in a
//! map is read from it; the reconciler adds the names.

mod backends;
mod flows;
mod services;
mod status;

use std::collections::HashMap;

use culvert_api::plan::ServiceKey;

use crate::{
    reconcile::{Port, Reconciler},
    store::Store,
};

/// Names of Service ports by id.
struct Names<'a>(HashMap<u32, (&'a ServiceKey, &'a Port)>);

impl<'a> Names<'a> {
    fn of<S: Store>(reconciler: &'a Reconciler<S>) -> Self {
        let services = reconciler.services().iter();
        Self(services.flat_map(|(key, held)| held.ports.iter().map(move |port| (port.id, (key, port)))).collect())
    }

    fn get(&self, id: u32) -> Option<(&'a ServiceKey, &'a Port)> {
        self.0.get(&id).copied()
    }
}
