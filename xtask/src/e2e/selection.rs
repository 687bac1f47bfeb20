//! Which of upstream's specs are run, and why others are not.

use std::path::Path;

/// What Kubernetes asserts of Services and of what serves them.
const FOCUS: &str = r"\[sig-network\] (Services|Conntrack|Traffic Distribution|EndpointSlice|HostPort|NoSNAT|KubeProxy|Networking Granular Checks: (Services|Pods)|Networking should check kube-proxy urls)\b";
/// The same for clusters with two families.
const DUAL_STACK: &str = r"\[sig-network\] \[Feature:IPv6DualStack\]";

/// Specs that cannot be run here: a part of their names, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Exception {
    pattern: &'static str,
    part: &'static str,
    why: &'static str,
}

const SCTP: Exception = Exception {
    pattern: r"\[Feature:SCTPConnectivity\]",
    part: "[Feature:SCTPConnectivity]",
    why: "this kernel has no SCTP sockets; cargo xtask vm has",
};

/// Regular expressions as ginkgo takes them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Selection {
    /// Specs that match one of them are run.
    pub focus: Vec<String>,
    skip: Option<String>,
    exceptions: Vec<Exception>,
}

impl Selection {
    /// What the user says, or everything about Services.
    pub fn new(focus: Option<&str>, skip: Option<&str>, dual_stack: bool) -> Self {
        let focus = match focus {
            Some(focus) => vec![focus.to_owned()],
            None if dual_stack => vec![FOCUS.to_owned(), DUAL_STACK.to_owned()],
            None => vec![FOCUS.to_owned()],
        };
        let sctp = Path::new("/proc/net/sctp").exists();
        Self { focus, skip: skip.map(str::to_owned), exceptions: if sctp { Vec::new() } else { vec![SCTP] } }
    }

    /// The same, with nothing left out.
    pub fn without_skips(&self) -> Self {
        Self { focus: self.focus.clone(), skip: None, exceptions: Vec::new() }
    }

    /// What is left out.
    pub fn skips(&self) -> impl Iterator<Item = &str> {
        self.skip.as_deref().into_iter().chain(self.exceptions.iter().map(|exception| exception.pattern))
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

    #[test]
    fn what_is_left_out_has_a_reason() {
        let selection = Selection { exceptions: vec![SCTP], ..Selection::new(None, Some("Slow"), false) };
        assert_eq!(selection.why_not("x [Feature:SCTPConnectivity]"), SCTP.why);
        assert_eq!(selection.why_not("x [Slow]"), "left out by --skip Slow");
        assert_eq!(selection.skips().count(), 2);
        assert_eq!(selection.without_skips().skips().count(), 0);
    }

    #[test]
    fn two_families_are_tried_where_there_are_two() {
        assert_eq!(Selection::new(None, None, true).focus.len(), 2);
        assert_eq!(Selection::new(Some("x"), None, true).focus, ["x"]);
    }
}
