//! A packet to one of our addresses that belongs to no flow: may it, and where to?

use aya_ebpf::{macros::map, maps::PerCpuArray};
use culvert_abi::{
    Flow, Frontend, Reason, View, address, affinity_hash, backend, flow, flow_hash, role, verdict, view,
};

use crate::{
    choose::{self, Hashes, Spot},
    clock, count, filter,
    flow::{Slot, closed, end, expired, find, insert, key_of},
    lookup::{self, Audience},
    outcome::Outcome,
    packet::{self, Packet, signal},
    words,
};

/// Choices of another backend after the first.
const MORE_CHOICES: u32 = 4;

/// The row that is being written. Private to the programs; too large for the stack beside all else.
#[map]
static NEW_FLOW: PerCpuArray<[u64; 16]> = PerCpuArray::with_max_entries(1, 0);

const _: () = assert!(size_of::<Flow<4>>() <= 128);

/// Decides about a packet whose destination address means `meaning`. For [`Outcome::TRANSLATE`] its target is set.
#[inline(never)]
pub fn admit<const W: usize>(packet: &mut Packet<W>, meaning: u32, pods: bool) -> Outcome {
    let tuple = &packet.tuple;
    let Some(frontend) = lookup::frontend(&tuple.dst, tuple.dport, tuple.proto) else {
        let refuse = meaning & address::REFUSE != 0;
        return if refuse { Outcome::reject(Reason::PortNotServed) } else { Outcome::LEAVE };
    };
    let view = lookup::view(&frontend, if pods { Audience::Pods } else { Audience::External });
    packet.service = frontend.service;
    if packet::is_martian(&tuple.src) {
        return Outcome::drop(Reason::Martian);
    }
    if !lookup::source_allowed(frontend.ranges, &tuple.src) {
        return Outcome::drop(Reason::SourceRange);
    }
    match view.verdict {
        verdict::BALANCE => balance(packet, &frontend, view, pods),
        verdict::REJECT => Outcome::reject(Reason::NoEndpoints),
        _ => Outcome::drop(Reason::NoLocalEndpoints),
    }
}

/// What came of writing a flow to a backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opened {
    /// The packet is translated.
    Yes,
    /// The backend knows this client by another frontend already.
    Collision,
    /// The connection is somebody else's.
    Foreign,
}

#[inline(always)]
fn balance<const W: usize>(packet: &mut Packet<W>, frontend: &Frontend, view: View, pods: bool) -> Outcome {
    let mut attempt = 0;
    while attempt <= MORE_CHOICES {
        if !pick(packet, frontend, view, attempt) {
            return Outcome::reject(Reason::NoTable);
        }
        match open(packet, view.flags, pods) {
            Opened::Yes => {
                count::connection::<W>(frontend.service, packet.backend_id);
                packet.count_request();
                return Outcome::TRANSLATE;
            }
            Opened::Foreign => return Outcome::LEAVE,
            Opened::Collision => attempt += 1,
        }
    }
    Outcome::drop(Reason::FlowCollision)
}

/// Chooses a backend, and aims the packet at it.
#[inline(never)]
fn pick<const W: usize>(packet: &mut Packet<W>, frontend: &Frontend, view: View, attempt: u32) -> bool {
    let tuple = &packet.tuple;
    let flow = flow_hash(&tuple.src, &tuple.dst, tuple.sport, tuple.dport, tuple.proto);
    let client = if frontend.affinity_seconds != 0 { affinity_hash(&tuple.src) } else { flow };
    let spot = Spot::Hash(Hashes { flow, client });
    let client = choose::by_address(&tuple.src, frontend.service);
    let Some(chosen) = choose::choose::<W>(frontend, &view, &client, spot, attempt) else { return false };
    packet.aim(&chosen.backend.addr, chosen.backend.port);
    packet.backend_id = chosen.id;
    packet.generation = chosen.backend.generation;
    packet.backend_flags = chosen.backend.flags;
    true
}

/// Writes the rows of a flow to the packet's target.
#[inline(never)]
fn open<const W: usize>(packet: &mut Packet<W>, view_flags: u8, pods: bool) -> Opened {
    let Some(new) = NEW_FLOW.get_ptr_mut(0) else { return Opened::Yes };
    // SAFETY: this CPU's own row, used by nobody else while the program runs; any bytes are a flow.
    let new = unsafe { &mut *new.cast::<Flow<W>>() };
    let now = clock::now();
    describe(new, packet, now);
    if pods {
        new.flags |= flow::FROM_POD;
    }
    let remote = packet.backend_flags & backend::LOCAL == 0;
    if !remote {
        new.flags |= flow::LOCAL;
    }
    if (view_flags & view::REPLACE_CLIENT != 0 && remote) || new.client == new.backend {
        new.flags |= flow::REPLACE_CLIENT;
    }
    let proto = packet.tuple.proto;
    let Some(path) = key_of(new, proto, role::PATH, Slot::Writer) else { return Opened::Yes };
    let mut established = false;
    let mut shared = false;
    if let Some(row) = find(path) {
        let old = row.flow();
        let same = old.frontend == new.frontend && old.frontend_port == new.frontend_port;
        let over = closed(old.flags) || expired(&row, proto, role::PATH, now);
        if !same && !over {
            return Opened::Collision;
        }
        // The ORIGIN row was lost, and the connection goes on: with all that was decided for it.
        if same && !over && !packet.says(signal::OPEN) {
            if old.flags & flow::FOREIGN != 0 {
                return Opened::Foreign;
            }
            if old.backend_id == new.backend_id && old.generation == new.generation {
                new.flags = old.flags;
                words::copy(&mut new.source, &old.source);
                new.source_port = old.source_port;
                new.born = old.born;
                established = row.established;
                shared = true;
            }
        }
        if !shared {
            end(&row, proto, role::PATH);
        }
    }
    filter::add(&new.backend);
    let mut written = shared || insert(path, new, established);
    new.packets = 1;
    new.bytes = packet.bytes as u64;
    written &= insert(packet.key(role::ORIGIN), new, established);
    if !written {
        count::reason(Reason::FlowTableFull);
    }
    Opened::Yes
}

/// The flow as it begins.
#[inline(always)]
fn describe<const W: usize>(new: &mut Flow<W>, packet: &Packet<W>, now: u32) {
    let tuple = &packet.tuple;
    new.packets = 0;
    new.bytes = 0;
    new.client = tuple.src;
    new.frontend = tuple.dst;
    new.backend = packet.target;
    new.source = [0; W];
    new.client_port = tuple.sport;
    new.frontend_port = tuple.dport;
    new.backend_port = packet.target_port;
    new.source_port = 0;
    new.backend_id = packet.backend_id;
    new.generation = packet.generation;
    new.service = packet.service;
    new.seen = now;
    new.flags = 0;
    new.born = now;
}
