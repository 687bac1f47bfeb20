//! The nodes' network as the hosts on it see it: its addresses, and who answers for them.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::place::{Family, Place};
use crate::shell;
use crate::topology::digits;

/// The address of a number on the nodes' network: `198.51.100.N` and `2001:db8:2::N`.
pub fn near(family: Family, n: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([198, 51, 100, n]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 2, 0, 0, 0, 0, digits(n)]),
    }
}

/// The addresses of the numbers from one to another, as a pool has them.
pub fn ranges(first: u8, last: u8) -> [String; 2] {
    Family::BOTH.map(|family| format!("{}-{}", near(family, first), near(family, last)))
}

/// Manifests of a pool, announced on the links that are named, or all.
pub fn pool(ranges: &[String], interfaces: &[&str]) -> String {
    let object = |kind: &str, spec: Value| {
        let metadata = json!({"name": "main", "namespace": "metallb-system"});
        json!({"apiVersion": "metallb.io/v1beta1", "kind": kind, "metadata": metadata, "spec": spec}).to_string()
    };
    let pool = object("IPAddressPool", json!({"addresses": ranges}));
    format!("{pool}\n---\n{}\n", object("L2Advertisement", json!({"interfaces": interfaces})))
}

/// One echo request is answered within a second.
pub fn pings(place: &Place, to: IpAddr) -> Result<bool> {
    let line = format!("ping -n -c 1 -W 1 {to}");
    let output = place.run(|| Ok(shell::split(&line).output()?)).with_context(|| line.clone())?;
    Ok(output.status.success())
}

/// The link address of a device.
pub fn mac(place: &Place, device: &str) -> Result<String> {
    let links: Value = serde_json::from_str(&place.sh(&format!("ip -j link show dev {device}"))?)?;
    let mac = links.get(0).and_then(|link| link["address"].as_str());
    Ok(mac.context("no link address")?.to_owned())
}

/// The link address that a place has for an address.
pub fn neighbor(place: &Place, device: &str, address: IpAddr) -> Result<Option<String>> {
    let family = if address.is_ipv4() { 4 } else { 6 };
    let neighbors: Value =
        serde_json::from_str(&place.sh(&format!("ip -{family} -j neigh show {address} dev {device}"))?)?;
    Ok(neighbors.get(0).and_then(|neighbor| neighbor["lladdr"].as_str()).map(str::to_owned))
}

/// Who answers to ARP for an address: the link addresses, one for each reply to two requests.
pub fn arping(place: &Place, device: &str, to: IpAddr) -> Result<Vec<String>> {
    let line = format!("arping -b -c 2 -w 3 -I {device} {to}");
    let said = place.run(|| Ok(shell::split(&line).output()?)).with_context(|| line.clone())?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let replies = said.lines().filter(|line| line.contains("reply from"));
    let mac = |line: &str| Some(line.split_once('[')?.1.split_once(']')?.0.to_lowercase());
    Ok(replies.filter_map(mac).collect())
}
