//! Who may write: the holder of a Lease (`coordination.k8s.io/v1`), by the rules of client-go's leader election. Pure: times are arguments,
//! and what is read and written goes in and out as values.
//!
//! ```text
//!            read: nobody's, ours, or not renewed for its duration
//!   ┌──────┐ ─────────────────────────────────────────────────► write ─► ┌───────┐ ── every `retry`: renew ──┐
//!   │ wait │                                                             │ leads │ ◄──────────────────────────┘
//!   └──────┘ ◄── not renewed within `deadline`, or another holds it ──── └───────┘
//! ```
//!
//! - A holder leads until `deadline` after it *asked* for its last renewal; others may take the Lease `duration` after they *saw* it: whatever
//!   the clocks of the machines say, and however long an answer takes, the holder stops before another begins.
//! - A write whose outcome is not known changes nothing: the Lease is read again.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

/// The times of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long a Lease is its holder's without being renewed.
    pub duration: Duration,
    /// How long after its last renewal the holder goes on writing.
    pub deadline: Duration,
    /// The pause between attempts.
    pub retry: Duration,
}

impl Terms {
    /// Whether there is one leader at most, and a renewal may fail once.
    ///
    /// # Errors
    /// Which of the times is wrong, and why.
    pub fn check(&self) -> Result<(), String> {
        let Self { duration, deadline, retry } = self;
        if duration.as_secs() == 0 || duration.subsec_nanos() != 0 {
            return Err("the lease's duration must be whole seconds, and not 0".to_owned());
        }
        if deadline >= duration {
            return Err("the deadline of renewals must be shorter than the lease's duration".to_owned());
        }
        if retry.is_zero() || *retry * 2 > *deadline {
            return Err(
                "the pause between renewals must be more than 0, and no longer than half of their deadline".to_owned()
            );
        }
        Ok(())
    }

    /// How long one attempt may take, so that there is time for another before the deadline.
    pub fn attempt(&self) -> Duration {
        self.deadline.saturating_sub(self.retry) / 2
    }
}

/// A Lease as the API server has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `spec.holderIdentity`; empty = nobody's.
    pub holder: String,
    /// `spec.leaseDurationSeconds`.
    pub duration: Duration,
    /// `spec.leaseTransitions`.
    pub transitions: u32,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    #[serde(default)]
    spec: Option<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    holder_identity: Option<String>,
    lease_duration_seconds: Option<i64>,
    lease_transitions: Option<i64>,
}

impl Record {
    /// Reads a Lease.
    ///
    /// # Errors
    /// When the text is none.
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        let Object { metadata, spec } = serde_json::from_str(text)?;
        let spec = spec.unwrap_or_default();
        // An `int32` of the API's; more than that is as long as it can be.
        let seconds = spec.lease_duration_seconds.unwrap_or(0).clamp(0, i32::MAX.into()).unsigned_abs();
        Ok(Self {
            version: metadata.resource_version,
            holder: spec.holder_identity.unwrap_or_default(),
            duration: Duration::from_secs(seconds),
            transitions: spec.lease_transitions.and_then(|count| count.try_into().ok()).unwrap_or(0),
        })
    }
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this time.
    Wait(Instant),
    /// Read the Lease.
    Read,
    /// There is none: make one.
    Create,
    /// Take it.
    Take(Record),
    /// Renew it.
    Renew(Record),
}

/// One who wants to lead.
#[derive(Debug)]
pub struct Candidate {
    identity: String,
    terms: Terms,
    /// No attempt before this time.
    next: Instant,
    seen: Seen,
    /// When the last renewal was asked for.
    renewed: Option<Instant>,
}

/// What is known of the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// Nothing, or it is to be read anew; what it was, and since when that was so.
    Stale(Option<(Record, Instant)>),
    /// There is none.
    Absent,
    /// It is so, since this time as far as one knows.
    Present(Record, Instant),
}

impl Candidate {
    /// Nothing is known. `identity` is this one's alone.
    pub fn new(identity: String, terms: Terms, now: Instant) -> Self {
        Self { identity, terms, next: now, seen: Seen::Stale(None), renewed: None }
    }

    /// Until when this one leads, if it does.
    pub fn leads_until(&self) -> Option<Instant> {
        self.renewed.map(|asked| asked + self.terms.deadline)
    }

