//! A table of iptables-legacy as the kernel hands it out (`linux/netfilter_ipv4/ip_tables.h`, `netfilter_ipv6/ip6_tables.h`,
//! `netfilter/x_tables.h`): read as a graph of chains, and written again without some of them. All other bytes stay as they are.
//!
//! Entries stand one behind the other. A base chain begins where a hook enters, any other behind an entry with the target
//! `ERROR`, which carries its name; the last entry is such a one, too. A verdict of zero or more is the offset of the entry to go
//! on with: that of another chain's first rule is a jump, that of the next entry is a rule without target.

use std::collections::{HashMap, HashSet};

use culvert_dataplane::xtables::{HOOKS, Table as Blob};

use crate::{
    names::Table,
    plan::{Chain, Graph, Jump, Plan},
};

const BASE: [&str; HOOKS] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// In `struct xt_entry_target`: the name behind the size, its length, and the bytes before the data.
const TARGET_NAME: usize = 2;
const TARGET_NAME_LENGTH: usize = 29;
const TARGET: usize = 32;
/// Length of the name that an `ERROR` target carries.
const CHAIN_NAME_LENGTH: usize = 30;
/// Entries begin at multiples of this.
const ALIGNMENT: usize = 8;

/// The table is not as the kernel's headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry at {0}: {1}")]
pub struct Malformed(usize, &'static str);

/// Where the fields of an entry are, which depends on the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Offset of `target_offset`, before `next_offset`.
    offsets: usize,
    /// Bytes before the matches.
    entry: usize,
}

impl Layout {
    /// `struct ipt_entry`
    pub const V4: Self = Self { offsets: 88, entry: 112 };
    /// `struct ip6t_entry`
    pub const V6: Self = Self { offsets: 140, entry: 168 };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The name of a chain.
    Header,
    /// Goes on at an offset.
    Verdict(usize),
    /// All else.
    Other,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    offset: usize,
    length: usize,
    /// Offset of the target's data.
    data: usize,
    kind: Kind,
    /// Index of its chain.
    chain: usize,
}

/// A table, taken apart.
#[derive(Clone, Debug)]
pub struct Rules<'a> {
    blob: &'a Blob,
    entries: Vec<Entry>,
    chains: Vec<Chain>,
    /// Chains by the offset of their first rule.
    starts: HashMap<usize, usize>,
}

impl<'a> Rules<'a> {
    /// Takes a table apart.
    pub fn parse(blob: &'a Blob, layout: Layout) -> Result<Self, Malformed> {
        let hooks: HashMap<usize, &str> = BASE
            .iter()
            .enumerate()
            .filter(|(hook, _)| blob.valid_hooks & (1 << hook) != 0)
            .map(|(hook, name)| (blob.hook_entry[hook] as usize, *name))
            .collect();
        let mut rules = Self { blob, entries: Vec::new(), chains: Vec::new(), starts: HashMap::new() };
        let mut offset = 0;
        while offset < blob.entries.len() {
            let (entry, header) = entry(&blob.entries, offset, layout).ok_or(Malformed(offset, "does not fit"))?;
            let end = offset + entry.length;
            match (header, hooks.get(&offset)) {
                (Some(name), _) => rules.begin(name, false, end),
                (None, Some(name)) => rules.begin((*name).to_owned(), true, offset),
                (None, None) => {}
            }
            let chain = rules.chains.len().checked_sub(1).ok_or(Malformed(offset, "belongs to no chain"))?;
            rules.entries.push(Entry { chain, ..entry });
            offset = end;
        }
        Ok(rules)
    }

    fn begin(&mut self, name: String, base: bool, first: usize) {
        self.starts.insert(first, self.chains.len());
        self.chains.push(Chain { name, base });
    }

    /// Who jumps where. A rule is called by its place among the entries.
    pub fn graph(&self, table: Table) -> Graph<usize> {
        let jump = |(rule, entry): (usize, &Entry)| {
            let Kind::Verdict(to) = entry.kind else { return None };
            if to == entry.offset + entry.length {
                return None;
            }
            let to = self.chains.get(*self.starts.get(&to)?)?;
            Some(Jump { rule, from: self.chains[entry.chain].name.clone(), to: to.name.clone() })
        };
        Graph { table, chains: self.chains.clone(), jumps: self.entries.iter().enumerate().filter_map(jump).collect() }
    }

