//! One Service: may it keep its addresses, and if it has none, which does it get? (`controller/service.go`,
//! `convergeBalancer` and `allocateIPs`; `internal/allocator/allocator.go`)

use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::Family;

use super::{Allocator, Assignment};
use crate::config::{Config, Pool};
use crate::event::{Failure, Reason};
use crate::waiting::{Need, Place};
use crate::wish::{Families, Wish};

/// Whether a Service keeps what it has.
pub(super) enum Verdict {
    /// It does, in this pool.
    Keeps(Arc<str>),
    /// It does, although it asks for something that cannot be read.
    KeepsDespite(Arc<str>, Failure),
    /// It does not: it asks for something else.
    WantsOther,
    /// It may not, and why.
    MayNot(Failure),
}

/// A Service that gets nothing: why, and what it waits for.
pub(super) struct Refusal {
    pub failure: Failure,
    pub waits_for: Vec<Place>,
}

impl Allocator {
    /// Whether a Service may keep addresses, and wants to.
    pub(super) fn verdict(&self, wish: &Wish, addresses: &[IpAddr]) -> Verdict {
        let families: Vec<Family> = addresses.iter().map(|address| Family::of(*address)).collect();
        let one_of_each = matches!(families.as_slice(), [_] | [Family::V4, Family::V6] | [Family::V6, Family::V4]);
        if !one_of_each {
            let message = format!("the addresses {addresses:?} are not one of a family, or one of each");
            return Verdict::MayNot(Failure::new(Reason::NoAddressFamily, "status.loadBalancer.ingress", message));
        }
        let wanted = match &wish.families {
            Ok(wanted) => *wanted,
            Err(failure) => return Verdict::MayNot(failure.clone()),
        };
        if !wanted.admit(&families) {
            return Verdict::WantsOther;
        }
        let pool = match self.allowed(wish, addresses) {
            Ok(pool) => pool,
            Err(why) => {
                let message = format!("may not keep {}, and gets other addresses: {why}", list(addresses));
                return Verdict::MayNot(Failure::new(Reason::ClearAssignment, "status.loadBalancer.ingress", message));
            }
        };
        if wish.pool.as_ref().is_some_and(|(wanted, _)| *wanted != pool.name) {
            return Verdict::WantsOther;
        }
        let name = Arc::clone(&pool.name);
        match &wish.addresses {
            Err(failure) => Verdict::KeepsDespite(name, failure.clone()),
            Ok(Some((wanted, _))) if !same(wanted, addresses) => Verdict::WantsOther,
            Ok(_) => Verdict::Keeps(name),
        }
    }

    /// The pool from which a Service may have these very addresses.
    fn allowed(&self, wish: &Wish, addresses: &[IpAddr]) -> Result<Arc<Pool>, String> {
        let mut pool: Option<&Arc<Pool>> = None;
        for address in addresses {
            let of = self.ledger.pool_of(*address).ok_or_else(|| format!("{address} is in no pool"))?;
            if let Some(first) = pool.filter(|first| first.name != of.name) {
                return Err(format!("{} are in two pools, {} and {}", list(addresses), first.name, of.name));
            }
            pool = Some(of);
        }
        let pool = pool.ok_or("there are none")?;
        if !self.admits(pool, wish) {
            return Err(format!("pool {} is not for this Service (its serviceAllocation)", pool.name));
        }
        self.ledger.may_use(wish, addresses)?;
        Ok(Arc::clone(pool))
    }

    /// Addresses for a Service that has none.
    pub(super) fn choose(&mut self, wish: &Wish, config: &Config) -> Result<Assignment, Refusal> {
        let families = wish.families.clone().map_err(|failure| Refusal { failure, waits_for: Vec::new() })?;
        match (&wish.addresses, &wish.pool) {
            (Err(failure), _) => {
                let failure = Failure { reason: Reason::AllocationFailed, ..failure.clone() };
                Err(Refusal { failure, waits_for: Vec::new() })
            }
            (Ok(Some((addresses, field))), _) => self.these(wish, families, addresses, field),
            (Ok(None), Some((pool, field))) => self.of_named_pool(wish, families, pool, field, config),
            (Ok(None), None) => self.of_any_pool(wish, families, config),
        }
    }

