//! What a user installs: the chart in all its ways, the kustomize base, the alerts. They need helm and kubectl
//! (`culvert_tests::programs` says where they come from) and the API server's schema (`$CULVERT_OPENAPI`, or the test
//! cluster's Go module); no cluster and no root. Where `$CULVERT_KUBECONFIG` names a cluster, its API server is asked as well.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::agent::binary;
use culvert_tests::deploy::chart::{Chart, kustomize, try_on};
use culvert_tests::deploy::objects::{arguments, by_name, containers, text, yaml};
use culvert_tests::deploy::repository;
use culvert_tests::deploy::schema::Schemas;
use culvert_tests::scope::Scope;
use culvert_tests::shell::run;
use serde_json::{Value, json};

/// Values of many kinds, each valid; every value of the chart is set somewhere.
fn matrix() -> Vec<Value> {
    let scraped = json!({"bindAddress": "[::]:10249"});
    vec![
        json!({}),
        json!({"apiServers": ["https://192.0.2.1:6443", "https://[2001:db8::1]:6443"], "socketMode": "host"}),
        json!({"kubeconfig": "/etc/kubernetes/culvert.conf", "rbac": {"nodeNames": ["n1", "n2"]}}),
        json!({"nodeportAddresses": ["192.0.2.0/24", "2001:db8::/32"], "allowExternalIPs": ["198.51.100.0/24"]}),
        json!({"podLinks": ["cali*", "!cali0"], "nodeLinks": ["eth*"], "limits": {"flows": 1_048_576, "slab-bytes": 67_108_864}}),
        json!({"serviceNodePortRange": "30000-40000", "snatPorts": "50000-60000",
            "logging": {"level": "info,culvert_dataplane=debug", "format": "json"}}),
        json!({"healthz": {"bindAddress": "[::]:10256"}, "metrics": {"bindAddress": "192.0.2.1:9100"}}),
        json!({"metrics": scraped, "podMonitor": {"enabled": true, "interval": "15s", "labels": {"release": "p"}}}),
        json!({"metrics": scraped, "serviceMonitor": {"enabled": true, "interval": "1m", "labels": {"release": "p"}},
            "prometheusRule": {"enabled": true, "labels": {"release": "p"}}}),
        json!({"hostPaths": {"bpffs": "/run/n1/bpf", "cgroup": "/sys/fs/cgroup/unified", "run": "/run/n1", "state": "/var/lib/n1"}}),
        json!({"nodeSetup": {"enabled": false}, "seccompProfile": {"type": "Unconfined"}, "priorityClassName": ""}),
        json!({"nodeSetup": {"skip": ["bpffs", "forwarding"], "conntrack": {"maxPerCore": 0, "min": 0,
            "tcpTimeoutEstablished": 0, "tcpTimeoutCloseWait": 0}}}),
        json!({"image": {"repository": "localhost:5000/culvert", "tag": "dev", "pullPolicy": "Never"},
            "imagePullSecrets": [{"name": "registry"}], "nameOverride": "lb", "seLinuxOptions": {"type": "spc_t"},
            "seccompProfile": {"type": "Localhost", "localhostProfile": "culvert.json"}}),
        json!({"image": {"digest": format!("sha256:{}", "0".repeat(64))}, "updateStrategy": {"maxUnavailable": "10%"},
            "podLabels": {"k8s-app": "kube-proxy"}, "podAnnotations": {"a": "b"}, "terminationGracePeriodSeconds": 30,
            "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}, "extraArgs": ["--trace-datapath"],
            "nodeSelector": {"pool": "a"}, "tolerations": [{"key": "a", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}}}),
        json!({"serviceAccount": {"create": false, "name": "other"}, "rbac": {"create": false}, "crds": {"install": false}}),
        json!({"controller": {"enabled": true, "replicas": 3, "configNamespaces": ["metallb-system", "lb"],
            "loadBalancerClass": "culvert.dev/lb", "bindAddress": "[::]:7472", "resources": {"limits": {"memory": "1Gi"}},
            "extraArgs": ["--lease-duration=30"], "podLabels": {"a": "b"}, "podAnnotations": {"c": "d"},
            "nodeSelector": {"pool": "a"}, "tolerations": [{"key": "a", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1,
                "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}}]}}},
            "apiServers": ["https://192.0.2.1:6443"], "imagePullSecrets": [{"name": "registry"}]}),
        json!({"controller": {"enabled": true}, "crds": {"install": false}, "rbac": {"create": false}}),
        json!({"controller": {"enabled": true}, "metrics": scraped, "podMonitor": {"enabled": true}}),
        json!({"layer2": {"enabled": true}}),
        json!({"controller": {"enabled": true, "configNamespaces": ["lb"], "loadBalancerClass": "culvert.dev/lb"},
            "layer2": {"enabled": true, "secretName": "key", "port": 7000}, "kubeconfig": "/etc/kubernetes/culvert.conf"}),
        json!({"controller": {"enabled": true, "bindAddress": "[::]:9120"}, "metrics": scraped, "serviceMonitor": {"enabled": true}}),
    ]
}

fn daemonset(objects: &[Value]) -> Result<&Value> {
    objects.iter().find(|object| object["kind"] == "DaemonSet").context("no DaemonSet")
}

fn container<'a>(daemonset: &'a Value, name: &str) -> Result<&'a Value> {
    containers(daemonset).find(|container| container["name"] == name).with_context(|| format!("no container {name}"))
}

#[test]
fn the_api_server_would_take_whatever_the_chart_renders() -> Result<()> {
    let (chart, schemas) = (Chart::new(), Schemas::new()?);
    chart.lint()?;
    let cluster = std::env::var_os("CULVERT_KUBECONFIG");
    for values in matrix() {
        let mut objects = chart.render(&values)?;
        // Prometheus' own kinds have their schema in its operator, not in the API server.
        objects.retain(|object| object["apiVersion"] != "monitoring.coreos.com/v1");
        // Nor has the API server's that of definitions; `kube_controller` has it take them.
        objects.retain(|object| object["kind"] != "CustomResourceDefinition");
        for object in &objects {
            schemas.check(object).with_context(|| format!("with {values}"))?;
        }
        if let Some(kubeconfig) = &cluster {
            try_on(Path::new(kubeconfig), &objects).with_context(|| format!("with {values}"))?;
        }
    }
    Ok(())
}

#[test]
fn the_program_takes_the_arguments_that_the_chart_gives_it() -> Result<()> {
    let chart = Chart::new();
    for values in matrix() {
        let objects = chart.render(&values)?;
        for container in objects.iter().flat_map(containers) {
            // Arguments are read, then help is printed: an unknown one, or one with a bad value, is an error before.
            let mut command = Command::new(binary()?);
            run(command.args(arguments(container)).arg("--help")).with_context(|| format!("with {values}"))?;
        }
    }
    Ok(())
}

#[test]
fn the_agent_has_four_capabilities_whatever_the_values() -> Result<()> {
    let chart = Chart::new();
    for values in matrix() {
        let objects = chart.render(&values)?;
        let daemonset = daemonset(&objects)?;
        let context = &container(daemonset, "agent")?["securityContext"];
        for (field, wanted) in [
            ("/privileged", json!(false)),
            ("/allowPrivilegeEscalation", json!(false)),
            ("/readOnlyRootFilesystem", json!(true)),
            ("/capabilities/drop", json!(["ALL"])),
            ("/capabilities/add", json!(["NET_ADMIN", "BPF", "PERFMON", "NET_RAW"])),
        ] {
            ensure!(context.pointer(field) == Some(&wanted), "{field} with {values}: {context}");
        }
        let pod = &daemonset["spec"]["template"]["spec"];
        ensure!(pod["hostPID"].is_null() && pod["hostIPC"].is_null(), "{pod}");
        let privileged = containers(daemonset).filter(|container| container["securityContext"]["privileged"] == true);
        let privileged: Vec<_> = privileged.map(|container| &container["name"]).collect();
        let allowed = if values["nodeSetup"]["enabled"] == false { vec![] } else { vec!["node-setup"] };
        ensure!(privileged == allowed, "privileged with {values}: {privileged:?}");
    }
    Ok(())
}

/// What the roles allow: verbs on resources, sorted.
fn allowed(objects: &[Value]) -> Vec<String> {
    let words =
        |value: &Value| value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let rules =
        objects.iter().filter(|object| object["kind"] == "ClusterRole").filter_map(|role| role["rules"].as_array());
    let mut allowed = Vec::new();
    for rule in rules.flatten() {
        let (verbs, resources): (Vec<String>, Vec<String>) = (words(&rule["verbs"]), words(&rule["resources"]));
        allowed
            .extend(verbs.iter().flat_map(|verb| resources.iter().map(move |resource| format!("{verb} {resource}"))));
    }
    allowed.sort_unstable();
    allowed.dedup();
    allowed
}

#[test]
fn the_agent_may_read_three_kinds_and_write_events() -> Result<()> {
    let objects = Chart::new().render(&json!({}))?;
    let wanted = [
        "create events",
        "get endpointslices",
        "get nodes",
        "get services",
        "list endpointslices",
        "list nodes",
        "list services",
        "patch events",
        "watch endpointslices",
        "watch nodes",
        "watch services",
    ];
    ensure!(allowed(&objects) == wanted, "{:?}", allowed(&objects));
    let kinds = objects.iter().filter(|object| object["kind"] == "Role" || object["kind"] == "RoleBinding");
    ensure!(kinds.count() == 0, "a Role");
    Ok(())
}

/// What layer 2 adds to a cluster with a controller, and the agent that it makes another one.
fn of_layer2(values: &Value) -> Result<(Vec<Value>, Value)> {
    let mut values = values.clone();
    values["controller"]["enabled"] = json!(true);
    let without = by_name(Chart::new().render(&values)?)?;
    values["layer2"]["enabled"] = json!(true);
    let mut with = by_name(Chart::new().render(&values)?)?;
    let agent = with.remove("DaemonSet culvert-agent").context("no DaemonSet")?;
    let same = |(name, object): (&String, &Value)| name == "DaemonSet culvert-agent" || with.get(name) == Some(object);
    ensure!(without.iter().all(same), "layer 2 changes more than the agent");
    Ok((with.into_iter().filter(|(name, _)| !without.contains_key(name)).map(|(_, object)| object).collect(), agent))
}

#[test]
fn the_agent_reads_what_announcing_depends_on_only_where_it_announces() -> Result<()> {
    let (objects, agent) = of_layer2(&json!({"controller": {"loadBalancerClass": "culvert.dev/lb"}}))?;
    let wanted = [
        "get communities",
        "get ipaddresspools",
        "get l2advertisements",
        "get nodes",
        "list communities",
        "list ipaddresspools",
        "list l2advertisements",
        "list nodes",
        "list pods",
        "watch communities",
        "watch ipaddresspools",
        "watch l2advertisements",
        "watch nodes",
    ];
    ensure!(allowed(&objects) == wanted, "{:?}", allowed(&objects));
    let role = objects.iter().find(|object| object["kind"] == "Role").context("no Role")?;
    let (leases, named) = ("coordination.k8s.io", ["culvert-layer2"]);
    let rules = json!([
        {"apiGroups": ["metallb.io"], "resources": ["servicel2statuses"], "verbs": ["list", "create", "delete"]},
        {"apiGroups": ["metallb.io"], "resources": ["servicel2statuses/status"], "verbs": ["patch"]},
        {"apiGroups": [leases], "resources": ["leases"], "verbs": ["create"]},
        {"apiGroups": [leases], "resources": ["leases"], "resourceNames": named, "verbs": ["get", "patch"]},
    ]);
    ensure!(role["rules"] == rules, "{role}");
    let arguments: Vec<_> = arguments(container(&agent, "agent")?);
    for wanted in ["--layer2", "--layer2-key-file=/etc/culvert/layer2/key", "--load-balancer-class=culvert.dev/lb"] {
        ensure!(arguments.contains(&wanted), "{wanted} is not in {arguments:?}");
    }
    let off = Chart::new().render(&json!({}))?;
    ensure!(!daemonset(&off)?.to_string().contains("layer2"), "{off:?}");
    Ok(())
}

#[test]
fn agents_that_announce_share_a_random_key() -> Result<()> {
    let key = || -> Result<String> {
        let (objects, _) = of_layer2(&json!({}))?;
        let secret = objects.iter().find(|object| object["kind"] == "Secret").context("no Secret")?;
        ensure!(secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep", "{secret}");
        Ok(text(secret, "/data/key")?.to_owned())
    };
    let (one, other) = (key()?, key()?);
    ensure!(one != other && one.len() >= 32, "{one} {other}");
    Ok(())
}

/// What the controller adds to what is rendered without it.
fn of_controller(values: &Value) -> Result<Vec<Value>> {
    let mut values = values.clone();
    values["controller"]["enabled"] = json!(true);
    let without = by_name(Chart::new().render(&json!({}))?)?;
    let with = by_name(Chart::new().render(&values)?)?;
    ensure!(without.iter().all(|(name, object)| with.get(name) == Some(object)), "the agent is another one");
    Ok(with.into_iter().filter(|(name, _)| !without.contains_key(name)).map(|(_, object)| object).collect())
}

#[test]
fn the_controller_may_write_the_status_of_services_and_of_pools_its_own_state_and_one_lease() -> Result<()> {
    let objects = of_controller(&json!({}))?;
    let writes: Vec<String> = allowed(&objects)
        .into_iter()
        .filter(|rule| !["get", "list", "watch"].iter().any(|verb| rule.starts_with(verb)))
        .collect();
    let wanted = ["create events", "patch events", "patch ipaddresspools/status", "patch services/status"];
    ensure!(writes == wanted, "{writes:?}");
    let reads: Vec<String> =
        allowed(&objects).into_iter().filter(|rule| rule.ends_with("pods") || rule.ends_with("namespaces")).collect();
    ensure!(reads == ["list namespaces", "list pods", "watch namespaces"], "{reads:?}");
    let role = objects.iter().find(|object| object["kind"] == "Role").context("no Role")?;
    let lease = json!([
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": ["culvert-controller"], "verbs": ["get", "patch"]},
        {"apiGroups": ["metallb.io"], "resources": ["configurationstates"], "verbs": ["create"]},
        {"apiGroups": ["metallb.io"], "resources": ["configurationstates/status"], "resourceNames": ["culvert-controller"],
            "verbs": ["patch"]},
    ]);
    ensure!(role["rules"] == lease, "{role}");
    Ok(())
}

#[test]
fn the_controller_is_scraped_where_the_agent_is() -> Result<()> {
    for (name, kind) in [("podMonitor", "PodMonitor"), ("serviceMonitor", "ServiceMonitor")] {
        let values = json!({"controller": {"enabled": true}, "metrics": {"bindAddress": "0.0.0.0:10249"}, name: {"enabled": true}});
        let objects = by_name(Chart::new().render(&values)?)?;
        let deployment = objects.get("Deployment culvert-controller").context("no Deployment")?;
        let container = containers(deployment).next().context("no container")?;
        ensure!(container["ports"] == json!([{"name": "metrics", "containerPort": 7472}]), "{container}");
        for part in ["agent", "controller"] {
            let monitor =
                objects.get(&format!("{kind} culvert-{part}")).with_context(|| format!("{part}: no {kind}"))?;
            ensure!(monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"] == part, "{monitor}");
        }
    }
    Ok(())
}

#[test]
fn the_controller_has_no_privileges() -> Result<()> {
    for object in of_controller(&json!({}))?.iter().filter(|object| object["kind"] == "Deployment") {
        let pod = &object["spec"]["template"]["spec"];
        ensure!(["hostNetwork", "hostPID", "hostIPC", "volumes"].iter().all(|field| pod[field].is_null()), "{pod}");
        for container in containers(object) {
            let context = &container["securityContext"];
            ensure!(
                context["runAsNonRoot"] == true && context["capabilities"] == json!({"drop": ["ALL"]}),
                "{context}"
            );
        }
    }
    Ok(())
}

#[test]
fn probes_ask_where_the_agent_listens() -> Result<()> {
    let chart = Chart::new();
    for (address, host, port) in [
        ("0.0.0.0:10256", "127.0.0.1", 10_256),
        ("[::]:1", "::1", 1),
        ("192.0.2.1:2", "192.0.2.1", 2),
        ("[2001:db8::1]:3", "2001:db8::1", 3),
    ] {
        let objects = chart.render(&json!({"healthz": {"bindAddress": address}}))?;
        let agent = container(daemonset(&objects)?, "agent")?;
        for (probe, path) in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
            let get = &agent[probe]["httpGet"];
            ensure!(*get == json!({"host": host, "port": "healthz", "path": path}), "{address}: {probe}: {get}");
        }
        let ports = agent["ports"].as_array().context("no ports")?;
        ensure!(ports.contains(&json!({"name": "healthz", "containerPort": port})), "{address}: {ports:?}");
    }
    Ok(())
}

#[test]
fn labels_of_pods_leave_the_selector_alone() -> Result<()> {
    let values = json!({"podLabels": {"k8s-app": "kube-proxy", "app.kubernetes.io/name": "mine"}});
    let objects = Chart::new().render(&values)?;
    let daemonset = daemonset(&objects)?;
    let labels = &daemonset["spec"]["template"]["metadata"]["labels"];
    ensure!(labels["k8s-app"] == "kube-proxy", "{labels}");
    let selector = daemonset["spec"]["selector"]["matchLabels"].as_object().context("no selector")?;
    ensure!(selector.iter().all(|(name, value)| labels[name] == *value), "{labels} {selector:?}");
    ensure!(!selector.contains_key("k8s-app"), "{selector:?}");
    Ok(())
}

#[test]
fn wrong_values_are_refused_by_name() -> Result<()> {
    let chart = Chart::new();
    for (values, name) in [
        (json!({"apiServer": "https://192.0.2.1:6443"}), "apiServer"),
        (json!({"apiServers": ["192.0.2.1:6443"]}), "apiServers"),
        (json!({"socketMode": "off"}), "socketMode"),
        (json!({"nodeportAddresses": ["primary", "192.0.2.0/24"]}), "nodeportAddresses"),
        (json!({"limits": {"flow": 1}}), "limits"),
        (json!({"metrics": {"bindAddress": "10249"}}), "bindAddress"),
        (json!({"podMonitor": {"enabled": true}}), "metrics.bindAddress"),
        (
            json!({"podMonitor": {"enabled": true}, "serviceMonitor": {"enabled": true},
            "metrics": {"bindAddress": "0.0.0.0:10249"}}),
            "serviceMonitor.enabled",
        ),
        (json!({"updateStrategy": {"maxUnavailable": 0}}), "maxUnavailable"),
        (json!({"serviceAccount": {"create": false}}), "serviceAccount.name"),
    ] {
        let refusal = chart.refusal(&values)?;
        ensure!(refusal.contains(name), "{values}: {refusal}");
    }
    Ok(())
}

#[test]
fn every_value_is_explained_and_has_a_schema() -> Result<()> {
    let read = |name: &str| fs::read_to_string(repository("deploy/helm/culvert").join(name)).context(name.to_owned());
    let (readme, schema): (_, Value) = (read("README.md")?, serde_json::from_str(&read("values.schema.json")?)?);
    let values: Value = serde_saphyr::from_str(&read("values.yaml")?)?;
    let mut names = Vec::new();
    leaves(&values, "", &mut names);
    for name in &names {
        // In a table, by its whole name; where some share a row, the later ones by their last part.
        let last = name.rsplit('.').next().unwrap_or_default();
        let section = name.split('.').next().unwrap_or_default();
        let explained = readme.lines().any(|line| {
            line.starts_with(&format!("| `{name}`"))
                || line.contains(&format!("`{name}`"))
                || line.starts_with(&format!("| `{section}.")) && line.contains(&format!("`.{last}`"))
                || line.starts_with(&format!("| `{section}`"))
        });
        ensure!(explained, "README.md does not explain {name}");
        let pointer = format!("/properties/{}", name.replace('.', "/properties/"));
        let parent = pointer.rsplit_once("/properties/").map_or("", |(parent, _)| parent);
        let known = schema.pointer(&pointer).is_some()
            || schema.pointer(parent).is_some_and(|parent| parent["properties"].is_null());
        ensure!(known, "values.schema.json does not know {name}");
    }
    ensure!(names.len() > 40, "{names:?}");
    Ok(())
}

fn leaves(values: &Value, path: &str, names: &mut Vec<String>) {
    let free = ["nodeSelector", "seccompProfile", "resources", "controller.nodeSelector", "controller.resources"];
    let free = free.contains(&path);
    match values.as_object().filter(|fields| !fields.is_empty() && !free) {
        Some(fields) => fields.iter().for_each(|(name, value)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            leaves(value, &path, names);
        }),
        None => names.push(path.to_owned()),
    }
}

// ===== what is rendered once and kept =====

/// A file of the repository is what the chart renders; `CULVERT_WRITE_DOCS=1` writes it.
fn is_rendered(path: &str, object: &Value) -> Result<()> {
    let comment = "# Written from the chart (deploy/helm/culvert): CULVERT_WRITE_DOCS=1 cargo test -p culvert-tests --test deploy";
    let (path, wanted) = (repository(path), yaml(comment, object)?);
    if std::env::var_os("CULVERT_WRITE_DOCS").is_some() {
        fs::write(&path, &wanted)?;
    }
    let found = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    ensure!(found == wanted, "{} is not what the chart renders; CULVERT_WRITE_DOCS=1 writes it anew", path.display());
    Ok(())
}

#[test]
fn the_kustomize_base_renders_what_the_chart_renders() -> Result<()> {
    let base = "deploy/kustomize/base";
    let chart = by_name(Chart::new().render(&json!({}))?)?;
    let mut files = Vec::new();
    for object in chart.values() {
        let file = format!("{}.yaml", text(object, "/kind")?.to_ascii_lowercase());
        is_rendered(&format!("{base}/{file}"), object)?;
        files.push(file);
    }
    let kustomization: Value =
        serde_saphyr::from_str(&fs::read_to_string(repository(base).join("kustomization.yaml"))?)?;
    ensure!(kustomization["resources"] == json!(files), "kustomization.yaml names other files than {files:?}");
    let rendered = by_name(kustomize(&repository(base))?)?;
    ensure!(rendered == chart, "kustomize renders {rendered:#?}, helm {chart:#?}");
    Ok(())
}

#[test]
fn what_kustomize_adds_for_the_controller_is_what_the_chart_adds() -> Result<()> {
    let directory = "deploy/kustomize/controller";
    let objects = of_controller(&json!({}))?;
    let mut files = Vec::new();
    for object in &objects {
        let kind = text(object, "/kind")?.to_ascii_lowercase();
        let file = match kind.as_str() {
            "customresourcedefinition" => format!("crd-{}.yaml", text(object, "/spec/names/plural")?),
            _ => format!("{kind}.yaml"),
        };
        is_rendered(&format!("{directory}/{file}"), object)?;
        files.push(file);
    }
    let kustomization: Value =
        serde_saphyr::from_str(&fs::read_to_string(repository(directory).join("kustomization.yaml"))?)?;
    ensure!(kustomization["resources"] == json!(files), "kustomization.yaml names other files than {files:?}");
    let rendered = by_name(kustomize(&repository(directory))?)?;
    ensure!(rendered == by_name(objects.clone())?, "kustomize renders {rendered:#?}, helm {objects:#?}");
    Ok(())
}

#[test]
fn what_kustomize_adds_for_layer_2_is_what_the_chart_adds() -> Result<()> {
    let directory = "deploy/kustomize/layer2";
    let (objects, agent) = of_layer2(&json!({}))?;
    for object in objects.iter().filter(|object| object["kind"] != "Secret") {
        let kind = text(object, "/kind")?.to_ascii_lowercase();
        is_rendered(&format!("{directory}/{kind}.yaml"), object)?;
    }
    let scope = Scope::open()?;
    copy(&repository("deploy/kustomize"), scope.dir())?;
    let overlay = scope.dir().join("kustomize/overlay");
    fs::create_dir(&overlay)?;
    fs::write(overlay.join("kustomization.yaml"), "resources: [../base, ../controller]\ncomponents: [../layer2]\n")?;
    let rendered = by_name(kustomize(&overlay)?)?;
    for object in objects.iter().chain([&agent]).filter(|object| object["kind"] != "Secret") {
        let name = format!("{} {}", text(object, "/kind")?, text(object, "/metadata/name")?);
        ensure!(rendered.get(&name) == Some(object), "kustomize renders {:#?}, helm {object:#}", rendered.get(&name));
    }
    Ok(())
}

#[test]
fn the_alerts_are_those_of_the_chart() -> Result<()> {
    let values = json!({"prometheusRule": {"enabled": true}});
    let rule = by_name(Chart::new().render(&values)?)?.remove("PrometheusRule culvert-agent").context("no rule")?;
    let rules = rule["spec"]["groups"][0]["rules"].as_array().context("no rules")?;
    ensure!(rules.iter().all(|rule| rule["alert"].is_string() && rule["annotations"]["summary"].is_string()), "{rule}");
    is_rendered("deploy/alerts/culvert.yaml", &rule)
}

// ===== custom resources =====

fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("--recursive").arg(from).arg(to)).map(drop)
}

