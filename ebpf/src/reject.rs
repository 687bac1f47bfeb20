//! Answers to packets that are refused, written in their place: a TCP reset or ICMP port unreachable, from the address
//! that was asked.

use core::arch::asm;

use aya_ebpf::{helpers::generated::bpf_csum_diff, macros::map, maps::PerCpuArray};
use culvert_abi::{Reason, V4, proto};

use crate::{
    csum::{fold, pseudo},
    outcome::Outcome,
    packet::{Header, Kind, Packet, is_martian, is_multicast, signal},
    skb::Skb,
};

/// Hop limit of answers.
const TTL: u32 = 64;
/// Bytes of an ICMP header.
const ICMP: u32 = 8;
/// Bytes of an IPv6 packet that an ICMP error quotes at most.
const QUOTE: u32 = 128;

/// An ICMP message that is being written: header and quote. Private to the programs.
#[map]
static MESSAGE: PerCpuArray<[u64; ((ICMP + QUOTE) / 8) as usize]> = PerCpuArray::with_max_entries(1, 0);

/// Turns the packet into the answer to it. `false`: it is not to be answered, or cannot be.
#[inline(always)]
pub fn answer<const W: usize, const L3: u32>(skb: Skb, packet: &Packet<W>, outcome: Outcome) -> bool {
    let source = &packet.tuple.src;
    if packet.kind != Kind::Whole || is_martian(source) || is_multicast(source) {
        return false;
    }
    if packet.tuple.proto != proto::TCP {
        return unreachable::<W, L3>(skb, packet);
    }
    // A segment of a connection that we do not know may be of one that lives.
    let known = packet.says(signal::OPEN) || outcome == Outcome::reject(Reason::PortNotServed);
    known && !packet.says(signal::RESET) && reset::<W, L3>(skb, packet)
}

/// A reset (RFC 9293 3.5.2).
#[inline(never)]
fn reset<const W: usize, const L3: u32>(skb: Skb, packet: &Packet<W>) -> bool {
    const FIN: u32 = 1;
    const SYN: u32 = 1 << 1;
    const RST: u32 = 1 << 2;
    const ACK: u32 = 1 << 4;
    const SIZE: u32 = 20;
    let Some([sequence, acknowledged, rest]) = skb.load::<[u32; 3]>(packet.l4 + 4) else { return false };
    let rest = u32::from_be(rest);
    let (header, flags) = ((rest >> 28) * 4, rest >> 16);
    let mut length = (packet.end - packet.l4).wrapping_sub(header);
    if flags & SYN != 0 {
        length += 1;
    }
    if flags & FIN != 0 {
        length += 1;
    }
    let (sequence, acknowledged, flags) = if flags & ACK != 0 {
        (u32::from_be(acknowledged), 0, RST)
    } else {
        (0, u32::from_be(sequence).wrapping_add(length), RST | ACK)
    };
    let ports = (u16::from_be(packet.tuple.dport) as u32) << 16 | u16::from_be(packet.tuple.sport) as u32;
    let mut segment = [ports, sequence, acknowledged, 5 << 28 | flags << 16, 0].map(u32::to_be);
    let sum = segment
        .iter()
        .fold(pseudo(&packet.tuple.src, &packet.tuple.dst, proto::TCP, SIZE), |sum, word| sum + *word as u64);
    segment[4] = (u16::from_be(!fold(sum)) as u32) << 16;
    segment[4] = segment[4].to_be();
    begin::<W, L3>(skb, packet, proto::TCP, SIZE) && skb.store_uncovered(L3 + Header::<W>::SIZE, &segment)
}

