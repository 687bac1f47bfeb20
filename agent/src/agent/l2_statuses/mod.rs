//! `ServiceL2Status`, MetalLB's word for who announces a Service and where: one object for each Service that this node announces, in the
//! agent's own namespace. It goes when the node does not announce the Service any more, or with the agent's pod.
//!
//! ```text
//! layer 2 task ─ spoken ─► Register (pure): what is there / what should be ─► one step at a time ─► API server
//! API server ─ list ─────►┘
//! ```

mod register;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use culvert_model::ServiceKey;
use culvert_source::events::{Condition, Events, Involved, Scope, Weight};
use culvert_source::kube::{Access, Ask, AskError};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use self::register::{Register, Step, Written};
use super::layer2::Spoken;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// The pause after a request that failed.
const RETRY: Duration = Duration::from_secs(5);
/// How often the objects are read again: somebody else may have changed them.
const AGAIN: Duration = Duration::from_mins(10);

/// Whose objects they are.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The node.
    pub node: String,
    /// Where they are.
    pub namespace: String,
    /// The agent's pod, by name and uid, where it is in one.
    pub pod: Option<(String, String)>,
}

/// Writes them, by a task of the current runtime, which ends with the sender.
pub fn write(access: Arc<Access>, owner: Owner, spoken: watch::Receiver<Option<Spoken>>, events: Events) {
    tokio::spawn(Clerk { access, owner, spoken, events, register: Register::default(), told: Spoken::new() }.run());
}

struct Clerk {
    access: Arc<Access>,
    owner: Owner,
    /// `None` before anything was decided: what an earlier agent wrote stays until then.
    spoken: watch::Receiver<Option<Spoken>>,
    events: Events,
    register: Register,
    /// What users have been told of.
    told: Spoken,
}

impl Clerk {
    async fn run(mut self) {
        let mut said = None;
        loop {
            match self.work().await {
                Ok(()) => return,
                Err(error) => {
                    let error = format!("{error:#}");
                    if said.as_ref() != Some(&error) {
                        tracing::warn!(
                            error,
                            "what is announced cannot be written to the API server; it is tried again"
                        );
                        said = Some(error);
                    }
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Reads what there is, then writes what is missing, until something fails. `Ok` when nobody sends any more.
    async fn work(&mut self) -> Result<()> {
        if self.spoken.wait_for(Option::is_some).await.is_err() {
            return Ok(());
        }
        self.read().await?;
        let mut again = Instant::now() + AGAIN;
        loop {
            let spoken = self.spoken.borrow_and_update().clone().unwrap_or_default();
            self.tell(&spoken);
            while let Some(step) = self.register.next(&spoken) {
                self.take(step).await?;
            }
            tokio::select! {
                changed = self.spoken.changed() => if changed.is_err() { return Ok(()) },
                () = sleep_until(again) => {
                    self.read().await?;
                    again = Instant::now() + AGAIN;
                }
            }
        }
    }

    /// Tells the users of Services that are announced and were not. Nobody is told anew because the agent is another one.
    fn tell(&mut self, spoken: &Spoken) {
        for service in spoken.keys().filter(|service| !self.told.contains_key(service)) {
            if self.register.knows(service) {
                continue;
            }
            self.events.tell(Condition {
                object: Involved::service(service),
                reason: "nodeAssigned".to_owned(),
                action: "Announce",
                note: format!("announcing from node {:?} with protocol \"layer2\"", self.owner.node),
                scope: Scope::Node,
                weight: Weight::Normal,
            });
        }
        self.told.clone_from(spoken);
    }

    async fn read(&mut self) -> Result<()> {
        let labels = format!("metallb.io/node={}", self.owner.node);
        let list = self.ask(Ask::List(&labels)).await.context("ServiceL2Statuses cannot be read")?;
        let uid = self.owner.pod.as_ref().map(|(_, uid)| uid.as_str());
        self.register.read(&serde_json::from_str(&list)?, uid);
        Ok(())
    }

    async fn take(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Delete(name) => match self.ask(Ask::Delete(&name)).await {
                Err(error) if !error.is(404) => return Err(error).context("a ServiceL2Status cannot be deleted"),
                _ => self.register.deleted(&name),
            },
            Step::Create(service) => {
                let made = self.ask(Ask::Create(&self.object(&service))).await;
                let made = made.context("a ServiceL2Status cannot be created")?;
                let made: Value = serde_json::from_str(&made)?;
                let name = made["metadata"]["name"].as_str().context("an object without a name")?;
                self.register.created(service, name);
            }
            Step::Write { name, service, links } => {
                let interfaces: Vec<Value> = links.iter().map(|name| json!({"name": name})).collect();
                let status = json!({"status": {"node": self.owner.node, "serviceName": service.name,
                    "serviceNamespace": service.namespace, "interfaces": interfaces}});
                let written = match self.ask(Ask::PatchStatus(&name, &status)).await {
                    Ok(_) => Written::AsItShould(links),
                    Err(error) if error.is(404) => Written::Gone,
                    Err(error) => return Err(error).context("a ServiceL2Status cannot be written"),
                };
                self.register.written(&service, written);
            }
        }
        Ok(())
    }

    fn object(&self, service: &ServiceKey) -> Value {
        let owners = self
            .owner
            .pod
            .iter()
            .map(|(name, uid)| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}));
        json!({
            "apiVersion": "metallb.io/v1beta1", "kind": "ServiceL2Status",
            "metadata": {
                "generateName": "l2-", "ownerReferences": owners.collect::<Vec<_>>(),
                "labels": {
                    "metallb.io/node": self.owner.node, "metallb.io/service-name": service.name,
                    "metallb.io/service-namespace": service.namespace,
                },
            },
        })
    }

    async fn ask(&self, ask: Ask<'_>) -> Result<String, AskError> {
        let collection = format!("/apis/metallb.io/v1beta1/namespaces/{}/servicel2statuses", self.owner.namespace);
        self.access.ask(&collection, ask, ANSWER).await
    }
}
