//! All maps, and the choice between the two of a family.
//!
//! Sizes here are what a small node needs; the agent sets its own before it loads the programs. The names are those
//! of the pins. Code that is generic over the address width `W` asks for `maps::flows::<W>()`, and so exists once.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, lpm_trie},
};
use culvert_abi::{
    Affinity, AffinityKey, Announced, AnnouncedCounters, AnnouncedKey, Backend, BackendCounters, BeatCounters, Config,
    Datagram, DatagramKey, Event, Flow, FlowKey, Fragment, FragmentKey, Frontend, FrontendKey, Grant, Link, Liveness,
    PAGE_UNITS, Reason, Rival, ServiceCounters, Socket, V4, V6, program,
};

// Hash maps that the agent fills take memory as they fill; what the programs fill (LRU) is always allocated whole.
const GROWING: u32 = BPF_F_NO_PREALLOC;

/// Declares a map for each family, and the function that picks one of them by `W`.
macro_rules! families {
    ($($(#[$meta:meta])* $pick:ident: $v4:ident, $v6:ident = $kind:ident<$($arg:ty),+>($size:expr, $flags:expr);)*) => {$(
        #[map]
        static $v4: width::$pick<V4> = $kind::with_max_entries($size, $flags);
        #[map]
        static $v6: width::$pick<V6> = $kind::with_max_entries($size, $flags);

        $(#[$meta])*
        #[inline(always)]
        pub fn $pick<const W: usize>() -> &'static width::$pick<W> {
            const { assert!(W == V4 || W == V6) };
            let map = if W == V4 { (&raw const $v4).cast() } else { (&raw const $v6).cast() };
            // SAFETY: the pointer is to a static of exactly the type that `W` makes of the alias: the branch above
            // and the assertion leave no other `W`.
            unsafe { &*map }
        }
    )*
    /// The map types as functions of the address width.
    #[allow(non_camel_case_types)]
    mod width {
        use super::*;
        $(pub type $pick<const W: usize> = $kind<$($arg),+>;)*
    }};
}

/// What follows the prefix length in a key of `RANGES_V4/V6`: the rest of [`culvert_abi::RangeKey`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RangeData<const W: usize> {
    /// Id of the set, host order.
    pub ranges: u32,
    /// Source address, network order.
    pub addr: [u32; W],
}

families! {
    /// What an address means to the programs: bits of [`culvert_abi::address`].
    addresses: ADDRESSES_V4, ADDRESSES_V6 = HashMap<[u32; W], u32>(16_384, GROWING);
    /// Frontends by address, port and protocol.
    frontends: FRONTENDS_V4, FRONTENDS_V6 = HashMap<FrontendKey<W>, Frontend>(16_384, GROWING);
    /// Backends by id.
    backends: BACKENDS_V4, BACKENDS_V6 = Array<Backend<W>>(16_384, 0);
    /// Allowed source prefixes; the value says nothing.
    ranges: RANGES_V4, RANGES_V6 = LpmTrie<RangeData<W>, u32>(4_096, 0);
    /// Flows without a reply yet.
    flows_new: FLOWS_NEW_V4, FLOWS_NEW_V6 = LruHashMap<FlowKey<W>, Flow<W>>(16_384, 0);
    /// Flows seen in both directions.
    flows: FLOWS_V4, FLOWS_V6 = LruHashMap<FlowKey<W>, Flow<W>>(65_536, 0);
    /// `FLOWS_NEW` of another map layout, while its rows are still in use.
    previous_flows_new: PREVIOUS_FLOWS_NEW_V4, PREVIOUS_FLOWS_NEW_V6 = LruHashMap<FlowKey<W>, Flow<W>>(1_024, 0);
    /// `FLOWS` of another map layout, while its rows are still in use.
    previous_flows: PREVIOUS_FLOWS_V4, PREVIOUS_FLOWS_V6 = LruHashMap<FlowKey<W>, Flow<W>>(1_024, 0);
    /// Ports of fragmented datagrams.
    fragments: FRAGMENTS_V4, FRAGMENTS_V6 = LruHashMap<FragmentKey<W>, Fragment>(8_192, 0);
    /// Counters of backends, by id; added to atomically.
    backend_counters: BACKEND_COUNTERS_V4, BACKEND_COUNTERS_V6 = Array<BackendCounters>(16_384, 0);
}

impl<const W: usize> RangeData<W> {
    /// The key that asks for a whole address.
    #[inline(always)]
    pub const fn host(self) -> lpm_trie::Key<Self> {
        lpm_trie::Key::new(32 + 32 * W as u32, self)
    }
}

/// Where each backend list lies in `SLAB`: [`culvert_abi::Table`], packed. The agent writes it through a mapping.
#[map]
pub static TABLES: Array<u64> = Array::with_max_entries(16_384, BPF_F_MMAPABLE);

