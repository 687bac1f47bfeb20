//! Why a Service cannot be programmed.

use std::io;

use thiserror::Error;

use crate::{codec::Family, store::Map};

/// What stood in the way. The reconciler adds the Service's name.
#[derive(Debug, Error)]
pub enum Cause {
    /// Each Service port takes an id in each family.
    #[error("all {capacity} ids of Service ports are in use")]
    Services {
        /// Ids in all.
        capacity: u32,
    },
    /// Each endpoint takes an id for each Service port that it serves.
    #[error("all {capacity} ids of {family:?} backends are in use")]
    Backends {
        /// The family.
        family: Family,
        /// Ids in all.
        capacity: u32,
    },
    /// Each different backend list of a Service port takes a table.
    #[error("all {capacity} tables are in use")]
    Tables {
        /// Tables in all.
        capacity: u32,
    },
    /// Each different set of source ranges takes an id.
    #[error("all ids of source range sets are in use")]
    Ranges,
    /// No room for a list and its slots.
    #[error("the slab has no room for a table of {units} units (largest hole: {largest})")]
    Slab {
        /// Units wanted.
        units: u32,
        /// Units of the largest hole.
        largest: u32,
    },
    /// A list longer than a table can be.
    #[error("a list of {count} backends; a table holds at most 65535")]
    List {
        /// Backends in the list.
        count: usize,
    },
    /// A map is full.
    #[error("the map {map:?} is full ({capacity} rows)")]
    Full {
        /// The map.
        map: Map,
        /// Rows that it holds.
        capacity: u32,
    },
    /// The kernel refused something else.
    #[error("the map {map:?} could not be read or written")]
    Store {
        /// The map.
        map: Map,
        /// What the kernel said.
        source: io::Error,
    },
    /// The maps could not be read.
    #[error("the maps could not be read")]
    Read {
        /// What the store said.
        source: io::Error,
    },
    /// The slab could not be written.
    #[error("the slab could not be written")]
    WriteSlab {
        /// What the store said.
        source: io::Error,
    },
}
