//! Services with a Local traffic policy and no endpoint on this node: what their metric counts.

use std::collections::HashMap;

use culvert_api::plan::{Audience, FrontendKind, ServiceKey, ServicePlan, Verdict};

use super::metrics::{IpFamily, Metrics, Policy};

/// What is missing of one Service: by policy (internal, external) and family (IPv4, IPv6).
type Gap = [[bool; 2]; 2];

const POLICIES: [Policy; 2] = [Policy::internal, Policy::external];
const FAMILIES: [IpFamily; 2] = [IpFamily::IPv4, IpFamily::IPv6];

/// The Services with gaps, and how many there are of each kind.
#[derive(Debug, Default)]
pub struct Gaps {
    services: HashMap<ServiceKey, Gap>,
}

impl Gaps {
    /// Takes over a Service's plan; `None` if it is gone.
    pub fn set(&mut self, service: &ServiceKey, plan: Option<&ServicePlan>) {
        let gap = plan.map(gap).unwrap_or_default();
        if gap == Gap::default() {
            self.services.remove(service);
        } else {
            self.services.insert(service.clone(), gap);
        }
    }

    /// Writes the counts.
    pub fn publish(&self, metrics: &Metrics) {
        for (p, policy) in POLICIES.into_iter().enumerate() {
            for (f, family) in FAMILIES.into_iter().enumerate() {
                let services = self.services.values().filter(|gap| gap[p][f]).count();
                metrics.set_no_local_endpoints(policy, family, services);
            }
        }
    }
}

/// Rows are dropped for want of a local endpoint, and for nothing else.
fn gap(plan: &ServicePlan) -> Gap {
    let mut gap = Gap::default();
    for row in plan.frontends.iter().filter(|row| row.verdict == Verdict::Drop) {
        let policy = match (row.kind, row.audience) {
            (FrontendKind::ClusterIP, _) => 0,
            // The policy of these is about clients from outside. A row that drops everybody has source ranges that nobody
            // could read.
            (_, Audience::External) => 1,
            _ => continue,
        };
        gap[policy][usize::from(row.address.is_ipv6())] = true;
    }
    gap
}

#[cfg(test)]
mod tests {
    use culvert_model::{Change, Config, Model};
    use serde_json::json;

    use super::*;

    /// The value of the metric for a policy and a family.
    fn count(gaps: &Gaps, metrics: &Metrics, policy: &str, family: &str) -> usize {
        gaps.publish(metrics);
        let text = metrics.text(None, None).unwrap();
        let start = "kubeproxy_sync_proxy_rules_no_local_endpoints_total{";
        let line = format!("{start}traffic_policy=\"{policy}\",ip_family=\"{family}\"}} ");
        text.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok()).unwrap()
    }

    #[test]
    fn source_ranges_that_cannot_be_read_are_no_missing_endpoints() {
        let service = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"],
                "loadBalancerSourceRanges": ["198.51.100.0/33"], "ports": [{"port": 80, "protocol": "TCP"}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}},
        });
        let mut model = Model::new(Config { node: "node-1".into(), ..Config::default() });
        model.apply(Change::Service(serde_json::from_value(service).unwrap()));
        let key = ServiceKey { namespace: "default".into(), name: "web".into() };
        let plan = model.plan(&key).unwrap();
        assert!(plan.frontends.iter().any(|row| row.verdict == Verdict::Drop), "{plan:?}");
        let (mut gaps, metrics) = (Gaps::default(), Metrics::new());
        gaps.set(&key, Some(&plan));
        assert_eq!(count(&gaps, &metrics, "external", "IPv4"), 0);
    }

    #[test]
    fn services_without_local_endpoints_are_counted_by_policy() {
        let service = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "type": "NodePort", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"],
                "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
                "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}],
            },
        });
        let slice = json!({
            "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.0.0.2"], "nodeName": "node-2"}],
        });
        let node = json!({
            "metadata": {"name": "node-1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        });
        let mut model = Model::new(Config { node: "node-1".into(), ..Config::default() });
        model.apply(Change::Service(serde_json::from_value(service).unwrap()));
        model.apply(Change::EndpointSlice(serde_json::from_value(slice).unwrap()));
        model.apply(Change::Node(serde_json::from_value(node).unwrap()));

        let key = ServiceKey { namespace: "default".into(), name: "web".into() };
        let (mut gaps, metrics) = (Gaps::default(), Metrics::new());
        let count = |gaps: &Gaps, policy: &str, family: &str| count(gaps, &metrics, policy, family);
        gaps.set(&key, model.plan(&key).as_ref());
        assert_eq!((count(&gaps, "internal", "IPv4"), count(&gaps, "external", "IPv4")), (1, 1));
        assert_eq!((count(&gaps, "internal", "IPv6"), count(&gaps, "external", "IPv6")), (0, 0));
        gaps.set(&key, None);
        assert_eq!((count(&gaps, "internal", "IPv4"), count(&gaps, "external", "IPv4")), (0, 0));
    }
}
