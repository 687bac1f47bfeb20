//! Real Kubernetes clusters inside this machine.

pub mod parts;
