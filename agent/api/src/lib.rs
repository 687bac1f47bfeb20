//! Types shared by the agent and its command line: what `-o json` prints and what the Unix socket carries.

pub mod backends;
pub mod config_check;
pub mod flows;
pub mod layer2;
pub mod plan;
pub mod reply;
pub mod services;
pub mod status;
pub mod takeover;