    /// The addresses that it asks for.
    fn these(&self, wish: &Wish, families: Families, addresses: &[IpAddr], field: &str) -> Result<Assignment, Refusal> {
        let fail = |message: String, waits_for: Vec<Place>| {
            Err(Refusal { failure: Failure::new(Reason::AllocationFailed, field, message), waits_for })
        };
        let asked: Vec<Family> = addresses.iter().map(|address| Family::of(*address)).collect();
        let fits = match families {
            // One address is no dual stack, even if two are only preferred.
            Families::Prefer(_) => asked.len() == 2,
            Families::Either => true,
            families => families.admit(&asked),
        };
        if !fits {
            return fail(format!("{} are not of the families of the Service", list(addresses)), Vec::new());
        }
        let pool = match self.allowed(wish, addresses) {
            Ok(pool) => pool,
            Err(why) => {
                return fail(why, addresses.iter().map(|address| Place::Address(*address)).collect());
            }
        };
        if let Some((wanted, _)) = wish.pool.as_ref().filter(|(wanted, _)| *wanted != pool.name) {
            let message = format!("{} are in pool {}, and pool {wanted} is asked for", list(addresses), pool.name);
            return fail(message, Vec::new());
        }
        Ok(Assignment { addresses: addresses.to_vec(), pool: Arc::clone(&pool.name) })
    }

    fn of_named_pool(
        &mut self,
        wish: &Wish,
        families: Families,
        name: &Arc<str>,
        field: &str,
        config: &Config,
    ) -> Result<Assignment, Refusal> {
        let fail = |message: String, waits_for| {
            Err(Refusal { failure: Failure::new(Reason::AllocationFailed, field, message), waits_for })
        };
        let Some(pool) = config.pools.get(name) else {
            return fail(format!("there is no pool {name:?}"), Vec::new());
        };
        if !self.admits(pool, wish) {
            return fail(format!("pool {name} is not for this Service (its serviceAllocation)"), Vec::new());
        }
        match self.best(wish, families, &[pool]) {
            Some(assignment) => Ok(assignment),
            None => fail(
                format!("pool {name} has no free {} that the Service may use", need_words(families)),
                places(wish, families, [pool]),
            ),
        }
    }

    /// From the pools that are for this Service, by priority; then from those that are for all.
    fn of_any_pool(&mut self, wish: &Wish, families: Families, config: &Config) -> Result<Assignment, Refusal> {
        let automatic: Vec<&Arc<Pool>> = config.pools.values().filter(|pool| pool.auto_assign).collect();
        let (mut own, open): (Vec<&Arc<Pool>>, Vec<&Arc<Pool>>) =
            automatic.into_iter().partition(|pool| pool.allocation.is_some());
        own.retain(|pool| self.admits(pool, wish));
        own.sort_by_key(|pool| {
            let priority = pool.allocation.as_ref().and_then(|allocation| allocation.priority);
            (priority.is_none(), priority, Arc::clone(&pool.name))
        });
        let found = self.best(wish, families, &own).or_else(|| self.best(wish, families, &open));
        if let Some(assignment) = found {
            return Ok(assignment);
        }
        let message = if config.pools.is_empty() {
            "there is no IPAddressPool".to_owned()
        } else if own.is_empty() && open.is_empty() {
            "no pool gives addresses to this Service unless it names the pool (autoAssign, serviceAllocation)"
                .to_owned()
        } else {
            let names: Vec<&str> = own.iter().chain(&open).map(|pool| &*pool.name).collect();
            let what = need_words(families);
            format!("no free {what} that the Service may use in any of the pools {}", names.join(", "))
        };
        let waits_for = places(wish, families, own.into_iter().chain(open));
        Err(Refusal { failure: Failure::new(Reason::AllocationFailed, "spec", message), waits_for })
    }

