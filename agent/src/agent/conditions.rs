//! What is wrong, as conditions of the objects that show it: what becomes an event.

use std::net::SocketAddr;

use culvert_api::plan::{Problem, ServiceKey, ServicePlan};
use culvert_source::Fault;
use culvert_source::events::{Condition, Events, Involved, Scope, Topic, Weight};

/// The plan of a Service; `None` if it is gone.
pub fn of_plan(events: &Events, service: &ServiceKey, plan: Option<&ServicePlan>) {
    if !events.are_on() {
        return;
    }
    let problems = plan.iter().flat_map(|plan| &plan.problems).filter_map(of_problem);
    events.set(&Topic::Plan(service.clone()), problems.collect());
}

fn of_problem(problem: &Problem) -> Option<Condition> {
    let Problem { reason, message, field, object } = problem;
    let object = Involved::parse(object)?;
    let note = format!("{field}: {message}");
    Some(Condition {
        object,
        reason: reason.clone(),
        action: "Plan",
        note,
        scope: Scope::Cluster,
        weight: Weight::Warning,
    })
}

/// Why a Service is not in the kernel; `None` if it is.
pub fn of_kernel(events: &Events, service: &ServiceKey, failure: Option<&str>) {
    if !events.are_on() {
        return;
    }
    let condition = failure.map(|failure| Condition {
        object: Involved::service(service),
        reason: "FailedToProgram".to_owned(),
        action: "Program",
        note: format!("the last good state stays in force, and it is tried again: {failure}"),
        scope: Scope::Node,
        weight: Weight::Warning,
    });
    events.set(&Topic::Kernel(service.clone()), condition.into_iter().collect());
}

/// Why a health check cannot listen; `None` if it does. Reason and note are kube-proxy's (`service_health.go`).
pub fn of_health_check(events: &Events, node: &str, service: &ServiceKey, address: SocketAddr, failure: Option<&str>) {
    if !events.are_on() {
        return;
    }
    let condition = failure.map(|failure| Condition {
        object: Involved::service(service),
        reason: "FailedToStartServiceHealthcheck".to_owned(),
        action: "Listen",
        note: format!(
            "node {node} failed to start healthcheck {:?} on port {}: {failure}",
            service.to_string(),
            address.port()
        ),
        scope: Scope::Node,
        weight: Weight::Warning,
    });
    events.set(&Topic::HealthCheck(service.clone(), address), condition.into_iter().collect());
}

/// What is wrong with the source's objects, after `before`.
pub fn of_source(events: &Events, before: &[Fault], now: &[Fault]) {
    if !events.are_on() {
        return;
    }
    for object in before.iter().chain(now).filter_map(|fault| fault.object.as_ref()) {
        let faults = now.iter().filter(|fault| fault.object.as_ref() == Some(object));
        events.set(&Topic::Source(object.clone()), faults.filter_map(of_fault).collect());
    }
}

fn of_fault(fault: &Fault) -> Option<Condition> {
    let object = Involved::parse(fault.object.as_deref()?)?;
    let field = fault.field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default();
    let note = format!("the last good state stays in force: {field}{}", fault.message);
    Some(Condition {
        object,
        reason: "Unreadable".to_owned(),
        action: "Read",
        note,
        scope: Scope::Cluster,
        weight: Weight::Warning,
    })
}
