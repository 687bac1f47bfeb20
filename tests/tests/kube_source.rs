//! The source `kube` against a real API server: what it delivers, and when.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_source::kube::{Access, Settings, watch};
use culvert_source::{Batch, Change, Progress};
use culvert_tests::control_plane::{ControlPlane, User};
use culvert_tests::place::Place;
use culvert_tests::process::{Process, slowness};
use culvert_tests::scope::Scope;
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
const SERVICES: &str = "/api/v1/namespaces/shop/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";
/// The API server as one before Kubernetes 1.31: a proxy that refuses to select Services by fields, in that one's words.
const OLDER: &str = r#"
daemon off;
pid nginx.pid;
events {}
http {
    access_log off;
    server {
        listen 127.0.0.1:8001;
        default_type application/json;
        if ($arg_fieldSelector ~ clusterIP) {
            return 400 '{"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "BadRequest", "code": 400,
                "message": "\"spec.clusterIP\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""}';
        }
        location / {
            proxy_pass URL;
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_read_timeout 1h;
        }
    }
}
"#;
/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);
/// How long one listens for what must not come.
const QUIET: Duration = Duration::from_secs(2);

/// An API server in a namespace of its own. Ends before its namespace.
struct Stage {
    plane: ControlPlane,
    place: Place,
    dir: PathBuf,
    _scope: Scope,
}

impl Stage {
    fn new(options: &[&str]) -> Result<Self> {
        let scope = Scope::open()?;
        let cgroup = scope.cgroup("cp")?;
        let place = Place::new("cp", scope.netns("cp")?, &cgroup, scope.dir(), ADDRESS, "2001:db8::10".parse()?);
        place.ip_batch(&format!("link set lo up\naddress add {ADDRESS}/32 dev lo\n"))?;
        let dir = scope.dir().to_owned();
        let plane = ControlPlane::start(&place, ADDRESS, &dir, options)?;
        let stage = Self { plane, place, dir, _scope: scope };
        stage.plane.create("/api/v1/namespaces", &json!({"metadata": {"name": "shop"}}))?;
        for node in ["n1", "n2"] {
            stage.plane.create("/api/v1/nodes", &json!({"metadata": {"name": node}}))?;
        }
        Ok(stage)
    }

    /// Lists of slices that the API server has streamed, by its own count. Nobody else asks for any.
    fn streamed_lists(&self) -> Result<u64> {
        let metrics = self.plane.kubectl("get --raw /metrics", "")?;
        let counts = metrics.lines().filter(|line| {
            line.starts_with("apiserver_watch_list_duration_seconds_count") && line.contains("\"endpointslices\"")
        });
        counts.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<u64>().context("a count")).sum()
    }

    fn settings(&self) -> Result<Settings> {
        let kubeconfig = Some(self.plane.kubeconfig(User::Admin)?);
        Ok(Settings { servers: vec![], kubeconfig, state: Some(self.dir.join("state")) })
    }

    /// Puts [`OLDER`] in front of the API server.
    fn older(&self) -> Result<(Process, Settings)> {
        let settings = self.settings()?;
        let kubeconfig = settings.kubeconfig.as_ref().context("no kubeconfig")?;
        let direct = fs::read_to_string(kubeconfig)?;
        let (conf, through) = (self.dir.join("nginx.conf"), self.dir.join("kubeconfig-older"));
        fs::write(&conf, OLDER.replace("URL", &self.plane.url()))?;
        fs::write(&through, direct.replace(&self.plane.url(), "http://127.0.0.1:8001"))?;
        let mut nginx = Command::new("nginx");
        nginx.arg("-p").arg(&self.dir).args(["-e", "stderr", "-c"]).arg(&conf);
        Ok((self.place.start(nginx)?, Settings { kubeconfig: Some(through), ..settings }))
    }

    /// Listens to a source on a thread in the place, while `work` goes on here.
    fn listen<T>(&mut self, settings: Settings, work: impl FnOnce(&mut Self, &mut Listener) -> Result<T>) -> Result<T> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let place = self.place.clone();
        let thread = std::thread::spawn(move || {
            place.block_on(|| async move {
                let mut batches: Receiver<Batch> = watch(&Arc::new(Access::new(settings)), "n1");
                let pass = async {
                    while let Some(batch) = batches.recv().await {
                        if sender.send(batch).is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = pass => {}
                    _ = ended => {}
                }
                Ok(())
            })
        });
        let done = work(self, &mut Listener::new(receiver));
        drop(end);
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        done
    }
}

