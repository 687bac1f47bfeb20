//! The watch of one kind: the first list, then changes, for ever.
//!
//! ```text
//!            ┌──────────── 410 Gone: the version is too old ◄──────────────┐
//!            ▼                                                             │
//! no version ── streamed list, else pages ──► a version ── watch ──► events, bookmarks: newer versions
//!            ▲                                     ▲                       │
//!            └─ a list that breaks off ────────────┴── a watch that ends ──┘
//! ```
//!
//! A watch goes on from the last version wherever it can, at any API server of the cluster: their versions are the same. Lists are
//! read again only when there is no other way, and [`Told`] makes differences of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::io::{AsyncBufRead, AsyncBufReadExt};
use kube::api::{ListParams, WatchParams};
use kube::core::Request;
use kube::{Client, Error};
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;

use super::access::{Access, AccessError};
use super::backoff::{Backoff, random, spread};
use super::decode::{self, Detail, Event, Failure, Item};
use super::pending::News;
use super::servers::{Server, is_of_api_servers};
use super::told::Told;
use crate::fault::Fault;
use crate::object::{Change, Id, Kind, Object};

/// The server ends a watch after so long, and a random part more (kube's limit is 295 s).
const WATCH: Duration = Duration::from_mins(4);
const WATCH_MORE: Duration = Duration::from_secs(50);
/// A watch on which nothing is heard for so long is dead: the server sends bookmarks every minute.
const SILENCE: Duration = Duration::from_secs(150);
/// How long a streamed list may pause. A server that does not know of them sends objects, and then no end.
const LIST_SILENCE: Duration = Duration::from_secs(30);
/// How long a server may take to end a watch again that it does not like.
const BEGIN: Duration = Duration::from_secs(1);
/// How long a page, or the beginning of an answer, may take.
const ANSWER: Duration = Duration::from_mins(1);
/// Objects a page.
const PAGE: u32 = 250;
/// Lists that are read again begin up to so much later: nodes do not all come at once.
const RELIST: Duration = Duration::from_secs(2);
/// A watch that ends in order sooner than this counts as a failure.
const HASTY: Duration = Duration::from_secs(1);

/// What is watched of a kind.
#[derive(Clone, Debug)]
pub struct Selection {
    kind: Kind,
    path: String,
    labels: Option<&'static str>,
    fields: Option<String>,
    detail: Detail,
    absence: Absence,
}

/// What it means that the API server does not know a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    /// That something is wrong: without it nothing is complete.
    Trouble,
    /// That there are no objects of it, until somebody installs its definition.
    Empty,
}

impl Selection {
    /// What kube-proxy selects (`cmd/kube-proxy/app/server.go`): no Services of other proxies, no headless ones nor their
    /// slices, and the own Node alone.
    pub fn of_node(node: &str) -> Vec<Self> {
        let services = Self {
            labels: Some("!service.kubernetes.io/service-proxy-name"),
            fields: Some("spec.clusterIP!=None".to_owned()),
            ..Self::all(Kind::Service)
        };
        let slices = Self { labels: Some("!service.kubernetes.io/headless"), ..Self::all(Kind::EndpointSlice) };
        let node = Self { fields: Some(format!("metadata.name={node}")), ..Self::all(Kind::Node) };
        vec![services, slices, node]
    }

    /// What addresses depend on: all Services, as one reads them who writes them, and everything that pools are configured with.
    /// All of it may be absent but the pools, without which nobody could say to whom an address belongs.
    pub fn of_addresses() -> Vec<Self> {
        let services = Self { detail: Detail::Written, ..Self::all(Kind::Service) };
        let configuration = culvert_pools::Kind::ALL.into_iter().map(|kind| {
            let needed = matches!(kind, culvert_pools::Kind::IpAddressPool | culvert_pools::Kind::Namespace);
            let absence = if needed { Absence::Trouble } else { Absence::Empty };
            Self { absence, ..Self::all(Kind::Addresses(kind)) }
        });
        std::iter::once(services).chain(configuration).collect()
    }

