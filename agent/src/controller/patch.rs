//! What is to be written of a Service: the difference of what is and what should be, as one merge patch of `services/status`. Pure; the
//! cases in `patch.yaml` are the rules in examples.
//!
//! A patch of the status may change metadata too (as `service/helpers` of k8s.io/cloud-provider does), so that one right and one write are
//! enough. It bears the version that it was made from: whatever happened meanwhile, nothing of it is undone.

use std::net::IpAddr;

use culvert_model::objects::{LoadBalancerIngress, Service};
use culvert_model::parse_address;
use culvert_pools::Assignment;
use serde_json::{Map, Value, json};

/// Keeps a Service until its addresses are given up (KEP-980).
const FINALIZER: &str = "service.kubernetes.io/load-balancer-cleanup";
/// Says which pool the addresses are from.
const POOL: &str = "metallb.io/ip-allocated-from-pool";
/// The same under the older prefix.
const OLD_POOL: &str = "metallb.universe.tf/ip-allocated-from-pool";

/// What a Service's status should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Should {
    /// It has these addresses.
    Hold(Assignment),
    /// It has none of ours.
    Nothing,
}

/// Whether a controller of addresses, this one or MetalLB's, has written this Service's status.
pub fn is_marked(service: &Service) -> bool {
    let annotations = &service.metadata.annotations;
    annotations.contains_key(POOL) || annotations.contains_key(OLD_POOL)
}

/// Whether a Service is kept until its addresses are given up. MetalLB does not do that.
pub fn has_finalizer(service: &Service) -> bool {
    service.metadata.finalizers.iter().any(|name| name == FINALIZER)
}

/// What stands in the status, in a form in which it can be compared.
pub fn ingress(service: &Service) -> Vec<LoadBalancerIngress> {
    let mut ingress = service.status.load_balancer.ingress.clone();
    for one in &mut ingress {
        // The API server's default for an address.
        if !one.ip.is_empty() {
            one.ip_mode.get_or_insert_with(|| "VIP".to_owned());
        }
    }
    ingress
}

/// The status of a Service that holds these addresses.
pub fn ingress_of(should: &Should) -> Vec<LoadBalancerIngress> {
    let Should::Hold(Assignment { addresses, .. }) = should else { return Vec::new() };
    let one = |address: &IpAddr| LoadBalancerIngress {
        ip: address.to_string(),
        ip_mode: Some("VIP".to_owned()),
        ..LoadBalancerIngress::default()
    };
    addresses.iter().map(one).collect()
}

/// The patch; `None` if everything is as it should be.
pub fn patch(is: &Service, should: &Should) -> Option<Value> {
    let mut metadata = Map::new();
    let annotations = annotations(is, should);
    if !annotations.is_empty() {
        metadata.insert("annotations".to_owned(), annotations.into());
    }
    if let Some(finalizers) = finalizers(is, should) {
        metadata.insert("finalizers".to_owned(), json!(finalizers));
    }
    let status = status(is, should);
    if metadata.is_empty() && status.is_none() {
        return None;
    }
    metadata.insert("resourceVersion".to_owned(), json!(is.metadata.resource_version));
    let mut patch = json!({"metadata": metadata});
    if let Some(ingress) = status {
        patch["status"] = json!({"loadBalancer": {"ingress": ingress}});
    }
    Some(patch)
}

fn annotations(is: &Service, should: &Should) -> Map<String, Value> {
    let pool = match should {
        Should::Hold(Assignment { pool, .. }) => Some(&**pool),
        Should::Nothing => None,
    };
    let mut changes = Map::new();
    let mut set = |name: &str, value: Option<&str>| {
        if is.metadata.annotations.get(name).map(String::as_str) != value {
            changes.insert(name.to_owned(), value.map_or(Value::Null, Value::from));
        }
    };
    set(POOL, pool);
    // It would go on to name a pool that may be another one by then.
    set(OLD_POOL, None);
    changes
}

/// All finalizers, if they should be other ones: a merge patch replaces a list.
fn finalizers(is: &Service, should: &Should) -> Option<Vec<String>> {
    let finalizers = &is.metadata.finalizers;
    let wanted = matches!(should, Should::Hold(_));
    if has_finalizer(is) == wanted {
        return None;
    }
    // To an object that is being deleted no finalizer can be added; it is not given any addresses either.
    let others = finalizers.iter().filter(|name| *name != FINALIZER).cloned();
    Some(others.chain(wanted.then(|| FINALIZER.to_owned())).collect())
}

fn status(is: &Service, should: &Should) -> Option<Value> {
    let wanted = ingress_of(should);
    if same(&ingress(is), &wanted) {
        return None;
    }
    let one = |ingress: &LoadBalancerIngress| json!({"ip": ingress.ip, "ipMode": "VIP"});
    Some(wanted.iter().map(one).collect())
}

/// Whether two states of a status are the same, however their addresses are written.
pub fn same(one: &[LoadBalancerIngress], other: &[LoadBalancerIngress]) -> bool {
    let canonical = |ingress: &LoadBalancerIngress| {
        let address = parse_address(&ingress.ip);
        let text = if address.is_none() { ingress.ip.clone() } else { String::new() };
        (address, text, ingress.hostname.clone(), ingress.ip_mode.clone())
    };
    one.iter().map(canonical).eq(other.iter().map(canonical))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        name: String,
        is: Service,
        #[serde(default)]
        should: Option<Held>,
        #[serde(default)]
        patch: Option<Value>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Held {
        addresses: Vec<IpAddr>,
        pool: String,
    }

    #[test]
    fn cases() {
        let cases: Vec<Case> = serde_saphyr::from_str(include_str!("patch.yaml")).unwrap();
        for Case { name, is, should, patch: wanted } in cases {
            let should = should.map_or(Should::Nothing, |Held { addresses, pool }| {
                Should::Hold(Assignment { addresses, pool: pool.into() })
            });
            assert_eq!(patch(&is, &should), wanted, "{name}");
        }
    }
}
