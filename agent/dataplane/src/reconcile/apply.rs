//! One Service's change: what differs between the rows that the kernel holds and those that the plan wants, in an order that
//! traffic in flight does not notice. What is new: backends, tables, frontends, addresses; what goes: the same backwards.

use culvert_abi::{Frontend, MAGLEV_SIZES, View};

use super::held::{Held, HeldBackend, HeldTable, Port};
use crate::{
    codec::BackendRow,
    ledger::{Cause, Ledger, Release},
    maglev::{self, Member},
    rows::{Endpoint, FrontendRows, PortRows, ServiceRows, TableRows},
    store::Store,
};

/// Changes the kernel from `old` to `rows`: what it holds then. An error leaves it in between; the caller rolls back.
pub fn apply<S: Store>(ledger: &mut Ledger<S>, old: &Held, rows: &ServiceRows) -> Result<Held, Cause> {
    let mut new = Held { ports: Vec::with_capacity(rows.ports.len()), refused: rows.refused.clone() };
    for port in &rows.ports {
        new.ports.push(prepare(ledger, old.port(port.identity), port)?);
    }
    add(ledger, old, &new)?;
    remove(ledger, old, &new)?;
    for port in &old.ports {
        retire(ledger, port, new.port(port.identity))?;
    }
    Ok(new)
}

/// Backends, tables and ranges of a port. No packet sees them before a frontend names them, but for tables that are in use:
/// those switch to the new list here.
fn prepare<S: Store>(ledger: &mut Ledger<S>, old: Option<&Port>, rows: &PortRows) -> Result<Port, Cause> {
    let id = old.map_or_else(|| ledger.new_service(), |old| Ok(old.id))?;
    let backends = rows.backends.iter().map(|endpoint| backend(ledger, old, id, endpoint));
    let backends: Vec<HeldBackend> = backends.collect::<Result<_, _>>()?;
    let tables = tables(ledger, old, rows, &backends)?;
    let frontends = rows.frontends.iter().map(|row| {
        let value = frontend(ledger, rows.identity, id, &tables, row)?;
        Ok((row.at, value))
    });
    Ok(Port {
        identity: rows.identity,
        id,
        family: rows.family,
        name: rows.name.clone(),
        protocol: rows.protocol,
        frontends: frontends.collect::<Result<_, Cause>>()?,
        backends,
        tables,
    })
}

fn backend<S: Store>(
    ledger: &mut Ledger<S>,
    old: Option<&Port>,
    service: u32,
    endpoint: &Endpoint,
) -> Result<HeldBackend, Cause> {
    let Endpoint { at, flags } = *endpoint;
    let Some(held) = old.and_then(|old| old.backend(at)) else {
        let row = BackendRow { address: at.address, port: at.port, flags, generation: 0, service };
        return Ok(HeldBackend { at, flags, id: ledger.new_backend(row)? });
    };
    if held.flags != flags {
        ledger.change_backend(held.id, ledger.backend_row(held, service), flags)?;
    }
    Ok(HeldBackend { flags, ..*held })
}

// ===== tables =====

fn tables<S: Store>(
    ledger: &mut Ledger<S>,
    old: Option<&Port>,
    rows: &PortRows,
    backends: &[HeldBackend],
) -> Result<Vec<HeldTable>, Cause> {
    let lists: Vec<Box<[u32]>> = rows.tables.iter().map(|table| list(table, backends)).collect();
    let heirs = heirs(old, rows, &lists);
    let wanted = rows.tables.iter().zip(lists).zip(heirs);
    let tables = wanted.map(|((table, members), heir)| match heir {
        Some(held) if held.class() == table.class && held.members == members => Ok(held.clone()),
        Some(held) => {
            let word = slice(ledger, table, &members, &rows.backends)?;
            ledger.switch_table(held.index, held.word, word);
            Ok(HeldTable { index: held.index, word, members })
        }
        None => {
            let word = slice(ledger, table, &members, &rows.backends)?;
            Ok(HeldTable { index: ledger.new_table(word)?, word, members })
        }
    });
    tables.collect()
}

fn list(table: &TableRows, backends: &[HeldBackend]) -> Box<[u32]> {
    table.members.iter().filter_map(|member| backends.get(*member as usize)).map(|backend| backend.id).collect()
}

/// Which table of `old` each wanted one follows: an equal one if there is one, else one that a frontend of it used before
/// and that no other wants. That one keeps its index, and the frontends need no new row.
fn heirs<'a>(old: Option<&'a Port>, rows: &PortRows, lists: &[Box<[u32]>]) -> Vec<Option<&'a HeldTable>> {
    let Some(old) = old else { return vec![None; lists.len()] };
    let mut free: Vec<&HeldTable> = old.tables.iter().collect();
    let mut take = |fits: &dyn Fn(&HeldTable) -> bool| {
        let position = free.iter().position(|table| fits(table))?;
        Some(free.swap_remove(position))
    };
    let wanted = rows.tables.iter().zip(lists);
    let mut heirs: Vec<Option<&HeldTable>> = wanted
        .map(|(table, members)| take(&|held: &HeldTable| held.class() == table.class && held.members == *members))
        .collect();
    for (index, heir) in heirs.iter_mut().enumerate() {
        if heir.is_none() {
            *heir = users(old, rows, index).find_map(|before| take(&|held: &HeldTable| held.index == before));
        }
    }
    heirs
}

