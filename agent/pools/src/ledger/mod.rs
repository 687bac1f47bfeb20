//! Who holds which address, and which are free.

mod free;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::{Family, ServiceKey};

use self::free::Free;
use crate::config::{Config, Pool};
use crate::range::{is_buggy, number};
use crate::wish::{Port, Share, Wish};

/// All addresses in use.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// By address.
    used: BTreeMap<IpAddr, Use>,
    pools: BTreeMap<Arc<str>, PoolLedger>,
    /// Every range by its first address: its pool, and its place there.
    ranges: BTreeMap<(Family, u128), (Arc<str>, usize)>,
    /// Addresses that may be shared, by their key.
    shared: HashMap<Share, BTreeSet<IpAddr>>,
    /// Addresses looked at: what the searching costs.
    pub looked_at: u64,
}

/// An address in use.
#[derive(Debug)]
struct Use {
    share: Share,
    users: BTreeMap<ServiceKey, Vec<Port>>,
}

#[derive(Debug)]
struct PoolLedger {
    pool: Arc<Pool>,
    ranges: Vec<Free>,
    used: BTreeMap<Family, i64>,
}

impl Ledger {
    /// Takes other pools. What is in use stays in use, inside or outside of them.
    pub(crate) fn set_pools(&mut self, config: &Config) {
        self.pools.clear();
        self.ranges.clear();
        for (name, pool) in &config.pools {
            for (i, range) in pool.ranges.iter().enumerate() {
                self.ranges.insert((range.family(), number(range.first())), (Arc::clone(name), i));
            }
            let ranges = pool.ranges.iter().map(|range| Free::new(*range, pool.avoid_buggy)).collect();
            let ledger = PoolLedger { pool: Arc::clone(pool), ranges, used: BTreeMap::new() };
            self.pools.insert(Arc::clone(name), ledger);
        }
        let used: Vec<IpAddr> = self.used.keys().copied().collect();
        for address in used {
            self.occupy(address);
        }
    }

    /// The pool that gives out an address.
    pub(crate) fn pool_of(&self, address: IpAddr) -> Option<&Arc<Pool>> {
        let (name, range) = self.range_of(address)?;
        let PoolLedger { pool, ranges, .. } = self.pools.get(name)?;
        let given = ranges.get(range)?.range().contains(address) && !(pool.avoid_buggy && is_buggy(address));
        given.then_some(pool)
    }

    /// Whether a Service may hold addresses that others may hold as well. The error says why not.
    pub(crate) fn may_use(&self, wish: &Wish, addresses: &[IpAddr]) -> Result<(), String> {
        addresses.iter().try_for_each(|address| self.may_use_one(wish, *address))
    }

    fn may_use_one(&self, wish: &Wish, address: IpAddr) -> Result<(), String> {
        let Some(Use { share, users }) = self.used.get(&address) else { return Ok(()) };
        let mut others = users.iter().filter(|(user, _)| **user != wish.rank.key).peekable();
        let Some((holder, _)) = others.peek() else { return Ok(()) };
        if share.key.is_empty() {
            return Err(format!("{address} is held by Service {holder}, which shares with nobody"));
        }
        if share.key != wish.share.key {
            return Err(format!("{address} is held by Service {holder}, which shares by the key {:?}", share.key));
        }
        if share.backends != wish.share.backends {
            let rule = "with externalTrafficPolicy Local only Services with the same selector share, all of them Local";
            return Err(format!("{address} is held by Service {holder}: {rule}"));
        }
        for (holder, ports) in others {
            if let Some((protocol, port)) = ports.iter().find(|port| wish.ports.binary_search(port).is_ok()) {
                return Err(format!("port {port}/{protocol} of {address} is held by Service {holder}"));
            }
        }
        Ok(())
    }

