//! etcd, whose members and clients speak gRPC for as long as they live.

use anyhow::{Result, ensure};
use culvert_tests::cluster::{LIMIT, objects};
use culvert_tests::process::eventually;
use serde_json::json;

use super::Stage;

const CLIENT: u16 = 2379;
const PEER: u16 = 2380;
const NODE_PORT: u16 = 31750;
const MEMBERS: [&str; 3] = ["etcd-0", "etcd-1", "etcd-2"];

/// How many keys are written before and after the death of a member.
const KEYS: usize = 30;

pub fn etcd(stage: &Stage) -> Result<()> {
    let namespace = &stage.namespace;
    let peer = |member: &str| format!("http://{}:{PEER}", stage.name(member));
    let members = MEMBERS.map(|member| format!("{member}={}", peer(member))).join(",");
    for (member, node) in MEMBERS.into_iter().zip(["n1", "n2", "n3"]) {
        // A Service for each member: it meets itself there too.
        let mut service = objects::service(member, "", PEER);
        service["spec"]["selector"] = json!({"member": member});
        service["spec"]["publishNotReadyAddresses"] = true.into();
        let mut pod = objects::pod(member, "etcd", node, stage.cluster.image("servers")?);
        pod["metadata"]["labels"]["member"] = member.into();
        pod["spec"]["restartPolicy"] = "Never".into();
        let words = [
            "etcd".to_owned(),
            format!("--name={member}"),
            "--data-dir=/tmp/etcd".to_owned(),
            format!("--listen-peer-urls=http://0.0.0.0:{PEER}"),
            format!("--listen-client-urls=http://0.0.0.0:{CLIENT}"),
            format!("--initial-advertise-peer-urls={}", peer(member)),
            format!("--advertise-client-urls=http://{}:{CLIENT}", stage.name("etcd")),
            format!("--initial-cluster={members}"),
            "--unsafe-no-fsync".to_owned(),
            // The machine has other work.
            "--heartbeat-interval=500".to_owned(),
            "--election-timeout=5000".to_owned(),
        ];
        let container = &mut pod["spec"]["containers"][0];
        container["command"] = words.to_vec().into();
        container["readinessProbe"] =
            json!({"httpGet": {"port": CLIENT, "path": "/health"}, "periodSeconds": 2, "timeoutSeconds": 5});
        namespace.apply(&[service, pod])?;
    }
    namespace.apply(&[objects::node_port_service("etcd", "etcd", CLIENT, NODE_PORT)])?;
    stage.client()?;
    namespace.await_pods(&["-lapp=etcd"])?;

    // A watch stands all the time; what it sees is counted.
    let inside = format!("etcdctl --endpoints={}:{CLIENT} --command-timeout=20s", stage.name("etcd"));
    let script = format!("export ETCDCTL_API=3; {inside} watch --prefix key > /tmp/seen 2> /tmp/said < /dev/null &");
    stage.exec("pod/client", &script)?;
    let outside = stage.cluster.site("client")?;
    let node = stage.cluster.address("n2")?;
    let outside_call = format!("etcdctl --endpoints={node}:{NODE_PORT} --command-timeout=20s");
    let write = |from: usize| -> Result<()> {
        let numbers = format!("$(seq {from} {})", from + KEYS - 1);
        stage.exec(
            "pod/client",
            &format!("export ETCDCTL_API=3; for i in {numbers}; do {inside} put key-in-$i $i; done"),
        )?;
        outside
            .script(&format!("export ETCDCTL_API=3; for i in {numbers}; do {outside_call} put key-out-$i $i; done"))?;
        Ok(())
    };
    eventually("the watch stands", LIMIT, || {
        stage.exec("pod/client", &format!("ETCDCTL_API=3 {inside} put key-first x; grep -q first /tmp/seen")).map(Some)
    })?;
    write(1)?;
    let seen = |many: usize| {
        eventually("the watch has seen all keys", LIMIT, || {
            let seen = stage.exec("pod/client", "grep -E '^key-(in|out)-' /tmp/seen | sort -u | wc -l")?;
            ensure!(seen.trim() == many.to_string(), "{seen} of {many}");
            Ok(Some(()))
        })
    };
    seen(2 * KEYS)?;
    let holds = |many: usize| -> Result<()> {
        let keys = stage.exec("pod/client", &format!("ETCDCTL_API=3 {inside} get --prefix key --keys-only"))?;
        let found = keys.lines().filter(|line| line.starts_with("key-")).count();
        ensure!(found == many, "{found} keys of {many}:\n{keys}");
        Ok(())
    };
    holds(2 * KEYS + 1)?;
    // A member that does not serve the watch dies, and two are enough.
    namespace.kubectl(&["delete", "pod", "etcd-2", "--now"])?;
    eventually("writing goes on", LIMIT, || {
        stage.exec("pod/client", &format!("ETCDCTL_API=3 {inside} put key-first y")).map(Some)
    })?;
    write(KEYS + 1)?;
    holds(4 * KEYS + 1)?;
    seen(4 * KEYS)
}
