//! Hooks of kernels without tcx: filters of the clsact qdisc.
//!
//! A filter is no object that could be pinned. Ours are known by their fixed priority and handle and by their names; a
//! new program replaces the old one under the same priority and handle, at once for every packet.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};

use super::Direction;
use crate::{Error, netlink::Netlink, pins::Pins};

const HANDLE: u32 = 1;
/// In front of the program's name in a filter's.
const PREFIX: &str = "culvert/";
/// Every kind of packet, as the kernel wants it: in network order.
const ALL_PROTOCOLS: u32 = (libc::ETH_P_ALL as u16).to_be() as u32;

/// Filters run from the lowest priority to the highest: ours are next to the wire on both ways.
const fn priority(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => 2,
        Direction::Egress => 49_001,
    }
}

/// Makes our filter run a program, and adds filter and qdisc if they are missing.
pub fn attach(
    netlink: &Netlink,
    pins: &Pins,
    index: u32,
    direction: Direction,
    name: &str,
    program: impl AsFd,
) -> Result<(), Error> {
    let failed = |source| Error::Hook { hook: direction.name(), index, source };
    add_qdisc(netlink, pins, index).map_err(failed)?;
    let mut filter = message(index, direction);
    filter.attributes = vec![
        TcAttribute::Kind("bpf".to_owned()),
        TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_fd().as_raw_fd().cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(format!("{PREFIX}{name}"))),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]),
    ];
    let request = RouteNetlinkMessage::NewTrafficFilter(filter);
    netlink.request(request, NLM_F_CREATE | NLM_F_REPLACE).map(drop).map_err(failed)
}

/// The program that our filter runs; `None` if it is not there.
pub fn attached(netlink: &Netlink, index: u32, direction: Direction) -> Result<Option<u32>, Error> {
    let failed = |source| Error::Hook { hook: direction.name(), index, source };
    let ours = filters(netlink, index, direction).map_err(failed)?.into_iter().find(|filter| filter.ours);
    Ok(ours.map(|filter| filter.program))
}

/// The programs of a hook in the order in which they run.
pub fn programs(netlink: &Netlink, index: u32, direction: Direction) -> io::Result<Vec<u32>> {
    Ok(filters(netlink, index, direction)?.into_iter().map(|filter| filter.program).collect())
}

/// Removes our filters from a link, and the qdisc if we added it and nobody else uses it.
pub fn detach(netlink: &Netlink, pins: &Pins, index: u32) -> Result<(), Error> {
    let mut others = false;
    for direction in Direction::ALL {
        let failed = |source| Error::Hook { hook: direction.name(), index, source };
        let filters = match filters(netlink, index, direction) {
            Err(error) if gone(&error) => continue,
            filters => filters.map_err(failed)?,
        };
        others |= filters.iter().any(|filter| !filter.ours);
        if filters.iter().any(|filter| filter.ours) {
            let request = RouteNetlinkMessage::DelTrafficFilter(message(index, direction));
            netlink.request(request, 0).map_err(failed)?;
        }
    }
    let mark = pins.qdiscs().join(index.to_string());
    if mark.exists() {
        if !others {
            let request = RouteNetlinkMessage::DelQueueDiscipline(qdisc(index));
            match netlink.request(request, 0) {
                Err(error) if !gone(&error) => {
                    return Err(Error::Hook { hook: "clsact", index, source: error });
                }
                _ => {}
            }
        }
        fs::remove_dir(&mark).map_err(Error::at(&mark))?;
    }
    Ok(())
}

struct Filter {
    program: u32,
    ours: bool,
}

fn filters(netlink: &Netlink, index: u32, direction: Direction) -> io::Result<Vec<Filter>> {
    let mut question = TcMessage::default();
    question.header.index = index.cast_signed();
    question.header.parent = parent(direction);
    let mut found = Vec::new();
    for answer in netlink.dump(&RouteNetlinkMessage::GetTrafficFilter(question))? {
        let RouteNetlinkMessage::NewTrafficFilter(filter) = answer else { continue };
        let (mut program, mut named) = (None, false);
        for attribute in &filter.attributes {
            let TcAttribute::Options(options) = attribute else { continue };
            for option in options {
                match option {
                    TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => program = Some(*id),
                    TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => named = name.starts_with(PREFIX),
                    _ => {}
                }
            }
        }
        let ours = named && filter.header.info >> 16 == priority(direction);
        found.extend(program.map(|program| Filter { program, ours }));
    }
    Ok(found)
}

/// Adds the qdisc, and a mark that it is ours, before it, so that a crash between leaves no qdisc behind unmarked.
fn add_qdisc(netlink: &Netlink, pins: &Pins, index: u32) -> io::Result<()> {
    let mark = pins.qdiscs().join(index.to_string());
    let marked = match fs::create_dir(&mark) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        result => result.map(|()| true)?,
    };
    let request = RouteNetlinkMessage::NewQueueDiscipline(qdisc(index));
    match netlink.request(request, NLM_F_CREATE | NLM_F_EXCL) {
        // Somebody else's: theirs to remove.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if marked {
                fs::remove_dir(&mark)
            } else {
                Ok(())
            }
        }
        result => result.map(drop),
    }
}

fn qdisc(index: u32) -> TcMessage {
    let mut qdisc = TcMessage::default();
    qdisc.header.index = index.cast_signed();
    qdisc.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    qdisc.header.parent = TcHandle::CLSACT;
    qdisc.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    qdisc
}

/// Names our filter at a hook.
fn message(index: u32, direction: Direction) -> TcMessage {
    let mut filter = TcMessage::default();
    filter.header.index = index.cast_signed();
    filter.header.handle = HANDLE.into();
    filter.header.parent = parent(direction);
    filter.header.info = priority(direction) << 16 | ALL_PROTOCOLS;
    filter.attributes = vec![TcAttribute::Kind("bpf".to_owned())];
    filter
}

fn parent(direction: Direction) -> TcHandle {
    let minor = match direction {
        Direction::Ingress => TcHandle::MIN_INGRESS,
        Direction::Egress => TcHandle::MIN_EGRESS,
    };
    TcHandle { major: u16::MAX, minor }
}

/// The link, the qdisc or the filter is not there (any more).
fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::EINVAL))
}
