//! What a user says about a cluster.

use std::{fmt, str::FromStr};

use clap::{Args, ValueEnum};

/// What a cluster consists of.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Its name; clusters of different names exist side by side
    #[arg(long, default_value = "culvert")]
    pub name: Name,
    /// How many nodes; they are spread over three zones
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub nodes: u8,
    /// What makes Services work
    #[arg(long, value_enum, default_value_t = Proxy::Culvert)]
    pub proxy: Proxy,
    /// Address families of nodes, pods and Services
    #[arg(long, value_enum, default_value_t = Families::V4)]
    pub families: Families,
    /// How pods are connected
    #[arg(long, value_enum, default_value_t = Cni::Bridge)]
    pub cni: Cni,
    /// Whose sockets Culvert translates; packets serve the others
    #[arg(long, value_enum, default_value_t = Sockets::All)]
    pub sockets: Sockets,
    /// Have Culvert give Services of type LoadBalancer addresses of the nodes' network, and announce them
    #[arg(long)]
    pub loadbalancers: bool,
}

impl Options {
    /// What a user gets who says nothing but a name.
    pub const fn usual(name: Name) -> Self {
        Self {
            name,
            nodes: 6,
            proxy: Proxy::Culvert,
            families: Families::V4,
            cni: Cni::Bridge,
            sockets: Sockets::All,
            loadbalancers: false,
        }
    }
}

/// A cluster's name: a DNS label that leaves room in the names made from it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Name(String);

impl Name {
    const LONGEST: usize = 20;

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if text.is_empty() || text.len() > Self::LONGEST || !text.chars().all(good) {
            return Err(format!("up to {} lower-case letters and digits", Self::LONGEST));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Who translates Service addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Proxy {
    /// The project's agent, as a DaemonSet from `deploy/`
    Culvert,
    /// kube-proxy in mode nftables
    #[value(name = "kube-proxy:nftables")]
    Nftables,
    /// kube-proxy in mode iptables
    #[value(name = "kube-proxy:iptables")]
    Iptables,
    /// Nobody: Service addresses lead nowhere
    None,
}

impl Proxy {
    /// kube-proxy's name of its mode, if it is kube-proxy.
    pub fn kube_proxy_mode(self) -> Option<&'static str> {
        match self {
            Self::Nftables => Some("nftables"),
            Self::Iptables => Some("iptables"),
            Self::Culvert | Self::None => None,
        }
    }
}

/// Address families, the first one being the cluster's primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Families {
    /// IPv4 alone
    #[value(name = "4")]
    V4,
    /// IPv6 alone
    #[value(name = "6")]
    V6,
    /// Both, IPv4 first
    #[value(name = "46")]
    Dual,
}

/// What connects pods.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Cni {
    /// A bridge on each node, routes between them
    Bridge,
    /// A link for each pod, routes between nodes
    Ptp,
    /// flannel: a bridge on each node, VXLAN between them
    Flannel,
}

/// Culvert's socket mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Sockets {
    /// Of hosts and pods
    All,
    /// Of hosts; pods are served at their links
    Host,
}

macro_rules! display_as_on_the_command_line {
    ($($kind:ty),*) => {$(
        impl fmt::Display for $kind {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
            }
        }
    )*};
}
display_as_on_the_command_line!(Proxy, Families, Cni, Sockets);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_labels() {
        assert_eq!(Name::from_str("e2e6").unwrap().as_str(), "e2e6");
        for bad in ["", "a-b", "Upper", "../x", "abcdefghijklmnopqrstu"] {
            assert!(Name::from_str(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_usual_is_what_the_command_line_says() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let line: Line = clap::Parser::parse_from(["x"]);
        assert_eq!(line.options, Options::usual(Name("culvert".to_owned())));
    }

    #[test]
    fn values_read_as_they_are_typed() {
        assert_eq!(Proxy::Nftables.to_string(), "kube-proxy:nftables");
        assert_eq!(Families::Dual.to_string(), "46");
    }
}