/// When something that must happen is given up.
fn end() -> Instant {
    Instant::now() + LIMIT * slowness()
}

struct Listener {
    batches: std::sync::mpsc::Receiver<Batch>,
    progress: Progress,
    complete: bool,
    faults: Vec<String>,
}

impl Listener {
    fn new(batches: std::sync::mpsc::Receiver<Batch>) -> Self {
        Self { batches, progress: Progress::Loading, complete: false, faults: vec![] }
    }

    /// The next batch, its changes as words: `Kind/namespace/name`, with `-` in front for one that is gone.
    fn next(&mut self, limit: Duration) -> Result<Option<Vec<String>>> {
        let Ok(batch) = self.batches.recv_timeout(limit) else { return Ok(None) };
        ensure!(
            self.progress != Progress::Complete || batch.progress == Progress::Complete,
            "it is no longer complete"
        );
        self.progress = batch.progress;
        self.faults = batch.faults.iter().map(ToString::to_string).collect();
        let word = |change: &Change| match change {
            Change::Upsert(object) => object.id().to_string(),
            Change::Remove(id) => format!("-{id}"),
        };
        let words = batch.changes.iter().map(word);
        // Where API servers are changes as they start and end; that is no test's subject.
        let told = self.complete;
        self.complete = batch.progress == Progress::Complete;
        Ok(Some(words.filter(|word| !told || word != BASE[1]).collect()))
    }

    /// The next batch that comes before `end`.
    fn before(&mut self, end: Instant) -> Result<Option<Vec<String>>> {
        self.next(end.saturating_duration_since(Instant::now()))
    }

    /// Everything up to the end of the first lists.
    fn complete(&mut self) -> Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        let end = end();
        while self.progress != Progress::Complete {
            let changes = self.before(end)?.with_context(|| format!("never complete: {:?}", self.faults))?;
            for change in changes {
                ensure!(all.insert(change.clone()), "{change} comes twice");
            }
        }
        Ok(all)
    }

    /// Changes until these have come, and nothing else.
    fn expect(&mut self, wanted: &[&str]) -> Result<()> {
        let mut left: BTreeSet<&str> = wanted.iter().copied().collect();
        let end = end();
        while !left.is_empty() {
            let changes = self.before(end)?.with_context(|| format!("missing: {left:?}; faults: {:?}", self.faults))?;
            for change in changes {
                ensure!(left.remove(change.as_str()), "{change} is not among {left:?}");
            }
        }
        Ok(())
    }

    /// Until a fault says this.
    fn fault(&mut self, part: &str) -> Result<()> {
        let end = end();
        while !self.faults.iter().any(|fault| fault.contains(part)) {
            let changes = self.before(end)?.with_context(|| format!("no fault says {part:?}: {:?}", self.faults))?;
            ensure!(changes.is_empty(), "{changes:?}");
        }
        Ok(())
    }

    /// Until nothing is wrong any more.
    fn well(&mut self) -> Result<()> {
        let end = end();
        while !self.faults.is_empty() {
            let changes = self.before(end)?.with_context(|| format!("still wrong: {:?}", self.faults))?;
            ensure!(changes.is_empty(), "{changes:?}");
        }
        Ok(())
    }

    fn quiet(&mut self) -> Result<()> {
        while let Some(changes) = self.next(QUIET * slowness())? {
            ensure!(changes.is_empty(), "{changes:?}");
        }
        Ok(())
    }
}

fn service(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}})
}

fn slice(name: &str, service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints,
    })
}

/// What exists from the start of any API server, and what [`Stage`] made.
const BASE: [&str; 3] = ["Service/default/kubernetes", "EndpointSlice/default/kubernetes", "Node/n1"];

