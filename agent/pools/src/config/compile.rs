//! From resources to a configuration: each object's own rules, then the rules between objects.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::Family;

use super::{BgpAdvertisement, Config, Finding, L2Advertisement, Pool, Violations, bgp, community};
use crate::objects::BgpPeer;
use crate::range::Range;
use crate::resources::{Id, Kind, Resource, Resources};

/// Makes a configuration, or says everything that is wrong.
pub(super) fn config(resources: &Resources) -> Result<Config, Vec<Finding>> {
    let mut compiler = Compiler { resources, findings: Vec::new() };
    let config = compiler.config();
    let mut findings = compiler.findings;
    findings.sort();
    findings.dedup();
    if findings.is_empty() { Ok(config) } else { Err(findings) }
}

struct Compiler<'a> {
    resources: &'a Resources,
    findings: Vec<Finding>,
}

impl Compiler<'_> {
    fn say(&mut self, object: &Id, field: impl Into<String>, message: String) {
        self.findings.push(Finding { object: object.clone(), field: field.into(), message });
    }

    /// Reads one object, and keeps what is wrong with it.
    fn read<T>(&mut self, id: &Id, read: impl FnOnce(&mut Violations) -> T) -> T {
        let mut found = Violations::default();
        let result = read(&mut found);
        for violation in found.into_vec() {
            self.say(id, violation.field, violation.message);
        }
        result
    }

    fn config(&mut self) -> Config {
        let aliases = self.aliases();
        let mut config = Config::default();
        let (mut pools, mut advertisements) = (Vec::new(), Vec::new());
        for resource in self.resources.iter() {
            let id = resource.id();
            match resource {
                Resource::IpAddressPool(object) => {
                    let pool = Arc::new(self.read(&id, |found| Pool::new(object, found)));
                    if let Some(first) = config.pools.insert(Arc::clone(&pool.name), Arc::clone(&pool)) {
                        let message = format!("Duplicate value: there is a pool of this name in {}", first.namespace);
                        self.say(&id, "metadata.name", message);
                    }
                    pools.push((id, pool));
                }
                Resource::L2Advertisement(object) => {
                    config.layer2.push(self.read(&id, |found| L2Advertisement::new(object, found)));
                }
                Resource::BgpAdvertisement(object) => {
                    let advertisement = self.read(&id, |found| BgpAdvertisement::new(object, &aliases, found));
                    advertisements.push((id, advertisement));
                }
                Resource::BgpPeer(object) => {
                    self.read(&id, |found| bgp::peer(object, found));
                    config.peers.push(Arc::clone(object));
                }
                Resource::BfdProfile(object) => {
                    self.read(&id, |found| bgp::bfd_profile(object, found));
                    if config.bfd_profiles.insert(object.metadata.name.clone(), Arc::clone(object)).is_some() {
                        let message = "Duplicate value: there is a profile of this name in another namespace";
                        self.say(&id, "metadata.name", message.to_owned());
                    }
                }
                Resource::Community(_) | Resource::Namespace(_) => {}
            }
        }
        self.overlaps(&pools);
        self.peers(&config);
        self.advertisements(&advertisements, &config);
        config.bgp = advertisements.into_iter().map(|(_, advertisement)| advertisement).collect();
        config
    }

    /// The names of communities, of all objects.
    fn aliases(&mut self) -> BTreeMap<String, super::Community> {
        let mut all = BTreeMap::new();
        let mut holders: BTreeMap<String, Id> = BTreeMap::new();
        for resource in self.resources.iter() {
            let Resource::Community(object) = resource else { continue };
            let id = resource.id();
            for (name, value) in self.read(&id, |found| community::aliases(object, found)) {
                if let Some(holder) = holders.get(&name) {
                    let index = object.spec.communities.iter().position(|alias| alias.name == name).unwrap_or_default();
                    let message = format!("Duplicate value: {name:?} is defined by {holder}");
                    self.say(&id, format!("spec.communities[{index}].name"), message);
                    continue;
                }
                holders.insert(name.clone(), id.clone());
                all.insert(name, value);
            }
        }
        all
    }

    /// No address is in two ranges.
    fn overlaps(&mut self, pools: &[(Id, Arc<Pool>)]) {
        let mut ranges: Vec<(Range, &Id)> =
            pools.iter().flat_map(|(id, pool)| pool.ranges.iter().map(move |range| (*range, id))).collect();
        ranges.sort();
        let mut reach: Option<(Range, &Id)> = None;
        for (range, id) in ranges {
            if let Some((earlier, of)) = reach
                && earlier.family() == range.family()
                && range.first() <= earlier.last()
            {
                let message = if of == id {
                    format!("Invalid value: {range} overlaps with {earlier}")
                } else {
                    format!("Invalid value: {range} overlaps with {earlier} of {of}")
                };
                self.say(id, "spec.addresses", message);
                if range.last() <= earlier.last() {
                    continue;
                }
            }
            reach = Some((range, id));
        }
    }

    fn peers(&mut self, config: &Config) {
        for (i, peer) in config.peers.iter().enumerate() {
            let id = Id { kind: Kind::BgpPeer, key: peer.metadata.key() };
            let profile = &peer.spec.bfd_profile;
            if !profile.is_empty() && !config.bfd_profiles.contains_key(profile) {
                self.say(&id, "spec.bfdProfile", format!("Invalid value: {profile:?}: there is no such BFDProfile"));
            }
            if let Some(twin) = config.peers[..i].iter().find(|twin| twin.spec == peer.spec) {
                let twin = twin.metadata.key();
                self.say(&id, "spec", format!("Duplicate value: BGPPeer/{twin} is the same peer"));
            }
        }
    }

    fn advertisements(&mut self, advertisements: &[(Id, BgpAdvertisement)], config: &Config) {
        for (i, (id, advertisement)) in advertisements.iter().enumerate() {
            for pool in config.pools.values().filter(|pool| advertisement.pools.matches(pool)) {
                self.aggregation(id, advertisement, pool);
                self.echo(id, advertisement, pool, config);
                for (_, other) in &advertisements[..i] {
                    self.one_prefix(id, advertisement, other, pool);
                }
            }
        }
    }

    /// Addresses are rolled up to prefixes that lie inside the pool's: a wider one would announce what others own.
    fn aggregation(&mut self, id: &Id, advertisement: &BgpAdvertisement, pool: &Pool) {
        for range in &pool.ranges {
            let (length, widest) = (advertisement.aggregation(range.family()), range.widest_prefix());
            if length < widest {
                let v6 = if range.family() == Family::V6 { "V6" } else { "" };
                let message = format!(
                    "Invalid value: {length}: is wider than the widest prefix, /{widest}, of {range} in pool {}",
                    pool.name
                );
                self.say(id, format!("spec.aggregationLength{v6}"), message);
            }
        }
    }

    /// One prefix has one `LOCAL_PREF` and one path. Whether advertisements for some Services meet is not known before there are Services.
    fn one_prefix(&mut self, id: &Id, one: &BgpAdvertisement, other: &BgpAdvertisement, pool: &Pool) {
        let attributes = [
            ("spec.localPref", one.local_pref, other.local_pref),
            ("spec.asPathPrepend", one.as_path_prepend.into(), other.as_path_prepend.into()),
        ];
        let same = attributes.iter().all(|(_, here, there)| here == there);
        let for_all = one.services.is_empty() && other.services.is_empty();
        if same || !for_all || !other.pools.matches(pool) || !one.meets(other, pool, self.resources.nodes()) {
            return;
        }
        for (field, here, there) in attributes.into_iter().filter(|(_, here, there)| here != there) {
            let message = format!(
                "Invalid value: {here}: BGPAdvertisement/{} has {there} for the same prefixes of pool {}, nodes and peers",
                other.key, pool.name
            );
            self.say(id, field, message);
        }
    }

    /// BFD's echo packets are of IPv4 (RFC 5881 4 leaves IPv6 open; FRR refuses them).
    fn echo(&mut self, id: &Id, advertisement: &BgpAdvertisement, pool: &Pool, config: &Config) {
        if pool.ranges.iter().all(|range| range.family() == Family::V4) {
            return;
        }
        let told =
            |peer: &&Arc<BgpPeer>| advertisement.peers.is_empty() || advertisement.peers.contains(&peer.metadata.name);
        for peer in config.peers.iter().filter(told) {
            let profile = config.bfd_profiles.get(&peer.spec.bfd_profile);
            if profile.is_some_and(|profile| profile.spec.echo_mode == Some(true)) {
                let message = format!(
                    "Invalid value: peer {} has BFD with echo mode, which the IPv6 addresses of pool {} rule out",
                    peer.metadata.name, pool.name
                );
                self.say(id, "spec.peers", message);
            }
        }
    }
}

