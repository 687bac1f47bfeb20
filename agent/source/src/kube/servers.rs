//! Which API servers there are, and which one is asked. Pure.

use std::collections::BTreeMap;

use culvert_model::objects::{EndpointSlice, ObjectKey};

/// An API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Server {
    /// `https://HOST:PORT`.
    pub url: String,
    /// The name that its certificate must have, if it is another one than the URL's: a server that was learned of must be
    /// the one that was configured.
    pub name: Option<String>,
}

impl Server {
    /// A server under its own name.
    pub fn new(url: impl Into<String>) -> Self {
        let url: String = url.into();
        Self { url: url.trim_end_matches('/').to_owned(), name: None }
    }

    /// The host of the URL, without brackets.
    pub fn host(&self) -> Option<&str> {
        let (_, rest) = self.url.split_once("://")?;
        let authority = rest.split('/').next()?;
        if let Some(bracketed) = authority.strip_prefix('[') {
            return bracketed.split_once(']').map(|(host, _)| host);
        }
        Some(authority.rsplit_once(':').map_or(authority, |(host, _)| host)).filter(|host| !host.is_empty())
    }

    /// Whether its identity is verified.
    pub fn is_secure(&self) -> bool {
        self.url.starts_with("https://")
    }
}

/// One line of the file of remembered servers.
impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)?;
        self.name.iter().try_for_each(|name| write!(f, " {name}"))
    }
}

/// At most so many are remembered: the lines of a damaged file are not all tried.
const REMEMBERED: usize = 32;
/// The first line of the file.
const HEADING: &str = "# API servers that the agent has reached or heard of, and the names of their certificates.\n";

/// The servers.
#[derive(Debug, Default)]
pub struct Servers {
    /// As configured.
    configured: Vec<Server>,
    /// The configured ones were named for this agent; else they are the Service `kubernetes`, which works only while this
    /// or another proxy does.
    named: bool,
    /// What the slices of the Service `kubernetes` say.
    learned: BTreeMap<ObjectKey, Vec<Server>>,
    /// From the last run; the last one that worked comes first.
    remembered: Vec<Server>,
    /// The one that is asked.
    current: Option<Server>,
    /// Those that failed since one worked.
    failed: Vec<Server>,
}

impl Servers {
    /// The servers that are configured, and those that are remembered (the text of the file).
    pub fn new(configured: Vec<Server>, named: bool, remembered: &str) -> Self {
        Self { configured, named, remembered: parse(remembered), ..Self::default() }
    }

    /// All, in the order in which they are tried. One that is known under two names is two: only one of them may be in its
    /// certificate.
    pub fn candidates(&self) -> Vec<Server> {
        let known = self.learned.values().flatten().chain(&self.remembered);
        let mut all: Vec<Server> = Vec::new();
        let mut push = |server: &Server| {
            if !all.contains(server) {
                all.push(server.clone());
            }
        };
        if self.named {
            self.configured.iter().chain(known).for_each(&mut push);
        } else {
            // The one that worked last comes first, whether it was heard of since or not. The Service comes last: it may be
            // this agent that is to make it work.
            self.remembered.first().into_iter().chain(known).chain(&self.configured).for_each(&mut push);
        }
        all
    }

    /// The one to ask now; `None` if there is none at all.
    pub fn current(&mut self) -> Option<Server> {
        let candidates = self.candidates();
        let known = self.current.take().filter(|current| candidates.contains(current));
        self.current = known
            .or_else(|| candidates.iter().find(|server| !self.failed.contains(server)).cloned())
            .or_else(|| candidates.first().cloned());
        self.current.clone()
    }

    /// A server could not be reached: another one is asked from now on. `true` if all of them have been tried.
    pub fn failed(&mut self, server: &Server) -> bool {
        if !self.failed.contains(server) {
            self.failed.push(server.clone());
        }
        if self.current.as_ref() == Some(server) {
            self.current = None;
        }
        let all = self.candidates().iter().all(|server| self.failed.contains(server));
        if all {
            self.failed.clear();
        }
        all
    }

    /// A server answered. The new text of the file, if it is another one.
    pub fn worked(&mut self, server: &Server) -> Option<String> {
        self.failed.clear();
        self.current = Some(server.clone());
        self.remember(Some(server))
    }

