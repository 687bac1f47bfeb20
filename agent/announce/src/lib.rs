//! Which node answers for an address in layer 2? No I/O, and no clock but the times that are handed in.
//!
//! ```text
//! Nodes, their reports, Services, L2Advertisements, who holds what
//!        │
//!        ▼
//!     choice ─► for each address: the node and links that answer, and why no other does
//!        │ what this node wants                 ▲ who is heard, who holds what
//!        ▼                                      │
//!     liveness ─► what this node claims, and the kernel may speak for
//!        │ a new address
//!        ▼
//!     probe ─► is it free? packets to be sent, and conflicts
//!        │ for every address and link
//!        ▼
//!     speaker ─► what the kernel may answer for, and what is sent when
//! ```
//!
//! - [`choice`]: who should answer. A function of its inputs: every node that sees the same comes to the same.
//! - [`hold`]: what failed and came back waits, longer each time.
//! - [`liveness`]: who may. Leases that a majority gives; never two speak for one address.
//! - [`speaker`]: all addresses of a node on all its links: rows for the kernel, and packets.
//! - [`probe`]: RFC 5227 and duplicate address detection, announcements and defence; ARP and NDP as bytes.
//!
//! `docs/LAYER2.md` says it for users; the tables in `tests/cases` are the rules in examples.

pub mod choice;
pub mod hold;
pub mod liveness;
pub mod probe;
pub mod speaker;
