//! A layer: the files that it adds, and its tar.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Files, directories and links by their absolute path, without the slash at its begin. All belong to root.
#[derive(Default, Clone)]
pub struct Layer {
    entries: BTreeMap<PathBuf, Entry>,
}

#[derive(Clone)]
enum Entry {
    Directory { mode: u32 },
    Link { target: PathBuf },
    Text { text: String, mode: u32 },
    File { source: PathBuf, mode: u32 },
}

impl Layer {
    /// A directory; those above it come by themselves.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.add(Path::new(path), Entry::Directory { mode });
    }

    /// A symbolic link.
    pub fn link(&mut self, path: impl AsRef<Path>, target: impl Into<PathBuf>) {
        self.add(path.as_ref(), Entry::Link { target: target.into() });
    }

    /// A text file that everybody may read.
    pub fn text(&mut self, path: &str, text: &str) {
        self.add(Path::new(path), Entry::Text { text: text.to_owned(), mode: 0o644 });
    }

    /// A text file that everybody may run.
    pub fn script(&mut self, path: &str, text: &str) {
        self.add(Path::new(path), Entry::Text { text: text.to_owned(), mode: 0o755 });
    }

    /// A file with the content of `source`, which is read when the layer is written.
    pub fn file(&mut self, path: impl AsRef<Path>, source: impl Into<PathBuf>, mode: u32) {
        self.add(path.as_ref(), Entry::File { source: source.into(), mode });
    }

    /// Whether something is at `path`.
    pub fn contains(&self, path: &Path) -> bool {
        self.entries.contains_key(relative(path))
    }

    fn add(&mut self, path: &Path, entry: Entry) {
        let path = relative(path);
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            self.entries.entry(above.to_owned()).or_insert(Entry::Directory { mode: 0o755 });
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Adds to `hash` what the layer is made of. Files count by name, size and time, so that none need be read.
    ///
    /// # Errors
    /// If a source is not there.
    pub fn fingerprint(&self, hash: &mut Sha256) -> Result<()> {
        for (path, entry) in &self.entries {
            let what = match entry {
                Entry::Directory { mode } => format!("directory {mode:o}"),
                Entry::Link { target } => format!("link {}", target.display()),
                Entry::Text { text, mode } => format!("text {mode:o} {text}"),
                Entry::File { source, mode } => {
                    let metadata = fs::metadata(source).with_context(|| format!("cannot read {}", source.display()))?;
                    let (size, time) = (metadata.len(), metadata.mtime());
                    format!("file {mode:o} {} {size} {time} {}", source.display(), metadata.mtime_nsec())
                }
            };
            hash.update(format!("{}\0{what}\0", path.display()));
        }
        Ok(())
    }

    /// The layer's tar. Times are zero and entries sorted, so that it depends on the files alone.
    ///
    /// # Errors
    /// If a source cannot be read.
    pub fn tar(&self) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = Header::new_gnu();
            header.set_mtime(0);
            let added = match entry {
                Entry::Directory { mode } => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(*mode);
                    header.set_size(0);
                    tar.append_data(&mut header, path, [].as_slice())
                }
                Entry::Link { target } => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    tar.append_link(&mut header, path, target)
                }
                Entry::Text { text, mode } => {
                    header.set_mode(*mode);
                    header.set_size(text.len() as u64);
                    tar.append_data(&mut header, path, text.as_bytes())
                }
                Entry::File { source, mode } => {
                    let content = fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
                    header.set_mode(*mode);
                    header.set_size(content.len() as u64);
                    tar.append_data(&mut header, path, content.as_slice())
                }
            };
            added.with_context(|| format!("cannot add {}", path.display()))?;
        }
        tar.into_inner().context("cannot finish a layer")
    }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(layer: &Layer) -> Vec<(String, u32)> {
        let bytes = layer.tar().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap();
        entries
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap())
            })
            .collect()
    }

    #[test]
    fn directories_above_come_first_and_keep_their_mode() {
        let mut layer = Layer::default();
        layer.text("/etc/a/b", "x");
        layer.directory("/tmp", 0o1777);
        layer.text("/tmp/c", "y");
        let expected = [("etc", 0o755), ("etc/a", 0o755), ("etc/a/b", 0o644), ("tmp", 0o1777), ("tmp/c", 0o644)];
        let listing = listing(&layer);
        let seen: Vec<(&str, u32)> = listing.iter().map(|(path, mode)| (path.trim_end_matches('/'), *mode)).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn order_of_adding_does_not_matter() {
        let (mut one, mut other) = (Layer::default(), Layer::default());
        one.text("a", "1");
        one.link("b", "a");
        other.link("/b", "a");
        other.text("/a", "1");
        assert_eq!(one.tar().unwrap(), other.tar().unwrap());
    }
}
