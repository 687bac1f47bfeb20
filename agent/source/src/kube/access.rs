//! The way to the API server: credentials, the choice of a server, the file that remembers servers.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use culvert_model::objects::{EndpointSlice, ObjectKey};
use kube::config::{
    AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster, NamedContext,
};
use kube::{Client, Config};

use super::servers::{Server, Servers};
use crate::replace::replace;

/// How long a server may take to accept a connection, TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The file of remembered servers, in the state directory.
const FILE: &str = "api-servers";

/// Where the API server is and who asks, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// API servers, in the order in which they are tried; they take the place of the kubeconfig's and the pod's.
    pub servers: Vec<String>,
    /// A kubeconfig: credentials, and the server unless others are named. Without one, the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// Directory in which servers are remembered; without one, they are not.
    pub state: Option<PathBuf>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// No server is known.
    #[error("no API server is known: name one by --api-server or --kubeconfig, or run in a pod")]
    NoServer,
    /// The kubeconfig, or what it refers to.
    #[error("the kubeconfig {path}: {error}")]
    Kubeconfig {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        error: kube::config::KubeconfigError,
    },
    /// The pod's service account.
    #[error("the service account in {SERVICE_ACCOUNT}: {0}")]
    ServiceAccount(kube::config::KubeconfigError),
    /// A URL.
    #[error("API server {0:?}: not a URL such as https://10.0.0.1:6443")]
    Url(String),
    /// Certificates, keys, tokens.
    #[error("{server}: {error}")]
    Client {
        /// The server's URL.
        server: String,
        /// What is wrong.
        error: Box<kube::Error>,
    },
}

/// The way to the API server, shared by all that ask it.
#[derive(Debug)]
pub struct Access {
    settings: Settings,
    file: Option<PathBuf>,
    servers: Mutex<Option<Servers>>,
    clients: Mutex<Clients>,
}

/// Clients by server, made from credentials of this fingerprint.
#[derive(Default)]
struct Clients {
    fingerprint: u64,
    clients: HashMap<Server, Client>,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clients").field("servers", &self.clients.keys()).finish_non_exhaustive()
    }
}

impl Access {
    /// Nothing is read or asked yet.
    pub fn new(settings: Settings) -> Self {
        let file = settings.state.as_ref().map(|state| state.join(FILE));
        Self { settings, file, servers: Mutex::new(None), clients: Mutex::default() }
    }

    /// The server to ask now, with a client for it. Credentials are read again if their files changed.
    pub async fn client(&self) -> Result<(Server, Client), AccessError> {
        let base = self.config().await?;
        let server = self.current(&base)?;
        let mut clients = lock(&self.clients);
        let fingerprint = self.fingerprint(&base);
        if clients.fingerprint != fingerprint {
            *clients = Clients { fingerprint, clients: HashMap::new() };
        }
        if let Some(client) = clients.clients.get(&server) {
            return Ok((server, client.clone()));
        }
        let client = client(base, &server).inspect_err(|_| {
            self.failed(&server);
        })?;
        clients.clients.insert(server.clone(), client.clone());
        Ok((server, client))
    }

    /// A server could not be reached; `true` if all have been tried.
    pub fn failed(&self, server: &Server) -> bool {
        lock(&self.servers).as_mut().is_none_or(|servers| servers.failed(server))
    }

    /// A server refuses the credentials: they are read again.
    pub fn refused(&self, server: &Server) {
        lock(&self.clients).clients.remove(server);
    }

    /// A server answered.
    pub fn worked(&self, server: &Server) {
        let text = lock(&self.servers).as_mut().and_then(|servers| servers.worked(server));
        self.remember(text);
    }

    /// Takes a slice of the Service `kubernetes`; `None` if it is gone.
    pub fn learn(&self, key: &ObjectKey, slice: Option<&EndpointSlice>) {
        let text = lock(&self.servers).as_mut().and_then(|servers| servers.learn(key, slice));
        self.remember(text);
    }

    fn current(&self, base: &Config) -> Result<Server, AccessError> {
        let mut servers = lock(&self.servers);
        let servers = servers.get_or_insert_with(|| {
            let named = !self.settings.servers.is_empty() || self.settings.kubeconfig.is_some();
            let configured = if self.settings.servers.is_empty() {
                Some(base.cluster_url.to_string()).filter(|url| url != NO_SERVER).into_iter().map(Server::new).collect()
            } else {
                self.settings.servers.iter().map(Server::new).collect()
            };
            let remembered = self.file.as_deref().map(remembered).unwrap_or_default();
            Servers::new(configured, named, &remembered)
        });
        servers.current().ok_or(AccessError::NoServer)
    }

    /// The configuration with the credentials; its server is one of several.
    async fn config(&self) -> Result<Config, AccessError> {
        if let Some(path) = &self.settings.kubeconfig {
            let failed = |error| AccessError::Kubeconfig { path: path.clone(), error };
            let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(failed)
        } else {
            let account = Path::new(SERVICE_ACCOUNT);
            let kubeconfig = in_cluster(account, &environment());
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
            let mut config = config.map_err(AccessError::ServiceAccount)?;
            // Then it is read again as it rotates; the token is anyway.
            config.root_cert_file = Some(account.join("ca.crt"));
            // A proxy for the world outside is none for the API server of this cluster.
            config.proxy_url = None;
            Ok(config)
        }
    }

