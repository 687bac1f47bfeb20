//! The folder, watched: one thread that waits for the kernel's word (inotify), lets a burst of changes settle, scans,
//! and sends what changed.
//!
//! - Both the folder and its parent are watched: a folder may be a symbolic link that somebody swaps.
//! - A file that is open for writing is read when its writer closes it, so that no half of a file is taken for the whole.
//! - Every [`RESCAN`] the folder is scanned whatever the kernel said; file systems exist that say nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::batch::{Batch, Progress};
use crate::fault::Fault;
use crate::inotify::{Event, Kind, Watcher};
use crate::scan::Scanner;
use crate::validate::Rules;

/// Changes are taken together until nothing happens for this long...
const QUIET: Duration = Duration::from_millis(50);
/// ... but for no longer than this.
const BURST: Duration = Duration::from_millis(500);
/// A file that is being written is read after this time even if nobody closed it.
const WRITING: Duration = Duration::from_secs(5);
/// The folder is scanned at least this often.
const RESCAN: Duration = Duration::from_secs(10);
/// Batches that may wait for the receiver; the thread then waits too, and the next scan takes all there is.
const DEPTH: usize = 4;

/// Watches a folder from a thread of its own, which ends with the receiver. The first batch comes at once.
///
/// # Errors
/// When the thread cannot be started. Everything later is a fault in a batch.
pub fn watch(path: PathBuf, rules: Rules) -> std::io::Result<tokio::sync::mpsc::Receiver<Batch>> {
    let (sender, batches) = tokio::sync::mpsc::channel(DEPTH);
    thread::Builder::new().name("source".into()).spawn(move || {
        let mut task = Task::new(path, rules);
        while let Some(batch) = task.next() {
            if sender.blocking_send(batch).is_err() {
                return;
            }
        }
    })?;
    Ok(batches)
}

struct Task {
    path: PathBuf,
    scanner: Scanner,
    watcher: Result<Watcher, Fault>,
    pending: Pending,
    complete: bool,
    again: Option<Instant>,
    told: Option<(Vec<Fault>, bool)>,
}

/// What the kernel said since the last scan.
#[derive(Debug, Default)]
struct Pending {
    /// Files that were touched.
    touched: BTreeSet<PathBuf>,
    /// Files that are being written, and since when.
    writing: BTreeMap<PathBuf, Instant>,
    /// When the burst began, and when it last went on.
    burst: Option<(Instant, Instant)>,
}

impl Pending {
    /// Takes one event. What happens beside the folder is nothing to us.
    fn take(&mut self, folder: &Path, event: Event, now: Instant) {
        if event.path != folder && event.path.parent() != Some(folder) {
            return;
        }
        match event.kind {
            Kind::Written => {
                self.writing.entry(event.path.clone()).or_insert(now);
            }
            // Another file under this name: nobody writes this one.
            Kind::Closed | Kind::Other => {
                self.writing.remove(&event.path);
            }
        }
        self.touched.insert(event.path);
        let (begun, _) = self.burst.unwrap_or((now, now));
        self.burst = Some((begun, now));
    }

    /// When the burst counts as over.
    fn due(&self) -> Option<Instant> {
        self.burst.map(|(begun, last)| (last + QUIET).min(begun + BURST))
    }

    /// The files to read whatever they look like, and those to leave alone.
    fn settle(&mut self, now: Instant) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
        self.burst = None;
        self.writing.retain(|_, since| now < *since + WRITING);
        let busy: BTreeSet<PathBuf> = self.writing.keys().cloned().collect();
        (std::mem::take(&mut self.touched), busy)
    }
}

impl Task {
    fn new(path: PathBuf, rules: Rules) -> Self {
        let watcher = Watcher::new().map_err(|error| not_watched(&path, &error));
        let scanner = Scanner::new(path.clone(), rules);
        Self { path, scanner, watcher, pending: Pending::default(), complete: false, again: None, told: None }
    }

