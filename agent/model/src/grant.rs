//! What our own pools say of a Service of type `LoadBalancer`: an input of the model, decided elsewhere.

use std::net::IpAddr;
use std::sync::Arc;

/// What our own pools say of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// What they give it: in force instead of what its status says. Without, the status counts, whoever wrote it.
    pub given: Option<Granted>,
    /// Where nothing is given here: the pool that all addresses in its status are from, if one is.
    pub pool: Option<Arc<str>>,
    /// Why it has not what it asks for.
    pub failure: Option<Failure>,
}

/// Addresses of our own pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// One, or one of each family.
    pub addresses: Vec<IpAddr>,
    /// The pool that they are from.
    pub pool: Arc<str>,
}

/// Why a Service has not what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The field that asks.
    pub field: String,
    /// One sentence.
    pub message: String,
}
