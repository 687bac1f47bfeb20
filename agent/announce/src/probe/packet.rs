//! ARP (RFC 826) and neighbour solicitations and advertisements (RFC 4861, 4.3 and 4.4) as Ethernet frames.
//!
//! ```text
//! Ethernet 14 │ ARP 28
//! Ethernet 14 │ IPv6 40 │ ICMPv6: type, code, checksum, flags, target 24 │ options, each of some 8 bytes
//! ```

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

const ETHERTYPE_ARP: [u8; 2] = 0x0806_u16.to_be_bytes();
const ETHERTYPE_IPV6: [u8; 2] = 0x86dd_u16.to_be_bytes();
/// Ethernet, IPv4, and the lengths of their addresses.
const ARP_OF_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const SOURCE_LINK: u8 = 1;
const TARGET_LINK: u8 = 2;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Everybody on the link.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Where a multicast address of IPv6 is sent (RFC 2464, 7).
    fn of_multicast(address: Ipv6Addr) -> Self {
        let [.., a, b, c, d] = address.octets();
        Self([0x33, 0x33, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.map(|byte| format!("{byte:02x}"));
        f.write_str(&bytes.join(":"))
    }
}

/// A packet that is of concern here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// ARP.
    Arp(Arp),
    /// Neighbour discovery.
    Neighbor(Neighbor),
}

/// An ARP packet of IPv4 over Ethernet. One that is written goes to everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// A reply; else a request.
    pub is_reply: bool,
    /// `ar$sha`.
    pub sender_mac: Mac,
    /// `ar$spa`; unspecified in a probe.
    pub sender: Ipv4Addr,
    /// `ar$tha`.
    pub target_mac: Mac,
    /// `ar$tpa`.
    pub target: Ipv4Addr,
}

impl Arp {
    /// A probe: does anybody use the address? (RFC 5227, 2.1.1)
    pub fn probe(mac: Mac, address: Ipv4Addr) -> Self {
        let sender = Ipv4Addr::UNSPECIFIED;
        Self { is_reply: false, sender_mac: mac, sender, target_mac: Mac([0; 6]), target: address }
    }

    /// An announcement: the address is here. (RFC 5227, 2.3)
    pub fn announcement(mac: Mac, address: Ipv4Addr) -> Self {
        Self { is_reply: false, sender_mac: mac, sender: address, target_mac: Mac([0; 6]), target: address }
    }

    /// Whether it asks before the sender uses the address.
    pub fn is_probe(&self) -> bool {
        !self.is_reply && self.sender.is_unspecified()
    }

    fn encode(&self) -> Vec<u8> {
        let mut frame = ethernet(Mac::BROADCAST, self.sender_mac, ETHERTYPE_ARP);
        frame.extend(ARP_OF_IPV4);
        frame.extend([0, if self.is_reply { 2 } else { 1 }]);
        frame.extend(self.sender_mac.0);
        frame.extend(self.sender.octets());
        frame.extend(self.target_mac.0);
        frame.extend(self.target.octets());
        frame
    }

    fn decode(mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let (kind, operation) = (take::<6>(bytes)?, take::<2>(bytes)?);
        let is_reply = match operation {
            [0, 1] => false,
            [0, 2] => true,
            _ => return None,
        };
        let (sender_mac, sender) = (Mac(take(bytes)?), Ipv4Addr::from(take::<4>(bytes)?));
        let (target_mac, target) = (Mac(take(bytes)?), Ipv4Addr::from(take::<4>(bytes)?));
        (kind == ARP_OF_IPV4).then_some(Self { is_reply, sender_mac, sender, target_mac, target })
    }
}

