//! Whether the node is drained: a file in the state directory, so that the next agent knows.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The file.
#[derive(Debug)]
pub struct Mark {
    path: PathBuf,
    drained: bool,
}

impl Mark {
    /// As it is.
    pub fn open(state: &Path) -> Self {
        let path = state.join("drained");
        Self { drained: path.exists(), path }
    }

    /// Whether the node is drained.
    pub fn is_set(&self) -> bool {
        self.drained
    }

    /// Sets it, or takes it away.
    ///
    /// # Errors
    /// The file cannot be written; nothing is changed then.
    pub fn set(&mut self, drained: bool) -> io::Result<()> {
        let done = if drained { fs::write(&self.path, "culvert drain\n") } else { fs::remove_file(&self.path) };
        if let Err(error) = done
            && (drained || error.kind() != io::ErrorKind::NotFound)
        {
            return Err(error);
        }
        self.drained = drained;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_agent_knows() {
        let state = tempfile::tempdir().unwrap();
        let mut mark = Mark::open(state.path());
        assert!(!mark.is_set());
        mark.set(false).unwrap();
        mark.set(true).unwrap();
        assert!(mark.is_set() && Mark::open(state.path()).is_set());
        mark.set(false).unwrap();
        assert!(!Mark::open(state.path()).is_set());
        assert!(Mark::open(Path::new("/nowhere")).set(true).is_err());
    }
}
