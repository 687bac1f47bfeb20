//! Sets of addresses and ports, over netlink (`linux/netfilter/ipset/ip_set.h`).

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use culvert_api::takeover::{Subsystem, Trace, TraceKind};
use culvert_dataplane::netlink::{Netlink, attributes, find};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::{
    Findings, absent,
    message::{Answer, Message, text},
    names::{NODE_PORT_SETS, owns_set, set_v6},
};

/// `NFNL_SUBSYS_IPSET`, and its messages.
const SUBSYSTEM: u16 = 6;
const DESTROY: u16 = 3;
const LIST: u16 = 7;
/// The oldest version of the protocol that all kernels speak.
const PROTOCOL: u8 = 6;
const ATTRIBUTE_PROTOCOL: u16 = 1;
const NAME: u16 = 2;
const FLAGS: u16 = 6;
const DATA: u16 = 7;
const ELEMENTS: u16 = 8;
const PORT: u16 = 4;
/// `IPSET_FLAG_LIST_SETNAME`: names alone.
const NAMES_ONLY: u32 = 1 << 1;
/// `IPSET_ERR_BUSY`: a rule refers to it.
const BUSY: i32 = 4100;
/// Bytes of `struct nfgenmsg`.
const HEAD: usize = 4;
/// How long the kernel may take to let go of the rules that referred to a set.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(20);

/// Whether the kernel has sets at all: to ask would load them.
fn possible() -> bool {
    Path::new("/sys/module/ip_set").exists()
}

/// Looks for what is kube-proxy's.
pub fn find_all(findings: &mut Findings) -> io::Result<()> {
    let traces =
        names()?.into_iter().map(|name| Trace { subsystem: Subsystem::Ipset, table: None, kind: TraceKind::Set, name });
    findings.found.extend(traces);
    Ok(())
}

/// Removes what is kube-proxy's, as far as no rule refers to it.
pub fn remove_all() -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    let netlink = Netlink::open(NETLINK_NETFILTER)?;
    for name in names()? {
        let request = about(DESTROY, Answer::Acknowledge).text(NAME, &name).finish();
        loop {
            match netlink.request_raw(&request, |_| ()) {
                // nftables lets go of the rules that it removed when it has the time.
                Err(error) if error.raw_os_error() == Some(BUSY) && Instant::now() < end => std::thread::sleep(PAUSE),
                Err(error) if error.raw_os_error() == Some(BUSY) => {
                    return Err(io::Error::other(format!("a rule refers to set {name}")));
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                result => break result?,
            }
        }
    }
    Ok(())
}

/// Node ports by protocol (`IPPROTO_*`), as kube-proxy's sets have them.
pub fn node_ports() -> io::Result<BTreeSet<(u8, u16)>> {
    let mut ports = BTreeSet::new();
    let there = names()?;
    let netlink = Netlink::open(NETLINK_NETFILTER)?;
    for (set, protocol) in NODE_PORT_SETS {
        for name in [set.to_owned(), set_v6(set)].into_iter().filter(|name| there.contains(name)) {
            list(&netlink, about(LIST, Answer::Dump).text(NAME, &name), |bytes| {
                let elements = attributes(find(bytes, ELEMENTS).unwrap_or_default());
                let data = elements.filter(|(kind, _)| *kind == DATA);
                let port = |bytes| Some(u16::from_be_bytes(*find(bytes, PORT)?.first_chunk()?));
                ports.extend(data.filter_map(|(_, data)| port(data)).map(|port| (protocol, port)));
            })?;
        }
    }
    Ok(ports)
}

/// The names of kube-proxy's sets.
fn names() -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    if !possible() {
        return Ok(names);
    }
    let netlink = Netlink::open(NETLINK_NETFILTER)?;
    let request = about(LIST, Answer::Dump).with(FLAGS, &NAMES_ONLY.to_be_bytes());
    list(&netlink, request, |bytes| names.extend(find(bytes, NAME).map(text).filter(|name| owns_set(name))))?;
    Ok(names)
}

fn list(netlink: &Netlink, request: Message, mut set: impl FnMut(&[u8])) -> io::Result<()> {
    match netlink.dump_raw(&request.finish(), |frame| set(frame.payload.get(HEAD..).unwrap_or_default())) {
        // No sets, or the one that was asked for has gone.
        Err(error) if absent(&error) => Ok(()),
        result => result.map(drop),
    }
}

fn about(kind: u16, answer: Answer) -> Message {
    Message::netfilter(SUBSYSTEM, kind, answer, libc::AF_INET as u8).with(ATTRIBUTE_PROTOCOL, &[PROTOCOL])
}