    /// What announcing in layer 2 depends on besides Services: all Nodes, and what pools and advertisements are configured with.
    pub fn of_layer2() -> Vec<Self> {
        use culvert_pools::Kind::{Community, IpAddressPool, L2Advertisement};
        let of = |kind| Self::all(Kind::Addresses(kind));
        let optional = |kind| Self { absence: Absence::Empty, ..of(kind) };
        vec![Self::all(Kind::Node), of(IpAddressPool), optional(L2Advertisement), optional(Community)]
    }

    /// Selects without fields from now on, where that is possible; whether it did not before. Before Kubernetes 1.31 servers refuse those
    /// of Services (kubernetes/kubernetes#123905). They only spare work: headless Services have no frontends.
    fn without_fields(&mut self) -> bool {
        self.kind == Kind::Service && self.fields.take().is_some()
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn all(kind: Kind) -> Self {
        let path = match kind {
            Kind::Service => "/api/v1/services".to_owned(),
            Kind::EndpointSlice => "/apis/discovery.k8s.io/v1/endpointslices".to_owned(),
            Kind::Node => "/api/v1/nodes".to_owned(),
            Kind::Addresses(culvert_pools::Kind::Namespace) => "/api/v1/namespaces".to_owned(),
            Kind::Addresses(kind) => format!("/apis/{}/{}", kind.api_versions()[0], kind.plural()),
        };
        Self { kind, path, labels: None, fields: None, detail: Detail::Read, absence: Absence::Trouble }
    }

    fn watch(&self, initial: bool) -> WatchParams {
        let seconds = (WATCH + spread(WATCH_MORE, random())).as_secs() as u32;
        WatchParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            send_initial_events: initial,
        }
    }

    fn list(&self, page: Option<String>) -> ListParams {
        ListParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            limit: Some(PAGE),
            // No version: the list as it is now. With version 0 older servers would send all of it as one page.
            continue_token: page,
            ..ListParams::default()
        }
    }
}

/// Why a watch has ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    /// Nobody listens any more.
    #[error("nobody listens")]
    Unheard,
    /// There is no client.
    #[error("{0}")]
    Access(#[from] AccessError),
    /// The server does not answer, or not as one.
    #[error("{0}")]
    Unreachable(String),
    /// The server refuses.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// The server streams no lists: it is too old, or its etcd is (before 3.4.25 or 3.5.8).
    #[error("lists are not streamed")]
    NotStreamed,
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(status) => Self::Refused(Failure { code: status.code, message: status.message }),
            // The innermost cause says most: "connection refused", "certificate has expired".
            error => {
                let mut cause: &dyn std::error::Error = &error;
                while let Some(source) = cause.source() {
                    cause = source;
                }
                Self::Unreachable(cause.to_string())
            }
        }
    }
}

/// The watch of one kind.
#[derive(Debug)]
pub struct Reflector {
    selection: Selection,
    access: Arc<Access>,
    news: Sender<News>,
    told: Told,
    /// Where to go on; `None` before a list.
    version: Option<String>,
    listed: bool,
    unreadable: Vec<Fault>,
    troubled: bool,
}

impl Reflector {
    /// Nothing is known yet.
    pub fn new(selection: Selection, access: Arc<Access>, news: Sender<News>) -> Self {
        let told = Told::new(selection.kind);
        Self { selection, access, news, told, version: None, listed: false, unreadable: Vec::new(), troubled: false }
    }