    /// Takes a slice of the Service `kubernetes`, or takes note that it is gone. The new text of the file, if it is another one.
    pub fn learn(&mut self, key: &ObjectKey, slice: Option<&EndpointSlice>) -> Option<String> {
        // Only what proves that it is the configured server; and something must be configured to prove it by.
        let name =
            self.configured.first().filter(|server| server.is_secure()).and_then(Server::host).map(str::to_owned)?;
        match slice {
            Some(slice) => self.learned.insert(key.clone(), addresses(slice, &name)),
            None => self.learned.remove(key),
        };
        let current = self.current.clone();
        self.remember(current.as_ref())
    }

    /// The one that worked last, then those that were heard of. Until anything was heard, the others stay.
    fn remember(&mut self, current: Option<&Server>) -> Option<String> {
        let learned: Vec<Server> = self.learned.values().flatten().cloned().collect();
        let rest = if learned.is_empty() { self.remembered.clone() } else { learned };
        let direct = |server: &&Server| self.named || !self.configured.contains(server);
        let mut wanted: Vec<Server> = current.filter(direct).cloned().into_iter().collect();
        for server in rest {
            if !wanted.iter().any(|other| other.url == server.url) {
                wanted.push(server);
            }
        }
        wanted.truncate(REMEMBERED);
        if wanted == self.remembered {
            return None;
        }
        self.remembered = wanted;
        let mut text = HEADING.to_owned();
        for server in &self.remembered {
            text.extend([&server.to_string(), "\n"]);
        }
        Some(text)
    }
}

/// The servers of a slice; those that are not ready are left out.
fn addresses(slice: &EndpointSlice, name: &str) -> Vec<Server> {
    let port = slice.ports.iter().find(|port| port.name.as_deref() == Some("https")).or(slice.ports.first());
    let Some(port) = port.and_then(|port| u16::try_from(port.port?).ok()) else { return Vec::new() };
    let ready = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready.unwrap_or(true));
    let addresses = ready.filter_map(|endpoint| endpoint.addresses.first()?.parse::<std::net::IpAddr>().ok());
    addresses
        .map(|address| {
            let url = format!("https://{}", std::net::SocketAddr::new(address, port));
            Server { url, name: Some(name.to_owned()) }
        })
        .collect()
}

/// Reads the file; lines that mean nothing are passed over.
fn parse(text: &str) -> Vec<Server> {
    let lines = text.lines().map(str::trim).filter(|line| line.starts_with("https://") || line.starts_with("http://"));
    let servers = lines.map(|line| {
        let mut words = line.split_whitespace();
        let server = Server::new(words.next().unwrap_or_default());
        Server { name: words.next().map(str::to_owned), ..server }
    });
    servers.filter(|server| server.host().is_some()).take(REMEMBERED).collect()
}

