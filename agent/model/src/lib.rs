//! What one node should do with its cluster's Services: a pure function of the objects, kept up incrementally.
//! No I/O, no clock.

pub mod objects;