    /// Watches until nobody listens.
    pub async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let begun = Instant::now();
            let ended = self.session().await;
            let lasted = begun.elapsed();
            match ended {
                // In order.
                Ok(()) if lasted >= HASTY => continue,
                Ok(()) => {}
                Err(Ended::Unheard) => return,
                Err(ended) => {
                    let kind = self.selection.kind.name();
                    tracing::debug!(kind, %ended, "the watch has ended");
                    if self.listed && backoff.failures() < 2 {
                        // What a restart of an API server looks like.
                    } else if self.trouble(Some(&ended)).await.is_err() {
                        return;
                    }
                }
            }
            let again = self.listed && self.version.is_none();
            let pause =
                backoff.failed(lasted, random()) + if again { spread(RELIST, random()) } else { Duration::ZERO };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.news.closed() => return,
            }
        }
    }

    /// One connection: a list if need be, then the watch to its end.
    async fn session(&mut self) -> Result<(), Ended> {
        let (server, client) = self.access.client().await?;
        let result = self.ask(&server, &client).await;
        if matches!(&result, Err(Ended::Refused(Failure { code: 404, .. }))) {
            self.absent().await?;
        }
        match &result {
            Err(Ended::Refused(Failure { code: 400, message })) if self.selection.without_fields() => {
                tracing::info!(
                    message,
                    "the API server is older than Kubernetes 1.31: headless Services are read as well"
                );
                return Ok(());
            }
            Err(Ended::Unreachable(reason)) => {
                let all = self.access.failed(&server);
                tracing::debug!(server = server.url, reason, all, "the API server cannot be reached");
            }
            Err(Ended::Refused(Failure { code: 401, .. })) => self.access.refused(&server),
            // It is there, and cannot do its work: another one may.
            Err(Ended::Refused(Failure { code: 500.., .. })) => drop(self.access.failed(&server)),
            _ => {}
        }
        match result {
            Err(Ended::Unreachable(reason)) => Err(Ended::Unreachable(format!("{}: {reason}", server.url))),
            other => other,
        }
    }

    async fn ask(&mut self, server: &Server, client: &Client) -> Result<(), Ended> {
        if let Some(version) = self.version.clone() {
            return self.watch(server, client, Some(version)).await;
        }
        match self.watch(server, client, None).await {
            Err(Ended::NotStreamed) => {
                tracing::debug!(kind = self.selection.kind.name(), "lists are not streamed here; reading pages");
                let version = self.pages(server, client).await?;
                self.watch(server, client, Some(version)).await
            }
            ended => ended,
        }
    }

    /// Reads the list page by page. The version from which the watch goes on.
    async fn pages(&mut self, server: &Server, client: &Client) -> Result<String, Ended> {
        self.told.begin();
        let mut next = None;
        loop {
            let request = request(Request::new(&*self.selection.path).list(&self.selection.list(next.take())))?;
            let text = answer(client.request_text(request)).await?;
            self.reached(server).await?;
            let page = decode::page(self.selection.kind, self.selection.detail, &text)
                .map_err(|error| Ended::Unreachable(format!("{}: an answer that is no list: {error}", server.url)))?;
            drop(text);
            if page.nameless > 0 {
                tracing::warn!(kind = self.selection.kind.name(), objects = page.nameless, "objects without a name");
            }
            for item in page.items {
                self.upsert(item).await?;
            }
            if page.next.is_none() {
                self.end_list().await?;
                self.version = Some(page.version.clone());
                return Ok(page.version);
            }
            next = page.next;
        }
    }

    /// Watches from a version, or from a streamed list, until the server ends it.
    async fn watch(&mut self, server: &Server, client: &Client, version: Option<String>) -> Result<(), Ended> {
        let initial = version.is_none();
        let params = self.selection.watch(initial);
        // Without a version: the list as it is now.
        let request =
            request(Request::new(&*self.selection.path).watch(&params, version.as_deref().unwrap_or_default()))?;
        let stream = match answer(client.request_stream(request)).await {
            Err(Ended::Refused(failure)) => return Err(self.refused(failure, initial)),
            other => other?,
        };
        if initial {
            self.told.begin();
        }
        self.follow(server, stream, initial).await
    }

    async fn follow(&mut self, server: &Server, stream: impl AsyncBufRead, mut initial: bool) -> Result<(), Ended> {
        let mut stream = std::pin::pin!(stream);
        let mut line = String::new();
        let mut begun = false;
        loop {
            line.clear();
            let silence = if initial { LIST_SILENCE } else { SILENCE };
            let heard = {
                let mut read = std::pin::pin!(stream.read_line(&mut line));
                match timeout(if begun { silence } else { BEGIN }, &mut read).await {
                    Err(_) if !begun => {
                        // A server that refuses says so at once.
                        begun = true;
                        self.reached(server).await?;
                        timeout(silence, read).await
                    }
                    heard => heard,
                }
            };
            match heard {
                Err(_) if initial => return Err(Ended::NotStreamed),
                Err(_) => return Err(Ended::Unreachable(format!("nothing was heard for {} s", silence.as_secs()))),
                Ok(Err(error)) => return Err(Ended::Unreachable(error.to_string())),
                Ok(Ok(0)) if initial => return Err(Ended::Unreachable("the list has broken off".to_owned())),
                Ok(Ok(0)) => return Ok(()),
                Ok(Ok(_)) => {}
            }
            // The last line of a connection that broke.
            if !line.ends_with('\n') {
                continue;
            }
            let event = match decode::event(self.selection.kind, self.selection.detail, &line) {
                Ok(event) => event,
                Err(error) => {
                    tracing::warn!(kind = self.selection.kind.name(), %error, "an event that cannot be read is passed over");
                    continue;
                }
            };
            if !begun && !matches!(event, Some(Event::Failed(_))) {
                begun = true;
                self.reached(server).await?;
            }
            match event {
                None => {}
                Some(Event::Upsert(item)) => {
                    // While the list is streamed, its objects come in no order of versions.
                    self.advance(&item.version, !initial);
                    self.upsert(item).await?;
                }
                Some(Event::Remove(item)) => {
                    self.advance(&item.version, !initial);
                    self.remove(item).await?;
                }
                Some(Event::Bookmark { version, initial: end }) => {
                    if initial && end {
                        initial = false;
                        self.end_list().await?;
                    }
                    self.advance(&version, !initial);
                }
                Some(Event::Failed(failure)) => return Err(self.refused(failure, initial)),
            }
        }
    }

    fn advance(&mut self, version: &str, known: bool) {
        if known && !version.is_empty() {
            self.version = Some(version.to_owned());
        }
    }

    /// What a refusal means: of a streamed list, that there are none here, unless the reason is another one by its nature; and of
    /// a version, that it is too old for every server and everything is to be read again.
    fn refused(&mut self, failure: Failure, initial: bool) -> Ended {
        match failure.code {
            410 => {
                let (kind, message) = (self.selection.kind.name(), &failure.message);
                tracing::info!(kind, message, "changes were missed; reading the list again");
                self.version = None;
                Ended::Refused(failure)
            }
            401 | 403 | 429 => Ended::Refused(failure),
            _ if initial => Ended::NotStreamed,
            _ => Ended::Refused(failure),
        }
    }

    // ===== what is told =====

    async fn upsert(&mut self, item: Item) -> Result<(), Ended> {
        if let Ok(Object::EndpointSlice(slice)) = &item.object
            && is_of_api_servers(slice)
        {
            self.access.learn(&item.key, Some(slice));
        }
        let change = self.told.upsert(item);
        self.tell(change).await
    }

    async fn remove(&mut self, item: Item) -> Result<(), Ended> {
        let change = self.told.remove(item.key);
        self.tell(change).await
    }

    /// The list has ended: what was not in it is gone.
    async fn end_list(&mut self) -> Result<(), Ended> {
        for change in self.told.end() {
            self.tell(Some(change)).await?;
        }
        self.tell(None).await?;
        if !self.listed {
            self.listed = true;
            self.send(News::Listed(self.selection.kind)).await?;
        }
        Ok(())
    }

    /// The server does not know the kind. What was told of it stays: with a definition its objects go one by one, before it.
    async fn absent(&mut self) -> Result<(), Ended> {
        if self.listed || self.selection.absence == Absence::Trouble {
            return Ok(());
        }
        self.listed = true;
        self.send(News::Listed(self.selection.kind)).await
    }

    async fn tell(&mut self, change: Option<Change>) -> Result<(), Ended> {
        if let Some(change) = change {
            if let Change::Remove(Id { kind: Kind::EndpointSlice, key }) = &change
                && &*key.namespace == "default"
            {
                self.access.learn(key, None);
            }
            self.send(News::Change(change)).await?;
        }
        let unreadable = self.told.faults();
        if unreadable != self.unreadable {
            self.unreadable.clone_from(&unreadable);
            self.send(News::Unreadable(self.selection.kind, unreadable)).await?;
        }
        Ok(())
    }

    /// The server answered.
    async fn reached(&mut self, server: &Server) -> Result<(), Ended> {
        self.access.worked(server);
        self.trouble(None).await
    }

    async fn trouble(&mut self, ended: Option<&Ended>) -> Result<(), Ended> {
        if ended.is_none() && !self.troubled {
            return Ok(());
        }
        self.troubled = ended.is_some();
        let kind = self.selection.kind;
        let fault = ended.map(|ended| Fault::warning(format!("{}s cannot be watched: {ended}", kind.name())));
        self.send(News::Trouble(kind, fault)).await
    }

    async fn send(&self, news: News) -> Result<(), Ended> {
        self.news.send(news).await.map_err(|_| Ended::Unheard)
    }
}

