//! What programming costs in user space: the reconciler on the fake kernel, and Maglev tables alone. Prints times and memory; there
//! is no limit to hold. `cargo run --release -p culvert-dataplane --example programming [SERVICES [ENDPOINTS]]`

use std::{
    collections::HashSet,
    env,
    error::Error,
    fs,
    io::{self, Write},
    net::IpAddr,
    time::{Duration, Instant},
};

use culvert_abi::MAGLEV_SIZES;
use culvert_api::plan::{
    Audience, BackendPlan, BackendState, ClientAddress, FrontendKind, FrontendPlan, Protocol, ServiceKind, ServicePlan,
    Topology, Verdict,
};
use culvert_dataplane::{
    fake::{FakeStore, Sizes},
    maglev::{self, Member},
    reconcile::Reconciler,
};

const NOW: Duration = Duration::from_secs(1_000);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1).map(|argument| argument.parse::<usize>());
    let services = arguments.next().transpose()?.unwrap_or(10_000);
    let endpoints = arguments.next().transpose()?.unwrap_or(10);
    let mut out = io::stdout().lock();

    // A table of its own for each: of one that is built again and again the processor knows the branches by heart.
    let members = |table| (0..10).map(move |n| Member { address: endpoint(table, n), port: 8080, weight: 1 });
    let start = Instant::now();
    let tables = (0..10_000).map(|table| maglev::slots(&members(table).collect::<Vec<_>>(), MAGLEV_SIZES[1]));
    let slots: usize = tables.map(|slots| slots.len()).sum();
    writeln!(out, "10,000 Maglev tables of 10 backends, {slots} slots: {:.2?}", start.elapsed())?;

    for kind in [FrontendKind::ClusterIP, FrontendKind::LoadBalancer] {
        let plans: Vec<ServicePlan> = (0..services).map(|index| plan(index, kind, endpoints)).collect();
        let mut reconciler = Reconciler::restore(FakeStore::new(sizes(services, endpoints)), NOW)?;
        let before = anonymous()?;
        let start = Instant::now();
        for plan in &plans {
            reconciler.upsert(plan, NOW)?;
        }
        let took = start.elapsed();
        writeln!(out, "{services} Services ({kind:?}) of {endpoints} endpoints, programmed: {took:.2?}")?;
        writeln!(out, "  memory of rows, books and the fake's maps: {} KiB", anonymous()?.saturating_sub(before))?;

        let mut changed = plans[services / 2].clone();
        let fewer: Vec<BackendPlan> = changed.frontends[0].backends.iter().skip(1).cloned().collect();
        changed.frontends[0].backends = fewer.into();
        let start = Instant::now();
        reconciler.upsert(&changed, NOW)?;
        writeln!(out, "  one endpoint less: {:.2?}", start.elapsed())?;

        let start = Instant::now();
        let drift = reconciler.drift()?.len();
        writeln!(out, "  compared with the maps, {drift} differences: {:.2?}", start.elapsed())?;

        let store = reconciler.into_store();
        let before = anonymous()?;
        let start = Instant::now();
        let mut reconciler = Reconciler::restore(store, NOW)?;
        writeln!(out, "  restored: {:.2?}", start.elapsed())?;
        writeln!(out, "  memory of the books: {} KiB", anonymous()?.saturating_sub(before))?;
        let start = Instant::now();
        for plan in &plans {
            reconciler.upsert(plan, NOW)?;
        }
        let wanted: HashSet<_> = plans.iter().map(ServicePlan::key).collect();
        let errors = reconciler.prune(&wanted, NOW).len();
        writeln!(out, "  claimed and pruned, {errors} errors: {:.2?}", start.elapsed())?;
    }
    Ok(())
}

fn sizes(services: usize, endpoints: usize) -> Sizes {
    let services = services as u32 + 16;
    let backends = services * (endpoints as u32 + 1);
    Sizes {
        addresses: services,
        frontends: services,
        backends,
        services,
        tables: services,
        slab_pages: services * (1 + maglev::class(endpoints) as u32 * 3) + backends / 512,
        ..Sizes::default()
    }
}

fn endpoint(service: usize, n: usize) -> IpAddr {
    IpAddr::from((0x0a00_0000 + (service * 64 + n) as u32).to_be_bytes())
}

fn plan(index: usize, kind: FrontendKind, endpoints: usize) -> ServicePlan {
    let backend = |n| BackendPlan {
        address: endpoint(index, n),
        port: 8080,
        node: Some(format!("node-{}", n % 50).into()),
        state: BackendState::Ready,
        local: false,
    };
    let frontend = FrontendPlan {
        address: IpAddr::from((0x0a60_0000 + index as u32).to_be_bytes()),
        port: 80,
        protocol: Protocol::Tcp,
        kind,
        audience: Audience::Any,
        source_ranges: Vec::new(),
        affinity_seconds: None,
        topology: Topology::None,
        client_address: ClientAddress::Kept,
        verdict: Verdict::Balance,
        backends: (0..endpoints).map(backend).collect(),
        draining: [].into(),
        port_name: String::from("http"),
        policy_local: false,
    };
    ServicePlan {
        namespace: String::from("default"),
        name: format!("service-{index}"),
        kind: ServiceKind::ClusterIP,
        addresses: Vec::new(),
        pool: None,
        skipped: None,
        problems: Vec::new(),
        health_check: None,
        frontends: vec![frontend],
        refused: Vec::new(),
    }
}

/// Anonymous resident memory of this process, in KiB.
fn anonymous() -> io::Result<usize> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    Ok(line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse().ok()).unwrap_or(0))
}
