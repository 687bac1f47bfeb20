//! What kube-proxy left on a node: found and removed without any of its tools, and nothing of anybody else's.
//!
//! ```text
//! nftables, iptables-nft (netlink) ┐
//! iptables-legacy (socket options) ┴─► Graph ─► plan (pure; names) ─► written back
//! ipvs, its link, ipset, nfacct (netlink) ─► names ─► removed
//! ```
//!
//! Everything is about the network namespace of the calling thread. What does not exist in the kernel is not asked for, where
//! asking would make or load it.

pub mod legacy;
pub mod message;
pub mod names;
pub mod nftables;
pub mod plan;

mod ipset;
mod ipvs;
mod nfacct;
mod notice;
mod running;
mod xtables;

use std::fmt;
use std::io;

use culvert_api::takeover::{Kept, Trace};

pub use notice::notice;
pub use running::signs;

use crate::plan::Jump;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// What is kube-proxy's and can go, in order.
    pub found: Vec<Trace>,
    /// What is kube-proxy's and stays, in order.
    pub kept: Vec<Kept>,
    /// What could not be read, and why.
    pub errors: Vec<String>,
}

type Find = fn(&mut Findings) -> io::Result<()>;
type Remove = fn() -> io::Result<()>;

/// What carries traffic, or has.
const RULES: [(&str, Find); 4] = [
    ("nftables", nftables::find_all),
    ("iptables-legacy", xtables::find_all),
    ("ipvs", ipvs::find_all),
    ("ipset", ipset::find_all),
];

/// Looks for all that is kube-proxy's.
pub fn find() -> Findings {
    let mut findings = find_rules();
    findings.try_step("nfacct", nfacct::find_all);
    findings
}

/// Looks for all but counters: to ask for those may load a module.
fn find_rules() -> Findings {
    let mut findings = Findings::default();
    for (what, step) in RULES {
        findings.try_step(what, step);
    }
    findings
}

impl Findings {
    fn try_step(&mut self, what: &str, step: Find) {
        if let Err(error) = step(self) {
            self.errors.push(failure(what, &error));
        }
        self.found.sort_unstable();
        self.kept.sort_unstable();
    }
}

/// Removes all that is kube-proxy's; returns what could not be removed, and why. Goes on after an error.
pub fn remove() -> Vec<String> {
    // Virtual services are told by their addresses and by sets; sets and counters are held by rules.
    let steps: [(&str, Remove); 6] = [
        ("ipvs", ipvs::remove_services),
        ("link kube-ipvs0", ipvs::remove_link),
        ("nftables", nftables::remove_all),
        ("iptables-legacy", xtables::remove_all),
        ("ipset", ipset::remove_all),
        ("nfacct", nfacct::remove_all),
    ];
    steps.into_iter().filter_map(|(what, step)| Some(failure(what, &step().err()?))).collect()
}

fn failure(what: &str, error: &impl fmt::Display) -> String {
    format!("{what}: {error}")
}

/// The kernel does not have what was asked.
fn absent(error: &io::Error) -> bool {
    const MISSING: [i32; 5] = [libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT, libc::EINVAL, libc::EOPNOTSUPP, libc::ENOENT];
    error.raw_os_error().is_some_and(|code| MISSING.contains(&code))
}

fn jump_name<R>(jump: &Jump<R>) -> String {
    format!("{} -> {}", jump.from, jump.to)
}
