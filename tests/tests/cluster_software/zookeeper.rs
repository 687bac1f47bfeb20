//! `ZooKeeper`: an ensemble whose servers know each other by Services, and a session that outlives its server. Its programs are
//! Debian's (`libzookeeper-java`, a Java runtime), and run in pods as processes with this machine's files.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use culvert_tests::cluster::{LIMIT, Site, objects};
use culvert_tests::process::eventually;
use serde_json::json;

use super::Stage;

const CLIENT: u16 = 2181;
const PEER: u16 = 2888;
const ELECTION: u16 = 3888;
const SERVERS: [(&str, &str); 3] = [("zk-1", "n1"), ("zk-2", "n2"), ("zk-3", "n3")];

/// A process with its files; both go with the guard.
struct Java(Child);

impl Java {
    fn start(site: &Site, log: &Path, words: &[&str]) -> Result<Self> {
        let mut command = java(site);
        let log = File::create(log)?;
        let child = command.args(words).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).spawn();
        child.map(Self).context("java")
    }
}

impl Drop for Java {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A call of Java with Debian's `ZooKeeper`.
fn java(site: &Site) -> Command {
    let mut command = site.command("java");
    command.args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    command.args(["-cp", "/usr/share/java/zookeeper.jar:/usr/share/java/*"]);
    command
}

/// A directory that goes with its guard.
struct Files(PathBuf);

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn zookeeper(stage: &Stage) -> Result<()> {
    let (cluster, namespace) = (&stage.cluster, &stage.namespace);
    let files = Files(std::env::temp_dir().join(format!("culvert-zookeeper-{}", std::process::id())));
    let image = cluster.image("busybox")?;
    for (name, node) in SERVERS {
        let mut service = objects::service(name, name, CLIENT);
        service["spec"]["ports"] =
            [CLIENT, PEER, ELECTION].map(|port| json!({"name": format!("p{port}"), "port": port})).into();
        let mut pod = objects::pod(name, name, node, image);
        pod["metadata"]["labels"]["ensemble"] = "zookeeper".into();
        namespace.apply(&[service, pod])?;
    }
    let mut all = objects::service("zookeeper", "", CLIENT);
    all["spec"]["selector"] = json!({"ensemble": "zookeeper"});
    namespace.apply(&[all])?;
    stage.client()?;
    namespace.await_pods(&["-lensemble=zookeeper"])?;

    let mut ensemble = String::new();
    for (index, (name, _)) in SERVERS.iter().enumerate() {
        let address = namespace.cluster_ip(name)?;
        writeln!(ensemble, "server.{}={address}:{PEER}:{ELECTION};{CLIENT}", index + 1)?;
    }
    let mut servers = Vec::new();
    for (index, (name, _)) in SERVERS.iter().enumerate() {
        let data = files.0.join(name);
        fs::create_dir_all(&data)?;
        fs::write(data.join("myid"), (index + 1).to_string())?;
        let configuration = data.join("zoo.cfg");
        // The own address in the list is a Service's, which is on no link: it cannot be listened on.
        let text = format!(
            "tickTime=2000\ninitLimit=30\nsyncLimit=15\nmaxSessionTimeout=300000\ndataDir={}\nquorumListenOnAllIPs=true\nadmin.enableServer=false\n\
             4lw.commands.whitelist=*\n{ensemble}",
            data.display()
        );
        fs::write(&configuration, text)?;
        let main = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
        let words = ["-Dzookeeper.forceSync=no", main, &configuration.display().to_string()];
        servers.push(Java::start(&namespace.pod(name)?, &data.join("log"), &words)?);
    }
    let client = namespace.pod("client")?;
    let front = namespace.front("zookeeper")?;
    for (name, _) in SERVERS {
        let address = namespace.cluster_ip(name)?;
        eventually(&format!("{name} serves"), LIMIT, || {
            let said = client.script(&format!("echo srvr | nc -q 5 -w 10 {address} {CLIENT}"))?;
            ensure!(said.contains("Mode: "), "{said}");
            Ok(Some(()))
        })
        .with_context(|| fs::read_to_string(files.0.join(name).join("log")).unwrap_or_default())?;
    }
    session(stage, &client, &front.to_string(), &files.0, &mut servers)
}

/// A session over the Service writes, loses its server, and goes on at another one.
fn session(stage: &Stage, client: &Site, front: &str, files: &Path, servers: &mut [Java]) -> Result<()> {
    use std::io::Write as _;
    let log = files.join("session");
    let main = "org.apache.zookeeper.ZooKeeperMain";
    let words = ["-Djline.terminal=none", main, "-timeout", "120000", "-server", front];
    let mut session = Java::start(client, &log, &words)?;
    let mut input = session.0.stdin.take().context("no input")?;
    let mut tell = |line: &str| -> Result<()> {
        writeln!(input, "{line}")?;
        input.flush()?;
        Ok(())
    };
    let says = |what: &str| {
        eventually(&format!("the session says {what}"), LIMIT, || {
            let said = fs::read_to_string(&log)?;
            let end: Vec<&str> = said.lines().rev().take(5).collect();
            ensure!(said.contains(what), "it ends with {end:?}");
            Ok(Some(()))
        })
    };
    // Ephemeral: it is there for as long as the session is.
    tell("create -e /session alive")?;
    says("Created /session")?;
    // The server that the session is at has the other end of its connection.
    let mut at = None;
    for (index, (name, _)) in SERVERS.iter().enumerate() {
        let address = stage.namespace.cluster_ip(name)?;
        let said = client.script(&format!("echo cons | nc -q 5 -w 10 {address} {CLIENT}"))?;
        if said.lines().any(|line| line.contains("sid=0x") && line.contains("to=120000")) {
            at = Some(index);
        }
    }
    let at = at.context("no server knows the session")?;
    // The pod with all that it has: its endpoint goes, too.
    drop(servers.get_mut(at).map(|server| server.0.kill()));
    stage.namespace.kubectl(&["delete", "pod", SERVERS[at].0, "--now"])?;
    tell("create /after death")?;
    eventually("the session is at another server", LIMIT, || {
        let said = fs::read_to_string(&log)?;
        if !said.contains("Created /after") {
            // A command that met the dead connection is not repeated by itself.
            tell("create /after death")?;
            std::thread::sleep(std::time::Duration::from_secs(2));
        }
        Ok(said.contains("Created /after").then_some(()))
    })?;
    tell("get /session")?;
    says("alive")?;
    ensure!(!fs::read_to_string(&log)?.contains("Expired"), "the session expired");
    tell("quit")
}
