//! Rules of what addresses are configured with: each object by itself, as the schemas have them.

use culvert_pools::{Kind, Resource, config};

use super::{Violation, Violations, names};

/// What is wrong with a resource.
pub fn addresses(resource: &Resource) -> Vec<Violation> {
    let mut found = Violations::default();
    let name = if resource.kind() == Kind::Namespace { names::label } else { names::subdomain };
    found.metadata(resource.metadata(), resource.kind().is_namespaced(), name);
    let mut found = found.into_vec();
    found.extend(config::violations(resource));
    found
}
