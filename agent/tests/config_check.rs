//! `culvert config check`: exit codes, and what is said.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::fs;
use std::process::{Command, Output};

use assert_cmd::cargo::cargo_bin;
use culvert_api::config_check::{ConfigCheck, PoolSummary};
use tempfile::TempDir;

const POOL: &str = "apiVersion: metallb.io/v1beta1\nkind: IPAddressPool\nmetadata: {name: main, namespace: metallb-system}\n\
                    spec: {addresses: [192.0.2.0/24, \"2001:db8::/64\"]}\n";
const LAYER2: &str =
    "apiVersion: metallb.io/v1beta1\nkind: L2Advertisement\nmetadata: {name: all, namespace: metallb-system}\n";

fn check(files: &[(&str, &str)], arguments: &[&str]) -> (TempDir, Output) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let mut command = Command::new(cargo_bin("culvert"));
    command.args(["config", "check"]).args(arguments).current_dir(dir.path());
    let output = command.args(files.iter().map(|(name, _)| name)).output().unwrap();
    (dir, output)
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_valid_configuration_is_0_and_says_what_it_is() {
    let files = [("pool.yaml", POOL), ("layer2.yaml", LAYER2)];
    let (_dir, output) = check(&files, &["-o", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    let expected = PoolSummary {
        name: "main".to_owned(),
        namespace: "metallb-system".to_owned(),
        addresses: vec!["192.0.2.0/24".to_owned(), "2001:db8::/64".to_owned()],
        auto_assign: true,
        ipv4: 256,
        ipv6: i64::MAX,
        advertisements: vec!["L2Advertisement/metallb-system/all".to_owned()],
    };
    let expected = ConfigCheck { valid: true, errors: vec![], warnings: vec![], pools: vec![expected] };
    assert_eq!(serde_json::from_slice::<ConfigCheck>(&output.stdout).unwrap(), expected);
    let (_dir, output) = check(&files, &[]);
    assert!(stdout(&output).contains("L2Advertisement/metallb-system/all"), "{}", stdout(&output));
}

#[test]
fn what_is_wrong_is_3_with_file_line_object_and_field() {
    let other = POOL.replace("main", "other").replace("192.0.2.0/24", "192.0.2.7-192.0.2.6");
    let (_dir, output) = check(&[("a.yaml", POOL), ("b.yaml", &other), ("layer2.yaml", LAYER2)], &[]);
    assert_eq!(output.status.code(), Some(3));
    let expected = "b.yaml:4: error: IPAddressPool/metallb-system/other: spec.addresses[0]: Invalid value: \
                    \"192.0.2.7-192.0.2.6\": the first address 192.0.2.7 is after the last 192.0.2.6\n\
                    not valid: the configuration before this one stays in force\n";
    assert!(stdout(&output).ends_with(expected), "{}", stdout(&output));
    // What one object alone cannot show.
    let other = POOL.replace("main", "other");
    let (_dir, output) = check(&[("a.yaml", POOL), ("b.yaml", &other)], &[]);
    assert_eq!(output.status.code(), Some(3));
    let expected = "b.yaml:1: error: IPAddressPool/metallb-system/other: spec.addresses: Invalid value: 192.0.2.0/24 \
                    overlaps with 192.0.2.0/24 of IPAddressPool/metallb-system/main";
    assert!(stdout(&output).contains(expected), "{}", stdout(&output));
}

#[test]
fn namespaces_can_be_chosen() {
    let other = POOL.replace("main", "other").replace("namespace: metallb-system", "namespace: elsewhere");
    let files = [("a.yaml", POOL), ("b.yaml", other.as_str())];
    assert_eq!(check(&files, &[]).1.status.code(), Some(3));
    assert_eq!(check(&files, &["--config-namespaces=metallb-system,mine"]).1.status.code(), Some(0));
}

#[test]
fn warnings_change_nothing() {
    let (_dir, output) = check(&[("pool.yaml", POOL)], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert!(
        stdout(&output)
            .starts_with("pool.yaml:1: warning: IPAddressPool/metallb-system/main: spec: no L2Advertisement")
    );
}

#[test]
fn a_file_that_cannot_be_read_is_1_and_none_at_all_2() {
    let mut command = Command::new(cargo_bin("culvert"));
    let output = command.args(["config", "check", "/nonexistent.yaml"]).output().unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &[][..]));
    let (_dir, output) = check(&[], &[]);
    assert_eq!(output.status.code(), Some(2));
}
