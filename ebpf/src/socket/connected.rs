//! Connected sockets: what a socket asked for and got lies in its own storage, and is freed with it.
//!
//! A row may outlast its connection: a socket that is disconnected (connect to `AF_UNSPEC`) calls no hook. So a row counts
//! only as long as the socket's peer, or the packet's destination, is the backend that it names.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
    programs::SockAddrContext,
};
use culvert_abi::{Socket, proto};

use super::name::Endpoint;
use crate::{
    choose::{self, Chosen},
    maps::SOCKETS,
    words::{narrow, wide},
};

/// Remembers what a connect was translated to. Without memory for it the connection is served all the same, and only
/// shows the backend as its peer.
#[inline(always)]
pub fn remember<const W: usize>(ctx: &SockAddrContext, asked: &Endpoint<W>, protocol: u8, chosen: &Chosen<W>) {
    let Some(row) = storage(socket(ctx), BPF_SK_STORAGE_GET_F_CREATE as u64) else { return };
    let value = Socket {
        frontend: wide(&asked.addr),
        backend: wide(&chosen.backend.addr),
        frontend_port: asked.port,
        backend_port: chosen.backend.port,
        family: family::<W>(),
        proto: protocol as u16,
        backend_id: chosen.id,
        generation: chosen.backend.generation,
        service: chosen.backend.service,
    };
    // SAFETY: the row is this socket's own, and the socket is locked by its connect.
    unsafe { *row = value };
}

/// Forgets what was remembered of a socket.
#[inline(always)]
pub fn forget(ctx: &SockAddrContext) {
    // SAFETY: the map is a socket storage and the socket the context's own. That there was nothing is no error.
    unsafe { bpf_sk_storage_delete(map(), socket(ctx).cast()) };
}

/// The peer of a connected socket.
#[inline(always)]
pub fn peer<const W: usize>(ctx: &SockAddrContext) -> Option<Endpoint<W>> {
    let sk = socket(ctx);
    // SAFETY: the context's socket is valid for the program's run, and the verifier checks each field.
    unsafe {
        let port = (&raw const (*sk).dst_port).read_volatile();
        if port == 0 {
            return None;
        }
        let words = (&raw const (*sk).dst_ip6).cast::<u32>();
        let addr = core::array::from_fn(|i| {
            if W == 1 { (&raw const (*sk).dst_ip4).read_volatile() } else { words.add(i).read_volatile() }
        });
        Some(Endpoint { addr, port })
    }
}

/// The frontend to show for `seen`, if the socket's peer is a backend that it was given for that frontend.
#[inline(always)]
pub fn frontend_of<const W: usize>(
    ctx: &SockAddrContext,
    peer: &Endpoint<W>,
    seen: &Endpoint<W>,
) -> Option<Endpoint<W>> {
    let row = row::<W>(socket(ctx))?;
    (backend::<W>(row) == *peer && *peer == *seen).then(|| frontend::<W>(row))
}

/// The peer of a socket that is connected by way of the frontend `asked`.
#[inline(always)]
pub fn backend_of<const W: usize>(ctx: &SockAddrContext, asked: &Endpoint<W>) -> Option<Endpoint<W>> {
    let peer = peer::<W>(ctx)?;
    let row = row::<W>(socket(ctx))?;
    (backend::<W>(row) == peer && frontend::<W>(row) == *asked).then_some(peer)
}

/// Whether a UDP packet to `addr` and `port` comes from a socket that was connected to a backend there which is gone:
/// the Service's id, if so. For the packet hooks, where `sk` is the packet's own socket or null.
#[inline(always)]
pub fn gone<const W: usize>(sk: *mut bpf_sock, addr: &[u32; W], port: u16) -> Option<u32> {
    if sk.is_null() {
        return None;
    }
    let row = row::<W>(sk)?;
    if row.proto != proto::UDP as u16 || backend::<W>(row) != (Endpoint { addr: *addr, port }) {
        return None;
    }
    match choose::live::<W>(row.backend_id, row.service, Some(row.generation)) {
        Some(_) => None,
        None => Some(row.service),
    }
}

/// The row of a socket, if it is of this family.
#[inline(always)]
fn row<const W: usize>(sk: *mut bpf_sock) -> Option<&'static Socket> {
    let row = storage(sk, 0)?;
    // SAFETY: a value of the map, which lives as long as the program runs.
    let row = unsafe { &*row };
    (row.family == family::<W>()).then_some(row)
}

#[inline(always)]
fn backend<const W: usize>(row: &Socket) -> Endpoint<W> {
    Endpoint { addr: narrow(&row.backend), port: row.backend_port }
}

#[inline(always)]
fn frontend<const W: usize>(row: &Socket) -> Endpoint<W> {
    Endpoint { addr: narrow(&row.frontend), port: row.frontend_port }
}

/// The number that the family has in the maps of sockets.
#[inline(always)]
pub const fn family<const W: usize>() -> u16 {
    if W == 1 { 4 } else { 6 }
}

#[inline(always)]
fn socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: every hook of this kind has a socket.
    unsafe { (&raw const (*ctx.sock_addr).__bindgen_anon_1.sk).read_volatile() }
}

#[inline(always)]
fn storage(sk: *mut bpf_sock, flags: u64) -> Option<*mut Socket> {
    // SAFETY: the map is a socket storage, and `sk` comes from a context and is not null.
    let row = unsafe { bpf_sk_storage_get(map(), sk.cast(), core::ptr::null_mut(), flags) }.cast::<Socket>();
    (!row.is_null()).then_some(row)
}

#[inline(always)]
fn map() -> *mut core::ffi::c_void {
    (&raw const SOCKETS).cast_mut().cast()
}
