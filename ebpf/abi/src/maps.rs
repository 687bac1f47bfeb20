//! Keys and values, map by map. `docs/DATAPATH.md` says how the programs use them.

use crate::layout::{Plain, plain};

// ===== addresses =====

/// Value of `ADDRESSES_V4/V6` (hash; key: the address alone): what an address means to the programs.
/// A packet whose destination (ingress) is in neither is not ours, after one lookup.
pub mod address {
    /// The address serves at least one frontend.
    pub const FRONTEND: u32 = 1;
    /// A port of this address that no frontend serves is refused (ClusterIPs, pool addresses).
    pub const REFUSE: u32 = 1 << 1;
    /// No frontend is left, but flows may be: only flow rows count for it.
    pub const LINGER: u32 = 1 << 2;
    /// Source addresses are translated to this one: a destination port in the reserved range may be a reply.
    pub const SOURCE: u32 = 1 << 3;
}

// ===== frontends =====

plain! {
    /// Key of `FRONTENDS_V4/V6` (hash).
    pub struct FrontendKey<const W: usize> {
        /// Address, network order.
        pub addr: [u32; W],
        /// Port, network order.
        pub port: u16,
        /// IP protocol number.
        pub proto: u8,
        /// Zero.
        pub zero: u8,
    }
}

plain! {
    /// Value of `FRONTENDS_V4/V6`: one address, port and protocol of a Service port.
    pub struct Frontend {
        /// Hash of the Service port's name (namespace, Service, port name, protocol, family): finds the
        /// Service's id again after a restart.
        pub identity: u64,
        /// Id of the Service port: index into `SERVICE_COUNTERS`, part of affinity keys. 0 is no Service.
        pub service: u32,
        /// Session affinity time-out in seconds; 0 without affinity.
        pub affinity_seconds: u32,
        /// Id of the source ranges in `RANGES_V4/V6`; 0 = unrestricted.
        pub ranges: u32,
        /// Bits of [`frontend`].
        pub flags: u32,
        /// What each audience gets, indexed by [`audience`].
        pub views: [View; 3],
    }
}

/// Bits of [`Frontend::flags`].
pub mod frontend {
    /// A NodePort.
    pub const NODE_PORT: u32 = 1;
    /// A ClusterIP.
    pub const CLUSTER_IP: u32 = 1 << 1;
    /// An external or LoadBalancer address.
    pub const EXTERNAL: u32 = 1 << 2;
}

/// Who asks: index into [`Frontend::views`].
pub mod audience {
    /// A pod of this node.
    pub const PODS: usize = 0;
    /// This node's host network.
    pub const HOST: usize = 1;
    /// Everything else.
    pub const EXTERNAL: usize = 2;
}

plain! {
    /// What one audience gets at a frontend.
    pub struct View {
        /// Index into `TABLES`: the backends; 0 = none.
        pub table: u32,
        /// One of [`verdict`].
        pub verdict: u8,
        /// Bits of [`view`].
        pub flags: u8,
        /// Zero.
        pub zero: u16,
    }
}

/// Values of [`View::verdict`].
pub mod verdict {
    /// Choose a backend from the table.
    pub const BALANCE: u8 = 0;
    /// Refuse: TCP reset, ICMP port unreachable, ECONNREFUSED.
    pub const REJECT: u8 = 1;
    /// Drop without an answer.
    pub const DROP: u8 = 2;
}

/// Bits of [`View::flags`].
pub mod view {
    /// The client's address is replaced when the chosen backend is not local (`clientAddress: replaced`).
    pub const REPLACE_CLIENT: u8 = 1;
    /// The table is the list of traffic policy Local; else it is that of policy Cluster.
    pub const LOCAL_LIST: u8 = 1 << 1;
}

// ===== tables =====

/// Value of `TABLES` (mmapable array of `u64`): where a backend list and its Maglev slots lie in `SLAB`.
/// Published by one 64-bit store, so that a reader sees the old or the new table, never half of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// First unit (`u16`) of the slice in `SLAB`; even. The list comes first, two units an id (low half first),
    /// then the slots, one unit each: an index into the list.
    pub base: u32,
    /// Backends in the list; 0 = empty table.
    pub count: u16,
    /// Index into [`MAGLEV_SIZES`]; 0 = list only, the choice is random.
    pub class: u8,
}

