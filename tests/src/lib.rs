//! Tests that need the kernel: clusters made of network namespaces, real traffic, real agents.
//!
//! | Module | Idea |
//! |---|---|
//! | [`scope`] | what a run may leave on the machine, and how it goes away |
//! | [`place`] | a thread in a namespace and a cgroup; [`process`]: a program there |
//! | [`topology`] | client, router, two nodes, pods |
//! | [`kube_proxy`] | the program itself, its rules, and what is left of them |
//! | [`manifests`] | the folder of YAML that the agents watch |
//! | [`agent`] | an agent on each node, started with four capabilities |
//! | [`cluster`] | a real cluster of `cargo xtask cluster`: its places, pods, agents |
//! | [`control_plane`] | etcd and an API server; [`programs`]: where those come from |
//! | [`controllers`] | `culvert controller` beside that API server |
//! | [`traffic`] | echo servers, clients, load |
//! | [`stage`] | pods, servers and agents as most tests want them |
//! | [`matrix`] | tables of what clients see |
//! | [`bench`] | what a packet, a connect and a connection cost; how proxies scale |
//! | [`demo`] | `cargo xtask demo` |
//! | [`deploy`] | what `deploy/` renders, and the API server's schema; [`metallb`]: what MetalLB ships |
//! | [`world`] | what the maps hold, in plain types, and the programs loaded for one test |
//! | [`fixture`] | packets in, verdicts and packets out |
//! | [`oracle`] | the datapath in plain Rust, and the scripts that it is compared on |
//! | [`sockets`] | a host and a pod whose sockets are hooked |

pub mod agent;
pub mod bench;
pub mod cluster;
pub mod control_plane;
pub mod controllers;
pub mod demo;
pub mod deploy;
pub mod fixture;
pub mod kube_proxy;
pub mod manifests;
pub mod matrix;
pub mod metallb;
pub mod neighbors;
pub mod oracle;
pub mod place;
pub mod process;
pub mod programs;
pub mod scope;
pub mod segment;
pub mod shell;
pub mod sockets;
pub mod stage;
pub mod topology;
pub mod traffic;
pub mod world;
