//! The commands that ask the agent.

mod backends;
mod drain;
mod flows;
mod l2;
mod monitor;
pub mod request;
mod services;
mod status;

use std::fmt::Write;
use std::future::Future;

use anyhow::{Context, Result};
use culvert_dataplane::Error;
use serde::Serialize;

pub use backends::run as backends;
pub use drain::run as drain;
pub use flows::run as flows;
pub use l2::run as l2;
pub use monitor::run as monitor;
pub use services::run as services;
pub use status::run as status;

use crate::cli::{CleanupArgs, Output};
use crate::output::{Done, print, print_json};

/// Runs a command's conversation with the agent.
pub fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?.block_on(future)
}

/// Prints an answer: as it is, or as text in one of two widths.
pub fn show<T: Serialize>(answer: &T, output: Option<Output>, text: impl FnOnce(&T, bool) -> String) -> Result<()> {
    match output {
        Some(Output::Json) => print_json(answer),
        Some(Output::Yaml) => print(&serde_saphyr::to_string(answer)?),
        Some(Output::Wide) => print(&text(answer, true)),
        None => print(&text(answer, false)),
    }
}

/// A number of seconds as people say it: its two largest units.
pub fn span(seconds: u64) -> String {
    const UNITS: [(u64, char); 4] = [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')];
    let mut rest = seconds;
    let mut text = String::new();
    let first = UNITS.iter().position(|(unit, _)| seconds >= *unit).unwrap_or(UNITS.len() - 1);
    for (unit, letter) in UNITS.iter().skip(first).take(2) {
        if rest >= *unit || text.is_empty() {
            let _ = write!(text, "{}{letter}", rest / unit);
        }
        rest %= unit;
    }
    text
}

/// A number of bytes, in binary units.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(power) = count.checked_ilog2().map(|log| log / 10).filter(|&power| power > 0) else {
        return format!("{count} B");
    };
    let unit = 1u128 << (10 * power);
    let tenths = u128::from(count) * 10 / unit;
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[power as usize - 1])
}

/// `culvert cleanup`.
pub fn cleanup(args: &CleanupArgs) -> Result<Done> {
    culvert_dataplane::cleanup(&args.bpffs).map_err(|error| match error {
        Error::Busy(_) => anyhow::Error::from(error).context("the agent must be ended first"),
        _ => error.into(),
    })?;
    let socket = &args.api.api_socket;
    if let Err(error) = std::fs::remove_file(socket)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("cannot remove {}", socket.display()));
    }
    Ok(Done::Well)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_are_short() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (60, "1m"), (61, "1m1s"), (3_600, "1h"), (90_061, "1d1h")] {
            assert_eq!(span(seconds), text);
        }
        for (count, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 40, "1.0 TiB"), (u64::MAX, "15.9 EiB")]
        {
            assert_eq!(bytes(count), text);
        }
    }
}
