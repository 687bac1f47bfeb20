//! Tests that need the kernel: clusters made of network namespaces, real traffic, real agents.
//!
//! | Module | Idea |
//! |---|---|
//! | [`scope`] | what a run may leave on the machine, and how it goes away |
//! | [`place`] | a thread in a namespace and a cgroup; [`process`]: a program there |
//! | [`topology`] | client, router, two nodes, pods |
//! | [`manifests`] | the folder of YAML that the agents watch |
//! | [`traffic`] | echo servers, clients, load |

pub mod manifests;
pub mod place;
pub mod process;
pub mod scope;
pub mod shell;
pub mod topology;
pub mod traffic;
