//! Tables of what clients see: who asks what, who answers, and whom the server sees.
//!
//! A row reads `FROM FRONTEND OUTCOME...`:
//! - FROM is a place: `client`, `client2` (the client's second address), `n1`, `n2`, or a pod.
//! - FRONTEND is `cluster`, `external`, `lb`, `nodeport@n1` or `nodeport@n2`; `cluster:81` asks for another port.
//! - OUTCOME is `refused`, `silence`, or the complete list of those who answer: `a:client c:n1` says that a and c do,
//!   and that a sees the client's address and c an address of n1; `c:p/n1` that c sees the one or the other.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use socket2::{Domain, Socket, Type};

use crate::place::{Family, Place};
use crate::topology::{Lab, cluster_ip, external_ip};
use crate::traffic::{Ask, Outcome, Protocol};

/// The Service port that rows ask for, unless they name another.
pub const PORT: u16 = 80;
/// The port that servers listen on.
pub const TARGET: u16 = 8080;
/// How often a frontend is asked until everybody answered who should; with three equal backends, one is missed
/// once in 10^14 rows.
const TRIES: usize = 80;
/// Silence is believed after this time.
const SILENCE: Duration = Duration::from_millis(400);

/// The node port of the Service with a number.
pub fn node_port(n: u8) -> u16 {
    30_000 + u16::from(n)
}

/// How a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    protocol: Protocol,
    connected: bool,
    mapped: bool,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.protocol)?;
        f.write_str(if self.connected { "" } else { " unconnected" })?;
        f.write_str(if self.mapped { " mapped" } else { "" })
    }
}

/// All ways to ask over a family, as far as this kernel has them.
pub fn ways(family: Family) -> Vec<Way> {
    let mut ways = Vec::new();
    for mapped in [false, true] {
        if mapped && family == Family::V6 {
            continue;
        }
        ways.push(Way { protocol: Protocol::Tcp, connected: true, mapped });
        ways.push(Way { protocol: Protocol::Udp, connected: true, mapped });
        ways.push(Way { protocol: Protocol::Udp, connected: false, mapped });
    }
    if has_sctp() {
        ways.push(Way { protocol: Protocol::Sctp, connected: true, mapped: false });
    }
    ways
}

/// Whether the kernel has SCTP sockets.
pub fn has_sctp() -> bool {
    Socket::new(Domain::IPV4, Type::STREAM, Some(socket2::Protocol::SCTP)).is_ok()
}

/// The protocols that servers and Services of the tables speak.
pub fn protocols() -> Vec<Protocol> {
    let mut protocols = vec![Protocol::Tcp, Protocol::Udp];
    protocols.extend(has_sctp().then_some(Protocol::Sctp));
    protocols
}

/// One row of a table.
#[derive(Clone, Debug)]
struct Row<'a> {
    text: &'a str,
    from: &'a str,
    frontend: &'a str,
    outcome: Expected<'a>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected<'a> {
    Refused,
    Silence,
    /// Servers, and the places whose address each may see.
    Answers(Vec<(&'a str, Vec<&'a str>)>),
}

impl<'a> Row<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let words: Vec<_> = text.split_whitespace().collect();
        let [from, frontend, outcome @ ..] = words.as_slice() else { bail!("{text}: too short") };
        let outcome = match outcome {
            [] => bail!("{text}: no outcome"),
            ["refused"] => Expected::Refused,
            ["silence"] => Expected::Silence,
            answers => Expected::Answers(answers.iter().map(|word| server(word)).collect::<Result<_>>()?),
        };
        Ok(Self { text, from, frontend, outcome })
    }
}

impl Row<'_> {
    /// Whether a host asks for a frontend of its own node. Only its socket can be translated then, and the kernel
    /// offers no hook in `connect` of SCTP: that is not served.
    fn translated_at_the_socket(&self) -> bool {
        matches!(self.from, "n1" | "n2") && self.frontend.strip_prefix("nodeport@").is_none_or(|node| node == self.from)
    }
}

fn server(word: &str) -> Result<(&str, Vec<&str>)> {
    let (server, seen) = word.split_once(':').with_context(|| format!("{word}: not SERVER:SEEN"))?;
    Ok((server, seen.split('/').collect()))
}

/// Checks every row of a Service's table, in both families and all ways. `n` is the Service's number (its ClusterIPs,
/// external addresses and node port; its LoadBalancer addresses are the external ones of `100 + n`).
///
/// The error lists every row that did not hold.
pub fn check(lab: &Lab, places: &[&Place], n: u8, table: &str) -> Result<()> {
    let mut failures = Vec::new();
    for line in table.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let row = &Row::parse(line)?;
        let ways = Family::BOTH.into_iter().flat_map(|family| ways(family).into_iter().map(move |way| (family, way)));
        let ways = ways.filter(|(_, way)| way.protocol != Protocol::Sctp || !row.translated_at_the_socket());
        // All ways at once: silence takes its time.
        std::thread::scope(|scope| {
            let check = |(family, way)| scope.spawn(move || (family, way, check_row(lab, places, n, row, family, way)));
            for thread in ways.map(check).collect::<Vec<_>>() {
                let (family, way, result) = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                if let Err(error) = result {
                    failures.push(format!("{}   [{family:?} {way}]: {error:#}", row.text));
                }
            }
        });
    }
    if failures.is_empty() { Ok(()) } else { Err(anyhow!("{}", failures.join("\n"))) }
}

