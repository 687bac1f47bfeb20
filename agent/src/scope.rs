//! Whose Services get addresses, and out of whose pools.

use std::collections::BTreeSet;

use culvert_model::objects::Service;

use crate::cli::ScopeArgs;

/// The namespace of MetalLB's manifests.
const METALLB: &str = "metallb-system";
/// The namespace of one that is not told, and is not in a pod.
const OUTSIDE: &str = "kube-system";
/// Where a pod finds its namespace.
const OWN_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Which Services and resources count; the same for the controller and the agents of a cluster.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// The `loadBalancerClass` that is ours; `None` = Services without one.
    pub class: Option<String>,
    /// Namespaces whose resources make the configuration.
    pub config_namespaces: BTreeSet<String>,
}

impl Scope {
    /// As the command line says. `namespace` is the own one.
    pub fn new(args: &ScopeArgs, namespace: &str) -> Self {
        let config_namespaces = if args.config_namespaces.is_empty() {
            BTreeSet::from([METALLB.to_owned(), namespace.to_owned()])
        } else {
            args.config_namespaces.iter().cloned().collect()
        };
        Self { class: args.load_balancer_class.clone(), config_namespaces }
    }

    /// Whether a Service gets its addresses here.
    pub fn covers(&self, service: &Service) -> bool {
        service.spec.kind == "LoadBalancer" && service.spec.load_balancer_class == self.class
    }
}

/// The own namespace.
pub fn namespace(args: &ScopeArgs) -> String {
    let of_pod = || std::fs::read_to_string(OWN_NAMESPACE).ok().map(|text| text.trim().to_owned());
    args.namespace.clone().or_else(of_pod).filter(|name| !name.is_empty()).unwrap_or_else(|| OUTSIDE.to_owned())
}
