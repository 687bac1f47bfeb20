//! The names that kube-proxy gives, as its own cleanup knows them (Kubernetes 1.36, `CleanupLeftovers` in `pkg/proxy/nftables`,
//! `pkg/proxy/iptables` and `pkg/proxy/ipvs`). Nothing else is touched: `KUBE-FIREWALL`, `KUBE-IPTABLES-HINT` and
//! `KUBE-KUBELET-CANARY` are the kubelet's, `KUBE-ROUTER-*` and `KUBE-POD-FW-*` kube-router's.

/// Its table of nftables, in the families ip and ip6 (inet before 1.29 had settled).
pub const NFT_TABLE: &str = "kube-proxy";
/// The link that carries the addresses of Services in the mode ipvs.
pub const LINK: &str = "kube-ipvs0";
/// Its counters (`pkg/proxy/metrics`).
pub const COUNTERS: [&str; 2] = ["ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"];
/// The chain by which source addresses are translated, for whoever marked a packet.
pub const POSTROUTING: &str = "KUBE-POSTROUTING";
/// The chain that marks packets whose source address is to be translated. Others jump there, too.
pub const MARK_MASQ: &str = "KUBE-MARK-MASQ";

/// A table of iptables that kube-proxy writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `nat`
    Nat,
    /// `filter`
    Filter,
    /// `mangle`
    Mangle,
}

const NAT: &[&str] = &[
    "KUBE-SERVICES",
    "KUBE-NODEPORTS",
    POSTROUTING,
    MARK_MASQ,
    "KUBE-PROXY-CANARY",
    // Mode ipvs.
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
];
const FILTER: &[&str] = &[
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-NODEPORTS",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    // Mode ipvs.
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
/// Chains of a Service or endpoint in `nat`: such a prefix and a hash of [`HASH`] characters of base 32.
const PREFIXES: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-"];
const HASH: usize = 16;

impl Table {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nat, Self::Filter, Self::Mangle];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Filter => "filter",
            Self::Mangle => "mangle",
        }
    }

    /// The table of a name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|table| table.name() == name)
    }

    /// Whether a chain of this table is kube-proxy's.
    pub fn owns(self, chain: &str) -> bool {
        match self {
            Self::Nat => NAT.contains(&chain) || PREFIXES.iter().any(|prefix| hashed(chain, prefix)),
            Self::Filter => FILTER.contains(&chain),
            Self::Mangle => chain == "KUBE-PROXY-CANARY",
        }
    }
}

/// Upstream takes the prefix alone; that all its names go on with a hash keeps ours to its own.
fn hashed(chain: &str, prefix: &str) -> bool {
    chain.strip_prefix(prefix).is_some_and(|hash| {
        hash.len() == HASH && hash.bytes().all(|byte| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte))
    })
}

/// Its sets of node ports, and the protocol of each (`IPPROTO_*`).
pub const NODE_PORT_SETS: [(&str, u8); 3] =
    [("KUBE-NODE-PORT-TCP", 6), ("KUBE-NODE-PORT-UDP", 17), ("KUBE-NODE-PORT-SCTP-HASH", 132)];
const SETS: [&str; 17] = [
    "KUBE-LOOP-BACK",
    "KUBE-CLUSTER-IP",
    "KUBE-EXTERNAL-IP",
    "KUBE-EXTERNAL-IP-LOCAL",
    "KUBE-LOAD-BALANCER",
    "KUBE-LOAD-BALANCER-LOCAL",
    "KUBE-LOAD-BALANCER-FW",
    "KUBE-LOAD-BALANCER-SOURCE-IP",
    "KUBE-LOAD-BALANCER-SOURCE-CIDR",
    "KUBE-NODE-PORT-TCP",
    "KUBE-NODE-PORT-LOCAL-TCP",
    "KUBE-NODE-PORT-UDP",
    "KUBE-NODE-PORT-LOCAL-UDP",
    "KUBE-NODE-PORT-SCTP-HASH",
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
    "KUBE-HEALTH-CHECK-NODE-PORT",
    "KUBE-IPVS-IPS",
];
/// Characters that the name of a set can have.
const SET_NAME: usize = 31;

/// Whether a set is kube-proxy's.
pub fn owns_set(name: &str) -> bool {
    SETS.iter().any(|set| name == *set || name == set_v6(set))
}

/// The name of a set's sibling for IPv6 (`NewIPSet` in `pkg/proxy/ipvs/ipset.go`).
pub fn set_v6(name: &str) -> String {
    name.replacen("KUBE-", "KUBE-6-", 1).chars().take(SET_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_others_are_not_taken_for_its_own() {
        for chain in ["KUBE-SERVICES", "KUBE-SVC-NPX46M4PTMTKRN6Y", "KUBE-SEP-FVQSBIWR5JTECIVC", "KUBE-MARK-MASQ"] {
            assert!(Table::Nat.owns(chain), "{chain}");
        }
        for chain in [
            "KUBE-SVC-npx46m4ptmtkrn6y",
            "KUBE-SVC-NPX46M4PTMTKRN6",
            "KUBE-SVC-NPX46M4PTMTKRN61",
            "KUBE-SVC-OWN",
            "KUBE-KUBELET-CANARY",
            "KUBE-MARK-DROP",
            "KUBE-FORWARD",
            "kube-services",
            "PREROUTING",
        ] {
            assert!(!Table::Nat.owns(chain), "{chain}");
        }
        for chain in ["KUBE-FIREWALL", "KUBE-ROUTER-INPUT", "KUBE-POD-FW-ABCDEFGHIJKLMNOP", "KUBE-NWPLCY-DEFAULT"] {
            assert!(Table::ALL.iter().all(|table| !table.owns(chain)), "{chain}");
        }
        assert!(Table::Filter.owns("KUBE-FORWARD") && !Table::Filter.owns("KUBE-SVC-NPX46M4PTMTKRN6Y"));
        assert!(Table::Mangle.owns("KUBE-PROXY-CANARY") && !Table::Mangle.owns("KUBE-IPTABLES-HINT"));
    }

    #[test]
    fn sets_have_a_sibling_of_at_most_31_characters() {
        assert_eq!(set_v6("KUBE-NODE-PORT-LOCAL-SCTP-HASH"), "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS");
        assert!(owns_set("KUBE-6-NODE-PORT-LOCAL-SCTP-HAS") && owns_set("KUBE-CLUSTER-IP"));
        assert!(!owns_set("KUBE-SRC-ABC") && !owns_set("KUBE-6-") && !owns_set("kube-router-pod-subnets"));
    }
}
