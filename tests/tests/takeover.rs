//! The agent comes to a node where netfilter translated until now, as kube-proxy has it do. What it translated lives on to its
//! end; what is new is ours.

use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_tests::agent::{Agent, Options, SocketMode};
use culvert_tests::matrix::{PORT, TARGET, node_port};
use culvert_tests::place::Family;
use culvert_tests::process::eventually;
use culvert_tests::stage::{Scenery, answered, everywhere, session};
use culvert_tests::topology::{Lab, PodLinks, cluster_ip, external_ip};
use culvert_tests::traffic::Ask;

/// How long an agent may take to load its programs.
const LIMIT: Duration = Duration::from_secs(30);

/// What a kube-proxy in its iptables mode does for one Service with one backend: translates the destination of its frontends, and
/// the source of what comes from outside.
fn kube_proxy(lab: &Lab, add: bool) -> Result<()> {
    let n1 = &lab.nodes[0].host;
    let action = if add { "-A" } else { "-D" };
    for (family, iptables) in [(Family::V4, "iptables-legacy"), (Family::V6, "ip6tables-legacy")] {
        let c =
            if family == Family::V4 { format!("10.244.2.10:{TARGET}") } else { format!("[fd00:244:2::10]:{TARGET}") };
        for (address, port) in
            [(external_ip(family, 101), PORT), (n1.ip(family), node_port(1)), (cluster_ip(family, 1), PORT)]
        {
            for chain in ["PREROUTING", "OUTPUT"] {
                n1.sh(&format!(
                    "{iptables} -w -t nat {action} {chain} -d {address} -p tcp --dport {port} -j DNAT --to-destination {c}"
                ))?;
            }
        }
        n1.sh(&format!("{iptables} -w -t nat {action} POSTROUTING -o eth0 -p tcp --dport {TARGET} -j MASQUERADE"))?;
    }
    Ok(())
}

#[test]
fn connections_that_netfilter_translates_live_on() -> Result<()> {
    for mode in [SocketMode::All, SocketMode::Host] {
        let scenery = Scenery::new(PodLinks::Routed)?;
        let (p, client, n1) = (scenery.cast.p.clone(), scenery.lab.client.clone(), scenery.cast.n1.clone());
        // Somebody else's rules keep conntrack at work: without any it would forget how to translate, whoever comes.
        scenery.lab.firewall()?;
        kube_proxy(&scenery.lab, true)?;
        let mut old = Vec::new();
        for family in Family::BOTH {
            for (from, to) in [
                (&client, (external_ip(family, 101), PORT)),
                (&client, (n1.ip(family), node_port(1))),
                (&p, (cluster_ip(family, 1), PORT)),
                (&n1, (cluster_ip(family, 1), PORT)),
            ] {
                let mut session = session(from, &Ask::tcp(to))?;
                ensure!(answered(&session.exchange())? == "c");
                old.push((from.name().to_owned(), to, session));
            }
        }
        // One that never hears of a Service changes nothing, and the next one has no less to leave alone.
        let deaf = Options { kubeconfig: Some("/nowhere".into()), ..Options::new(mode)? };
        let mut deaf = Agent::start(&scenery.lab, 0, &deaf)?;
        eventually("the programs are hooked", LIMIT, || {
            ensure!(deaf.alive(), "it ended: {}", deaf.log());
            Ok(deaf.log().contains("loaded and hooked").then_some(()))
        })?;
        deaf.kill()?;
        let service = everywhere("web", 1).ready("n1", &scenery.cast.a);
        let mut stage = scenery.start(&Options::new(mode)?, [&service])?;
        let live_on = |old: &mut Vec<(String, _, culvert_tests::traffic::Session)>, when: &str| {
            old.iter_mut().try_for_each(|(from, to, session)| {
                let outcome = session.exchange();
                ensure!(outcome.server() == Some("c"), "{mode:?} {from} -> {to:?}, {when}: {outcome}");
                Ok(())
            })
        };
        live_on(&mut old, "with the agent there")?;
        // kube-proxy goes and takes its rules with it; conntrack goes on translating what it knows.
        kube_proxy(&stage.cluster.lab, false)?;
        live_on(&mut old, "without kube-proxy")?;
        stage.check(
            1,
            "
            client  lb           a:client
            client  nodeport@n1  a:client
            p       cluster      a:p
            n1      cluster      a:n1
        ",
        )?;
        stage.cluster.agents[0].kill()?;
        stage.cluster.agents[0].restart(None)?;
        stage.cluster.settle()?;
        live_on(&mut old, "after a restart of the agent")?;
    }
    Ok(())
}
