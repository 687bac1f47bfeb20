//! What the programs know of a packet.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use culvert_abi::{FlowKey, V4};

use crate::{count, skb::Skb, words};

/// What kind of packet it is: what is there to be read and rewritten.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A packet with its layer-4 header.
    Whole,
    /// The first fragment of a datagram: has the layer-4 header, not all that the header speaks of.
    FirstFragment,
    /// A later fragment: no layer-4 header.
    LaterFragment,
    /// An ICMP error about a packet of the other direction.
    Error,
}

/// What a segment says about its connection. Bits.
pub mod signal {
    /// TCP SYN without ACK, SCTP INIT.
    pub const OPEN: u8 = 1;
    /// TCP FIN, SCTP SHUTDOWN and SHUTDOWN ACK.
    pub const FIN: u8 = 1 << 1;
    /// TCP RST, SCTP ABORT.
    pub const RESET: u8 = 1 << 2;
    /// TCP SYN with ACK, SCTP INIT ACK.
    pub const ACCEPT: u8 = 1 << 3;
}

/// The packet that this CPU works on. In a map, because what the verifier knows of a value ends there: on the stack it
/// would follow each kind of packet apart through all that comes after. Private to the programs.
#[map]
static PACKET: PerCpuArray<[u64; 32]> = PerCpuArray::with_max_entries(1, 0);

const _: () = assert!(size_of::<Packet<4>>() <= 256);

/// A packet of one family. Offsets count from the start of the buffer, the link's header included.
#[derive(Clone, Copy)]
pub struct Packet<const W: usize> {
    /// The tuple in the direction of travel. The role is that of the flow row looked for last.
    pub tuple: FlowKey<W>,
    /// The tuple turned round, once it was asked for.
    turned: FlowKey<W>,
    /// The fixed part of the IP header.
    pub header: Header<W>,
    /// Where the rewrite leads: the new destination or source address.
    pub target: [u32; W],
    /// The layer-4 header. Of an ICMP error: the ICMP header.
    pub l4: u32,
    /// The first byte behind the IP packet.
    pub end: u32,
    /// Bytes of the IP packet.
    pub bytes: u32,
    /// Of an ICMP error: the IP header inside.
    pub inner: u32,
    /// Of an ICMP error: the layer-4 header inside.
    pub inner_l4: u32,
    /// Identification of a fragment, raw.
    pub fragment: u32,
    /// The Service port's id, as soon as it is known; for samples.
    pub service: u32,
    /// Of a packet that begins a flow: the backend's id.
    pub backend_id: u32,
    /// Likewise, its generation.
    pub generation: u32,
    /// Likewise, bits of [`culvert_abi::backend`].
    pub backend_flags: u16,
    /// Where the rewrite leads: the new port, network order.
    pub target_port: u16,
    /// The kind.
    pub kind: Kind,
    /// Bits of [`signal`].
    pub signals: u8,
}

impl<const W: usize> Packet<W> {
    /// This CPU's packet, of which nothing but the fixed IP header at `l3` is read yet. `None`: there is no such header.
    #[inline(always)]
    pub fn read(skb: Skb, l3: u32) -> Option<&'static mut Self> {
        let packet = PACKET.get_ptr_mut(0)?.cast::<Self>();
        // SAFETY: this CPU's own row, and one program at a time runs on it for a packet. What is not written here
        // holds what the last packet left, which is a value of its type: only `Packet`s lie there, and zeros.
        let packet = unsafe { &mut *packet };
        if !packet.header.read(skb, l3) {
            return None;
        }
        packet.tuple.src = packet.header.source();
        packet.tuple.dst = packet.header.destination();
        packet.tuple.sport = 0;
        packet.tuple.dport = 0;
        packet.tuple.zero = 0;
        packet.service = 0;
        packet.kind = Kind::Whole;
        packet.signals = 0;
        Some(packet)
    }

    /// The tuple as the key of a row.
    #[inline(always)]
    pub fn key(&mut self, role: u8) -> &FlowKey<W> {
        self.tuple.role = role;
        &self.tuple
    }

    /// The tuple turned round, as the key of a row.
    #[inline(always)]
    pub fn turned(&mut self, role: u8) -> &FlowKey<W> {
        let (tuple, turned) = (&self.tuple, &mut self.turned);
        turned.src = tuple.dst;
        turned.dst = tuple.src;
        turned.sport = tuple.dport;
        turned.dport = tuple.sport;
        turned.proto = tuple.proto;
        turned.role = role;
        turned.zero = 0;
        turned
    }

    /// Sets where the rewrite leads.
    #[inline(always)]
    pub fn aim(&mut self, addr: &[u32; W], port: u16) {
        words::copy(&mut self.target, addr);
        self.target_port = port;
    }

    /// Counts a packet of a client at its Service.
    #[inline(always)]
    pub fn count_request(&self) {
        count::service(self.service, |counters| {
            counters.packets += 1;
            counters.bytes += self.bytes as u64;
        });
    }

    /// An ICMP error: belongs to a flow, but is not of it.
    #[inline(always)]
    pub fn is_error(&self) -> bool {
        self.kind == Kind::Error
    }

    /// Whether a segment says this about its connection.
    #[inline(always)]
    pub fn says(&self, signal: u8) -> bool {
        self.signals & signal != 0
    }
}

