//! Who should answer for an address.
//!
//! ```text
//! node ──────► out: the node answers for nothing (label, drain, taint, ...)
//! candidate ─► for one address: the links a node would answer on, or what it lacks
//! rank ──────► the best candidates: with endpoints that last, steady, connected, preferred
//! spread ────► one of the best for every address, evenly
//! ```
//!
//! How they are spread: who holds an address keeps it while it is among the best. Addresses without a holder go by
//! rendezvous hashing to the best that have room, which is exactly their even share (bounded loads with no slack). What
//! is still uneven then, such as after a node came, is evened out by single moves from the node with the most. Plain
//! rendezvous hashing would leave loads uneven (three addresses on one of three nodes are nothing unusual) and
//! consistent hashing with bounded loads moves addresses that have a good holder; with holders as an input neither is
//! needed: a node that goes moves its own addresses only, a node that comes takes its share and not one more.
//!
//! What was taken over so far does not change the rest: a choice made with a part of its own result as holders is the
//! same one. So nodes that see each other's take-overs at different times still agree.

mod candidate;
mod node;
mod reason;
mod spread;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::ServiceKey;
use culvert_pools::Config;
use ipnet::IpNet;

use candidate::Candidate;
pub use node::{EXCLUDE_LABEL, Settings, out};
pub use reason::{Nobody, Out, Silence};

/// A node, as far as the choice is concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Labels of its object.
    pub labels: BTreeMap<String, String>,
    /// Why it answers for nothing, if so.
    pub out: Option<Out>,
    /// It came back a short time ago, and waits: it answers only where no other can.
    pub held_down: bool,
    /// What its agent says of it; `None` = nothing is heard of it.
    pub report: Option<Report>,
}

/// What an agent says of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Links on which addresses can be answered for, by name.
    pub links: BTreeMap<String, Link>,
    /// Services that its kernel holds.
    pub programmed: BTreeSet<ServiceKey>,
    /// Services of which an endpoint is on the node that may get traffic.
    pub local: BTreeSet<ServiceKey>,
    /// Those of them whose endpoints on the node are all about to end.
    pub ending: BTreeSet<ServiceKey>,
}

/// A link of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// It is up and has carrier.
    pub up: bool,
    /// Prefixes that are connected to it.
    pub prefixes: Vec<IpNet>,
}

/// A Service that has addresses of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its labels, for advertisements to select it by.
    pub labels: BTreeMap<String, String>,
    /// The pool of its addresses.
    pub pool: Arc<str>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// `externalTrafficPolicy: Local`.
    pub local: bool,
    /// It has a ready endpoint anywhere.
    pub endpoints: bool,
}

/// Everything that the choice depends on.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Pools and advertisements.
    pub config: Arc<Config>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Services that have addresses.
    pub services: BTreeMap<ServiceKey, Service>,
    /// Which node holds an address now; what is not true any more does no harm.
    pub holders: BTreeMap<IpAddr, String>,
}

/// Who answers for an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Who answers, or why nobody does.
    pub answer: Result<Answer, Nobody>,
    /// Why each of the other nodes does not.
    pub silent: BTreeMap<String, Silence>,
}

/// The node that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its name.
    pub node: String,
    /// The links on which it answers.
    pub links: BTreeSet<String>,
    /// Whether these links have a connected prefix that holds the address.
    pub connected: bool,
}

impl Inputs {
    /// Chooses, for every address of every Service.
    pub fn choose(&self) -> BTreeMap<IpAddr, Choice> {
        let mut users: BTreeMap<IpAddr, Vec<(&ServiceKey, &Service)>> = BTreeMap::new();
        for (key, service) in &self.services {
            for address in &service.addresses {
                users.entry(*address).or_default().push((key, service));
            }
        }
        let asked = users.into_iter().map(|(address, users)| (address, self.contenders(address, &users)));
        let asked: BTreeMap<IpAddr, Contenders<'_>> = asked.collect();
        let best = asked.iter().filter_map(|(address, asked)| Some((*address, asked.as_ref().ok()?.best())));
        let best = best.filter(|(_, best)| !best.is_empty()).collect();
        let chosen = spread::spread(&best, &self.holders);
        asked.into_iter().map(|(address, asked)| (address, choice(asked, chosen.get(&address).copied()))).collect()
    }

    /// What each node has to offer for an address, or why nobody answers whoever there is.
    fn contenders(&self, address: IpAddr, users: &[(&ServiceKey, &Service)]) -> Contenders<'_> {
        let asked = candidate::Asked::new(&self.config, address, users)?;
        let offers = self.nodes.iter().map(|(name, node)| (name.as_str(), asked.candidate(node)));
        Ok(Offers(offers.collect()))
    }
}

type Contenders<'a> = Result<Offers<'a>, Nobody>;

/// What each node has to offer for an address.
struct Offers<'a>(BTreeMap<&'a str, Result<Candidate, Silence>>);

impl<'a> Offers<'a> {
    /// The nodes that are better than all others, and equal to one another.
    fn best(&self) -> BTreeSet<&'a str> {
        let able = || self.0.iter().filter_map(|(name, offer)| Some((*name, offer.as_ref().ok()?.rank)));
        let highest = able().map(|(_, rank)| rank).max();
        able().filter(|(_, rank)| Some(*rank) == highest).map(|(name, _)| name).collect()
    }
}

fn choice(offers: Contenders<'_>, chosen: Option<&str>) -> Choice {
    let Offers(offers) = match offers {
        Ok(offers) => offers,
        Err(nobody) => return Choice { answer: Err(nobody), silent: BTreeMap::new() },
    };
    let winner = chosen.and_then(|name| Some((name, offers.get(name)?.clone().ok()?)));
    let mut silent = BTreeMap::new();
    for (name, offer) in offers {
        let silence = match (offer, &winner) {
            (Err(silence), _) => silence,
            (Ok(offer), Some((winner, best))) if name != *winner => Silence::other(winner, best.rank, offer.rank),
            (Ok(_), _) => continue,
        };
        silent.insert(name.to_owned(), silence);
    }
    let answer = match winner {
        Some((name, Candidate { links, rank })) => {
            Ok(Answer { node: name.to_owned(), links, connected: rank.connected })
        }
        None => Err(Nobody::NoNode),
    };
    Choice { answer, silent }
}
