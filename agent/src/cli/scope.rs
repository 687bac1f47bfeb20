//! Whose Services get addresses, and where their configuration is: the same for the controller and the agents.

use clap::Args;

/// What a cluster's addresses are taken from.
#[derive(Clone, Debug, Args)]
pub struct ScopeArgs {
    /// The own namespace; the pod's by default, and kube-system outside of one
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE")]
    pub namespace: Option<String>,
    /// Namespaces whose pools and advertisements count; metallb-system and the own one by default
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub config_namespaces: Vec<String>,
    /// The loadBalancerClass of the Services that get addresses; by default those that have no class
    #[arg(long, value_name = "CLASS")]
    pub load_balancer_class: Option<String>,
}
