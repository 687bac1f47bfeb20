//! Which chains of a table can go, and which rules with them. Knows nothing of how a table is read or written.

use std::collections::{HashMap, HashSet};

use crate::names::{MARK_MASQ, POSTROUTING, Table};

/// A table as far as it matters who jumps where. `R` is how a rule is called where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Graph<R> {
    /// Which table it is.
    pub table: Table,
    /// Its chains.
    pub chains: Vec<Chain>,
    /// Its rules that lead into another chain.
    pub jumps: Vec<Jump<R>>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// It stands at a hook; it is everybody's, and stays.
    pub base: bool,
}

/// A rule that leads into another chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jump<R> {
    /// The rule.
    pub rule: R,
    /// The chain that it stands in.
    pub from: String,
    /// Where it leads.
    pub to: String,
}

/// What is to be done with a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<R> {
    /// Chains to remove with all their rules.
    pub chains: Vec<String>,
    /// Rules to remove from chains that stay.
    pub jumps: Vec<Jump<R>>,
    /// Chains of kube-proxy's that stay, and the foreign chain for which they do.
    pub kept: Vec<(String, String)>,
}

impl<R: Clone> Graph<R> {
    /// Plans to remove all that is kube-proxy's, and no chain that a chain of somebody else's leads to: its owner decides what
    /// becomes of that rule. Whoever marks packets for [`POSTROUTING`] needs that chain as well.
    pub fn plan(&self) -> Plan<R> {
        let own: HashSet<&str> =
            self.chains.iter().map(|chain| chain.name.as_str()).filter(|name| self.table.owns(name)).collect();
        let base: HashSet<&str> =
            self.chains.iter().filter(|chain| chain.base).map(|chain| chain.name.as_str()).collect();
        let mut leads: HashMap<&str, Vec<&str>> = HashMap::new();
        for jump in self.jumps.iter().filter(|jump| own.contains(&*jump.from)) {
            leads.entry(&jump.from).or_default().push(&jump.to);
        }
        let foreign = |jump: &&Jump<R>| !own.contains(&*jump.from) && !base.contains(&*jump.from);
        let mut waiting: Vec<(&str, &str)> =
            self.jumps.iter().filter(foreign).map(|jump| (&*jump.to, &*jump.from)).collect();
        let mut kept: HashMap<&str, &str> = HashMap::new();
        while let Some((chain, user)) = waiting.pop() {
            if !own.contains(chain) || kept.contains_key(chain) {
                continue;
            }
            kept.insert(chain, user);
            waiting.extend(leads.get(chain).into_iter().flatten().map(|next| (*next, user)));
            if chain == MARK_MASQ {
                waiting.push((POSTROUTING, user));
            }
        }
        let goes = |name: &str| own.contains(name) && !kept.contains_key(name);
        let chains = self.chains.iter().map(|chain| &chain.name).filter(|name| goes(name)).cloned().collect();
        let jumps = self.jumps.iter().filter(|jump| goes(&jump.to) && !goes(&jump.from)).cloned().collect();
        let mut kept: Vec<_> = kept.into_iter().map(|(chain, user)| (chain.to_owned(), user.to_owned())).collect();
        kept.sort_unstable();
        Plan { chains, jumps, kept }
    }
}

impl<R> Plan<R> {
    /// Nothing is to be removed.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.jumps.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(table: Table, base: &[&str], jumps: &[(&str, &str)]) -> Graph<usize> {
        let mut chains: Vec<Chain> = Vec::new();
        let names = base.iter().copied().chain(jumps.iter().flat_map(|(from, to)| [*from, *to]));
        for name in names {
            if chains.iter().all(|chain| chain.name != name) {
                chains.push(Chain { name: name.to_owned(), base: base.contains(&name) });
            }
        }
        let jump = |(rule, (from, to)): (usize, &(&str, &str))| Jump {
            rule,
            from: String::from(*from),
            to: String::from(*to),
        };
        Graph { table, chains, jumps: jumps.iter().enumerate().map(jump).collect() }
    }

    const SVC: &str = "KUBE-SVC-NPX46M4PTMTKRN6Y";
    const SEP: &str = "KUBE-SEP-FVQSBIWR5JTECIVC";

    #[test]
    fn its_chains_go_with_the_jumps_of_base_chains() {
        let jumps = [
            ("PREROUTING", "CNI-HOSTPORT-DNAT"),
            ("PREROUTING", "KUBE-SERVICES"),
            ("POSTROUTING", POSTROUTING),
            ("KUBE-SERVICES", SVC),
            (SVC, SEP),
            (SEP, MARK_MASQ),
        ];
        let plan = graph(Table::Nat, &["PREROUTING", "POSTROUTING"], &jumps).plan();
        assert_eq!(plan.chains, ["KUBE-SERVICES", POSTROUTING, SVC, SEP, MARK_MASQ]);
        assert_eq!(plan.jumps.iter().map(|jump| jump.rule).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(plan.kept, []);
    }

    #[test]
    fn what_others_use_stays_with_all_that_it_needs() {
        let jumps = [
            ("PREROUTING", "KUBE-SERVICES"),
            ("POSTROUTING", POSTROUTING),
            ("KUBE-SERVICES", SVC),
            (SVC, SEP),
            (SEP, MARK_MASQ),
            ("CNI-DN-0123", MARK_MASQ),
        ];
        let plan = graph(Table::Nat, &["PREROUTING", "POSTROUTING"], &jumps).plan();
        assert_eq!(plan.chains, ["KUBE-SERVICES", SVC, SEP]);
        assert_eq!(plan.jumps.iter().map(|jump| jump.rule).collect::<Vec<_>>(), [0]);
        let user = String::from("CNI-DN-0123");
        assert_eq!(plan.kept, [(MARK_MASQ.into(), user.clone()), (POSTROUTING.into(), user)]);
    }

    #[test]
    fn a_table_of_others_is_left_alone() {
        let jumps = [("INPUT", "KUBE-FIREWALL"), ("INPUT", "KUBE-ROUTER-INPUT"), ("FORWARD", "KUBE-POD-FW-X")];
        assert!(graph(Table::Filter, &["INPUT", "FORWARD"], &jumps).plan().is_empty());
    }

    #[test]
    fn a_ring_of_jumps_ends() {
        let jumps = [("MINE", "KUBE-SERVICES"), ("KUBE-SERVICES", SVC), (SVC, "KUBE-SERVICES")];
        let plan = graph(Table::Nat, &[], &jumps).plan();
        assert!(plan.is_empty());
        assert_eq!(plan.kept.len(), 2);
    }
}
