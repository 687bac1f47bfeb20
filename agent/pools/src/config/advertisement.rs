//! Advertisements: what is announced, by whom, and how.

use std::collections::{BTreeMap, BTreeSet};

use culvert_model::Family;
use culvert_model::objects::ObjectKey;

use super::community::Community;
use super::{Pool, Violations};
use crate::objects;
use crate::resources::NodeFacts;
use crate::selector::Selector;

/// Which pools an advertisement is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolChoice {
    /// By name.
    pub names: BTreeSet<String>,
    /// By label.
    pub selectors: Vec<Selector>,
}

impl PoolChoice {
    fn new(names: &[String], selectors: &[objects::LabelSelector], found: &mut Violations) -> Self {
        found.unique("spec.ipAddressPools", names);
        let selectors = Selector::list(selectors, "spec.ipAddressPoolSelectors", found);
        Self { names: names.iter().cloned().collect(), selectors }
    }

    /// Whether a pool is one of them: by name or by label, and every pool if there are neither.
    pub fn matches(&self, pool: &Pool) -> bool {
        (self.names.is_empty() && self.selectors.is_empty())
            || self.names.contains(&*pool.name)
            || Selector::any(&self.selectors, &pool.labels)
    }
}

/// Announcement by ARP and NDP. Empty lists mean all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L2Advertisement {
    /// Its object.
    pub key: ObjectKey,
    /// Pools whose addresses are announced.
    pub pools: PoolChoice,
    /// Nodes that may announce.
    pub nodes: Vec<Selector>,
    /// Interfaces to announce on, by name.
    pub interfaces: BTreeSet<String>,
    /// Services whose addresses are announced.
    pub services: Vec<Selector>,
    /// Nodes that should announce rather than others, with their weight, 1 to 100.
    pub preferred: Vec<(u8, Selector)>,
}

impl L2Advertisement {
    pub(super) fn new(object: &objects::L2Advertisement, found: &mut Violations) -> Self {
        let spec = &object.spec;
        let preferred = spec.preferred_node_selectors.iter().enumerate().map(|(i, preference)| {
            let field = format!("spec.preferredNodeSelectors[{i}]");
            let weight = found.within(&format!("{field}.weight"), Some(preference.weight), 1, 100);
            let selector = Selector::new(&preference.preference, &format!("{field}.preference"), found);
            (weight.unwrap_or_default() as u8, selector)
        });
        let preferred = preferred.collect();
        Self {
            key: object.metadata.key(),
            pools: PoolChoice::new(&spec.ip_address_pools, &spec.ip_address_pool_selectors, found),
            nodes: Selector::list(&spec.node_selectors, "spec.nodeSelectors", found),
            interfaces: spec.interfaces.iter().cloned().collect(),
            services: Selector::list(&spec.service_selectors, "spec.serviceSelectors", found),
            preferred,
        }
    }
}

/// Announcement by BGP. Empty lists mean all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpAdvertisement {
    /// Its object.
    pub key: ObjectKey,
    /// Pools whose addresses are announced.
    pub pools: PoolChoice,
    /// Nodes that announce.
    pub nodes: Vec<Selector>,
    /// Names of the peers that are told.
    pub peers: BTreeSet<String>,
    /// Services whose addresses are announced.
    pub services: Vec<Selector>,
    /// Prefix length that IPv4 addresses are rolled up to.
    pub aggregation_v4: u8,
    /// Prefix length that IPv6 addresses are rolled up to.
    pub aggregation_v6: u8,
    /// `LOCAL_PREF` towards internal peers; 0 = not set.
    pub local_pref: u32,
    /// How often our AS number is put in front of the path once more, 0 to 10.
    pub as_path_prepend: u8,
    /// Communities.
    pub communities: BTreeSet<Community>,
}

