//! Another layout's flow maps beside ours.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use culvert_abi::{Config, Flow, FlowKey, config, proto, role};
use culvert_tests::fixture::{PORT_HIGH, PORT_LOW, Programs, Story, nets, rst, syn, tcp, tcp_ack, words4, words6};

use super::{DATA, at, rows};

/// How many rows there are in the maps of another layout.
fn previous(programs: &mut Programs) -> Result<usize> {
    let mut count = 0;
    for map in ["PREVIOUS_FLOWS_NEW", "PREVIOUS_FLOWS"] {
        count += programs.flows::<1>(&format!("{map}_V4"))?.len() + programs.flows::<4>(&format!("{map}_V6"))?.len();
    }
    Ok(count)
}

#[test]
fn two_layouts_share_their_flows() -> Result<()> {
    let ports = Config { port_low: PORT_LOW, port_high: PORT_HIGH, ..Config::zeroed() };
    let mut programs = Programs::with(Config { flags: config::MIGRATING, ..ports })?;
    for net in nets() {
        let (client, asked, backend) = (at(net.client, 40_000), at(net.node, 30080), at(net.remote, 8080));
        let source = at(net.node, net.port(client, backend, proto::TCP));
        let request =
            Story::new("request", &net.world()).becomes("node_ingress", syn(client, asked), syn(client, backend));
        let onward =
            Story::new("onward", &net.world()).becomes("node_egress", syn(client, backend), syn(source, backend));
        let reply = Story::new("reply", &net.world())
            .becomes("node_ingress", tcp_ack(backend, source), tcp_ack(backend, client))
            .becomes("node_egress", tcp_ack(backend, client), tcp_ack(asked, client));
        let more = Story::new("more", &net.world())
            .becomes("node_ingress", tcp(client, asked, DATA), tcp(client, backend, DATA))
            .becomes("node_egress", tcp(client, backend, DATA), tcp(source, backend, DATA));

        // The other programs were alone until some packet; ours go on from there.
        let steps = [&request, &onward, &reply, &more, &more];
        for alone in 1..steps.len() {
            programs.reset(&net.world())?;
            for step in &steps[..alone] {
                step.go_on(&mut programs)?;
            }
            // Nobody asks these for anything: the port would be chosen anew, and another one.
            programs.become_previous()?;
            for step in &steps[alone..] {
                step.go_on(&mut programs)?;
            }
        }

        // The ingress of ours wrote a flow, and the other programs' egress chose a port that ours would not.
        programs.reset(&net.world())?;
        request.go_on(&mut programs)?;
        ensure!(previous(&mut programs)? == 2, "both rows are written along");
        let chosen = at(net.node, source.port() ^ 1);
        match net.node {
            IpAddr::V4(ip) => choose_there(&mut programs, "PREVIOUS_FLOWS_NEW_V4", words4(ip), chosen.port())?,
            IpAddr::V6(ip) => choose_there(&mut programs, "PREVIOUS_FLOWS_NEW_V6", words6(ip), chosen.port())?,
        }
        Story::new("a port chosen elsewhere", &net.world())
            .becomes("node_ingress", tcp_ack(backend, chosen), tcp_ack(backend, client))
            .becomes("node_egress", syn(client, backend), syn(chosen, backend))
            .go_on(&mut programs)?;

        // What ends, ends there too: else the next miss would bring it back.
        programs.reset(&net.world())?;
        request.go_on(&mut programs)?;
        onward.go_on(&mut programs)?;
        ensure!(previous(&mut programs)? == 3, "all rows are written along");
        Story::new("ends", &net.world())
            .becomes("node_ingress", rst(client, asked), rst(client, backend))
            .go_on(&mut programs)?;
        let mut world = net.world();
        world.frontends.clear();
        programs.kernel.write(&world)?;
        Story::new("over", &world).left("node_ingress", syn(client, asked)).go_on(&mut programs)?;
        ensure!(previous(&mut programs)? == 0, "no row is left there");
    }
    Ok(())
}

/// Chooses a source for the only flow of a map, as other programs would: in its two rows, and in a third.
fn choose_there<const W: usize>(programs: &mut Programs, map: &str, source: [u32; W], port: u16) -> Result<()>
where
    FlowKey<W>: aya::Pod,
    Flow<W>: aya::Pod,
{
    for (key, mut row) in rows::<W>(programs, map)? {
        (row.source, row.source_port) = (source, port.to_be());
        let mut map = programs.kernel.hash(map)?;
        map.insert(key, row, 0)?;
        if key.role == role::PATH {
            map.insert(FlowKey { dst: source, dport: port.to_be(), role: role::RETURN, ..key }, row, 0)?;
        }
    }
    Ok(())
}
