//! A Node, digested.

use std::net::IpAddr;

use crate::address::{self, Family};
use crate::objects::Node;
use crate::{Config, NodePortAddresses};

/// What the model keeps of a Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeInfo {
    pub zone: Option<Box<str>>,
    /// All addresses that the Node lists; sorted, unique.
    pub listed: Vec<IpAddr>,
    /// Addresses on which it serves node ports; sorted, unique.
    pub node_port_addresses: Vec<IpAddr>,
    /// Its address of each family.
    pub primary: [Option<IpAddr>; 2],
}

impl NodeInfo {
    /// Digests a Node.
    pub(crate) fn new(node: &Node, config: &Config) -> Self {
        let of_kind = |kind: &'static str| {
            let addresses = node.status.addresses.iter().filter(move |address| address.kind == kind);
            addresses.filter_map(|address| address::parse(&address.address))
        };
        // Internal addresses first: the order of preference of Kubernetes' `GetNodeHostIPs`.
        let hosts: Vec<IpAddr> = of_kind("InternalIP").chain(of_kind("ExternalIP")).collect();
        let primary = Family::BOTH.map(|family| hosts.iter().copied().find(|address| Family::of(*address) == family));
        let admitted = match &config.node_port_addresses {
            NodePortAddresses::Primary => primary.into_iter().flatten().collect(),
            NodePortAddresses::Prefixes(prefixes) => {
                let mut hosts = hosts.clone();
                hosts.retain(|address| prefixes.iter().any(|prefix| prefix.contains(address)));
                hosts
            }
        };
        // Never on loopback, whatever is configured: route_localnet tricks have no place here (CVE-2020-8558).
        let admitted = admitted.into_iter().filter(|address| address::unfit_for_frontend(*address).is_none());
        Self {
            zone: node.zone().map(Into::into),
            listed: sorted(node.status.addresses.iter().filter_map(|address| address::parse(&address.address))),
            node_port_addresses: sorted(admitted),
            primary,
        }
    }

    /// Its address of a family.
    pub(crate) fn primary(&self, family: Family) -> Option<IpAddr> {
        self.primary[family as usize]
    }
}

fn sorted(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut addresses: Vec<_> = addresses.collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}
