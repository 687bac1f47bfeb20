//! Why a packet was dropped, refused or left to the stack although it looked like ours.

/// A named reason. The number is the index into the per-CPU counters, so a reason is only ever appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// The Service has no endpoint: refused with a reset or ICMP port unreachable.
    NoEndpoints = 0,
    /// The address is ours, the port is not served: refused.
    PortNotServed = 1,
    /// The traffic policy is Local and this node has no endpoint: dropped.
    NoLocalEndpoints = 2,
    /// The client is outside `loadBalancerSourceRanges`: dropped.
    SourceRange = 3,
    /// The packet cannot be parsed (header cut short, impossible length): left to the stack, never translated.
    Malformed = 4,
    /// A later fragment came before its first one: dropped, for its port is unknown.
    FragmentUnknown = 5,
    /// No free port for the translated source address: dropped.
    PortsExhausted = 6,
    /// The link has no address of this family to translate the source to: dropped.
    NoSourceAddress = 7,
    /// The same client tuple reaches the same backend through another frontend and no port was free: dropped.
    FlowCollision = 8,
    /// The flow table did not take a row: the packet went by the table alone.
    FlowTableFull = 9,
    /// A datagram to a backend that is gone, from a socket that was connected to it: refused.
    BackendGone = 10,
    /// A martian: loopback or unspecified address from a link, towards one of our frontends: dropped.
    Martian = 11,
    /// An IPv6 packet with more extension headers than are walked: left to the stack.
    TooManyExtensions = 12,
    /// A frontend without a usable table (the slab was full, or all whom it names are gone): refused.
    NoTable = 13,
}

impl Reason {
    /// How many reasons there are: the size of the counter array.
    pub const COUNT: u32 = 14;

    /// All reasons, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::NoEndpoints,
        Self::PortNotServed,
        Self::NoLocalEndpoints,
        Self::SourceRange,
        Self::Malformed,
        Self::FragmentUnknown,
        Self::PortsExhausted,
        Self::NoSourceAddress,
        Self::FlowCollision,
        Self::FlowTableFull,
        Self::BackendGone,
        Self::Martian,
        Self::TooManyExtensions,
        Self::NoTable,
    ];

    /// The name in metrics, samples and `-o json`: stable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoEndpoints => "no_endpoints",
            Self::PortNotServed => "port_not_served",
            Self::NoLocalEndpoints => "no_local_endpoints",
            Self::SourceRange => "source_range",
            Self::Malformed => "malformed",
            Self::FragmentUnknown => "fragment_unknown",
            Self::PortsExhausted => "ports_exhausted",
            Self::NoSourceAddress => "no_source_address",
            Self::FlowCollision => "flow_collision",
            Self::FlowTableFull => "flow_table_full",
            Self::BackendGone => "backend_gone",
            Self::Martian => "martian",
            Self::TooManyExtensions => "too_many_extensions",
            Self::NoTable => "no_table",
        }
    }
}
