//! `culvert controller` against a real API server, with the rights and the definitions that `deploy/` gives it and no more.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use culvert_tests::agent::END;
use culvert_tests::control_plane::User;
use culvert_tests::controllers::{FINALIZER, LIMIT, PODS, POOL, POOLS, SERVICES, Stage, service};
use culvert_tests::process::eventually;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";
/// How many Services the largest test has, unless `CULVERT_CONTROLLER_SERVICES` says more.
const MANY: usize = 1_000;

#[test]
fn services_get_addresses_and_give_them_up() -> Result<()> {
    let mut stage = Stage::new()?;
    // It starts before the definitions are there: that stops nothing.
    stage.plane.create(SERVICES, &service("web"))?;
    stage.start("one", &[])?;
    stage.leader(|holder| holder == "one")?;
    stage.define()?;
    stage.pool("main", "192.0.2.1-192.0.2.2")?;
    stage.has("web", "192.0.2.1", "main")?;
    let event = stage.event("web", "IPAllocated")?;
    ensure!(event["type"] == "Normal" && event["reportingComponent"] == "culvert.dev/controller", "{event}");
    stage.plane.create(SERVICES, &service("api"))?;
    stage.has("api", "192.0.2.2", "main")?;
    stage.plane.create(SERVICES, &service("late"))?;
    let event = stage.event("late", "AllocationFailed")?;
    ensure!(event["type"] == "Warning", "{event}");
    let status = json!({"assignedIPv4": 2, "assignedIPv6": 0, "availableIPv4": 0, "availableIPv6": 0});
    let told = eventually("the pool's status", LIMIT, || {
        let pool = stage.plane.ask(User::Admin, "GET", &format!("{POOLS}/main"), None)?;
        ensure!(pool["status"] == status, "{pool}");
        Ok(Some(()))
    });
    stage.with_log(told)?;
    let metrics = stage.ask(7472, "/metrics")?;
    ensure!(metrics.contains("metallb_allocator_addresses_in_use_total{pool=\"main\"} 2"), "{metrics}");
    for path in ["/livez", "/readyz"] {
        stage.ask(7472, path)?;
    }

    // One that is no LoadBalancer any more keeps nothing of it; whoever waits gets its address.
    stage.plane.patch(&format!("{SERVICES}/web"), &json!({"spec": {"type": "ClusterIP"}}))?;
    stage.has("late", "192.0.2.1", "main")?;
    let clean = eventually("nothing is left", LIMIT, || {
        let service = stage.get("web")?;
        ensure!(service["metadata"]["finalizers"].is_null(), "{service}");
        ensure!(service["metadata"]["annotations"][POOL].is_null(), "{service}");
        ensure!(service["status"]["loadBalancer"] == json!({}), "{service}");
        Ok(Some(()))
    });
    stage.with_log(clean)?;
    // One that is deleted goes, for its finalizer does.
    stage.plane.delete(&format!("{SERVICES}/late"))?;
    stage.gone("late")?;

    // A configuration that is not valid: what is in force stays, and its author is told.
    stage.pool("overlaps", "192.0.2.2/32")?;
    let told = eventually("an event about the pool", LIMIT, || {
        let events = stage.plane.ask(
            User::Admin,
            "GET",
            "/api/v1/namespaces/metallb-system/events?fieldSelector=reason=InvalidConfiguration",
            None,
        )?;
        ensure!(events["items"].as_array().is_some_and(|items| !items.is_empty()), "{events}");
        Ok(Some(()))
    });
    stage.with_log(told)?;
    stage.state("Invalid", "False", "ConfigurationError")?;
    stage.has("api", "192.0.2.2", "main")?;
    stage.plane.delete(&format!("{POOLS}/overlaps"))?;
    let state = stage.state("Valid", "True", "Reconciled")?;
    ensure!(state["metadata"]["labels"] == json!({"metallb.io/component-type": "controller"}), "{state}");
    let (_, mut one) = stage.controllers.remove(0);
    let status = one.terminate(END)?;
    ensure!(status.success(), "{status}");
    stage.leader(str::is_empty)?;
    Ok(())
}

#[test]
fn a_change_of_leader_moves_no_address() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.define()?;
    stage.pool("main", "192.0.2.0/28")?;
    // Given out in another order than that of names.
    for (name, address) in [("c", "192.0.2.0"), ("a", "192.0.2.1"), ("b", "192.0.2.2")] {
        stage.plane.create(SERVICES, &service(name))?;
        if stage.controllers.is_empty() {
            stage.start("one", &[])?;
            stage.leader(|holder| holder == "one")?;
        }
        stage.has(name, address, "main")?;
    }
    stage.start("two", &[])?;
    let before = ["a", "b", "c"].map(|name| stage.get(name));
    // As a node that goes.
    stage.controllers[0].1.kill()?;
    stage.plane.create(SERVICES, &service("d"))?;
    stage.leader(|holder| holder == "two")?;
    stage.has("d", "192.0.2.3", "main")?;
    for (name, before) in ["a", "b", "c"].into_iter().zip(before) {
        let (before, now) = (before?, stage.get(name)?);
        ensure!(now["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"], "{name} was written");
    }
    Ok(())
}