impl Table {
    /// Packs the descriptor: base in the low half, then count, then class.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        self.base as u64 | (self.count as u64) << 32 | (self.class as u64) << 48
    }

    /// Unpacks a descriptor.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self { base: word as u32, count: (word >> 32) as u16, class: (word >> 48) as u8 }
    }

    /// Units that the slice takes in `SLAB`.
    pub const fn units(self) -> u32 {
        self.count as u32 * 2 + maglev_size(self.class)
    }
}

/// Slots of a Maglev table by size class; primes, few and far apart. Class 0 has no slots.
/// At 400 slots a backend they end at 12, 30, 125 and 1,250 backends: not where people like to scale to.
pub const MAGLEV_SIZES: [u32; 5] = [0, 5_003, 12_007, 50_021, 500_009];

/// Slots of a class, 0 for an unknown one.
#[inline(always)]
pub const fn maglev_size(class: u8) -> u32 {
    match class {
        1 => MAGLEV_SIZES[1],
        2 => MAGLEV_SIZES[2],
        3 => MAGLEV_SIZES[3],
        4 => MAGLEV_SIZES[4],
        _ => 0,
    }
}

/// Units (`u16`) in one value of `SLAB`: a page of 4 KiB.
pub const PAGE_UNITS: usize = 2048;
/// log2 of [`PAGE_UNITS`].
pub const PAGE_SHIFT: u32 = 11;

// ===== backends =====

plain! {
    /// Value of `BACKENDS_V4/V6` (array, index = backend id, 0 = none): one endpoint of one Service port.
    pub struct Backend<const W: usize> {
        /// Address, network order.
        pub addr: [u32; W],
        /// Port, network order.
        pub port: u16,
        /// Bits of [`backend`]; 0 = free row.
        pub flags: u16,
        /// Changes each time that the id is given to another endpoint.
        pub generation: u32,
        /// The Service port's id.
        pub service: u32,
    }
}

/// Bits of [`Backend::flags`].
pub mod backend {
    /// The endpoint exists: flows to it go on.
    pub const ALIVE: u16 = 1;
    /// It runs on this node (pod or host network).
    pub const LOCAL: u16 = 1 << 1;
    /// It is terminating, and serves still.
    pub const TERMINATING: u16 = 1 << 2;
    /// Views of the Service port without [`super::view::LOCAL_LIST`] do not have it in their list. These two say what is
    /// not: rows of an agent that did not know them are in every list, as they were for its programs.
    pub const NOT_IN_CLUSTER_LIST: u16 = 1 << 3;
    /// Views with [`super::view::LOCAL_LIST`] do not have it in their list.
    pub const NOT_IN_LOCAL_LIST: u16 = 1 << 4;
}

// ===== policy =====

plain! {
    /// Key of `RANGES_V4/V6` (LPM trie): allowed source prefixes of one set of ranges.
    pub struct RangeKey<const W: usize> {
        /// Bits that count, from the start of `ranges`: 32 + prefix length.
        pub prefix_len: u32,
        /// Id of the set, host order; always matched in full.
        pub ranges: u32,
        /// Source address, network order.
        pub addr: [u32; W],
    }
}

plain! {
    /// Key of `AFFINITY` (LRU hash).
    pub struct AffinityKey {
        /// The client: its address (IPv4 in the first word), or its network namespace's cookie (two words).
        pub client: [u32; 4],
        /// The Service port's id.
        pub service: u32,
        /// One of [`affinity`].
        pub kind: u32,
    }
}

/// Values of [`AffinityKey::kind`].
pub mod affinity {
    /// `client` is an address (packet hooks).
    pub const ADDRESS: u32 = 0;
    /// `client` is a network namespace cookie (socket hooks, which see no source address yet).
    pub const NAMESPACE: u32 = 1;
}

plain! {
    /// Value of `AFFINITY`.
    pub struct Affinity {
        /// Backend id.
        pub backend: u32,
        /// Its generation.
        pub generation: u32,
        /// Tick of the last new connection.
        pub seen: u32,
        /// Zero.
        pub zero: u32,
    }
}

// ===== flows =====

plain! {
    /// Key of the flow maps.
    pub struct FlowKey<const W: usize> {
        /// Source address, network order.
        pub src: [u32; W],
        /// Destination address, network order.
        pub dst: [u32; W],
        /// Source port, network order.
        pub sport: u16,
        /// Destination port, network order.
        pub dport: u16,
        /// IP protocol number.
        pub proto: u8,
        /// One of [`role`].
        pub role: u8,
        /// Zero.
        pub zero: u16,
    }
}

