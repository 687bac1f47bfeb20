//! `culvert cleanup --kube-proxy` after kube-proxy itself, which asked an API server. Needs its programs: `cargo xtask test` says
//! where they are.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::control_plane::{ControlPlane, User};
use culvert_tests::kube_proxy::program::KubeProxy;
use culvert_tests::kube_proxy::{
    Iptables, OTHERS, bare, cleanup, everything, fixture, foreign_table, host, link, others, similar,
};
use culvert_tests::process::eventually;
use culvert_tests::scope::Scope;

const LIMIT: Duration = Duration::from_secs(30);

/// The program itself in each of its modes, with Services of all kinds.
#[test]
fn what_kube_proxy_itself_writes_goes() -> Result<()> {
    let scope = Scope::open()?;
    let (host, twin) = (host(&scope, "host")?, self::host(&scope, "twin")?);
    link(&host)?;
    let api = ControlPlane::start(&host, host.v4(), &scope.directory("api")?, &[])?;
    let kubeconfig = api.kubeconfig(User::Admin)?;
    api.kubectl("apply -f -", &fixture("objects.yaml")?)?;
    let ingress =
        r#"--type=merge -p {"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.1"},{"ip":"2001:db8:1::1"}]}}}"#;
    api.kubectl(&format!("patch service web --subresource=status {ingress}"), "")?;
    let addresses = r#"{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.11"},{"type":"InternalIP","address":"fd00:11::11"}]}}"#;
    api.kubectl(&format!("patch node n1 --subresource=status --type=merge -p {addresses}"), "")?;
    for host in [&host, &twin] {
        // kube-proxy does not suffer this name beside it, and cannot get rid of it either.
        others(host, &OTHERS.replace("KUBE-SVC-MINE", "SVC-MINE"))?;
        foreign_table(host)?;
    }
    let expected = bare(&everything(&twin)?);
    for (mode, kind, mark) in [
        ("nftables", Iptables::Nft, "table ip6 kube-proxy"),
        ("iptables", Iptables::Nft, "KUBE-SVC-"),
        ("iptables", Iptables::Legacy, "KUBE-SVC-"),
    ] {
        let proxy = KubeProxy { mode, iptables: Some(kind), cluster_cidr: "10.244.0.0/16,fd00:244::/32" };
        let mut process = proxy.start_healthy(&host, &kubeconfig, scope.dir())?;
        eventually("kube-proxy's rules are there", LIMIT, || {
            Ok((everything(&host)?.matches(mark).count() > expected.matches(mark).count()).then_some(()))
        })?;
        let (code, _, said) = cleanup(&host, &[])?;
        ensure!(code == 1 && said.contains(&format!("answers as kube-proxy does, in mode {mode}")), "{code} {said}");
        process.terminate(LIMIT)?;
        let (code, answer, said) = cleanup(&host, &["--force"])?;
        let answer = answer.with_context(|| said.clone())?;
        ensure!(code == 0, "{mode} {kind:?}: {answer} {said}");
        similar(&expected, &bare(&everything(&host)?)).with_context(|| format!("{mode} {kind:?}"))?;
    }
    Ok(())
}
