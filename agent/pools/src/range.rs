//! Ranges of addresses: a CIDR or `FIRST-LAST`, never written out.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_model::Family;
use ipnet::IpNet;

/// Addresses of one family, first and last included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

impl Range {
    /// Reads a CIDR (bits beyond its length do not count) or `FIRST-LAST`. The error says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((first, last)) = text.split_once('-') else {
            let prefix: IpNet = text.parse().map_err(|_| "must be a CIDR or a range FIRST-LAST".to_owned())?;
            let prefix = prefix.trunc();
            if mapped(prefix.addr()) {
                return Err("must not be an IPv4-mapped IPv6 prefix".to_owned());
            }
            return Ok(Self { first: prefix.network(), last: prefix.broadcast() });
        };
        let address = |text: &str| {
            let text = text.trim();
            text.parse::<IpAddr>().map(|address| address.to_canonical()).map_err(|_| format!("{text:?} is no address"))
        };
        let (first, last) = (address(first)?, address(last)?);
        if Family::of(first) != Family::of(last) {
            return Err(format!("{first} and {last} are of two families"));
        }
        if first > last {
            return Err(format!("the first address {first} is after the last {last}"));
        }
        Ok(Self { first, last })
    }

    /// The first address.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address.
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(self.first)
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family() && (self.first..=self.last).contains(&address)
    }

    /// How many addresses it has; `u128::MAX` for all of IPv6.
    pub fn size(&self) -> u128 {
        (number(self.last) - number(self.first)).saturating_add(1)
    }

    /// Length of the widest prefix inside it. Prefixes are those that make up the range, each as wide as it can be.
    pub fn widest_prefix(&self) -> u8 {
        let bits: u32 = if self.family() == Family::V4 { 32 } else { 128 };
        let (mut at, last) = (number(self.first), number(self.last));
        let mut widest = bits;
        loop {
            // As wide as its alignment and what is left allow.
            let aligned = at.trailing_zeros().min(bits);
            let left = (last - at).saturating_add(1).ilog2();
            let free = if last - at == u128::MAX { bits } else { aligned.min(left) };
            widest = widest.min(bits - free);
            let Some(next) = 1_u128.checked_shl(free).and_then(|size| at.checked_add(size)) else { break };
            if next > last {
                break;
            }
            at = next;
        }
        widest as u8
    }

    /// How many of its addresses old devices may refuse: see [`is_buggy`].
    pub fn buggy(&self) -> u128 {
        if self.family() == Family::V6 {
            return 0;
        }
        let (first, last) = (number(self.first), number(self.last));
        // How many numbers up to `n` end in `octet`.
        let up_to = |n: u128, octet: u128| if n < octet { 0 } else { (n - octet) / 256 + 1 };
        let within = |octet| up_to(last, octet) - if first == 0 { 0 } else { up_to(first - 1, octet) };
        within(0) + within(255)
    }
}

/// As it would be written: a CIDR where it is one.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = IpNet::new(self.first, self.widest_prefix());
        match prefix {
            Ok(prefix) if prefix.network() == self.first && prefix.broadcast() == self.last => write!(f, "{prefix}"),
            _ => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// Whether an IPv4 address ends in .0 or .255. Old devices take those for network and broadcast addresses, whatever the prefix.
pub fn is_buggy(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if matches!(v4.octets()[3], 0 | 255))
}

/// An address as a number within its family.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// The address of a number.
pub(crate) fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(number as u32).into(),
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

fn mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_range() {
        for (text, want) in [
            ("192.0.2.0/24", Ok("192.0.2.0/24 256 24")),
            ("192.0.2.77/24", Ok("192.0.2.0/24 256 24")),
            ("192.0.2.7-192.0.2.7", Ok("192.0.2.7/32 1 32")),
            (" 192.0.2.1 - 192.0.2.6 ", Ok("192.0.2.1-192.0.2.6 6 31")),
            ("192.0.2.0-192.0.2.255", Ok("192.0.2.0/24 256 24")),
            ("0.0.0.0/0", Ok("0.0.0.0/0 4294967296 0")),
            ("2001:db8::/64", Ok("2001:db8::/64 18446744073709551616 64")),
            ("::/0", Ok("::/0 340282366920938463463374607431768211455 0")),
            ("2001:db8::ff-2001:db8::100", Ok("2001:db8::ff-2001:db8::100 2 128")),
            ("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Ok("::/0 340282366920938463463374607431768211455 0")),
            ("192.0.2.9-192.0.2.8", Err("the first address 192.0.2.9 is after the last 192.0.2.8")),
            ("192.0.2.9-2001:db8::1", Err("192.0.2.9 and 2001:db8::1 are of two families")),
            ("192.0.2.9-", Err("\"\" is no address")),
            ("192.0.2.9", Err("must be a CIDR or a range FIRST-LAST")),
            ("192.0.2.0/33", Err("must be a CIDR or a range FIRST-LAST")),
            ("::ffff:192.0.2.0/120", Err("must not be an IPv4-mapped IPv6 prefix")),
            ("", Err("must be a CIDR or a range FIRST-LAST")),
        ] {
            let got = Range::parse(text).map(|range| format!("{range} {} {}", range.size(), range.widest_prefix()));
            assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn addresses_that_old_devices_refuse() {
        for (text, want) in [
            ("192.0.2.0/24", 2),
            ("192.0.2.0/25", 1),
            ("192.0.2.1-192.0.2.254", 0),
            ("192.0.2.255-192.0.3.0", 2),
            ("10.0.0.0/8", 131_072),
            ("0.0.0.0/0", 33_554_432),
            ("2001:db8::/120", 0),
        ] {
            assert_eq!(Range::parse(text).unwrap().buggy(), want, "{text}");
        }
    }
}
