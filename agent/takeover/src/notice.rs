//! What the agent says of a kube-proxy beside it.

use std::collections::BTreeSet;

use culvert_api::takeover::Trace;

use crate::{find_rules, running};

/// What there is of kube-proxy on this node, a sentence each: none if nothing is.
pub fn notice() -> Vec<String> {
    let mut said = Vec::new();
    let signs = running::signs();
    if !signs.is_empty() {
        said.push(format!(
            "kube-proxy runs beside the agent ({}): Services are served by the agent; kube-proxy can be stopped, its connections \
             live on",
            signs.join("; ")
        ));
    }
    let places: BTreeSet<String> = find_rules().found.iter().map(place).collect();
    if !places.is_empty() {
        let places: Vec<String> = places.into_iter().collect();
        said.push(format!(
            "rules of kube-proxy are here ({}): when it has been stopped, `culvert cleanup --kube-proxy` removes them",
            places.join(", ")
        ));
    }
    said
}

fn place(trace: &Trace) -> String {
    match &trace.table {
        Some(table) => format!("{} {table}", trace.subsystem),
        None => trace.subsystem.to_string(),
    }
}
