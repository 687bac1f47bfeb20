//! The file `addresses.json` in the state directory: the addresses that a folder's Services hold, for the agent that comes after this
//! one. It is written before the kernel is told, so that no address is in use of which it does not know.
//!
//! ```json
//! {"version": 1, "services": [{"namespace": "shop", "name": "web", "pool": "main", "addresses": ["192.0.2.1"]}]}
//! ```

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use culvert_model::ServiceKey;
use culvert_pools::Assignment;
use culvert_source::{Fault, replace};
use serde::{Deserialize, Serialize};

/// The file's name.
const FILE: &str = "addresses.json";
/// The form that is written, and the newest that can be read.
const VERSION: u32 = 1;

/// The file, and what is wrong with it.
pub struct Record {
    path: PathBuf,
    /// What stands in it, as far as is known.
    text: Option<String>,
    /// It could not be read at the start.
    unread: Option<Fault>,
    /// It could not be written last.
    unwritten: Option<Fault>,
}

#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    services: Vec<Holder>,
}

#[derive(Serialize, Deserialize)]
struct Holder {
    namespace: String,
    name: String,
    pool: String,
    addresses: Vec<IpAddr>,
}

/// What Services hold.
pub type Held = Vec<(ServiceKey, Assignment)>;

impl Record {
    /// Reads the file of a state directory: what was held when it was written. A file that is not there says that nothing was. One
    /// that cannot be read says nothing either, which is a fault; if its content is damaged it is set aside as
    /// `addresses.json.damaged`.
    pub fn open(directory: &Path) -> (Self, Held) {
        let path = directory.join(FILE);
        let mut record = Self { path, text: None, unread: None, unwritten: None };
        let text = match fs::read(&record.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return (record, Held::new()),
            Err(error) => {
                record.unread = Some(record.lost(&format!("cannot be read: {error}")));
                return (record, Held::new());
            }
        };
        match parse(&text) {
            Ok(held) => {
                record.text = String::from_utf8(text).ok();
                (record, held)
            }
            Err(reason) => {
                let aside = record.path.with_extension("json.damaged");
                let kept = match fs::rename(&record.path, &aside) {
                    Ok(()) => format!("; it is kept as {}", aside.display()),
                    Err(_) => String::new(),
                };
                record.unread = Some(record.lost(&format!("is damaged: {reason}{kept}")));
                (record, Held::new())
            }
        }
    }

    /// Sees to it that the file says what is held. After a failure the next call tries again.
    pub fn keep<'a>(&mut self, held: impl Iterator<Item = (&'a ServiceKey, &'a Assignment)>) {
        let services: Vec<Holder> = held.map(|(service, held)| holder(service, held)).collect();
        if services.is_empty() && self.text.is_none() {
            return;
        }
        let written = serde_json::to_string_pretty(&Content { version: VERSION, services })
            .map_err(std::io::Error::from)
            .and_then(|text| {
                let text = text + "\n";
                if self.text.as_ref() != Some(&text) {
                    replace(&self.path, &text)?;
                }
                Ok(text)
            });
        match written {
            Ok(text) => (self.text, self.unwritten) = (Some(text), None),
            Err(error) => {
                let message = format!("cannot be written: {error}; addresses in use may be others after a restart");
                self.unwritten = Some(Fault::new(message).in_file(&self.path));
            }
        }
    }

    /// The file does not say what is held, for it could not be written.
    pub const fn is_behind(&self) -> bool {
        self.unwritten.is_some()
    }

    /// What is wrong with it.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.unread.iter().chain(&self.unwritten)
    }

    fn lost(&self, reason: &str) -> Fault {
        let message = format!("{reason}; which addresses were in use is not known, and Services may get others");
        Fault::warning(message).in_file(&self.path)
    }
}

fn holder(service: &ServiceKey, held: &Assignment) -> Holder {
    Holder {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        pool: held.pool.to_string(),
        addresses: held.addresses.clone(),
    }
}

