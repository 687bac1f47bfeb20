//! A place where code runs: a network namespace, a cgroup and a host name.
//!
//! All three are properties of a thread, and a socket keeps the namespace and the cgroup that it was opened in. So a
//! thread enters the place and does there what the test says, in plain Rust; programs started by such a thread
//! inherit the place.

use std::fs::{self, File};
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::sethostname;

use crate::process::Process;
use crate::shell;

/// A namespace with its addresses, as seen by a test. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Place(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    netns: String,
    cgroup: PathBuf,
    logs: PathBuf,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

/// An address family, as an index of a test's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl Place {
    /// Describes a place whose namespace and cgroup exist already. Programs started there log into `logs`.
    pub fn new(name: &str, netns: String, cgroup: &Path, logs: &Path, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        let (name, cgroup, logs) = (name.to_owned(), cgroup.to_owned(), logs.to_owned());
        Self(Arc::new(Inner { name, netns, cgroup, logs, v4, v6 }))
    }

    /// The short name: `client`, `n1`, `a`, ...; the host name of programs that run there.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The name of the network namespace.
    pub fn netns(&self) -> &str {
        &self.0.netns
    }

    /// The cgroup that its programs and sockets belong to.
    pub fn cgroup(&self) -> &Path {
        &self.0.cgroup
    }

    /// Its first address of a family.
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.0.v4.into(),
            Family::V6 => self.0.v6.into(),
        }
    }

    /// Its first IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.0.v4
    }

    /// Its first IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.0.v6
    }

    /// Whether an address is one of its first ones.
    pub fn is(&self, address: IpAddr) -> bool {
        self.ip(Family::of(address)) == address
    }

    /// Its address of a family, with a port.
    pub fn socket(&self, family: Family, port: u16) -> SocketAddr {
        (self.ip(family), port).into()
    }

    /// Makes the calling thread part of this place, for the rest of its life.
    pub fn enter(&self) -> Result<()> {
        let netns = Path::new("/run/netns").join(&self.0.netns);
        let file = File::open(&netns).with_context(|| netns.display().to_string())?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("setns {}", netns.display()))?;
        unshare(CloneFlags::CLONE_NEWUTS).context("unshare(CLONE_NEWUTS)")?;
        sethostname(&self.0.name).context("sethostname")?;
        let threads = self.0.cgroup.join("cgroup.threads");
        fs::write(&threads, "0").with_context(|| {
            format!("{}: cannot be joined (is this process below the root of cgroup2?)", threads.display())
        })
    }

    /// Does `work` here, on a thread of its own, and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let visit = || {
            self.enter()?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(visit).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a future here, on a runtime and a thread of its own, and waits for it.
    pub fn block_on<T: Send, F: Future<Output = Result<T>>>(&self, work: impl FnOnce() -> F + Send) -> Result<T> {
        self.run(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work()))
    }

    /// Runs a command line here and returns its output.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.run(|| shell::sh(line)).with_context(|| format!("in {}", self.0.name))
    }

    /// Runs lines of `ip` here, all at once.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut command = shell::split("ip -batch -");
        self.run(|| shell::feed(&mut command, lines)).with_context(|| format!("in {}", self.0.name))?;
        Ok(())
    }

    /// Writes a setting below `/proc/sys/net` of this namespace.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| fs::write(&path, value).with_context(|| path.clone()))
    }

    /// Starts a program here; its output goes to `NAME-PROGRAM.log`.
    pub fn start(&self, mut command: Command) -> Result<Process> {
        let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = self.0.logs.join(format!("{}-{program}.log", self.0.name));
        self.run(|| Process::start(&mut command, &log)).with_context(|| format!("in {}", self.0.name))
    }
}
