//! The servers of `healthCheckNodePort` (`pkg/proxy/healthcheck/service_health.go`): an outside load balancer asks each node
//! whether it has ready endpoints of a Service with `externalTrafficPolicy: Local`.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderName;
use axum::response::{IntoResponse, Response};
use culvert_api::plan::{HealthCheck, ServiceKey};
use culvert_source::events::Events;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::conditions::of_health_check;
use super::health::{HEADERS, Health, code};

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The servers, kept in step with the plans.
#[derive(Debug)]
pub struct ServiceHealth {
    runtime: Handle,
    health: Arc<Health>,
    teller: Teller,
    /// Addresses to listen on; the unspecified ones unless node ports are restricted to prefixes.
    addresses: Vec<IpAddr>,
    servers: BTreeMap<ServiceKey, Server>,
}

#[derive(Debug)]
struct Server {
    port: u16,
    answer: Arc<Answer>,
    listeners: HashMap<IpAddr, Listener>,
}

/// A listener's task, which ends with it.
#[derive(Debug)]
struct Listener {
    task: JoinHandle<()>,
    teller: Teller,
    service: ServiceKey,
    address: SocketAddr,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
        self.teller.tell(&self.service, self.address, None);
    }
}

/// Tells users of ports that cannot be listened on.
#[derive(Clone, Debug)]
struct Teller {
    events: Events,
    node: String,
}

impl Teller {
    fn tell(&self, service: &ServiceKey, address: SocketAddr, failure: Option<&io::Error>) {
        let failure = failure.map(ToString::to_string);
        of_health_check(&self.events, &self.node, service, address, failure.as_deref());
    }
}

#[derive(Debug)]
struct Answer {
    service: ServiceKey,
    local_endpoints: AtomicUsize,
    health: Arc<Health>,
}

impl ServiceHealth {
    /// No servers yet. They will run on `runtime`; events name the node.
    pub fn new(runtime: Handle, health: Arc<Health>, events: Events, node: &str) -> Self {
        let teller = Teller { events, node: node.to_owned() };
        let addresses = vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        Self { runtime, health, teller, addresses, servers: BTreeMap::new() }
    }

    /// Sets the addresses to listen on.
    pub fn listen_on(&mut self, addresses: Vec<IpAddr>) {
        self.addresses = addresses;
        for server in self.servers.values_mut() {
            server.listen(&self.runtime, &self.teller, &self.addresses);
        }
    }

    /// Takes over what a Service's plan says; `None` if it has no server or is gone.
    pub fn set(&mut self, service: &ServiceKey, check: Option<HealthCheck>) {
        let Some(HealthCheck { port, local_endpoints }) = check else {
            self.servers.remove(service);
            return;
        };
        if let Some(server) = self.servers.get(service).filter(|server| server.port == port) {
            return server.answer.local_endpoints.store(local_endpoints, Ordering::Relaxed);
        }
        // The old port's listeners end first: the new one may be theirs.
        self.servers.remove(service);
        let local_endpoints = AtomicUsize::new(local_endpoints);
        let answer = Answer { service: service.clone(), local_endpoints, health: Arc::clone(&self.health) };
        let mut server = Server { port, answer: Arc::new(answer), listeners: HashMap::new() };
        server.listen(&self.runtime, &self.teller, &self.addresses);
        self.servers.insert(service.clone(), server);
    }
}

impl Server {
    fn listen(&mut self, runtime: &Handle, teller: &Teller, addresses: &[IpAddr]) {
        self.listeners.retain(|address, _| addresses.contains(address));
        for address in addresses {
            self.listeners.entry(*address).or_insert_with(|| {
                let router = Router::new().fallback(answer).with_state(Arc::clone(&self.answer));
                let what = format!("the health check of Service {}", self.answer.service);
                let (service, address) = (self.answer.service.clone(), SocketAddr::new(*address, self.port));
                let told = (teller.clone(), service.clone());
                let tell = move |failure: Option<&io::Error>| told.0.tell(&told.1, address, failure);
                let task = runtime.spawn(crate::http::serve_and_tell(what, address, router, tell));
                Listener { task, teller: teller.clone(), service, address }
            });
        }
    }
}

/// Any path and method: 200 with ready endpoints on a healthy node, else 503.
async fn answer(State(answer): State<Arc<Answer>>) -> Response {
    let local = answer.local_endpoints.load(Ordering::Relaxed);
    // Not whether the Node is eligible: a node that is about to go serves what is on it to the end (KEP-3836).
    let healthy = answer.health.verdict(Instant::now()).healthy;
    let body = body(&answer.service, local, healthy);
    (code(local > 0 && healthy), HEADERS, [(WEIGHT, local.to_string())], body).into_response()
}

fn body(ServiceKey { namespace, name }: &ServiceKey, local: usize, healthy: bool) -> String {
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {name:?}\n\t}},\n\
         \t\"localEndpoints\": {local},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    )
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use jiff::Timestamp;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn get(port: u16) -> String {
        let answer = async {
            loop {
                let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                stream.write_all(b"GET /whatever HTTP/1.0\r\n\r\n").await.unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                return answer;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), answer).await.unwrap()
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[tokio::test]
    async fn answers_follow_the_plan_and_the_proxy() {
        let health = Arc::new(Health::new());
        let mut servers = ServiceHealth::new(Handle::current(), Arc::clone(&health), Events::off(), "node-1");
        servers.listen_on(vec![Ipv4Addr::LOCALHOST.into()]);
        let service = ServiceKey { namespace: "shop".into(), name: "web".into() };
        let port = free_port();
        let check = |local_endpoints| Some(HealthCheck { port, local_endpoints });

        servers.set(&service, check(2));
        let answer = get(port).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
        for header in
            ["content-type: application/json", "x-content-type-options: nosniff", "x-load-balancing-endpoint-weight: 2"]
        {
            assert!(head.contains(header), "{header} is missing: {head}");
        }
        let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\
                        \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(body, expected);

        servers.set(&service, check(0));
        assert!(get(port).await.starts_with("HTTP/1.0 503"));

        servers.set(&service, check(1));
        let long_ago = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
        health.pending(long_ago);
        assert!(get(port).await.starts_with("HTTP/1.0 503"));
        health.updated(Timestamp::now());
        health.set_node(None);
        assert!(get(port).await.starts_with("HTTP/1.0 200"));

        // Another port, then none: nobody listens where it was.
        let other = free_port();
        servers.set(&service, Some(HealthCheck { port: other, local_endpoints: 1 }));
        assert!(get(other).await.starts_with("HTTP/1.0 200"));
        servers.set(&service, None);
        let gone = async {
            while TcpStream::connect(("127.0.0.1", other)).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.unwrap();
    }
}
