//! `culvert drain`.

use anyhow::Result;
use culvert_api::layer2::Drain;

use super::{block_on, request, show};
use crate::cli::DrainArgs;
use crate::output::Done;

/// Runs the command.
pub fn run(args: &DrainArgs) -> Result<Done> {
    let socket = &args.api.api_socket;
    let wanted = Drain { drained: !args.undo };
    let answer: Drain = block_on(async {
        if args.show {
            return request::get(socket, "/v1/drain", &()).await;
        }
        request::post(socket, "/v1/drain", &wanted).await
    })?;
    show(&answer, args.output.output, |answer, _| {
        let text = if answer.drained {
            "drained: other nodes announce the addresses, and what is under way here goes on\n"
        } else {
            "not drained: the node announces what falls to it\n"
        };
        text.to_owned()
    })?;
    Ok(Done::Well)
}
