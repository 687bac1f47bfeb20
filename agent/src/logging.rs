//! The log of the agent and of the controller: to stderr, as text or as JSON.

use std::io;

use anyhow::{Result, anyhow};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::cli::LogFormat;

/// Starts logging. `filter` is a level, or directives such as `info,culvert_dataplane=debug`.
pub fn start(format: LogFormat, filter: &str) -> Result<()> {
    // The client of the API server calls each answer that is no success an error; what matters of that is said where it is known.
    let quiet = if filter.contains("kube_client") { "" } else { ",kube_client=off" };
    let filter = EnvFilter::try_new(format!("{filter}{quiet}"))?;
    // Errors of the log itself go nowhere: a closed stderr must not end anybody.
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false);
    let started = match format {
        LogFormat::Text => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow!("cannot start the log: {error}"))
}
