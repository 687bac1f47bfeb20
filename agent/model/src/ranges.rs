//! `loadBalancerSourceRanges`: who may reach the LoadBalancer addresses.

use culvert_api::plan::{Problem, ServiceKey};
use ipnet::IpNet;

use crate::address::{self, Family};
use crate::objects::Service;
use crate::problem::{self, Reason};

/// The annotation that came before `spec.loadBalancerSourceRanges`, still written by charts; read if the field is empty.
const ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Source ranges of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SourceRanges {
    v4: Ranges,
    v6: Ranges,
}

/// Source ranges of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ranges {
    /// Everybody.
    #[default]
    Unrestricted,
    /// Clients inside these prefixes: sorted, unique, host bits cleared.
    Only(Vec<IpNet>),
    /// Nobody: there are ranges, but none of this family can be read. A restriction does not become a permission.
    Nobody,
}

impl SourceRanges {
    /// Reads a Service's ranges. Each family has its own: ranges of one family alone leave the other unrestricted, and
    /// a zero prefix lifts the restriction of its family, both as in kube-proxy.
    pub(crate) fn new(service: &Service, key: &ServiceKey, problems: &mut Vec<Problem>) -> Self {
        let (mut prefixes, mut unreadable) = (Vec::new(), false);
        for (field, text) in texts(service) {
            let Some(prefix) = address::parse_prefix(text) else {
                unreadable = true;
                let message = format!("{:?} is no prefix", text.trim());
                problems.push(problem::of_service(Reason::InvalidSourceRange, key, field, message));
                continue;
            };
            prefixes.push(prefix);
        }
        let family = |family| Ranges::new(prefixes.iter().filter(|p| Family::of_prefix(p) == family), unreadable);
        Self { v4: family(Family::V4), v6: family(Family::V6) }
    }

    /// Those of one family.
    pub(crate) fn of(&self, family: Family) -> &Ranges {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl Ranges {
    fn new<'a>(prefixes: impl Iterator<Item = &'a IpNet>, unreadable: bool) -> Self {
        let mut prefixes: Vec<IpNet> = prefixes.copied().collect();
        if prefixes.iter().any(|prefix| prefix.prefix_len() == 0) {
            return Self::Unrestricted;
        }
        if prefixes.is_empty() {
            return if unreadable { Self::Nobody } else { Self::Unrestricted };
        }
        prefixes.sort_unstable();
        prefixes.dedup();
        Self::Only(prefixes)
    }
}

/// The ranges as written, each with its field; blank ones are no ranges.
fn texts(service: &Service) -> Vec<(String, &str)> {
    let listed = &service.spec.load_balancer_source_ranges;
    let annotation = service.metadata.annotations.get(ANNOTATION).filter(|_| listed.is_empty());
    let listed =
        listed.iter().enumerate().map(|(i, text)| (format!("spec.loadBalancerSourceRanges[{i}]"), text.as_str()));
    let annotated = annotation.into_iter().flat_map(|text| text.split(','));
    let annotated = annotated.map(|text| (format!("metadata.annotations[{ANNOTATION}]"), text));
    listed.chain(annotated).filter(|(_, text)| !text.trim().is_empty()).collect()
}