    /// Changes when the kubeconfig, a certificate or a key does. Tokens in files, and a pod's CA, are read again by the client.
    fn fingerprint(&self, config: &Config) -> u64 {
        let mut hasher = DefaultHasher::new();
        let AuthInfo { client_certificate, client_key, .. } = &config.auth_info;
        let certificates = [client_certificate, client_key].into_iter().flatten().map(PathBuf::from);
        for path in self.settings.kubeconfig.iter().cloned().chain(certificates) {
            fs::read(path).ok().hash(&mut hasher);
        }
        if self.settings.kubeconfig.is_some() {
            config.root_cert.hash(&mut hasher);
        }
        hasher.finish()
    }

    fn remember(&self, text: Option<String>) {
        let (Some(text), Some(file)) = (text, &self.file) else { return };
        if let Err(error) = replace(file, &text) {
            let file = file.display();
            tracing::warn!(%file, %error, "API servers cannot be remembered; a start without the configured ones may fail");
        }
    }
}

/// The file's text; empty if there is none.
fn remembered(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(file = %file.display(), %error, "the remembered API servers cannot be read");
        }
        String::new()
    })
}

/// Stands where no server is configured.
const NO_SERVER: &str = "https://nowhere.invalid/";

/// The server that the kubelet tells every pod of.
fn environment() -> String {
    let variable = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
    let host = variable("KUBERNETES_SERVICE_HOST");
    let port = variable("KUBERNETES_SERVICE_PORT").unwrap_or_else(|| "443".to_owned());
    host.map_or_else(|| NO_SERVER.to_owned(), |host| url(&host, &port))
}

fn url(host: &str, port: &str) -> String {
    if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") }
}

/// What a pod knows, as a kubeconfig.
fn in_cluster(account: &Path, server: &str) -> Kubeconfig {
    let name = || "pod".to_owned();
    let path = |file| Some(account.join(file).to_string_lossy().into_owned());
    let cluster =
        Cluster { server: Some(server.to_owned()), certificate_authority: path("ca.crt"), ..Cluster::default() };
    let auth_info = AuthInfo { token_file: path("token"), ..AuthInfo::default() };
    let context = Context { cluster: name(), user: Some(name()), ..Context::default() };
    Kubeconfig {
        clusters: vec![NamedCluster { name: name(), cluster: Some(cluster), ..NamedCluster::default() }],
        auth_infos: vec![NamedAuthInfo { name: name(), auth_info: Some(auth_info), ..NamedAuthInfo::default() }],
        contexts: vec![NamedContext { name: name(), context: Some(context), ..NamedContext::default() }],
        current_context: Some(name()),
        ..Kubeconfig::default()
    }
}

fn client(mut config: Config, server: &Server) -> Result<Client, AccessError> {
    config.cluster_url = server.url.parse().map_err(|_| AccessError::Url(server.url.clone()))?;
    if server.host().is_none() {
        return Err(AccessError::Url(server.url.clone()));
    }
    if let Some(name) = &server.name {
        config.tls_server_name.get_or_insert_with(|| name.clone());
    }
    config.connect_timeout = Some(CONNECT);
    // New attempts are made here, with pauses that fit.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| AccessError::Client { server: server.url.clone(), error: Box::new(error) })
}

fn lock<T>(state: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in there is valid after each statement.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_the_environment() {
        assert_eq!(url("10.96.0.1", "443"), "https://10.96.0.1:443");
        assert_eq!(url("fd00::1", "6443"), "https://[fd00::1]:6443");
    }

    fn kubeconfig(dir: &Path, server: &str) -> PathBuf {
        let path = dir.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: [{{name: x, cluster: {{server: '{server}'}}}}]\n\
             users: [{{name: x, user: {{token: t}}}}]\ncontexts: [{{name: x, context: {{cluster: x, user: x}}}}]\n"
        );
        fs::write(&path, text).unwrap();
        path
    }

    #[tokio::test]
    async fn a_kubeconfig_may_come_late_and_change() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            kubeconfig: Some(dir.path().join("kubeconfig")),
            state: Some(dir.path().join("state")),
            ..Settings::default()
        };
        let access = Access::new(settings);
        let error = access.client().await.err().unwrap().to_string();
        assert!(error.contains("kubeconfig"), "{error}");
        kubeconfig(dir.path(), "http://127.0.0.1:1");
        let (server, _) = access.client().await.unwrap();
        assert_eq!(server.url, "http://127.0.0.1:1");
        let before = lock(&access.clients).fingerprint;
        kubeconfig(dir.path(), "http://127.0.0.1:1/#");
        access.client().await.unwrap();
        assert_ne!(lock(&access.clients).fingerprint, before);
    }

    #[tokio::test]
    async fn named_servers_take_the_kubeconfigs_place_and_urls_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            servers: vec!["http://127.0.0.1:2".into(), "nonsense".into()],
            kubeconfig: Some(kubeconfig(dir.path(), "http://127.0.0.1:1")),
            state: Some(dir.path().join("state")),
        };
        let access = Access::new(settings);
        let (server, _) = access.client().await.unwrap();
        assert_eq!(server.url, "http://127.0.0.1:2");
        assert!(!access.failed(&server));
        let error = access.client().await.err().unwrap().to_string();
        assert!(error.contains("nonsense"), "{error}");
    }
}
