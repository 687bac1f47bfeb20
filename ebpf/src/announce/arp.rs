//! ARP of IPv4 over Ethernet (RFC 826), with probes (RFC 5227).

use super::{ASKS, Announcement, BROADCAST, Counter, Mac, USES, is_group, send};
use crate::{skb::Skb, verdict::NEXT};

const ETHERTYPE: u16 = 0x0806_u16.to_be();
/// Ethernet, IPv4, and the lengths of their addresses.
const OF_IPV4: [u16; 3] = [1_u16.to_be(), 0x0800_u16.to_be(), 0x0604_u16.to_be()];
const REQUEST: u16 = 1_u16.to_be();
const REPLY: u16 = 2_u16.to_be();

/// A whole frame: Ethernet header and ARP packet.
type Frame = [u16; 21];

/// Answers a request for an announced address.
#[inline(never)]
pub fn arp(skb: Skb) -> i32 {
    if skb.protocol() != u32::from(ETHERTYPE) || skb.vlan_present() != 0 {
        return NEXT;
    }
    let Some(frame) = skb.load::<Frame>(0) else { return NEXT };
    let [d0, d1, d2, .., s0, s1, s2, ip0, ip1, _, _, _, t0, t1] = frame;
    let (to, sender_mac): (Mac, Mac) = ([d0, d1, d2], [s0, s1, s2]);
    let (sender, target) = ([address(ip0, ip1)], [address(t0, t1)]);
    let operation = frame[10];
    if [frame[7], frame[8], frame[9]] != OF_IPV4 || !matches!(operation, REQUEST | REPLY) {
        return NEXT;
    }
    // An address is claimed by whoever sends from it (RFC 5227, 2.4).
    if sender != [0]
        && let Some(claimed) = Announcement::find(skb, &sender)
    {
        if sender_mac != claimed.mac {
            claimed.claimed(sender_mac, USES);
        }
        return NEXT;
    }
    if operation != REQUEST {
        return NEXT;
    }
    let Some(asked) = Announcement::find(skb, &target) else { return NEXT };
    let for_us = to == BROADCAST || to == asked.mac;
    if !for_us || is_group(sender_mac) || sender_mac == asked.mac {
        return NEXT;
    }
    if !asked.asked() {
        if sender == [0] {
            asked.claimed(sender_mac, ASKS);
        }
        return NEXT;
    }
    let [m0, m1, m2] = asked.mac;
    let [kind, protocol, sizes] = OF_IPV4;
    let reply: Frame =
        [s0, s1, s2, m0, m1, m2, ETHERTYPE, kind, protocol, sizes, REPLY, m0, m1, m2, t0, t1, s0, s1, s2, ip0, ip1];
    if !skb.store_uncovered(0, &reply) {
        return NEXT;
    }
    send(skb, &asked, Counter::Answers)
}

/// An address as it lies in the packet, of its two halves.
#[inline(always)]
fn address(first: u16, second: u16) -> u32 {
    let [[a, b], [c, d]] = [first, second].map(u16::to_ne_bytes);
    u32::from_ne_bytes([a, b, c, d])
}
