//! `culvert cleanup --kube-proxy`: nothing of kube-proxy is left, everybody else's rules are as if it had never been there,
//! and no connection breaks over it. The rules are those that kube-proxy 1.36.3 wrote for the objects beside them;
//! `kube_proxy_itself` has it write them anew.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::agent::{Options, SocketMode};
use culvert_tests::kube_proxy::{
    FAMILIES, Iptables, LATER, OTHERS, bare, cleanup, everything, fixture, foreign_table, host, nft, others, similar,
};
use culvert_tests::matrix::{PORT, TARGET};
use culvert_tests::place::{Family, Place};
use culvert_tests::process::{Process, eventually};
use culvert_tests::scope::Scope;
use culvert_tests::stage::{Scenery, answered, everywhere, session};
use culvert_tests::topology::{PodLinks, external_ip};
use culvert_tests::traffic::{Ask, Session};

const LIMIT: Duration = Duration::from_secs(30);

/// Rules as kube-proxy wrote them, of all its modes but ipvs at once.
fn kube_proxy_was_here(host: &Place) -> Result<()> {
    host.sh("nfacct add ct_state_invalid_dropped_pkts")?;
    host.sh("nfacct add localhost_nps_accepted_pkts")?;
    for kind in Iptables::BOTH {
        kind.restore(host, "iptables", &fixture("iptables.v4")?)?;
        kind.restore(host, "ip6tables", &fixture("iptables.v6")?)?;
    }
    nft(host, &fixture("nftables")?)
}

#[test]
fn all_of_it_goes_and_nothing_else() -> Result<()> {
    let scope = Scope::open()?;
    let (host, twin) = (host(&scope, "host")?, self::host(&scope, "twin")?);
    for host in [&host, &twin] {
        others(host, OTHERS)?;
        foreign_table(host)?;
    }
    let before = everything(&host)?;
    ensure!(before == everything(&twin)?, "the two hosts differ from the start");
    kube_proxy_was_here(&host)?;
    let with = everything(&host)?;
    ensure!(with.matches("KUBE-SERVICES").count() > 20, "nothing of kube-proxy is there:\n{with}");
    for host in [&host, &twin] {
        others(host, LATER)?;
    }
    let full = bare(&everything(&host)?);
    let (code, answer, _) = cleanup(&host, &["--dry-run"])?;
    let answer = answer.context("no JSON")?;
    let found = answer["found"].as_array().context("nothing found")?.len();
    ensure!(code == 0 && found > 100 && answer["removed"] == false, "{code} {answer}");
    similar(&full, &bare(&everything(&host)?)).context("a dry run changes something")?;

    let (code, answer, said) = cleanup(&host, &["--force"])?;
    let answer = answer.with_context(|| said.clone())?;
    ensure!(code == 0 && answer["removed"] == true && answer["left"].as_array().is_some_and(Vec::is_empty), "{answer}");
    // It asks for kube-proxy on loopback, which is counted: as often here as there.
    for _ in 0..2 {
        cleanup(&twin, &["--dry-run"])?;
    }
    similar(&everything(&twin)?, &everything(&host)?)?;

    let (code, answer, _) = cleanup(&host, &["--force"])?;
    ensure!(code == 0 && answer.is_some_and(|answer| answer["found"] == serde_json::json!([])), "a second time");
    Ok(())
}

