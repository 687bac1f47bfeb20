//! nftables over netlink (`linux/netfilter/nf_tables.h`): kube-proxy's own tables, and the chains that iptables-nft keeps in the
//! tables `nat`, `filter` and `mangle`. A transaction is taken whole or not at all, and not if somebody else was faster.

use std::collections::HashSet;
use std::io;

use culvert_api::takeover::{Kept, Subsystem, Trace, TraceKind};
use culvert_dataplane::netlink::{Frame, Netlink, attributes, find};
use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::{
    Findings, absent, jump_name,
    message::{Answer, Message, text},
    names::{NFT_TABLE, Table},
    plan::{Chain, Graph, Jump, Plan},
};

/// `NFNL_SUBSYS_NFTABLES`, and its messages.
const SUBSYSTEM: u16 = 10;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const GET_CHAIN: u16 = 4;
const DELETE_CHAIN: u16 = 5;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const GET_GENERATION: u16 = 16;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`, and `NFNL_BATCH_GENID`.
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const BATCH_GENERATION: u16 = 1;
/// `NFTA_TABLE_NAME`, which `NFTA_CHAIN_TABLE` and `NFTA_RULE_TABLE` are, too.
const TABLE_NAME: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const GENERATION_ID: u16 = 1;
/// Bytes of `struct nfgenmsg`; the family is the first.
const HEAD: usize = 4;
/// How often a transaction is begun again because somebody else was faster.
const TRIES: u32 = 20;

/// Families of tables (`NFPROTO_*`) that kube-proxy uses or has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Both, in one table.
    Inet = 1,
    /// IPv4.
    Ip = 2,
    /// IPv6.
    Ip6 = 10,
}

impl Family {
    fn of(number: u8) -> Option<Self> {
        [Self::Inet, Self::Ip, Self::Ip6].into_iter().find(|family| *family as u8 == number)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        }
    }
}

/// What is to go, as it was at one generation of the whole ruleset.
#[derive(Debug, Default)]
struct Ruleset {
    generation: Option<u32>,
    own: Vec<Family>,
    tables: Vec<(Family, Table, Plan<u64>)>,
}

/// Looks for what is kube-proxy's.
pub fn find_all(findings: &mut Findings) -> io::Result<()> {
    let ruleset = match Ruleset::read() {
        Err(error) if absent(&error) => return Ok(()),
        result => result?,
    };
    for family in &ruleset.own {
        findings.found.push(Trace {
            subsystem: Subsystem::Nftables,
            table: Some(family.name().to_owned()),
            kind: TraceKind::Table,
            name: NFT_TABLE.to_owned(),
        });
    }
    for (family, table, plan) in &ruleset.tables {
        describe(findings, Subsystem::IptablesNft, &format!("{} {}", family.name(), table.name()), plan);
    }
    Ok(())
}

/// Adds a plan to the findings.
pub fn describe<R>(findings: &mut Findings, subsystem: Subsystem, table: &str, plan: &Plan<R>) {
    let trace = |kind, name| Trace { subsystem, table: Some(table.to_owned()), kind, name };
    findings.found.extend(plan.chains.iter().map(|name| trace(TraceKind::Chain, name.clone())));
    findings.found.extend(plan.jumps.iter().map(|jump| trace(TraceKind::Jump, jump_name(jump))));
    findings.kept.extend(plan.kept.iter().map(|(name, user)| Kept {
        subsystem,
        table: table.to_owned(),
        name: name.clone(),
        reason: format!("chain {user} leads to it"),
    }));
}

/// Removes what is kube-proxy's.
pub fn remove_all() -> io::Result<()> {
    for _ in 0..TRIES {
        let ruleset = match Ruleset::read() {
            Err(error) if absent(&error) => return Ok(()),
            result => result?,
        };
        let Some(batch) = ruleset.batch() else { return Ok(()) };
        match Netlink::open(NETLINK_NETFILTER)?.request_raw(&batch, |_| ()) {
            // The ruleset is not that of the generation any more.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ERESTART | libc::EAGAIN | libc::ENOENT)) => {}
            result => return result,
        }
    }
    Err(io::Error::other("others change the ruleset all the time"))
}

impl Ruleset {
    fn read() -> io::Result<Self> {
        let netlink = Netlink::open(NETLINK_NETFILTER)?;
        let mut ruleset = Self { generation: generation(&netlink)?, ..Self::default() };
        let mut kept_by_iptables = Vec::new();
        dump(&netlink, &message(GET_TABLE, Answer::Dump, 0), |family, bytes| {
            let Some(name) = find(bytes, TABLE_NAME).map(text) else { return };
            match Table::of(&name) {
                Some(table) if family != Family::Inet => kept_by_iptables.push((family, table)),
                _ if name == NFT_TABLE => ruleset.own.push(family),
                _ => {}
            }
        })?;
        for (family, table) in kept_by_iptables {
            let plan = graph(&netlink, family, table)?.plan();
            if !plan.is_empty() || !plan.kept.is_empty() {
                ruleset.tables.push((family, table, plan));
            }
        }
        Ok(ruleset)
    }

    /// The transaction; `None` if there is nothing to do.
    fn batch(&self) -> Option<Vec<u8>> {
        let mut messages = Vec::new();
        for family in &self.own {
            messages.push(message(DELETE_TABLE, Answer::Quiet, *family as u8).text(TABLE_NAME, NFT_TABLE));
        }
        for (family, table, plan) in &self.tables {
            let about = |kind| message(kind, Answer::Quiet, *family as u8).text(TABLE_NAME, table.name());
            for jump in &plan.jumps {
                let rule = about(DELETE_RULE).text(RULE_CHAIN, &jump.from);
                messages.push(rule.with(RULE_HANDLE, &jump.rule.to_be_bytes()));
            }
            // All rules first: chains that others still lead to do not go.
            messages.extend(plan.chains.iter().map(|chain| about(DELETE_RULE).text(RULE_CHAIN, chain)));
            messages.extend(plan.chains.iter().map(|chain| about(DELETE_CHAIN).text(CHAIN_NAME, chain)));
        }
        // What is kept only needs no transaction.
        messages.last_mut()?.acknowledge();
        let mut begin = Message::new(BATCH_BEGIN, Answer::Quiet, &batch_head());
        if let Some(generation) = self.generation {
            begin = begin.with(BATCH_GENERATION, &generation.to_be_bytes());
        }
        let mut batch = begin.finish();
        batch.extend(messages.into_iter().flat_map(Message::finish));
        batch.extend(Message::new(BATCH_END, Answer::Quiet, &batch_head()).finish());
        Some(batch)
    }
}

/// `struct nfgenmsg` of a batch: its resource is the subsystem.
fn batch_head() -> [u8; HEAD] {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    [0, 0, high, low]
}

fn message(kind: u16, answer: Answer, family: u8) -> Message {
    Message::netfilter(SUBSYSTEM, kind, answer, family)
}

/// The ruleset's generation, which every transaction raises.
fn generation(netlink: &Netlink) -> io::Result<Option<u32>> {
    let mut generation = None;
    netlink.request_raw(&message(GET_GENERATION, Answer::Acknowledge, 0).finish(), |frame| {
        let bytes = frame.payload.get(HEAD..).and_then(|bytes| find(bytes, GENERATION_ID));
        generation = bytes.and_then(|bytes| Some(u32::from_be_bytes(*bytes.first_chunk()?)));
    })?;
    Ok(generation)
}

/// Dumps objects, with the family of each. If they change meanwhile, the generation will tell.
fn dump(netlink: &Netlink, request: &Message, mut object: impl FnMut(Family, &[u8])) -> io::Result<()> {
    netlink
        .dump_raw(&request.clone().finish(), |Frame { payload, .. }| {
            let family = payload.first().and_then(|family| Family::of(*family));
            if let (Some(family), Some(bytes)) = (family, payload.get(HEAD..)) {
                object(family, bytes);
            }
        })
        .map(drop)
}

/// Reads a table that iptables-nft keeps. Its rules are read only if a chain in it is kube-proxy's.
fn graph(netlink: &Netlink, family: Family, table: Table) -> io::Result<Graph<u64>> {
    let of_table = |bytes: &[u8]| find(bytes, TABLE_NAME).map(text).as_deref() == Some(table.name());
    let mut graph = Graph { table, chains: Vec::new(), jumps: Vec::new() };
    dump(netlink, &message(GET_CHAIN, Answer::Dump, family as u8), |_, bytes| {
        if let Some(name) = find(bytes, CHAIN_NAME).filter(|_| of_table(bytes)) {
            graph.chains.push(Chain { name: text(name), base: find(bytes, CHAIN_HOOK).is_some() });
        }
    })?;
    if !graph.chains.iter().any(|chain| table.owns(&chain.name)) {
        return Ok(graph);
    }
    let chains: HashSet<String> = graph.chains.iter().map(|chain| chain.name.clone()).collect();
    let request = message(GET_RULE, Answer::Dump, family as u8).text(TABLE_NAME, table.name());
    dump(netlink, &request, |_, bytes| {
        if of_table(bytes) {
            graph.jumps.extend(jumps(bytes).into_iter().filter(|jump| chains.contains(&jump.to)));
        }
    })?;
    Ok(graph)
}

/// The jumps of a rule: one as a rule, as the verdict of an `immediate` expression.
fn jumps(rule: &[u8]) -> Vec<Jump<u64>> {
    let handle = find(rule, RULE_HANDLE).and_then(|bytes| Some(u64::from_be_bytes(*bytes.first_chunk()?)));
    let (Some(handle), Some(from)) = (handle, find(rule, RULE_CHAIN)) else { return Vec::new() };
    let expressions = attributes(find(rule, RULE_EXPRESSIONS).unwrap_or_default());
    let to = expressions.filter_map(|(_, expression)| {
        // NFTA_EXPR_NAME and _DATA, NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN
        find(expression, 1).filter(|name| text(name) == "immediate")?;
        find(find(find(find(expression, 2)?, 2)?, 2)?, 2)
    });
    to.map(|to| Jump { rule: handle, from: text(from), to: text(to) }).collect()
}