    /// The table without what is planned to go, and for each entry the place that it had.
    pub fn without(&self, plan: &Plan<usize>) -> Result<(Blob, Vec<usize>), Malformed> {
        let chains: HashSet<&str> = plan.chains.iter().map(String::as_str).collect();
        let rules: HashSet<usize> = plan.jumps.iter().map(|jump| jump.rule).collect();
        let goes = |place: usize, entry: &Entry| {
            rules.contains(&place) || chains.contains(self.chains[entry.chain].name.as_str())
        };
        // Where each entry comes to be; of one that goes, its successor, where a rule without target goes on.
        let mut moved = HashMap::new();
        let (mut stays, mut end) = (Vec::new(), 0);
        for (place, entry) in self.entries.iter().enumerate() {
            moved.insert(entry.offset, end);
            if !goes(place, entry) {
                stays.push(place);
                end += entry.length;
            }
        }
        let to = |offset: usize| moved.get(&offset).copied().ok_or(Malformed(offset, "is led to, and is none"));
        let mut entries = Vec::with_capacity(end);
        for entry in stays.iter().map(|place| &self.entries[*place]) {
            let start = entries.len();
            entries.extend_from_slice(&self.blob.entries[entry.offset..entry.offset + entry.length]);
            let Kind::Verdict(verdict) = entry.kind else { continue };
            if let Some(chain) = self.starts.get(&verdict).filter(|_| verdict != entry.offset + entry.length)
                && chains.contains(self.chains[*chain].name.as_str())
            {
                return Err(Malformed(entry.offset, "leads into a chain that goes"));
            }
            let data = start + entry.data - entry.offset;
            entries[data..data + 4].copy_from_slice(&(to(verdict)? as u32).to_ne_bytes());
        }
        let mut blob = Blob { count: stays.len() as u32, entries, ..self.blob.clone() };
        for hook in (0..HOOKS).filter(|hook| blob.valid_hooks & (1 << hook) != 0) {
            blob.hook_entry[hook] = to(blob.hook_entry[hook] as usize)? as u32;
            blob.underflow[hook] = to(blob.underflow[hook] as usize)? as u32;
        }
        Ok((blob, stays))
    }
}

/// Reads the entry at an offset, and the name if it is a chain's header; `None` if it does not fit.
fn entry(bytes: &[u8], offset: usize, layout: Layout) -> Option<(Entry, Option<String>)> {
    let whole = bytes.get(offset..)?;
    let field = |at: usize| Some(usize::from(u16::from_ne_bytes(*whole.get(at..)?.first_chunk()?)));
    let (target, length) = (field(layout.offsets)?, field(layout.offsets + 2)?);
    if target < layout.entry || length % ALIGNMENT != 0 {
        return None;
    }
    let data = target + TARGET;
    let target = whole.get(..length)?.get(target..)?;
    let value = target.get(TARGET..)?;
    let (kind, header) = match text(target.get(TARGET_NAME..TARGET_NAME + TARGET_NAME_LENGTH)?) {
        b"ERROR" => {
            let name = String::from_utf8_lossy(text(value.get(..CHAIN_NAME_LENGTH)?)).into_owned();
            (Kind::Header, Some(name))
        }
        // XT_STANDARD_TARGET. A negative verdict is an end: accept, drop, return.
        b"" => {
            let verdict = i32::from_ne_bytes(*value.first_chunk()?);
            (usize::try_from(verdict).map_or(Kind::Other, Kind::Verdict), None)
        }
        _ => (Kind::Other, None),
    };
    Some((Entry { offset, length, data: offset + data, kind, chain: 0 }, header))
}

