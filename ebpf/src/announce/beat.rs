//! Beats of other nodes' agents: what they grant is noted, and they are echoed. What a beat says and means is told by
//! `culvert-announce`'s `liveness`, whose `wire` has the layout:
//!
//! ```text
//!  0      2      3       4       6      14   22    30     38     46        54    70
//!  │ "CV" │ kind │ flags │ count │ from │ to │ seq │ time │ boot │ version │ tag │
//! ```

use core::arch::asm;

use aya_ebpf::{macros::map, maps::PerCpuArray};
use culvert_abi::{BeatCounters, Grant, Liveness, V4, V6, beat, proto};

use super::{
    Mac, echo, is_group, quorum,
    sha256::{self, Block, END, Hash},
};
use crate::{
    ETHERNET, clock,
    csum::Diff,
    maps,
    maps::config,
    packet::{Header, Packet, is_martian, is_multicast},
    skb::{Cover, Skb},
    verdict::{self, NEXT},
};

/// Bytes of a UDP header, of a beat, and of both.
const UDP: u32 = 8;
const HEADER: u32 = beat::HEADER as u32;
const DATAGRAM: u16 = UDP as u16 + beat::HEADER as u16 + beat::TAG as u16;
/// Where the checksum lies in a UDP header.
const CHECK: u32 = 6;

/// "CV", and the kind.
const BEAT: u32 = 0x4356_0100;
const ECHO: u32 = 0x4356_0200;
/// Of a beat: it grants. Of an echo: this node's agent is away.
const FLAG: u32 = 1;

/// A message and its tag, as they lie in the packet. The bytes behind the message are its padding.
type Message = [u32; 16];
type Tag = [u32; 4];

/// Where a beat is worked on. In a map, because what the verifier knows of a value ends there. Private to the programs.
#[map]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

#[repr(C)]
struct Work {
    hash: Hash,
    /// What came.
    came: Message,
    tag: Tag,
    beat: Beat,
    /// What goes.
    goes: Message,
    /// What its sender granted before.
    grant: Grant,
    now: u64,
    /// Not zero: this node's agent is away.
    mute: u64,
}

/// What became of a beat. A number, because it crosses a function call of the kernel's machine.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Taken {
    /// It is none, or of no effect.
    Not,
    /// Its echo is in its place.
    Echoed,
    /// Half of it is.
    Broken,
}

/// Numbers of a beat.
#[repr(C)]
struct Beat {
    /// Not zero: it grants.
    grants: u64,
    from: u64,
    to: u64,
    seq: u64,
    time: u64,
    boot: u64,
    version: u64,
}

/// Whether a packet is the business of the program for beats. To packets of another length it costs a comparison.
#[inline(always)]
pub fn is_one<const W: usize>(skb: Skb, packet: &Packet<W>) -> bool {
    config::beat_port() != 0 && is_whole(packet) && begins_as_one(skb, ETHERNET + Header::<W>::SIZE)
}

#[inline(never)]
fn begins_as_one(skb: Skb, udp: u32) -> bool {
    let Some([_, port, length, _, magic, kind]) = skb.load::<[u16; 6]>(udp) else { return false };
    let begins = u32::from(u16::from_be(magic)) << 16 | u32::from(u16::from_be(kind));
    port == config::beat_port() && length == DATAGRAM.to_be() && begins & !FLAG == BEAT
}

/// The program for beats: takes a packet that is one, and answers it in its place.
#[inline(always)]
pub fn beat(skb: Skb) -> i32 {
    match verdict::family(skb) {
        Some(V4) => family::<V4>(skb),
        Some(_) => family::<V6>(skb),
        None => NEXT,
    }
}

