//! Rows of the kernel's maps beside the oracle's flows: compared, aged, planted and removed.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use culvert_abi::{
    Affinity, AffinityKey, Flow as Row, FlowKey, Fragment, FragmentKey, TICK_SHIFT, V4, V6, affinity, affinity_hash,
    role,
};

use super::flows::{Flow, Side};
use super::packet::Tuple;
use crate::world::{Kernel, words};

/// A client and a Service port, as the oracle keeps affinity.
type Client = (IpAddr, u32);

/// A fragmented datagram, as the oracle keeps it.
type Datagram = (IpAddr, IpAddr, u8, u32);

/// Ticks of some milliseconds.
fn ticks(milliseconds: u64) -> u32 {
    ((milliseconds * 1_000_000) >> TICK_SHIFT) as u32
}

/// The rows that a flow has: role, and the packet it is for. `back` says that it has one for its source.
fn roles(flow: &Flow, back: bool) -> Vec<(u8, Tuple)> {
    let mut roles = vec![(role::ORIGIN, flow.origin()), (role::PATH, flow.path())];
    roles.extend(flow.back().filter(|_| back).map(|back| (role::RETURN, back)));
    roles
}

fn key<const W: usize>(role: u8, tuple: &Tuple) -> Result<FlowKey<W>> {
    Ok(FlowKey {
        src: words(tuple.src.ip())?,
        dst: words(tuple.dst.ip())?,
        sport: tuple.src.port().to_be(),
        dport: tuple.dst.port().to_be(),
        proto: tuple.proto,
        role,
        zero: 0,
    })
}

/// The row that a flow ought to have; clocks are left 0.
fn row<const W: usize>(flow: &Flow, side: Side) -> Result<Row<W>> {
    let direction = flow.directions[side as usize];
    Ok(Row {
        packets: direction.packets,
        bytes: direction.bytes,
        client: words(flow.client.ip())?,
        frontend: words(flow.frontend.ip())?,
        backend: words(flow.backend.ip())?,
        source: flow.source.map_or(Ok([0; W]), |source| words(source.ip()))?,
        client_port: flow.client.port().to_be(),
        frontend_port: flow.frontend.port().to_be(),
        backend_port: flow.backend.port().to_be(),
        source_port: flow.source.map_or(0, |source| source.port()).to_be(),
        backend_id: flow.id,
        generation: flow.generation,
        service: flow.service,
        flags: flow.flags,
        ..Row::zeroed()
    })
}

/// The name of a map of the family.
fn named<const W: usize>(name: &str) -> String {
    format!("{name}_V{}", if W == V4 { 4 } else { 6 })
}

/// Does something for the family of an address.
macro_rules! for_family {
    ($ip:expr, $function:ident($($arg:expr),*)) => {
        if $ip.is_ipv4() { $function::<V4>($($arg),*) } else { $function::<V6>($($arg),*) }
    };
}

/// Removes a flow's rows, after a look whether they are what they ought to be.
pub fn settle_flow(kernel: &mut Kernel, flow: &Flow, back: bool) -> Result<()> {
    for_family!(flow.client, settle(kernel, flow, back))
}

fn settle<const W: usize>(kernel: &mut Kernel, flow: &Flow, back: bool) -> Result<()> {
    let (right, wrong) = if flow.established { ("FLOWS", "FLOWS_NEW") } else { ("FLOWS_NEW", "FLOWS") };
    for (role, tuple) in roles(flow, back) {
        let key = key::<W>(role, &tuple)?;
        let mut rows = kernel.hash::<FlowKey<W>, Row<W>>(&named::<W>(right))?;
        let Ok(found) = rows.get(&key, 0) else {
            let other = kernel.hash::<FlowKey<W>, Row<W>>(&named::<W>(wrong))?.get(&key, 0).is_ok();
            bail!(
                "role {role}, {tuple:?}: {right} has no row, {wrong} has {}: {flow:#?}",
                if other { "it" } else { "none" }
            );
        };
        rows.remove(&key)?;
        let side = if role == role::ORIGIN { Side::Client } else { Side::Backend };
        let wanted = row::<W>(flow, side)?;
        let found = Row { seen: 0, born: 0, ..found };
        // A RETURN row is a copy of its time, and nobody counts on it.
        let found = if role == role::RETURN {
            Row { packets: wanted.packets, bytes: wanted.bytes, flags: wanted.flags, ..found }
        } else {
            found
        };
        ensure!(found == wanted, "role {role}, {tuple:?}: the row is\n{found:#?}\nand ought to be\n{wanted:#?}");
    }
    Ok(())
}