/// What stands before the first zero.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A table of one hook, PREROUTING, as the kernel lays it out.
    struct Build {
        layout: Layout,
        blob: Blob,
    }

    impl Build {
        fn new(layout: Layout) -> Self {
            let zero = [0; HOOKS];
            let blob = Blob { valid_hooks: 1, hook_entry: zero, underflow: zero, count: 0, entries: Vec::new() };
            Self { layout, blob }
        }

        fn end(&self) -> usize {
            self.blob.entries.len()
        }

        fn entry(&mut self, matches: &[u8], name: &str, data: &[u8]) {
            let Layout { offsets, entry } = self.layout;
            let mut bytes = vec![0; entry];
            bytes.extend(matches);
            let target = bytes.len();
            bytes.resize(target + TARGET, 0);
            bytes[target + TARGET_NAME..][..name.len()].copy_from_slice(name.as_bytes());
            bytes.extend(data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            let length = bytes.len() as u16;
            bytes[offsets..offsets + 2].copy_from_slice(&(target as u16).to_ne_bytes());
            bytes[offsets + 2..offsets + 4].copy_from_slice(&length.to_ne_bytes());
            self.blob.entries.extend(bytes);
            self.blob.count += 1;
        }

        fn verdict(&mut self, verdict: i32) {
            self.entry(&[], "", &verdict.to_ne_bytes());
        }

        fn jump(&mut self, to: usize) {
            self.entry(&[], "", &(to as u32).to_ne_bytes());
        }

        /// A rule with matches and without target.
        fn through(&mut self) {
            let next = self.end() + self.layout.entry + 16 + TARGET + 8;
            self.entry(&[7; 16], "", &(next as u32).to_ne_bytes());
        }

        fn header(&mut self, name: &str) {
            let mut data = name.as_bytes().to_vec();
            data.resize(CHAIN_NAME_LENGTH, 0);
            self.entry(&[], "ERROR", &data);
        }
    }

    /// PREROUTING: jump KUBE-SERVICES, no target, jump OTHER, accept. KUBE-SERVICES: return. OTHER: masquerade, return.
    fn sample(layout: Layout, with: bool) -> Blob {
        let rule = layout.entry + TARGET + 8;
        let head = layout.entry + TARGET + 32;
        let through = rule + 16;
        let base = rule * if with { 3 } else { 2 } + through;
        let mut build = Build::new(layout);
        if with {
            build.jump(base + head);
        }
        build.through();
        build.jump(base + head + if with { rule + head } else { 0 });
        build.blob.underflow[0] = build.end() as u32;
        build.verdict(-2);
        if with {
            build.header("KUBE-SERVICES");
            build.verdict(-5);
        }
        build.header("OTHER");
        build.entry(&[9; 40], "MASQUERADE", &[1; 24]);
        build.verdict(-5);
        build.header("ERROR");
        build.blob
    }

    #[test]
    fn what_stays_is_as_if_it_had_always_been_alone() {
        for layout in [Layout::V4, Layout::V6] {
            let blob = sample(layout, true);
            let rules = Rules::parse(&blob, layout).unwrap();
            let plan = rules.graph(Table::Nat).plan();
            assert_eq!(plan.chains, ["KUBE-SERVICES"]);
            assert_eq!(plan.jumps.iter().map(|jump| jump.rule).collect::<Vec<_>>(), [0]);
            let (left, places) = rules.without(&plan).unwrap();
            assert_eq!(left, sample(layout, false));
            assert_eq!(places, [1, 2, 3, 6, 7, 8, 9]);
        }
    }

    #[test]
    fn a_table_without_any_is_written_as_it_was() {
        let blob = sample(Layout::V4, false);
        let rules = Rules::parse(&blob, Layout::V4).unwrap();
        let plan = rules.graph(Table::Nat).plan();
        assert!(plan.is_empty());
        assert_eq!(rules.without(&plan).unwrap().0, blob);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(entries: Vec<u8>, at in 0_usize..1000, byte: u8, hook: u32) {
            let mut blob = sample(Layout::V4, true);
            if let Some(place) = blob.entries.get_mut(at) {
                *place = byte;
            }
            for blob in [Blob { hook_entry: [hook; HOOKS], ..blob.clone() }, Blob { entries, ..blob.clone() }, blob] {
                if let Ok(rules) = Rules::parse(&blob, Layout::V4) {
                    let _ = rules.without(&rules.graph(Table::Nat).plan());
                }
            }
        }
    }
}
