//! The answers to the commands: what the kernel's maps say, beside what the model wants.

use std::collections::HashMap;
use std::io;

use culvert_api::flows::Flow;
use culvert_api::plan::ServiceKey;
use culvert_api::reply::{Backends, Flows, Services};
use culvert_api::status::{Link, MapUsage, Sockets, Source, Status};
use culvert_dataplane::kernel::KernelStore;
use culvert_dataplane::links::Role;
use culvert_dataplane::store::{Map, Store};

use tokio::sync::mpsc;

use super::core::{Core, Question, ask, now};
use super::differences::differences;
use crate::cli::FlowFilter;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No Service goes by a name.
    #[error("there is no Service {0}")]
    Unknown(String),
    /// Nothing is announced in layer 2.
    #[error("this agent announces nothing in layer 2: it runs without --layer2, or it may not (its log says so)")]
    NoLayer2,
    /// `culvert drain` cannot be remembered.
    #[error("that the node is drained cannot be kept for the next agent: {0}")]
    Drain(io::Error),
    /// The kernel's maps could not be read.
    #[error("the kernel's maps: {0}")]
    Maps(#[from] io::Error),
}

/// How full the flow maps are. Reads all their rows: not for the main loop.
pub fn flow_usage(store: &KernelStore) -> io::Result<Vec<MapUsage>> {
    let maps = [Map::FLOWS_NEW_V4, Map::FLOWS_NEW_V6, Map::FLOWS_V4, Map::FLOWS_V6];
    let usage = |map: Map| {
        let mut used = 0;
        store.for_each(map, &mut |_, _| used += 1)?;
        Ok(MapUsage { map: format!("{map:?}"), used, capacity: store.capacity(map).into() })
    };
    maps.into_iter().map(usage).collect()
}

/// `culvert status`, but for the flow maps. Comparing every row of the kernel with what it should be is left out unless
/// `deep`.
pub fn status(core: &Core, deep: bool) -> Result<Status, Error> {
    let report = core.report.borrow();
    let reconciler = &core.reconciler;
    let drift = if deep { reconciler.drift()?.iter().map(Into::into).collect() } else { Vec::new() };
    let mut reasons = reconciler.view_reasons()?;
    reasons.retain(|count| count.packets > 0 || !deep);
    let source = Source {
        name: core.facts.source.clone(),
        synced: core.synced,
        errors: core.faults.iter().map(ToString::to_string).collect(),
    };
    let links = report.links.iter().map(|hooked| Link {
        name: hooked.wanted.name.clone(),
        index: hooked.index,
        role: if hooked.wanted.role == Role::Pod { "pod" } else { "node" }.to_owned(),
        hook: core.facts.method.clone(),
        others: hooked.ingress.iter().chain(&hooked.egress).filter(|id| !report.own.contains(id)).copied().collect(),
    });
    let mut problems = report.problems.clone();
    if !core.synced {
        problems.push("the source has not delivered everything yet".to_owned());
    }
    if core.synced && core.own.is_none() {
        problems.push(format!("there is no Node {:?}: node ports and topology hints are not served", core.node));
    }
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: core.node.clone(),
        uptime_seconds: core.facts.started.elapsed().as_secs(),
        healthy: core.synced && reconciler.settled() && drift.is_empty() && report.problems.is_empty(),
        sources: vec![source],
        services: reconciler.count_services(core.model.services().count()),
        failures: reconciler.view_failures(now()),
        maps: reconciler.view_usage(),
        reasons,
        drift,
        links: links.collect(),
        sockets: Sockets {
            cgroup: core.facts.cgroup.clone(),
            mode: core.facts.socket_mode.clone(),
            programs: report.sockets.iter().map(|name| (*name).to_owned()).collect(),
        },
        problems,
        warnings: core.facts.warnings.iter().chain(&*core.facts.beside.borrow()).cloned().collect(),
    })
}

