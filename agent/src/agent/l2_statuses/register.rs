//! Which objects there are, and what is to be done next. Pure.

use std::collections::{BTreeMap, BTreeSet};

use culvert_model::ServiceKey;
use serde::Deserialize;
use serde_json::Value;

use crate::agent::layer2::Spoken;

/// The objects that there are.
#[derive(Debug, Default)]
pub struct Register {
    objects: BTreeMap<ServiceKey, Object>,
    /// Those that nobody needs: a second one of a Service, one of a pod that is gone, one that says nothing.
    useless: BTreeSet<String>,
}

#[derive(Debug)]
struct Object {
    name: String,
    /// What it says; `None` = nothing yet.
    links: Option<BTreeSet<String>>,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// To delete an object.
    Delete(String),
    /// To make one for a Service.
    Create(ServiceKey),
    /// To write the status of one.
    Write {
        /// Its name.
        name: String,
        /// Its Service.
        service: ServiceKey,
        /// The links to be named.
        links: BTreeSet<String>,
    },
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It names these links.
    AsItShould(BTreeSet<String>),
    /// There is no such object any more.
    Gone,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Metadata {
    name: String,
    labels: BTreeMap<String, String>,
    owner_references: Vec<Reference>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Reference {
    uid: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    interfaces: Vec<Interface>,
    service_name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Interface {
    name: String,
}

impl Register {
    /// Takes a list of the node's objects. `pod` is the uid of the agent's pod: an object of another one goes with it.
    pub fn read(&mut self, list: &Value, pod: Option<&str>) {
        *self = Self::default();
        for item in list["items"].as_array().into_iter().flatten() {
            let metadata = Metadata::deserialize(&item["metadata"]).unwrap_or_default();
            let status = Status::deserialize(&item["status"]).unwrap_or_default();
            let label = |name: &str| metadata.labels.get(&format!("metallb.io/service-{name}")).cloned();
            let service = label("name").zip(label("namespace")).map(|(name, namespace)| ServiceKey { namespace, name });
            let ours = metadata.owner_references.iter().map(|owner| owner.uid.as_str()).eq(pod);
            match service {
                Some(service) if ours && !self.objects.contains_key(&service) => {
                    let links = status.interfaces.into_iter().map(|interface| interface.name).collect();
                    let links = (!status.service_name.is_empty()).then_some(links);
                    self.objects.insert(service, Object { name: metadata.name, links });
                }
                _ => drop(self.useless.insert(metadata.name)),
            }
        }
    }

    /// Whether a Service has an object.
    pub fn knows(&self, service: &ServiceKey) -> bool {
        self.objects.contains_key(service)
    }

    /// What is to be done next, so that the objects say what is announced.
    pub fn next(&self, spoken: &Spoken) -> Option<Step> {
        let silent = self.objects.iter().find(|(service, _)| !spoken.contains_key(service));
        if let Some(name) = silent.map(|(_, object)| &object.name).or_else(|| self.useless.first()) {
            return Some(Step::Delete(name.clone()));
        }
        spoken.iter().find_map(|(service, links)| match self.objects.get(service) {
            None => Some(Step::Create(service.clone())),
            Some(object) if object.links.as_ref() == Some(links) => None,
            Some(Object { name, .. }) => {
                Some(Step::Write { name: name.clone(), service: service.clone(), links: links.clone() })
            }
        })
    }

    /// An object has been made.
    pub fn created(&mut self, service: ServiceKey, name: &str) {
        self.objects.insert(service, Object { name: name.to_owned(), links: None });
    }

    /// An object is gone.
    pub fn deleted(&mut self, name: &str) {
        self.objects.retain(|_, object| object.name != name);
        self.useless.remove(name);
    }

    /// A write has ended.
    pub fn written(&mut self, service: &ServiceKey, written: Written) {
        match written {
            Written::Gone => drop(self.objects.remove(service)),
            Written::AsItShould(links) => {
                if let Some(object) = self.objects.get_mut(service) {
                    object.links = Some(links);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(name: &str) -> ServiceKey {
        ServiceKey { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    fn links(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn spoken(services: &[(&str, &[&str])]) -> Spoken {
        services.iter().map(|(name, names)| (key(name), links(names))).collect()
    }

    /// Does everything that is to be done; what that was.
    fn settle(register: &mut Register, spoken: &Spoken) -> Vec<String> {
        let mut done = Vec::new();
        while let Some(step) = register.next(spoken) {
            assert!(done.len() < 20, "{done:?}");
            match step {
                Step::Delete(name) => {
                    register.deleted(&name);
                    done.push(format!("-{name}"));
                }
                Step::Create(service) => {
                    done.push(format!("+{}", service.name));
                    register.created(service.clone(), &format!("l2-{}", service.name));
                }
                Step::Write { name, service, links } => {
                    done.push(format!("{name}={}", links.iter().cloned().collect::<Vec<_>>().join(",")));
                    register.written(&service, Written::AsItShould(links));
                }
            }
        }
        done
    }

    fn object(name: &str, service: &str, pod: &str, links: &[&str]) -> Value {
        let interfaces: Vec<_> = links.iter().map(|name| json!({"name": name})).collect();
        json!({
            "metadata": {"name": name, "ownerReferences": [{"kind": "Pod", "uid": pod}],
                "labels": {"metallb.io/node": "n1", "metallb.io/service-name": service, "metallb.io/service-namespace": "shop"}},
            "status": {"node": "n1", "serviceName": service, "serviceNamespace": "shop", "interfaces": interfaces},
        })
    }

    #[test]
    fn the_objects_follow_what_is_announced() {
        let mut register = Register::default();
        let all = spoken(&[("a", &["eth0"]), ("b", &["eth0", "eth1"])]);
        assert_eq!(settle(&mut register, &all), ["+a", "l2-a=eth0", "+b", "l2-b=eth0,eth1"]);
        assert_eq!(settle(&mut register, &spoken(&[("b", &["eth1"])])), ["-l2-a", "l2-b=eth1"]);
        assert_eq!(settle(&mut register, &Spoken::new()), ["-l2-b"]);
    }

    #[test]
    fn what_an_earlier_agent_left_is_taken_over_if_it_is_of_the_same_pod() {
        let mut register = Register::default();
        let list = json!({"items": [
            object("l2-1", "a", "ours", &["eth0"]),
            object("l2-2", "a", "ours", &["eth0"]),
            object("l2-3", "b", "theirs", &["eth0"]),
            {"metadata": {"name": "l2-4", "ownerReferences": [{"uid": "ours"}], "labels": {"metallb.io/node": "n1"}}},
        ]});
        register.read(&list, Some("ours"));
        assert!(register.knows(&key("a")) && !register.knows(&key("b")));
        let all = spoken(&[("a", &["eth0"]), ("b", &["eth0"])]);
        assert_eq!(settle(&mut register, &all), ["-l2-2", "-l2-3", "-l2-4", "+b", "l2-b=eth0"]);
        // Outside of a pod, objects have no owner.
        register.read(&list, None);
        assert!(!register.knows(&key("a")));
        register.read(&json!({"items": null}), None);
        assert_eq!(register.next(&Spoken::new()), None);
    }

    #[test]
    fn one_that_somebody_deleted_is_made_again() {
        let mut register = Register::default();
        let all = spoken(&[("a", &["eth0"])]);
        register.created(key("a"), "l2-a");
        register.written(&key("a"), Written::Gone);
        assert_eq!(settle(&mut register, &all), ["+a", "l2-a=eth0"]);
    }
}