/// What is allowed and hardly meant.
pub(super) fn warnings(config: &Config, resources: &Resources) -> Vec<Finding> {
    let mut warnings = Vec::new();
    let mut warn = |kind, key, field: String, message: String| {
        warnings.push(Finding { object: Id { kind, key }, field, message });
    };
    for resource in resources.iter() {
        let (names, peers) = match resource {
            Resource::L2Advertisement(object) => (&object.spec.ip_address_pools, &[][..]),
            Resource::BgpAdvertisement(object) => (&object.spec.ip_address_pools, &object.spec.peers[..]),
            _ => continue,
        };
        let Id { kind, key } = resource.id();
        for (i, name) in names.iter().enumerate().filter(|(_, name)| !config.pools.contains_key(name.as_str())) {
            let message = format!("there is no IPAddressPool {name:?}");
            warn(kind, key.clone(), format!("spec.ipAddressPools[{i}]"), message);
        }
        let exists = |name: &String| config.peers.iter().any(|peer| peer.metadata.name == *name);
        for (i, name) in peers.iter().enumerate().filter(|(_, name)| !exists(name)) {
            warn(kind, key.clone(), format!("spec.peers[{i}]"), format!("there is no BGPPeer {name:?}"));
        }
    }
    for resource in resources.iter() {
        let Resource::IpAddressPool(object) = resource else { continue };
        let Some(pool) = config.pools.get(object.metadata.name.as_str()) else { continue };
        let Id { kind, key } = resource.id();
        let announced = config.layer2.iter().any(|advertisement| advertisement.pools.matches(pool))
            || config.bgp.iter().any(|advertisement| advertisement.pools.matches(pool));
        if !announced {
            let message = "no L2Advertisement or BGPAdvertisement is for this pool: its addresses are given out and not announced";
            warn(kind, key.clone(), "spec".to_owned(), message.to_owned());
        }
        for (name, address) in node_addresses(resources).filter(|(_, address)| pool.contains(*address)) {
            let message = format!("holds {address}, an address of Node {name}");
            warn(kind, key.clone(), "spec.addresses".to_owned(), message);
        }
    }
    warnings.sort();
    warnings
}

fn node_addresses(resources: &Resources) -> impl Iterator<Item = (&str, IpAddr)> {
    resources
        .nodes()
        .iter()
        .flat_map(|(name, node)| node.addresses.iter().map(move |address| (name.as_str(), *address)))
}
