//! `culvert flows`.

use anyhow::Result;
use culvert_api::flows::Flow;
use culvert_api::reply::Flows;

use super::{block_on, bytes, request, show, span};
use crate::cli::FlowsArgs;
use crate::output::{Done, complain, lines, table};

/// Runs the command.
pub fn run(args: &FlowsArgs) -> Result<Done> {
    let flows: Flows = block_on(request::get(&args.api.api_socket, "/v1/flows", &args.filter))?;
    show(&flows, args.output.output, text)?;
    if flows.truncated {
        complain(format_args!("culvert: there are more; --limit raises the number of {}", args.filter.limit));
    }
    Ok(Done::Well)
}

fn text(flows: &Flows, wide: bool) -> String {
    let mut headings = vec!["SERVICE", "PROTOCOL", "CLIENT", "ASKED FOR", "BACKEND", "STATE", "AGE", "IDLE"];
    if wide {
        headings.extend(["SEEN AS", "FROM CLIENT", "TO CLIENT", "BACKEND IS"]);
    }
    let mut rows = table(headings);
    for flow in &flows.flows {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let mut row = vec![
            or_dash(flow.service.clone()),
            format!("{:?}", flow.protocol).to_uppercase(),
            flow.client.to_string(),
            flow.frontend.to_string(),
            or_dash(flow.backend.map(|backend| backend.to_string())),
            format!("{:?}", flow.state).to_lowercase(),
            span(flow.age_seconds),
            span(flow.idle_seconds),
        ];
        if wide {
            row.extend([
                or_dash(flow.source.map(|source| source.to_string())),
                format!("{} ({})", flow.packets, bytes(flow.bytes)),
                format!("{} ({})", flow.reply_packets, bytes(flow.reply_bytes)),
                place(flow).to_owned(),
            ]);
        }
        rows.add_row(row);
    }
    lines(&rows)
}

fn place(flow: &Flow) -> &'static str {
    match (flow.backend.is_some(), flow.backend_alive, flow.local) {
        (false, ..) => "not ours",
        (true, false, _) => "gone",
        (true, true, true) => "here",
        (true, true, false) => "elsewhere",
    }
}
