//! Metrics: the controller's, by MetalLB's names (`internal/allocator/stats.go`, `internal/k8s/k8s.go`), so that dashboards and alerts go on;
//! and Culvert's own.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use culvert_pools::PoolStatus;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

/// All metrics. Cheap to write from anywhere.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    updates: Counter,
    update_errors: Counter,
    loaded: Gauge,
    stale: Gauge,
    leads: Gauge,
    waits: Gauge,
    pools: Arc<Pools>,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            updates: Counter::default(),
            update_errors: Counter::default(),
            loaded: Gauge::default(),
            stale: Gauge::default(),
            leads: Gauge::default(),
            waits: Gauge::default(),
            pools: Arc::default(),
        };
        let client = metrics.registry.sub_registry_with_prefix("metallb_k8s_client");
        client.register("updates", "Writes of Services", metrics.updates.clone());
        client.register("update_errors", "Writes of Services that failed", metrics.update_errors.clone());
        client.register("config_loaded_bool", "Whether a configuration is in force", metrics.loaded.clone());
        client.register(
            "config_stale_bool",
            "Whether the newest configuration is not valid, and an older one in force",
            metrics.stale.clone(),
        );
        let allocator = metrics.registry.sub_registry_with_prefix("metallb_allocator");
        allocator.register_collector(Box::new(Arc::clone(&metrics.pools)));
        let own = metrics.registry.sub_registry_with_prefix("culvert_controller");
        own.register("leads", "Whether this one holds the Lease, and writes", metrics.leads.clone());
        own.register(
            "waits_for_metallb",
            "Whether nothing is written because MetalLB's own controller runs",
            metrics.waits.clone(),
        );
        metrics
    }

    /// A Service was written, or could not be.
    pub fn wrote(&self, well: bool) {
        self.updates.inc();
        if !well {
            self.update_errors.inc();
        }
    }

    /// Whether a configuration is in force, and whether there is a newer one that is not valid.
    pub fn configured(&self, loaded: bool, stale: bool) {
        self.loaded.set(loaded.into());
        self.stale.set(stale.into());
    }

    /// Whether this one leads. Who does not knows of no pools.
    pub fn leads(&self, leads: bool) {
        self.leads.set(leads.into());
        if !leads {
            self.configured(false, false);
            self.set_pools(BTreeMap::new());
        }
    }

    /// Whether MetalLB's own controller runs.
    pub fn waits_for_metallb(&self, waits: bool) {
        self.waits.set(waits.into());
    }

    /// How full the pools are.
    pub fn set_pools(&self, pools: BTreeMap<Arc<str>, PoolStatus>) {
        *self.pools.0.lock().unwrap_or_else(PoisonError::into_inner) = pools;
    }

    /// The text for a scrape.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// How full the pools are, as metrics.
#[derive(Debug, Default)]
struct Pools(Mutex<BTreeMap<Arc<str>, PoolStatus>>);

impl Collector for Pools {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        type Value = fn(&PoolStatus) -> i64;
        let rows: [(&str, &str, Value); 6] = [
            ("addresses_total", "Addresses of a pool", |pool| v4(pool).saturating_add(v6(pool))),
            ("addresses_in_use_total", "Addresses of a pool that are in use", |pool| {
                pool.assigned_ipv4.saturating_add(pool.assigned_ipv6)
            }),
            ("ipv4_addresses_total", "IPv4 addresses of a pool", v4),
            ("ipv6_addresses_total", "IPv6 addresses of a pool", v6),
            ("ipv4_addresses_in_use_total", "IPv4 addresses of a pool that are in use", |pool| pool.assigned_ipv4),
            ("ipv6_addresses_in_use_total", "IPv6 addresses of a pool that are in use", |pool| pool.assigned_ipv6),
        ];
        let pools = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, help, value) in rows {
            let gauge = ConstGauge::new(0i64);
            let mut family = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            for (pool, status) in pools.iter() {
                ConstGauge::new(value(status)).encode(family.encode_family(&[("pool", &**pool)])?)?;
            }
        }
        Ok(())
    }
}

fn v4(pool: &PoolStatus) -> i64 {
    pool.assigned_ipv4.saturating_add(pool.available_ipv4)
}

fn v6(pool: &PoolStatus) -> i64 {
    pool.assigned_ipv6.saturating_add(pool.available_ipv6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_metallbs() {
        let metrics = Metrics::new();
        metrics.leads(true);
        metrics.wrote(false);
        metrics.configured(true, false);
        let status = PoolStatus { assigned_ipv4: 2, available_ipv4: 5, assigned_ipv6: 1, available_ipv6: i64::MAX - 1 };
        metrics.set_pools(BTreeMap::from([("main".into(), status)]));
        let text = metrics.text().unwrap();
        for line in [
            r#"metallb_allocator_addresses_total{pool="main"} 9223372036854775807"#,
            r#"metallb_allocator_addresses_in_use_total{pool="main"} 3"#,
            r#"metallb_allocator_ipv4_addresses_total{pool="main"} 7"#,
            r#"metallb_allocator_ipv4_addresses_in_use_total{pool="main"} 2"#,
            r#"metallb_allocator_ipv6_addresses_in_use_total{pool="main"} 1"#,
            "metallb_k8s_client_updates_total 1",
            "metallb_k8s_client_update_errors_total 1",
            "metallb_k8s_client_config_loaded_bool 1",
            "metallb_k8s_client_config_stale_bool 0",
            "culvert_controller_leads 1",
            "culvert_controller_waits_for_metallb 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        metrics.leads(false);
        assert!(!metrics.text().unwrap().contains("pool="));
    }
}