/// First lists, selectors, changes; `many` Services make several pages.
fn lists_and_changes(options: &[&str], many: usize, streamed: bool) -> Result<()> {
    let mut stage = Stage::new(options)?;
    let streams = stage.streamed_lists()?;
    let mut wanted: BTreeSet<String> = BASE.iter().map(|&word| word.to_owned()).collect();
    for i in 0..many {
        stage.plane.create(SERVICES, &service(&format!("s{i}")))?;
        wanted.insert(format!("Service/shop/s{i}"));
    }
    let mut headless = service("headless");
    headless["spec"]["clusterIP"] = json!("None");
    stage.plane.create(SERVICES, &headless)?;
    let mut other = service("other");
    other["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    stage.plane.create(SERVICES, &other)?;
    stage.plane.create(SLICES, &slice("s0-1", "s0", &["10.0.0.1"]))?;
    wanted.insert("EndpointSlice/shop/s0-1".into());
    let mut of_headless = slice("headless-1", "headless", &["10.0.0.2"]);
    of_headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    stage.plane.create(SLICES, &of_headless)?;

    let settings = stage.settings()?;
    stage.listen(settings, |stage, source| {
        let found = source.complete()?;
        ensure!(found == wanted, "{:?}", found.symmetric_difference(&wanted));
        let more = stage.streamed_lists()? - streams;
        ensure!(more == u64::from(streamed), "{more} lists of slices were streamed");
        stage.plane.create(SERVICES, &service("new"))?;
        source.expect(&["Service/shop/new"])?;
        let ready = json!({"endpoints": [{"addresses": ["10.0.0.3"], "conditions": {"ready": true}}]});
        stage.plane.patch(&format!("{SLICES}/s0-1"), &ready)?;
        source.expect(&["EndpointSlice/shop/s0-1"])?;
        // Nothing that is read changes.
        stage.plane.patch(&format!("{SERVICES}/new"), &json!({"metadata": {"finalizers": ["example.com/x"]}}))?;
        stage.plane.patch("/api/v1/nodes/n2", &json!({"metadata": {"labels": {"a": "b"}}}))?;
        source.quiet()?;
        stage.plane.patch(&format!("{SERVICES}/new"), &json!({"metadata": {"finalizers": null}}))?;
        stage.plane.delete(&format!("{SERVICES}/new"))?;
        source.expect(&["-Service/shop/new"])?;
        // It leaves the selection, which is as good as gone.
        let labels = json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "other"}}});
        stage.plane.patch(&format!("{SERVICES}/s0"), &labels)?;
        source.expect(&["-Service/shop/s0"])?;
        stage.plane.delete("/api/v1/nodes/n1")?;
        source.expect(&["-Node/n1"])?;
        stage.plane.create("/api/v1/nodes", &json!({"metadata": {"name": "n1"}}))?;
        source.expect(&["Node/n1"])
    })
}

#[test]
fn first_lists_are_streamed_and_changes_follow() -> Result<()> {
    lists_and_changes(&[], 3, true)
}

#[test]
fn first_lists_come_in_pages_where_they_are_not_streamed() -> Result<()> {
    lists_and_changes(&["--feature-gates=WatchList=false"], 300, false)
}

#[test]
fn an_older_api_server_tells_of_headless_services_too() -> Result<()> {
    let mut stage = Stage::new(&[])?;
    let mut headless = service("headless");
    headless["spec"]["clusterIP"] = json!("None");
    for service in [service("web"), headless] {
        stage.plane.create(SERVICES, &service)?;
    }
    let (_older, settings) = stage.older()?;
    stage.listen(settings, |stage, source| {
        let wanted = BASE.into_iter().chain(["Service/shop/headless", "Service/shop/web"]);
        let found = source.complete()?;
        ensure!(found == wanted.map(str::to_owned).collect(), "{found:?}");
        source.well()?;
        stage.plane.create(SERVICES, &service("new"))?;
        source.expect(&["Service/shop/new"])
    })
}