#[test]
fn a_chain_that_others_use_stays() -> Result<()> {
    let scope = Scope::open()?;
    let host = host(&scope, "host")?;
    kube_proxy_was_here(&host)?;
    let portmap = "\
*nat
:CNI-HOSTPORT-SETMARK - [0:0]
-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ
COMMIT
";
    Iptables::BOTH.iter().try_for_each(|kind| kind.restore(&host, "iptables", portmap))?;
    let (code, answer, said) = cleanup(&host, &["--force"])?;
    let answer = answer.context(said)?;
    ensure!(code == 3, "{code} {answer}");
    let kept = answer["kept"].as_array().context("nothing kept")?;
    let names: Vec<_> = kept.iter().map(|kept| kept["name"].as_str().unwrap_or_default()).collect();
    ensure!(names == ["KUBE-MARK-MASQ", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"], "{answer}");
    for kind in Iptables::BOTH {
        let rules = host.sh(&format!("{} -t nat", kind.program("iptables", "-save")))?;
        for rule in ["-j KUBE-POSTROUTING", "-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ", "-A KUBE-MARK-MASQ -j MARK"] {
            ensure!(rules.contains(rule), "{kind:?}: {rule} is gone:\n{rules}");
        }
        ensure!(!rules.contains("KUBE-SERVICES"), "{kind:?}:\n{rules}");
    }
    Ok(())
}

#[test]
fn sets_and_counters_go() -> Result<()> {
    let scope = Scope::open()?;
    let host = host(&scope, "host")?;
    host.sh("ipset create MINE hash:ip")?;
    for (name, kind) in [
        ("KUBE-CLUSTER-IP", "hash:ip,port"),
        ("KUBE-LOOP-BACK", "hash:ip,port,ip"),
        ("KUBE-NODE-PORT-TCP", "bitmap:port range 0-65535"),
        ("KUBE-6-CLUSTER-IP", "hash:ip,port family inet6"),
        ("KUBE-6-NODE-PORT-LOCAL-SCTP-HAS", "hash:ip,port family inet6"),
    ] {
        host.sh(&format!("ipset create {name} {kind}"))?;
    }
    host.sh("ipset add KUBE-CLUSTER-IP 10.96.0.1,tcp:443")?;
    let rules = "*nat\n:KUBE-SERVICES - [0:0]\n-A OUTPUT -j KUBE-SERVICES\n\
        -A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT\nCOMMIT\n";
    Iptables::BOTH.iter().try_for_each(|kind| kind.restore(&host, "iptables", rules))?;
    host.sh("nfacct add localhost_nps_accepted_pkts")?;
    host.sh("nfacct add mine")?;
    let (code, answer, said) = cleanup(&host, &["--force"])?;
    ensure!(code == 0, "{answer:?} {said}");
    ensure!(host.sh("ipset list -n")? == "MINE\n", "{}", host.sh("ipset list -n")?);
    let counters = host.sh("nfacct list")?;
    ensure!(counters.contains("mine") && !counters.contains("localhost"), "{counters}");
    Ok(())
}

#[test]
fn it_refuses_while_kube_proxy_runs_or_nobody_serves() -> Result<()> {
    let scope = Scope::open()?;
    let host = host(&scope, "host")?;
    kube_proxy_was_here(&host)?;
    // It asks for kube-proxy on loopback, which is counted.
    let full = bare(&everything(&host)?);
    let (code, _, said) = cleanup(&host, &["--api-socket", "/nowhere"])?;
    ensure!(code == 1 && said.contains("no agent answers"), "{code} {said}");

    // A process of its name in another network namespace is another node's.
    let elsewhere = self::host(&scope, "elsewhere")?;
    let program = scope.dir().join("kube-proxy");
    fs::copy("/bin/sleep", &program)?;
    let run = |place: &Place| -> Result<Process> {
        let mut command = Command::new(&program);
        command.arg("600");
        place.start(command)
    };
    let other = run(&elsewhere)?;
    let (_, answer, _) = cleanup(&host, &["--dry-run"])?;
    ensure!(answer.is_some_and(|answer| answer["running"] == serde_json::json!([])), "a process elsewhere counts");
    drop(other);
    let own = run(&host)?;
    eventually("the process has its name", LIMIT, || {
        let (code, _, said) = cleanup(&host, &[])?;
        Ok((code == 1 && said.contains(&format!("process {} is kube-proxy", own.id()))).then_some(()))
    })?;
    similar(&full, &bare(&everything(&host)?)).context("something was removed")?;
    let (code, _, said) = cleanup(&host, &["--force"])?;
    ensure!(code == 0, "{code} {said}");
    Ok(())
}

/// Tables as kube-proxy has them in its mode nftables, for the TCP port of one load balancer address with the backend c.
fn translating_tables(n1: &Place) -> Result<()> {
    for (family, ip, backend) in [(Family::V4, "ip", "10.244.2.10"), (Family::V6, "ip6", "[fd00:244:2::10]")] {
        let address = external_ip(family, 101);
        nft(
            n1,
            &format!(
                "table {ip} kube-proxy {{\n\
                 chain pre {{ type nat hook prerouting priority dstnat; \
                 {ip} daddr {address} tcp dport {PORT} dnat to {backend}:{TARGET}; }}\n\
                 chain post {{ type nat hook postrouting priority srcnat; tcp dport {TARGET} masquerade; }}\n}}\n"
            ),
        )?;
    }
    Ok(())
}

/// Sessions of the client that those tables translate, one a family.
fn translated_sessions(client: &Place) -> Result<Vec<Session>> {
    let sessions = Family::BOTH.into_iter().map(|family| {
        let mut session = session(client, &Ask::tcp((external_ip(family, 101), PORT)))?;
        ensure!(answered(&session.exchange())? == "c");
        Ok(session)
    });
    sessions.collect()
}

fn live_on(sessions: &mut [Session]) -> Result<()> {
    sessions.iter_mut().try_for_each(|session| {
        let outcome = session.exchange();
        ensure!(outcome.server() == Some("c"), "a connection broke: {outcome}");
        Ok(())
    })
}

#[test]
fn nothing_breaks_where_others_translate_too() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let (client, n1) = (scenery.lab.client.clone(), scenery.cast.n1.clone());
    translating_tables(&n1)?;
    for family in FAMILIES {
        n1.sh(&format!("{family}-legacy -w -t nat -A POSTROUTING -p udp --dport 9 -j MASQUERADE"))?;
    }
    let mut old = translated_sessions(&client)?;
    let service = everywhere("web", 1).ready("n1", &scenery.cast.a);
    let mut stage = scenery.start(&Options::new(SocketMode::All)?, [&service])?;
    let socket = stage.cluster.lab.nodes[0].run.join("api.sock");
    let (code, _, said) = cleanup(&n1, &["--now", "--api-socket", socket.to_str().context("no text")?])?;
    ensure!(code == 0, "{code} {said}");
    live_on(&mut old)?;
    stage.cluster.agents[0].terminate()?;
    Ok(())
}

#[test]
fn it_waits_for_connections_that_netfilter_translates() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let (client, n1) = (scenery.lab.client.clone(), scenery.cast.n1.clone());
    // With the last table that translates, the kernel forgets how.
    translating_tables(&n1)?;
    let mut old = translated_sessions(&client)?;
    let service = everywhere("web", 1).ready("n1", &scenery.cast.a);
    let mut stage = scenery.start(&Options::new(SocketMode::All)?, [&service])?;
    eventually("the agent speaks of kube-proxy", LIMIT, || {
        let status = stage.cluster.agents[0].status()?;
        let warnings = status["warnings"].to_string();
        Ok(warnings.contains("culvert cleanup --kube-proxy").then_some(()))
    })?;
    ensure!(stage.cluster.agents[0].log().contains("rules of kube-proxy are here"), "the log says nothing");

    let socket = stage.cluster.lab.nodes[0].run.join("api.sock");
    let socket = socket.to_str().context("no text")?;
    let (code, answer, said) = cleanup(&n1, &["--timeout", "1", "--api-socket", socket])?;
    ensure!(code == 1 && answer.is_none() && said.contains("2 connections"), "{code} {said}");
    ensure!(n1.sh("nft list tables")?.matches("kube-proxy").count() == 2, "a table is gone");
    live_on(&mut old)?;
    // One of them ends, then the other: only then it begins.
    let mut command = Command::new(culvert_tests::agent::binary()?);
    command.args(["cleanup", "--kube-proxy", "--timeout", "60", "--api-socket", socket]);
    let mut waiting = n1.start(command)?;
    let says =
        |waiting: &Process, what: &str| eventually(what, LIMIT, || Ok(waiting.output().contains(what).then_some(())));
    says(&waiting, "waiting for 2 connections")?;
    old.pop();
    says(&waiting, "waiting for 1 connection")?;
    live_on(&mut old)?;
    ensure!(waiting.alive(), "it did not wait: {}", waiting.output());
    old.clear();
    let ended = waiting.wait(LIMIT)?;
    ensure!(ended.success(), "{ended}: {}", waiting.output());
    ensure!(!n1.sh("nft list tables")?.contains("kube-proxy"), "{}", n1.sh("nft list tables")?);
    stage.check(1, "client  lb  a:client\np  cluster  a:p\nn1  cluster  a:n1\n")?;
    stage.cluster.agents[0].terminate()?;
    Ok(())
}