impl BgpAdvertisement {
    pub(super) fn new(
        object: &objects::BgpAdvertisement,
        aliases: &BTreeMap<String, Community>,
        found: &mut Violations,
    ) -> Self {
        let mut advertisement = Self::alone(object, found);
        for (i, text) in object.spec.communities.iter().enumerate() {
            match aliases.get(text).copied().or_else(|| Community::parse(text)) {
                Some(community) => drop(advertisement.communities.insert(community)),
                // What looks like a value has been refused already.
                None if text.contains(':') => {}
                None => {
                    let rule = "is the name of no community that a Community object defines";
                    found.invalid(&format!("spec.communities[{i}]"), text, rule);
                }
            }
        }
        advertisement
    }

    /// All but the communities, whose names stand in other objects.
    pub(super) fn alone(object: &objects::BgpAdvertisement, found: &mut Violations) -> Self {
        let spec = &object.spec;
        let v4 = found.within("spec.aggregationLength", spec.aggregation_length, 1, 32).unwrap_or(32) as u8;
        let v6 = found.within("spec.aggregationLengthV6", spec.aggregation_length_v6, 1, 128).unwrap_or(128) as u8;
        let local_pref = found.within("spec.localPref", Some(spec.local_pref), 0, u32::MAX.into());
        let as_path_prepend = found.within("spec.asPathPrepend", spec.as_path_prepend, 1, 10);
        found.unique("spec.communities", &spec.communities);
        for (i, text) in spec.communities.iter().enumerate() {
            if text.contains(':') && Community::parse(text).is_none() {
                let rule = "must be A:B with numbers up to 65535, or large:A:B:C with numbers up to 4294967295";
                found.invalid(&format!("spec.communities[{i}]"), text, rule);
            }
        }
        found.unique("spec.peers", &spec.peers);
        let exclusive = "may not be set together with `serviceSelectors`: a prefix holds addresses of other Services";
        if !spec.service_selectors.is_empty() && v4 != 32 {
            found.forbidden("spec.aggregationLength", exclusive);
        }
        if !spec.service_selectors.is_empty() && v6 != 128 {
            found.forbidden("spec.aggregationLengthV6", exclusive);
        }
        Self {
            key: object.metadata.key(),
            pools: PoolChoice::new(&spec.ip_address_pools, &spec.ip_address_pool_selectors, found),
            nodes: Selector::list(&spec.node_selectors, "spec.nodeSelectors", found),
            peers: spec.peers.iter().cloned().collect(),
            services: Selector::list(&spec.service_selectors, "spec.serviceSelectors", found),
            aggregation_v4: v4,
            aggregation_v6: v6,
            local_pref: local_pref.unwrap_or_default(),
            as_path_prepend: as_path_prepend.unwrap_or_default() as u8,
            communities: BTreeSet::new(),
        }
    }

    /// The prefix length that addresses of a family are rolled up to.
    pub fn aggregation(&self, family: Family) -> u8 {
        match family {
            Family::V4 => self.aggregation_v4,
            Family::V6 => self.aggregation_v6,
        }
    }

    /// Whether two advertisements may announce the same prefix of a pool to the same peer from the same node.
    pub(super) fn meets(&self, other: &Self, pool: &Pool, nodes: &BTreeMap<String, NodeFacts>) -> bool {
        let mut families = pool.ranges.iter().map(super::Range::family);
        let same_prefix = families.any(|family| self.aggregation(family) == other.aggregation(family));
        let same_peer = self.peers.is_empty() || other.peers.is_empty() || !self.peers.is_disjoint(&other.peers);
        same_prefix && same_peer && self.shares_node(other, nodes)
    }

    /// Where no Node is known, selectors that differ are taken to select different ones.
    fn shares_node(&self, other: &Self, nodes: &BTreeMap<String, NodeFacts>) -> bool {
        if nodes.is_empty() {
            return self.nodes.is_empty() || other.nodes.is_empty() || self.nodes == other.nodes;
        }
        let selects =
            |selectors: &[Selector], node: &NodeFacts| selectors.is_empty() || Selector::any(selectors, &node.labels);
        nodes.values().any(|node| selects(&self.nodes, node) && selects(&other.nodes, node))
    }
}
