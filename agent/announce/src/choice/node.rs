//! Nodes that answer for nothing.

use culvert_model::objects;

use super::Out;

/// The label that takes a node out of load balancing (KEP-1143); its value does not matter.
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Taints of nodes that go: the autoscaler removes them, or an administrator says that they are off (KEP-2268).
const LEAVING: [&str; 2] = ["ToBeDeletedByClusterAutoscaler", "node.kubernetes.io/out-of-service"];

/// Settings of the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `--ignore-exclude-lb`: the label [`EXCLUDE_LABEL`] does not count.
    pub ignore_exclude_label: bool,
}

/// Why a node answers for nothing, as its object says. That it is cordoned (`spec.unschedulable`) is no reason: pods
/// go on running there, and so does what serves them.
pub fn out(node: &objects::Node, settings: Settings) -> Option<Out> {
    if node.metadata.deletion_timestamp.is_some() {
        return Some(Out::Deleted);
    }
    let taints = || node.spec.taints.iter().map(|taint| taint.key.as_str());
    if let Some(key) = LEAVING.into_iter().find(|key| taints().any(|taint| taint == *key)) {
        return Some(Out::Taint(key));
    }
    if !settings.ignore_exclude_label && node.metadata.labels.contains_key(EXCLUDE_LABEL) {
        return Some(Out::Label);
    }
    let cut_off = |one: &objects::NodeCondition| one.kind == "NetworkUnavailable" && one.status == "True";
    node.status.conditions.iter().any(cut_off).then_some(Out::NetworkUnavailable)
}
