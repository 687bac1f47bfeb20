//! Runs the table tests of `tests/cases`; `tests/cases/README.md` says how they are written.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use culvert_model::ServiceKey;
use culvert_model::objects::Service;
use culvert_pools::{
    Allocator, Assignment, Change, Config, Finding, Kind, Resource, Resources, Settings, Settled, StatusIs,
};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    base: Vec<Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[allow(dead_code, reason = "for the reader")]
    about: String,
    #[serde(default)]
    settings: CaseSettings,
    #[serde(default)]
    held: BTreeMap<String, String>,
    steps: Vec<Step>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CaseSettings {
    class: Option<String>,
    declared: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    #[serde(default)]
    objects: Vec<Value>,
    #[serde(default)]
    gone: Vec<String>,
    #[serde(default)]
    invalid: Vec<String>,
    warnings: Option<Vec<String>>,
    #[serde(default)]
    holds: BTreeMap<String, String>,
    events: Option<Vec<String>>,
    pools: Option<BTreeMap<String, String>>,
}

#[test]
fn tables() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut files: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let (mut count, mut failures) = (0, String::new());
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        // YAML 1.2, as sources read manifests: a Service may be called `y`.
        let options = serde_saphyr::options! { strict_booleans: true };
        let file = serde_saphyr::from_str_with_options(&text, options);
        let file: File = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for case in &file.cases {
            count += 1;
            for order in [Order::Forward, Order::Backward, Order::Parts] {
                for failure in run(&file.base, case, order) {
                    let file = path.file_name().unwrap().display();
                    writeln!(failures, "{file}: {}: {order:?}: {failure}", case.name).unwrap();
                }
            }
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
    assert!(count >= 40, "only {count} cases were found");
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Forward,
    Backward,
    /// The Services first, then the rest.
    Parts,
}

struct World {
    resources: Resources,
    services: BTreeMap<String, Service>,
    allocator: Allocator,
}

fn run(base: &[Value], case: &Case, order: Order) -> Vec<String> {
    let status = if case.settings.declared { StatusIs::Declared } else { StatusIs::Record };
    let allocator = Allocator::new(Settings { class: case.settings.class.clone(), status });
    let mut world = World { resources: Resources::default(), services: BTreeMap::new(), allocator };
    world.allocator.restore(case.held.iter().map(|(service, held)| (key(service), assignment(held))));
    let mut failures = Vec::new();
    for (i, step) in case.steps.iter().enumerate() {
        let mut objects: Vec<&Value> = step.objects.iter().collect();
        if matches!(order, Order::Backward) {
            objects.reverse();
        }
        if i == 0 {
            objects.splice(0..0, base);
        }
        if matches!(order, Order::Parts) {
            objects.sort_by_key(|object| object["kind"] != "Service");
        }
        let findings = world.step(&objects, &step.gone);
        for failure in world.compare(step, &findings) {
            failures.push(format!("step {}: {failure}", i + 1));
        }
    }
    failures
}

/// What a step brought.
struct Findings {
    invalid: Vec<Finding>,
    warnings: Vec<Finding>,
    settled: Settled,
}

impl World {
    fn step(&mut self, objects: &[&Value], gone: &[String]) -> Findings {
        let mut configured = false;
        for object in objects {
            match decode(object) {
                Decoded::Service(service) => {
                    self.services.insert(service.key().to_string(), (*service).clone());
                    self.allocator.absorb(Change::Service(service));
                }
                Decoded::Resource(Resource::Namespace(namespace)) => {
                    self.allocator.absorb(Change::Namespace(namespace));
                }
                Decoded::Resource(resource) => configured |= self.resources.upsert(resource),
                Decoded::Node(node) => configured |= self.resources.upsert_node(&node),
            }
        }
        for gone in gone {
            let (kind, name) = gone.split_once('/').unwrap();
            if kind == "Service" {
                self.services.remove(name);
                self.allocator.absorb(Change::ServiceGone(key(name)));
                continue;
            }
            let resource = self.resources.iter().find(|resource| resource.id().to_string() == *gone);
            let id = resource.unwrap_or_else(|| panic!("{gone} is not there")).id();
            configured |= self.resources.remove(&id);
        }
        let (mut invalid, mut warnings) = (Vec::new(), Vec::new());
        if configured {
            match Config::new(&self.resources) {
                Ok(config) => {
                    warnings = config.warnings(&self.resources);
                    self.allocator.absorb(Change::Config(Arc::new(config)));
                }
                Err(findings) => invalid = findings,
            }
        }
        Findings { invalid, warnings, settled: self.allocator.settle() }
    }

