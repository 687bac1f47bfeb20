//! Which Services' status may list which address, and who waits until another gives one up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_model::ServiceKey;

/// The index of addresses, and the queue before each of its Services.
#[derive(Debug, Default)]
pub struct Listing {
    /// Services by the addresses that their status may list.
    by_address: BTreeMap<IpAddr, BTreeSet<ServiceKey>>,
    /// Who waits, by whom is waited for.
    waiting: BTreeMap<ServiceKey, BTreeSet<ServiceKey>>,
}

impl Listing {
    /// A Service's status may list other addresses than before.
    pub fn change(&mut self, key: &ServiceKey, before: &BTreeSet<IpAddr>, now: &BTreeSet<IpAddr>) {
        for address in before.difference(now) {
            if let Some(keys) = self.by_address.get_mut(address) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
        for address in now.difference(before) {
            self.by_address.entry(*address).or_default().insert(key.clone());
        }
    }

    /// The other Services whose status may list one of these addresses, with that address.
    pub fn others<'a>(
        &'a self,
        key: &'a ServiceKey,
        addresses: &'a [IpAddr],
    ) -> impl Iterator<Item = (&'a IpAddr, &'a ServiceKey)> {
        let listed = addresses.iter().filter_map(|address| Some((address, self.by_address.get(address)?)));
        let pairs = listed.flat_map(|(address, keys)| keys.iter().map(move |other| (address, other)));
        pairs.filter(move |(_, other)| *other != key)
    }

    /// A Service waits for what becomes of another one.
    pub fn wait(&mut self, key: ServiceKey, other: ServiceKey) {
        self.waiting.entry(other).or_default().insert(key);
    }

    /// Those who waited for a Service; they wait no longer.
    pub fn release(&mut self, key: &ServiceKey) -> BTreeSet<ServiceKey> {
        self.waiting.remove(key).unwrap_or_default()
    }
}