#[test]
fn one_that_was_away_for_too_long_writes_nothing_any_more() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.define()?;
    stage.pool("main", "192.0.2.0/28")?;
    stage.plane.create(SERVICES, &service("a"))?;
    stage.start("one", &[])?;
    stage.has("a", "192.0.2.0", "main")?;
    stage.start("two", &[])?;
    // As a machine that is suspended, with its view of the world.
    stage.controllers[0].1.signal(Signal::SIGSTOP)?;
    stage.leader(|holder| holder == "two")?;
    stage.plane.delete(&format!("{SERVICES}/a"))?;
    stage.plane.create(SERVICES, &service("b"))?;
    stage.has("b", "192.0.2.0", "main")?;
    let before = stage.get("b")?;
    stage.controllers[0].1.signal(Signal::SIGCONT)?;
    let knows = eventually("it knows that it leads no more", LIMIT, || {
        ensure!(stage.ask(7472, "/metrics")?.contains("culvert_controller_leads 0"), "it leads");
        Ok(Some(()))
    });
    stage.with_log(knows)?;
    stage.leader(|holder| holder == "two")?;
    ensure!(stage.get("b")? == before, "b was written");
    Ok(())
}

#[test]
fn what_another_writer_changes_is_left_alone() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.define()?;
    stage.pool("main", "192.0.2.0/28")?;
    stage.plane.create(SERVICES, &service("web"))?;
    stage.start("one", &[])?;
    stage.has("web", "192.0.2.0", "main")?;
    let path = format!("{SERVICES}/web/status");
    let status = |ip: &str| json!({"status": {"loadBalancer": {"ingress": [{"ip": ip, "ipMode": "VIP"}]}}});
    stage.plane.patch(&path, &status("203.0.113.1"))?;
    stage.event("web", "StatusOverwritten")?;
    // Others get addresses meanwhile, and not this one's.
    stage.plane.create(SERVICES, &service("api"))?;
    stage.has("api", "192.0.2.1", "main")?;
    let service = stage.get("web")?;
    ensure!(service["status"] == status("203.0.113.1")["status"], "{service}");
    // The other one has gone.
    stage.plane.patch(&path, &status("192.0.2.0"))?;
    stage.plane.patch(&path, &json!({"metadata": {"finalizers": null}}))?;
    stage.has("web", "192.0.2.0", "main")?;
    Ok(())
}

#[test]
fn while_metallb_runs_nothing_is_written_and_then_every_address_is_kept() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.define()?;
    stage.pool("main", "192.0.2.0/28")?;
    stage.plane.create(SERVICES, &service("web"))?;
    // As MetalLB leaves it: no finalizer, and an address that would not be the first.
    let status = json!({"metadata": {"annotations": {POOL: "main"}},
        "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.9", "ipMode": "VIP"}]}}});
    stage.plane.patch(&format!("{SERVICES}/web/status"), &status)?;
    let account = json!({"metadata": {"name": "default"}});
    stage.plane.create("/api/v1/namespaces/metallb-system/serviceaccounts", &account)?;
    let pod = json!({
        "metadata": {"name": "controller", "labels": {"app": "metallb", "component": "controller"}},
        "spec": {"nodeName": "n1", "automountServiceAccountToken": false,
            "containers": [{"name": "controller", "image": "metallb", "args": ["--port=7472"]}]},
    });
    stage.plane.create(PODS, &pod)?;
    stage.plane.patch(&format!("{PODS}/controller/status"), &json!({"status": {"phase": "Running"}}))?;
    stage.start("one", &[])?;
    let waits = eventually("it waits for MetalLB", LIMIT, || {
        let metrics = stage.ask(7472, "/metrics")?;
        if !metrics.contains("culvert_controller_waits_for_metallb 1") {
            bail!("{metrics}");
        }
        Ok(Some(()))
    });
    stage.with_log(waits)?;
    // What bears our finalizer is let go all the same.
    stage.plane.create(SERVICES, &service("old"))?;
    let ours = json!({"metadata": {"annotations": {POOL: "main"}, "finalizers": [FINALIZER]}});
    stage.plane.patch(&format!("{SERVICES}/old/status"), &ours)?;
    stage.plane.delete(&format!("{SERVICES}/old"))?;
    stage.gone("old")?;
    let service = stage.get("web")?;
    ensure!(service["metadata"]["finalizers"].is_null(), "{service}");
    stage.plane.patch(&format!("{PODS}/controller/status"), &json!({"status": {"phase": "Succeeded"}}))?;
    stage.has("web", "192.0.2.9", "main")?;
    Ok(())
}

