//! `culvert backends`.

use anyhow::Result;
use culvert_api::plan::BackendState;
use culvert_api::reply::Backends;

use super::{block_on, bytes, request, show};
use crate::cli::BackendsArgs;
use crate::output::{Done, lines, table};

/// Runs the command.
pub fn run(args: &BackendsArgs) -> Result<Done> {
    let query: Vec<_> = args.name.iter().map(|name| ("name", name)).collect();
    let backends: Backends = block_on(request::get(&args.api.api_socket, "/v1/backends", &query))?;
    show(&backends, args.output.output, text)?;
    Ok(Done::Well)
}

fn text(backends: &Backends, wide: bool) -> String {
    let mut headings = vec!["SERVICE", "PORT", "BACKEND", "STATE", "WHERE", "CONNECTIONS", "FLOWS", "TRAFFIC"];
    if wide {
        headings.extend(["PACKETS", "ID", "GENERATION"]);
    }
    let mut rows = table(headings);
    for backend in &backends.backends {
        let protocol = format!("{:?}", backend.protocol).to_uppercase();
        let state = if backend.state == BackendState::Ready { "ready" } else { "terminating" };
        let mut row = vec![
            backend.service.clone(),
            if backend.port.is_empty() { protocol } else { format!("{} ({protocol})", backend.port) },
            backend.address.to_string(),
            state.to_owned(),
            if backend.local { "here" } else { "elsewhere" }.to_owned(),
            backend.connections.to_string(),
            backend.flows.to_string(),
            bytes(backend.bytes),
        ];
        if wide {
            row.extend([backend.packets.to_string(), backend.id.to_string(), backend.generation.to_string()]);
        }
        rows.add_row(row);
    }
    lines(&rows)
}
