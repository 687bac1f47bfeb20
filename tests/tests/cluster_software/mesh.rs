//! The way in which service meshes redirect: rules in the pod send what goes out to a proxy, which asks the kernel where that
//! was meant to go. It must be the Service's address: the mesh decides by it.

use anyhow::{Context as _, Result, ensure};
use culvert_tests::cluster::{LIMIT, objects};
use culvert_tests::process::eventually;
use serde_json::json;

use super::Stage;

const PORT: u16 = 8080;
/// Where the sidecar listens, and the user that it runs as, whose connections are not redirected.
const SIDECAR: u16 = 15001;
const USER: u32 = 1337;

pub fn sidecar(stage: &Stage) -> Result<()> {
    let (cluster, namespace) = (&stage.cluster, &stage.namespace);
    let agnhost = cluster.image("agnhost")?;
    let mut web = objects::container(agnhost, &["/agnhost", "netexec"]);
    web["readinessProbe"] = objects::http_probe(PORT, "/hostname");
    namespace.apply(&[objects::deployment("web", 3, &web), objects::service("web", "web", PORT)])?;

    let rules = format!(
        "iptables -t nat -A OUTPUT -p tcp -m owner ! --uid-owner {USER} ! -d 127.0.0.1/32 -j REDIRECT --to-ports {SIDECAR}"
    );
    let mut init = objects::container(agnhost, &["sh", "-ec", &rules]);
    init["name"] = "rules".into();
    init["securityContext"] = json!({"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}});
    // To a server at 0.0.0.0 HAProxy connects where the client wanted to go: SO_ORIGINAL_DST.
    let configuration = format!(
        "defaults\n  mode http\n  timeout connect 10s\n  timeout client 30s\n  timeout server 30s\n\
         frontend out\n  bind :{SIDECAR}\n  http-response set-header x-destination %[dst]:%[dst_port]\n  default_backend there\n\
         backend there\n  server there 0.0.0.0\n"
    );
    let script = format!("cat > /tmp/conf <<'END'\n{configuration}END\nexec haproxy -f /tmp/conf");
    let mut proxy = objects::container(cluster.image("servers")?, &["sh", "-ec", &script]);
    proxy["name"] = "sidecar".into();
    proxy["securityContext"] = json!({"runAsUser": USER, "runAsGroup": USER});
    proxy["readinessProbe"] = json!({"tcpSocket": {"port": SIDECAR}, "periodSeconds": 1});
    let mut pod = objects::pod("app", "app", "n2", cluster.image("servers")?);
    pod["spec"]["initContainers"] = json!([init]);
    let containers = pod["spec"]["containers"].as_array_mut().context("containers")?;
    containers.push(proxy);
    namespace.apply(&[pod])?;
    namespace.await_rollout("deployment/web")?;
    namespace.await_pods(&["pod/app"])?;

    let front = namespace.front("web")?;
    let mut seen = std::collections::BTreeSet::new();
    eventually("all three pods answer through the sidecar", LIMIT, || {
        let url = format!("http://{front}/hostname");
        let words = ["exec", "app", "-c", "main", "--", "curl", "--silent", "--show-error", "--max-time", "10"];
        let said = namespace.kubectl(&[&words[..], &["--include", &url]].concat())?;
        ensure!(said.contains(&format!("x-destination: {front}\r\n")), "the sidecar saw another address: {said}");
        seen.extend(said.lines().last().map(str::to_owned));
        ensure!(seen.len() == 3 && seen.iter().all(|name| name.starts_with("web-")), "{seen:?}");
        Ok(Some(()))
    })
}
