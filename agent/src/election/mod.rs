//! The I/O of the election: what [`Candidate`] wants read and written, and until when it leads.

pub mod lease;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use culvert_source::kube::{Access, Ask, AskError};
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::{oneshot, watch};

use self::lease::{Candidate, Record, Step};

/// How long the Lease may take to be given back at the end.
const RELEASE: Duration = Duration::from_millis(700);

/// Where the Lease is.
#[derive(Clone, Debug)]
pub struct Place {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Place {
    fn collection(&self) -> String {
        format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace)
    }
}

/// What is told of the election.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Term {
    /// Until when this one leads, if it does.
    pub until: Option<Instant>,
    /// Who holds the Lease; `None` before that is known.
    pub holder: Option<String>,
}

/// An election, and how it is told to end.
pub struct Election {
    access: Arc<Access>,
    place: Place,
    candidate: Candidate,
    /// How long one attempt may take: so that another is made before the deadline.
    limit: Duration,
    term: watch::Sender<Term>,
    /// The last failure that was said.
    said: Option<String>,
}

impl Election {
    /// Nothing is asked yet. `limit` bounds each attempt.
    pub fn new(access: Arc<Access>, place: Place, candidate: Candidate, limit: Duration) -> Self {
        Self { access, place, candidate, limit, term: watch::Sender::new(Term::default()), said: None }
    }

    /// Hears of the election.
    pub fn term(&self) -> watch::Receiver<Term> {
        self.term.subscribe()
    }

    /// Takes part until `end`, and gives the Lease back then.
    pub async fn run(mut self, mut end: oneshot::Receiver<()>) {
        loop {
            tokio::select! {
                biased;
                _ = &mut end => break,
                () = self.turn() => {}
            }
            self.tell();
        }
        self.release().await;
    }

    fn tell(&mut self) {
        let term = Term { until: self.candidate.leads_until(), holder: self.candidate.holder().map(str::to_owned) };
        self.term.send_if_modified(|old| {
            let changed = *old != term;
            *old = term;
            changed
        });
    }

    async fn turn(&mut self) {
        let now = Instant::now();
        let step = self.candidate.step(now);
        // It may have stopped leading just now.
        self.tell();
        let collection = self.place.collection();
        let name = self.place.name.clone();
        let patch = self.candidate.patch(&step, Timestamp::now());
        let answer = match (&step, patch) {
            (Step::Wait(until), _) => return tokio::time::sleep_until((*until).into()).await,
            (Step::Create, Some(mut lease)) => {
                lease["metadata"] = json!({"name": name});
                self.access.ask(&collection, Ask::Create(&lease), self.limit).await
            }
            (_, Some(patch)) => self.access.ask(&collection, Ask::Patch(&name, &patch), self.limit).await,
            (_, None) => self.access.ask(&collection, Ask::Get(&name), self.limit).await,
        };
        self.heard(&step, answer, now);
    }

    fn heard(&mut self, step: &Step, answer: Result<String, AskError>, asked: Instant) {
        let now = Instant::now();
        let reads = *step == Step::Read;
        match answer.map(|text| Record::parse(&text)) {
            Ok(Ok(record)) if reads => self.candidate.read(Some(record), now),
            Ok(Ok(record)) => self.candidate.wrote(record, asked, now),
            Err(error) if reads && error.is(404) => self.candidate.read(None, now),
            // Another was faster, or it is gone; but one that cannot be made has no namespace.
            Err(error) if error.is(409) || (error.is(404) && *step != Step::Create) => {
                return self.candidate.overtaken();
            }
            Ok(Err(error)) => return self.fail(&error.to_string(), now),
            Err(error) => return self.fail(&error.to_string(), now),
        }
        self.said = None;
    }

    fn fail(&mut self, error: &str, now: Instant) {
        self.candidate.failed(now);
        if self.said.as_deref() != Some(error) {
            tracing::warn!(error, "the Lease can be neither read nor renewed; it is tried again");
            self.said = Some(error.to_owned());
        }
    }

    async fn release(&mut self) {
        let Some(patch) = self.candidate.release(Instant::now()) else { return };
        let (collection, name) = (self.place.collection(), self.place.name.clone());
        let given_back = match self.access.ask(&collection, Ask::Patch(&name, &patch), RELEASE).await {
            // A renewal was on its way when the end came, and has been made since.
            Err(error) if error.is(409) => self.release_anew(&collection, &name).await,
            result => result.map(drop),
        };
        if let Err(error) = given_back {
            tracing::debug!(%error, "the Lease could not be given back");
        }
    }

    async fn release_anew(&self, collection: &str, name: &str) -> Result<(), AskError> {
        let text = self.access.ask(collection, Ask::Get(name), RELEASE).await?;
        let Some(patch) = Record::parse(&text).ok().and_then(|record| self.candidate.release_of(&record)) else {
            return Ok(());
        };
        self.access.ask(collection, Ask::Patch(name, &patch), RELEASE).await.map(drop)
    }
}

/// Waits until this one leads. `false` if it never will: the election has ended.
pub async fn leads(term: &mut watch::Receiver<Term>) -> bool {
    let now = |term: &Term| term.until.is_some_and(|until| Instant::now() < until);
    term.wait_for(now).await.is_ok()
}

/// Waits until this one leads no more: its time is over, whether anybody says so or not. Looks at the clock whenever it is polled: in a
/// process that was stopped, a timer may ring later than an answer comes.
pub async fn lost(term: &mut watch::Receiver<Term>) {
    loop {
        let Some(until) = term.borrow_and_update().until else { return };
        let over = poll_fn(|_| if Instant::now() >= until { Poll::Ready(()) } else { Poll::Pending });
        tokio::select! {
            biased;
            () = over => return,
            changed = term.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(until.into()) => return,
        }
    }
}