/// Waits for an answer, not for ever.
async fn answer<T>(asked: impl Future<Output = kube::Result<T>>) -> Result<T, Ended> {
    match timeout(ANSWER, asked).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Ended::Unreachable(format!("no answer within {} s", ANSWER.as_secs()))),
    }
}

/// A request that cannot be built is a mistake of ours; it is told like any other failure.
fn request<T>(built: Result<T, kube::core::request::Error>) -> Result<T, Ended> {
    built.map_err(|error| Ended::Unreachable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use futures_util::io::Cursor;
    use tokio::sync::mpsc::{self, Receiver};

    use super::*;
    use crate::kube::Settings;

    fn reflector() -> (Reflector, Receiver<News>) {
        let (news, heard) = mpsc::channel(100);
        let access = Arc::new(Access::new(Settings::default()));
        (Reflector::new(Selection::of_node("n1").remove(0), access, news), heard)
    }

    /// Lines of a watch: `NAME=VERSION`, `-NAME=VERSION`, `@VERSION` for a bookmark, `@@VERSION` for the one that ends a list, all
    /// else as it is.
    fn lines(words: &[&str]) -> String {
        let mut text = String::new();
        for word in words {
            let event = |kind: &str, name: &str, version: &str, more: &str| {
                format!(
                    r#"{{"type":"{kind}","object":{{"metadata":{{"name":"{name}","namespace":"a","resourceVersion":"{version}"{more}}}}}}}"#
                )
            };
            let line = if let Some(version) = word.strip_prefix("@@") {
                event("BOOKMARK", "", version, r#","annotations":{"k8s.io/initial-events-end":"true"}"#)
            } else if let Some(version) = word.strip_prefix('@') {
                event("BOOKMARK", "", version, "")
            } else if let Some((name, version)) = word.split_once('=').filter(|_| !word.starts_with('{')) {
                match name.strip_prefix('-') {
                    Some(name) => event("DELETED", name, version, ""),
                    None => event("ADDED", name, version, ""),
                }
            } else {
                (*word).to_owned()
            };
            writeln!(text, "{line}").unwrap();
        }
        text
    }

    /// What a stream of these lines tells, where the watch would go on, and how it ended.
    async fn follow(
        reflector: &mut Reflector,
        heard: &mut Receiver<News>,
        text: String,
        initial: bool,
    ) -> (Vec<String>, String) {
        if initial {
            reflector.told.begin();
        }
        let server = Server::new("https://127.0.0.1:1");
        let ended = reflector.follow(&server, Cursor::new(text.into_bytes()), initial).await;
        let mut told = Vec::new();
        while let Ok(news) = heard.try_recv() {
            told.push(match news {
                News::Change(Change::Upsert(object)) => object.metadata().name.clone(),
                News::Change(Change::Remove(id)) => format!("-{}", id.key.name),
                News::Listed(_) => "listed".to_owned(),
                other => format!("{other:?}"),
            });
        }
        (told, ended.map_or_else(|error| error.to_string(), |()| "in order".to_owned()))
    }

    #[tokio::test]
    async fn a_streamed_list_goes_over_into_a_watch() {
        let (mut reflector, mut heard) = reflector();
        let text = lines(&["b=9", "a=3", "@@10", "c=11", "-a=12", "@15"]);
        let (told, ended) = follow(&mut reflector, &mut heard, text, true).await;
        assert_eq!((told.join(" ").as_str(), ended.as_str()), ("b a listed c -a", "in order"));
        assert_eq!(reflector.version.as_deref(), Some("15"));
    }

    #[tokio::test]
    async fn a_list_that_breaks_off_is_begun_anew_and_tells_nothing_twice() {
        let (mut reflector, mut heard) = reflector();
        let (told, ended) = follow(&mut reflector, &mut heard, lines(&["a=3", "b=9"]), true).await;
        assert_eq!((told.join(" ").as_str(), ended.as_str()), ("a b", "the list has broken off"));
        assert_eq!((reflector.version.as_deref(), reflector.listed), (None, false));
        let (told, _) = follow(&mut reflector, &mut heard, lines(&["a=3", "c=10", "@@11"]), true).await;
        assert_eq!(told.join(" "), "c -b listed");
    }

    #[tokio::test]
    async fn a_version_that_is_too_old_means_another_list() {
        let (mut reflector, mut heard) = reflector();
        follow(&mut reflector, &mut heard, lines(&["a=3", "@@10"]), true).await;
        let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version"}}"#;
        let (told, ended) = follow(&mut reflector, &mut heard, lines(&["b=11", gone, "c=12"]), false).await;
        assert_eq!((told.join(" ").as_str(), ended.as_str()), ("b", "too old resource version"));
        assert_eq!(reflector.version, None);
        // Other failures leave the version as it is.
        follow(&mut reflector, &mut heard, lines(&["@@20"]), true).await;
        let busy = gone.replace("410", "500");
        follow(&mut reflector, &mut heard, lines(&["b=21", &busy]), false).await;
        assert_eq!(reflector.version.as_deref(), Some("21"));
    }

    #[tokio::test]
    async fn a_server_that_streams_no_lists_says_so_in_several_ways() {
        for (code, expected) in
            [(500, "lists are not streamed"), (422, "lists are not streamed"), (403, "no"), (410, "no")]
        {
            let (mut reflector, mut heard) = reflector();
            let refusal = format!(r#"{{"type":"ERROR","object":{{"kind":"Status","code":{code},"message":"no"}}}}"#);
            let (told, ended) = follow(&mut reflector, &mut heard, lines(&[&refusal]), true).await;
            assert_eq!((told.len(), ended.as_str()), (0, expected), "{code}");
        }
    }

    #[tokio::test]
    async fn a_kind_that_is_not_installed_has_no_objects_but_pools_that_are_missing_are_not_said_to_be_none() {
        let all = [Selection::of_addresses(), Selection::of_node("n1"), Selection::of_layer2()];
        for selection in all.into_iter().flatten() {
            let (news, mut heard) = mpsc::channel(100);
            let kind = selection.kind();
            let mut reflector = Reflector::new(selection, Arc::new(Access::new(Settings::default())), news);
            reflector.absent().await.unwrap();
            reflector.absent().await.unwrap();
            let told = heard.try_recv().is_ok();
            let optional = matches!(kind, Kind::Addresses(kind) if !matches!(kind, culvert_pools::Kind::IpAddressPool | culvert_pools::Kind::Namespace));
            assert_eq!(told, optional, "{kind:?}");
            assert!(heard.try_recv().is_err(), "said twice");
        }
    }

    #[tokio::test]
    async fn what_is_no_event_is_passed_over() {
        let (mut reflector, mut heard) = reflector();
        follow(&mut reflector, &mut heard, lines(&["@@1"]), true).await;
        let nameless = r#"{"type":"ADDED","object":{"metadata":{}}}"#;
        let newer = r#"{"type":"NEWER","object":{}}"#;
        let mut text = lines(&["", "nonsense", "{}", nameless, newer, "a=2"]);
        // The connection broke in the middle of an event.
        text += r#"{"type":"ADDED","object":{"metadata":{"name":"b""#;
        let (told, ended) = follow(&mut reflector, &mut heard, text, false).await;
        assert_eq!((told.join(" ").as_str(), ended.as_str()), ("a", "in order"));
        assert_eq!(reflector.version.as_deref(), Some("2"));
    }
}