/// Which of the node's addresses a beat goes to does not matter: it says for which node it is.
#[inline(never)]
fn family<const W: usize>(skb: Skb) -> i32 {
    let Some(packet) = Packet::<W>::read(skb, ETHERNET) else { return NEXT };
    let udp = ETHERNET + Header::<W>::SIZE;
    let Some([source, destination, length]) = skb.load::<[u16; 3]>(udp) else { return NEXT };
    if destination != config::beat_port() || length != DATAGRAM.to_be() || !is_whole(packet) {
        return NEXT;
    }
    // SAFETY: the words are copied at once; a row that changes meanwhile was valid a moment ago.
    let Some(own) = unsafe { maps::LINKS.get(skb.ifindex()) }.map(|link| link.mac) else { return NEXT };
    let Some([d0, d1, d2, s0, s1, s2]) = skb.load::<[u16; 6]>(0) else { return NEXT };
    let (to, from): (Mac, Mac) = ([d0, d1, d2], [s0, s1, s2]);
    let (sender, receiver) = (&packet.tuple.src, &packet.tuple.dst);
    if to != own
        || is_group(to)
        || is_group(from)
        || is_martian(sender)
        || is_multicast(sender)
        || is_multicast(receiver)
    {
        return NEXT;
    }
    match take(skb, udp) {
        Taken::Not => return NEXT,
        Taken::Echoed => {}
        Taken::Broken => return verdict::rewritten(false),
    }
    // Addresses and ports change places, which changes no sum.
    let sent = skb.store(udp, &[destination, source])
        && skb.store(ETHERNET + Header::<W>::SOURCE, receiver)
        && skb.store(ETHERNET + Header::<W>::DESTINATION, sender)
        && echo::hop_limit(skb, packet)
        && skb.store_uncovered(0, &[from, own]);
    if sent { skb.turn_back(0) } else { verdict::rewritten(false) }
}

/// Whether a packet is a datagram of a beat's length and nothing else: no options, and no fragment.
#[inline(always)]
fn is_whole<const W: usize>(packet: &Packet<W>) -> bool {
    let header = &packet.header;
    let (length, without) =
        if W == V4 { (header.word(0) & 0xffff, Header::<W>::SIZE) } else { (header.word(1) >> 16, 0) };
    length == without + u32::from(DATAGRAM) && header.next() == proto::UDP && echo::is_plain(packet)
}

/// Takes the beat in the datagram at `udp`: its grant is noted, and its echo and the checksum of that are written.
#[inline(never)]
fn take(skb: Skb, udp: u32) -> Taken {
    let (Some(live), Some(floor), Some(work)) = (quorum::liveness(), quorum::floor(), WORK.get_ptr_mut(0)) else {
        return Taken::Not;
    };
    // SAFETY: this CPU's own row, and one program at a time runs on it for a packet.
    let work = unsafe { &mut *work };
    if !read(skb, udp, work) {
        return Taken::Not;
    }
    if !is_heard(work, live) {
        count(|counters| counters.ignored += 1);
        return Taken::Not;
    }
    sha256::tag(&mut work.hash, &live.inner, &live.outer);
    if difference(&work.hash, &work.tag) != 0 {
        count(|counters| counters.refused += 1);
        return Taken::Not;
    }
    work.mute = u64::from(work.now >= live.agent_until);
    if !note(work, live, floor) {
        return Taken::Not;
    }
    count(|counters| counters.echoed += 1);
    write_echo(work, live);
    sha256::tag(&mut work.hash, &live.inner, &live.outer);
    if send(skb, udp, work) { Taken::Echoed } else { Taken::Broken }
}

/// Reads the beat, if it is one.
#[inline(never)]
fn read(skb: Skb, udp: u32, work: &mut Work) -> bool {
    // SAFETY: a message has room for a header.
    if !unsafe { skb.load_to(udp + UDP, work.came.as_mut_ptr().cast(), HEADER) } {
        return false;
    }
    let Some(tag) = skb.load::<Tag>(udp + UDP + HEADER) else { return false };
    work.tag = tag;
    pad(&mut work.came);
    turn(&work.came, &mut work.hash.block);
    let block = &work.hash.block;
    let (kind, count) = (block[0], block[1] >> 16);
    if kind & !FLAG != BEAT || count != 0 {
        return false;
    }
    work.beat.grants = u64::from(kind & FLAG);
    work.beat.from = number(block, 0);
    work.beat.to = number(block, 1);
    work.beat.seq = number(block, 2);
    work.beat.time = number(block, 3);
    work.beat.boot = number(block, 4);
    work.beat.version = number(block, 5);
    work.now = clock::boot_nanoseconds();
    true
}

/// Number `i` of a message.
#[inline(always)]
fn number(block: &Block, i: usize) -> u64 {
    let [first, second, third] = core::array::from_fn(|k| u64::from(block[1 + 2 * i + k]));
    first << 48 | second << 16 | third >> 16
}

/// Whether a beat is for this node, of another that counts, and newer than all before. Then `work.grant` is what was
/// granted before.
#[inline(never)]
fn is_heard(work: &mut Work, live: &Liveness) -> bool {
    let beat = &work.beat;
    if beat.to != live.id || beat.from == live.id {
        return false;
    }
    // SAFETY: a plain word, which is read at once.
    let counts = unsafe { maps::VOTERS.get(beat.from) }.is_some_and(|until| work.now < *until);
    if !counts {
        return false;
    }
    // SAFETY: plain words of a row, which are read at once.
    let grant = unsafe { maps::GRANTS.get(beat.from) }.copied();
    work.grant = grant.unwrap_or(Grant::zeroed());
    grant.is_none_or(|grant| grant.seen < beat.seq)
}

