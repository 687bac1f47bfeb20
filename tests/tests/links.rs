//! Nodes whose links are not plain Ethernet cards: VLAN, bond, VXLAN, and tunnels without Ethernet headers.
//!
//! A kernel that lacks a kind of link cannot show it: said in the output. `cargo xtask vm` boots kernels that have all.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use culvert_tests::agent::{Options, SocketMode};
use culvert_tests::stage::{Scenery, everywhere};
use culvert_tests::topology::{PodLinks, Uplink, has_uplink};

const TABLE: &str = "
    client  lb           a:client  c:n1
    client  nodeport@n1  a:client  c:n1
    client  nodeport@n2  a:n2      c:client
    p       cluster      a:p       c:p
    q       cluster      a:q       c:q
    n1      cluster      a:n1      c:n1
    n2      nodeport@n1  a:n2      c:n1
";

fn run(uplink: Uplink) -> Result<()> {
    if !has_uplink(uplink)? {
        writeln!(std::io::stderr(), "{uplink:?}: not run, for this kernel has no such links")?;
        return Ok(());
    }
    let scenery = Scenery::with_uplink(PodLinks::Routed, uplink)?;
    scenery.lab.firewall()?;
    let service = everywhere("web", 1).ready("n1", &scenery.cast.a).ready("n2", &scenery.cast.c);
    let stage = scenery.start(&Options::new(SocketMode::Host)?, [&service])?;
    stage.check(1, TABLE).with_context(|| format!("{uplink:?}"))
}

#[test]
fn vlan() -> Result<()> {
    run(Uplink::Vlan)
}

#[test]
fn bond() -> Result<()> {
    run(Uplink::Bond)
}

#[test]
fn vxlan() -> Result<()> {
    run(Uplink::Vxlan)
}

#[test]
fn wireguard() -> Result<()> {
    run(Uplink::WireGuard)
}

#[test]
fn tunnel_without_ethernet() -> Result<()> {
    run(Uplink::Tunnel)
}
