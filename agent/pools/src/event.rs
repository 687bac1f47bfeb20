//! What users are told about a Service's addresses, with the reasons that MetalLB gives.

/// Why. The names are those of MetalLB's events, for people and tools that know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The Service got addresses, or a second one.
    Allocated,
    /// It gets none, and why.
    AllocationFailed,
    /// It may not keep what it had.
    ClearAssignment,
    /// It prefers two families and has one.
    AdditionalAssignFailed,
    /// What it asks for cannot be read; it keeps what it has.
    LoadBalancerFailed,
    /// It requires two families and has one ClusterIP.
    NotEnoughClusterIps,
    /// The addresses in its status make no family.
    NoAddressFamily,
    /// Its ClusterIPs make no family.
    NoClusterIpFamily,
    /// It has an annotation of the old prefix.
    DeprecatedAnnotation,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Allocated,
        Self::AllocationFailed,
        Self::ClearAssignment,
        Self::AdditionalAssignFailed,
        Self::LoadBalancerFailed,
        Self::NotEnoughClusterIps,
        Self::NoAddressFamily,
        Self::NoClusterIpFamily,
        Self::DeprecatedAnnotation,
    ];

    /// The event's reason.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allocated => "IPAllocated",
            Self::AllocationFailed => "AllocationFailed",
            Self::ClearAssignment => "ClearAssignment",
            Self::AdditionalAssignFailed => "AdditionalAssignFailed",
            Self::LoadBalancerFailed => "LoadBalancerFailed",
            Self::NotEnoughClusterIps => "not enough clusterips",
            Self::NoAddressFamily => "nolbIPsIPFamily",
            Self::NoClusterIpFamily => "noclusterIPsIPFamily",
            Self::DeprecatedAnnotation => "deprecatedAnnotation",
        }
    }

    /// Whether the event's type is `Warning`; else it is `Normal`.
    pub const fn is_warning(self) -> bool {
        !matches!(self, Self::Allocated | Self::ClearAssignment | Self::AdditionalAssignFailed)
    }
}

/// Something that happened to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Why it is told.
    pub reason: Reason,
    /// One sentence.
    pub message: String,
}

/// Why a Service has not what it asks for, as long as that is so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub reason: Reason,
    /// The field that asks.
    pub field: String,
    /// One sentence.
    pub message: String,
}

impl Failure {
    pub(crate) fn new(reason: Reason, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason, field: field.into(), message: message.into() }
    }

    pub(crate) fn event(&self) -> Event {
        Event { reason: self.reason, message: self.message.clone() }
    }
}
