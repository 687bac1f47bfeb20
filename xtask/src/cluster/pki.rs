//! A cluster's certificates, made by openssl: a throw-away authority and one certificate for each who speaks TLS.

use std::{net::IpAddr, path::Path, process::Command, thread};

use anyhow::{Context, Result};

use super::plan::Plan;
use crate::process::output;

const DAYS: &str = "365";

/// Whose certificate it is, and of what groups and addresses.
struct Subject {
    /// Name of the files, without `.crt` and `.key`.
    file: String,
    name: String,
    organization: Option<&'static str>,
    names: Vec<String>,
}

impl Subject {
    fn user(file: &str, name: &str, organization: Option<&'static str>) -> Self {
        Self { file: file.to_owned(), name: name.to_owned(), organization, names: Vec::new() }
    }

    fn distinguished_name(&self) -> String {
        let organization = self.organization.map(|name| format!("/O={name}")).unwrap_or_default();
        format!("{organization}/CN={}", self.name)
    }

    fn extensions(&self) -> Vec<String> {
        let usage = "extendedKeyUsage=clientAuth,serverAuth".to_owned();
        if self.names.is_empty() {
            return vec![usage];
        }
        vec![usage, format!("subjectAltName={}", self.names.join(","))]
    }
}

/// Writes all certificates and keys into `directory`, which exists.
pub fn make(plan: &Plan, directory: &Path) -> Result<()> {
    output(&mut key_of_accounts(directory))?;
    output(&mut authority(directory))?;
    let subjects = subjects(plan);
    thread::scope(|scope| {
        let calls: Vec<_> =
            subjects.iter().map(|one| scope.spawn(|| output(&mut certificate(directory, one)))).collect();
        for (call, subject) in calls.into_iter().zip(&subjects) {
            let outcome = call.join().ok().context("openssl was lost").and_then(|result| result);
            outcome.with_context(|| format!("certificate of {}", subject.name))?;
        }
        Ok(())
    })
}

/// Kubernetes knows a user by the common name, its groups by the organization.
fn subjects(plan: &Plan) -> Vec<Subject> {
    let mut subjects = vec![
        Subject { names: api_server_names(plan), ..Subject::user("api", "kube-apiserver", None) },
        Subject::user("admin", "admin", Some("system:masters")),
        Subject::user("controller-manager", "system:kube-controller-manager", None),
        Subject::user("scheduler", "system:kube-scheduler", None),
    ];
    subjects.extend(
        plan.nodes()
            .map(|node| Subject::user(&format!("n{node}"), &format!("system:node:n{node}"), Some("system:nodes"))),
    );
    subjects
}

fn api_server_names(plan: &Plan) -> Vec<String> {
    let addresses = [plan.api(), plan.kubernetes_service(), IpAddr::from([127, 0, 0, 1])];
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ];
    addresses.iter().map(|address| format!("IP:{address}")).chain(names.map(|name| format!("DNS:{name}"))).collect()
}

fn openssl(directory: &Path) -> Command {
    let mut command = Command::new("openssl");
    command.current_dir(directory);
    command
}

fn key_of_accounts(directory: &Path) -> Command {
    let mut command = openssl(directory);
    // Not PKCS #8: the API server reads the public half of this format alone.
    command.args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "accounts.key"]);
    command
}

fn new_key(command: &mut Command) {
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", DAYS]);
}

fn authority(directory: &Path) -> Command {
    let mut command = openssl(directory);
    new_key(&mut command);
    command.args(["-subj", "/CN=culvert-cluster", "-keyout", "ca.key", "-out", "ca.crt"]);
    command
}

fn certificate(directory: &Path, subject: &Subject) -> Command {
    let mut command = openssl(directory);
    new_key(&mut command);
    command.args(["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=CA:FALSE"]);
    command.args(["-subj", &subject.distinguished_name()]);
    for extension in subject.extensions() {
        command.args(["-addext", &extension]);
    }
    command.args(["-keyout", &format!("{}.key", subject.file), "-out", &format!("{}.crt", subject.file)]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{options::Families, plan::tests::plan};

    #[test]
    fn nodes_are_users_of_the_group_of_nodes() {
        let subjects = subjects(&plan(Families::V4));
        let node = subjects.iter().find(|subject| subject.file == "n2").unwrap();
        assert_eq!(node.distinguished_name(), "/O=system:nodes/CN=system:node:n2");
    }

    #[test]
    fn the_api_server_is_known_by_its_addresses() {
        let names = api_server_names(&plan(Families::V4));
        for expected in ["IP:10.131.0.11", "IP:10.99.0.1", "DNS:kubernetes.default.svc"] {
            assert!(names.iter().any(|name| name == expected), "{expected}");
        }
    }
}