    /// Who holds the Lease, as far as one knows.
    pub fn holder(&self) -> Option<&str> {
        match &self.seen {
            Seen::Present(record, _) | Seen::Stale(Some((record, _))) => Some(&record.holder),
            Seen::Absent | Seen::Stale(None) => None,
        }
    }

    /// What to do now.
    pub fn step(&mut self, now: Instant) -> Step {
        if self.leads_until().is_some_and(|until| until <= now) {
            // It may be another's by now.
            self.renewed = None;
            self.forget();
        }
        if now < self.next {
            return Step::Wait(self.next);
        }
        match &self.seen {
            Seen::Absent => Step::Create,
            Seen::Present(record, _) if self.renewed.is_some() => Step::Renew(record.clone()),
            Seen::Present(record, since) if self.is_free(record, *since, now) => Step::Take(record.clone()),
            Seen::Stale(_) | Seen::Present(..) => Step::Read,
        }
    }

    /// The Lease was read, or found not to be there.
    pub fn read(&mut self, found: Option<Record>, now: Instant) {
        let Some(record) = found else {
            self.seen = Seen::Absent;
            self.renewed = None;
            return;
        };
        if record.holder != self.identity {
            self.renewed = None;
        }
        let since = match &self.seen {
            Seen::Present(known, since) | Seen::Stale(Some((known, since))) if *known == record => *since,
            _ => now,
        };
        let acts = self.renewed.is_some() || self.is_free(&record, since, now);
        self.seen = Seen::Present(record, since);
        if !acts {
            self.next = now + self.terms.retry;
        }
    }

    /// The Lease was made, taken or renewed; `asked` is when that was asked for.
    pub fn wrote(&mut self, record: Record, asked: Instant, now: Instant) {
        self.seen = Seen::Present(record, now);
        self.renewed = Some(asked);
        self.next = asked + self.terms.retry;
    }

    /// An attempt failed, or nobody knows what became of it.
    pub fn failed(&mut self, now: Instant) {
        self.forget();
        self.next = now + self.terms.retry;
    }

    /// The Lease is another one than was thought: it is read at once.
    pub fn overtaken(&mut self) {
        self.forget();
    }

    /// The spec to write for a step; `None` if it writes nothing.
    pub fn patch(&self, step: &Step, now: Timestamp) -> Option<Value> {
        let seconds = self.terms.duration.as_secs();
        let time = format!("{now:.6}");
        let taken = |transitions: u32| {
            json!({
                "holderIdentity": self.identity, "leaseDurationSeconds": seconds, "leaseTransitions": transitions,
                "acquireTime": time, "renewTime": time,
            })
        };
        let (version, spec) = match step {
            Step::Wait(_) | Step::Read => return None,
            Step::Create => return Some(json!({"spec": taken(0)})),
            Step::Take(record) => {
                let more = u32::from(record.holder != self.identity);
                (&record.version, taken(record.transitions.saturating_add(more)))
            }
            Step::Renew(record) => (&record.version, json!({"renewTime": time})),
        };
        Some(json!({"metadata": {"resourceVersion": version}, "spec": spec}))
    }

    /// What to write at the end, so that another need not wait; `None` if the Lease is not this one's.
    pub fn release(&mut self, now: Instant) -> Option<Value> {
        self.leads_until().filter(|until| now < *until)?;
        self.renewed = None;
        let Seen::Present(record, _) = &self.seen else { return None };
        self.release_of(record)
    }

    /// The same for a Lease as it was read; `None` if it is not this one's.
    pub fn release_of(&self, record: &Record) -> Option<Value> {
        let metadata = json!({"resourceVersion": record.version});
        let spec = json!({"holderIdentity": "", "leaseDurationSeconds": 1});
        (record.holder == self.identity).then(|| json!({"metadata": metadata, "spec": spec}))
    }

    fn is_free(&self, record: &Record, since: Instant, now: Instant) -> bool {
        record.holder.is_empty() || record.holder == self.identity || now >= since + record.duration
    }

