//! What a node has to offer for an address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use culvert_model::ServiceKey;
use culvert_pools::config::L2Advertisement;
use culvert_pools::{Config, Selector};

use super::{Nobody, Node, Report, Service, Silence};

/// A node that can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The links on which it would.
    pub links: BTreeSet<String>,
    pub rank: Rank,
}

/// How good a candidate is; compared field by field. That an address is reachable at all counts more than what an
/// administrator prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    /// With traffic policy Local, each Service has an endpoint there that is not about to end. One that is serves still, but
    /// when it has ended it is too late to look for another node.
    pub lasting: bool,
    /// It is not held down.
    pub steady: bool,
    /// Its links have a connected prefix that holds the address.
    pub connected: bool,
    /// The weights of all preferences that match, each advertisement counted once.
    pub weight: u32,
}

/// An address, with what its Services ask of a node that answers. It is answered for as a whole: whoever has one of its
/// Services has them all, so a node must be able to serve each.
pub(super) struct Asked<'a> {
    address: IpAddr,
    services: Vec<Wanted<'a>>,
}

struct Wanted<'a> {
    key: &'a ServiceKey,
    service: &'a Service,
    advertisements: Vec<&'a L2Advertisement>,
}

impl<'a> Asked<'a> {
    /// # Errors
    /// Why nobody answers, whatever nodes there are.
    pub fn new(config: &'a Config, address: IpAddr, users: &[(&'a ServiceKey, &'a Service)]) -> Result<Self, Nobody> {
        let mut services = Vec::new();
        for (key, service) in users.iter().copied() {
            let Some(pool) = config.pools.get(&service.pool) else { return Err(Nobody::NoPool(key.clone())) };
            let selected = |one: &&L2Advertisement| {
                one.pools.matches(pool) && (one.services.is_empty() || Selector::any(&one.services, &service.labels))
            };
            let advertisements: Vec<_> = config.layer2.iter().filter(selected).collect();
            // A Service that is kept back would be reached with the others, so all are.
            if advertisements.is_empty() {
                return Err(Nobody::NotAdvertised(key.clone()));
            }
            services.push(Wanted { key, service, advertisements });
        }
        // A Service without endpoints is refused anywhere, and binds the address to no node.
        services.retain(|wanted| wanted.service.endpoints);
        if services.is_empty() {
            return Err(Nobody::NoEndpoints);
        }
        Ok(Self { address, services })
    }

    /// What a node offers.
    ///
    /// # Errors
    /// Why it cannot answer.
    pub fn candidate(&self, node: &Node) -> Result<Candidate, Silence> {
        if let Some(out) = &node.out {
            return Err(Silence::Out(out.clone()));
        }
        let selecting = |wanted: &Wanted<'a>| -> Vec<&'a L2Advertisement> {
            let selects = |one: &&&L2Advertisement| one.nodes.is_empty() || Selector::any(&one.nodes, &node.labels);
            wanted.advertisements.iter().filter(selects).copied().collect()
        };
        let selecting: Vec<_> = self.services.iter().map(|wanted| (wanted, selecting(wanted))).collect();
        if let Some((wanted, _)) = selecting.iter().find(|(_, advertisements)| advertisements.is_empty()) {
            return Err(Silence::NotSelected(wanted.key.clone()));
        }
        let Some(report) = &node.report else { return Err(Silence::NoReport) };
        for Wanted { key, service, .. } in &self.services {
            if !report.programmed.contains(key) {
                return Err(Silence::NotProgrammed((*key).clone()));
            }
            if service.local && !report.local.contains(key) {
                return Err(Silence::NoLocalEndpoint((*key).clone()));
            }
        }
        let advertisements: Vec<_> = selecting.iter().map(|(_, advertisements)| advertisements.as_slice()).collect();
        let (links, connected) = self.links(report, &advertisements)?;
        let ends = |wanted: &Wanted<'_>| wanted.service.local && report.ending.contains(wanted.key);
        let lasting = !self.services.iter().any(ends);
        let rank = Rank { lasting, steady: !node.held_down, connected, weight: weight(node, &advertisements) };
        Ok(Candidate { links, rank })
    }

    /// The links that answer: those which all Services are advertised on, and of them the connected ones, if there are.
    fn links(&self, report: &Report, services: &[&[&L2Advertisement]]) -> Result<(BTreeSet<String>, bool), Silence> {
        if report.links.is_empty() {
            return Err(Silence::NoLink);
        }
        let named = |name: &str, one: &L2Advertisement| one.interfaces.is_empty() || one.interfaces.contains(name);
        let all = |name: &str| services.iter().all(|one| one.iter().any(|one| named(name, one)));
        let able: Vec<_> = report.links.iter().filter(|(name, _)| all(name)).collect();
        if able.is_empty() {
            return Err(Silence::NoSuchLink);
        }
        let up: Vec<_> = able.iter().filter(|(_, link)| link.up).collect();
        if up.is_empty() {
            return Err(Silence::LinkDown(able.into_iter().map(|(name, _)| name.clone()).collect()));
        }
        let holds = |link: &super::Link| link.prefixes.iter().any(|prefix| prefix.contains(&self.address));
        let connected: BTreeSet<String> =
            up.iter().filter(|(_, link)| holds(link)).map(|(name, _)| (*name).clone()).collect();
        if connected.is_empty() {
            return Ok((up.into_iter().map(|(name, _)| (*name).clone()).collect(), false));
        }
        Ok((connected, true))
    }
}

fn weight(node: &Node, services: &[&[&L2Advertisement]]) -> u32 {
    let advertisements: BTreeSet<_> = services
        .iter()
        .copied()
        .flatten()
        .map(|advertisement| (&advertisement.key, &advertisement.preferred))
        .collect();
    let preferences = advertisements.into_iter().flat_map(|(_, preferred)| preferred);
    preferences.filter(|(_, selector)| selector.matches(&node.labels)).map(|(weight, _)| u32::from(*weight)).sum()
}
