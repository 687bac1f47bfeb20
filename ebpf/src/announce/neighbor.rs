//! Neighbour discovery (RFC 4861), duplicate address detection included (RFC 4862 5.4).

use culvert_abi::{V6, proto};

use super::{ASKS, Announcement, Counter, Mac, USES, is_group, send};
use crate::{
    ETHERNET,
    csum::{fold, pseudo},
    packet::{Header, Packet, is_martian, is_multicast},
    skb::Skb,
    verdict::NEXT,
    words::wide,
};

pub const SOLICITATION: u8 = 135;
pub const ADVERTISEMENT: u8 = 136;

/// Where the message begins.
const MESSAGE: u32 = ETHERNET + Header::<V6>::SIZE;
/// Bytes of a message without options, of either kind.
const FIXED: u32 = 24;
/// Bytes of the longest message that is read.
const LONGEST: u32 = 128;
/// Hop limit: the sender is on the link (RFC 4861 3.1).
const ON_LINK: u32 = 255;

const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;
const SOLICITED: u32 = 0x4000_0000;
const OVERRIDE: u32 = 0x2000_0000;

const ALL_NODES: [u32; 4] = [0xff02_0000_u32.to_be(), 0, 0, 1_u32.to_be()];
const ALL_NODES_MAC: Mac = [0x3333_u16.to_be(), 0, 1_u16.to_be()];

/// A message that is as RFC 4861 7.1 wants it, with the announcement of its target.
struct Message {
    announcement: Announcement,
    target: [u32; 4],
    /// Link addresses of the frame.
    to: Mac,
    from: Mac,
    /// The option that was looked for.
    link: Option<Mac>,
    /// The flags of an advertisement.
    flags: u32,
}

/// Answers a solicitation.
#[inline(always)]
pub fn solicitation<const W: usize>(skb: Skb, packet: &Packet<W>) -> i32 {
    let Some(message) = read(skb, packet, SOURCE_LINK) else { return NEXT };
    let Message { announcement, target, to, from, link, .. } = message;
    let (source, destination) = (wide(&packet.tuple.src), wide(&packet.tuple.dst));
    let tentative = source == [0; 4];
    if tentative && (link.is_some() || destination != solicited_node(&target)) {
        return NEXT;
    }
    let sender = link.unwrap_or(from);
    let for_us = to == announcement.mac || to[0] == ALL_NODES_MAC[0];
    let unfit = !tentative && (is_martian(&source) || is_multicast(&source));
    if !for_us || unfit || is_group(sender) || sender == announcement.mac {
        return NEXT;
    }
    if !announcement.asked() {
        if tentative {
            announcement.claimed(sender, ASKS);
        }
        return NEXT;
    }
    // Who asks before it uses the address has none to be answered at: all hear it (RFC 4861 7.2.4).
    let written = if tentative {
        advertise(skb, &announcement, &target, &ALL_NODES, ALL_NODES_MAC, OVERRIDE)
    } else {
        advertise(skb, &announcement, &target, &source, sender, SOLICITED)
    };
    if written { send(skb, &announcement, Counter::Answers) } else { crate::verdict::rewritten(false) }
}

/// Looks at an advertisement: is it another host's?
#[inline(always)]
pub fn advertisement<const W: usize>(skb: Skb, packet: &Packet<W>) -> i32 {
    let Some(message) = read(skb, packet, TARGET_LINK) else { return NEXT };
    let owner = message.link.unwrap_or(message.from);
    let contradictory = is_multicast(&packet.tuple.dst) && message.flags & SOLICITED != 0;
    if !contradictory && owner != message.announcement.mac {
        message.announcement.claimed(owner, USES);
    }
    NEXT
}

