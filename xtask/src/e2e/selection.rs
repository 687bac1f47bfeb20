//! Which of upstream's specs are run, and why others are not.

use std::path::Path;

use sha2::{Digest, Sha256};

use crate::cluster::options::{Cni, Families, Options};

/// What Kubernetes asserts of Services and of what serves them.
const FOCUS: &str = r"\[sig-network\] (Services|Conntrack|Traffic Distribution|EndpointSlice|HostPort|NoSNAT|KubeProxy|Networking Granular Checks: (Services|Pods)|Networking should check kube-proxy urls)\b";
/// The same for clusters with two families.
const DUAL_STACK: &str = r"\[sig-network\] \[Feature:IPv6DualStack\]";

/// What it asserts of Services of type LoadBalancer, where somebody gives them addresses.
const LOAD_BALANCERS: &str = r"\[sig-network\] LoadBalancers\b";

/// Specs that cannot be run here: a part of their names, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Exception {
    part: &'static str,
    why: &'static str,
}

const SCTP: Exception =
    Exception { part: "[Feature:SCTPConnectivity]", why: "this kernel has no SCTP sockets; cargo xtask vm has" };

const FLANNEL: Exception = Exception {
    part: "NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy changes",
    why: "flanneld --ip-masq gives what a node itself sends to pods of other nodes its own address, where the spec wants the node's; kube-proxy fails it alike",
};

/// In layer 2 one node answers, and with traffic policy Local only its own pods do.
const FEW_PODS: Exception = Exception {
    part: "should be able to switch session affinity for LoadBalancer service with Local traffic policy",
    why: "it wants answers of several pods, and of three pods on several nodes the one that answers may have a single one",
};
/// The source is preserved; the spec cannot see it.
const FIRST_COLON: Exception = Exception {
    part: "LoadBalancers ExternalTrafficPolicy: Local [Feature:LoadBalancer] [Slow] should work from pods",
    why: "it compares what stands before the first colon with the pod's address, which is never an IPv6 address",
};
/// Where there is no other one it has all of them.
const FEW_NODES: u8 = 1;

/// What the core does without: specs that disturb a cluster or wait for minutes.
const BEYOND_CORE: &str = r"\[Disruptive\]|\[Serial\]|\[Slow\]|affinity timeout";
/// Of those of Services of type `LoadBalancer`, the ones that take half an hour each.
const HALF_AN_HOUR: &str = "rolling update";
/// What core specs are about.
const CORE: &str = r"\[sig-network\] (Services|Conntrack|Traffic Distribution|EndpointSlice|HostPort|NoSNAT)\b";

/// A few of many specs or test programs, other ones for each seed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sample {
    /// How many.
    pub size: usize,
    /// Any text.
    pub seed: String,
}

impl Sample {
    /// Those of `names` that the seed says, in their order.
    pub fn of<'a>(&self, names: &'a [impl AsRef<str>]) -> Vec<&'a str> {
        let lot = |name: &str| Sha256::new().chain_update(&self.seed).chain_update([0]).chain_update(name).finalize();
        let mut drawn: Vec<usize> = (0..names.len()).collect();
        drawn.sort_by_cached_key(|index| lot(names[*index].as_ref()));
        drawn.truncate(self.size);
        drawn.sort_unstable();
        drawn.into_iter().map(|index| names[index].as_ref()).collect()
    }
}

/// A regular expression (Go's) that matches `text` and nothing else.
fn literally(text: &str) -> String {
    let escaped = text.chars().flat_map(|c| c.is_ascii_punctuation().then_some('\\').into_iter().chain([c]));
    escaped.collect()
}

/// Regular expressions as ginkgo takes them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Selection {
    /// Specs that match one of them are run.
    pub focus: Vec<String>,
    skip: Option<String>,
    exceptions: Vec<Exception>,
}

impl Selection {
    /// What the user says, or everything about Services; without what cannot be on such a cluster.
    pub fn new(focus: Option<&str>, skip: Option<&str>, cluster: &Options) -> Self {
        let focus = match focus {
            Some(focus) => vec![focus.to_owned()],
            None if cluster.loadbalancers => vec![LOAD_BALANCERS.to_owned()],
            None if cluster.families == Families::Dual => vec![FOCUS.to_owned(), DUAL_STACK.to_owned()],
            None => vec![FOCUS.to_owned()],
        };
        let sctp = (!Path::new("/proc/net/sctp").exists()).then_some(SCTP);
        let flannel = (cluster.cni == Cni::Flannel).then_some(FLANNEL);
        let few_pods = (cluster.loadbalancers && cluster.nodes > FEW_NODES).then_some(FEW_PODS);
        let first_colon = (cluster.loadbalancers && cluster.families == Families::V6).then_some(FIRST_COLON);
        let exceptions = [sctp, flannel, few_pods, first_colon].into_iter().flatten().collect();
        Self { focus, skip: skip.map(str::to_owned), exceptions }
    }

