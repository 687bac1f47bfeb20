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
use super::decode::{self, Event, Failure, Item};
use super::pending::News;
use super::servers::{Server, is_of_api_servers};
use super::told::Told;
use crate::fault::Fault;
use crate::object::{Change, Id, Kind, Object};

/// The server ends a watch after so long, and a random part more (kube's limit is 295 s).
const WATCH: Duration = Duration::from_secs(240);
const WATCH_MORE: Duration = Duration::from_secs(50);
/// A watch on which nothing is heard for so long is dead: the server sends bookmarks every minute.
const SILENCE: Duration = Duration::from_secs(150);
/// How long a streamed list may pause. A server that does not know of them sends objects, and then no end.
const LIST_SILENCE: Duration = Duration::from_secs(30);
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
    path: &'static str,
    labels: Option<&'static str>,
    fields: Option<String>,
}

impl Selection {
    /// What kube-proxy selects (`cmd/kube-proxy/app/server.go`): no Services of other proxies, no headless ones nor their
    /// slices, and the own Node alone.
    pub fn of(kind: Kind, node: &str) -> Self {
        let (path, labels, fields) = match kind {
            Kind::Service => (
                "/api/v1/services",
                Some("!service.kubernetes.io/service-proxy-name"),
                Some("spec.clusterIP!=None".to_owned()),
            ),
            Kind::EndpointSlice => {
                ("/apis/discovery.k8s.io/v1/endpointslices", Some("!service.kubernetes.io/headless"), None)
            }
            Kind::Node => ("/api/v1/nodes", None, Some(format!("metadata.name={node}"))),
        };
        Self { kind, path, labels, fields }
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
    /// The list is streamed by no server of this version.
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
    /// Whether this cluster streams lists, as far as is known.
    streams: bool,
    listed: bool,
    unreadable: Vec<Fault>,
    troubled: bool,
}

impl Reflector {
    /// Nothing is known yet.
    pub fn new(selection: Selection, access: Arc<Access>, news: Sender<News>) -> Self {
        let told = Told::new(selection.kind);
        Self {
            selection,
            access,
            news,
            told,
            version: None,
            streams: true,
            listed: false,
            unreadable: Vec::new(),
            troubled: false,
        }
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
                Err(Ended::NotStreamed) => {
                    tracing::debug!(kind = self.selection.kind.name(), "lists are not streamed here; reading pages");
                    self.streams = false;
                    continue;
                }
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
        match &result {
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
        let version = match self.version.clone() {
            Some(version) => version,
            None if self.streams => return self.watch(server, client, None).await,
            None => self.pages(server, client).await?,
        };
        self.watch(server, client, Some(version)).await
    }

    /// Reads the list page by page. The version from which the watch goes on.
    async fn pages(&mut self, server: &Server, client: &Client) -> Result<String, Ended> {
        self.told.begin();
        let mut next = None;
        loop {
            let request = request(Request::new(self.selection.path).list(&self.selection.list(next.take())))?;
            let text = answer(client.request_text(request)).await?;
            self.reached(server).await?;
            let page = decode::page(self.selection.kind, &text)
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
            request(Request::new(self.selection.path).watch(&params, version.as_deref().unwrap_or_default()))?;
        let stream = match answer(client.request_stream(request)).await {
            // Asked for what it does not know (422 Invalid; 400 of older ones).
            Err(Ended::Refused(Failure { code: 400 | 422, .. })) if initial => return Err(Ended::NotStreamed),
            Err(Ended::Refused(Failure { code: 410, message })) => return Err(self.expired(message)),
            other => other?,
        };
        self.reached(server).await?;
        if initial {
            self.told.begin();
        }
        self.follow(stream, initial).await
    }

    async fn follow(&mut self, stream: impl AsyncBufRead, mut initial: bool) -> Result<(), Ended> {
        let mut stream = std::pin::pin!(stream);
        let mut line = String::new();
        loop {
            line.clear();
            let silence = if initial { LIST_SILENCE } else { SILENCE };
            match timeout(silence, stream.read_line(&mut line)).await {
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
            let event = match decode::event(self.selection.kind, &line) {
                Ok(event) => event,
                Err(error) => {
                    tracing::warn!(kind = self.selection.kind.name(), %error, "an event that cannot be read is passed over");
                    continue;
                }
            };
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
                Some(Event::Failed(Failure { code: 410, message })) => return Err(self.expired(message)),
                Some(Event::Failed(failure)) => return Err(Ended::Refused(failure)),
            }
        }
    }

    fn advance(&mut self, version: &str, known: bool) {
        if known && !version.is_empty() {
            self.version = Some(version.to_owned());
        }
    }

    /// The version is too old for every server: everything is to be read again.
    fn expired(&mut self, message: String) -> Ended {
        tracing::info!(kind = self.selection.kind.name(), message, "changes were missed; reading the list again");
        self.version = None;
        Ended::Refused(Failure { code: 410, message })
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