    /// The first pool that has all that is wanted; where two families are only preferred, else the first with the first family,
    /// else the first with the other.
    fn best(&mut self, wish: &Wish, families: Families, pools: &[&Arc<Pool>]) -> Option<Assignment> {
        let (mut first_choice, mut second_choice) = (None, None);
        for pool in pools {
            let mut find = |family| self.ledger.find(&pool.name, family, wish);
            let given = |addresses| Some(Assignment { addresses, pool: Arc::clone(&pool.name) });
            match families {
                Families::One(family) => {
                    if let Some(address) = find(family) {
                        return given(vec![address]);
                    }
                }
                Families::Either => {
                    if let Some(address) = find(Family::V4).or_else(|| find(Family::V6)) {
                        return given(vec![address]);
                    }
                }
                Families::Both => {
                    if let (Some(v4), Some(v6)) = (find(Family::V4), find(Family::V6)) {
                        return given(vec![v4, v6]);
                    }
                }
                Families::Prefer(first) => match (find(Family::V4), find(Family::V6)) {
                    (Some(v4), Some(v6)) => return given(vec![v4, v6]),
                    (Some(one), None) | (None, Some(one)) => {
                        let choice = if Family::of(one) == first { &mut first_choice } else { &mut second_choice };
                        if choice.is_none() {
                            *choice = given(vec![one]);
                        }
                    }
                    (None, None) => {}
                },
            }
        }
        first_choice.or(second_choice)
    }

    /// A second address, of the other family and the same pool, for a Service that prefers two and has one.
    pub(super) fn second(&mut self, wish: &Wish, held: &Assignment) -> Option<Result<IpAddr, Refusal>> {
        let [address] = held.addresses[..] else { return None };
        if !matches!(wish.families, Ok(Families::Prefer(_))) || !matches!(wish.addresses, Ok(None)) {
            return None;
        }
        let missing = if address.is_ipv4() { Family::V6 } else { Family::V4 };
        let found = self.ledger.find(&held.pool, missing, wish);
        Some(found.ok_or_else(|| {
            let mut waits_for = vec![Place::Pool(Arc::clone(&held.pool), Need::One(missing))];
            waits_for.extend(key_place(wish));
            let message = format!("pool {} has no second address for it: no free {missing:?}", held.pool);
            Refusal { failure: Failure::new(Reason::AdditionalAssignFailed, "spec.ipFamilyPolicy", message), waits_for }
        }))
    }
}

/// What a Service waits for that found nothing in pools.
fn places<'a>(wish: &Wish, families: Families, pools: impl IntoIterator<Item = &'a Arc<Pool>>) -> Vec<Place> {
    let need = match families {
        Families::One(family) => Need::One(family),
        Families::Both => Need::Both,
        Families::Prefer(_) | Families::Either => Need::Any,
    };
    let pools = pools.into_iter().map(|pool| Place::Pool(Arc::clone(&pool.name), need));
    pools.chain(key_place(wish)).collect()
}

fn key_place(wish: &Wish) -> Option<Place> {
    (!wish.share.key.is_empty()).then(|| Place::Key(Arc::clone(&wish.share.key)))
}

fn need_words(families: Families) -> &'static str {
    match families {
        Families::One(Family::V4) => "IPv4 address",
        Families::One(Family::V6) => "IPv6 address",
        Families::Both => "pair of an IPv4 and an IPv6 address",
        Families::Prefer(_) | Families::Either => "address",
    }
}

fn same(one: &[IpAddr], other: &[IpAddr]) -> bool {
    one.len() == other.len() && one.iter().all(|address| other.contains(address))
}

/// Addresses as messages write them.
pub(super) fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
