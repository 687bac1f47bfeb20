//! Load on the demo's servers, told in chapters: each request is booked in the chapter in which it was sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Result;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::request::{Answer, Request, Web, patient};
use crate::place::Place;
use crate::traffic::Outcome;
use crate::traffic::load::{Pace, Tally};

/// One kind of traffic.
#[derive(Clone, Debug)]
pub struct Kind {
    /// What it is, for the table.
    pub name: &'static str,
    /// Who sends it.
    pub from: Place,
    /// Where to.
    pub to: SocketAddr,
    /// Requests a second.
    pub rate: u32,
    /// What is sent.
    pub traffic: Traffic,
}

/// How requests travel.
#[derive(Clone, Copy, Debug)]
pub enum Traffic {
    /// Each on its own socket.
    Separate(Request),
    /// `GET /` on this many connections that stay open.
    KeptOpen(u32),
}

/// What became of each kind of traffic in one chapter.
pub type Chapter = BTreeMap<&'static str, Tally>;

/// The books: the last chapter is being written.
#[derive(Clone, Debug)]
struct Books(Arc<Mutex<Vec<Chapter>>>);

impl Books {
    fn open(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len() - 1
    }

    fn note(&self, chapter: usize, kind: &'static str, entry: impl FnOnce(&mut Tally)) {
        if let Some(chapter) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(chapter) {
            entry(chapter.entry(kind).or_default());
        }
    }

    fn note_result(&self, chapter: usize, kind: &'static str, since: Instant, result: Result<Answer, Outcome>) {
        self.note(chapter, kind, |tally| match result {
            Ok(answer) => tally.answer(&answer.server, since.elapsed()),
            Err(outcome) => tally.failure(outcome),
        });
    }
}

/// All kinds of traffic under way.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<Result<()>>>,
    books: Books,
}

impl Load {
    /// Starts all kinds, each on a thread in its place, and opens the first chapter.
    pub fn start(kinds: Vec<Kind>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let books = Books(Arc::new(Mutex::new(vec![Chapter::new()])));
        let thread = |kind: Kind| {
            let (stopped, books) = (stopped.clone(), books.clone());
            std::thread::spawn(move || {
                kind.from.enter()?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(drive(kind, &books, &stopped));
                Ok(())
            })
        };
        Self { stop, threads: kinds.into_iter().map(thread).collect(), books: books.clone() }
    }

    /// Opens the next chapter.
    pub fn next_chapter(&self) {
        self.books.0.lock().unwrap_or_else(PoisonError::into_inner).push(Chapter::new());
    }

    /// Ends the load; all chapters.
    pub fn finish(self) -> Result<Vec<Chapter>> {
        let _ = self.stop.send(true);
        for thread in self.threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(self.books.0.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

async fn drive(kind: Kind, books: &Books, stopped: &watch::Receiver<bool>) {
    let mut tasks = JoinSet::new();
    match kind.traffic {
        Traffic::Separate(request) => {
            let mut pace = Pace::share(kind.rate, 1, 0, stopped.clone());
            while let Some(due) = pace.due().await {
                for number in due {
                    tasks.spawn(separate(kind.clone(), request, number, books.clone()));
                }
                while tasks.try_join_next().is_some() {}
            }
        }
        Traffic::KeptOpen(connections) => {
            for index in 0..connections {
                let pace = Pace::share(kind.rate, connections, index, stopped.clone());
                tasks.spawn(kept_open(kind.clone(), pace, books.clone()));
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn separate(kind: Kind, request: Request, number: u64, books: Books) {
    let (chapter, since) = (books.open(), Instant::now());
    books.note(chapter, kind.name, |tally| tally.sent += 1);
    let result = request.send(kind.to, number).await;
    books.note_result(chapter, kind.name, since, result);
}

/// One connection, never opened again: if it breaks, the rest of its requests are lost.
async fn kept_open(kind: Kind, mut pace: Pace, books: Books) {
    let mut web = patient(Web::connect(kind.to)).await;
    while let Some(due) = pace.due().await {
        for _ in due {
            let (chapter, since) = (books.open(), Instant::now());
            books.note(chapter, kind.name, |tally| tally.sent += 1);
            let result = match &mut web {
                Ok(web) => patient(web.get()).await,
                Err(outcome) => Err(outcome.clone()),
            };
            books.note_result(chapter, kind.name, since, result);
        }
    }
}
