//! Addresses and prefixes as Kubernetes writes them, and which of them are fit for what.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, in order.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    pub(crate) fn of_prefix(prefix: &IpNet) -> Self {
        Self::of(prefix.addr())
    }

    /// From `spec.ipFamilies` or a slice's `addressType`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "IPv4" => Some(Self::V4),
            "IPv6" => Some(Self::V6),
            _ => None,
        }
    }
}

/// Parses an address. An IPv4-mapped one is the IPv4 address, and leading zeros in IPv4 are decimal: objects stored by
/// old API servers may hold them, and Kubernetes reads them so (`ParseIPSloppy`).
pub fn parse(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 32 || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// Parses a prefix, host bits cleared; white space around it is ignored, as in kube-proxy.
pub(crate) fn parse_prefix(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let written_as_v6 = address.contains(':');
    let (address, length) = (parse(address)?, length.parse::<u8>().ok()?);
    let length = if written_as_v6 && address.is_ipv4() { length.checked_sub(96)? } else { length };
    Some(IpNet::new(address, length).ok()?.trunc())
}

/// Why an address cannot be a frontend's, if so: it is no unicast address that packets from elsewhere can have.
pub(crate) fn unfit_for_frontend(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        _ => unfit(address),
    }
}

/// Why an address cannot be an endpoint's, if so. Kubernetes' validation refuses most of these; endpoints that point to
/// them reach what their author has no right to (CVE-2021-25740 and its kin).
pub(crate) fn unfit_for_endpoint(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if link_local { Some("a link-local address") } else { unfit(address) }
}

fn unfit(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() || matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 0) {
        return Some("an unspecified address");
    }
    if address.is_loopback() {
        return Some("a loopback address");
    }
    if address.is_multicast() {
        return Some("a multicast address");
    }
    matches!(address, IpAddr::V4(Ipv4Addr::BROADCAST)).then_some("the broadcast address")
}

/// The prefix that holds one address.
pub(crate) fn host_prefix(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

/// The greatest address, for ranges over ordered maps that start with an address.
pub(crate) const LAST: IpAddr = IpAddr::V6(Ipv6Addr::from_bits(u128::MAX));

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses() {
        let cases = [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.0.08", Some("10.0.0.8")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("2001:DB8::1", Some("2001:db8::1")),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.256", None),
            ("10.0.0.+1", None),
            ("fe80::1%eth0", None),
            ("", None),
            ("...", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse(text), want.map(ip), "{text}");
        }
    }

    #[test]
    fn prefixes() {
        let cases = [
            (" 10.1.2.3/8\t", Some("10.0.0.0/8")),
            ("2001:db8::1/32", Some("2001:db8::/32")),
            ("::ffff:10.1.2.3/104", Some("10.0.0.0/8")),
            ("::ffff:10.1.2.3/8", None),
            ("10.0.0.0", None),
            ("10.0.0.0/33", None),
            ("10.0.0.0/+8", None),
            ("/8", None),
        ];
        for (text, want) in cases {
            assert_eq!(parse_prefix(text), want.map(|want| want.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn fitness() {
        for text in
            ["0.0.0.0", "0.1.2.3", "127.0.0.9", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1", "fe80::1"]
        {
            assert!(unfit_for_frontend(ip(text)).is_some(), "{text}");
            assert!(unfit_for_endpoint(ip(text)).is_some(), "{text}");
        }
        assert!(unfit_for_endpoint(ip("169.254.169.254")).is_some());
        assert!(unfit_for_frontend(ip("169.254.20.10")).is_none());
        assert!(unfit_for_endpoint(ip("10.0.0.1")).is_none());
        assert!(unfit_for_endpoint(ip("2001:db8::1")).is_none());
    }
}
