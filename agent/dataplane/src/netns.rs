//! What the node must offer: its network namespace, a bpf file system, forwarding, ports.

use std::{fs, io, net::UdpSocket, ops::RangeInclusive, path::Path};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::{Error, sys};

/// Cookie of the agent's network namespace, which is the node's.
pub fn cookie() -> Result<u64, Error> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"));
    // Loopback may be down: any address does.
    let socket = socket.or_else(|_| UdpSocket::bind("0.0.0.0:0")).map_err(Error::Namespace)?;
    sys::netns_cookie(socket).map_err(Error::Namespace)
}

/// Makes sure that a path is on a bpf file system: mounts one if there is none and the agent may.
pub fn ensure_bpffs(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::at(path))?;
    if is_bpffs(path) {
        return Ok(());
    }
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(|_| Error::NoBpffs(path.to_owned()))
}

/// Whether a path is on a bpf file system.
pub fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// What on this node will hinder traffic, in words. Nothing is changed: /proc/sys is often read-only.
pub fn warnings(ports: &RangeInclusive<u16>) -> Vec<String> {
    check(ports, sysctl)
}

/// For each family that the node has and does not forward, a line that says so.
pub fn not_forwarding() -> Vec<String> {
    check_forwarding(sysctl)
}

fn sysctl(name: &str) -> io::Result<String> {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    fs::read_to_string(path).map(|value| value.trim().to_owned())
}

fn check_forwarding(sysctl: impl Fn(&str) -> io::Result<String>) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, family) in [("net.ipv4.ip_forward", "IPv4"), ("net.ipv6.conf.all.forwarding", "IPv6")] {
        // A node without a family has no such file.
        if sysctl(name).is_ok_and(|value| value == "0") {
            warnings.push(format!("{name} = 0: {family} traffic for pods and other nodes is not forwarded"));
        }
    }
    warnings
}

fn check(ports: &RangeInclusive<u16>, sysctl: impl Fn(&str) -> io::Result<String>) -> Vec<String> {
    let mut warnings = check_forwarding(&sysctl);
    let name = "net.ipv4.ip_local_port_range";
    let Some((low, high)) = sysctl(name).ok().and_then(|value| range(&value)) else { return warnings };
    let overlap = low <= *ports.end() && *ports.start() <= high;
    let reserved = sysctl("net.ipv4.ip_local_reserved_ports").unwrap_or_default();
    if overlap && !covers(&reserved, ports) {
        warnings.push(format!(
            "{name} = {low} {high} overlaps the ports for translated sources, {}-{}: list those in \
             net.ipv4.ip_local_reserved_ports",
            ports.start(),
            ports.end()
        ));
    }
    warnings
}

fn range(value: &str) -> Option<(u16, u16)> {
    let mut numbers = value.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Whether one entry of a list such as `8080,30000-31000` covers all of `ports`; the kernel merges neighbours.
fn covers(reserved: &str, ports: &RangeInclusive<u16>) -> bool {
    reserved.split(',').any(|entry| {
        let (low, high) = entry.split_once('-').unwrap_or((entry, entry));
        let bounds = low.trim().parse::<u16>().ok().zip(high.trim().parse::<u16>().ok());
        bounds.is_some_and(|(low, high)| low <= *ports.start() && *ports.end() <= high)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings_with(sysctls: &[(&str, &str)]) -> Vec<String> {
        check(&(61_000..=65_535), |name| {
            let found = sysctls.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    #[test]
    fn a_node_in_order_has_no_warnings() {
        let sysctls = [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv4.ip_local_port_range", "32768\t60999"),
        ];
        assert_eq!(warnings_with(&sysctls), Vec::<String>::new());
    }

    #[test]
    fn forwarding_is_missed_where_the_family_exists() {
        assert_eq!(warnings_with(&[("net.ipv4.ip_forward", "0")]).len(), 1);
    }

    #[test]
    fn overlapping_ports_must_be_reserved() {
        let range = ("net.ipv4.ip_local_port_range", "1024\t65535");
        assert_eq!(warnings_with(&[range]).len(), 1);
        assert_eq!(warnings_with(&[range, ("net.ipv4.ip_local_reserved_ports", "8080,61000-65535")]).len(), 0);
        assert_eq!(warnings_with(&[range, ("net.ipv4.ip_local_reserved_ports", "61000-62000")]).len(), 1);
    }
}
