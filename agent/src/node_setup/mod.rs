//! `culvert node-setup`: what a node needs before the agent, and the agent has not the privileges to do. [`decide`] says what
//! should change; here it is done.
//!
//! Without a bpf file system the agent cannot work: that is an error. What kube-proxy would set of netfilter's parameters is
//! set where it can be; where it cannot, which is so in a network namespace of its own, the node works with what it has, and
//! a warning says so. Running it again changes nothing.

mod decide;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use culvert_dataplane::{conntrack, netns};
use nix::mount::{MsFlags, mount};

use self::decide::{Conntrack, MAX, Parameter, Rule, cpus, is_shared};
use crate::cli::{NodeSetupArgs, SetupStep};
use crate::output::{Done, complain, explain, print};

/// Prepares the node.
pub fn run(args: &NodeSetupArgs) -> Result<Done> {
    let wanted = |step| !args.skip.contains(&step);
    if wanted(SetupStep::Bpffs) {
        print(&(bpffs(&args.bpffs, args.shared)? + "\n"))?;
    }
    if wanted(SetupStep::Conntrack) {
        let conntrack = Conntrack {
            max_per_core: args.conntrack_max_per_core,
            min: args.conntrack_min,
            established: args.conntrack_tcp_timeout_established,
            close_wait: args.conntrack_tcp_timeout_close_wait,
        };
        wake_conntrack();
        let host = Host::default();
        for result in host.apply(&conntrack.rules(host.cores()?)) {
            match result {
                Ok(line) => print(&(line + "\n"))?,
                Err(error) => warn(&explain(&error)),
            }
        }
    }
    if wanted(SetupStep::Forwarding) {
        for line in netns::not_forwarding() {
            warn(&line);
        }
    }
    Ok(Done::Well)
}

fn warn(line: &str) {
    complain(format_args!("warning: {line}"));
}

// ===== the bpf file system =====

/// Mounts the bpf file system, if there is none; the answer is what was done.
fn bpffs(path: &Path, shared: bool) -> Result<String> {
    let name = path.display();
    fs::create_dir_all(path).with_context(|| format!("cannot create {name}"))?;
    if netns::is_bpffs(path) {
        return Ok(format!("{name}: a bpf file system, as it should be"));
    }
    if shared {
        let path = path.canonicalize().with_context(|| format!("{name}"))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
        if !is_shared(&mounts, &path.to_string_lossy()).unwrap_or_default() {
            bail!(
                "{name}: the host would not see what is mounted here; the volume needs mountPropagation: Bidirectional"
            );
        }
    }
    // As systemd mounts it: for root alone.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=700"))
        .with_context(|| format!("cannot mount a bpf file system on {name}"))?;
    Ok(format!("{name}: mounted a bpf file system"))
}

// ===== netfilter's parameters =====

/// Asks netfilter for its connections where it has no table of them yet: the kernel then loads what keeps them. Rules of a
/// CNI would do so later, with the kernel's own limits.
fn wake_conntrack() {
    if !Host::default().path(MAX).exists() {
        // That there are none is no news; that it did not help is said where the parameters are missed.
        let _ = conntrack::translated();
    }
}

/// The directory that holds /proc and /sys.
struct Host {
    root: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

impl Host {
    fn path(&self, parameter: Parameter) -> PathBuf {
        self.root.join(parameter.path)
    }

    /// The machine's cores, whatever this process may use of them.
    fn cores(&self) -> Result<u64> {
        let path = self.root.join("sys/devices/system/cpu/online");
        let list = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        cpus(&list).with_context(|| format!("{}: {:?} is no list of CPUs", path.display(), list.trim()))
    }

    /// Brings the parameters in order: what was done for each, or why not.
    fn apply(&self, rules: &[(Parameter, Rule)]) -> Vec<Result<String>> {
        if !rules.is_empty() && !self.path(MAX).exists() {
            return vec![Ok("netfilter tracks no connections here; there is nothing to set".to_owned())];
        }
        rules.iter().map(|(parameter, rule)| self.apply_one(*parameter, *rule)).collect()
    }