#[test]
fn what_is_refused_holds_up_nobody_else_and_is_written_once_it_can_be() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.define()?;
    stage.pool("main", "192.0.2.0/27")?;
    let policy = json!({
        "metadata": {"name": "refuses"},
        "spec": {
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["services/status"]}]},
            "validations": [{"expression": "!has(object.metadata.labels) || !('refused' in object.metadata.labels)"}],
        },
    });
    stage.plane.create(&format!("{ADMISSION}/validatingadmissionpolicies"), &policy)?;
    let binding =
        json!({"metadata": {"name": "refuses"}, "spec": {"policyName": "refuses", "validationActions": ["Deny"]}});
    stage.plane.create(&format!("{ADMISSION}/validatingadmissionpolicybindings"), &binding)?;
    let names: Vec<String> = (10..26).map(|number| format!("refused-{number}")).collect();
    for name in &names {
        let mut object = service(name);
        object["metadata"]["labels"] = json!({"refused": ""});
        stage.plane.create(SERVICES, &object)?;
    }
    // From now on the policy is in force.
    let refuses = eventually("the policy is in force", LIMIT, || {
        let patch = json!({"metadata": {"annotations": {"a": "b"}}});
        let said = stage.plane.ask(User::Admin, "PATCH", &format!("{SERVICES}/refused-10/status"), Some(&patch))?;
        ensure!(said["reason"] == "Invalid", "{said}");
        Ok(Some(()))
    });
    stage.with_log(refuses)?;
    stage.start("one", &[])?;
    let tried = eventually("all of them are tried", LIMIT, || {
        let tried = count(&stage.ask(7472, "/metrics")?, "metallb_k8s_client_update_errors_total")?;
        ensure!(tried >= names.len(), "{tried} writes were refused");
        Ok(Some(()))
    });
    stage.with_log(tried)?;
    let before = Instant::now();
    stage.plane.create(SERVICES, &service("welcome"))?;
    stage.has("welcome", "192.0.2.16", "main")?;
    // A refused one that changes is tried again at once.
    stage.plane.patch(&format!("{SERVICES}/refused-10"), &json!({"metadata": {"labels": null}}))?;
    stage.has("refused-10", "192.0.2.0", "main")?;
    ensure!(before.elapsed() < LIMIT / 2, "it takes {:?}", before.elapsed());
    Ok(())
}

/// A counter's value.
fn count(metrics: &str, name: &str) -> Result<usize> {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.with_context(|| format!("{name} is not in\n{metrics}"))
}

#[test]
fn many_services_get_an_address_each_by_one_write_each() -> Result<()> {
    let many = std::env::var("CULVERT_CONTROLLER_SERVICES").ok().map_or(Ok(MANY), |number| number.parse())?;
    let rate = std::env::var("CULVERT_CONTROLLER_RATE").unwrap_or_else(|_| "10000".to_owned());
    let mut stage = Stage::new()?;
    stage.define()?;
    stage.pool("main", "10.0.0.0/8")?;
    let objects: Vec<Value> = (0..many)
        .map(|number| {
            let mut object = service(&format!("s-{number}"));
            // There are not so many node ports.
            object["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
            object
        })
        .collect();
    stage.plane.create_all(SERVICES, &objects)?;
    let start = Instant::now();
    stage.start("one", &[&format!("--kube-api-qps={rate}"), "--kube-api-burst=100"])?;
    let limit = LIMIT + Duration::from_millis(50) * u32::try_from(many)?;
    let written = eventually("all are written", limit, || {
        let written = count(&stage.ask(7472, "/metrics")?, "metallb_k8s_client_updates_total")?;
        ensure!(written >= many, "{written} are written");
        Ok(Some(start.elapsed()))
    });
    let time = stage.with_log(written)?;
    let has = eventually("all have addresses", LIMIT, || {
        let list = stage.plane.ask(User::Admin, "GET", SERVICES, None)?;
        let items = list["items"].as_array().context("no list")?;
        let addresses = items.iter().filter_map(|item| item["status"]["loadBalancer"]["ingress"][0]["ip"].as_str());
        let addresses: BTreeSet<&str> = addresses.collect();
        ensure!(addresses.len() == many, "{} have addresses", addresses.len());
        Ok(Some(()))
    });
    stage.with_log(has)?;
    let metrics = stage.ask(7472, "/metrics")?;
    for (name, wanted) in [("metallb_k8s_client_updates_total", many), ("metallb_k8s_client_update_errors_total", 0)] {
        ensure!(count(&metrics, name)? == wanted, "{metrics}");
    }
    println!("{many} Services have addresses after {time:.1?}, one each {:.1?}", time / u32::try_from(many)?);
    Ok(())
}