/// Backend lists and Maglev slots, in pages. The agent writes them through a mapping.
#[map]
pub static SLAB: Array<[u16; PAGE_UNITS]> = Array::with_max_entries(1_024, BPF_F_MMAPABLE);

/// A bit for each address that has been a flow's backend; see [`crate::filter`].
#[map]
pub static BACKEND_FILTER: Array<u64> = Array::with_max_entries(crate::filter::WORDS, 0);

/// Session affinity.
#[map]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity> = LruHashMap::with_max_entries(16_384, 0);

/// Hooked links by ifindex.
#[map]
pub static LINKS: HashMap<u32, Link> = HashMap::with_max_entries(4_096, GROWING);

/// Addresses that are answered for, by link.
#[map]
pub static ANNOUNCED: HashMap<AnnouncedKey, Announced> = HashMap::with_max_entries(16_384, GROWING);

/// What was heard of them.
#[map]
pub static ANNOUNCED_COUNTERS: HashMap<AnnouncedKey, AnnouncedCounters> = HashMap::with_max_entries(16_384, GROWING);

/// Hosts that use such an address, as [`Rival`].
#[map]
pub static RIVALS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// Who may grant what to this node.
#[map]
pub static LIVENESS: HashMap<u32, Liveness> = HashMap::with_max_entries(1, 0);

/// Nodes whose beats are answered, by number: until when, of the boot clock.
#[map]
pub static VOTERS: HashMap<u64, u64> = HashMap::with_max_entries(1_024, GROWING);

/// What they grant, by number.
#[map]
pub static GRANTS: HashMap<u64, Grant> = HashMap::with_max_entries(1_024, 0);

/// Stamps up to here count no more. Only the programs write it.
#[map]
pub static FLOOR: Array<u64> = Array::with_max_entries(1, 0);

/// What became of beats.
#[map]
pub static BEATS: PerCpuArray<BeatCounters> = PerCpuArray::with_max_entries(1, 0);

/// Where `node_ingress` goes on with packets whose handling the verifier is to see apart: [`culvert_abi::program`].
#[map]
pub static PROGRAMS: ProgramArray = ProgramArray::with_max_entries(program::COUNT, 0);

/// What connected sockets asked for and got; the kernel frees a row with its socket.
#[btf_map]
pub static SOCKETS: SkStorage<Socket> = SkStorage::new();

/// Peers of unconnected UDP sockets.
#[map]
pub static DATAGRAMS: LruHashMap<DatagramKey, Datagram> = LruHashMap::with_max_entries(16_384, 0);

/// Counters of Service ports, by id.
#[map]
pub static SERVICE_COUNTERS: PerCpuArray<ServiceCounters> = PerCpuArray::with_max_entries(8_192, 0);

/// How often each [`Reason`] was met.
#[map]
pub static REASONS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::COUNT, 0);

/// Samples of dropped and refused packets, as [`Event`].
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// What this CPU may still sample: the window's number and the samples in it. Private to the programs.
#[map]
pub static SAMPLING: PerCpuArray<[u32; 2]> = PerCpuArray::with_max_entries(1, 0);

const _: () = {
    assert!(size_of::<Event>().is_multiple_of(8), "the ring buffer's records are aligned to 8");
    assert!(size_of::<Rival>().is_multiple_of(8), "the ring buffer's records are aligned to 8");
};

/// Read-only data, set by the agent before the programs are loaded. The verifier knows the values and prunes.
#[unsafe(no_mangle)]
static CONFIG: Global<Config> = Global::new(Config::zeroed());

/// Reads one field of `CONFIG`, and nothing else of it.
macro_rules! config_field {
    ($($(#[$meta:meta])* $field:ident: $ty:ty;)*) => {$(
        $(#[$meta])*
        #[inline(always)]
        pub fn $field() -> $ty {
            let config = (&raw const CONFIG).cast::<Config>();
            // SAFETY: `Global` is transparent over a `Config` that is always initialised. The read is volatile
            // because the agent replaces the value after compilation.
            unsafe { (&raw const (*config).$field).read_volatile() }
        }
    )*};
}

/// Fields of `CONFIG`.
pub mod config {
    use super::{CONFIG, Config};

    config_field! {
        /// Cookie of the node's network namespace.
        host_netns: u64;
        /// One of [`culvert_abi::socket_mode`].
        socket_mode: u32;
        /// First port for translated sources, host order.
        port_low: u16;
        /// Last port for translated sources, host order, inclusive.
        port_high: u16;
        /// Bits of [`culvert_abi::config`].
        flags: u32;
        /// Where beats are taken, network order; 0 = nowhere.
        beat_port: u16;
    }
}