/// A packet of neighbour discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Neighbor {
    /// Who has an address?
    Solicitation {
        /// The MAC in the frame.
        from: Mac,
        /// Unspecified where the sender asks before it uses the address (RFC 4862, 5.4).
        source: Ipv6Addr,
        /// The address.
        target: Ipv6Addr,
        /// The source link-layer address option.
        link: Option<Mac>,
    },
    /// An address is here.
    Advertisement {
        /// The MAC in the frame.
        from: Mac,
        /// Who says so.
        source: Ipv6Addr,
        /// To whom; one that is written goes where this address says, so it is a multicast address.
        destination: Ipv6Addr,
        /// The address.
        target: Ipv6Addr,
        /// The target link-layer address option.
        link: Option<Mac>,
        /// It answers a solicitation.
        solicited: bool,
        /// It takes the place of what caches hold.
        overrides: bool,
    },
}

impl Neighbor {
    /// Does anybody use the address? (RFC 4862, 5.4.2)
    pub fn probe(mac: Mac, address: Ipv6Addr) -> Self {
        Self::Solicitation { from: mac, source: Ipv6Addr::UNSPECIFIED, target: address, link: None }
    }

    /// The address is here now. (RFC 4861, 7.2.6)
    pub fn unsolicited(mac: Mac, address: Ipv6Addr) -> Self {
        Self::Advertisement {
            from: mac,
            source: address,
            destination: ALL_NODES,
            target: address,
            link: Some(mac),
            solicited: false,
            overrides: true,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let (from, source, destination, kind, flags, target, option) = match *self {
            Self::Solicitation { from, source, target, link } => {
                let option = link.map(|link| (SOURCE_LINK, link));
                (from, source, solicited_node(target), SOLICITATION, 0, target, option)
            }
            Self::Advertisement { from, source, destination, target, link, solicited, overrides } => {
                let flags = if solicited { SOLICITED } else { 0 } | if overrides { OVERRIDE } else { 0 };
                let option = link.map(|link| (TARGET_LINK, link));
                (from, source, destination, ADVERTISEMENT, flags, target, option)
            }
        };
        let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
        message.extend(target.octets());
        if let Some((kind, link)) = option {
            message.extend([kind, 1]);
            message.extend(link.0);
        }
        let sum = checksum(source, destination, &message).to_be_bytes();
        message.splice(2..4, sum);
        let mut frame = ethernet(Mac::of_multicast(destination), from, ETHERTYPE_IPV6);
        frame.extend([0x60, 0, 0, 0]);
        frame.extend((message.len() as u16).to_be_bytes());
        frame.extend([ICMPV6, 255]);
        frame.extend(source.octets());
        frame.extend(destination.octets());
        frame.extend(message);
        frame
    }

    /// Reads what stands behind the Ethernet header, with the checks of RFC 4861, 7.1.1 and 7.1.2.
    fn decode(from: Mac, mut bytes: &[u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let ([version, ..], length) = (take::<4>(bytes)?, u16::from_be_bytes(take(bytes)?));
        let [next, hops] = take(bytes)?;
        let (source, destination) = (Ipv6Addr::from(take::<16>(bytes)?), Ipv6Addr::from(take::<16>(bytes)?));
        // Behind a short packet there may be padding.
        let mut message = bytes.get(..usize::from(length))?;
        if version >> 4 != 6 || next != ICMPV6 || hops != 255 || checksum(source, destination, message) != 0 {
            return None;
        }
        let rest = &mut message;
        let [kind, code, _, _, flags, ..] = take::<8>(rest)?;
        let target = Ipv6Addr::from(take::<16>(rest)?);
        if code != 0 || target.is_multicast() {
            return None;
        }
        let mut links = [None; 2];
        while !rest.is_empty() {
            let [kind, units] = take(rest)?;
            let body = usize::from(units).checked_mul(8)?.checked_sub(2)?;
            let (body, after) = rest.split_at_checked(body)?;
            *rest = after;
            if let (SOURCE_LINK | TARGET_LINK, Ok(mac)) = (kind, <[u8; 6]>::try_from(body)) {
                links[usize::from(kind == TARGET_LINK)] = Some(Mac(mac));
            }
        }
        match kind {
            SOLICITATION => {
                let well = !source.is_unspecified() || (destination == solicited_node(target) && links[0].is_none());
                well.then_some(Self::Solicitation { from, source, target, link: links[0] })
            }
            ADVERTISEMENT => {
                let (solicited, overrides) = (flags & SOLICITED != 0, flags & OVERRIDE != 0);
                let well = !(destination.is_multicast() && solicited);
                let link = links[1];
                well.then_some(Self::Advertisement { from, source, destination, target, link, solicited, overrides })
            }
            _ => None,
        }
    }
}

impl Packet {
    /// The frame, to be sent on a link.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Arp(arp) => arp.encode(),
            Self::Neighbor(neighbor) => neighbor.encode(),
        }
    }