    /// What such a cluster is too large for, and a smaller one for it.
    pub fn for_fewer_nodes(cluster: &Options) -> Option<(Options, Self)> {
        let smaller = Options { nodes: FEW_NODES, ..cluster.clone() };
        let focus = literally(FEW_PODS.part);
        (cluster.loadbalancers && cluster.nodes > FEW_NODES)
            .then(|| (smaller.clone(), Self::new(Some(&focus), None, &smaller)))
    }

    /// What every change is tried with.
    pub fn core(cluster: &Options) -> Self {
        Self::new(Some(CORE), Some(BEYOND_CORE), cluster)
    }

    /// The same of Services of type LoadBalancer.
    pub fn load_balancers(cluster: &Options) -> Self {
        Self::new(None, Some(HALF_AN_HOUR), cluster)
    }

    /// A few of the specs `names`.
    pub fn sampled(&self, names: &[String], sample: &Sample) -> Self {
        let focus = sample.of(names).into_iter().map(literally).collect();
        Self { focus, ..self.clone() }
    }

    /// The same, with nothing left out.
    pub fn without_skips(&self) -> Self {
        Self { focus: self.focus.clone(), skip: None, exceptions: Vec::new() }
    }

    /// What is left out.
    pub fn skips(&self) -> impl Iterator<Item = String> {
        self.skip.clone().into_iter().chain(self.exceptions.iter().map(|exception| literally(exception.part)))
    }

    /// Why a spec is left out.
    pub fn why_not(&self, name: &str) -> String {
        if let Some(exception) = self.exceptions.iter().find(|exception| name.contains(exception.part)) {
            return exception.why.to_owned();
        }
        format!("left out by --skip {}", self.skip.as_deref().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usual() -> Options {
        Options::usual("x".parse().unwrap())
    }

    #[test]
    fn what_is_left_out_has_a_reason() {
        let selection = Selection { exceptions: vec![SCTP], ..Selection::new(None, Some("Slow"), &usual()) };
        assert_eq!(selection.why_not("x [Feature:SCTPConnectivity]"), SCTP.why);
        assert_eq!(selection.why_not("x [Slow]"), "left out by --skip Slow");
        assert_eq!(selection.skips().count(), 2);
        assert_eq!(selection.without_skips().skips().count(), 0);
    }

    #[test]
    fn a_sample_depends_on_its_seed_and_on_nothing_else() {
        let names: Vec<String> = (0..50).map(|n| format!("[sig-network] spec {n} (a+b)")).collect();
        let sample = |seed: &str| Sample { size: 8, seed: seed.to_owned() };
        let one = sample("1").of(&names);
        assert_eq!(one.len(), 8);
        assert_eq!(one, sample("1").of(&names));
        assert_ne!(one, sample("2").of(&names));
        assert_eq!(sample("1").of(&names[..3]), ["0", "1", "2"].map(|n| format!("[sig-network] spec {n} (a+b)")));
        let selection = Selection::core(&usual()).sampled(&names[..1], &sample("1"));
        assert_eq!(selection.focus, [r"\[sig\-network\] spec 0 \(a\+b\)"]);
    }

    #[test]
    fn two_families_are_tried_where_there_are_two() {
        let dual = Options { families: Families::Dual, ..usual() };
        assert_eq!(Selection::new(None, None, &usual()).focus.len(), 1);
        assert_eq!(Selection::new(None, None, &dual).focus.len(), 2);
        assert_eq!(Selection::new(Some("x"), None, &dual).focus, ["x"]);
    }

    #[test]
    fn one_spec_of_load_balancers_is_for_one_node() {
        let six = Options { loadbalancers: true, ..usual() };
        let (one, selection) = Selection::for_fewer_nodes(&six).unwrap();
        assert_eq!((one.nodes, one.loadbalancers), (1, true));
        assert_eq!(selection.focus, [literally(FEW_PODS.part)]);
        assert!(Selection::new(None, None, &six).exceptions.contains(&FEW_PODS));
        assert!(!selection.exceptions.contains(&FEW_PODS));
        assert!(Selection::for_fewer_nodes(&one).is_none() && Selection::for_fewer_nodes(&usual()).is_none());
    }

    #[test]
    fn only_flannel_is_asked_for_less() {
        let flannel = Selection::new(None, None, &Options { cni: Cni::Flannel, ..usual() });
        assert_eq!(flannel.skips().count(), Selection::new(None, None, &usual()).skips().count() + 1);
        let name = "[sig-network] Services should implement NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy changes";
        assert_eq!(flannel.why_not(name), FLANNEL.why);
    }
}