/// The same with the flow maps; `None` if the main loop has ended.
pub async fn whole_status(
    questions: &mpsc::Sender<Question>,
    store: &KernelStore,
    deep: bool,
) -> Option<Result<Status, Error>> {
    let mut status = match ask(questions, move |core| status(core, deep)).await? {
        Ok(status) => status,
        Err(error) => return Some(Err(error)),
    };
    let store = store.clone();
    let flows = tokio::task::spawn_blocking(move || flow_usage(&store)).await.ok()?;
    Some(flows.map_err(Error::from).map(|flows| {
        status.maps.extend(flows);
        status
    }))
}

/// `culvert services`.
pub fn services(core: &Core, name: Option<&str>) -> Result<Services, Error> {
    let keys = keys(core, name)?;
    let services: Vec<_> = keys.iter().filter_map(|key| core.model.plan(key)).collect();
    let kernel = if name.is_none() {
        core.reconciler.view_services(now())?
    } else {
        let views = keys.iter().filter_map(|key| core.reconciler.view_service(key, now()).transpose());
        views.collect::<io::Result<_>>()?
    };
    let differences = differences(&services, &kernel);
    Ok(Services { node: core.node.clone(), services, kernel, differences })
}

/// `culvert backends`.
pub fn backends(core: &Core, name: Option<&str>) -> Result<Backends, Error> {
    let keys = keys(core, name)?;
    let mut backends = match (name, keys.as_slice()) {
        (None, _) => core.reconciler.view_backends(None, now())?,
        (Some(_), [only]) => core.reconciler.view_backends(Some(only), now())?,
        (Some(_), some) => {
            let views = some.iter().map(|key| core.reconciler.view_backends(Some(key), now()));
            views.collect::<io::Result<Vec<_>>>()?.concat()
        }
    };
    backends.sort_by(|a, b| (&a.service, a.address, a.protocol).cmp(&(&b.service, b.address, b.protocol)));
    Ok(Backends { node: core.node.clone(), backends })
}

/// `culvert flows`.
pub fn flows(core: &Core, filter: &FlowFilter) -> Result<Flows, Error> {
    let mut flows = Vec::new();
    core.reconciler.view_flows(now(), &mut |flow| {
        if matches(filter, &flow) {
            flows.push(flow);
        }
    })?;
    flows.sort_by_key(|flow| (flow.age_seconds, flow.client, flow.frontend));
    let truncated = flows.len() > filter.limit;
    flows.truncate(filter.limit);
    Ok(Flows { node: core.node.clone(), flows, truncated })
}

fn matches(filter: &FlowFilter, flow: &Flow) -> bool {
    let FlowFilter { service, client, frontend, backend, protocol, limit: _ } = filter;
    let called = |name: &String| flow.service.as_deref().is_some_and(|service| is_called(service, name));
    service.as_ref().is_none_or(called)
        && client.is_none_or(|client| flow.client.ip() == client)
        && frontend.is_none_or(|frontend| flow.frontend.ip() == frontend)
        && backend.is_none_or(|backend| flow.backend.is_some_and(|at| at.ip() == backend))
        && protocol.is_none_or(|protocol| flow.protocol == protocol)
}

/// The Services of a name, or all.
fn keys(core: &Core, name: Option<&str>) -> Result<Vec<ServiceKey>, Error> {
    let called = |key: &&ServiceKey| name.is_none_or(|name| is_called(&key.to_string(), name));
    let keys: Vec<ServiceKey> = core.model.services().filter(called).cloned().collect();
    match name {
        Some(name) if keys.is_empty() => Err(Error::Unknown(name.to_owned())),
        _ => Ok(keys),
    }
}

/// Whether `namespace/name` is meant by `NAME` or `NAMESPACE/NAME`.
fn is_called(service: &str, name: &str) -> bool {
    service == name || service.split_once('/').is_some_and(|(_, own)| own == name)
}

/// Names of Services by the id of their ports.
pub fn names(core: &Core) -> HashMap<u32, String> {
    let ports =
        core.reconciler.services().iter().flat_map(|(key, held)| held.ports.iter().map(move |port| (port.id, key)));
    ports.map(|(id, key)| (id, key.to_string())).collect()
}
