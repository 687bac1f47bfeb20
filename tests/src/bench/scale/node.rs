//! The node of one start of a proxy: a namespace for the proxy and the client, and one for all endpoints. Both are new each time, so
//! that no proxy finds anything of another.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Result;

use super::cluster::{self, Cluster};
use super::objects::PODS;
use super::probe::Server;
use crate::place::Place;
use crate::scope::Scope;

/// The Node's name.
pub const NAME: &str = "n1";
/// The Node's address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);

/// The node with its endpoints. The server ends before its namespace.
#[derive(Debug)]
pub struct Node {
    /// Where the proxy and the client are.
    pub host: Place,
    /// The agent's bpffs.
    pub bpffs: PathBuf,
    /// For files of the proxy.
    pub dir: PathBuf,
    cluster: Place,
    _server: Server,
    _scope: Scope,
}

impl Drop for Node {
    /// Takes the link to the cluster away at once: the kernel takes its time with what a namespace leaves, and the next node has the
    /// same name.
    fn drop(&mut self) {
        if let Err(error) = self.cluster.ip_batch(&format!("link delete {NAME}\n")) {
            eprintln!("{error:#}");
        }
    }
}

impl Node {
    /// Makes the namespaces, linked to a cluster's.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        let scope = Scope::open()?;
        let v6 = "2001:db8::11".parse()?;
        let place = |name: &str, address| -> Result<Place> {
            Ok(Place::new(name, scope.netns(name)?, &scope.cgroup(name)?, scope.dir(), address, v6))
        };
        let (host, pods) = (place(NAME, ADDRESS)?, place("pods", Ipv4Addr::new(10, 244, 1, 2))?);
        host.ip_batch(&format!(
            "link set lo up\n\
             link add eth0 type veth peer name {NAME} netns {}\nlink set eth0 up\naddress add {ADDRESS}/24 dev eth0\n\
             link add veth-pods type veth peer name eth0 netns {}\nlink set veth-pods up\n\
             address add 10.244.1.1/24 dev veth-pods\nroute add {PODS} via 10.244.1.2\n\
             route add default via {}\n",
            cluster.place.netns(),
            pods.netns(),
            cluster::ADDRESS
        ))?;
        cluster
            .place
            .ip_batch(&format!("link set {NAME} up\nroute add {ADDRESS}/32 dev {NAME} src {}\n", cluster::ADDRESS))?;
        // Every address of the range is this namespace's own.
        pods.ip_batch(&format!(
            "link set lo up\nlink set eth0 up\naddress add 10.244.1.2/24 dev eth0\nroute add default via 10.244.1.1\n\
             route add local {PODS} dev lo\n"
        ))?;
        host.sysctl("ipv4/ip_forward", "1")?;
        let (bpffs, dir) = (scope.bpffs("bpf")?, scope.directory("run")?);
        Ok(Self { host, bpffs, dir, cluster: cluster.place.clone(), _server: Server::start(&pods)?, _scope: scope })
    }
}
