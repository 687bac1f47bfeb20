//! Where the kernel does not do what the model wants.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use culvert_api::plan::{Audience, FrontendPlan, Protocol, ServicePlan, Verdict};
use culvert_api::reply::Difference;
use culvert_api::services::{Service, View};

/// One frontend.
type At = (IpAddr, u16, Protocol);

const AUDIENCES: [Audience; 3] = [Audience::Pods, Audience::Host, Audience::External];

/// Compares plans with what the kernel's maps say; sorted.
pub fn differences(wanted: &[ServicePlan], kernel: &[Service]) -> Vec<Difference> {
    let mut kernel: BTreeMap<(&str, &str), &Service> =
        kernel.iter().map(|service| ((service.namespace.as_str(), service.name.as_str()), service)).collect();
    let mut found = Vec::new();
    for plan in wanted {
        let service = kernel.remove(&(plan.namespace.as_str(), plan.name.as_str()));
        compare(plan, service, &mut found);
    }
    let leftovers = kernel.into_keys().map(|(namespace, name)| Difference {
        service: format!("{namespace}/{name}"),
        subject: "Service".to_owned(),
        wanted: None,
        found: Some("rows in the kernel's maps".to_owned()),
    });
    found.extend(leftovers);
    found.sort();
    found
}

fn compare(plan: &ServicePlan, service: Option<&Service>, differences: &mut Vec<Difference>) {
    let name = plan.key().to_string();
    let mut differ = |subject: String, wanted: Option<String>, found: Option<String>| {
        if wanted != found {
            differences.push(Difference { service: name.clone(), subject, wanted, found });
        }
    };
    if let Some(failure) = service.and_then(|service| service.failure.as_ref()) {
        differ("plan".to_owned(), Some("programmed".to_owned()), Some(failure.message.clone()));
    }
    for drift in service.iter().flat_map(|service| &service.drift) {
        differ(format!("{} {}", drift.map, drift.key), drift.expected.clone(), drift.found.clone());
    }
    let ports = service.iter().flat_map(|service| &service.ports);
    let mut held: BTreeMap<At, &[View]> = ports
        .flat_map(|port| {
            port.frontends.iter().map(|row| ((row.address, row.port, port.protocol), row.views.as_slice()))
        })
        .collect();
    for rows in plan.frontends.chunk_by(|a, b| at(a) == at(b)) {
        let Some(views) = held.remove(&at(&rows[0])) else {
            differ(subject(at(&rows[0])), Some("a frontend".to_owned()), None);
            continue;
        };
        for audience in AUDIENCES {
            let row = rows.iter().find(|row| row.audience == audience || row.audience == Audience::Any);
            let view = views.iter().find(|view| view.audience == audience || view.audience == Audience::Any);
            let (Some(row), Some(view)) = (row, view) else { continue };
            // Whether the host is inside the ranges is settled where they are programmed.
            if audience == Audience::Host && !row.source_ranges.is_empty() {
                continue;
            }
            differ(
                format!("{} for {audience:?}", subject(at(row))),
                Some(wanted_answer(row)),
                Some(found_answer(view)),
            );
        }
    }
    for at in held.into_keys() {
        differ(subject(at), None, Some("a frontend".to_owned()));
    }
}

fn at(row: &FrontendPlan) -> At {
    (row.address, row.port, row.protocol)
}

fn subject((address, port, protocol): At) -> String {
    format!("{}/{}", SocketAddr::new(address, port), format!("{protocol:?}").to_uppercase())
}

fn wanted_answer(row: &FrontendPlan) -> String {
    let backends = row.backends.iter().map(|backend| SocketAddr::new(backend.address, backend.port));
    answer(row.verdict, backends.collect())
}

fn found_answer(view: &View) -> String {
    answer(view.verdict, view.backends.clone())
}

fn answer(verdict: Verdict, mut backends: Vec<SocketAddr>) -> String {
    if verdict != Verdict::Balance {
        return format!("{verdict:?}").to_lowercase();
    }
    backends.sort_unstable();
    let backends: Vec<_> = backends.iter().map(ToString::to_string).collect();
    format!("balance {}", backends.join(" "))
}

#[cfg(test)]
mod tests {
    use culvert_api::plan::{ClientAddress, FrontendKind, ServiceKind, Topology};
    use culvert_api::services::{Counters, Frontend, Kind, ServicePort};
    use culvert_api::status::Drift;

    use super::*;

    fn plan(verdict: Verdict) -> ServicePlan {
        let row = FrontendPlan {
            address: "10.96.0.1".parse().unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
            kind: FrontendKind::ClusterIP,
            audience: Audience::Any,
            source_ranges: vec![],
            affinity_seconds: None,
            topology: Topology::None,
            client_address: ClientAddress::Kept,
            verdict,
            backends: vec![].into(),
            draining: vec![].into(),
            port_name: String::new(),
            policy_local: false,
        };
        ServicePlan {
            namespace: "shop".into(),
            name: "web".into(),
            kind: ServiceKind::ClusterIP,
            addresses: vec![],
            pool: None,
            skipped: None,
            problems: vec![],
            health_check: None,
            frontends: vec![row],
            refused: vec![],
        }
    }

    fn service(verdict: Verdict) -> Service {
        let view =
            View { audience: Audience::Any, verdict, client_address: ClientAddress::Kept, slots: 0, backends: vec![] };
        let frontend = Frontend {
            address: "10.96.0.1".parse().unwrap(),
            port: 80,
            kind: Kind::ClusterIP,
            affinity_seconds: None,
            source_ranges: vec![],
            views: vec![view],
        };
        let port = ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            family: 4,
            id: 1,
            counters: Counters::default(),
            backends: 0,
            frontends: vec![frontend],
        };
        Service { namespace: "shop".into(), name: "web".into(), failure: None, ports: vec![port], drift: vec![] }
    }

    fn subjects(wanted: &[ServicePlan], kernel: &[Service]) -> Vec<String> {
        let text = |part: Option<String>| part.unwrap_or_else(|| "nothing".into());
        let difference = |one: Difference| format!("{}: {} / {}", one.subject, text(one.wanted), text(one.found));
        differences(wanted, kernel).into_iter().map(difference).collect()
    }

    #[test]
    fn plans_and_kernel_are_compared() {
        let reject = || plan(Verdict::Reject);
        assert!(subjects(&[reject()], &[service(Verdict::Reject)]).is_empty());
        assert_eq!(subjects(&[reject()], &[]), ["10.96.0.1:80/TCP: a frontend / nothing"]);
        let dropped = subjects(&[reject()], &[service(Verdict::Drop)]);
        assert_eq!(dropped.len(), 3);
        assert_eq!(dropped[0], "10.96.0.1:80/TCP for External: reject / drop");
        let mut nothing = reject();
        nothing.frontends.clear();
        assert_eq!(subjects(&[nothing], &[service(Verdict::Reject)]), ["10.96.0.1:80/TCP: nothing / a frontend"]);
        assert_eq!(subjects(&[], &[service(Verdict::Reject)]), ["Service: nothing / rows in the kernel's maps"]);
        let mut drifted = service(Verdict::Reject);
        drifted.drift.push(Drift {
            service: None,
            map: "TABLES".into(),
            key: "7".into(),
            expected: Some("a".into()),
            found: None,
        });
        assert_eq!(subjects(&[reject()], &[drifted]), ["TABLES 7: a / nothing"]);
    }
}
