//! Benchmarks: what a packet, a connect and a connection cost. They print; they judge nothing.

pub mod connect;
pub mod connections;
pub mod packets;
pub mod path;
