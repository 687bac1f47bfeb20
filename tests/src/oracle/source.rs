//! The source of a flow: free ports, and those of closed flows.

use std::net::{IpAddr, SocketAddr};

use culvert_abi::Reason;

use super::flows::{FlowId, Side};
use super::packet::{Packet, Tuple};
use super::rewrite::End;
use super::{Decision, Oracle, Ports, Seen, hash_of};

/// Tries for a source port beyond the client's own: rounds, and tries of a round.
const ROUNDS: usize = 4;
const TRIES: usize = 16;

impl Oracle {
    /// Chooses the source of a flow.
    pub(super) fn choose_source(&mut self, id: FlowId, packet: &Packet, seen: &mut Seen<'_>) -> Decision {
        let Tuple { src, dst, proto } = packet.tuple;
        let link = self.world.links.get(&self.link);
        let address = link.map(|link| if src.is_ipv4() { IpAddr::V4(link.v4) } else { IpAddr::V6(link.v6) });
        let Some(address) = address.filter(|address| !address.is_unspecified()) else {
            return Decision::Drop(Reason::NoSourceAddress);
        };
        let Ports { low, high } = self.ports;
        let back = |port| Tuple { src: dst, dst: SocketAddr::new(address, port), proto };
        let own = Some(src.port()).filter(|port| (low..=high).contains(port));
        if let Some(port) = own.filter(|port| self.vacate(&back(*port))) {
            return self.give_source(id, back(port).dst);
        }
        let size = u64::from(high - low) + 1;
        let mut numbers = std::iter::successors(Some(hash_of(src, dst, proto)), |number| {
            Some(number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223))
        });
        for _ in 0..ROUNDS {
            let backs: Vec<_> = numbers
                .by_ref()
                .take(TRIES)
                .map(|number| back(low + ((u64::from(number) * size) >> 32) as u16))
                .collect();
            if let Some(back) = backs.iter().find(|back| self.vacate(back)) {
                return self.give_source(id, back.dst);
            }
            let closed = self.closed_longest(&backs);
            let chosen = match &closed[..] {
                [] => continue,
                [one] => one.dst,
                // The kernel's clock tells apart what is one moment here.
                some => match (seen.source)(&packet.tuple.turned()) {
                    Some(source) if some.iter().any(|back| back.dst == source) => source,
                    other => return Decision::Impossible(format!("source {other:?}, none of {some:?}")),
                },
            };
            if let Some(holder) = self.flows.by_back(&back(chosen.port())) {
                self.end(holder);
            }
            self.taken_over += 1;
            return self.give_source(id, chosen);
        }
        Decision::Drop(Reason::PortsExhausted)
    }

    fn give_source(&mut self, id: FlowId, source: SocketAddr) -> Decision {
        self.flows.set_source(id, source);
        Decision::Translate(End::Source, source)
    }

    /// Those of some sources whose flow is closed, and longest without a packet; several if that was at the same moment.
    fn closed_longest(&self, backs: &[Tuple]) -> Vec<Tuple> {
        let since = |back: &Tuple| {
            let flow = self.flows.by_back(back).and_then(|id| self.flows.get(id)).filter(|flow| flow.closed())?;
            Some(flow.directions[Side::Backend as usize].seen)
        };
        let first = backs.iter().filter_map(since).min();
        let mut all: Vec<_> = backs.iter().copied().filter(|back| first.is_some() && since(back) == first).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether a source is free; an expired flow that has it is ended.
    fn vacate(&mut self, back: &Tuple) -> bool {
        let Some(id) = self.flows.by_back(back) else { return true };
        let holder = self.flows.get(id).filter(|flow| flow.source == Some(back.dst));
        if holder.is_some_and(|flow| !flow.expired(self.now)) {
            return false;
        }
        if holder.is_some() {
            self.end(id);
        }
        true
    }
}