/// Values of [`FlowKey::role`]: which packet of a flow a row is for.
pub mod role {
    /// client -> frontend, as the client sent it. Read at ingress.
    pub const ORIGIN: u8 = 1;
    /// backend -> client, what the stack sees of the reply (and, turned round, of the request). Read at egress.
    pub const PATH: u8 = 2;
    /// backend -> translated source. Read at ingress; exists only where the client's address is replaced.
    pub const RETURN: u8 = 3;
}

plain! {
    /// Value of the flow maps, the same for each role: the whole flow, and this row's own clock and counters.
    /// Maps: `FLOWS_NEW_V4/V6` (LRU; the client has not answered to a reply) and `FLOWS_V4/V6` (LRU; it has).
    pub struct Flow<const W: usize> {
        /// Packets that this row matched.
        pub packets: u64,
        /// Bytes of them (IP length).
        pub bytes: u64,
        /// Client address and, below, port: as the client sent it.
        pub client: [u32; W],
        /// Frontend address that the client asked for.
        pub frontend: [u32; W],
        /// Backend address that serves it.
        pub backend: [u32; W],
        /// Address that the backend sees instead of the client's; zero while none is needed or chosen.
        pub source: [u32; W],
        /// Client port, network order.
        pub client_port: u16,
        /// Frontend port, network order.
        pub frontend_port: u16,
        /// Backend port, network order.
        pub backend_port: u16,
        /// Port that the backend sees instead of the client's; 0 while none is chosen.
        pub source_port: u16,
        /// Backend id, 0 for a flow that is left alone.
        pub backend_id: u32,
        /// Generation of the backend when it was chosen.
        pub generation: u32,
        /// The Service port's id.
        pub service: u32,
        /// Tick of the last packet (written at most once a second).
        pub seen: u32,
        /// Bits of [`flow`].
        pub flags: u32,
        /// Tick of the first packet.
        pub born: u32,
        /// What a later layout appends; nothing here.
        pub appended: [u64; APPENDED],
    }
}

/// Words that this layout appends to [`Flow`]. The feature `layout-next` makes a second layout of it, with which
/// upgrades and downgrades are tested.
pub const APPENDED: usize = if cfg!(feature = "layout-next") { 1 } else { 0 };

/// Bytes of [`Flow`] that every layout has: what may be read of and written to a row of another one.
pub const fn flow_base<const W: usize>() -> usize {
    core::mem::offset_of!(Flow<W>, appended)
}

/// Bits of [`Flow::flags`].
pub mod flow {
    /// A reply was seen.
    pub const REPLIED: u32 = 1;
    /// FIN (or SCTP SHUTDOWN) from the client was seen.
    pub const CLIENT_FIN: u32 = 1 << 1;
    /// FIN (or SCTP SHUTDOWN ACK) from the backend was seen.
    pub const BACKEND_FIN: u32 = 1 << 2;
    /// A reset (or SCTP ABORT) was seen.
    pub const RESET: u32 = 1 << 3;
    /// The client's address is replaced on the way to the backend.
    pub const REPLACE_CLIENT: u32 = 1 << 4;
    /// Netfilter translates this connection since before the agent came: left alone.
    pub const FOREIGN: u32 = 1 << 5;
    /// The backend runs on this node.
    pub const LOCAL: u32 = 1 << 6;
    /// The client is a pod of this node.
    pub const FROM_POD: u32 = 1 << 7;
}

/// Idle limits of flows, in seconds.
pub mod idle {
    /// TCP and SCTP in `FLOWS` (kube-proxy's `nf_conntrack_tcp_timeout_established`: 24 h).
    pub const ESTABLISHED: u32 = 86_400;
    /// TCP and SCTP in `FLOWS_NEW`: the client has not answered to a reply.
    pub const OPENING: u32 = 120;
    /// TCP and SCTP after both FINs or a reset.
    pub const CLOSED: u32 = 10;
    /// TCP and SCTP in `FLOWS` after one FIN (kube-proxy's `nf_conntrack_tcp_timeout_close_wait`: 1 h).
    pub const CLOSING: u32 = 3_600;
    /// UDP in `FLOWS_NEW` (netfilter's `nf_conntrack_udp_timeout`, likewise with one reply).
    pub const UDP_NEW: u32 = 30;
    /// UDP in `FLOWS`.
    pub const UDP: u32 = 180;
}

plain! {
    /// Key of `FRAGMENTS_V4/V6` (LRU): one fragmented datagram, as seen at a hook.
    pub struct FragmentKey<const W: usize> {
        /// Source address, network order.
        pub src: [u32; W],
        /// Destination address, network order.
        pub dst: [u32; W],
        /// Identification (IPv4: 16 bits), raw.
        pub id: u32,
        /// IP protocol number.
        pub proto: u32,
    }
}

