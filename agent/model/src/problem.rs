//! Problems: the stable reasons, and where they are. `docs/PROBLEMS.md` explains each to users.

use std::fmt::Display;

use culvert_api::plan::{Problem, ServiceKey};

use crate::objects::ObjectKey;

/// What is wrong; the name is the stable identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// `spec.type` is none of the four.
    InvalidType,
    /// A port outside 1 to 65535.
    InvalidPort,
    /// A protocol other than TCP, UDP and SCTP.
    InvalidProtocol,
    /// A node port outside 1 to 65535.
    InvalidNodePort,
    /// Text that is no address.
    InvalidAddress,
    /// Text that is no prefix.
    InvalidSourceRange,
    /// An affinity time-out outside 1 to 86,400 seconds.
    InvalidAffinityTimeout,
    /// An address that cannot be a Service's.
    UnusableAddress,
    /// An address of a family for which the Service has no ClusterIP.
    AddressFamilyNotServed,
    /// An external address outside `--allow-external-ips`.
    ExternalIPNotAllowed,
    /// Our own pools give the Service no address.
    AllocationFailed,
    /// The Service asks our own pools for what they cannot read, and keeps the addresses that it has.
    LoadBalancerFailed,
    /// Two ports of one Service with the same number and protocol.
    ConflictPort,
    /// Another Service holds the address, port and protocol.
    ConflictAddress,
    /// Another Service holds the node port.
    ConflictNodePort,
    /// Another Service holds the health check's port.
    ConflictHealthCheckNodePort,
    /// `addressType` is none of the three.
    InvalidAddressType,
    /// An endpoint's address that is none, or is not of the slice's family.
    InvalidEndpointAddress,
    /// An endpoint's port outside 1 to 65535.
    InvalidEndpointPort,
    /// An endpoint's address to which no Service may lead.
    EndpointAddressRefused,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 20] = [
        Self::InvalidType,
        Self::InvalidPort,
        Self::InvalidProtocol,
        Self::InvalidNodePort,
        Self::InvalidAddress,
        Self::InvalidSourceRange,
        Self::InvalidAffinityTimeout,
        Self::UnusableAddress,
        Self::AddressFamilyNotServed,
        Self::ExternalIPNotAllowed,
        Self::AllocationFailed,
        Self::LoadBalancerFailed,
        Self::ConflictPort,
        Self::ConflictAddress,
        Self::ConflictNodePort,
        Self::ConflictHealthCheckNodePort,
        Self::InvalidAddressType,
        Self::InvalidEndpointAddress,
        Self::InvalidEndpointPort,
        Self::EndpointAddressRefused,
    ];

    /// The identifier, as it stands in [`Problem::reason`].
    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// A problem of a Service's field.
pub(crate) fn of_service(reason: Reason, service: &ServiceKey, field: impl Display, message: String) -> Problem {
    Problem {
        reason: reason.name(),
        message,
        field: field.to_string(),
        object: format!("Service/{}/{}", service.namespace, service.name),
    }
}

/// A problem of an EndpointSlice's field.
pub(crate) fn of_slice(reason: Reason, slice: &ObjectKey, field: impl Display, message: String) -> Problem {
    Problem {
        reason: reason.name(),
        message,
        field: field.to_string(),
        object: format!("EndpointSlice/{}/{}", slice.namespace, slice.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_explained() {
        let text = include_str!("../../../docs/PROBLEMS.md");
        let explained: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("### ")).collect();
        for reason in Reason::ALL {
            assert!(explained.contains(&&*reason.name()), "docs/PROBLEMS.md lacks {}", reason.name());
        }
        assert_eq!(explained.len(), Reason::ALL.len(), "docs/PROBLEMS.md explains what there is not");
    }
}