/// The tables that the users of a wanted table had before.
fn users(old: &Port, rows: &PortRows, table: usize) -> impl Iterator<Item = u32> {
    rows.frontends.iter().flat_map(move |row| {
        let before = old.frontend(row.at);
        let used = row.views.iter().enumerate().filter(move |(_, view)| view.table == Some(table));
        used.filter_map(move |(audience, _)| before.map(|before| before.views[audience].table))
    })
}

fn slice<S: Store>(
    ledger: &mut Ledger<S>,
    table: &TableRows,
    members: &[u32],
    backends: &[Endpoint],
) -> Result<u64, Cause> {
    if members.len() > usize::from(u16::MAX) {
        // No slot can name the last of them.
        return Err(Cause::List { count: members.len() });
    }
    let size = MAGLEV_SIZES.get(usize::from(table.class)).copied().unwrap_or(0);
    ledger.new_slice(members, &maglev::slots(&identities(table, backends), size), table.class)
}

/// The members of a table as Maglev knows them, in the order of the list.
pub fn identities(table: &TableRows, backends: &[Endpoint]) -> Vec<Member> {
    let endpoints = table.members.iter().filter_map(|member| backends.get(*member as usize));
    endpoints.map(|endpoint| Member { address: endpoint.at.address, port: endpoint.at.port, weight: 1 }).collect()
}

// ===== frontends and addresses =====

fn frontend<S: Store>(
    ledger: &mut Ledger<S>,
    identity: u64,
    service: u32,
    tables: &[HeldTable],
    row: &FrontendRows,
) -> Result<Frontend, Cause> {
    let ranges = ledger.refer_ranges(&row.ranges)?;
    let views = row.views.map(|view| View {
        table: view.table.and_then(|table| tables.get(table)).map_or(0, |table| table.index),
        verdict: view.verdict,
        flags: view.flags,
        zero: 0,
    });
    Ok(Frontend { identity, service, affinity_seconds: row.affinity_seconds, ranges, flags: row.flags, views })
}

/// Frontends that are new, changed, or taken back from another Service; then the addresses.
fn add<S: Store>(ledger: &mut Ledger<S>, old: &Held, new: &Held) -> Result<(), Cause> {
    let mut touched = Vec::new();
    for port in &new.ports {
        let before = old.port(port.identity);
        for (at, value) in &port.frontends {
            let same = before.and_then(|before| before.frontend(*at)) == Some(value);
            if !same || ledger.owners.get(at) != Some(&port.id) {
                ledger.put_frontend(*at, value)?;
            }
            // Also where the frontend was there before: an agent may have been killed between the two.
            touched.push(at.address);
        }
    }
    for address in new.refused.iter().filter(|address| old.refused.binary_search(address).is_err()) {
        ledger.change_address(*address, |state| state.refuse += 1);
        touched.push(*address);
    }
    touched.into_iter().try_for_each(|address| ledger.write_address(address))
}

/// Addresses and frontends that go, if they still belong to this Service.
fn remove<S: Store>(ledger: &mut Ledger<S>, old: &Held, new: &Held) -> Result<(), Cause> {
    let mut touched = Vec::new();
    let mut gone = Vec::new();
    for port in &old.ports {
        let after = new.port(port.identity);
        for (at, value) in &port.frontends {
            let stays = after.is_some_and(|after| after.frontend(*at).is_some());
            if !stays && ledger.owners.get(at) == Some(&port.id) {
                ledger.disown_frontend(*at);
                touched.push(at.address);
                gone.push((*at, value));
            }
        }
    }
    for address in old.refused.iter().filter(|address| new.refused.binary_search(address).is_err()) {
        ledger.change_address(*address, |state| state.refuse = state.refuse.saturating_sub(1));
        touched.push(*address);
    }
    touched.into_iter().try_for_each(|address| ledger.write_address(address))?;
    gone.into_iter().try_for_each(|(at, value)| ledger.delete_frontend(at, value))
}

/// Tables, ranges, backends and the id of a port, as far as `after` does not go on with them.
fn retire<S: Store>(ledger: &mut Ledger<S>, before: &Port, after: Option<&Port>) -> Result<(), Cause> {
    for table in &before.tables {
        let stays = after.is_some_and(|after| after.tables.iter().any(|other| other.index == table.index));
        if !stays {
            ledger.release(Release::Table { index: table.index, word: table.word });
        }
    }
    before.frontends.iter().for_each(|(_, value)| ledger.release_ranges(value.ranges));
    for backend in &before.backends {
        if after.is_none_or(|after| after.backend(backend.at).is_none()) {
            ledger.change_backend(backend.id, ledger.backend_row(backend, before.id), 0)?;
        }
    }
    if after.is_none() {
        ledger.release(Release::Service(before.id));
    }
    Ok(())
}