    fn apply_one(&self, parameter: Parameter, rule: Rule) -> Result<String> {
        let (name, path) = (parameter.name, self.path(parameter));
        let text = fs::read_to_string(&path).with_context(|| format!("{name} cannot be read"))?;
        let found = text.trim().parse().with_context(|| format!("{name} is {:?}, not a number", text.trim()))?;
        let Some(value) = rule.change(found) else { return Ok(format!("{name} = {found}, as it should be")) };
        fs::write(&path, value.to_string())
            .map(|()| format!("{name} = {value}, was {found}"))
            .map_err(|error| anyhow!("{name} stays {found} and should be {value}: {error}{}", hint(&error)))
    }
}

/// What most often is the reason that a parameter cannot be written.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "; a container needs to be privileged for this",
        // nf_conntrack_max: EACCES or EPERM; the number of buckets: EOPNOTSUPP.
        io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported => {
            "; it is decided in the machine's own network namespace"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::decide::{CLOSE_WAIT, ESTABLISHED, HASH_SIZE};
    use super::*;

    const RULES: [(Parameter, Rule); 4] = [
        (MAX, Rule::AtLeast(131_072)),
        (HASH_SIZE, Rule::AtLeast(32_768)),
        (ESTABLISHED, Rule::Exactly(86_400)),
        (CLOSE_WAIT, Rule::Exactly(3_600)),
    ];

    fn host(values: &[(Parameter, &str)]) -> (tempfile::TempDir, Host) {
        let directory = tempfile::tempdir().unwrap();
        let host = Host { root: directory.path().into() };
        for (parameter, value) in values {
            let path = host.path(*parameter);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value).unwrap();
        }
        (directory, host)
    }

    fn said(results: Vec<Result<String>>) -> Vec<String> {
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|error| format!("warning: {}", explain(&error))))
            .collect()
    }

    #[test]
    fn what_is_not_right_is_set_and_the_second_time_nothing_is() {
        let (_directory, host) =
            host(&[(MAX, "65536\n"), (HASH_SIZE, "65536\n"), (ESTABLISHED, "432000\n"), (CLOSE_WAIT, "60\n")]);
        let first = said(host.apply(&RULES));
        let expected = [
            "net.netfilter.nf_conntrack_max = 131072, was 65536",
            "nf_conntrack.hashsize = 65536, as it should be",
            "net.netfilter.nf_conntrack_tcp_timeout_established = 86400, was 432000",
            "net.netfilter.nf_conntrack_tcp_timeout_close_wait = 3600, was 60",
        ];
        assert_eq!(first, expected);
        assert_eq!(fs::read_to_string(host.path(MAX)).unwrap(), "131072");
        assert!(said(host.apply(&RULES)).iter().all(|line| line.ends_with(", as it should be")));
    }

    #[test]
    fn one_that_fails_does_not_keep_the_others() {
        let (_directory, host) = host(&[(MAX, "many\n"), (ESTABLISHED, "1"), (CLOSE_WAIT, "1")]);
        let lines = said(host.apply(&RULES));
        assert!(lines[0].starts_with("warning: net.netfilter.nf_conntrack_max is \"many\", not a number"), "{lines:?}");
        assert!(lines[1].starts_with("warning: nf_conntrack.hashsize cannot be read"), "{lines:?}");
        assert_eq!(lines[3], "net.netfilter.nf_conntrack_tcp_timeout_close_wait = 3600, was 1");
    }

    #[test]
    fn a_node_without_conntrack_has_nothing_to_set() {
        let (_directory, host) = host(&[]);
        assert_eq!(said(host.apply(&RULES)), ["netfilter tracks no connections here; there is nothing to set"]);
        assert_eq!(said(host.apply(&[])), [""; 0]);
    }
}
