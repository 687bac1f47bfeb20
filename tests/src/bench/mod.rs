//! Benchmarks: what a packet, a connect and a connection cost, and how proxies scale. They print; they judge nothing.

pub mod connect;
pub mod connections;
pub mod failover;
pub mod packets;
pub mod path;
pub mod scale;