/// Whether a slice says where the API servers are.
pub fn is_of_api_servers(slice: &EndpointSlice) -> bool {
    slice.metadata.namespace == "default" && slice.service_name() == Some("kubernetes")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn server(url: &str) -> Server {
        Server::new(url)
    }

    fn slice(addresses: &[&str]) -> EndpointSlice {
        let endpoints: Vec<_> = addresses.iter().map(|address| json!({"addresses": [address]})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": "IPv4",
            "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}],
            "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn urls(servers: &Servers) -> Vec<String> {
        servers.candidates().into_iter().map(|server| server.url).collect()
    }

    fn key() -> ObjectKey {
        ObjectKey::new("default", "kubernetes")
    }

    #[test]
    fn hosts_of_urls() {
        for (url, host) in [
            ("https://10.0.0.1:6443", Some("10.0.0.1")),
            ("https://[fd00::1]:6443/", Some("fd00::1")),
            ("https://api.example.com", Some("api.example.com")),
            ("https://:6443", None),
            ("nonsense", None),
        ] {
            assert_eq!(server(url).host(), host, "{url}");
        }
    }

    #[test]
    fn named_servers_are_tried_in_order_and_learned_ones_after() {
        let mut servers = Servers::new(vec![server("https://a:1"), server("https://b:1")], true, "https://old:1\n");
        assert_eq!(servers.current(), Some(server("https://a:1")));
        assert!(!servers.failed(&server("https://a:1")));
        assert_eq!(servers.current(), Some(server("https://b:1")));
        // Another watch fails on the first one still: nothing new.
        assert!(!servers.failed(&server("https://a:1")));
        assert_eq!(servers.current(), Some(server("https://b:1")));
        assert!(!servers.failed(&server("https://b:1")));
        assert_eq!(servers.current(), Some(server("https://old:1")));
        assert!(servers.failed(&server("https://old:1")));
        assert_eq!(servers.current(), Some(server("https://a:1")));
        let file = servers.worked(&server("https://a:1")).unwrap();
        assert!(file.ends_with("\nhttps://a:1\nhttps://old:1\n"), "{file}");
        assert_eq!(servers.worked(&server("https://a:1")), None);
        let file = servers.learn(&key(), Some(&slice(&["10.0.0.1", "10.0.0.2"]))).unwrap();
        assert!(file.ends_with("\nhttps://a:1\nhttps://10.0.0.1:6443 a\nhttps://10.0.0.2:6443 a\n"), "{file}");
        assert_eq!(urls(&servers), ["https://a:1", "https://b:1", "https://10.0.0.1:6443", "https://10.0.0.2:6443"]);
    }

    #[test]
    fn the_service_kubernetes_is_asked_last_once_others_are_known() {
        let mut first = Servers::new(vec![server("https://10.96.0.1:443")], false, "");
        assert_eq!(first.current(), Some(server("https://10.96.0.1:443")));
        first.worked(&server("https://10.96.0.1:443"));
        let file = first.learn(&key(), Some(&slice(&["10.0.0.1"]))).unwrap();
        // The next start: nothing was ever reached but through the Service, and that is not needed any more.
        let mut second = Servers::new(vec![server("https://10.96.0.1:443")], false, &file);
        let direct = Server { url: "https://10.0.0.1:6443".into(), name: Some("10.96.0.1".into()) };
        assert_eq!(second.current(), Some(direct.clone()));
        assert_eq!(second.worked(&direct), None);
        assert!(!second.failed(&direct));
        assert_eq!(second.current(), Some(server("https://10.96.0.1:443")));
    }

    #[test]
    fn servers_that_went_are_forgotten() {
        let mut servers = Servers::new(vec![server("https://a:1")], true, "");
        servers.worked(&server("https://a:1"));
        servers.learn(&key(), Some(&slice(&["10.0.0.1", "10.0.0.2"])));
        let file = servers.learn(&key(), Some(&slice(&["10.0.0.2"]))).unwrap();
        assert!(!file.contains("10.0.0.1"), "{file}");
        assert_eq!(urls(&servers), ["https://a:1", "https://10.0.0.2:6443"]);
    }

    #[test]
    fn a_server_that_works_stays_when_it_is_heard_of_under_another_name() {
        // The last run had another server in its configuration: its certificate has that one's name.
        let works = Server { url: "https://10.0.0.1:6443".into(), name: Some("old".into()) };
        let mut servers = Servers::new(vec![server("https://a:1")], true, &works.to_string());
        servers.failed(&server("https://a:1"));
        servers.worked(&works);
        servers.learn(&key(), Some(&slice(&["10.0.0.1"])));
        assert_eq!(servers.current(), Some(works.clone()));
        // Nor is it lost when it is away for a moment: it has its turn.
        let mut turn = || {
            let server = servers.current().unwrap();
            servers.failed(&server);
            server.to_string()
        };
        let turns: Vec<String> = (0..6).map(|_| turn()).collect();
        let [a, new, old] = ["https://a:1", "https://10.0.0.1:6443 a", "https://10.0.0.1:6443 old"];
        assert_eq!(turns, [old, a, new, a, new, old]);
    }

    #[test]
    fn nothing_is_learned_where_nothing_is_proven() {
        let mut servers = Servers::new(vec![server("http://127.0.0.1:8080")], true, "");
        assert_eq!(servers.learn(&key(), Some(&slice(&["10.0.0.1"]))), None);
        assert_eq!(urls(&servers), ["http://127.0.0.1:8080"]);
    }

    #[test]
    fn a_damaged_file_harms_nothing() {
        let text = "# comment\n\nhttps://\nhttps://[::1\nnonsense https://x\nhttps://b:1 name more\n\u{0}\n";
        let servers = Servers::new(vec![], true, text);
        assert_eq!(servers.candidates(), [Server { url: "https://b:1".into(), name: Some("name".into()) }]);
        let many = (0..100).map(|i| format!("https://h{i}:1")).collect::<Vec<_>>().join("\n");
        assert_eq!(Servers::new(vec![], true, &many).candidates().len(), REMEMBERED);
    }
}
