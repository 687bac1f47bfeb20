//! Services that wait for an address, by what they wait for, so that an address that comes free is offered to those it
//! can help and to nobody else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use culvert_model::{Family, ServiceKey};

use crate::wish::Rank;

/// What helps a Service that waits for addresses of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// A free address of this family.
    One(Family),
    /// One of each family.
    Both,
    /// A free address of any family.
    Any,
}

impl Need {
    /// The needs that a free address of a family helps.
    pub(crate) fn helped_by(family: Family) -> [Self; 3] {
        [Self::One(family), Self::Both, Self::Any]
    }

    /// Whether it can be met with free addresses of these families.
    pub(crate) fn met(self, has_free: impl Fn(Family) -> bool) -> bool {
        match self {
            Self::One(family) => has_free(family),
            Self::Both => Family::BOTH.into_iter().all(has_free),
            Self::Any => Family::BOTH.into_iter().any(has_free),
        }
    }
}

/// A thing to wait for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Addresses of a pool.
    Pool(Arc<str>, Need),
    /// This very address.
    Address(IpAddr),
    /// An address shared by this key.
    Key(Arc<str>),
}

/// Those who wait, in their order.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    places: BTreeMap<Place, BTreeSet<Rank>>,
    services: HashMap<ServiceKey, (Rank, Vec<Place>)>,
}

impl Waiting {
    /// A Service waits for any of these from now on, and for nothing else.
    pub(crate) fn set(&mut self, rank: &Rank, places: Vec<Place>) {
        self.remove(&rank.key);
        if places.is_empty() {
            return;
        }
        for place in &places {
            self.places.entry(place.clone()).or_default().insert(rank.clone());
        }
        self.services.insert(rank.key.clone(), (rank.clone(), places));
    }

    /// A Service waits no more.
    pub(crate) fn remove(&mut self, service: &ServiceKey) {
        let Some((rank, places)) = self.services.remove(service) else { return };
        for place in places {
            let Some(ranks) = self.places.get_mut(&place) else { continue };
            ranks.remove(&rank);
            if ranks.is_empty() {
                self.places.remove(&place);
            }
        }
    }

    /// Everybody at a place.
    pub(crate) fn at(&self, place: &Place) -> impl Iterator<Item = &Rank> {
        self.places.get(place).into_iter().flatten()
    }

    /// The first at a place, or the first after another.
    pub(crate) fn next(&self, place: &Place, after: Option<&Rank>) -> Option<&Rank> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.places.get(place)?.range((from, Bound::Unbounded)).next()
    }
}
