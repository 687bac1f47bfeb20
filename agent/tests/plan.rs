//! `culvert plan`: exit codes, and what goes to stdout and to stderr.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::cargo_bin;
use culvert_api::plan::{NodePlan, Plans};
use tempfile::TempDir;

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: node-1}\n\
                    status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n";

fn service(name: &str, node_port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{type: NodePort, clusterIP: 10.96.0.{}, ports: [{{port: 80, nodePort: {node_port}}}]}}\n",
        name.len()
    )
}

fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn plan(manifests: &Path, arguments: &[&str]) -> Output {
    Command::new(cargo_bin("culvert")).args(["plan", "--manifests"]).arg(manifests).args(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_examples_are_free_of_problems() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let one = plan(&examples, &["--node", "node-1", "-o", "json"]);
    assert_eq!((one.status.code(), stderr(&one).as_str()), (Some(0), ""));
    let one: NodePlan = serde_json::from_slice(&one.stdout).unwrap();
    let all = plan(&examples, &["-o", "json"]);
    let all: Plans = serde_json::from_slice(&all.stdout).unwrap();
    assert_eq!(all.nodes.iter().map(|node| node.node.as_str()).collect::<Vec<_>>(), ["node-1", "node-2"]);
    let (plan_of, rows) = (&all.nodes[0], |plan: &NodePlan| serde_json::to_string(plan).unwrap());
    assert_eq!(rows(plan_of), rows(&one));
    assert!(one.services.iter().any(|service| !service.frontends.is_empty()));
    // And for people.
    let table = plan(&examples, &[]);
    let text = String::from_utf8(table.stdout).unwrap();
    assert!(text.starts_with("Node node-1\n") && text.contains("shop/web"), "{text}");
}

#[test]
fn an_empty_folder_is_fine() {
    let output = plan(folder(&[]).path(), &["-o", "json"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(serde_json::from_slice::<Plans>(&output.stdout).unwrap(), Plans { nodes: vec![] });
}

#[test]
fn what_cannot_be_read_is_1_with_file_line_and_field() {
    let output = plan(Path::new("/nonexistent"), &["-o", "json"]);
    assert_eq!((output.status.code(), output.stdout), (Some(1), vec![]));

    let broken = folder(&[("nodes.yaml", NODE), ("web.yaml", "a: 1\nb: [\n")]);
    let output = plan(broken.path(), &["-o", "json"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &[][..]));
    assert!(stderr(&output).contains("web.yaml:"), "{}", stderr(&output));

    let invalid = folder(&[("nodes.yaml", NODE), ("web.yaml", &service("web", 80))]);
    let output = plan(invalid.path(), &["-o", "json"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &[][..]));
    let expected = "web.yaml:4: error: Service/default/web: spec.ports[0].nodePort: Invalid value: 80";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    // The range is the cluster's own to choose.
    let output = plan(invalid.path(), &["--service-node-port-range", "1-1023"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn an_unknown_node_is_1_and_a_wrong_command_line_2() {
    let dir = folder(&[("nodes.yaml", NODE)]);
    let output = plan(dir.path(), &["--node", "node-2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("node-1"), "{}", stderr(&output));
    assert_eq!(plan(dir.path(), &["--nodeport-addresses", "somewhere"]).status.code(), Some(2));
}

#[test]
fn problems_are_3_and_in_the_plan() {
    let dir = folder(&[("nodes.yaml", NODE), ("a.yaml", &service("a", 30080)), ("b.yaml", &service("bb", 30080))]);
    let output = plan(dir.path(), &["--node", "node-1", "-o", "json"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let plan_of: NodePlan = serde_json::from_slice(&output.stdout).unwrap();
    let problems: Vec<_> = plan_of.services.iter().flat_map(|service| &service.problems).collect();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].object, "Service/default/bb");
    assert!(problems[0].message.contains("default/a"), "{}", problems[0].message);
    let table = plan(dir.path(), &["--node", "node-1"]);
    assert!(String::from_utf8(table.stdout).unwrap().contains("Problems\n Service/default/bb: "));
}

#[test]
fn warnings_are_told_and_change_nothing() {
    let text = service("web", 30080).replace("nodePort", "nodeport");
    let dir = folder(&[("nodes.yaml", NODE), ("web.yaml", &text)]);
    let output = plan(dir.path(), &["-o", "json"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("spec.ports[0].nodeport: unknown field"), "{}", stderr(&output));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let mut command = Command::new(cargo_bin("culvert"));
    command.args(["plan", "-o", "json", "--manifests"]).arg(examples);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}
