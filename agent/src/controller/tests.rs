//! The controller from its start to its end, with an API server that answers as a test wants it to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;

use axum::body::Body;
use axum::extract::Request;
use axum::http::Method;
use clap::Parser as _;
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::world::merge;
use super::*;
use crate::cli::{Cli, Command};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/lb/leases";
const SERVICES: &str = "/api/v1/services";
const POOLS: &str = "/apis/metallb.io/v1beta1/ipaddresspools";

/// An API server of one Lease, one pool, and Services whose status it is asked to write but never does.
#[derive(Default)]
struct Server {
    services: Vec<Value>,
    /// No renewal of the Lease is answered.
    forgets_the_lease: bool,
    lease: Mutex<Option<Value>>,
    /// Writes of Services that were asked for.
    writes: Mutex<usize>,
    write: Notify,
    /// Nobody waits for the answer to one any more.
    given_up: Notify,
    lease_read: Notify,
    pool_written: Notify,
}

/// Tells that a question was given up.
struct GivenUp(Arc<Server>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.given_up.notify_one();
    }
}

impl Server {
    /// Starts it, and says where.
    async fn start(self) -> (Arc<Self>, SocketAddr) {
        let server = Arc::new(self);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&server));
        tokio::spawn(async { axum::serve(listener, router).await });
        (server, address)
    }

    fn holder(&self) -> String {
        let lease = self.lease.lock().unwrap();
        lease.as_ref().unwrap()["spec"]["holderIdentity"].as_str().unwrap().to_owned()
    }

    fn writes(&self) -> usize {
        *self.writes.lock().unwrap()
    }

    fn change_lease(&self, patch: &Value) -> Response {
        let mut lease = self.lease.lock().unwrap();
        let mut now = lease.take().unwrap_or_default();
        let version: u32 = now["metadata"]["resourceVersion"].as_str().map_or(0, |version| version.parse().unwrap());
        merge(&mut now, patch);
        now["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        let text = now.to_string();
        *lease = Some(now);
        text.into_response()
    }
}

async fn answer(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let path = parts.uri.path();
    let of_lease = path.starts_with(LEASES);
    match parts.method {
        Method::PATCH if of_lease && server.forgets_the_lease => std::future::pending().await,
        Method::POST | Method::PATCH if of_lease => server.change_lease(&body),
        Method::GET if of_lease => {
            server.lease_read.notify_one();
            let lease = server.lease.lock().unwrap().as_ref().map(ToString::to_string);
            lease.map_or_else(missing, IntoResponse::into_response)
        }
        Method::GET if path.ends_with("/pods") => r#"{"items": []}"#.into_response(),
        Method::GET if path == SERVICES => list(&server.services),
        Method::GET if path == POOLS => list(&[json!({
            "metadata": {"name": "main", "namespace": "lb", "resourceVersion": "1"}, "spec": {"addresses": ["192.0.2.0/24"]},
        })]),
        Method::GET => list(&[]),
        Method::PATCH if path.contains("/ipaddresspools/") => {
            server.pool_written.notify_one();
            "{}".into_response()
        }
        Method::PATCH if path.ends_with("/status") && path.contains("/services/") => {
            *server.writes.lock().unwrap() += 1;
            server.write.notify_one();
            let _given_up = GivenUp(Arc::clone(&server));
            std::future::pending().await
        }
        _ => missing(),
    }
}

fn missing() -> Response {
    let status =
        json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not found"});
    (StatusCode::NOT_FOUND, status.to_string()).into_response()
}

/// A watch that begins with a list and goes on for ever.
fn list(objects: &[Value]) -> Response {
    let mut lines: Vec<Value> = objects.iter().map(|object| json!({"type": "ADDED", "object": object})).collect();
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    lines.push(
        json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "1", "annotations": annotations}}}),
    );
    let lines = futures_util::stream::iter(lines).map(|line| Ok::<_, Infallible>(format!("{line}\n")));
    Body::from_stream(lines.chain(futures_util::stream::pending())).into_response()
}

fn service(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]},
    })
}

fn arguments(directory: &Path, server: SocketAddr, more: &[&str]) -> ControllerArgs {
    let kubeconfig = directory.join("kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "clusters": [{"name": "x", "cluster": {"server": format!("http://{server}")}}],
        "users": [{"name": "x", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
    });
    std::fs::write(&kubeconfig, text.to_string()).unwrap();
    let kubeconfig = kubeconfig.to_str().unwrap();
    let words = ["culvert", "controller", "--namespace=lb", "--bind-address=127.0.0.1:0", "--kubeconfig", kubeconfig];
    match Cli::try_parse_from(words.iter().chain(more)).unwrap().command {
        Command::Controller(args) => *args,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_lease_is_given_back_at_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let (server, address) = Server::default().start().await;
    let stop = async {
        server.pool_written.notified().await;
        assert_eq!(server.holder(), "me");
        "test"
    };
    controller(&arguments(directory.path(), address, &[]), "me", stop).await.unwrap();
    assert_eq!(server.holder(), "");
}

#[tokio::test]
async fn the_lease_is_kept_at_the_end_while_a_write_may_still_be_carried_out() {
    let directory = tempfile::tempdir().unwrap();
    let (server, address) = Server { services: vec![service("web")], ..Server::default() }.start().await;
    let stop = async {
        server.write.notified().await;
        "test"
    };
    controller(&arguments(directory.path(), address, &[]), "me", stop).await.unwrap();
    assert_eq!(server.holder(), "me");
}

#[tokio::test]
async fn with_the_lease_ends_what_is_under_way_and_nothing_is_begun() {
    let directory = tempfile::tempdir().unwrap();
    let services = vec![service("web")];
    let (server, address) = Server { services, forgets_the_lease: true, ..Server::default() }.start().await;
    let stop = async {
        server.write.notified().await;
        server.given_up.notified().await;
        for _ in 0..4 {
            server.lease_read.notified().await;
        }
        "test"
    };
    let terms = ["--lease-duration=3", "--lease-renew-deadline=2", "--lease-retry-period=1"];
    controller(&arguments(directory.path(), address, &terms), "me", stop).await.unwrap();
    assert_eq!(server.writes(), 1);
}

#[test]
fn times_that_are_too_long_to_be_added_are_refused() {
    for argument in ["--lease-duration", "--lease-renew-deadline", "--lease-retry-period"] {
        for (seconds, taken) in [("0", false), ("86400", true), ("86401", false), ("18446744073709551615", false)] {
            let parsed = Cli::try_parse_from(["culvert", "controller", &format!("{argument}={seconds}")]);
            assert_eq!(parsed.is_ok(), taken, "{argument}={seconds}");
        }
    }
}
