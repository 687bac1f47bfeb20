//! What a folder says, as pure state: readings of files go in, changes of objects come out.
//!
//! Rules: of two definitions of one object the one in the first file (by name) counts. While a file has errors, its good
//! objects are updated, and nothing that it held before is removed: the last good state stays. A file that vanishes
//! takes its objects with it, after a moment in which an editor may put it back. A configuration of addresses that is not valid
//! as a whole is delivered all the same, and is a fault: whoever puts it in force keeps the last one that was valid.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use culvert_pools::{Config, Resources};

use crate::fault::Fault;
use crate::manifest::{Manifest, Placed};
use crate::object::{Change, Id, Kind, Object};

/// How long a vanished file's objects stay.
pub const GRACE: Duration = Duration::from_millis(500);

/// The state of a folder.
#[derive(Debug, Default)]
pub struct Folder {
    files: BTreeMap<PathBuf, File>,
    /// What was last told to the outside.
    told: BTreeMap<Id, Object>,
    conflicts: Vec<Fault>,
    /// What is wrong with the configuration of addresses as a whole.
    invalid: Vec<Fault>,
    /// The folder itself cannot be listed.
    unreadable: Option<Fault>,
}

#[derive(Debug, Default)]
struct File {
    objects: BTreeMap<Id, Placed>,
    faults: Vec<Fault>,
    vanished: Option<Instant>,
}

impl Folder {
    /// Takes a reading of one file.
    pub fn read(&mut self, path: &Path, manifest: Manifest) {
        let file = self.files.entry(path.to_owned()).or_default();
        file.vanished = None;
        file.faults = manifest.faults.into_iter().map(|fault| fault.in_file(path)).collect();
        if file.faults.iter().any(Fault::is_error) {
            file.objects.extend(manifest.objects);
        } else {
            file.objects = manifest.objects;
        }
    }

    /// Takes note that a file cannot be read.
    pub fn unreadable(&mut self, path: &Path, fault: Fault) {
        let file = self.files.entry(path.to_owned()).or_default();
        file.vanished = None;
        file.faults = vec![fault.in_file(path)];
    }

    /// Takes a list of all files that exist. Returns when to look again, if a file has vanished.
    pub fn listed(&mut self, existing: &BTreeSet<PathBuf>, now: Instant) -> Option<Instant> {
        self.unreadable = None;
        for (path, file) in &mut self.files {
            if existing.contains(path) {
                file.vanished = None;
            } else {
                file.vanished.get_or_insert(now);
            }
        }
        self.files.retain(|_, file| file.vanished.is_none_or(|since| now < since + GRACE));
        self.files.values().filter_map(|file| file.vanished).min().map(|since| since + GRACE)
    }

    /// Takes note that the folder cannot be listed: everything stays as it is.
    pub fn not_listed(&mut self, fault: Fault) {
        self.unreadable = Some(fault);
    }

    /// The changes since the last call: objects that are new or different, then objects that are gone.
    pub fn changes(&mut self) -> Vec<Change> {
        self.conflicts.clear();
        let mut wanted: BTreeMap<&Id, (&PathBuf, &Placed)> = BTreeMap::new();
        for (path, file) in &self.files {
            for (id, placed) in &file.objects {
                let Some((first, _)) = wanted.get(id) else {
                    wanted.insert(id, (path, placed));
                    continue;
                };
                let message = format!("is defined in {} already; that definition counts", first.display());
                let fault = Fault::new(message).of_object(id.to_string());
                self.conflicts.push(fault.in_file(path).at_line(Some(placed.line)));
            }
        }
        self.invalid = invalid(&wanted);
        let mut changes = Vec::new();
        for (&id, &(_, placed)) in &wanted {
            if self.told.get(id) != Some(&placed.object) {
                self.told.insert(id.clone(), placed.object.clone());
                changes.push(Change::Upsert(placed.object.clone()));
            }
        }
        let gone: Vec<Id> = self.told.keys().filter(|id| !wanted.contains_key(id)).cloned().collect();
        for id in gone {
            self.told.remove(&id);
            changes.push(Change::Remove(id));
        }
        changes
    }

    /// All that is wrong at present, sorted by file and line.
    pub fn faults(&self) -> Vec<Fault> {
        let files = self.files.values().flat_map(|file| &file.faults);
        let mut faults: Vec<Fault> =
            self.unreadable.iter().chain(files).chain(&self.conflicts).chain(&self.invalid).cloned().collect();
        faults.sort();
        faults
    }
}