plain! {
    /// Value of `FRAGMENTS_V4/V6`: the ports of the first fragment.
    pub struct Fragment {
        /// Source port, network order.
        pub sport: u16,
        /// Destination port, network order.
        pub dport: u16,
    }
}

// ===== links =====

plain! {
    /// Value of `LINKS` (hash; key: ifindex): a hooked link.
    pub struct Link {
        /// IPv6 address that the kernel would use as source there; zero = none.
        pub v6: [u32; 4],
        /// IPv4 address likewise.
        pub v4: u32,
        /// Bits of [`link`].
        pub flags: u32,
        /// Of a pod link that is a port of a bridge: the bridge's link address, as it lies in a frame; else zero.
        pub bridge: [u16; 3],
        /// Zero.
        pub zero: u16,
        /// Of a node link: its own link address, as it lies in a frame; else zero.
        pub mac: [u16; 3],
        /// Zero.
        pub zero_2: u16,
    }
}

/// Bits of [`Link::flags`].
pub mod link {
    /// Pod side (veth and its like); else a node link.
    pub const POD: u32 = 1;
    /// Packets have no Ethernet header there (WireGuard, tun, IPIP).
    pub const NO_HEADER: u32 = 1 << 1;
    /// Its bridge routes IPv4: what is sent to the bridge's link address reaches the IP stack.
    pub const BRIDGE_V4: u32 = 1 << 2;
    /// Its bridge routes IPv6.
    pub const BRIDGE_V6: u32 = 1 << 3;
}

// ===== sockets =====

plain! {
    /// Value of `SOCKETS` (socket storage): what a connected socket asked for and what it got.
    pub struct Socket {
        /// Frontend address (IPv4 in the first word).
        pub frontend: [u32; 4],
        /// Backend address likewise.
        pub backend: [u32; 4],
        /// Frontend port, network order.
        pub frontend_port: u16,
        /// Backend port, network order.
        pub backend_port: u16,
        /// 4 or 6: the family of the addresses (4 also for v4-mapped sockets). 0 = not translated.
        pub family: u16,
        /// IP protocol number.
        pub proto: u16,
        /// Backend id.
        pub backend_id: u32,
        /// Its generation.
        pub generation: u32,
        /// The Service port's id.
        pub service: u32,
    }
}

plain! {
    /// Key of `DATAGRAMS` (LRU): unconnected UDP, one peer of one socket.
    pub struct DatagramKey {
        /// Socket cookie.
        pub cookie: u64,
        /// Peer address (IPv4 in the first word).
        pub addr: [u32; 4],
        /// Peer port, network order.
        pub port: u16,
        /// 4 or 6.
        pub family: u16,
        /// One of [`datagram`].
        pub direction: u32,
    }
}

/// Values of [`DatagramKey::direction`].
pub mod datagram {
    /// The peer is a frontend; the value is the backend chosen.
    pub const SEND: u32 = 1;
    /// The peer is a backend; the value is the frontend to show.
    pub const RECEIVE: u32 = 2;
}

plain! {
    /// Value of `DATAGRAMS`.
    pub struct Datagram {
        /// The other address (IPv4 in the first word).
        pub addr: [u32; 4],
        /// Its port, network order.
        pub port: u16,
        /// Zero.
        pub zero: u16,
        /// Backend id.
        pub backend_id: u32,
        /// Its generation.
        pub generation: u32,
    }
}

// ===== counters and samples =====

plain! {
    /// Value of `SERVICE_COUNTERS` (per-CPU array, index = Service port id).
    pub struct ServiceCounters {
        /// New flows and translated connects.
        pub connections: u64,
        /// Packets from clients (packet hooks only).
        pub packets: u64,
        /// Bytes of them (IP length).
        pub bytes: u64,
        /// Packets to clients.
        pub reply_packets: u64,
        /// Bytes of them.
        pub reply_bytes: u64,
        /// Refused connections and packets.
        pub rejected: u64,
        /// Dropped connections and packets.
        pub dropped: u64,
    }
}

plain! {
    /// Value of `BACKEND_COUNTERS_V4/V6` (array, index = backend id): atomically added to. `connections` at a flow's start,
    /// the rest folded in at its end; the agent adds what live rows hold.
    pub struct BackendCounters {
        /// New flows and translated connects.
        pub connections: u64,
        /// Packets of ended flows, both directions.
        pub packets: u64,
        /// Bytes of them.
        pub bytes: u64,
    }
}

