//! Fragments.

use anyhow::Result;
use culvert_abi::proto;
use culvert_tests::fixture::{Story, nets};

use super::{SCTP, TCP, UDP, UDP_BARE, at, tell};

#[test]
fn fragments_follow_the_first_one() -> Result<()> {
    let mut stories = Vec::new();
    for net in nets() {
        for (name, protocol, make) in
            [("tcp", proto::TCP, TCP), ("udp", proto::UDP, UDP), ("bare", proto::UDP, UDP_BARE)]
        {
            let (client, vip, backend) = (at(net.client, 40_000), at(net.vip, 80), at(net.local, 8080));
            let pieces = |from, to, id| make(from, to).fragments(24, id);
            let title = format!("fragments, {name}, client {}", net.client);
            let [first, later] = pieces(client, vip, 7);
            let [to_first, to_later] = pieces(client, backend, 7);
            let mut story = Story::new(&title, &net.world())
                .dropped("node_ingress", later.clone())
                .becomes("node_ingress", first, to_first.clone())
                .becomes("node_ingress", later.clone(), to_later.clone())
                .becomes("node_ingress", later, to_later.clone())
                .dropped("node_ingress", pieces(client, vip, 8)[1].clone())
                .left("pod_egress", to_first)
                .left("pod_egress", to_later);
            // The way back, and a fragment that has nothing to do with us.
            let [first, later] = pieces(backend, client, 9);
            let [from_first, from_later] = pieces(vip, client, 9);
            story = story
                .left("pod_ingress", first.clone())
                .left("pod_ingress", later.clone())
                .left("node_egress", later.clone())
                .becomes("node_egress", first, from_first)
                .becomes("node_egress", later, from_later)
                .left("node_ingress", pieces(client, at(net.pod, 80), 10)[1].clone());
            stories.push(story);
            // Through a translated source.
            let (asked, backend) = (at(net.node, 30080), at(net.remote, 8080));
            let source = at(net.node, net.port(client, backend, protocol));
            // What comes in disorder to the node itself is for the stack: it may be no Service's.
            let mut story = Story::new(format!("{title}, NodePort"), &net.world())
                .left("node_ingress", pieces(client, asked, 6)[1].clone());
            for i in 0..2 {
                story = story
                    .becomes("node_ingress", pieces(client, asked, 7)[i].clone(), pieces(client, backend, 7)[i].clone())
                    .becomes(
                        "node_egress",
                        pieces(client, backend, 7)[i].clone(),
                        pieces(source, backend, 7)[i].clone(),
                    );
            }
            for i in 0..2 {
                story = story
                    .becomes(
                        "node_ingress",
                        pieces(backend, source, 8)[i].clone(),
                        pieces(backend, client, 8)[i].clone(),
                    )
                    .becomes("node_egress", pieces(backend, client, 8)[i].clone(), pieces(asked, client, 8)[i].clone());
            }
            stories.push(story);
            // Nobody is told about a fragment.
            let [first, later] = pieces(client, at(net.vip, 81), 7);
            stories.push(
                Story::new(format!("{title}, refused"), &net.world())
                    .dropped("node_ingress", first)
                    .dropped("node_ingress", later),
            );
        }
        let [first, later] = SCTP(at(net.client, 40_000), at(net.vip, 80)).fragments(16, 7);
        stories.push(
            Story::new("SCTP in fragments", &net.world()).left("node_ingress", first).left("node_ingress", later),
        );
    }
    tell(stories)
}