fn check_row(lab: &Lab, places: &[&Place], n: u8, row: &Row<'_>, family: Family, way: Way) -> Result<()> {
    let (from, source) = asker(lab, places, row.from, family)?;
    let mut ask = Ask::new(way.protocol, address(lab, n, row.frontend, family)?);
    if let Some(source) = source {
        ask = ask.from((source, 0));
    }
    if !way.connected {
        ask = ask.unconnected();
    }
    if way.mapped {
        ask = ask.mapped();
    }
    match &row.outcome {
        // Nobody tells an unconnected UDP socket of an ICMP error unless it asks.
        Expected::Refused if !way.connected => Ok(()),
        // Linux notes ICMP port unreachable for an SCTP association and goes on trying.
        Expected::Refused if way.protocol == Protocol::Sctp => match from.ask(&ask.patience(SILENCE))? {
            Outcome::Refused | Outcome::Silence => Ok(()),
            outcome => bail!("{outcome}"),
        },
        Expected::Refused => same(&from.ask(&ask)?, &Outcome::Refused),
        Expected::Silence => same(&from.ask(&ask.patience(SILENCE))?, &Outcome::Silence),
        Expected::Answers(servers) => check_answers(lab, places, &from, &ask, servers),
    }
}

fn same(have: &Outcome, want: &Outcome) -> Result<()> {
    if have == want { Ok(()) } else { bail!("{have}") }
}

fn check_answers(lab: &Lab, places: &[&Place], from: &Place, ask: &Ask, servers: &[(&str, Vec<&str>)]) -> Result<()> {
    let mut missing: BTreeSet<_> = servers.iter().map(|(server, _)| *server).collect();
    for _ in 0..TRIES {
        let outcome = from.ask(ask)?;
        let Some(answer) = outcome.answer() else { bail!("{outcome}") };
        let Some((server, seen)) = servers.iter().find(|(server, _)| *server == answer.server) else {
            bail!("{outcome}");
        };
        let mut known = false;
        for place in seen {
            known |= belongs(lab, places, place, answer.peer.ip())?;
        }
        if !known {
            bail!("{outcome}");
        }
        missing.remove(server);
        if missing.is_empty() {
            return Ok(());
        }
    }
    bail!("{missing:?} never answered")
}

/// The place that asks, and the address it binds to if not its first one.
fn asker(lab: &Lab, places: &[&Place], name: &str, family: Family) -> Result<(Place, Option<IpAddr>)> {
    if name == "client2" {
        let (v4, v6) = Lab::CLIENT_2;
        let source = if family == Family::V4 { IpAddr::V4(v4) } else { IpAddr::V6(v6) };
        return Ok((lab.client.clone(), Some(source)));
    }
    Ok((find(lab, places, name)?.clone(), None))
}

fn find<'a>(lab: &'a Lab, places: &[&'a Place], name: &str) -> Result<&'a Place> {
    let fixed = [&lab.client, &lab.nodes[0].host, &lab.nodes[1].host];
    fixed
        .into_iter()
        .chain(places.iter().copied())
        .find(|p| p.name() == name)
        .with_context(|| format!("no place {name}"))
}

/// Whether an address is one of a place's own. A node has a gateway address towards its pods, and one on its overlay.
fn belongs(lab: &Lab, places: &[&Place], name: &str, address: IpAddr) -> Result<bool> {
    if name == "client2" {
        let (v4, v6) = Lab::CLIENT_2;
        return Ok(address == v4 || address == v6);
    }
    let others = lab.nodes.iter().find(|node| node.name() == name).map(|node| {
        let n = node.number;
        let [gateway, overlay] = [
            Ipv6Addr::new(0xfd00, 0x244, n.into(), 0, 0, 0, 0, 1),
            Ipv6Addr::new(0xfd00, 0x250, 0, 0, 0, 0, 0, n.into()),
        ];
        [Ipv4Addr::new(10, 244, n, 1).into(), gateway.into(), Ipv4Addr::new(10, 250, 0, n).into(), overlay.into()]
    });
    Ok(find(lab, places, name)?.is(address) || others.is_some_and(|others| others.contains(&address)))
}

/// The address that a frontend's name stands for.
fn address(lab: &Lab, n: u8, frontend: &str, family: Family) -> Result<SocketAddr> {
    let (kind, port) = match frontend.split_once(':') {
        Some((kind, port)) => (kind, Some(port.parse()?)),
        None => (frontend, None),
    };
    let (ip, default) = match kind {
        "cluster" => (cluster_ip(family, n), PORT),
        "external" => (external_ip(family, n), PORT),
        "lb" => (external_ip(family, 100 + n), PORT),
        _ => {
            let node = kind.strip_prefix("nodeport@").with_context(|| format!("{kind}: no such frontend"))?;
            (find(lab, &[], node)?.ip(family), node_port(n))
        }
    };
    Ok((ip, port.unwrap_or(default)).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read() {
        let row = Row::parse("client nodeport@n1  a:client c:n1/n2").unwrap();
        assert_eq!((row.from, row.frontend), ("client", "nodeport@n1"));
        assert_eq!(row.outcome, Expected::Answers(vec![("a", vec!["client"]), ("c", vec!["n1", "n2"])]));
        assert_eq!(Row::parse("p cluster:81 refused").unwrap().outcome, Expected::Refused);
        for wrong in ["", "p", "p cluster", "p cluster a"] {
            assert!(Row::parse(wrong).is_err(), "{wrong}");
        }
    }
}