fn parse(text: &[u8]) -> Result<Held, String> {
    let content: Content = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if content.version != VERSION {
        return Err(format!("version: it is of version {}, and {VERSION} is known", content.version));
    }
    let held = content.services.into_iter().map(|Holder { namespace, name, pool, addresses }| {
        (ServiceKey { namespace, name }, Assignment { addresses, pool: pool.into() })
    });
    Ok(held.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(name: &str, addresses: &[&str]) -> (ServiceKey, Assignment) {
        let key = ServiceKey { namespace: "default".to_owned(), name: name.to_owned() };
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        (key, Assignment { addresses, pool: "main".into() })
    }

    fn keep(record: &mut Record, held: &Held) {
        record.keep(held.iter().map(|(service, held)| (service, held)));
    }

    fn faults(record: &Record) -> Vec<String> {
        record.faults().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_held_is_there_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let (mut record, before) = Record::open(&state);
        assert!(before.is_empty() && faults(&record).is_empty());
        // Nothing is held and nothing was: no file is needed.
        keep(&mut record, &Held::new());
        assert!(!state.exists());
        let all = vec![held("a", &["192.0.2.1", "2001:db8::1"]), held("b", &["192.0.2.2"])];
        keep(&mut record, &all);
        assert_eq!(Record::open(&state).1, all);
        // An agent that is started on it and in which nothing has changed writes nothing.
        let (mut record, _) = Record::open(&state);
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let before = inode(&state.join(FILE));
        keep(&mut record, &all);
        assert_eq!(inode(&state.join(FILE)), before);
        // The last address that is given up is not held any more.
        keep(&mut record, &Held::new());
        assert!(Record::open(&state).1.is_empty());
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_is_told_of_and_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let (mut record, _) = Record::open(dir.path());
        keep(&mut record, &vec![held("a", &["192.0.2.1"])]);
        let good = fs::read_to_string(&path).unwrap();
        let cases = [
            (good[..good.len() / 2].to_owned(), "EOF while parsing"),
            (String::new(), "EOF while parsing"),
            (good.replace("192.0.2.1", "nowhere"), "invalid IP address"),
            (good.replace("\"version\": 1", "\"version\": 2"), "version: it is of version 2, and 1 is known"),
        ];
        for (text, reason) in cases {
            fs::write(&path, &text).unwrap();
            let (mut record, before) = Record::open(dir.path());
            assert!(before.is_empty());
            let [fault] = &faults(&record)[..] else { panic!("{:?}", faults(&record)) };
            assert!(fault.starts_with(&format!("{}: warning: is damaged: ", path.display())), "{fault}");
            assert!(fault.contains(reason), "{fault}");
            assert_eq!(fs::read_to_string(dir.path().join("addresses.json.damaged")).unwrap(), text);
            keep(&mut record, &vec![held("a", &["192.0.2.1"])]);
            assert_eq!(fs::read_to_string(&path).unwrap(), good);
        }
        // Not text at all.
        fs::write(&path, [0xff, 0xfe, 0]).unwrap();
        assert!(faults(&Record::open(dir.path()).0)[0].contains("is damaged"));
    }

    #[test]
    fn a_file_that_cannot_be_read_or_written_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        // A directory in its place: not even root reads or replaces it.
        fs::create_dir_all(dir.path().join(FILE).join("x")).unwrap();
        let (mut record, before) = Record::open(dir.path());
        assert!(before.is_empty() && faults(&record)[0].contains("addresses.json: warning: cannot be read: "));
        let all = vec![held("a", &["192.0.2.1"])];
        keep(&mut record, &all);
        assert!(record.is_behind() && faults(&record)[1].contains("addresses.json: error: cannot be written: "));
        fs::remove_dir_all(dir.path().join(FILE)).unwrap();
        keep(&mut record, &all);
        assert!(!record.is_behind());
        assert_eq!(Record::open(dir.path()).1, all);
    }
}
