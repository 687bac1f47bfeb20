//! What is told to a developer (`--trace-datapath`): one line for each packet that is not left alone.
//!
//! `CONFIG` is read-only data: without its flag the verifier drops all of this before the first packet.

use aya_log_ebpf::debug;
use culvert_abi::{V4, config};

use crate::{maps, outcome::Outcome, packet::Packet, skb::Skb};

/// Tells what is about to happen to a packet.
#[inline(always)]
pub fn outcome<const W: usize>(skb: Skb, packet: &Packet<W>, outcome: Outcome, hook: u8) {
    if maps::config::flags() & config::TRACE != 0 {
        tell(skb, packet, outcome, hook);
    }
}

#[inline(never)]
fn tell<const W: usize>(skb: Skb, packet: &Packet<W>, outcome: Outcome, hook: u8) {
    let (ctx, tuple) = (&skb.context(), &packet.tuple);
    let (proto, sport, dport) = (tuple.proto, u16::from_be(tuple.sport), u16::from_be(tuple.dport));
    let target_port = u16::from_be(packet.target_port);
    if W == V4 {
        let [src, dst, target] = [&tuple.src, &tuple.dst, &packet.target].map(|addr| u32::from_be(addr[0]));
        if outcome == Outcome::TRANSLATE {
            debug!(
                ctx,
                "hook {}: {} {:i}:{} > {:i}:{}: now {:i}:{}", hook, proto, src, sport, dst, dport, target, target_port
            );
        } else {
            let reason = outcome.reason();
            debug!(ctx, "hook {}: {} {:i}:{} > {:i}:{}: reason {}", hook, proto, src, sport, dst, dport, reason);
        }
        return;
    }
    let [src, dst, target] = [&tuple.src, &tuple.dst, &packet.target].map(octets);
    if outcome == Outcome::TRANSLATE {
        debug!(
            ctx,
            "hook {}: {} [{:i}]:{} > [{:i}]:{}: now [{:i}]:{}",
            hook,
            proto,
            src,
            sport,
            dst,
            dport,
            target,
            target_port
        );
    } else {
        let reason = outcome.reason();
        debug!(ctx, "hook {}: {} [{:i}]:{} > [{:i}]:{}: reason {}", hook, proto, src, sport, dst, dport, reason);
    }
}

/// An IPv6 address as the log takes it.
#[inline(always)]
fn octets<const W: usize>(addr: &[u32; W]) -> [u8; 16] {
    let word = |i: usize| addr.get(i).copied().unwrap_or(0).to_ne_bytes();
    let [a, b, c, d] = [word(0), word(1), word(2), word(3)];
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}