/// ICMP port unreachable (RFC 792, RFC 4443 3.1).
#[inline(never)]
fn unreachable<const W: usize, const L3: u32>(skb: Skb, packet: &Packet<W>) -> bool {
    let quote = if W == V4 { packet.l4 - L3 + 8 } else { packet.bytes };
    let quote = if quote > QUOTE { QUOTE } else { quote };
    // For the verifier: 1 to 128, as a mask says it.
    let quote = (opaque(quote - 1) & (QUOTE - 1)) + 1;
    let (protocol, kind, code) = if W == V4 { (proto::ICMP, 3, 3) } else { (proto::ICMPV6, 1, 4) };
    let Some(message) = MESSAGE.get_ptr_mut(0) else { return false };
    let (message, size) = (message.cast::<u64>(), ICMP + quote);
    // SAFETY: this CPU's own row of `ICMP + QUOTE` bytes; `quote` is at most `QUOTE`. What is not filled is zero, and
    // so adds nothing to the checksum over the whole of it.
    let check = unsafe {
        let mut i = 0;
        while i < (ICMP + QUOTE) as usize / 8 {
            message.add(i).write_volatile(0);
            i += 1;
        }
        message.cast::<[u8; 2]>().write([kind, code]);
        if !skb.load_to(L3, message.cast::<u8>().add(ICMP as usize), quote) {
            return false;
        }
        let seed = if W == V4 { 0 } else { pseudo(&packet.tuple.src, &packet.tuple.dst, protocol, size) };
        let seed = (seed & 0xffff_ffff) + (seed >> 32);
        let sum = bpf_csum_diff(core::ptr::null_mut(), 0, message.cast(), ICMP + QUOTE, fold(seed) as u32);
        !fold(sum.cast_unsigned() & 0xffff_ffff)
    };
    // SAFETY: as above; the checksum is the second field.
    unsafe { message.cast::<u16>().add(1).write(check) };
    // SAFETY: as above.
    begin::<W, L3>(skb, packet, protocol, size)
        && unsafe { skb.store_bytes(L3 + Header::<W>::SIZE, message.cast(), size) }
}

/// The value, of which the compiler knows nothing: it keeps a mask that it could prove needless.
#[inline(always)]
fn opaque(value: u32) -> u32 {
    let mut value = value as u64;
    // SAFETY: does nothing.
    unsafe { asm!("/* {value} */", value = inout(reg) value, options(pure, nomem, nostack)) };
    value as u32
}

/// Reshapes the packet and writes what comes before layer 4: the addresses change places.
#[inline(always)]
fn begin<const W: usize, const L3: u32>(skb: Skb, packet: &Packet<W>, protocol: u8, size: u32) -> bool {
    const ETHERNET: u32 = 14;
    if !skb.reshape(L3 + Header::<W>::SIZE + size) {
        return false;
    }
    if L3 == ETHERNET {
        let Some([d0, d1, d2, s0, s1, s2]) = skb.load::<[u16; 6]>(0) else { return false };
        if !skb.store_uncovered(0, &[s0, s1, s2, d0, d1, d2]) {
            return false;
        }
    }
    let mut header = [0; 10];
    if W == V4 {
        const DO_NOT_FRAGMENT: u32 = 0x4000;
        header[0] = (4 << 28 | 5 << 24 | (20 + size)).to_be();
        header[1] = DO_NOT_FRAGMENT.to_be();
        header[2] = TTL << 24 | (protocol as u32) << 16;
        header[3] = packet.tuple.dst[0];
        header[4] = packet.tuple.src[0];
        let sum = header[0] as u64 + header[1] as u64 + header[2].to_be() as u64 + header[3] as u64 + header[4] as u64;
        header[2] = (header[2] | u16::from_be(!fold(sum)) as u32).to_be();
    } else {
        header[0] = (6_u32 << 28).to_be();
        header[1] = (size << 16 | (protocol as u32) << 8 | TTL).to_be();
        let mut i = 0;
        while i < 4 {
            header[2 + i] = packet.tuple.dst.get(i).copied().unwrap_or(0);
            header[6 + i] = packet.tuple.src.get(i).copied().unwrap_or(0);
            i += 1;
        }
    }
    // SAFETY: `SIZE` is at most the 40 bytes of the array.
    unsafe { skb.store_bytes(L3, header.as_ptr().cast(), Header::<W>::SIZE) }
}
