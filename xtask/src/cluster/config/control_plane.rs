//! How etcd, API server, controller manager and scheduler are called.

use std::path::Path;

use serde_json::{Value, json};

use crate::cluster::plan::{API_PORT, Plan, bracketed};

/// etcd's arguments. What it holds is worth nothing after the machine's next start, so it need not wait for the disk.
pub fn etcd(plan: &Plan, data: &Path) -> Vec<String> {
    let client = format!("http://{}:2379", bracketed(plan.etcd()));
    vec![
        format!("--data-dir={}", data.display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        "--unsafe-no-fsync".to_owned(),
        "--quota-backend-bytes=4294967296".to_owned(),
    ]
}

/// The API server's arguments; `pki` is the directory of certificates.
pub fn api_server(plan: &Plan, pki: &Path) -> Vec<String> {
    let file = |option: &str, name: &str| format!("--{option}={}", pki.join(name).display());
    let any = if plan.api().is_ipv4() { "0.0.0.0" } else { "::" };
    vec![
        format!("--advertise-address={}", plan.api()),
        format!("--bind-address={any}"),
        format!("--secure-port={API_PORT}"),
        format!("--etcd-servers=http://{}:2379", bracketed(plan.etcd())),
        format!("--service-cluster-ip-range={}", plan.services()),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        // Names of nodes are in no DNS.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--profiling=false".to_owned(),
        file("client-ca-file", "ca.crt"),
        file("tls-cert-file", "api.crt"),
        file("tls-private-key-file", "api.key"),
        file("kubelet-client-certificate", "admin.crt"),
        file("kubelet-client-key", "admin.key"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        file("service-account-key-file", "accounts.key"),
        file("service-account-signing-key-file", "accounts.key"),
    ]
}

/// The API server as a static pod.
pub fn api_server_pod(plan: &Plan, image: &str, pki: &Path) -> Value {
    let mut command = vec!["kube-apiserver".to_owned()];
    command.extend(api_server(plan, pki));
    let probe = |path: &str| json!({"scheme": "HTTPS", "host": plan.api(), "port": API_PORT, "path": path});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "kube-apiserver",
            "namespace": "kube-system",
            "labels": {"component": "kube-apiserver", "tier": "control-plane"},
        },
        "spec": {
            "hostNetwork": true,
            "priorityClassName": "system-node-critical",
            "containers": [{
                "name": "kube-apiserver",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": command,
                "readinessProbe": {"httpGet": probe("/readyz"), "periodSeconds": 1, "timeoutSeconds": 15, "failureThreshold": 3},
                "livenessProbe": {"httpGet": probe("/livez"), "periodSeconds": 10, "timeoutSeconds": 15, "failureThreshold": 8},
                "startupProbe": {"httpGet": probe("/livez"), "periodSeconds": 1, "timeoutSeconds": 15, "failureThreshold": 120},
                "volumeMounts": [{"name": "pki", "mountPath": pki, "readOnly": true}],
            }],
            "volumes": [{"name": "pki", "hostPath": {"path": pki, "type": "Directory"}}],
        },
    })
}

/// The controller manager's arguments.
pub fn controller_manager(pki: &Path, kubeconfig: &Path) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        // Nodes come with their ranges: their pod networks are configured before the API server answers.
        "--allocate-node-cidrs=false".to_owned(),
        "--use-service-account-credentials=true".to_owned(),
        format!("--root-ca-file={}", pki.join("ca.crt").display()),
        format!("--service-account-private-key-file={}", pki.join("accounts.key").display()),
    ]
}

/// The scheduler's arguments.
pub fn scheduler(kubeconfig: &Path) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{options::Families, plan::tests::plan};

    #[test]
    fn the_api_server_speaks_the_primary_family() {
        let plan = plan(Families::V6);
        let arguments = api_server(&plan, Path::new("/pki"));
        for expected in
            ["--bind-address=::", "--etcd-servers=http://[fd00:c1:3:1::1]:2379", "--client-ca-file=/pki/ca.crt"]
        {
            assert!(arguments.iter().any(|argument| argument == expected), "{expected}");
        }
    }

    /// Upstream's Disruptive specs find and delete the pod by this label.
    #[test]
    fn the_api_server_can_be_found_as_a_pod() {
        let pod = api_server_pod(&plan(Families::V4), "image:1", Path::new("/pki"));
        assert_eq!(pod["metadata"]["labels"]["component"], "kube-apiserver");
        assert_eq!(pod["spec"]["containers"][0]["image"], "image:1");
    }
}
