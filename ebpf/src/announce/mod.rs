//! Addresses that the node answers for on its links, though none of them carries them: ARP (RFC 826), neighbour discovery
//! (RFC 4861) and echo.
//!
//! ```text
//! ARP ──────────► arp ───────┐
//!                            ├─► row of (address, link) ─► may it be answered? ─► answer, written in place
//! ICMP, ICMPv6 ─► neighbor ──┤                         └─► another host's claim ─► RIVALS
//!             └─► echo ──────┘
//! ```
//!
//! A row says until when it holds. What lets it hold longer is the agent's business; here is one comparison, and for rows
//! that want it, whether a majority of nodes grants what this one claims:
//!
//! ```text
//! UDP ─► beat ─► right key? ─► GRANTS, echo ─► out of the link
//!                                 └──────────► quorum ─► may it be answered?
//! ```

mod arp;
mod beat;
mod echo;
mod neighbor;
mod predecessor;
mod quorum;
mod sha256;

use culvert_abi::{Announced, AnnouncedKey, Rival, V4, announced, proto, rival};

use crate::{
    clock, count, maps,
    packet::{Header, Packet},
    skb::Skb,
    verdict::NEXT,
    words::wide,
};

pub use arp::arp;
pub use beat::{beat, is_one as is_beat};
pub use predecessor::{hand_over, is_of_another};

/// A link address, as it lies in a frame.
pub type Mac = [u16; 3];

const BROADCAST: Mac = [0xffff; 3];

/// Whether a packet may be for an announced address in another way than by a Service's ports.
#[inline(always)]
pub fn concerns<const W: usize>(packet: &Packet<W>) -> bool {
    packet.header.next() == if W == V4 { proto::ICMP } else { proto::ICMPV6 }
}

/// Answers a message of ICMP or `ICMPv6` that asks for an announced address. [`NEXT`]: it is no such message.
#[inline(never)]
pub fn icmp<const W: usize>(skb: Skb, packet: &Packet<W>) -> i32 {
    let at = crate::ETHERNET + Header::<W>::SIZE;
    let Some([kind, code]) = skb.load::<[u8; 2]>(at) else { return NEXT };
    match (W == V4, kind, code) {
        (true, echo::REQUEST_V4, 0) | (false, echo::REQUEST_V6, 0) => echo::answer(skb, packet, at),
        (false, neighbor::SOLICITATION, 0) => neighbor::solicitation(skb, packet),
        (false, neighbor::ADVERTISEMENT, 0) => neighbor::advertisement(skb, packet),
        _ => NEXT,
    }
}

/// An address on the link of a packet, which is announced or about to be.
struct Announcement {
    key: AnnouncedKey,
    row: Announced,
    /// The link's own link address.
    mac: Mac,
}

/// What is counted.
#[derive(Clone, Copy)]
enum Counter {
    Requests,
    Answers,
    Refusals,
    Echoes,
    Rivals,
}

impl Announcement {
    /// The row of an address on the packet's link. `None` for nearly everything that passes.
    #[inline(always)]
    fn find<const W: usize>(skb: Skb, addr: &[u32; W]) -> Option<Self> {
        let ifindex = skb.ifindex();
        let key = AnnouncedKey { addr: wide(addr), family: if W == V4 { 4 } else { 6 }, ifindex };
        // SAFETY: the words are copied at once; a row that changes meanwhile was valid a moment ago.
        let row = *unsafe { maps::ANNOUNCED.get(key) }?;
        // SAFETY: likewise.
        let mac = unsafe { maps::LINKS.get(ifindex) }?.mac;
        // The links task does not know it yet.
        (mac != [0; 3]).then_some(Self { key, row, mac })
    }

    /// Whether the node may answer.
    #[inline(always)]
    fn speaks(&self) -> bool {
        let Announced { flags, until, .. } = self.row;
        let in_time = flags & announced::ANSWER != 0 && clock::nanoseconds() < until;
        in_time && (flags & announced::QUORUM == 0 || quorum::grants())
    }

    /// Counts a request; whether it may be answered.
    #[inline(always)]
    fn asked(&self) -> bool {
        self.count(Counter::Requests);
        let speaks = self.speaks();
        if !speaks {
            self.count(Counter::Refusals);
        }
        speaks
    }

    /// Another host claims the address (`kind`: one of [`rival`]).
    #[inline(always)]
    fn claimed(&self, mac: Mac, kind: u8) {
        /// The agent is told ten times a second.
        const PAUSE: u64 = 100_000_000;
        self.count(Counter::Rivals);
        let Some(row) = maps::ANNOUNCED_COUNTERS.get_ptr_mut(self.key) else { return };
        let now = clock::nanoseconds();
        // SAFETY: an aligned word of a live row. Two CPUs may both find that it is time: then the agent is told twice.
        unsafe {
            let told = &raw mut (*row).told;
            if now.wrapping_sub(told.read()) < PAUSE {
                return;
            }
            told.write(now);
        }
        let [first, second, third] = mac.map(u16::to_ne_bytes);
        let AnnouncedKey { addr, family, ifindex } = self.key;
        let mac = [first[0], first[1], second[0], second[1], third[0], third[1]];
        let record = Rival { addr, at: now, ifindex, family: family as u8, kind, mac, zero: 0 };
        // The ring is full when nobody reads it; the next packet says the same.
        let _ = maps::RIVALS.output::<Rival>(&record, 0);
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        let Some(row) = maps::ANNOUNCED_COUNTERS.get_ptr_mut(self.key) else { return };
        // SAFETY: fields of a live row; all of these are only ever added to.
        unsafe {
            let word = match counter {
                Counter::Requests => &raw mut (*row).requests,
                Counter::Answers => &raw mut (*row).answers,
                Counter::Refusals => &raw mut (*row).refusals,
                Counter::Echoes => &raw mut (*row).echoes,
                Counter::Rivals => &raw mut (*row).rivals,
            };
            count::add(word, 1);
        }
    }
}

/// Whether a link address is of many hosts, or of none.
#[inline(always)]
fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0 || mac == [0; 3]
}

/// Sends what was written in the packet's place back out of its link.
#[inline(always)]
fn send(skb: Skb, announcement: &Announcement, counter: Counter) -> i32 {
    announcement.count(counter);
    skb.turn_back(0)
}

/// The use of an address by its owner.
const USES: u8 = rival::USES;
/// A question before the first use.
const ASKS: u8 = rival::ASKS;
