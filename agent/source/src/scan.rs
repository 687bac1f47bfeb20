//! Listing and reading a folder, with the errors as faults.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::fault::Fault;
use crate::folder::Folder;
use crate::manifest;
use crate::manifest::Placed;
use crate::object::{Change, Id, Object};
use crate::tree::MAX_FILE_BYTES;
use crate::validate::Rules;

/// Tells two states of a file apart without reading it: device, inode, size, and the times of the last change of content
/// and of metadata. Symbolic links are followed, so that a swapped link is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Print(u64, u64, u64, (i64, i64), (i64, i64));

impl From<&Metadata> for Print {
    fn from(meta: &Metadata) -> Self {
        let modified = (meta.mtime(), meta.mtime_nsec());
        Self(meta.dev(), meta.ino(), meta.size(), modified, (meta.ctime(), meta.ctime_nsec()))
    }
}

/// A folder on disk, and what is known of it.
#[derive(Debug)]
pub struct Scanner {
    path: PathBuf,
    rules: Rules,
    folder: Folder,
    seen: BTreeMap<PathBuf, Print>,
}

/// What one scan brought.
#[derive(Debug)]
pub struct Scan {
    /// What changed.
    pub changes: Vec<Change>,
    /// All that is wrong at present.
    pub faults: Vec<Fault>,
    /// When to scan again although nothing may have happened.
    pub again: Option<Instant>,
}

impl Scanner {
    /// A folder of which nothing is known yet.
    pub fn new(path: PathBuf, rules: Rules) -> Self {
        Self { path, rules, folder: Folder::default(), seen: BTreeMap::new() }
    }

    /// Lists the folder and reads the files that look different, and those in `touched` whatever they look like. Files in
    /// `busy` are being written, and are left for later.
    pub fn scan(&mut self, touched: &BTreeSet<PathBuf>, busy: &BTreeSet<PathBuf>, now: Instant) -> Scan {
        let again = match list(&self.path) {
            Ok(files) => {
                self.read(&files, touched, busy);
                let existing = files.keys().cloned().collect();
                self.seen.retain(|path, _| files.contains_key(path));
                self.folder.listed(&existing, now)
            }
            Err(fault) => {
                self.folder.not_listed(fault);
                None
            }
        };
        let changes = self.folder.changes();
        Scan { changes, faults: self.folder.faults(), again }
    }

    fn read(
        &mut self,
        files: &BTreeMap<PathBuf, Result<Print, Fault>>,
        touched: &BTreeSet<PathBuf>,
        busy: &BTreeSet<PathBuf>,
    ) {
        for (path, print) in files {
            let print = match print {
                Ok(_) if busy.contains(path) => continue,
                Ok(print) if self.seen.get(path) == Some(print) && !touched.contains(path) => continue,
                Ok(print) => *print,
                Err(fault) => {
                    self.unreadable(path, fault.clone());
                    continue;
                }
            };
            match read(path) {
                Ok(text) => {
                    self.folder.read(path, manifest::read(&text, &self.rules));
                    self.seen.insert(path.clone(), print);
                }
                Err(fault) => self.unreadable(path, fault),
            }
        }
    }

    /// Once it can be read again it is to be read, though it may be what it was.
    fn unreadable(&mut self, path: &Path, fault: Fault) {
        self.seen.remove(path);
        self.folder.unreadable(path, fault);
    }
}

/// Reads a folder once. `Err` if the folder itself cannot be listed.
pub fn load(path: &Path, rules: &Rules) -> Result<(Vec<Object>, Vec<Fault>), Fault> {
    list(path)?;
    let mut scanner = Scanner::new(path.to_owned(), rules.clone());
    let scan = scanner.scan(&BTreeSet::new(), &BTreeSet::new(), Instant::now());
    let objects = scan.changes.into_iter().filter_map(|change| match change {
        Change::Upsert(object) => Some(object),
        Change::Remove(_) => None,
    });
    Ok((objects.collect(), scan.faults))
}

/// Objects with the file that each is from.
pub type Loaded = Vec<(PathBuf, Placed)>;

/// Reads files once, and folders as [`load`] does; the same object twice is wrong. `Err` if one of them cannot be read.
pub fn load_files(paths: &[PathBuf], rules: &Rules) -> Result<(Loaded, Vec<Fault>), Fault> {
    let mut files = Vec::new();
    for path in paths {
        if path.is_dir() {
            files.extend(list(path)?.into_keys());
        } else {
            files.push(path.clone());
        }
    }
    let (mut loaded, mut faults): (Loaded, Vec<Fault>) = (Vec::new(), Vec::new());
    let mut places: BTreeMap<Id, PathBuf> = BTreeMap::new();
    for file in files {
        let text = read(&file).map_err(|fault| fault.in_file(&file))?;
        let manifest = manifest::read(&text, rules);
        faults.extend(manifest.faults.into_iter().map(|fault| fault.in_file(&file)));
        for (id, placed) in manifest.objects {
            if let Some(first) = places.get(&id) {
                let fault = Fault::new(format!("is defined in {} already", first.display()));
                faults.push(fault.of_object(id.to_string()).in_file(&file).at_line(Some(placed.line)));
                continue;
            }
            places.insert(id, file.clone());
            loaded.push((file.clone(), placed));
        }
    }
    Ok((loaded, faults))
}

/// Whether a file of this name is read: `.yaml`, `.yml` and `.json`, as `kubectl apply -f DIR` does, and not hidden.
pub fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// The manifests of a folder, not of its subfolders.
fn list(folder: &Path) -> Result<BTreeMap<PathBuf, Result<Print, Fault>>, Fault> {
    let failed = |error| Fault::new(format!("cannot list the folder: {error}")).in_file(folder);
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !is_manifest(&path) {
            continue;
        }
        match fs::metadata(&path) {
            Ok(meta) if meta.is_dir() => {}
            Ok(meta) if meta.is_file() => {
                files.insert(path, Ok(Print::from(&meta)));
            }
            Ok(_) => {
                files.insert(path, Err(Fault::new("is not a regular file")));
            }
            // Between the listing and here it went: it is not there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && fs::symlink_metadata(&path).is_err() => {}
            Err(error) => {
                files.insert(path, Err(Fault::new(format!("cannot be read: {error}"))));
            }
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Result<String, Fault> {
    let failed = |error: std::io::Error| Fault::new(format!("cannot be read: {error}"));
    let limit = MAX_FILE_BYTES as u64 + 1;
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_FILE_BYTES {
        return Err(Fault::new(format!("is larger than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.split(|&byte| byte == b'\n').count() as u64;
        Fault::new("is not UTF-8 text").at_line(Some(line))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_that_is_back_as_it_was_is_no_fault_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let [folder, store, away] = ["folder", "store", "away"].map(|name| dir.path().join(name));
        fs::create_dir(&folder).unwrap();
        fs::create_dir(&store).unwrap();
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n";
        fs::write(store.join("web.yaml"), service).unwrap();
        symlink(store.join("web.yaml"), folder.join("web.yaml")).unwrap();
        let mut scanner = Scanner::new(folder, Rules::default());
        let mut scan = || scanner.scan(&BTreeSet::new(), &BTreeSet::new(), Instant::now());
        assert_eq!((scan().faults, scan().faults), (vec![], vec![]));
        // What a file system looks like that is unmounted, and mounted again: not a time of the file has changed.
        fs::rename(&store, &away).unwrap();
        assert_eq!(scan().faults.len(), 1);
        fs::rename(&away, &store).unwrap();
        assert_eq!(scan().faults, vec![]);
    }
}