    fn compare(&self, step: &Step, findings: &Findings) -> Vec<String> {
        let mut failures = Vec::new();
        let mut differs = |what: &str, got: &[String], want: &[String]| {
            if got != want {
                let lines = |lines: &[String]| lines.join("\n        ");
                failures.push(format!("{what}\n  want: {}\n  got:  {}", lines(want), lines(got)));
            }
        };
        let texts = |findings: &[Finding]| findings.iter().map(ToString::to_string).collect::<Vec<_>>();
        differs("invalid", &texts(&findings.invalid), &step.invalid);
        if let Some(warnings) = &step.warnings {
            differs("warnings", &texts(&findings.warnings), warnings);
        }
        let holds: Vec<String> = self.holds().iter().map(|(service, held)| format!("{service}: {held}")).collect();
        let wanted: Vec<String> = step.holds.iter().map(|(service, held)| format!("{service}: {held}")).collect();
        differs("holds", &holds, &wanted);
        let decisions = &findings.settled.decisions;
        if let Some(events) = &step.events {
            let told = decisions.iter().flat_map(|decision| {
                let line = |event: &culvert_pools::Event| {
                    format!("{} {}: {}", decision.service, event.reason.name(), event.message)
                };
                decision.events.iter().map(line)
            });
            differs("events", &told.collect::<Vec<_>>(), events);
        }
        if let Some(pools) = &step.pools {
            let status = self.allocator.pools().into_iter().map(|(name, status)| {
                let all =
                    |assigned: i64, available: i64| format!("{assigned} of {}", available.saturating_add(assigned));
                let v4 = all(status.assigned_ipv4, status.available_ipv4);
                format!("{name}: {v4}, {}", all(status.assigned_ipv6, status.available_ipv6))
            });
            let wanted: Vec<String> = pools.iter().map(|(name, status)| format!("{name}: {status}")).collect();
            differs("pools", &status.collect::<Vec<_>>(), &wanted);
        }
        failures
    }

    fn holds(&self) -> BTreeMap<String, String> {
        let services = self.services.iter().filter(|(_, service)| service.spec.kind == "LoadBalancer");
        let held = services.map(|(name, service)| {
            let key = service.key();
            let text = match (self.allocator.assignment(&key), self.allocator.failure(&key)) {
                (Some(Assignment { addresses, pool }), None) => {
                    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                    format!("{} of {pool}", addresses.join(", "))
                }
                (Some(Assignment { addresses, .. }), Some(failure)) => {
                    format!("{addresses:?} despite {} {}: {}", failure.reason.name(), failure.field, failure.message)
                }
                (None, Some(failure)) => {
                    format!("nothing: {} {}: {}", failure.reason.name(), failure.field, failure.message)
                }
                (None, None) if self.allocator.is_ours(&key) => "nothing".to_owned(),
                (None, None) => "not ours".to_owned(),
            };
            (name.clone(), text)
        });
        held.collect()
    }
}

enum Decoded {
    Service(Arc<Service>),
    Resource(Resource),
    Node(Box<culvert_model::objects::Node>),
}

fn decode(object: &Value) -> Decoded {
    let mut object = object.clone();
    let kind = object["kind"].as_str().unwrap().to_owned();
    let namespace = if kind == "Service" { "default" } else { "metallb-system" };
    if kind != "Namespace" && kind != "Node" {
        object["metadata"].as_object_mut().unwrap().entry("namespace").or_insert(namespace.into());
    }
    if kind == "Service" {
        let spec = object.as_object_mut().unwrap().entry("spec").or_insert(json!({})).as_object_mut().unwrap();
        spec.entry("type").or_insert("LoadBalancer".into());
        spec.entry("clusterIPs").or_insert(json!(["10.96.0.1"]));
        spec.entry("ports").or_insert(json!([{"port": 80, "protocol": "TCP"}]));
        return Decoded::Service(Arc::new(serde_json::from_value(object).unwrap()));
    }
    if kind == "Node" {
        return Decoded::Node(serde_json::from_value(object).unwrap());
    }
    let known = Kind::ALL.into_iter().find(|known| known.name() == kind).unwrap_or_else(|| panic!("kind {kind}"));
    Decoded::Resource(Resource::deserialize(known, object).unwrap())
}

fn key(text: &str) -> ServiceKey {
    let (namespace, name) = text.split_once('/').unwrap();
    ServiceKey { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn assignment(text: &str) -> Assignment {
    let (addresses, pool) = text.split_once(" of ").unwrap();
    Assignment { addresses: addresses.split(", ").map(|one| one.parse().unwrap()).collect(), pool: pool.into() }
}
