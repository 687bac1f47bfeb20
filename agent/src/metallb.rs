//! MetalLB's own pods: while they run, its Services are its own.
//!
//! They leave no mark that says "still mine" on a Service, so they are looked for, in the namespaces whose pools count: MetalLB reads those
//! of its own namespace alone. What its manifests call `app: metallb` its chart calls `app.kubernetes.io/name: metallb`. It serves the
//! Services of the class that `--lb-class` names, or those without one.

use std::sync::Arc;
use std::time::Duration;

use culvert_source::kube::{Access, Ask, AskError};
use serde::Deserialize;
use tokio::sync::watch;

use crate::scope::Scope;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// It is gone when it was looked for in vain so often.
const AWAY: u32 = 2;

/// Which of its pods concern one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The one that gives addresses.
    Controller,
    /// Besides, those that announce them.
    Any,
}

impl Part {
    /// Labels of its pods, in its manifests and in its chart.
    fn labels(self) -> &'static [&'static str] {
        match self {
            Self::Controller => &[
                "app=metallb,component=controller",
                "app.kubernetes.io/name=metallb,app.kubernetes.io/component=controller",
            ],
            Self::Any => &[
                "app=metallb,component in (controller,speaker)",
                "app.kubernetes.io/name=metallb,app.kubernetes.io/component in (controller,speaker)",
            ],
        }
    }

    /// The pause between two looks, while it does not run and while it does. There is one controller that leads, and as many agents as nodes.
    fn pause(self, runs: bool) -> Duration {
        let seconds = if self == Self::Any && !runs { 30 } else { 10 };
        Duration::from_secs(seconds)
    }
}

/// Whether its pods run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Presence {
    /// That is not known yet.
    #[default]
    Unknown,
    /// They do not.
    Away,
    /// One does: `namespace/name`.
    Runs(String),
}

impl Presence {
    /// Why nothing is announced here, if so.
    pub fn silence(&self) -> Option<String> {
        match self {
            Self::Unknown | Self::Away => None,
            Self::Runs(pod) => Some(format!("MetalLB runs (pod {pod}), and the Services are its own")),
        }
    }
}

/// Looks out for it.
#[derive(Clone, Debug)]
pub struct Lookout {
    access: Arc<Access>,
    scope: Scope,
    part: Part,
}

impl Lookout {
    /// For whom serves these Services.
    pub fn new(access: Arc<Access>, scope: Scope, part: Part) -> Self {
        Self { access, scope, part }
    }

    /// One of its pods, if there is one: `namespace/name`. Asks until that is known; `meanwhile` says what that means.
    pub async fn find(&self, meanwhile: &str) -> Option<String> {
        let mut said = None;
        loop {
            match self.look().await {
                Ok(found) => return found,
                Err(error) => {
                    let error = error.to_string();
                    if said.as_ref() != Some(&error) {
                        tracing::warn!(error, "whether MetalLB's own pods run cannot be said; {meanwhile}");
                        said = Some(error);
                    }
                }
            }
            tokio::time::sleep(self.part.pause(true)).await;
        }
    }

    /// Waits until it begins to run, or does so no more. As long as nobody knows, it is as it was; and one that is started
    /// anew is away for a moment only.
    pub async fn changes(&self, ran: bool) -> Option<String> {
        let mut missed = 0;
        loop {
            tokio::time::sleep(self.part.pause(ran)).await;
            match self.look().await {
                Ok(None) if ran => missed += 1,
                Ok(Some(pod)) if !ran => return Some(pod),
                Ok(_) => missed = 0,
                Err(error) => tracing::debug!(%error, "whether MetalLB's own pods run cannot be said"),
            }
            if missed == AWAY {
                tracing::info!("MetalLB's own pods do not run any more");
                return None;
            }
        }
    }

    /// Looks out for ever, for whoever announces, by a task of the current runtime which ends with the receiver.
    pub fn watch(self) -> watch::Receiver<Presence> {
        let (sender, receiver) = watch::channel(Presence::Unknown);
        tokio::spawn(async move {
            let mut found = self.find("nothing is announced").await;
            loop {
                if let Some(pod) = &found {
                    tracing::warn!(
                        pod,
                        "MetalLB's own pods run: the Services are its own, and nothing is announced here"
                    );
                }
                let runs = found.is_some();
                sender.send_replace(found.map_or(Presence::Away, Presence::Runs));
                tokio::select! {
                    changed = self.changes(runs) => found = changed,
                    () = sender.closed() => return,
                }
            }
        });
        receiver
    }

    /// Looks once.
    async fn look(&self) -> Result<Option<String>, AskError> {
        let class = self.scope.class.as_deref();
        for namespace in &self.scope.config_namespaces {
            let path = format!("/api/v1/namespaces/{namespace}/pods");
            for labels in self.part.labels() {
                let text = self.access.ask(&path, Ask::List(labels), ANSWER).await?;
                let unreadable = |error| AskError::Unreachable(format!("an answer that is no list of pods: {error}"));
                if let Some(pod) = serves(&text, class).map_err(unreadable)? {
                    return Ok(Some(format!("{namespace}/{pod}")));
                }
            }
        }
        Ok(None)
    }
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
