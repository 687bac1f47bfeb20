//! kube-proxy and what it leaves: its rules as files, others' rules beside them, the program itself ([`program`]), and what
//! the kernel holds, as text that can be compared.

pub mod program;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::place::Place;
use crate::scope::Scope;
use crate::shell;

/// The programs of both families.
pub const FAMILIES: [&str; 2] = ["iptables", "ip6tables"];

/// Where iptables keeps its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iptables {
    /// In its own tables.
    Legacy,
    /// In nftables.
    Nft,
}

impl Iptables {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Legacy, Self::Nft];

    /// The name of one of its programs: `iptables-legacy-restore` for `("iptables", "-restore")`.
    pub fn program(self, family: &str, what: &str) -> String {
        let kind = if self == Self::Legacy { "legacy" } else { "nft" };
        format!("{family}-{kind}{what}")
    }

    /// Restores rules beside those that are there.
    pub fn restore(self, host: &Place, family: &str, rules: &str) -> Result<()> {
        let program = self.program(family, "-restore");
        // Counters are restored as well.
        let mut command = shell::split(&format!("{program} -w -c --noflush"));
        host.run(|| shell::feed(&mut command, rules)).map(drop)
    }

    /// All rules with their counters.
    pub fn save(self, host: &Place) -> Result<String> {
        let mut text = String::new();
        for family in FAMILIES {
            let saved = host.sh(&format!("{} -c", self.program(family, "-save")))?;
            text.extend(saved.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]));
        }
        Ok(text)
    }
}