/// Notes what a beat grants. `false`: it could not be, and so is not to be answered.
///
/// Two beats of one node on two CPUs may both be newer than what is there. Then either is as good: a stamp that is too low
/// ends the lease too early, and the versions that a node grants never go down.
#[inline(never)]
fn note(work: &mut Work, live: &Liveness, floor: *mut u64) -> bool {
    let Work { beat, grant, now, mute, .. } = work;
    // SAFETY: a row that is never freed, and an aligned word, which is read whole.
    let mut lowest = unsafe { floor.read_volatile() };
    if *mute != 0 && lowest < *now {
        // Who hears that this node is mute withdraws its support at once, so none may be left.
        // SAFETY: likewise.
        if !unsafe { replace(floor, lowest, *now) } {
            return false;
        }
        lowest = *now;
    }
    if beat.grants != 0 && beat.boot == live.boot && lowest < beat.time && beat.time <= *now {
        grant.stamp = grant.stamp.max(beat.time);
        grant.version = beat.version;
    }
    grant.seen = beat.seq;
    maps::GRANTS.insert(beat.from, grant, 0).is_ok()
}

/// Replaces a word unless another CPU was faster.
///
/// # Safety
/// `word` is aligned and valid.
#[inline(always)]
unsafe fn replace(word: *mut u64, old: u64, new: u64) -> bool {
    let found: u64;
    // SAFETY: the caller's promise. In assembly because `core` offers no such instruction for this target.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word, new = in(reg) new, inout("r0") old => found, options(nostack)
        );
    }
    found == old
}

/// Makes the echo, as a block and as it lies in a packet.
#[inline(never)]
fn write_echo(work: &mut Work, live: &Liveness) {
    let Work { hash: Hash { block, .. }, beat, .. } = work;
    block[0] = ECHO | work.mute as u32 & FLAG;
    let mut before = 0;
    for (i, number) in [live.id, beat.from, beat.seq, work.now, live.boot, 0].into_iter().enumerate() {
        block[1 + 2 * i] = before << 16 | (number >> 48) as u32;
        block[2 + 2 * i] = (number >> 16) as u32;
        before = number as u32;
    }
    block[13] = before << 16 | u32::from(END) << 8;
    block[14] = 0;
    block[15] = sha256::length(HEADER);
    turn(&work.hash.block, &mut work.goes);
}

/// Writes the echo in the beat's place, and makes the checksum fit.
#[inline(never)]
fn send(skb: Skb, udp: u32, work: &Work) -> bool {
    let [a, b, c, d, ..] = work.hash.state;
    let tag: Tag = [a, b, c, d].map(u32::to_be);
    let diff = Diff::NONE.words(&work.came, &work.goes).words(&work.tag, &tag);
    // SAFETY: a message has a header's bytes.
    let written = unsafe { skb.store_covered(udp + UDP, work.goes.as_ptr().cast(), HEADER) };
    written && skb.store(udp + UDP + HEADER, &tag) && skb.update_checksum(udp + CHECK, diff, Cover::Body, true)
}

/// From the order of bytes in a packet to the host's, or back. In place of an array's `map`, which is on the stack.
#[inline(always)]
fn turn(from: &[u32; 16], to: &mut [u32; 16]) {
    for (from, to) in from.iter().zip(to) {
        *to = from.to_be();
    }
}

/// What stands behind a message in its block.
#[inline(always)]
fn pad(message: &mut Message) {
    message[13] = message[13] & u32::from_ne_bytes([0xff, 0xff, 0, 0]) | u32::from_ne_bytes([0, 0, END, 0]);
    message[14] = 0;
    message[15] = sha256::length(HEADER).to_be();
}

/// Not zero: the tag is wrong. Takes the same time whichever byte is.
#[inline(always)]
fn difference(hash: &Hash, tag: &Tag) -> u32 {
    hash.state.iter().zip(tag).fold(0, |all, (want, got)| all | want.to_be() ^ *got)
}

#[inline(always)]
fn count(change: impl FnOnce(&mut BeatCounters)) {
    if let Some(counters) = maps::BEATS.get_ptr_mut(0) {
        // SAFETY: this CPU's own row, and nothing else points to it here.
        change(unsafe { &mut *counters });
    }
}
