//! Web servers and reverse proxies: three pods behind a Service, a proxy to that behind a node port, and wrk outside.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::cluster::{LIMIT, objects};
use culvert_tests::process::eventually;
use serde_json::{Value, json};

use super::Stage;

/// Where servers and proxies listen.
const PORT: u16 = 8080;
/// Node ports, one for each proxy: the Services of a case may outlive it for a moment.
const NGINX: u16 = 31730;
const HAPROXY: u16 = 31731;
const CADDY: u16 = 31732;
/// Where Caddy serves HTTP/3.
const SECURE: u16 = 8443;

/// NGINX that answers with the name of its host.
fn web(stage: &Stage) -> Result<Value> {
    let configuration = format!(
        "user root; error_log stderr; pid /tmp/nginx.pid; worker_processes 1; daemon off; events {{ }} http {{ access_log off; \
         server {{ listen {PORT}; return 200 \"$hostname\\n\"; }} }}"
    );
    server(stage, &configuration, "exec nginx -e stderr -c /tmp/conf")
}

/// A container that writes its configuration and becomes a server, ready once that answers HTTP.
fn server(stage: &Stage, configuration: &str, command: &str) -> Result<Value> {
    let script = format!("cat > /tmp/conf <<'END'\n{configuration}\nEND\n{command}");
    let mut container = objects::container(stage.cluster.image("servers")?, &["sh", "-ec", &script]);
    container["readinessProbe"] = objects::http_probe(PORT, "/");
    Ok(container)
}

/// Three of the web servers, and two of the proxies to their Service `web`.
fn play(stage: &Stage, web: &Value, proxy: &Value, node_port: u16) -> Result<()> {
    stage.namespace.apply(&[objects::service("web", "web", PORT)])?;
    front(stage, &objects::deployment("web", 3, web), &objects::deployment("proxy", 2, proxy), node_port, 3)
}

/// Both Deployments, and the proxies behind a node port, under load from outside; so many web servers must answer at least.
fn front(stage: &Stage, web: &Value, proxy: &Value, node_port: u16, servers: usize) -> Result<()> {
    stage.namespace.apply(&[web.clone(), objects::node_port_service("proxy", "proxy", PORT, node_port)])?;
    stage.namespace.await_rollout("deployment/web")?;
    stage.namespace.apply(std::slice::from_ref(proxy))?;
    stage.namespace.await_rollout("deployment/proxy")?;
    // n1 and n2 have no proxy or one of the two: both hand on.
    let outside = stage.cluster.site("client")?;
    let mut seen = BTreeSet::new();
    for node in ["n1", "n2"] {
        let url = format!("http://{}:{node_port}/", stage.cluster.address(node)?);
        eventually(&format!("{url} answers"), LIMIT, || {
            let said = outside.sh(&format!("curl --silent --show-error --fail --max-time 10 {url}"))?;
            seen.insert(said.trim_end().to_owned());
            Ok(Some(()))
        })?;
        clean(&outside.sh(&format!("wrk --threads 1 --connections 20 --duration 3s --timeout 20s {url}"))?)?;
        clean(
            &outside.sh(&format!(
                "wrk --threads 1 --connections 20 --duration 3s --timeout 20s -H Connection:close {url}"
            ))?,
        )?;
    }
    ensure!(seen.iter().all(|name| name.starts_with("web-")), "{seen:?}");
    // Many at the same time: one after the other may all go over one connection that the proxy keeps.
    let url = format!("http://{}:{node_port}/", stage.cluster.address("n3")?);
    let crowd = format!("for i in $(seq 30); do curl --silent --show-error --fail --max-time 20 {url} & done; wait");
    eventually(&format!("{servers} servers answer"), LIMIT, || {
        seen.extend(outside.script(&crowd)?.lines().map(str::to_owned));
        ensure!(seen.len() >= servers, "{seen:?}");
        Ok(Some(()))
    })
}

