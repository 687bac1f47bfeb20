//! Runs `tests/cases/choice*.yaml`; `tests/cases/README.md` says how they are written.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod support;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_announce::choice::{Choice, Inputs, Link, Node, Out, Report, Service, Settings, out};
use culvert_model::{ServiceKey, objects};
use culvert_pools::{Config, Kind, Resource, Resources};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[allow(dead_code, reason = "for the reader")]
    about: String,
    #[serde(default)]
    settings: CaseSettings,
    #[serde(default)]
    objects: Vec<Value>,
    nodes: BTreeMap<String, CaseNode>,
    services: BTreeMap<String, CaseService>,
    #[serde(default)]
    holders: BTreeMap<IpAddr, String>,
    answers: BTreeMap<IpAddr, String>,
    #[serde(default)]
    silent: BTreeMap<IpAddr, BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct CaseSettings {
    ignore_exclude_label: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
struct CaseNode {
    links: Option<BTreeMap<String, Vec<IpNet>>>,
    down: BTreeMap<String, Vec<IpNet>>,
    lacks: Vec<String>,
    local: Vec<String>,
    ending: Vec<String>,
    out: Option<CaseOut>,
    held_down: bool,
    silent: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum CaseOut {
    Drained,
    Dead,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseService {
    addresses: Vec<IpAddr>,
    pool: Option<String>,
    #[serde(default)]
    local: bool,
    endpoints: Option<bool>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[test]
fn tables() {
    let (mut count, mut failures) = (0, String::new());
    for name in ["choice.yaml", "choice-spread.yaml"] {
        for case in &support::cases::<Case>(name) {
            count += 1;
            for reverse in [false, true] {
                for failure in run(case, reverse) {
                    writeln!(failures, "{name}: {}: {failure}", case.name).unwrap();
                }
            }
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
    assert!(count >= 20, "only {count} cases were found");
}

fn run(case: &Case, reverse: bool) -> Vec<String> {
    let mut objects = case.objects.clone();
    if objects.is_empty() {
        let spec = json!({"addresses": ["192.0.2.0/24", "2001:db8::/64"]});
        objects.push(json!({"kind": "IPAddressPool", "metadata": {"name": "p"}, "spec": spec}));
        objects.push(json!({"kind": "L2Advertisement", "metadata": {"name": "all"}}));
    }
    if reverse {
        objects.reverse();
    }
    let settings = Settings { ignore_exclude_label: case.settings.ignore_exclude_label };
    let (mut resources, mut known) = (Resources::default(), BTreeMap::new());
    for mut object in objects {
        let kind = object["kind"].as_str().unwrap().to_owned();
        if kind == "Node" {
            let node: objects::Node = serde_json::from_value(object).unwrap();
            known.insert(node.metadata.name.clone(), node);
            continue;
        }
        object["metadata"].as_object_mut().unwrap().insert("namespace".to_owned(), "metallb-system".into());
        let kind = Kind::ALL.into_iter().find(|known| known.name() == kind).unwrap();
        resources.upsert(Resource::deserialize(kind, object).unwrap());
    }
    let services: Vec<ServiceKey> = case.services.keys().map(|name| key(name)).collect();
    let nodes = case.nodes.iter().map(|(name, one)| {
        let object = known.get(name).cloned().unwrap_or_default();
        (name.clone(), node(one, &object, settings, &services))
    });
    let inputs = Inputs {
        config: Arc::new(Config::new(&resources).unwrap()),
        nodes: nodes.collect(),
        services: case.services.iter().map(|(name, one)| (key(name), service(one))).collect(),
        holders: case.holders.clone(),
    };
    compare(case, &inputs.choose())
}

fn node(one: &CaseNode, object: &objects::Node, settings: Settings, services: &[ServiceKey]) -> Node {
    let up = one.links.clone();
    let up = up.unwrap_or_else(|| BTreeMap::from([("eth0".to_owned(), vec!["192.0.2.0/24".parse().unwrap()])]));
    let up = up.into_iter().map(|(name, prefixes)| (name, Link { up: true, prefixes }));
    let down = one.down.iter().map(|(name, prefixes)| (name.clone(), Link { up: false, prefixes: prefixes.clone() }));
    let report = Report {
        links: if one.links.is_none() && !one.down.is_empty() { down.collect() } else { up.chain(down).collect() },
        programmed: services.iter().filter(|key| !one.lacks.contains(&key.to_string())).cloned().collect(),
        local: one.local.iter().chain(&one.ending).map(|name| key(name)).collect(),
        ending: one.ending.iter().map(|name| key(name)).collect(),
    };
    let own = one.out.as_ref().map(|out| match out {
        CaseOut::Drained => Out::Drained,
        CaseOut::Dead => Out::Dead,
    });
    Node {
        labels: object.metadata.labels.clone(),
        out: own.or_else(|| out(object, settings)),
        held_down: one.held_down,
        report: (!one.silent).then_some(report),
    }
}

fn service(one: &CaseService) -> Service {
    Service {
        labels: one.labels.clone(),
        pool: one.pool.as_deref().unwrap_or("p").into(),
        addresses: one.addresses.clone(),
        local: one.local,
        endpoints: one.endpoints.unwrap_or(true),
    }
}

fn compare(case: &Case, choices: &BTreeMap<IpAddr, Choice>) -> Vec<String> {
    let mut failures = Vec::new();
    let answers = choices.iter().map(|(address, choice)| {
        let text = match &choice.answer {
            Ok(answer) => {
                let links: Vec<_> = answer.links.iter().map(String::as_str).collect();
                format!("{} on {}", answer.node, links.join(", "))
            }
            Err(nobody) => format!("nobody: {nobody}"),
        };
        (*address, text)
    });
    let answers: BTreeMap<_, _> = answers.collect();
    if answers != case.answers {
        failures.push(format!("answers\n  want: {:?}\n  got:  {answers:?}", case.answers));
    }
    for (address, want) in &case.silent {
        let silent = choices[address].silent.iter();
        let got: BTreeMap<_, _> = silent.map(|(node, silence)| (node.clone(), silence.to_string())).collect();
        if got != *want {
            failures.push(format!("silent for {address}\n  want: {want:?}\n  got:  {got:?}"));
        }
    }
    failures
}

fn key(text: &str) -> ServiceKey {
    let (namespace, name) = text.split_once('/').unwrap();
    ServiceKey { namespace: namespace.to_owned(), name: name.to_owned() }
}