#[test]
fn an_api_server_that_was_away_is_caught_up_with() -> Result<()> {
    let mut stage = Stage::new(&[])?;
    for name in ["same", "changes", "goes"] {
        stage.plane.create(SERVICES, &service(name))?;
    }
    let settings = stage.settings()?;
    stage.listen(settings, |stage, source| {
        source.complete()?;
        stage.plane.kill_api_server()?;
        source.fault("cannot be watched")?;
        ensure!(source.progress == Progress::Complete, "still complete");
        stage.plane.start_api_server()?;
        source.well()?;
        // The first one after the restart, and nothing twice.
        stage.plane.create(SERVICES, &service("new"))?;
        source.expect(&["Service/shop/new"])?;

        // Now much happens behind its back: another API server of the same etcd, and history is forgotten.
        stage.plane.kill_api_server()?;
        stage.plane.start_api_server_at(6444)?;
        stage.plane.patch(&format!("{SERVICES}/changes"), &json!({"spec": {"sessionAffinity": "ClientIP"}}))?;
        stage.plane.delete(&format!("{SERVICES}/goes"))?;
        stage.plane.create(SERVICES, &service("comes"))?;
        stage.plane.create(SLICES, &slice("comes-1", "comes", &["10.0.0.9"]))?;
        stage.plane.kill_api_server()?;
        stage.plane.compact()?;
        stage.plane.start_api_server()?;
        source.expect(&[
            "Service/shop/changes",
            "-Service/shop/goes",
            "Service/shop/comes",
            "EndpointSlice/shop/comes-1",
        ])?;
        source.well()?;
        source.quiet()
    })
}

#[test]
fn it_starts_without_an_api_server_and_then_delivers_the_whole() -> Result<()> {
    let mut stage = Stage::new(&[])?;
    stage.plane.create(SERVICES, &service("web"))?;
    let settings = stage.settings()?;
    stage.plane.kill_api_server()?;
    stage.listen(settings, |stage, source| {
        source.fault("cannot be watched")?;
        ensure!(source.progress == Progress::Loading, "{:?}", source.progress);
        stage.plane.start_api_server()?;
        let found = source.complete()?;
        ensure!(found.contains("Service/shop/web"), "{found:?}");
        source.well()
    })
}

#[test]
fn servers_are_tried_in_turn_and_remembered() -> Result<()> {
    let mut stage = Stage::new(&[])?;
    let url = stage.plane.url();
    let named = |stage: &Stage, servers: &[&str]| -> Result<Settings> {
        Ok(Settings { servers: servers.iter().map(|&server| server.to_owned()).collect(), ..stage.settings()? })
    };
    // 127.0.0.2 is nobody; the certificate knows 127.0.0.1.
    let settings = named(&stage, &["https://127.0.0.2:6443", "https://127.0.0.1:6443"])?;
    stage.listen(settings, |_, source| source.complete().map(drop))?;
    let file = stage.dir.join("state/api-servers");
    let remembered = std::fs::read_to_string(&file)?;
    let lines: Vec<&str> = remembered.lines().skip(1).collect();
    ensure!(lines == ["https://127.0.0.1:6443".to_owned(), format!("{url} 127.0.0.2")], "{remembered}");
    // The certificate does not bear the name of the first one: what was learned of is the configured server, or is not used.
    // With a name that it bears, the address from the slice is enough.
    std::fs::write(&file, format!("{url} 127.0.0.1\n"))?;
    let settings = named(&stage, &["https://127.0.0.2:6443"])?;
    stage.listen(settings, |_, source| source.complete().map(drop))?;
    std::fs::write(&file, format!("{url} elsewhere.example\n"))?;
    let settings = named(&stage, &["https://127.0.0.2:6443"])?;
    stage.listen(settings, |_, source| source.fault("cannot be watched"))
}

#[test]
fn credentials_are_read_again_and_missing_rights_are_told() -> Result<()> {
    let mut stage = Stage::new(&[])?;
    let good = stage.settings()?.kubeconfig.context("a kubeconfig")?;
    let path = good.with_file_name("kubeconfig-that-changes");
    let put = |user: User, stage: &Stage| -> Result<()> {
        let text = std::fs::read_to_string(stage.plane.kubeconfig(user)?)?;
        std::fs::write(&path, text)?;
        Ok(())
    };
    std::fs::write(&path, std::fs::read_to_string(&good)?.replace("admin-token", "unknown"))?;
    let settings = Settings { kubeconfig: Some(path.clone()), ..stage.settings()? };
    stage.listen(settings, |stage, source| {
        source.fault("Unauthorized")?;
        put(User::Agent, stage)?;
        source.fault("is forbidden")?;
        put(User::Admin, stage)?;
        source.complete()?;
        source.well()
    })
}

