//! The flow table: whole flows, found by the tuple that a packet has at each place.

use std::collections::HashMap;
use std::net::SocketAddr;

use culvert_abi::{flow, idle, proto};

use super::packet::{Says, Tuple};

/// A number for a flow, never used again.
pub type FlowId = u64;

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The protocol's number.
    pub proto: u8,
    /// Who asked.
    pub client: SocketAddr,
    /// What it asked.
    pub frontend: SocketAddr,
    /// Who serves it.
    pub backend: SocketAddr,
    /// What the backend sees instead of the client.
    pub source: Option<SocketAddr>,
    /// The backend's id; 0 for a flow that is left alone.
    pub id: u32,
    /// The backend's generation when it was chosen.
    pub generation: u32,
    /// The Service port's id.
    pub service: u32,
    /// Bits of `culvert_abi::flow`.
    pub flags: u32,
    /// What the client sent and what it was sent back.
    pub directions: [Direction; 2],
    /// The client spoke after a reply, and it is not closed.
    pub established: bool,
}

/// The index of [`Flow::directions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Row ORIGIN: what the client sends.
    Client = 0,
    /// Row PATH: what it is sent back.
    Backend = 1,
}

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// Packets.
    pub packets: u64,
    /// Bytes of them (IP length).
    pub bytes: u64,
    /// When it was last renewed, in milliseconds.
    pub seen: u64,
}

impl Flow {
    /// What the client's packet looks like on the way in.
    pub fn origin(&self) -> Tuple {
        Tuple { src: self.client, dst: self.frontend, proto: self.proto }
    }

    /// What the stack sees of a reply.
    pub fn path(&self) -> Tuple {
        Tuple { src: self.backend, dst: self.client, proto: self.proto }
    }

    /// What comes back to a translated source.
    pub fn back(&self) -> Option<Tuple> {
        Some(Tuple { src: self.backend, dst: self.source?, proto: self.proto })
    }

    /// Whether it has a flag.
    pub fn is(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Over: a reset, or a FIN from both sides.
    pub fn closed(&self) -> bool {
        self.is(flow::RESET) || (self.is(flow::CLIENT_FIN) && self.is(flow::BACKEND_FIN))
    }

    /// Idle in both directions for longer than its state allows.
    pub fn expired(&self, now: u64) -> bool {
        let limit = match self.proto {
            proto::UDP if self.established => idle::UDP,
            proto::UDP => idle::UDP_NEW,
            _ if self.closed() => idle::CLOSED,
            _ if !self.established => idle::OPENING,
            _ if self.is(flow::CLIENT_FIN | flow::BACKEND_FIN) => idle::CLOSING,
            _ => idle::ESTABLISHED,
        };
        self.directions.iter().all(|direction| now - direction.seen > u64::from(limit) * 1000)
    }

    /// Renews a direction's clock, once a second at most.
    pub fn renew(&mut self, side: Side, now: u64) {
        let direction = &mut self.directions[side as usize];
        if now - direction.seen >= 1000 {
            direction.seen = now;
        }
    }

    /// A packet passes in a direction, and says something about the connection.
    pub fn pass(&mut self, side: Side, says: Says, bytes: u64, now: u64) {
        self.renew(side, now);
        let direction = &mut self.directions[side as usize];
        direction.packets += 1;
        direction.bytes += bytes;
        let fin = if side == Side::Client { flow::CLIENT_FIN } else { flow::BACKEND_FIN };
        if side == Side::Backend {
            self.flags |= flow::REPLIED;
        }
        if says.fin {
            self.flags |= fin;
        }
        if says.reset {
            self.flags |= flow::RESET;
        }
        // What is over makes room for what lives.
        self.established &= !self.closed();
    }
}

/// All flows.
#[derive(Debug, Default)]
pub struct Flows {
    by_id: HashMap<FlowId, Flow>,
    origins: HashMap<Tuple, FlowId>,
    paths: HashMap<Tuple, FlowId>,
    backs: HashMap<Tuple, FlowId>,
    next: FlowId,
}

impl Flows {
    /// Adds a flow; its tuples are free.
    pub fn add(&mut self, flow: Flow) -> FlowId {
        let id = self.next;
        self.next += 1;
        self.origins.insert(flow.origin(), id);
        self.paths.insert(flow.path(), id);
        self.by_id.insert(id, flow);
        id
    }

    /// The flow of a client's packet on the way in.
    pub fn by_origin(&self, tuple: &Tuple) -> Option<FlowId> {
        self.origins.get(tuple).copied()
    }

    /// The flow of a backend's packet inside.
    pub fn by_path(&self, tuple: &Tuple) -> Option<FlowId> {
        self.paths.get(tuple).copied()
    }

    /// The flow of a backend's packet to a translated source.
    pub fn by_back(&self, tuple: &Tuple) -> Option<FlowId> {
        self.backs.get(tuple).copied()
    }

    /// A flow by its number.
    pub fn get(&self, id: FlowId) -> Option<&Flow> {
        self.by_id.get(&id)
    }

    /// Likewise, to be changed. Its end points stay.
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.by_id.get_mut(&id)
    }

    /// Gives a flow its source. Whatever had the source before has it no more.
    pub fn set_source(&mut self, id: FlowId, source: SocketAddr) {
        let Some(flow) = self.by_id.get_mut(&id) else { return };
        flow.source = Some(source);
        if let Some(back) = flow.back() {
            self.backs.insert(back, id);
        }
    }

    /// Removes a flow.
    pub fn remove(&mut self, id: FlowId) -> Option<Flow> {
        let flow = self.by_id.remove(&id)?;
        self.origins.remove(&flow.origin());
        self.paths.remove(&flow.path());
        if let Some(back) = flow.back().filter(|back| self.by_back(back) == Some(id)) {
            self.backs.remove(&back);
        }
        Some(flow)
    }

    /// Whether the source that a flow was given is still its own: an expired one loses it to whoever comes.
    pub fn owns_source(&self, flow: &Flow) -> bool {
        flow.back().and_then(|back| self.by_back(&back)) == self.by_path(&flow.path())
    }

    /// All of them, in the order of their beginning.
    pub fn all(&self) -> Vec<&Flow> {
        let mut all: Vec<_> = self.by_id.iter().collect();
        all.sort_by_key(|(id, _)| **id);
        all.into_iter().map(|(_, flow)| flow).collect()
    }
}