    /// Waits for something to tell. The first call waits for nothing. `None` never comes while the process lives.
    fn next(&mut self) -> Option<Batch> {
        loop {
            if self.told.is_some() {
                self.wait()?;
            }
            // The watch first, the scan then: what changes between the two is seen by both, not by none.
            let not_watched = self.watch_again();
            let now = Instant::now();
            let (touched, busy) = self.pending.settle(now);
            let waiting = self.pending.writing.values().min().map(|since| *since + WRITING);
            let scan = self.scanner.scan(&touched, &busy, now);
            self.again = [scan.again, waiting].into_iter().flatten().min();
            let mut faults = scan.faults;
            // Not before every file could be read without an error, for what a broken file held before the agent started is not
            // known.
            self.complete |= busy.is_empty() && !faults.iter().any(Fault::is_error);
            faults.extend(not_watched);
            let told = (faults, self.complete);
            if scan.changes.is_empty() && self.told.as_ref() == Some(&told) {
                continue;
            }
            let (faults, complete) = self.told.insert(told).clone();
            let progress = if complete { Progress::Complete } else { Progress::Partial };
            return Some(Batch { changes: scan.changes, faults, progress });
        }
    }

    /// Waits until a scan is due.
    fn wait(&mut self) -> Option<()> {
        let rescan = Instant::now() + RESCAN;
        loop {
            let due = [self.pending.due(), self.again, Some(rescan)].into_iter().flatten().min().unwrap_or(rescan);
            let now = Instant::now();
            if now >= due {
                return Some(());
            }
            let Ok(watcher) = &self.watcher else {
                // The regular scan alone must do.
                thread::sleep(due - now);
                continue;
            };
            let events = match watcher.wait(due - now) {
                Ok(Some(events)) => events,
                // The queue overran: look at everything.
                Ok(None) => return Some(()),
                Err(error) => {
                    self.watcher = Err(not_watched(&self.path, &error));
                    return Some(());
                }
            };
            for event in events {
                self.pending.take(&self.path, event, Instant::now());
            }
        }
    }

    /// Sets both watches; again each time, for a folder that was replaced is another one under the same name.
    fn watch_again(&mut self) -> Option<Fault> {
        let watcher = match &mut self.watcher {
            Ok(watcher) => watcher,
            Err(fault) => return Some(fault.clone()),
        };
        watcher.follow(&self.path).err().map(|error| not_watched(&self.path, &error))
    }
}