/// Objects that the API server admits and that are strange all the same.
fn strange() -> Vec<(&'static str, Value)> {
    let long = "x".repeat(63);
    let mut annotated = service("annotated");
    annotated["metadata"]["annotations"] =
        json!({"example.com/a": "\u{0}\u{1f600}\u{202e}".repeat(1_000), "culvert.dev/x": "{"});
    let many: Vec<Value> =
        (0..1_000).map(|i| json!({"addresses": [format!("10.1.{}.{}", i / 250, i % 250)]})).collect();
    vec![
        (SERVICES, annotated),
        (
            SERVICES,
            json!({"metadata": {"name": "alias"}, "spec": {"type": "ExternalName", "externalName": "example.com"}}),
        ),
        (
            SERVICES,
            json!({"metadata": {"name": "all", "labels": {"a": ""}}, "spec": {
                "type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack", "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_400}}, "externalTrafficPolicy": "Local",
                "internalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["0.0.0.0/0", " 10.0.0.0/8 ", "::/0"],
                "externalIPs": ["192.0.2.1", "2001:db8::1"], "trafficDistribution": "PreferSameNode",
                "loadBalancerClass": "example.com/none", "publishNotReadyAddresses": true,
                "ports": [
                    {"name": long, "port": 65_535, "protocol": "SCTP", "targetPort": "a"},
                    {"name": "b", "port": 1, "protocol": "UDP", "appProtocol": "example.com/x"},
                    {"name": "c", "port": 1, "protocol": "TCP", "targetPort": 65_535},
                ],
            }}),
        ),
        (SLICES, slice("multicast", "all", &["239.1.2.3"])),
        (SLICES, slice("lonely", "nobody", &["10.0.0.1"])),
        (
            SLICES,
            json!({"metadata": {"name": "named"}, "addressType": "FQDN", "ports": [],
            "endpoints": [{"addresses": ["a.example.com"]}]}),
        ),
        (
            SLICES,
            json!({"metadata": {"name": "many", "labels": {"kubernetes.io/service-name": "all"}}, "addressType": "IPv4",
            "ports": [{"name": "c", "port": 1}, {"name": "d"}, {"name": "e", "port": null, "protocol": "UDP"}],
            "endpoints": many}),
        ),
        (
            SLICES,
            json!({"metadata": {"name": "states", "labels": {"kubernetes.io/service-name": "all"}}, "addressType": "IPv6",
            "ports": [{"name": "c", "port": 1}],
            "endpoints": [
                {"addresses": ["fd00::1", "fd00::2"], "conditions": {"ready": null, "serving": false, "terminating": true},
                 "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "n1"}]}, "nodeName": "n1", "zone": "z"},
                {"addresses": ["2001:db8::1"]}, {"addresses": ["2001:db8::1"], "conditions": {"ready": false}},
            ]}),
        ),
        (
            SLICES,
            json!({"metadata": {"name": "empty", "labels": {"kubernetes.io/service-name": "all"}}, "addressType": "IPv4",
            "endpoints": null, "ports": null}),
        ),
    ]
}

#[test]
fn whatever_the_api_server_admits_is_delivered() -> Result<()> {
    let mut stage = Stage::new(&[])?;
    let mut wanted: BTreeSet<String> = BASE.iter().map(|&word| word.to_owned()).collect();
    for (path, object) in strange() {
        let made = stage.plane.create(path, &object)?;
        let kind = made["kind"].as_str().context("a kind")?;
        wanted.insert(format!("{kind}/shop/{}", made["metadata"]["name"].as_str().context("a name")?));
    }
    let ingress = json!({"status": {"loadBalancer": {"ingress": [
        {"hostname": "lb.example.com"}, {"ip": "192.0.2.9", "ipMode": "Proxy"}, {"ip": "192.0.2.10", "ports": [
            {"port": 1, "protocol": "TCP", "error": "example.com/no"}]},
    ]}}});
    stage.plane.patch(&format!("{SERVICES}/all/status"), &ingress)?;
    let node = json!({"status": {"addresses": [
        {"type": "InternalIP", "address": "192.0.2.50"}, {"type": "Hostname", "address": "n1"},
        {"type": "Whatever", "address": "nonsense"}, {"type": "ExternalIP", "address": ""},
    ]}});
    stage.plane.patch("/api/v1/nodes/n1/status", &node)?;
    let settings = stage.settings()?;
    stage.listen(settings, |_, source| {
        let found = source.complete()?;
        ensure!(found == wanted, "{:?}", found.symmetric_difference(&wanted));
        ensure!(source.faults.is_empty(), "{:?}", source.faults);
        Ok(())
    })
}
