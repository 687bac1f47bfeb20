//! Addresses and ports of a flow, both ways and at each hook.

use anyhow::Result;
use culvert_tests::fixture::{Body, Packet};

use super::{DATA, at, each, tell};

#[test]
fn a_frontend_becomes_its_backend_and_back() -> Result<()> {
    let pairs = [("pod_ingress", "pod_egress"), ("node_ingress", "node_egress"), ("node_ingress_l3", "node_egress_l3")];
    tell(pairs.into_iter().flat_map(|(ingress, egress)| {
        each(&format!("{ingress} and back"), |story, net, _, make| {
            let (client, vip, backend) = (at(net.client, 40_000), at(net.vip, 80), at(net.local, 8080));
            let story = story
                .becomes(ingress, make(client, vip), make(client, backend))
                .left("pod_egress", make(client, backend))
                .left("pod_ingress", make(backend, client));
            // Without an Ethernet header a test run takes the family from the source address; see `Net`.
            if egress == "node_egress_l3" {
                return story.becomes("node_egress", make(backend, client), make(vip, client));
            }
            story.becomes(egress, make(backend, client), make(vip, client)).becomes(
                ingress,
                make(client, vip),
                make(client, backend),
            )
        })
    }))
}

#[test]
fn a_port_that_stays_needs_no_new_checksum_of_it() -> Result<()> {
    tell(each("vip:89", |story, net, _, make| {
        let (client, vip, backend) = (at(net.client, 40_000), at(net.vip, 89), at(net.local, 80));
        let story = story.becomes("node_ingress", make(client, vip), make(client, backend));
        story.becomes("node_egress", make(backend, client), make(vip, client))
    }))
}

#[test]
fn a_remote_backend_sees_the_node() -> Result<()> {
    tell(each("NodePort", |story, net, protocol, make| {
        let (client, asked, backend) = (at(net.client, 40_000), at(net.node, 30080), at(net.remote, 8080));
        let source = at(net.node, net.port(client, backend, protocol));
        story
            .becomes("node_ingress", make(client, asked), make(client, backend))
            .becomes("node_egress", make(client, backend), make(source, backend))
            .becomes("node_ingress", make(backend, source), make(backend, client))
            .becomes("node_egress", make(backend, client), make(asked, client))
            .becomes("node_ingress", make(client, asked), make(client, backend))
            .becomes("node_egress", make(client, backend), make(source, backend))
            // A pod asks the same: it keeps its address.
            .becomes("pod_ingress", make(at(net.pod, 40_000), asked), make(at(net.pod, 40_000), backend))
            .left("node_egress", make(at(net.pod, 40_000), backend))
    }))
}

#[test]
fn a_port_in_the_range_is_kept_and_a_taken_one_is_not() -> Result<()> {
    tell(each("source ports", |story, net, protocol, make| {
        let (asked, backend) = (at(net.node, 30080), at(net.remote, 8080));
        let (first, second) = (at(net.client, 61_234), at(net.stranger, 61_234));
        let other = at(net.node, net.port(second, backend, protocol));
        story
            .becomes("node_ingress", make(first, asked), make(first, backend))
            .becomes("node_egress", make(first, backend), make(at(net.node, 61_234), backend))
            .becomes("node_ingress", make(second, asked), make(second, backend))
            .becomes("node_egress", make(second, backend), make(other, backend))
            .becomes("node_ingress", make(backend, at(net.node, 61_234)), make(backend, first))
            .becomes("node_ingress", make(backend, other), make(backend, second))
    }))
}

#[test]
fn a_link_without_an_address_translates_no_source() -> Result<()> {
    tell(each("no source", |mut story, net, _, make| {
        story.world.links.clear();
        let (client, asked, backend) = (at(net.client, 40_000), at(net.node, 30080), at(net.remote, 8080));
        let story = story.becomes("node_ingress", make(client, asked), make(client, backend));
        story.dropped("node_egress", make(client, backend))
    }))
}

#[test]
fn a_pod_reaches_itself() -> Result<()> {
    tell(each("hairpin", |story, net, protocol, make| {
        let (pod, vip, backend) = (at(net.pod, 40_000), at(net.vip, 86), at(net.pod, 8080));
        let source = at(net.node, net.port(pod, backend, protocol));
        story
            .becomes("pod_ingress", make(pod, vip), make(pod, backend))
            .becomes("pod_egress", make(pod, backend), make(source, backend))
            .becomes("pod_ingress", make(backend, source), make(backend, pod))
            .becomes("pod_egress", make(backend, pod), make(vip, pod))
    }))
}

#[test]
fn what_is_not_ours_is_left_alone() -> Result<()> {
    tell(each("not ours", |story, net, protocol, make| {
        let (client, ssh) = (at(net.client, 40_000), at(net.node, 22));
        let icmp = if net.vip.is_ipv4() { 8 } else { 128 };
        let mut story =
            story.left("node_ingress", make(client, at(net.pod, 80))).left("node_ingress", make(client, ssh));
        // A port of the reserved range that we gave to nobody, and an address with nothing but flows.
        story = story.left("node_ingress", make(client, at(net.node, 62_000)));
        story = story.left("node_ingress", make(client, at(net.old, 80)));
        story = story.left("node_ingress", Packet::new(net.client, net.vip, Body::Icmp(icmp, 0, 1, DATA.to_vec())));
        story = story.left("node_ingress", Packet::new(net.client, net.vip, Body::Raw(47, DATA.to_vec())));
        for program in ["pod_egress", "node_egress"] {
            story = story.left(program, make(client, ssh)).left(program, make(at(net.local, 8080), client));
        }
        let _ = protocol;
        story
    }))
}
