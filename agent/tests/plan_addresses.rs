//! `culvert plan` of folders with address pools: the table `cases/addresses.yaml`.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Output};

use assert_cmd::cargo::cargo_bin;
use culvert_api::plan::{Announcement, FrontendKind, NodePlan, ServicePlan};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[allow(dead_code, reason = "for the reader")]
    about: String,
    manifest: String,
    #[serde(default)]
    exit: i32,
    #[serde(default)]
    services: BTreeMap<String, String>,
    #[serde(default)]
    announcements: Vec<String>,
    #[serde(default)]
    faults: Vec<String>,
}

fn plan(manifest: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("all.yaml"), manifest).unwrap();
    let mut command = Command::new(cargo_bin("culvert"));
    command.args(["plan", "--node", "n1", "-o", "json", "--manifests", "."]);
    command.current_dir(dir.path()).output().unwrap()
}

/// What a Service has.
fn words(service: &ServicePlan) -> String {
    let addresses: Vec<String> = service.addresses.iter().map(ToString::to_string).collect();
    let addresses = if addresses.is_empty() { "nothing".to_owned() } else { addresses.join(", ") };
    let pool = service.pool.as_ref().map(|pool| format!(" of {pool}")).unwrap_or_default();
    let problem = |problem: &culvert_api::plan::Problem| {
        assert_eq!(problem.object, format!("Service/{}", service.key()));
        format!(", {} {}: {}", problem.reason, problem.field, problem.message)
    };
    let problems: String = service.problems.iter().map(problem).collect();
    format!("{addresses}{pool}{problems}")
}

/// `ADDRESS by PROTOCOL on INTERFACE: REASON`.
fn announced(one: &Announcement) -> String {
    let interface = one.interface.as_deref().unwrap_or("any link");
    format!("{} by {} on {interface}: {}", one.address, one.protocol, one.reason)
}

#[test]
fn tables() {
    let cases: Vec<Case> = serde_saphyr::from_str(include_str!("cases/addresses.yaml")).unwrap();
    assert!(cases.len() >= 9, "only {} cases were found", cases.len());
    for Case { name, manifest, exit, services, announcements, faults, .. } in cases {
        let output = plan(&manifest);
        let said = String::from_utf8(output.stderr).unwrap();
        let said: Vec<&str> = said.lines().map(|line| line.trim_start_matches("./all.yaml:")).collect();
        assert_eq!(said, faults, "{name}");
        assert_eq!(output.status.code(), Some(exit), "{name}");
        if exit == 1 {
            assert!(output.stdout.is_empty(), "{name}");
            continue;
        }
        let plan: NodePlan = serde_json::from_slice(&output.stdout).unwrap();
        let got: BTreeMap<String, String> =
            plan.services.iter().map(|service| (service.key().to_string(), words(service))).collect();
        assert_eq!(got, services, "{name}");
        let announced: Vec<String> = plan.announcements.iter().map(announced).collect();
        assert_eq!(announced, announcements, "{name}");
        for service in &plan.services {
            let rows = service.frontends.iter().filter(|row| row.kind == FrontendKind::LoadBalancer);
            assert!(rows.clone().all(|row| service.addresses.contains(&row.address)), "{name}");
            assert_eq!(rows.count() == 0, service.addresses.is_empty(), "{name}: {}", service.key());
        }
    }
}