    /// Enters a Service as a user of addresses that it may use.
    pub(crate) fn enter(&mut self, wish: &Wish, addresses: &[IpAddr]) {
        for address in addresses {
            if !self.used.contains_key(address) {
                self.used.insert(*address, Use { share: Share::default(), users: BTreeMap::new() });
                self.occupy(*address);
            }
            let Some(used) = self.used.get_mut(address) else { continue };
            used.users.insert(wish.rank.key.clone(), wish.ports.clone());
            let old = std::mem::replace(&mut used.share, wish.share.clone());
            if old != wish.share {
                self.unshare(&old, *address);
            }
            if !wish.share.key.is_empty() {
                self.shared.entry(wish.share.clone()).or_default().insert(*address);
            }
        }
    }

    /// The ports and the key with which a Service uses an address.
    pub(crate) fn entry(&self, address: IpAddr, service: &ServiceKey) -> Option<(&[Port], &Share)> {
        let Use { share, users } = self.used.get(&address)?;
        Some((users.get(service)?, share))
    }

    /// Whether anybody uses an address.
    pub(crate) fn is_used(&self, address: IpAddr) -> bool {
        self.used.contains_key(&address)
    }

    /// Strikes a Service out as a user of addresses.
    pub(crate) fn strike(&mut self, service: &ServiceKey, addresses: &[IpAddr]) {
        for address in addresses {
            let Some(used) = self.used.get_mut(address) else { continue };
            used.users.remove(service);
            if !used.users.is_empty() {
                continue;
            }
            let share = std::mem::take(&mut used.share);
            self.used.remove(address);
            self.unshare(&share, *address);
            let Some((name, range)) = self.range_of(*address) else { continue };
            let name = Arc::clone(name);
            let Some(pool) = self.pools.get_mut(&name) else { continue };
            if pool.ranges[range].range().contains(*address) {
                *pool.used.entry(Family::of(*address)).or_default() -= 1;
                if !(pool.pool.avoid_buggy && is_buggy(*address)) {
                    pool.ranges[range].put(*address);
                }
            }
        }
    }

    /// The first address of a pool, in the order of its ranges, that a Service may use.
    pub(crate) fn find(&mut self, pool: &str, family: Family, wish: &Wish) -> Option<IpAddr> {
        let ranges = &self.pools.get(pool)?.ranges;
        let shared = if wish.share.key.is_empty() { None } else { self.shared.get(&wish.share) };
        for free in ranges.iter().filter(|free| free.family() == family) {
            self.looked_at += 1;
            let first = free.first();
            let of_range =
                shared.into_iter().flat_map(|shared| shared.range(free.range().first()..=free.range().last()));
            // Shared addresses below the first free one come before it.
            for address in of_range.take_while(|address| first.is_none_or(|first| **address < first)) {
                self.looked_at += 1;
                if self.may_use_one(wish, *address).is_ok() {
                    return Some(*address);
                }
            }
            if first.is_some() {
                return first;
            }
        }
        None
    }

    /// Whether a pool has a free address of a family.
    pub(crate) fn has_free(&self, pool: &str, family: Family) -> bool {
        let ranges = self.pools.get(pool).map_or(&[][..], |pool| &pool.ranges);
        ranges.iter().any(|free| free.family() == family && free.first().is_some())
    }

    /// How many addresses of a pool are in use.
    pub(crate) fn assigned(&self, pool: &str, family: Family) -> i64 {
        self.pools.get(pool).and_then(|pool| pool.used.get(&family)).copied().unwrap_or_default()
    }

    fn range_of(&self, address: IpAddr) -> Option<(&Arc<str>, usize)> {
        let family = Family::of(address);
        let (_, (name, range)) = self.ranges.range((family, 0)..=(family, number(address))).next_back()?;
        Some((name, *range))
    }

    fn occupy(&mut self, address: IpAddr) {
        let Some((name, range)) = self.range_of(address) else { return };
        let name = Arc::clone(name);
        let Some(pool) = self.pools.get_mut(&name) else { return };
        if pool.ranges[range].range().contains(address) {
            *pool.used.entry(Family::of(address)).or_default() += 1;
            pool.ranges[range].take(address);
        }
    }

    fn unshare(&mut self, share: &Share, address: IpAddr) {
        let Some(addresses) = self.shared.get_mut(share) else { return };
        addresses.remove(&address);
        if addresses.is_empty() {
            self.shared.remove(share);
        }
    }
}
