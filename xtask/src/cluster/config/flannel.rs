//! flannel with VXLAN, as its own manifest installs it.

use serde_json::{Value, json};

use super::list;
use crate::cluster::plan::{Family, Plan};

const NAMESPACE: &str = "kube-flannel";

/// Its objects. It finds the API server as most pods do, at the Service `kubernetes`.
pub fn objects(plan: &Plan, image: &str, plugin: &str) -> Value {
    let network = json!({"name": "cbr0", "cniVersion": "0.3.1", "plugins": [
        {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]});
    let subject = json!([{"kind": "ServiceAccount", "name": "flannel", "namespace": NAMESPACE}]);
    let metadata = json!({"name": "flannel", "namespace": NAMESPACE});
    list(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": NAMESPACE,
            "labels": {"pod-security.kubernetes.io/enforce": "privileged"},
        }}),
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "flannel"}, "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
        ]}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "flannel"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flannel"},
            "subjects": subject,
        }),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {
            "cni-conf.json": network.to_string(),
            "net-conf.json": backend(plan).to_string(),
        }}),
        daemon_set(image, plugin),
    ])
}

fn backend(plan: &Plan) -> Value {
    let mut backend = json!({"EnableNFTables": false, "Backend": {"Type": "vxlan"}});
    let has = |family| plan.families().contains(&family);
    backend["EnableIPv4"] = has(Family::V4).into();
    backend["EnableIPv6"] = has(Family::V6).into();
    for family in plan.families() {
        let name = if *family == Family::V4 { "Network" } else { "IPv6Network" };
        backend[name] = plan.all_pods(*family).to_string().into();
    }
    backend
}

fn daemon_set(image: &str, plugin: &str) -> Value {
    let labels = json!({"app": "flannel"});
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
    let host = |name: &str, path: &str, kind: &str| json!({"name": name, "hostPath": {"path": path, "type": kind}});
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "flannel", "namespace": NAMESPACE, "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
            "hostNetwork": true,
            "priorityClassName": "system-node-critical",
            "serviceAccountName": "flannel",
            "tolerations": [{"operator": "Exists"}],
            "initContainers": [
                {
                    "name": "install-cni-plugin", "image": plugin, "imagePullPolicy": "IfNotPresent",
                    "command": ["cp"], "args": ["-f", "/flannel", "/opt/cni/bin/flannel"],
                    "volumeMounts": [mount("plugins", "/opt/cni/bin")],
                },
                {
                    "name": "install-cni", "image": image, "imagePullPolicy": "IfNotPresent",
                    "command": ["cp"], "args": ["-f", "/etc/kube-flannel/cni-conf.json", "/etc/cni/net.d/10-flannel.conflist"],
                    "volumeMounts": [mount("networks", "/etc/cni/net.d"), mount("configuration", "/etc/kube-flannel")],
                },
            ],
            "containers": [{
                "name": "flannel", "image": image, "imagePullPolicy": "IfNotPresent",
                "command": ["/opt/bin/flanneld"], "args": ["--ip-masq", "--kube-subnet-mgr"],
                "env": [field("POD_NAME", "metadata.name"), field("POD_NAMESPACE", "metadata.namespace")],
                "securityContext": {"privileged": false, "capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}},
                "volumeMounts": [mount("run", "/run/flannel"), mount("configuration", "/etc/kube-flannel"), mount("lock", "/run/xtables.lock")],
            }],
            "volumes": [
                host("run", "/run/flannel", "DirectoryOrCreate"),
                host("plugins", "/opt/cni/bin", "DirectoryOrCreate"),
                host("networks", "/etc/cni/net.d", "DirectoryOrCreate"),
                host("lock", "/run/xtables.lock", "FileOrCreate"),
                {"name": "configuration", "configMap": {"name": "flannel"}},
            ],
        }}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{options::Families, plan::tests::plan};

    #[test]
    fn it_is_told_the_pods_of_each_family() {
        let dual = backend(&plan(Families::Dual));
        assert_eq!(dual["Network"], "10.67.0.0/16");
        assert_eq!(dual["IPv6Network"], "fd00:c1:3:100::/56");
        let single = backend(&plan(Families::V6));
        assert_eq!((&single["EnableIPv4"], &single["EnableIPv6"]), (&json!(false), &json!(true)));
        assert!(single.get("Network").is_none());
    }
}
