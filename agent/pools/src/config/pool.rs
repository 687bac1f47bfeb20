//! Pools.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use culvert_model::Family;

use super::Violations;
use crate::objects::{self, IpAddressPool};
use crate::range::{Range, is_buggy};
use crate::selector::Selector;

/// A pool of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name; unique among all pools.
    pub name: Arc<str>,
    /// Namespace of its object.
    pub namespace: Arc<str>,
    /// Labels of its object, for advertisements to select it by.
    pub labels: BTreeMap<String, String>,
    /// Its addresses, in the order in which they are given out. No two ranges of all pools overlap.
    pub ranges: Vec<Range>,
    /// Leaves out IPv4 addresses that end in .0 or .255.
    pub avoid_buggy: bool,
    /// Whether a Service gets an address without naming the pool.
    pub auto_assign: bool,
    /// Which Services it is for; `None` = all, after the pools that are for some.
    pub allocation: Option<Allocation>,
}

/// Which Services a pool is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The lower, the sooner; `None` last.
    pub priority: Option<u64>,
    /// Namespaces by name.
    pub namespaces: BTreeSet<String>,
    /// Namespaces by label.
    pub namespace_selectors: Vec<Selector>,
    /// Services by label.
    pub service_selectors: Vec<Selector>,
}

/// What [`Pool::admits`] reads of a Service.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Labels of its namespace.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// Its own labels.
    pub labels: &'a BTreeMap<String, String>,
}

impl Pool {
    /// Reads a pool.
    pub(super) fn new(object: &IpAddressPool, found: &mut Violations) -> Self {
        let spec = &object.spec;
        if spec.addresses.is_empty() {
            found.required("spec.addresses", "a pool has at least one address");
        }
        let mut ranges = Vec::new();
        for (i, text) in spec.addresses.iter().enumerate() {
            match Range::parse(text) {
                Ok(range) => ranges.push(range),
                Err(rule) => found.invalid(&format!("spec.addresses[{i}]"), text, rule),
            }
        }
        Self {
            name: object.metadata.name.as_str().into(),
            namespace: object.metadata.namespace.as_str().into(),
            labels: object.metadata.labels.clone(),
            ranges,
            avoid_buggy: spec.avoid_buggy_ips,
            auto_assign: spec.auto_assign.unwrap_or(true),
            allocation: spec.service_allocation.as_ref().map(|allocation| Allocation::new(allocation, found)),
        }
    }

    /// Whether an address may be given out.
    pub fn contains(&self, address: IpAddr) -> bool {
        !(self.avoid_buggy && is_buggy(address)) && self.ranges.iter().any(|range| range.contains(address))
    }

    /// Whether a Service may have its addresses at all.
    pub fn admits(&self, service: Candidate<'_>) -> bool {
        self.allocation.as_ref().is_none_or(|allocation| allocation.admits(service))
    }

    /// How many addresses of a family can be given out. From 2^62 on that is as good as endless, and said as `i64::MAX`.
    pub fn capacity(&self, family: Family) -> i64 {
        const ENDLESS: u128 = 1 << 62;
        let usable = |range: &Range| {
            let buggy = if self.avoid_buggy { range.buggy() } else { 0 };
            range.size() - buggy
        };
        let ranges = self.ranges.iter().filter(|range| range.family() == family);
        let sum = ranges.fold(0_u128, |sum, range| sum.saturating_add(usable(range)));
        if sum >= ENDLESS { i64::MAX } else { sum as i64 }
    }
}

impl Allocation {
    fn new(allocation: &objects::ServiceAllocation, found: &mut Violations) -> Self {
        const FIELD: &str = "spec.serviceAllocation";
        found.unique(&format!("{FIELD}.namespaces"), &allocation.namespaces);
        let mut selectors = |list, field: &str| Selector::list(list, &format!("{FIELD}.{field}"), found);
        Self {
            // MetalLB has no rule for what is below zero; here it is no priority at all.
            priority: u64::try_from(allocation.priority).ok().filter(|priority| *priority > 0),
            namespaces: allocation.namespaces.iter().cloned().collect(),
            namespace_selectors: selectors(&allocation.namespace_selectors, "namespaceSelectors"),
            service_selectors: selectors(&allocation.service_selectors, "serviceSelectors"),
        }
    }

    /// One of the namespaces, named or selected, and one of the selected Services; what is left out matches all.
    fn admits(&self, service: Candidate<'_>) -> bool {
        let any_namespace = self.namespaces.is_empty() && self.namespace_selectors.is_empty();
        let of_namespace = any_namespace
            || self.namespaces.contains(service.namespace)
            || Selector::any(&self.namespace_selectors, service.namespace_labels);
        of_namespace && (self.service_selectors.is_empty() || Selector::any(&self.service_selectors, service.labels))
    }
}