/// The source that the kernel gave to the flow whose replies look like this inside.
pub fn source_of(kernel: &mut Kernel, path: &Tuple) -> Result<SocketAddr> {
    for_family!(path.src, source(kernel, path))
}

fn source<const W: usize>(kernel: &mut Kernel, path: &Tuple) -> Result<SocketAddr> {
    let key = key::<W>(role::PATH, path)?;
    for name in ["FLOWS", "FLOWS_NEW"] {
        if let Ok(row) = kernel.hash::<FlowKey<W>, Row<W>>(&named::<W>(name))?.get(&key, 0) {
            return Ok(SocketAddr::new(address(&row.source), u16::from_be(row.source_port)));
        }
    }
    bail!("no row of {path:?}")
}

/// An address from the words of a row.
fn address<const W: usize>(words: &[u32; W]) -> IpAddr {
    let octets = |i: usize| words.get(i).copied().unwrap_or(0).to_ne_bytes();
    if W == V4 {
        return IpAddr::from(octets(0));
    }
    let mut all = [0; 16];
    for (i, four) in all.chunks_exact_mut(4).enumerate() {
        four.copy_from_slice(&octets(i));
    }
    IpAddr::from(all)
}

/// Makes a flow's rows older. A clock that has run for the whole script is set back; RETURN rows have none that counts.
pub fn age_flow(kernel: &mut Kernel, flow: &Flow, milliseconds: u64) -> Result<()> {
    for_family!(flow.client, age(kernel, flow, milliseconds))
}

fn age<const W: usize>(kernel: &mut Kernel, flow: &Flow, milliseconds: u64) -> Result<()> {
    let mut rows =
        kernel.hash::<FlowKey<W>, Row<W>>(&named::<W>(if flow.established { "FLOWS" } else { "FLOWS_NEW" }))?;
    for (role, tuple) in roles(flow, false) {
        let key = key::<W>(role, &tuple)?;
        let found = rows.get(&key, 0).with_context(|| format!("role {role}, {tuple:?} of {flow:#?}"))?;
        rows.insert(key, Row { seen: found.seen.wrapping_sub(ticks(milliseconds)), ..found }, 0)?;
    }
    Ok(())
}

/// Writes the rows of a flow that netfilter had before us, and the bit without which nobody looks for them at egress.
pub fn plant_flow(kernel: &mut Kernel, flow: &Flow) -> Result<()> {
    for_family!(flow.client, plant(kernel, flow))
}

fn plant<const W: usize>(kernel: &mut Kernel, flow: &Flow) -> Result<()> {
    let mut rows = kernel.hash::<FlowKey<W>, Row<W>>(&named::<W>("FLOWS"))?;
    let seen = now()?;
    for (role, tuple) in roles(flow, false) {
        rows.insert(key::<W>(role, &tuple)?, Row { seen, ..row::<W>(flow, Side::Client)? }, 0)?;
    }
    let bit = affinity_hash(&words::<W>(flow.backend.ip())?) >> (32 - 20);
    let mut filter = kernel.array::<u64>("BACKEND_FILTER")?;
    let word = filter.get(&(bit / 64), 0)?;
    filter.set(bit / 64, word | 1 << (bit % 64), 0)?;
    Ok(())
}

/// The tick of now.
fn now() -> Result<u32> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok(((now.tv_sec().cast_unsigned() * 1_000_000_000 + now.tv_nsec().cast_unsigned()) >> TICK_SHIFT) as u32)
}

fn affinity_key((client, service): &Client) -> Result<AffinityKey> {
    let wide = match client {
        IpAddr::V4(_) => [words::<V4>(*client)?[0], 0, 0, 0],
        IpAddr::V6(_) => words::<V6>(*client)?,
    };
    Ok(AffinityKey { client: wide, service: *service, kind: affinity::ADDRESS })
}

