//! Names and addresses of the nodes, by number. Kept in the state directory: an agent that starts while the API server is
//! away finds the others.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use culvert_announce::liveness::NodeId;
use culvert_announce::liveness::wire::node_id;

/// The file's name.
const FILE: &str = "layer2-nodes.json";

/// The book.
#[derive(Debug)]
pub struct Book {
    path: PathBuf,
    entries: BTreeMap<String, Vec<IpAddr>>,
    by_id: BTreeMap<NodeId, (String, Option<IpAddr>)>,
}

impl Book {
    /// Opens the book that an earlier agent left, or an empty one.
    pub fn open(state: &Path) -> Self {
        let path = state.join(FILE);
        let read = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let mut book = Self { path, entries: BTreeMap::new(), by_id: BTreeMap::new() };
        book.index(read.unwrap_or_default());
        book
    }

    /// Takes the nodes as they are now. Those that do not count any more stay known by name until the agent ends.
    pub fn write(&mut self, nodes: &BTreeMap<String, Vec<IpAddr>>) {
        if self.entries == *nodes {
            return;
        }
        self.index(nodes.clone());
        // Whole, but not on the disk when this returns (`culvert_source::replace` waits for that): beats must not wait.
        let temporary = self.path.with_extension("json.new");
        let written = serde_json::to_vec_pretty(nodes).map_err(std::io::Error::other);
        let written =
            written.and_then(|text| fs::write(&temporary, text)).and_then(|()| fs::rename(&temporary, &self.path));
        if let Err(error) = written {
            tracing::warn!(path = %self.path.display(), %error, "addresses of the nodes cannot be kept for the next agent");
        }
    }

    /// Where a node is reached.
    pub fn address(&self, id: NodeId) -> Option<IpAddr> {
        self.by_id.get(&id)?.1
    }

    /// What it is called.
    pub fn name(&self, id: NodeId) -> &str {
        self.by_id.get(&id).map_or("of another cluster", |(name, _)| name)
    }

    fn index(&mut self, entries: BTreeMap<String, Vec<IpAddr>>) {
        let rows = entries.iter().map(|(name, addresses)| (node_id(name), (name.clone(), addresses.first().copied())));
        self.by_id.extend(rows);
        self.entries = entries;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_agent_knows_the_nodes() {
        let state = tempfile::tempdir().unwrap();
        let nodes =
            BTreeMap::from([("n1".to_owned(), vec![IpAddr::from([192, 0, 2, 1])]), ("n2".to_owned(), Vec::new())]);
        Book::open(state.path()).write(&nodes);
        let book = Book::open(state.path());
        assert_eq!(book.address(node_id("n1")), Some(IpAddr::from([192, 0, 2, 1])));
        assert_eq!((book.address(node_id("n2")), book.name(node_id("n2"))), (None, "n2"));
        fs::write(state.path().join(FILE), "{").unwrap();
        assert_eq!(Book::open(state.path()).address(node_id("n1")), None);
    }
}
