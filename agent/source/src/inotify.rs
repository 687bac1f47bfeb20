//! The kernel's word about a folder and its parent (inotify(7)).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

/// What happened to a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Which path, below the folder or its parent as the caller named them.
    pub path: PathBuf,
    /// What happened.
    pub kind: Kind,
}

/// Kinds of events that differ for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Somebody writes to the file.
    Written,
    /// Somebody who could have written closed it.
    Closed,
    /// The name came, went, or leads elsewhere; or its attributes changed.
    Other,
}

/// Watches a folder and its parent.
pub struct Watcher {
    inotify: Inotify,
    /// The directories that are watched, by the names that the caller has for them.
    watched: BTreeMap<WatchDescriptor, PathBuf>,
}

impl Watcher {
    /// A watcher of nothing yet.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self { inotify, watched: BTreeMap::new() })
    }

    /// Watches `folder`, whatever is under that name now, and its parent; nothing else any more.
    ///
    /// # Errors
    /// When the folder cannot be watched. Without its parent only a swap of the folder itself is seen late.
    pub fn follow(&mut self, folder: &Path) -> io::Result<()> {
        let mut watched = BTreeMap::new();
        if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty())
            && let Ok(descriptor) = self.inotify.add_watch(parent, events())
        {
            watched.insert(descriptor, parent.to_owned());
        }
        let outcome = self.inotify.add_watch(folder, events());
        if let Ok(descriptor) = outcome {
            watched.insert(descriptor, folder.to_owned());
        }
        for gone in self.watched.keys().filter(|descriptor| !watched.contains_key(*descriptor)) {
            // The kernel may have dropped it already, with its directory.
            let _ = self.inotify.rm_watch(*gone);
        }
        self.watched = watched;
        outcome.map(drop).map_err(io::Error::from)
    }

    /// Waits for events, at most `limit`. `None`: the queue overran, anything may have happened.
    pub fn wait(&self, limit: Duration) -> io::Result<Option<Vec<Event>>> {
        // Rounded up, or the last millisecond would be spent in a loop.
        let limit = PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)], limit) {
            Ok(0) | Err(Errno::EINTR) => return Ok(Some(Vec::new())),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let events = match self.inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Some(Vec::new())),
            Err(error) => return Err(error.into()),
        };
        if events.iter().any(|event| event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)) {
            return Ok(None);
        }
        Ok(Some(events.into_iter().filter_map(|event| self.event(event)).collect()))
    }

    fn event(&self, event: InotifyEvent) -> Option<Event> {
        let directory = self.watched.get(&event.wd)?;
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            return None;
        }
        let path = event.name.map_or_else(|| directory.clone(), |name| directory.join(name));
        let kind = if event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE) {
            Kind::Closed
        } else if event.mask.contains(AddWatchFlags::IN_MODIFY) {
            Kind::Written
        } else {
            Kind::Other
        };
        Some(Event { path, kind })
    }
}

/// Everything but opening and reading.
fn events() -> AddWatchFlags {
    AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR
}