/// What wrk says of a run without any error.
fn clean(said: &str) -> Result<()> {
    ensure!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
    let requests = said.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:")).context("no figure")?;
    ensure!(requests.trim().parse::<f64>()? > 1.0, "{said}");
    Ok(())
}

pub fn nginx(stage: &Stage) -> Result<()> {
    let upstream = stage.name("web");
    let proxy = format!(
        "user root; error_log stderr; pid /tmp/nginx.pid; worker_processes 1; daemon off; events {{ }} http {{ access_log off; \
         upstream web {{ server {upstream}:{PORT}; keepalive 8; }} server {{ listen {PORT}; location / {{ \
         proxy_pass http://web; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}"
    );
    let proxy = server(stage, &proxy, "exec nginx -e stderr -c /tmp/conf")?;
    play(stage, &web(stage)?, &proxy, NGINX)
}

pub fn haproxy(stage: &Stage) -> Result<()> {
    let upstream = stage.name("web");
    let proxy = format!(
        "global\n  maxconn 1000\ndefaults\n  mode http\n  timeout connect 10s\n  timeout client 30s\n  timeout server 30s\n\
         frontend front\n  bind :{PORT}\n  default_backend web\n\
         backend web\n  option httpchk GET /\n  server web {upstream}:{PORT} check inter 500ms"
    );
    let proxy = server(stage, &proxy, "exec haproxy -f /tmp/conf")?;
    play(stage, &web(stage)?, &proxy, HAPROXY)
}

pub fn caddy(stage: &Stage) -> Result<()> {
    let upstream = stage.name("web");
    let key = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=web";
    let key = format!("{key} -addext subjectAltName=DNS:{upstream} -keyout /dev/stdout 2> /dev/null");
    let pair = stage.cluster.site("hub")?.script(&key)?;
    let part = |kind: &str| -> Result<String> {
        let (begin, end) = (format!("-----BEGIN {kind}-----"), format!("-----END {kind}-----\n"));
        let from = pair.find(&begin).with_context(|| pair.clone())?;
        let length = pair[from..].find(&end).with_context(|| pair.clone())? + end.len();
        Ok(pair[from..from + length].to_owned())
    };
    let answer = json!([{"handle": [{"handler": "static_response", "body": "{system.hostname}\n"}]}]);
    let web = json!({
        "admin": {"disabled": true},
        "apps": {
            "tls": {"certificates": {"load_pem": [{"certificate": part("CERTIFICATE")?, "key": part("PRIVATE KEY")?}]}},
            "http": {"servers": {
                "secure": {"listen": [format!(":{SECURE}")], "protocols": ["h3"], "routes": answer,
                    "tls_connection_policies": [{}], "automatic_https": {"disable": true}},
                // For the probe.
                "plain": {"listen": [format!(":{PORT}")], "routes": answer, "automatic_https": {"disable": true}},
            }},
        },
    });
    let proxy = json!({
        "admin": {"disabled": true},
        "apps": {"http": {"servers": {"front": {
            "listen": [format!(":{PORT}")],
            "automatic_https": {"disable": true},
            "routes": [{"handle": [{
                "handler": "reverse_proxy",
                "upstreams": [{"dial": format!("{upstream}:{SECURE}")}],
                "transport": {"protocol": "http", "versions": ["3"], "tls": {"insecure_skip_verify": true}},
            }]}],
        }}}},
    });
    let run = "exec /programs/caddy run --config /tmp/conf";
    let containers = [&web, &proxy].map(|configuration| server(stage, &configuration.to_string(), run));
    let [web, proxy] = containers;
    let (mut web, mut proxy) = (objects::deployment("web", 3, &web?), objects::deployment("proxy", 2, &proxy?));
    for deployment in [&mut web, &mut proxy] {
        stage.mount(deployment, "caddy")?;
    }
    stage.namespace.apply(&[objects::service("web", "web", SECURE)])?;
    // Each proxy has one QUIC connection for all requests, and both may have found the same server.
    front(stage, &web, &proxy, CADDY, 1)
}
