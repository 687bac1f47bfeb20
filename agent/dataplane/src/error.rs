//! What can go wrong between the agent and the kernel.

use std::{
    io,
    path::{Path, PathBuf},
};

/// A failure, with the object that it is about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or pin.
    #[error("{}: {source}", path.display())]
    Path {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The directory for the pins is not on a bpf file system.
    #[error("{} is not a bpf file system: mount one there (mount -t bpf bpf {})", .0.display(), .0.display())]
    NoBpffs(PathBuf),
    /// No cgroup2 is mounted, or the path given is not on one.
    #[error("{}: not a cgroup2 directory", .0.display())]
    NoCgroup(PathBuf),
    /// The kernel object cannot be loaded.
    #[error("the kernel object: {0}")]
    Object(#[source] Box<aya::EbpfError>),
    /// A program does not pass the verifier or is of the wrong type.
    #[error("kernel program {name}: {source}")]
    Program {
        /// Its name.
        name: &'static str,
        /// What aya or the verifier said.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object does not hold a program.
    #[error("the kernel object holds no program {0}")]
    NoProgram(&'static str),
    /// The object or the pins do not hold a map.
    #[error("map {0} is missing")]
    NoMap(String),
    /// An operation on a map.
    #[error("map {name}: {source}")]
    Map {
        /// Its name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A hook of a link.
    #[error("{hook} of link {index}: {source}")]
    Hook {
        /// The direction.
        hook: &'static str,
        /// The link's ifindex.
        index: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A cgroup hook.
    #[error("socket hook {name}: {source}")]
    Socket {
        /// The program's name.
        name: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Netlink.
    #[error("netlink, {what}: {source}")]
    Netlink {
        /// What was asked.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The node's network namespace.
    #[error("network namespace: {0}")]
    Namespace(#[source] io::Error),
    /// Another agent uses the pins.
    #[error("another agent is running on {}", .0.display())]
    Busy(PathBuf),
}

impl Error {
    /// Whether it is that a hook's link is not there any more.
    pub(crate) fn is_of_lost_link(&self) -> bool {
        matches!(self, Self::Hook { source, .. } if source.raw_os_error() == Some(libc::ENODEV))
    }

    /// Adds the path to an I/O error.
    pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Path { path: path.to_owned(), source }
    }

    /// Adds the map's name to an I/O error.
    pub(crate) fn map(name: &str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Map { name: name.to_owned(), source }
    }

    /// Adds what was asked of netlink.
    pub(crate) fn netlink(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Netlink { what, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_hook_can_lose_its_link() {
        let hook = |errno| Error::Hook { hook: "egress", index: 7, source: io::Error::from_raw_os_error(errno) };
        assert!(hook(libc::ENODEV).is_of_lost_link());
        assert!(!hook(libc::EPERM).is_of_lost_link());
        assert!(!Error::netlink("links")(io::Error::from_raw_os_error(libc::ENODEV)).is_of_lost_link());
    }
}
