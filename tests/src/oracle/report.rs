//! A disagreement, so that a person can see it.

use std::fmt::{self, Write as _};

use super::packet::{Unread, read};
use super::script::{Script, Step};
use super::{Hook, Judgement, Verdict};

/// A frame of which the kernel and the oracle think differently.
#[derive(Clone, Debug)]
pub struct Disagreement {
    /// Where it was seen.
    pub hook: Hook,
    /// The frame.
    pub frame: Vec<u8>,
    /// What the kernel made of it.
    pub kernel: Verdict,
    /// What the oracle says.
    pub oracle: Judgement,
}

/// Why a script failed.
#[derive(Clone, Debug)]
pub enum Failure {
    /// On a frame.
    Frame(Box<Disagreement>),
    /// Afterwards, on the rows in the maps, or for reasons of the test's own.
    State(String),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::State(format!("{error:#}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame(disagreement) => disagreement.fmt(f),
            Self::State(what) => f.write_str(what),
        }
    }
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "at {:?}: {}", self.hook, describe(&self.frame))?;
        writeln!(f, "{}", hex(&self.frame, &self.frame))?;
        writeln!(f, "kernel: {}", verdict(&self.kernel))?;
        let oracle = match &self.oracle {
            Judgement::Is(verdict) => verdict,
            Judgement::Impossible(why) => return writeln!(f, "oracle: {why}"),
        };
        writeln!(f, "oracle: {}", verdict(oracle))?;
        match (bytes(&self.kernel), bytes(oracle)) {
            (Some(kernel), Some(oracle)) => {
                writeln!(f, "kernel's bytes (the other's differ where marked):\n{}", hex(kernel, oracle))?;
                writeln!(f, "oracle's bytes:\n{}", hex(oracle, kernel))
            }
            (Some(bytes), None) | (None, Some(bytes)) => writeln!(f, "{}", hex(bytes, &self.frame)),
            (None, None) => Ok(()),
        }
    }
}

/// A failure with the script that leads to it.
pub fn tell(seed: u64, script: &Script, failure: &Failure) -> String {
    let mut text = format!("script {seed:#x}, {} steps:\n", script.steps.len());
    let used = |i: usize| script.steps.iter().any(|step| talk_of(step) == Some(i));
    for (i, talk) in script.talks.iter().enumerate().filter(|(i, _)| used(*i)) {
        let from = if talk.pod { "pod" } else { "outsider" };
        let _ = writeln!(text, "  talk {i}: protocol {}, {from} {} -> {}", talk.proto, talk.client, talk.frontend);
    }
    for step in &script.steps {
        let _ = writeln!(text, "  {step:?}");
    }
    let _ = write!(text, "{failure}");
    text
}

fn talk_of(step: &Step) -> Option<usize> {
    match step {
        Step::Ask(talk, _)
        | Step::Reply(talk, _)
        | Step::AskInPieces(talk, _)
        | Step::ReplyInPieces(talk, _)
        | Step::ErrorToClient(talk, _)
        | Step::ErrorToBackend(talk, _)
        | Step::Beside(talk, _)
        | Step::Damaged(talk, _)
        | Step::Foreign(talk, _) => Some(*talk),
        Step::Wait(_) | Step::Kill(_) | Step::Revive(_) | Step::Addressed(_) => None,
    }
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Next(bytes) => format!("goes on: {}", describe(bytes)),
        Verdict::Drop => "dropped".to_owned(),
        Verdict::Answer(bytes) => format!("answered: {}", describe(bytes)),
    }
}

fn bytes(verdict: &Verdict) -> Option<&[u8]> {
    match verdict {
        Verdict::Next(bytes) | Verdict::Answer(bytes) => Some(bytes),
        Verdict::Drop => None,
    }
}

/// One line about a frame.
pub fn describe(frame: &[u8]) -> String {
    match read(frame, |_, _, _, _| None) {
        Ok(packet) => {
            let tuple = packet.tuple;
            format!("{} -> {}, protocol {}, {:?}, {:?}", tuple.src, tuple.dst, tuple.proto, packet.kind, packet.says)
        }
        Err(Unread::Later(id)) => format!("a later fragment of {id:#x}"),
        Err(unread) => format!("{unread:?}, {} bytes", frame.len()),
    }
}

/// Lines of sixteen bytes, with an offset; a `*` stands before each byte that `other` has differently.
fn hex(bytes: &[u8], other: &[u8]) -> String {
    let mut text = String::new();
    for (i, byte) in bytes.iter().enumerate().take(160) {
        if i % 16 == 0 {
            let _ = write!(text, "{}  {i:04x} ", if i == 0 { "" } else { "\n" });
        }
        let _ = write!(text, "{}{byte:02x}", if other.get(i) == Some(byte) { ' ' } else { '*' });
    }
    let _ = write!(text, "  ({} bytes)", bytes.len());
    text
}
