//! Rules of BGP peers and BFD profiles.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::Violations;
use crate::objects::{BfdProfile, BgpPeer};
use crate::selector::Selector;

const ASN_MAX: i64 = u32::MAX as i64;

/// Checks a peer.
pub(super) fn peer(object: &BgpPeer, found: &mut Violations) {
    let spec = &object.spec;
    asns(object, found);
    match (spec.peer_address.as_str(), spec.interface.as_str()) {
        ("", "") => found.required("spec.peerAddress", "a peer has an address or an interface"),
        ("", _) => {}
        (text, interface) => {
            if !interface.is_empty() {
                found.forbidden("spec.interface", "may not be set together with `peerAddress`");
            }
            address(found, "spec.peerAddress", text);
        }
    }
    if !spec.source_address.is_empty() {
        address(found, "spec.sourceAddress", &spec.source_address);
    }
    if !spec.router_id.is_empty() && spec.router_id.parse::<Ipv4Addr>().is_err() {
        found.invalid("spec.routerID", &spec.router_id, "must be an IPv4 address");
    }
    // v1beta1 writes 0 for the default.
    let low = i64::from(object.api_version != "metallb.io/v1beta1");
    found.within("spec.peerPort", spec.peer_port, low, 16_384);
    timers(object, found);
    if !spec.password.is_empty() && !spec.password_secret.name.is_empty() {
        found.forbidden("spec.passwordSecret", "may not be set together with `password`");
    }
    let of_secret = spec.password_secret.namespace.as_str();
    if !of_secret.is_empty() && of_secret != object.metadata.namespace {
        found.invalid("spec.passwordSecret.namespace", of_secret, "must be the peer's own namespace");
    }
    Selector::list(&spec.node_selectors, "spec.nodeSelectors", found);
}

fn asns(object: &BgpPeer, found: &mut Violations) {
    let spec = &object.spec;
    match spec.my_asn {
        0 => found.required("spec.myASN", "AS number 0 is reserved"),
        asn => drop(found.within("spec.myASN", Some(asn), 1, ASN_MAX)),
    }
    found.within("spec.peerASN", Some(spec.peer_asn), 0, ASN_MAX);
    found.within("spec.localASN", spec.local_asn, 1, ASN_MAX);
    match (spec.peer_asn, spec.dynamic_asn.as_str()) {
        (0, "") => found.required("spec.peerASN", "a peer has `peerASN` or `dynamicASN`"),
        (0, word) => found.one_of("spec.dynamicASN", word, &["external", "internal"]),
        (_, "") => {}
        (..) => found.forbidden("spec.dynamicASN", "may not be set together with `peerASN`"),
    }
    if spec.ebgp_multi_hop && spec.peer_asn == spec.my_asn {
        found.forbidden("spec.ebgpMultiHop", "may not be set for a peer of our own AS");
    }
}

fn timers(object: &BgpPeer, found: &mut Violations) {
    let spec = &object.spec;
    let mut read = |field: &str, text: &Option<String>| {
        let text = text.as_ref()?;
        let parsed = duration(text);
        if parsed.is_none() {
            found.invalid(field, text, "must be a duration, such as 90s or 1m30s");
        }
        // v1beta1 writes 0s for the default; a hold time of zero is a value in v1beta2.
        parsed.filter(|time| !(time.is_zero() && object.api_version == "metallb.io/v1beta1"))
    };
    let hold = read("spec.holdTime", &spec.hold_time);
    let keepalive = read("spec.keepaliveTime", &spec.keepalive_time);
    let connect = read("spec.connectTime", &spec.connect_time);
    // The one that is missing follows the other.
    let (hold, keepalive) = match (hold, keepalive) {
        (Some(hold), None) => (hold, hold / 3),
        (None, Some(keepalive)) => (keepalive.saturating_mul(3), keepalive),
        (Some(hold), Some(keepalive)) => (hold, keepalive),
        (None, None) => (Duration::ZERO, Duration::ZERO),
    };
    if (1..3).contains(&hold.as_secs()) {
        let field = if spec.hold_time.is_some() { "spec.holdTime" } else { "spec.keepaliveTime" };
        found.add(field, format!("Invalid value: a hold time of {} s: must be 0 or at least 3 s", hold.as_secs()));
    }
    if keepalive > hold {
        found.add("spec.keepaliveTime", "Invalid value: must not be longer than `holdTime`".to_owned());
    }
    if let (Some(time), Some(text)) = (connect, &spec.connect_time)
        && (time.subsec_nanos() != 0 || !(1..=65_535).contains(&time.as_secs()))
    {
        found.invalid("spec.connectTime", text, "must be a whole number of seconds between 1 and 65535, inclusive");
    }
}

/// Checks a profile.
pub(super) fn bfd_profile(object: &BfdProfile, found: &mut Violations) {
    let spec = &object.spec;
    found.within("spec.receiveInterval", spec.receive_interval, 10, 60_000);
    found.within("spec.transmitInterval", spec.transmit_interval, 10, 60_000);
    found.within("spec.detectMultiplier", spec.detect_multiplier, 2, 255);
    found.within("spec.echoInterval", spec.echo_interval, 10, 60_000);
    found.within("spec.minimumTtl", spec.minimum_ttl, 1, 254);
}

fn address(found: &mut Violations, field: &str, text: &str) {
    if text.parse::<IpAddr>().is_err() {
        found.invalid(field, text, "must be an IP address");
    }
}

/// A duration as Go writes it (`time.ParseDuration`), without sign: numbers with units, added up.
pub fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 8] =
        [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("μs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut sum) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, factor) = UNITS.into_iter().find(|(name, _)| *name == &rest[..unit])?;
        sum = sum.checked_add(Duration::try_from_secs_f64(value * factor).ok()?)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, want) in [
            ("90s", Some(90_000)),
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
            ("250ms", Some(250)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("90", None),
            ("-1s", None),
            ("s", None),
            (".s", None),
            ("1y", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(duration(text), want.map(Duration::from_millis), "{text}");
        }
    }
}
