//! Waiting for what offers no event.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{process::tail, ui::clock};

/// Waits until `holds`.
///
/// # Errors
/// After `limit`, with the last lines of the log that may say why.
pub fn until(what: &str, limit: Duration, log: &Path, mut holds: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !holds() {
        if Instant::now() > deadline {
            bail!("{what}: not within {}; {} ends with\n{}", clock(limit), log.display(), tail(log, 10));
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
