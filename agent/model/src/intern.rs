//! Names that occur again and again (nodes, zones), kept once.

use std::collections::HashSet;
use std::sync::Arc;

/// A set of shared names. It forgets what nobody uses each time that it has doubled.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    names: HashSet<Arc<str>>,
    sweep_at: usize,
}

impl Interner {
    /// The shared copy of a name.
    pub(crate) fn get(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        if self.names.len() >= self.sweep_at {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.sweep_at = (self.names.len() * 2).max(64);
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shared_and_forgotten() {
        let mut interner = Interner::default();
        let first = interner.get("node-1");
        assert!(Arc::ptr_eq(&first, &interner.get("node-1")));
        for i in 0..1000 {
            interner.get(&format!("gone-{i}"));
        }
        assert!(interner.names.len() < 200);
        assert!(Arc::ptr_eq(&first, &interner.get("node-1")));
    }
}
