//! Netfilter's counters with names, over netlink (`linux/netfilter/nfnetlink_acct.h`).

use std::io;

use culvert_api::takeover::{Subsystem, Trace, TraceKind};
use culvert_dataplane::netlink::Netlink;
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::{
    Findings, absent,
    message::{Answer, Message},
    names::COUNTERS,
};

/// `NFNL_SUBSYS_ACCT`, `NFNL_MSG_ACCT_GET`, `NFNL_MSG_ACCT_DEL`, `NFACCT_NAME`.
const SUBSYSTEM: u16 = 7;
const GET: u16 = 1;
const DELETE: u16 = 3;
const NAME: u16 = 1;

/// Looks for what is kube-proxy's.
pub fn find_all(findings: &mut Findings) -> io::Result<()> {
    for name in COUNTERS {
        if ask(GET, name)? {
            findings.found.push(Trace {
                subsystem: Subsystem::Nfacct,
                table: None,
                kind: TraceKind::Counter,
                name: name.to_owned(),
            });
        }
    }
    Ok(())
}

/// Removes what is kube-proxy's, as far as no rule counts with it.
pub fn remove_all() -> io::Result<()> {
    for name in COUNTERS {
        ask(DELETE, name)?;
    }
    Ok(())
}

/// Whether there was such a counter.
fn ask(kind: u16, name: &str) -> io::Result<bool> {
    let request = Message::netfilter(SUBSYSTEM, kind, Answer::Acknowledge, 0).text(NAME, name).finish();
    match Netlink::open(NETLINK_NETFILTER).and_then(|netlink| netlink.request_raw(&request, |_| ())) {
        Err(error) if absent(&error) => Ok(false),
        result => result.map(|()| true),
    }
}