/// Reads a message, if it is valid and about an announced address.
#[inline(always)]
fn read<const W: usize>(skb: Skb, packet: &Packet<W>, option: u8) -> Option<Message> {
    let [flags, target @ ..] = skb.load::<[u32; 5]>(MESSAGE + 4)?;
    let announcement = Announcement::find(skb, &target)?;
    let size = packet.header.word(1) >> 16;
    let fits = (FIXED..=LONGEST).contains(&size) && size.is_multiple_of(8) && MESSAGE + size <= skb.len();
    if !fits || packet.header.version() != 6 || packet.header.word(1) & 0xff != ON_LINK {
        return None;
    }
    let [d0, d1, d2, s0, s1, s2] = skb.load::<[u16; 6]>(0)?;
    if !is_sound(skb, packet, size) {
        return None;
    }
    let link = find_option(skb, size, option)?;
    let link = if link == [0; 3] { None } else { Some(link) };
    Some(Message { announcement, target, to: [d0, d1, d2], from: [s0, s1, s2], link, flags: u32::from_be(flags) })
}

/// Whether the checksum is right.
#[inline(always)]
fn is_sound<const W: usize>(skb: Skb, packet: &Packet<W>, size: u32) -> bool {
    let mut sum = pseudo(&wide(&packet.tuple.src), &wide(&packet.tuple.dst), proto::ICMPV6, size);
    let mut at = 0;
    while at < LONGEST {
        if at >= size {
            break;
        }
        let Some([first, second]) = skb.load::<[u32; 2]>(MESSAGE + at) else { return false };
        sum += first as u64 + second as u64;
        at += 8;
    }
    fold(sum) == 0xffff
}

/// The link address in an option of a kind; zero if there is none. `None`: the options are not valid (RFC 4861 4.6).
#[inline(always)]
fn find_option(skb: Skb, size: u32, wanted: u8) -> Option<Mac> {
    let mut found = [0; 3];
    let mut at = FIXED;
    let mut seen = 0;
    while seen < (LONGEST - FIXED) / 8 {
        if at >= size {
            break;
        }
        seen += 1;
        let [head, rest @ ..] = skb.load::<[u16; 4]>(MESSAGE + at)?;
        let [kind, units] = head.to_ne_bytes();
        if units == 0 {
            return None;
        }
        if kind == wanted && units == 1 {
            found = rest;
        }
        at += u32::from(units) * 8;
    }
    (at == size).then_some(found)
}

/// Writes an advertisement in the packet's place.
#[inline(always)]
fn advertise(skb: Skb, from: &Announcement, target: &[u32; 4], to: &[u32; 4], to_mac: Mac, flags: u32) -> bool {
    /// Bytes of the message: with one option.
    const SIZE: u32 = FIXED + 8;
    const ETHERTYPE: u16 = 0x86dd_u16.to_be();
    let ([d0, d1, d2], [s0, s1, s2]) = (to_mac, from.mac);
    let link: [u16; 7] = [d0, d1, d2, s0, s1, s2, ETHERTYPE];
    let option = [TARGET_LINK as u32 | 1 << 8 | (s0 as u32) << 16, s1 as u32 | (s2 as u32) << 16];
    let [t0, t1, t2, t3] = *target;
    let [r0, r1, r2, r3] = *to;
    let mut words: [u32; 18] = [
        (6_u32 << 28).to_be(),
        (SIZE << 16 | (proto::ICMPV6 as u32) << 8 | ON_LINK).to_be(),
        t0,
        t1,
        t2,
        t3,
        r0,
        r1,
        r2,
        r3,
        u32::from(ADVERTISEMENT),
        flags.to_be(),
        t0,
        t1,
        t2,
        t3,
        option[0],
        option[1],
    ];
    let message = words[10] as u64 + words[11] as u64 + option[0] as u64 + option[1] as u64;
    let sum = pseudo(target, to, proto::ICMPV6, SIZE) + message + target.iter().fold(0, |sum, word| sum + *word as u64);
    words[10] |= (!fold(sum) as u32) << 16;
    skb.reshape(MESSAGE + SIZE) && skb.store_uncovered(0, &link) && skb.store_uncovered(ETHERNET, &words)
}

/// The group in which solicitations for an address are heard (RFC 4291 2.7.1).
#[inline(always)]
fn solicited_node(target: &[u32; 4]) -> [u32; 4] {
    let low = u32::from_be(target[3]) & 0x00ff_ffff;
    [0xff02_0000_u32.to_be(), 0, 1_u32.to_be(), (0xff00_0000 | low).to_be()]
}
