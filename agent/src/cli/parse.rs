//! Values of arguments.

use std::ops::RangeInclusive;

use culvert_api::plan::Protocol;
use culvert_dataplane::limits::Limits;
use culvert_model::NodePortAddresses;

use super::Source;

/// `kube` or `dir:PATH`.
pub fn source(text: &str) -> Result<Source, String> {
    match text.split_once(':') {
        None if text == "kube" => Ok(Source::Kube),
        Some(("dir", path)) if !path.is_empty() => Ok(Source::Dir(path.into())),
        _ => Err("sources are kube and dir:PATH".to_owned()),
    }
}

/// In any case of letters.
pub fn protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        _ => Err("protocols are tcp, udp and sctp".to_owned()),
    }
}

/// `NAME=COUNT`, of a limit that there is.
pub fn limit(text: &str) -> Result<(String, u32), String> {
    let (name, count) = text.split_once('=').ok_or("limits are of the form NAME=COUNT")?;
    let count = count.parse().ok().filter(|&count| count > 0).ok_or_else(|| format!("{count:?} is not a count"))?;
    match limit_field(&mut Limits::default(), name) {
        Some(_) => Ok((name.to_owned(), count)),
        None => Err(format!("no limit is called {name:?}; there are {}", LIMITS.join(", "))),
    }
}

/// Names of limits.
const LIMITS: [&str; 12] = [
    "services",
    "frontends",
    "backends",
    "tables",
    "slab-bytes",
    "ranges",
    "flows",
    "flows-new",
    "affinity",
    "datagrams",
    "fragments",
    "links",
];

/// The limit of a name.
pub fn limit_field<'a>(limits: &'a mut Limits, name: &str) -> Option<&'a mut u32> {
    // Every field must be here: a new one does not compile without its name.
    let Limits {
        services,
        frontends,
        backends,
        tables,
        slab_bytes,
        ranges,
        flows,
        flows_new,
        affinity,
        datagrams,
        fragments,
        links,
    } = limits;
    let fields = [
        services, frontends, backends, tables, slab_bytes, ranges, flows, flows_new, affinity, datagrams, fragments,
        links,
    ];
    LIMITS.iter().zip(fields).find(|(known, _)| **known == name).map(|(_, field)| field)
}

/// `primary`, or prefixes with commas between.
pub fn node_port_addresses(text: &str) -> Result<NodePortAddresses, String> {
    if text == "primary" {
        return Ok(NodePortAddresses::Primary);
    }
    let prefix = |part: &str| part.trim().parse().map_err(|_| format!("{part:?} is neither a prefix nor `primary`"));
    text.split(',').map(prefix).collect::<Result<_, _>>().map(NodePortAddresses::Prefixes)
}

/// `LOW-HIGH`, inclusive.
pub fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("{text:?} is not a range of ports such as 30000-32767");
    let (low, high) = text.split_once('-').ok_or_else(wrong)?;
    let port = |part: &str| part.trim().parse::<u16>().ok().filter(|&port| port > 0);
    let range = port(low).ok_or_else(wrong)?..=port(high).ok_or_else(wrong)?;
    if range.is_empty() { Err(wrong()) } else { Ok(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_prefixes() {
        assert_eq!(port_range("1-65535"), Ok(1..=65535));
        for wrong in ["", "80", "0-1", "2-1", "1-65536", "a-b"] {
            assert!(port_range(wrong).is_err(), "{wrong}");
        }
        assert_eq!(node_port_addresses("primary"), Ok(NodePortAddresses::Primary));
        let prefixes = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        assert_eq!(node_port_addresses("10.0.0.0/8, fd00::/8"), Ok(NodePortAddresses::Prefixes(prefixes)));
        assert!(node_port_addresses("10.0.0.0").is_err());
    }

    #[test]
    fn limits_have_their_names() {
        for (i, name) in LIMITS.iter().enumerate() {
            let mut limits = Limits::default();
            *limit_field(&mut limits, name).unwrap() = 7 + i as u32;
            let written = format!("{limits:?}");
            assert!(written.contains(&format!("{}: {}", name.replace('-', "_"), 7 + i)), "{name} in {written}");
        }
        assert!(limit("flows=1").is_ok() && limit("flows=0").is_err() && limit("flow=1").is_err());
    }
}