plain! {
    /// A sample in the ring buffer `EVENTS`: one dropped or refused packet, rate-limited per CPU.
    pub struct Event {
        /// Source address (IPv4 in the first word).
        pub src: [u32; 4],
        /// Destination address likewise.
        pub dst: [u32; 4],
        /// Source port, network order.
        pub sport: u16,
        /// Destination port, network order.
        pub dport: u16,
        /// Link.
        pub ifindex: u32,
        /// 4 or 6.
        pub family: u8,
        /// IP protocol number.
        pub proto: u8,
        /// [`crate::Reason`] as a number.
        pub reason: u8,
        /// One of [`hook`].
        pub hook: u8,
        /// The Service port's id, 0 if unknown.
        pub service: u32,
    }
}

/// Where a sample was taken.
pub mod hook {
    /// Ingress of a pod link.
    pub const POD_INGRESS: u8 = 0;
    /// Egress of a pod link.
    pub const POD_EGRESS: u8 = 1;
    /// Ingress of a node link.
    pub const NODE_INGRESS: u8 = 2;
    /// Egress of a node link.
    pub const NODE_EGRESS: u8 = 3;
    /// A cgroup socket hook.
    pub const SOCKET: u8 = 4;
}

// ===== configuration =====

plain! {
    /// Read-only data `CONFIG` of the programs, set before they are loaded.
    pub struct Config {
        /// Cookie of the node's network namespace (`SO_NETNS_COOKIE` of the agent).
        pub host_netns: u64,
        /// One of [`socket_mode`].
        pub socket_mode: u32,
        /// First port of the range reserved for translated sources, host order.
        pub port_low: u16,
        /// Last port of it, host order, inclusive.
        pub port_high: u16,
        /// Bits of [`config`].
        pub flags: u32,
        /// Where beats are taken ([`crate::Liveness`]), network order; 0 = nowhere, and nothing that wants a majority is
        /// answered.
        pub beat_port: u16,
        /// Zero.
        pub zero: u16,
    }
}

/// Values of [`Config::socket_mode`].
pub mod socket_mode {
    /// Host and pods are translated at the socket.
    pub const ALL: u32 = 0;
    /// Only the host network namespace is; pods are served by the packet hooks.
    pub const HOST: u32 = 1;
}

/// Bits of [`Config::flags`].
pub mod config {
    /// aya-log output is on (developers).
    pub const TRACE: u32 = 1;
    /// Another layout's flow maps are still in use (`PREVIOUS_*`): read on a miss, written along.
    pub const MIGRATING: u32 = 1 << 1;
}

const _: () = {
    assert!(size_of::<FrontendKey<1>>() == 8 && size_of::<FrontendKey<4>>() == 20);
    assert!(size_of::<Frontend>() == 48);
    assert!(size_of::<Backend<1>>() == 16 && size_of::<Backend<4>>() == 28);
    assert!(size_of::<FlowKey<1>>() == 16 && size_of::<FlowKey<4>>() == 40);
    assert!(flow_base::<1>() == 64 && flow_base::<4>() == 112);
    assert!(size_of::<Flow<1>>() == 64 + 8 * APPENDED && size_of::<Flow<4>>() == 112 + 8 * APPENDED);
    let _ = FrontendKey::<1>::zeroed();
    let _ = FrontendKey::<4>::zeroed();
    let _ = Frontend::zeroed();
    let _ = View::zeroed();
    let _ = Backend::<1>::zeroed();
    let _ = Backend::<4>::zeroed();
    let _ = RangeKey::<1>::zeroed();
    let _ = RangeKey::<4>::zeroed();
    let _ = AffinityKey::zeroed();
    let _ = Affinity::zeroed();
    let _ = FlowKey::<1>::zeroed();
    let _ = FlowKey::<4>::zeroed();
    let _ = Flow::<1>::zeroed();
    let _ = Flow::<4>::zeroed();
    let _ = FragmentKey::<1>::zeroed();
    let _ = FragmentKey::<4>::zeroed();
    let _ = Fragment::zeroed();
    let _ = Link::zeroed();
    let _ = Socket::zeroed();
    let _ = DatagramKey::zeroed();
    let _ = Datagram::zeroed();
    let _ = ServiceCounters::zeroed();
    let _ = BackendCounters::zeroed();
    let _ = Event::zeroed();
    let _ = Config::zeroed();
};