    fn forget(&mut self) {
        let seen = std::mem::replace(&mut self.seen, Seen::Stale(None));
        self.seen = match seen {
            Seen::Present(record, since) => Seen::Stale(Some((record, since))),
            Seen::Absent => Seen::Stale(None),
            stale @ Seen::Stale(_) => stale,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms =
        Terms { duration: Duration::from_secs(15), deadline: Duration::from_secs(10), retry: Duration::from_secs(2) };

    fn record(version: u32, holder: &str) -> Record {
        Record { version: version.to_string(), holder: holder.into(), duration: TERMS.duration, transitions: 3 }
    }

    /// A story: at a second, what happens; and then what is to be done, and until when it leads.
    enum Event {
        /// The Lease is read: `None` if there is none, else its version and holder.
        Read(Option<(u32, &'static str)>),
        /// A write succeeded: the new version, and the second in which it was asked for.
        Wrote(u32, u64),
        /// A write or a read failed.
        Failed,
        /// The server refused: another version.
        Overtaken,
        /// Nothing.
        Time,
    }

    fn word(step: &Step, start: Instant) -> String {
        match step {
            Step::Wait(until) => format!("wait {}", until.duration_since(start).as_secs()),
            Step::Read => "read".to_owned(),
            Step::Create => "create".to_owned(),
            Step::Take(record) => format!("take {}", record.version),
            Step::Renew(record) => format!("renew {}", record.version),
        }
    }

    fn play(story: &[(u64, Event, &str, Option<u64>)]) {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut candidate = Candidate::new("me".into(), TERMS, start);
        assert_eq!(candidate.step(start), Step::Read);
        for (i, (second, event, wanted, leads)) in story.iter().enumerate() {
            let now = at(*second);
            match event {
                Event::Read(found) => candidate.read(found.map(|(version, holder)| record(version, holder)), now),
                Event::Wrote(version, asked) => candidate.wrote(record(*version, "me"), at(*asked), now),
                Event::Failed => candidate.failed(now),
                Event::Overtaken => candidate.overtaken(),
                Event::Time => {}
            }
            let step = candidate.step(now);
            assert_eq!(word(&step, start), *wanted, "event {i} at {second}");
            let until = candidate.leads_until().map(|until| until.duration_since(start).as_secs());
            assert_eq!(until, *leads, "event {i} at {second}: leads until");
        }
    }

    #[test]
    fn one_that_is_alone_makes_the_lease_and_renews_it() {
        play(&[
            (0, Event::Read(None), "create", None),
            (1, Event::Wrote(1, 0), "wait 2", Some(10)),
            (2, Event::Time, "renew 1", Some(10)),
            (2, Event::Wrote(2, 2), "wait 4", Some(12)),
        ]);
    }

    #[test]
    fn a_lease_is_anothers_until_it_was_seen_unchanged_for_its_duration() {
        play(&[
            (0, Event::Read(Some((1, "other"))), "wait 2", None),
            (2, Event::Read(Some((2, "other"))), "wait 4", None),
            // Seen for the first time at 2: free at 17 and not before.
            (16, Event::Read(Some((2, "other"))), "wait 18", None),
            (18, Event::Time, "take 2", None),
            (18, Event::Wrote(3, 18), "wait 20", Some(28)),
        ]);
    }

    #[test]
    fn a_lease_that_was_given_back_or_is_ones_own_is_taken_at_once() {
        play(&[(0, Event::Read(Some((1, ""))), "take 1", None)]);
        play(&[(0, Event::Read(Some((1, "me"))), "take 1", None)]);
    }

    #[test]
    fn one_that_cannot_renew_stops_at_the_deadline_and_asks_who_leads() {
        play(&[
            (0, Event::Read(None), "create", None),
            (0, Event::Wrote(1, 0), "wait 2", Some(10)),
            (5, Event::Failed, "wait 7", Some(10)),
            (7, Event::Time, "read", Some(10)),
            (9, Event::Failed, "wait 11", Some(10)),
            (10, Event::Time, "wait 11", None),
            (11, Event::Time, "read", None),
            // It was renewed after all: nobody else took it.
            (12, Event::Read(Some((2, "me"))), "take 2", None),
        ]);
    }

    #[test]
    fn a_renewal_of_which_nobody_knows_whether_it_succeeded_is_read_and_asked_for_again() {
        play(&[
            (0, Event::Read(None), "create", None),
            (0, Event::Wrote(1, 0), "wait 2", Some(10)),
            (3, Event::Failed, "wait 5", Some(10)),
            (5, Event::Read(Some((2, "me"))), "renew 2", Some(10)),
            // The time counts from the question, not from the answer.
            (8, Event::Wrote(3, 5), "renew 3", Some(15)),
        ]);
    }

    #[test]
    fn one_that_was_overtaken_stops_as_soon_as_it_knows() {
        play(&[
            (0, Event::Read(None), "create", None),
            (0, Event::Wrote(1, 0), "wait 2", Some(10)),
            (2, Event::Overtaken, "read", Some(10)),
            (2, Event::Read(Some((2, "other"))), "wait 4", None),
        ]);
        // It is deleted under one's hands.
        play(&[
            (0, Event::Read(None), "create", None),
            (0, Event::Wrote(1, 0), "wait 2", Some(10)),
            (2, Event::Overtaken, "read", Some(10)),
            (2, Event::Read(None), "create", None),
        ]);
    }

    #[test]
    fn an_answer_that_comes_too_late_makes_no_leader() {
        play(&[(0, Event::Read(None), "create", None), (12, Event::Wrote(1, 0), "read", None)]);
    }

    #[test]
    fn what_is_written() {
        let now = Timestamp::UNIX_EPOCH;
        let mut candidate = Candidate::new("me".into(), TERMS, Instant::now());
        let time = "1970-01-01T00:00:00.000000Z";
        let spec = |transitions| {
            json!({"holderIdentity": "me", "leaseDurationSeconds": 15, "leaseTransitions": transitions,
                "acquireTime": time, "renewTime": time})
        };
        assert_eq!(candidate.patch(&Step::Create, now), Some(json!({"spec": spec(0)})));
        let versioned = |spec: Value| Some(json!({"metadata": {"resourceVersion": "7"}, "spec": spec}));
        assert_eq!(candidate.patch(&Step::Take(record(7, "other")), now), versioned(spec(4)));
        assert_eq!(candidate.patch(&Step::Take(record(7, "me")), now), versioned(spec(3)));
        assert_eq!(candidate.patch(&Step::Renew(record(7, "me")), now), versioned(json!({"renewTime": time})));
        assert_eq!(candidate.patch(&Step::Read, now), None);
        let start = Instant::now();
        assert_eq!(candidate.release(start), None);
        candidate.wrote(record(7, "me"), start, start);
        assert_eq!(candidate.release(start), versioned(json!({"holderIdentity": "", "leaseDurationSeconds": 1})));
        assert_eq!(candidate.leads_until(), None);
    }

    #[test]
    fn leases_are_read_whatever_is_in_them() {
        let parse = |text: &str| Record::parse(text).unwrap();
        let full = r#"{"metadata":{"resourceVersion":"5"},"spec":{"holderIdentity":"a","leaseDurationSeconds":15,"leaseTransitions":2}}"#;
        let wanted = Record { version: "5".into(), holder: "a".into(), duration: TERMS.duration, transitions: 2 };
        assert_eq!(parse(full), wanted);
        for bare in ["{}", r#"{"leaseDurationSeconds":-1,"leaseTransitions":-1,"holderIdentity":null}"#, "null"] {
            let text = format!(r#"{{"metadata":{{"resourceVersion":"5"}},"spec":{bare}}}"#);
            assert_eq!(parse(&text), Record { version: "5".into(), ..Record::default() });
        }
        let longest = r#"{"metadata":{"resourceVersion":"5"},"spec":{"holderIdentity":"a","leaseDurationSeconds":9223372036854775807}}"#;
        let mut candidate = Candidate::new("me".into(), TERMS, Instant::now());
        candidate.read(Some(parse(longest)), Instant::now());
        assert!(matches!(candidate.step(Instant::now()), Step::Wait(_)));
        assert!(Record::parse("{}").is_err());
    }

    #[test]
    fn times_that_would_let_two_lead_are_refused() {
        assert_eq!(TERMS.check(), Ok(()));
        let (second, none) = (Duration::from_secs(1), Duration::ZERO);
        for wrong in [
            Terms { duration: second / 2, ..TERMS },
            Terms { deadline: TERMS.duration, ..TERMS },
            Terms { retry: second * 6, ..TERMS },
            Terms { retry: none, ..TERMS },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }
}