/// The fixed part of an IP header, as words of the packet: 5 (IPv4) or 10 (IPv6) of them count.
#[derive(Clone, Copy)]
pub struct Header<const W: usize>([u32; 10]);

impl<const W: usize> Header<W> {
    /// Bytes of it.
    pub const SIZE: u32 = if W == V4 { 20 } else { 40 };
    /// Where the source address lies in it.
    pub const SOURCE: u32 = if W == V4 { 12 } else { 8 };
    /// Where the destination address lies in it.
    pub const DESTINATION: u32 = if W == V4 { 16 } else { 24 };

    /// Reads it.
    #[inline(always)]
    pub fn load(skb: Skb, at: u32) -> Option<Self> {
        let mut header = Self([0; 10]);
        header.read(skb, at).then_some(header)
    }

    /// Reads it to where this one is.
    #[inline(always)]
    fn read(&mut self, skb: Skb, at: u32) -> bool {
        // SAFETY: `SIZE` is at most the 40 bytes of the array.
        unsafe { skb.load_to(at, self.0.as_mut_ptr().cast(), Self::SIZE) }
    }

    /// A word, host order.
    #[inline(always)]
    pub fn word(&self, index: usize) -> u32 {
        self.0.get(index).copied().map_or(0, u32::from_be)
    }

    /// The IP version that it claims.
    #[inline(always)]
    pub fn version(&self) -> u32 {
        self.word(0) >> 28
    }

    /// The source address.
    #[inline(always)]
    pub fn source(&self) -> [u32; W] {
        self.address(Self::SOURCE)
    }

    /// The destination address.
    #[inline(always)]
    pub fn destination(&self) -> [u32; W] {
        self.address(Self::DESTINATION)
    }

    #[inline(always)]
    fn address(&self, offset: u32) -> [u32; W] {
        let first = offset as usize / 4;
        core::array::from_fn(|i| self.0.get(first + i).copied().unwrap_or(0))
    }

    /// What follows it: a protocol, or an IPv6 extension header.
    #[inline(always)]
    pub fn next(&self) -> u8 {
        if W == V4 { (self.word(2) >> 16) as u8 } else { (self.word(1) >> 8) as u8 }
    }
}

/// An address that no packet on a link may come from: loopback or unspecified.
#[inline(always)]
pub fn is_martian<const W: usize>(addr: &[u32; W]) -> bool {
    if W == V4 {
        let addr = u32::from_be(addr[0]);
        return addr >> 24 == 127 || addr == 0;
    }
    let (last, rest) = (addr[W - 1], addr.iter().take(W - 1).fold(0, |all, word| all | word));
    rest == 0 && u32::from_be(last) <= 1
}

/// An address of many hosts.
#[inline(always)]
pub fn is_multicast<const W: usize>(addr: &[u32; W]) -> bool {
    let first = u32::from_be(addr[0]);
    if W == V4 { first >> 28 >= 14 } else { first >> 24 == 0xff }
}