/// What no object shows alone: two pools that overlap, a name that is not there.
fn invalid(wanted: &BTreeMap<&Id, (&PathBuf, &Placed)>) -> Vec<Fault> {
    let mut resources = Resources::default();
    for (_, placed) in wanted.values() {
        match &placed.object {
            Object::Addresses(resource) => drop(resources.upsert(resource.clone())),
            Object::Node(node) => drop(resources.upsert_node(node)),
            Object::Service(_) | Object::EndpointSlice(_) => {}
        }
    }
    let findings = Config::new(&resources).err().unwrap_or_default();
    let fault = |finding: culvert_pools::Finding| {
        let fault = Fault::new(finding.message).of_object(finding.object.to_string()).at_field(finding.field);
        let id = Id { kind: Kind::Addresses(finding.object.kind), key: finding.object.key };
        match wanted.get(&id) {
            Some((file, placed)) => fault.in_file(*file).at_line(Some(placed.line)),
            None => fault,
        }
    };
    findings.into_iter().map(fault).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;
    use crate::validate::Rules;

    /// A manifest of Services; `name=port`, and `!` for a document that is no object.
    fn text(services: &[&str]) -> String {
        let document = |service: &&str| match service.split_once('=') {
            Some((name, port)) => format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
            ),
            None => "broken\n".to_owned(),
        };
        services.iter().map(document).collect::<Vec<_>>().join("---\n")
    }

    struct Disk {
        folder: Folder,
        files: BTreeSet<PathBuf>,
        start: Instant,
    }

    impl Disk {
        fn new() -> Self {
            Self { folder: Folder::default(), files: BTreeSet::new(), start: Instant::now() }
        }

        fn write(&mut self, file: &str, services: &[&str]) -> Vec<String> {
            self.files.insert(file.into());
            self.folder.read(Path::new(file), manifest::read(&text(services), &Rules::default()));
            self.look(0)
        }

        fn look(&mut self, millis: u64) -> Vec<String> {
            self.folder.listed(&self.files, self.start + Duration::from_millis(millis));
            let word = |change| match change {
                Change::Upsert(Object::Service(service)) => {
                    format!("{}={}", service.metadata.name, service.spec.ports[0].port)
                }
                Change::Upsert(other) => panic!("{other:?}"),
                Change::Remove(id) => format!("-{}", id.key.name),
            };
            self.folder.changes().into_iter().map(word).collect()
        }

        fn faults(&self) -> Vec<String> {
            self.folder.faults().iter().map(ToString::to_string).collect()
        }
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut disk = Disk::new();
        assert_eq!(disk.write("a.yaml", &["x=1", "y=1"]), ["x=1", "y=1"]);
        assert_eq!(disk.write("a.yaml", &["x=1", "y=2"]), ["y=2"]);
        assert_eq!(disk.write("b.yaml", &["z=1"]), ["z=1"]);
        assert_eq!(disk.write("a.yaml", &["y=2"]), ["-x"]);
        assert!(disk.look(0).is_empty());
    }

    #[test]
    fn the_last_good_state_of_a_broken_file_stays() {
        let mut disk = Disk::new();
        disk.write("a.yaml", &["x=1", "y=1"]);
        assert!(disk.write("a.yaml", &["!"]).is_empty());
        assert_eq!(disk.faults(), ["a.yaml:1: error: kind: Required value"]);
        // One object is invalid: it stays as it was, and the good one is taken.
        assert_eq!(disk.write("a.yaml", &["x=0", "y=2"]), ["y=2"]);
        assert_eq!(disk.faults().len(), 1);
        // A file with an error removes nothing; once it is clean, it does.
        assert!(disk.write("a.yaml", &["y=2", "!"]).is_empty());
        assert_eq!(disk.write("a.yaml", &["y=2"]), ["-x"]);
        assert!(disk.faults().is_empty());
    }

    #[test]
    fn the_first_file_by_name_defines_an_object() {
        let mut disk = Disk::new();
        assert_eq!(disk.write("b.yaml", &["x=1"]), ["x=1"]);
        assert_eq!(disk.write("a.yaml", &["x=2"]), ["x=2"]);
        let expected = "b.yaml:1: error: Service/default/x: is defined in a.yaml already; that definition counts";
        assert_eq!(disk.faults(), [expected]);
        disk.files.remove(Path::new("a.yaml"));
        assert!(disk.look(0).is_empty());
        assert_eq!(disk.look(500), ["x=1"]);
        assert!(disk.faults().is_empty());
    }

    #[test]
    fn a_vanished_file_may_come_back_within_the_grace() {
        let mut disk = Disk::new();
        disk.write("a.yaml", &["x=1"]);
        disk.files.clear();
        assert!(disk.look(0).is_empty());
        assert!(disk.look(400).is_empty());
        disk.files.insert("a.yaml".into());
        assert!(disk.look(450).is_empty());
        disk.files.clear();
        assert!(disk.look(900).is_empty());
        assert_eq!(disk.look(1400), ["-x"]);
    }

    #[test]
    fn a_folder_that_cannot_be_listed_removes_nothing() {
        let mut disk = Disk::new();
        disk.write("a.yaml", &["x=1"]);
        disk.folder.not_listed(Fault::new("gone"));
        assert!(disk.folder.changes().is_empty());
        assert_eq!(disk.faults(), ["error: gone"]);
        assert!(disk.look(0).is_empty());
        assert!(disk.faults().is_empty());
    }

    #[test]
    fn a_configuration_that_is_not_valid_as_a_whole_is_a_fault_of_its_object() {
        let pool = |name: &str, range: &str| {
            format!(
                "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {{name: {name}, namespace: m}}\n\
                 spec: {{addresses: [{range}]}}\n"
            )
        };
        let read = |folder: &mut Folder, file: &str, text: &str| {
            folder.read(Path::new(file), manifest::read(text, &Rules::default()));
            let changes = folder.changes().len();
            (changes, folder.faults().iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let mut folder = Folder::default();
        assert_eq!(read(&mut folder, "a.yaml", &pool("one", "192.0.2.0/24")), (1, vec![]));
        let expected = "b.yaml:1: error: IPAddressPool/m/two: spec.addresses: Invalid value: 192.0.2.9-192.0.2.10 overlaps \
                        with 192.0.2.0/24 of IPAddressPool/m/one";
        let overlapping = pool("two", "192.0.2.9-192.0.2.10");
        assert_eq!(read(&mut folder, "b.yaml", &overlapping), (1, vec![expected.to_owned()]));
        assert_eq!(read(&mut folder, "b.yaml", &pool("two", "198.51.100.0/24")), (1, vec![]));
    }
}