/// Removes a row of affinity, after a look whether it names the backend that it ought to.
pub fn settle_affinity(kernel: &mut Kernel, client: &Client, id: u32, generation: u32) -> Result<()> {
    let mut rows = kernel.hash::<AffinityKey, Affinity>("AFFINITY")?;
    let key = affinity_key(client)?;
    let row = rows.get(&key, 0).with_context(|| format!("no affinity of {client:?}"))?;
    rows.remove(&key)?;
    ensure!(
        (row.backend, row.generation) == (id, generation),
        "affinity of {client:?}: {row:?}, not {id} {generation}"
    );
    Ok(())
}

/// Makes a row of affinity older.
pub fn age_affinity(kernel: &mut Kernel, client: &Client, milliseconds: u64) -> Result<()> {
    let mut rows = kernel.hash::<AffinityKey, Affinity>("AFFINITY")?;
    let key = affinity_key(client)?;
    let row = rows.get(&key, 0).with_context(|| format!("no affinity of {client:?}"))?;
    rows.insert(key, Affinity { seen: row.seen.wrapping_sub(ticks(milliseconds)), ..row }, 0)?;
    Ok(())
}

/// Removes the row of a fragmented datagram, after a look whether it has the ports that it ought to.
pub fn settle_fragment(kernel: &mut Kernel, datagram: &Datagram, ports: (u16, u16)) -> Result<()> {
    for_family!(datagram.0, settle_ports(kernel, datagram, ports))
}

fn settle_ports<const W: usize>(kernel: &mut Kernel, datagram: &Datagram, ports: (u16, u16)) -> Result<()> {
    let (src, dst, proto, id) = *datagram;
    // The identification is as it lies in the packet: 16 bits of IPv4, 32 of IPv6.
    let raw = if W == V4 { id } else { id.to_be() };
    let key = FragmentKey::<W> { src: words(src)?, dst: words(dst)?, id: raw, proto: proto.into() };
    let mut rows = kernel.hash::<FragmentKey<W>, Fragment>(&named::<W>("FRAGMENTS"))?;
    let row = rows.get(&key, 0).with_context(|| format!("no ports of {datagram:?}"))?;
    rows.remove(&key)?;
    let found = (u16::from_be(row.sport), u16::from_be(row.dport));
    ensure!(found == ports, "ports of {datagram:?}: {found:?}, not {ports:?}");
    Ok(())
}

/// Removes every row that scripts leave; how many there were.
pub fn clear(kernel: &mut Kernel) -> Result<usize> {
    fn family<const W: usize>(kernel: &mut Kernel) -> Result<usize> {
        let mut count = empty::<FragmentKey<W>, Fragment>(kernel, &named::<W>("FRAGMENTS"))?;
        for name in ["FLOWS", "FLOWS_NEW"] {
            count += empty::<FlowKey<W>, Row<W>>(kernel, &named::<W>(name))?;
        }
        Ok(count)
    }
    Ok(family::<V4>(kernel)? + family::<V6>(kernel)? + empty::<AffinityKey, Affinity>(kernel, "AFFINITY")?)
}

fn empty<K: aya::Pod, V: aya::Pod>(kernel: &mut Kernel, name: &str) -> Result<usize> {
    let mut rows = kernel.hash::<K, V>(name)?;
    let keys: Vec<K> = rows.keys().collect::<Result<_, _>>()?;
    for key in &keys {
        rows.remove(key)?;
    }
    Ok(keys.len())
}

/// A flow that netfilter had before us.
pub fn foreign(proto: u8, client: SocketAddr, frontend: SocketAddr, backend: SocketAddr, now: u64) -> Flow {
    let none = super::flows::Direction { packets: 0, bytes: 0, seen: now };
    Flow {
        proto,
        client,
        frontend,
        backend,
        source: None,
        id: 0,
        generation: 0,
        service: 0,
        flags: culvert_abi::flow::FOREIGN | culvert_abi::flow::REPLIED,
        directions: [none; 2],
        established: true,
    }
}
