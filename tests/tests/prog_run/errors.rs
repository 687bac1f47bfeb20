//! ICMP errors about what was translated.

use anyhow::Result;
use culvert_tests::fixture::{Net, Packet};

use super::{at, each, tell};

/// Type and code of an error that needs no fragmentation, of one that a host sends, and of a refusal.
fn errors(net: &Net) -> [(u8, u8); 3] {
    if net.vip.is_ipv4() { [(3, 4), (3, 3), (11, 0)] } else { [(2, 0), (1, 4), (3, 0)] }
}

#[test]
fn errors_are_translated_with_the_packet_that_they_quote() -> Result<()> {
    let mut stories = Vec::new();
    for quoted in [8, 12, 18, 20, 40, 100] {
        stories.extend(each(&format!("errors quoting {quoted} bytes"), |mut story, net, _, make| {
            let (client, vip, backend) = (at(net.client, 40_000), at(net.vip, 80), at(net.local, 8080));
            story = story.becomes("node_ingress", make(client, vip), make(client, backend));
            for kind in errors(net) {
                let error = |from, packet: Packet| Packet::error(from, kind, &packet, quoted);
                story = story
                    // About a reply, from a router before the client and from the client itself.
                    .becomes(
                        "node_ingress",
                        error(net.router, make(vip, client)),
                        error(net.router, make(backend, client)),
                    )
                    .becomes(
                        "node_ingress",
                        error(net.client, make(vip, client)),
                        error(net.client, make(backend, client)),
                    )
                    .left("pod_egress", error(net.router, make(backend, client)))
                    // About a request, from a router behind us and from the backend itself.
                    .left("pod_ingress", error(net.local, make(client, backend)))
                    .becomes(
                        "node_egress",
                        error(net.router, make(client, backend)),
                        error(net.router, make(client, vip)),
                    )
                    .becomes("node_egress", error(net.local, make(client, backend)), error(net.vip, make(client, vip)));
            }
            story
        }));
    }
    tell(stories)
}

#[test]
fn errors_about_translated_sources_find_the_client_and_the_backend() -> Result<()> {
    tell([8, 20, 100].into_iter().flat_map(|quoted| {
        each(&format!("errors beyond the node quoting {quoted} bytes"), |mut story, net, protocol, make| {
            let (client, asked, backend) = (at(net.client, 40_000), at(net.node, 30080), at(net.remote, 8080));
            let source = at(net.node, net.port(client, backend, protocol));
            story = story.becomes("node_ingress", make(client, asked), make(client, backend)).becomes(
                "node_egress",
                make(client, backend),
                make(source, backend),
            );
            for kind in errors(net) {
                let error = |from, packet: Packet| Packet::error(from, kind, &packet, quoted);
                story = story
                    // From the backend and from a router, about a request.
                    .becomes(
                        "node_ingress",
                        error(net.remote, make(source, backend)),
                        error(net.remote, make(client, backend)),
                    )
                    .becomes(
                        "node_egress",
                        error(net.remote, make(client, backend)),
                        error(net.node, make(client, asked)),
                    )
                    .becomes(
                        "node_ingress",
                        error(net.router, make(source, backend)),
                        error(net.router, make(client, backend)),
                    )
                    .becomes(
                        "node_egress",
                        error(net.router, make(client, backend)),
                        error(net.router, make(client, asked)),
                    )
                    // From a router, about a reply.
                    .becomes(
                        "node_ingress",
                        error(net.router, make(asked, client)),
                        error(net.router, make(backend, client)),
                    )
                    .becomes(
                        "node_egress",
                        error(net.router, make(backend, client)),
                        error(net.router, make(backend, source)),
                    );
            }
            story
        })
    }))
}

#[test]
fn errors_of_nobody_are_left_alone() -> Result<()> {
    tell(each("errors without a flow", |mut story, net, _, make| {
        let (client, vip, backend) = (at(net.client, 40_000), at(net.vip, 80), at(net.local, 8080));
        for kind in errors(net) {
            story = story
                .left("node_ingress", Packet::error(net.router, kind, &make(vip, client), 8))
                .left("node_egress", Packet::error(net.router, kind, &make(client, backend), 8));
        }
        story = story.becomes("node_ingress", make(client, vip), make(client, backend));
        // Too little of the packet, a later fragment, an error that was not sent to whom it is about.
        let kind = errors(net)[0];
        story = story.left("node_ingress", Packet::error(net.router, kind, &make(vip, client), 7));
        let later = make(vip, client).fragments(8, 7)[1].clone();
        story = story.left("node_ingress", Packet::error(net.router, kind, &later, 8));
        let mut astray = Packet::error(net.router, kind, &make(vip, client), 8);
        astray.dst = net.node;
        story.left("node_ingress", astray)
    }))
}
