//! `culvert cleanup --kube-proxy` after the mode ipvs: its virtual services, its link, its sets and its rules go, and nobody else's.
//! Needs a kernel with IPVS and dummy links: `cargo xtask test --only vm-6.1` has one.

use anyhow::{Context as _, Result, ensure};
use culvert_tests::kube_proxy::{Iptables, cleanup, host};
use culvert_tests::scope::Scope;

/// As `kube-proxy` 1.36.3 writes them in its mode ipvs, but for what matches beside.
const RULES: &str = "\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-LOAD-BALANCER - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
-A KUBE-NODE-PORT -p tcp -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SOURCE-RANGES-FIREWALL - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
-A INPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-FILTER
-A INPUT -m comment --comment \"kubernetes health check rules\" -j KUBE-NODE-PORT
-A INPUT -j KUBE-ROUTER-INPUT
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A OUTPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-OUT-FILTER
-A KUBE-PROXY-FIREWALL -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-SOURCE-RANGES-FIREWALL
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
COMMIT
";

#[test]
fn what_the_mode_ipvs_left_goes_and_nothing_else() -> Result<()> {
    let scope = Scope::open()?;
    let host = host(&scope, "host")?;
    host.ip_batch(
        "link add kube-ipvs0 type dummy\naddr add 10.96.0.1/32 dev kube-ipvs0\naddr add fd00:96::1/128 dev kube-ipvs0 nodad\n\
         link add kube-dummy0 type dummy\naddr add 198.51.100.7/32 dev kube-dummy0\nlink set kube-dummy0 up\n",
    )?;
    for line in [
        "ipset create KUBE-CLUSTER-IP hash:ip,port",
        "ipset create KUBE-NODE-PORT-TCP bitmap:port range 0-65535",
        "ipset add KUBE-NODE-PORT-TCP 30080",
        "ipset create MINE hash:ip",
        "ipvsadm -A -t 10.96.0.1:443 -s rr",
        "ipvsadm -a -t 10.96.0.1:443 -r 10.244.1.5:6443 -m",
        "ipvsadm -A -u 10.96.0.1:53 -s rr",
        "ipvsadm -A -t [fd00:96::1]:443 -s rr",
        "ipvsadm -A -t 192.0.2.11:30080 -s rr",
        // Others': by address, by port, by firewall mark.
        "ipvsadm -A -t 198.51.100.7:443 -s rr",
        "ipvsadm -A -u 198.51.100.7:30080 -s rr",
        "ipvsadm -A -f 7 -s rr",
    ] {
        host.sh(line).with_context(|| "needs a kernel with IPVS")?;
    }
    for kind in Iptables::BOTH {
        kind.restore(&host, "iptables", RULES)?;
    }
    let (code, answer, said) = cleanup(&host, &["--force"])?;
    ensure!(code == 0, "{answer:?} {said}");
    let found = answer.context("no JSON")?["found"].to_string();
    for name in ["tcp 10.96.0.1:443", "udp 10.96.0.1:53", "tcp [fd00:96::1]:443", "tcp 192.0.2.11:30080", "kube-ipvs0"]
    {
        ensure!(found.contains(&format!("{name:?}")), "{name} is not in {found}");
    }
    let services = host.sh("ipvsadm -S -n")?;
    let mut services: Vec<_> = services.lines().map(str::trim).collect();
    services.sort_unstable();
    ensure!(
        services == ["-A -f 7 -s rr", "-A -t 198.51.100.7:443 -s rr", "-A -u 198.51.100.7:30080 -s rr"],
        "{services:?}"
    );
    let links = host.sh("ip -o link")?;
    ensure!(links.contains("kube-dummy0") && !links.contains("kube-ipvs0"), "{links}");
    ensure!(host.sh("ipset list -n")? == "MINE\n", "{}", host.sh("ipset list -n")?);
    for kind in Iptables::BOTH {
        let rules = kind.save(&host)?;
        let left: Vec<_> = rules.lines().filter(|line| line.contains("KUBE-")).collect();
        ensure!(left.iter().all(|line| line.contains("KUBE-ROUTER-INPUT")) && left.len() == 2, "{kind:?} {left:?}");
    }
    Ok(())
}
