//! The files and objects of a cluster, as functions of its plan. Nothing here reads or writes.

pub mod control_plane;
pub mod coredns;
pub mod culvert;
pub mod flannel;
pub mod kube_proxy;
pub mod node;

use std::path::Path;

use serde_json::{Value, json};

/// A kubeconfig with one cluster and one user, who has the certificate `CERTIFICATES/USER.crt`.
pub fn kubeconfig(cluster: &str, server: &str, certificates: &Path, user: &str) -> Value {
    let file = |name: String| certificates.join(name);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": cluster,
            "cluster": {"server": server, "certificate-authority": file("ca.crt".to_owned())},
        }],
        "users": [{
            "name": user,
            "user": {"client-certificate": file(format!("{user}.crt")), "client-key": file(format!("{user}.key"))},
        }],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        "current-context": cluster,
    })
}

/// A kubeconfig for a pod with a ServiceAccount, which asks the API server at `server` rather than at its ClusterIP.
pub fn pod_kubeconfig(server: &str) -> Value {
    let token = "/var/run/secrets/kubernetes.io/serviceaccount";
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": format!("{token}/ca.crt")}}],
        "users": [{"name": "u", "user": {"tokenFile": format!("{token}/token")}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    })
}

/// Objects as one `List`.
pub fn list(items: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// A ServiceAccount of kube-system, bound to a ClusterRole.
pub fn account(name: &str, role: &str) -> Vec<Value> {
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "kube-system"}}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": format!("culvert-cluster:{name}")},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "kube-system"}],
        }),
    ]
}
