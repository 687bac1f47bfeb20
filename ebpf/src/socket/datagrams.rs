//! Unconnected UDP: each peer of a socket has a row, and each backend that a socket was given another one.

use aya_ebpf::{EbpfContext, helpers::generated::bpf_get_socket_cookie, programs::SockAddrContext};
use culvert_abi::{Datagram, DatagramKey, datagram};

use super::{
    connected::family,
    name::{self, Endpoint},
};
use crate::{
    choose::{self, Chosen},
    maps::DATAGRAMS,
    words::{narrow, wide},
};

/// What is remembered of one socket and one address: the one that a call names.
pub struct Datagrams<const W: usize> {
    cookie: u64,
    name: Endpoint<W>,
}

impl<const W: usize> Datagrams<W> {
    /// Of the context's socket, and an address.
    #[inline(always)]
    pub fn of(ctx: &SockAddrContext, name: Endpoint<W>) -> Self {
        // SAFETY: the context is this program's own.
        Self { cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }, name }
    }

    /// The backend that the frontend `name` means to this socket, while it lives.
    #[inline(always)]
    pub fn chosen(&self, service: u32) -> Option<Chosen<W>> {
        // SAFETY: plain data, copied at once. A row that is reused meanwhile names a backend too, and `live` checks
        // that it is one of this Service.
        let row = unsafe { DATAGRAMS.get(self.key(self.name, datagram::SEND)) }?;
        choose::live(row.backend_id, service, Some(row.generation))
    }

    /// The frontend to show for datagrams from the backend `name`.
    #[inline(always)]
    pub fn frontend(&self) -> Option<Endpoint<W>> {
        // SAFETY: as above; the worst is a wrong source on one datagram, which its reader then refuses.
        let row = unsafe { DATAGRAMS.get(self.key(self.name, datagram::RECEIVE)) }?;
        Some(Endpoint { addr: narrow(&row.addr), port: row.port })
    }

    /// Remembers the backend chosen for the frontend `name`.
    #[inline(always)]
    pub fn remember(&self, chosen: &Chosen<W>) {
        write(&self.key(self.name, datagram::SEND), &value(name::of_backend(chosen), chosen));
    }

    /// Has the frontend `name` shown for datagrams from its backend. Called at each send, so that the frontend which
    /// was asked last is shown where two have the same backend, and that a row which was evicted is there again.
    #[inline(always)]
    pub fn show(&self, chosen: &Chosen<W>) {
        let key = self.key(name::of_backend(chosen), datagram::RECEIVE);
        let wanted = value(self.name, chosen);
        // SAFETY: plain data, compared at once.
        if unsafe { DATAGRAMS.get(key) }.is_some_and(|row| row.addr == wanted.addr && row.port == wanted.port) {
            return;
        }
        write(&key, &wanted);
    }

    #[inline(always)]
    fn key(&self, name: Endpoint<W>, direction: u32) -> DatagramKey {
        DatagramKey { cookie: self.cookie, addr: wide(&name.addr), port: name.port, family: family::<W>(), direction }
    }
}

#[inline(always)]
fn value<const W: usize>(name: Endpoint<W>, chosen: &Chosen<W>) -> Datagram {
    Datagram {
        addr: wide(&name.addr),
        port: name.port,
        zero: 0,
        backend_id: chosen.id,
        generation: chosen.backend.generation,
    }
}

/// Writes a row: in place where there is one, because an update of an LRU map takes a fresh element and evicts others
/// for it. A full map costs the socket its memory of this peer, not the datagram.
#[inline(always)]
fn write(key: &DatagramKey, value: &Datagram) {
    if let Some(row) = DATAGRAMS.get_ptr_mut(key) {
        // SAFETY: a live row of plain data, written by its own socket alone.
        unsafe { *row = *value };
        return;
    }
    let _ = DATAGRAMS.insert(key, value, 0);
}