#[test]
fn definitions_of_custom_resources_are_kept_when_the_release_goes() -> Result<()> {
    let scope = Scope::open()?;
    let path = scope.dir().join("chart");
    copy(&repository("deploy/helm/culvert"), &path)?;
    fs::create_dir_all(path.join("files/crds"))?;
    let definition = |name: &str| {
        json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": name, "annotations": {"a": "b"}},
            "spec": {"group": "example.com", "scope": "Cluster", "names": {"plural": name, "kind": "A"}, "versions": []}})
    };
    for name in ["a", "b"] {
        fs::write(path.join(format!("files/crds/{name}.yaml")), serde_saphyr::to_string(&definition(name))?)?;
    }
    let chart = Chart::at(path);
    let objects = by_name(chart.render(&json!({"controller": {"enabled": true}}))?)?;
    for name in ["a", "b"] {
        let mut wanted = definition(name);
        wanted["metadata"]["annotations"]["helm.sh/resource-policy"] = json!("keep");
        ensure!(objects.get(&format!("CustomResourceDefinition {name}")) == Some(&wanted), "{objects:#?}");
    }
    let objects = chart.render(&json!({"controller": {"enabled": true}, "crds": {"install": false}}))?;
    ensure!(objects.iter().all(|object| object["kind"] != "CustomResourceDefinition"), "{objects:#?}");
    Ok(())
}