    /// Whether it says where an address is; else it asks.
    pub fn announces(&self) -> bool {
        match self {
            Self::Arp(arp) => !arp.is_probe(),
            Self::Neighbor(neighbor) => matches!(neighbor, Neighbor::Advertisement { .. }),
        }
    }

    /// Reads a frame without VLAN tag; `None` if it is anything else, or not as its RFC wants it.
    pub fn decode(mut frame: &[u8]) -> Option<Self> {
        let frame = &mut frame;
        let (_, from, ethertype) = (take::<6>(frame)?, Mac(take(frame)?), take::<2>(frame)?);
        match ethertype {
            ETHERTYPE_ARP => Arp::decode(frame).map(Self::Arp),
            ETHERTYPE_IPV6 => Neighbor::decode(from, frame).map(Self::Neighbor),
            _ => None,
        }
    }
}

/// The group in which solicitations for an address are heard (RFC 4291, 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low)
}

fn ethernet(to: Mac, from: Mac, ethertype: [u8; 2]) -> Vec<u8> {
    [&to.0[..], &from.0, &ethertype].concat()
}

/// The checksum of an `ICMPv6` message (RFC 4443, 2.3); zero over one that holds the right one.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let pseudo = [source.segments(), destination.segments()];
    let header: u64 = pseudo.iter().flatten().map(|word| u64::from(*word)).sum();
    let pairs = message.chunks(2).map(|pair| match pair {
        [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
        [high] => u64::from(*high) << 8,
        _ => 0,
    });
    let mut sum = header + message.len() as u64 + u64::from(ICMPV6) + pairs.sum::<u64>();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, left) = rest.split_first_chunk::<N>()?;
    *rest = left;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn hex(bytes: &[u8]) -> String {
        let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.concat()
    }

    /// Written out from the RFCs; the checksums are those of another program.
    #[test]
    fn bytes_on_the_wire() {
        let v4 = Ipv4Addr::new(192, 0, 2, 1);
        let probe = Packet::Arp(Arp::probe(MAC, v4)).encode();
        let want = "ffffffffffff02000000000108060001080006040001020000000001000000000000000000 00c0000201";
        assert_eq!(hex(&probe), want.replace(' ', ""));
        let announcement = Packet::Arp(Arp { is_reply: true, ..Arp::announcement(MAC, v4) }).encode();
        let want = "ffffffffffff0200000000010806 0001080006040002 020000000001c0000201 000000000000c0000201";
        assert_eq!(hex(&announcement), want.replace(' ', ""));
        let v6: Ipv6Addr = "2001:db8::1:2".parse().unwrap();
        let probe = Packet::Neighbor(Neighbor::probe(MAC, v6)).encode();
        let want = "3333ff010002020000000001 86dd 6000000000183aff 00000000000000000000000000000000 \
                    ff0200000000000000000001ff010002 87004ce900000000 20010db8000000000000000000010002";
        assert_eq!(hex(&probe), want.replace(' ', ""));
        let unsolicited = Packet::Neighbor(Neighbor::unsolicited(MAC, v6)).encode();
        let want = "333300000001020000000001 86dd 6000000000203aff 20010db8000000000000000000010002 \
                    ff020000000000000000000000000001 8800f92620000000 20010db8000000000000000000010002 0201020000000001";
        let (got, want) = (hex(&unsolicited), want.replace(' ', ""));
        assert_eq!(got, want);
    }

    #[test]
    fn what_is_refused() {
        let v6: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let good = Packet::Neighbor(Neighbor::unsolicited(MAC, v6)).encode();
        assert!(Packet::decode(&good).is_some());
        assert!(Packet::decode(&[good.clone(), vec![0; 9]].concat()).is_some(), "padding");
        // Offsets: the hop limit stands at 21, the next header at 20, the code at 55, the target at 62.
        for (what, at, value) in
            [("hop limit", 21, 64), ("next header", 20, 17), ("checksum", 70, 9), ("version", 14, 0x40)]
        {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(Packet::decode(&bad), None, "{what}");
        }
        for length in 0..good.len() {
            assert_eq!(Packet::decode(&good[..length]), None, "{length} bytes");
        }
        let solicited = Neighbor::Advertisement {
            from: MAC,
            source: v6,
            destination: ALL_NODES,
            target: v6,
            link: None,
            solicited: true,
            overrides: false,
        };
        assert_eq!(Packet::decode(&Packet::Neighbor(solicited).encode()), None);
        let with_link =
            Neighbor::Solicitation { from: MAC, source: Ipv6Addr::UNSPECIFIED, target: v6, link: Some(MAC) };
        assert_eq!(Packet::decode(&Packet::Neighbor(with_link).encode()), None);
        assert_eq!(Packet::decode(&Packet::Neighbor(Neighbor::probe(MAC, ALL_NODES)).encode()), None);
    }

    fn packet() -> impl Strategy<Value = Packet> {
        let mac = any::<[u8; 6]>().prop_map(Mac);
        let v6 = any::<[u8; 16]>().prop_map(Ipv6Addr::from).prop_filter("a unicast address", |v6| !v6.is_multicast());
        let link = proptest::option::of(any::<[u8; 6]>().prop_map(Mac));
        let arp = (any::<bool>(), mac.clone(), any::<[u8; 4]>(), any::<[u8; 6]>(), any::<[u8; 4]>());
        let arp = arp.prop_map(|(is_reply, sender_mac, sender, target_mac, target)| {
            let (sender, target) = (sender.into(), target.into());
            Packet::Arp(Arp { is_reply, sender_mac, sender, target_mac: Mac(target_mac), target })
        });
        let neighbor = (any::<bool>(), mac, v6.clone(), v6, link, any::<bool>());
        let neighbor = neighbor.prop_map(|(asks, from, source, target, link, overrides)| {
            if asks {
                return Packet::Neighbor(Neighbor::Solicitation { from, source, target, link });
            }
            let (destination, solicited) = (ALL_NODES, false);
            let advertisement =
                Neighbor::Advertisement { from, source, destination, target, link, solicited, overrides };
            Packet::Neighbor(advertisement)
        });
        prop_oneof![arp, neighbor]
    }

    proptest! {
        #[test]
        fn there_and_back(packet in packet()) {
            prop_assert_eq!(Packet::decode(&packet.encode()), Some(packet));
        }

        /// Nothing panics; a changed bit behind the IPv6 header is found by the checksum.
        #[test]
        fn changed(packet in packet(), at in any::<prop::sample::Index>(), bit in 0..8, noise in vec(any::<u8>(), 0..90)) {
            let good = packet.encode();
            let mut bad = good.clone();
            let at = at.index(good.len());
            bad[at] ^= 1_u8 << bit;
            let decoded = Packet::decode(&bad);
            if matches!(packet, Packet::Neighbor(_)) && at >= 22 {
                prop_assert_eq!(decoded, None);
            }
            let _ = Packet::decode(&noise);
            let _ = Packet::decode(&[&good[..at], &noise].concat());
        }
    }
}
