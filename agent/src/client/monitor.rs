//! `culvert monitor`.

use anyhow::{Context, Result};
use culvert_api::reply::Sample;
use http_body_util::BodyExt;

use super::{block_on, request};
use crate::cli::{MonitorArgs, MonitorOutput};
use crate::output::{Done, write};

/// Runs the command until the agent ends or nobody reads any more.
pub fn run(args: &MonitorArgs) -> Result<Done> {
    block_on(async {
        let response = request::send(&args.api.api_socket, "/v1/samples", &()).await?;
        let mut body = response.into_body();
        let mut pending = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.context("the agent went away")?;
            pending.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                let line = match args.output {
                    Some(MonitorOutput::Json) => String::from_utf8_lossy(&line).into_owned(),
                    None => text(&serde_json::from_slice(&line).context("the agent is of another version")?),
                };
                if !write(&line)? {
                    return Ok(Done::Well);
                }
            }
        }
        Ok(Done::Well)
    })
}

fn text(sample: &Sample) -> String {
    let Sample { reason, hook, interface, link, protocol, source, destination, service } = sample;
    let link = link.clone().unwrap_or_else(|| interface.to_string());
    let service = service.as_ref().map(|service| format!(" ({service})")).unwrap_or_default();
    format!("{reason:<20} {protocol:<4} {source} -> {destination}{service} at {link}, {hook}\n")
}