fn not_watched(path: &Path, error: &std::io::Error) -> Fault {
    let message = format!("cannot be watched, and is read every {} s instead: {error}", RESCAN.as_secs());
    Fault::warning(message).in_file(path)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;
    use tokio::sync::mpsc::Receiver;

    use super::*;
    use crate::object::{Change, Object};

    struct Watched {
        dir: TempDir,
        batches: Receiver<Batch>,
    }

    impl Watched {
        fn new(setup: impl FnOnce(&Path)) -> Self {
            let dir = tempfile::tempdir().unwrap();
            setup(dir.path());
            let batches = watch(dir.path().join("manifests"), Rules::default()).unwrap();
            Self { dir, batches }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Batches until one tells of changes (or of anything, if `faults`).
        async fn next(&mut self, faults: bool) -> (Vec<String>, Batch) {
            loop {
                let next = tokio::time::timeout(Duration::from_secs(5), self.batches.recv());
                let batch = next.await.expect("nothing was told").expect("the thread ended");
                if batch.changes.is_empty() && !faults {
                    continue;
                }
                let word = |change: &Change| match change {
                    Change::Upsert(Object::Service(service)) => {
                        format!("{}={}", service.metadata.name, service.spec.ports[0].port)
                    }
                    Change::Upsert(other) => panic!("{other:?}"),
                    Change::Remove(id) => format!("-{}", id.key.name),
                };
                return (batch.changes.iter().map(word).collect(), batch);
            }
        }

        async fn changes(&mut self) -> Vec<String> {
            self.next(false).await.0
        }
    }

    fn service(name: &str, port: u16) -> String {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n")
    }

    #[tokio::test]
    async fn files_written_renamed_and_deleted() {
        let mut watched = Watched::new(|dir| {
            fs::create_dir(dir.join("manifests")).unwrap();
            fs::write(dir.join("manifests/a.yaml"), service("a", 1)).unwrap();
            fs::write(dir.join("manifests/.a.yaml.swp"), service("hidden", 1)).unwrap();
            fs::write(dir.join("manifests/notes.txt"), "none of our business").unwrap();
        });
        let (changes, batch) = watched.next(false).await;
        assert_eq!((changes, batch.progress), (vec!["a=1".to_owned()], Progress::Complete));

        fs::write(watched.path("manifests/a.yaml"), service("a", 2)).unwrap();
        assert_eq!(watched.changes().await, ["a=2"]);

        // As editors do: write beside, then rename over.
        fs::write(watched.path("manifests/a.yaml.new"), service("a", 3)).unwrap();
        fs::rename(watched.path("manifests/a.yaml.new"), watched.path("manifests/a.yaml")).unwrap();
        assert_eq!(watched.changes().await, ["a=3"]);

        fs::remove_file(watched.path("manifests/a.yaml")).unwrap();
        assert_eq!(watched.changes().await, ["-a"]);
    }

    #[tokio::test]
    async fn half_of_a_file_is_not_taken_for_the_whole() {
        let mut watched = Watched::new(|dir| {
            fs::create_dir(dir.join("manifests")).unwrap();
            fs::write(dir.join("manifests/a.yaml"), format!("{}---\n{}", service("a", 1), service("b", 1))).unwrap();
        });
        assert_eq!(watched.changes().await, ["a=1", "b=1"]);
        let mut file = File::create(watched.path("manifests/a.yaml")).unwrap();
        file.write_all(service("a", 2).as_bytes()).unwrap();
        // Another file is told of meanwhile, this one is not: its writer is at work.
        fs::write(watched.path("manifests/c.yaml"), service("c", 1)).unwrap();
        assert_eq!(watched.changes().await, ["c=1"]);
        file.write_all(format!("---\n{}", service("b", 1)).as_bytes()).unwrap();
        drop(file);
        assert_eq!(watched.changes().await, ["a=2"]);
    }

    #[tokio::test]
    async fn a_broken_file_is_told_of_and_holds_back_completeness() {
        let mut watched = Watched::new(|dir| {
            fs::create_dir(dir.join("manifests")).unwrap();
            fs::write(dir.join("manifests/a.yaml"), service("a", 0)).unwrap();
        });
        let (changes, batch) = watched.next(true).await;
        assert!(changes.is_empty() && batch.progress == Progress::Partial);
        let file = watched.path("manifests/a.yaml");
        let expected = format!(
            "{}:4: error: Service/default/a: spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            file.display()
        );
        assert_eq!(batch.faults.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
        fs::write(&file, service("a", 1)).unwrap();
        let (changes, batch) = watched.next(false).await;
        assert_eq!((changes, batch.progress, batch.faults), (vec!["a=1".to_owned()], Progress::Complete, vec![]));
    }

    #[tokio::test]
    async fn a_mounted_config_map_is_swapped() {
        // As the kubelet lays it out: name -> ..data/name, ..data -> ..stamp, and ..data swapped by rename.
        let stamp = |dir: &Path, stamp: &str, port: u16| {
            fs::create_dir(dir.join(stamp)).unwrap();
            fs::write(dir.join(stamp).join("a.yaml"), service("a", port)).unwrap();
            symlink(stamp, dir.join("..data_tmp")).unwrap();
            fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
        };
        let mut watched = Watched::new(|dir| {
            let dir = dir.join("manifests");
            fs::create_dir(&dir).unwrap();
            stamp(&dir, "..1", 1);
            symlink("..data/a.yaml", dir.join("a.yaml")).unwrap();
        });
        assert_eq!(watched.changes().await, ["a=1"]);
        stamp(&watched.path("manifests"), "..2", 2);
        assert_eq!(watched.changes().await, ["a=2"]);
    }

    #[tokio::test]
    async fn the_folder_itself_is_a_link_that_is_swapped() {
        let mut watched = Watched::new(|dir| {
            for (name, port) in [("one", 1), ("two", 2)] {
                fs::create_dir(dir.join(name)).unwrap();
                fs::write(dir.join(name).join("a.yaml"), service("a", port)).unwrap();
            }
            symlink("one", dir.join("manifests")).unwrap();
        });
        assert_eq!(watched.changes().await, ["a=1"]);
        symlink("two", watched.path("tmp")).unwrap();
        fs::rename(watched.path("tmp"), watched.path("manifests")).unwrap();
        assert_eq!(watched.changes().await, ["a=2"]);
        // The new folder is the one that is watched now.
        fs::write(watched.path("two/a.yaml"), service("a", 3)).unwrap();
        assert_eq!(watched.changes().await, ["a=3"]);
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_yet() {
        let mut watched = Watched::new(|_| {});
        let (changes, batch) = watched.next(true).await;
        assert!(changes.is_empty() && batch.progress == Progress::Partial && !batch.faults.is_empty());
        fs::create_dir(watched.path("manifests")).unwrap();
        fs::write(watched.path("manifests/a.yaml"), service("a", 1)).unwrap();
        assert_eq!(watched.changes().await, ["a=1"]);
    }
}