/// One of the files in `tests/fixtures/kube-proxy`.
pub fn fixture(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kube-proxy").join(name);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// All that the kernel holds where kube-proxy works: iptables of both kinds, nftables, sets, links.
pub fn everything(host: &Place) -> Result<String> {
    let mut text = String::new();
    for kind in Iptables::BOTH {
        text += &kind.save(host)?;
    }
    // What iptables keeps there is in the text already, and in a form that does not depend on the age of the program.
    for table in host.sh("nft list tables")?.lines().filter(|table| !kept_by_iptables(table)) {
        text += &host.sh(&format!("nft -s list {table}"))?;
    }
    Ok(text)
}

fn kept_by_iptables(table: &str) -> bool {
    let mut words = table.split_whitespace().skip(1);
    let (family, name) = (words.next(), words.next());
    matches!(family, Some("ip" | "ip6")) && matches!(name, Some("nat" | "filter" | "mangle" | "raw" | "security"))
}

/// Runs `culvert cleanup --kube-proxy -o json` with more arguments; its exit code, its answer, and what it says besides.
pub fn cleanup(host: &Place, arguments: &[&str]) -> Result<(i32, Option<Value>, String)> {
    let mut command = Command::new(crate::agent::binary()?);
    command.args(["cleanup", "--kube-proxy", "-o", "json"]).args(arguments);
    let Output { status, stdout, stderr } = host.run(|| Ok(command.output()?))?;
    let code = status.code().context("killed")?;
    Ok((code, serde_json::from_slice(&stdout).ok(), String::from_utf8_lossy(&stderr).into_owned()))
}

/// A host without anything.
pub fn host(scope: &Scope, name: &str) -> Result<Place> {
    let host = Place::new(
        name,
        scope.netns(name)?,
        &scope.cgroup(name)?,
        &scope.directory(name)?,
        "192.0.2.11".parse()?,
        "fd00:11::11".parse()?,
    );
    // No link that could carry a packet: counters stand still.
    host.ip_batch("link set lo up\n")?;
    Ok(host)
}

/// A link, for whoever wants an address that is not of loopback.
pub fn link(host: &Place) -> Result<()> {
    host.ip_batch(
        "link add eth0 type veth peer name peer0\nlink set eth0 up\nlink set peer0 up\n\
         addr add 192.0.2.11/24 dev eth0\naddr add fd00:11::11/64 dev eth0 nodad\n\
         route add default via 192.0.2.1\n",
    )
}

/// Rules of others: the kubelet's, kube-router's, a portmap's, an administrator's, some of whose names begin as kube-proxy's do.
/// None stops what a host says to itself.
pub const OTHERS: &str = "\
*mangle
:PREROUTING ACCEPT [7:700]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:INPUT ACCEPT [11:1100]
:FORWARD DROP [12:1200]
:OUTPUT ACCEPT [13:1300]
:KUBE-FIREWALL - [0:0]
:KUBE-ROUTER-INPUT - [0:0]
:KUBE-POD-FW-ABCDEFGHIJKLMNOP - [0:0]
:KUBE-SVC-ABCDEFGHIJKLMNOP - [0:0]
[1:10] -A INPUT -j KUBE-FIREWALL
[2:20] -A INPUT -m comment --comment \"kube-router netpol\" -j KUBE-ROUTER-INPUT
[3:30] -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
[4:40] -A OUTPUT -j KUBE-FIREWALL
[5:50] -A KUBE-FIREWALL -p tcp -m tcp --dport 9 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
[6:60] -A KUBE-ROUTER-INPUT -p tcp -m tcp --dport 9 -j KUBE-POD-FW-ABCDEFGHIJKLMNOP
[7:70] -A KUBE-POD-FW-ABCDEFGHIJKLMNOP
[8:80] -A KUBE-POD-FW-ABCDEFGHIJKLMNOP -m limit --limit 5/min -j LOG
[81:810] -A KUBE-POD-FW-ABCDEFGHIJKLMNOP -m recent --rcheck --seconds 60 --name mine --mask MASK --rsource -j RETURN
[82:820] -A KUBE-POD-FW-ABCDEFGHIJKLMNOP -m statistic --mode nth --every 3 --packet 0 -j RETURN
[83:830] -A KUBE-POD-FW-ABCDEFGHIJKLMNOP -j REJECT
COMMIT
*nat
:PREROUTING ACCEPT [21:2100]
:INPUT ACCEPT [22:2200]
:OUTPUT ACCEPT [23:2300]
:POSTROUTING ACCEPT [24:2400]
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-SVC-MINE - [0:0]
[9:90] -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
[10:100] -A POSTROUTING -o eth0 -m mark --mark 0x80/0x80 -j MASQUERADE --random-fully
[11:110] -A CNI-HOSTPORT-DNAT -p tcp -m multiport --dports 8080 -j KUBE-SVC-MINE
[12:120] -A KUBE-SVC-MINE -p tcp -j RETURN
COMMIT
";

/// What they add later. It touches all tables that kube-proxy does: iptables' own restoring resets counters of policies.
pub const LATER: &str = "\
*mangle
:LATER - [0:0]
COMMIT
*filter
:LATER - [0:0]
[31:310] -A INPUT -p tcp -m tcp --dport 22 -g LATER
[32:320] -A LATER -p tcp -j LOG --log-prefix \"later: \"
[33:330] -A LATER
COMMIT
*nat
[34:340] -A POSTROUTING -p udp -m udp --dport 53 -j ACCEPT
COMMIT
";

/// Restores rules of others, of both families, in both kinds of iptables.
pub fn others(host: &Place, rules: &str) -> Result<()> {
    let masks = ["255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];
    for kind in Iptables::BOTH {
        for (family, mask) in FAMILIES.into_iter().zip(masks) {
            kind.restore(host, family, &rules.replace("MASK", mask))?;
        }
    }
    Ok(())
}

/// A table of nftables that is nobody's business.
pub fn foreign_table(host: &Place) -> Result<()> {
    nft(
        host,
        "table inet kube-proxy-not {\n map m {\n type inet_service : verdict;\n }\n\
         chain c {\n type filter hook input priority 0;\n counter packets 5 bytes 50\n tcp dport vmap @m\n }\n }\n\
         table bridge kube-proxy {\n chain c {\n }\n }\n",
    )
}

/// Feeds rules to nftables.
pub fn nft(host: &Place, rules: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]);
    host.run(|| shell::feed(&mut command, rules)).map(drop)
}

/// Fails with the first lines that differ.
pub fn similar(expected: &str, found: &str) -> Result<()> {
    for (number, (expected, found)) in expected.lines().zip(found.lines()).enumerate() {
        ensure!(expected == found, "line {number}:\nexpected {expected}\nfound    {found}");
    }
    ensure!(expected == found, "expected\n{expected}\nfound\n{found}");
    Ok(())
}

/// Without the chain that kube-proxy makes for the kubelet and leaves to it, and without counters: there is traffic.
pub fn bare(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.contains("KUBE-FIREWALL")).map(|line| {
        let rule = line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).map(|(_, rule)| rule);
        let chain = line.strip_prefix(':').and_then(|rest| rest.split_once(" [")).map(|(chain, _)| chain);
        rule.or(chain).unwrap_or(line)
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}
