//! MetalLB's own controller: while it runs, its Services are its own.
//!
//! It leaves no mark that says "still mine" on a Service, so its pods are looked for, in the namespaces whose pools count: MetalLB reads those
//! of its own namespace alone. What its manifests call `app: metallb` its chart calls `app.kubernetes.io/name: metallb`. It serves the
//! Services of the class that `--lb-class` names, or those without one.

use std::collections::BTreeSet;
use std::time::Duration;

use culvert_source::kube::{Access, Ask, AskError};
use serde::Deserialize;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Labels of its pods, in its manifests and in its chart.
const LABELS: [&str; 2] =
    ["app=metallb,component=controller", "app.kubernetes.io/name=metallb,app.kubernetes.io/component=controller"];

/// Looks for one that serves Services of a class. The pod's `namespace/name`.
///
/// # Errors
/// When the pods cannot be read: nobody knows then.
pub async fn find(
    access: &Access,
    namespaces: &BTreeSet<String>,
    class: Option<&str>,
) -> Result<Option<String>, AskError> {
    for namespace in namespaces {
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        for labels in LABELS {
            let text = access.ask(&path, Ask::List(labels), ANSWER).await?;
            let unreadable = |error| AskError::Unreachable(format!("an answer that is no list of pods: {error}"));
            if let Some(pod) = serves(&text, class).map_err(unreadable)? {
                return Ok(Some(format!("{namespace}/{pod}")));
            }
        }
    }
    Ok(None)
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Option<Vec<Pod>>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    containers: Vec<Container>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Container {
    command: Option<Vec<String>>,
    args: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
}

/// The first pod of a list that runs and serves Services of a class.
fn serves(list: &str, class: Option<&str>) -> serde_json::Result<Option<String>> {
    let List { items } = serde_json::from_str(list)?;
    let serves = |pod: &Pod| pod.status.phase == "Running" && pod.class() == class.unwrap_or_default();
    Ok(items.unwrap_or_default().into_iter().find(serves).map(|pod| pod.metadata.name))
}

impl Pod {
    fn class(&self) -> &str {
        let containers = self.spec.containers.iter();
        let words: Vec<&String> = containers.flat_map(|one| one.command.iter().chain(&one.args).flatten()).collect();
        let value = words.iter().enumerate().find_map(|(i, word)| {
            let word = word.trim_start_matches('-');
            match word.strip_prefix("lb-class")? {
                "" => words.get(i + 1).map(|next| next.as_str()),
                rest => rest.strip_prefix('='),
            }
        });
        value.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_that_runs_and_serves_the_class_is_found() {
        let pod = |phase: &str, args: &[&str]| {
            json!({"items": [{"metadata": {"name": "controller-1"}, "spec": {"containers": [{"args": args}]},
                "status": {"phase": phase}}]})
            .to_string()
        };
        let found = Some("controller-1".to_owned());
        let plain = ["--port=7472", "--log-level=info"];
        for (text, class, wanted) in [
            (pod("Running", &plain), None, &found),
            (pod("Pending", &plain), None, &None),
            (pod("Running", &plain), Some("culvert.dev/lb"), &None),
            (pod("Running", &["--lb-class=metallb"]), None, &None),
            (pod("Running", &["--lb-class=metallb"]), Some("metallb"), &found),
            (pod("Running", &["--lb-class", "metallb"]), Some("metallb"), &found),
            (json!({"items": null}).to_string(), None, &None),
        ] {
            assert_eq!(&serves(&text, class).unwrap(), wanted, "{text} {class:?}");
        }
        assert!(serves("nonsense", None).is_err());
    }
}
