//! iptables-legacy: reads the kernel's tables and writes them back without what is kube-proxy's, counters and all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use culvert_api::takeover::Subsystem;
use culvert_dataplane::xtables::{Counters, Xtables};
use nix::fcntl::{Flock, FlockArg};

use crate::{
    Findings,
    legacy::{Layout, Malformed, Rules},
    names::Table,
    nftables::describe,
};

/// What every iptables command holds while it changes a table.
const LOCK: &str = "/run/xtables.lock";
/// How long another command may hold it.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);
/// How often a table is read again because somebody who takes no lock changed it.
const TRIES: u32 = 20;

#[derive(Clone, Copy, Debug)]
struct Family {
    name: &'static str,
    ipv6: bool,
    layout: Layout,
    /// The names of the tables that exist. To ask the kernel for one that does not would make it.
    names: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family { name: "ip", ipv6: false, layout: Layout::V4, names: "/proc/thread-self/net/ip_tables_names" },
    Family { name: "ip6", ipv6: true, layout: Layout::V6, names: "/proc/thread-self/net/ip6_tables_names" },
];

impl Family {
    /// Tables that exist and that kube-proxy writes to.
    fn tables(self) -> io::Result<Vec<Table>> {
        match fs::read_to_string(self.names) {
            Ok(names) => Ok(names.lines().filter_map(Table::of).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// Looks for what is kube-proxy's.
pub fn find_all(findings: &mut Findings) -> io::Result<()> {
    for family in FAMILIES {
        for table in family.tables()? {
            let blob = Xtables::open(family.ipv6)?.read(table.name())?;
            let plan = Rules::parse(&blob, family.layout).map_err(invalid)?.graph(table).plan();
            describe(findings, Subsystem::IptablesLegacy, &format!("{} {}", family.name, table.name()), &plan);
        }
    }
    Ok(())
}

/// Removes what is kube-proxy's.
pub fn remove_all() -> io::Result<()> {
    let mut lock = None;
    for family in FAMILIES {
        for table in family.tables()? {
            clean(family, table, &mut lock)?;
        }
    }
    Ok(())
}

/// Takes the lock only if there is something to remove: a container may have no place for it.
fn clean(family: Family, table: Table, lock: &mut Option<Flock<File>>) -> io::Result<()> {
    let xtables = Xtables::open(family.ipv6)?;
    for _ in 0..TRIES {
        let old = xtables.read(table.name())?;
        let rules = Rules::parse(&old, family.layout).map_err(invalid)?;
        let plan = rules.graph(table).plan();
        if plan.is_empty() {
            return Ok(());
        }
        if lock.is_none() {
            *lock = Some(acquire(Path::new(LOCK))?);
            // Whoever had it may have changed the table.
            continue;
        }
        let (new, places) = rules.without(&plan).map_err(invalid)?;
        let counted = match xtables.replace(table.name(), &new, old.count) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => continue,
            result => result?,
        };
        // The kernel begins to count anew; what was counted until the last moment is added.
        let counters: Vec<Counters> =
            places.iter().map(|place| counted.get(*place).copied().unwrap_or_default()).collect();
        return xtables.add_counters(table.name(), &counters);
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

fn invalid(error: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Takes the lock of iptables.
fn acquire(path: &Path) -> io::Result<Flock<File>> {
    let mut file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path)?;
    let end = Instant::now() + PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, error)) if Instant::now() >= end => return Err(error.into()),
            Err((back, _)) => file = back,
        }
        std::thread::sleep(PAUSE);
    }
}
