//! The socket programs: a connection that starts on this node is translated once, where it starts.
//!
//! ```text
//! connect  ─► decide ─► choose ─► SOCKETS (the socket's storage) ─► the backend's address
//! sendmsg  ─► decide ─► choose ─► DATAGRAMS (two rows)           ─► the backend's address
//! recvmsg, getpeername ◄── what was stored: the frontend's address is shown again
//! ```
//!
//! What the hooks do not see, the packet hooks serve: SCTP (its sockets have no `pre_connect`, and call no program when
//! they send), raw sockets, and in-kernel sockets that bypass `kernel_connect` (NFS and others before Linux 6.6). Where a
//! hook writes into an in-kernel caller's own address (before 6.6, and stable kernels without that fix), the caller comes
//! again with the backend's address: no frontend, so it is left as it is.

mod connected;
mod datagrams;
mod decide;
mod name;

use aya_ebpf::{helpers::generated::bpf_set_retval, macros::cgroup_sock_addr, programs::SockAddrContext};
use culvert_abi::{V4, V6, proto};

pub use self::connected::gone;
use self::{
    datagrams::Datagrams,
    decide::Decision,
    name::{Inet4, Inet6, Mapped, Name, is_mapped},
};
use crate::{
    choose::{self, Chosen, Spot},
    count,
};

/// The call goes on, with the address as it is now.
const ALLOW: i32 = 1;
/// The call fails with the error that was set.
const FAIL: i32 = 0;
/// `ECONNREFUSED`, as a system call returns it.
const CONNECTION_REFUSED: i32 = -111;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect::<V4, Inet4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) { connect::<V4, Mapped>(&ctx) } else { connect::<V6, Inet6>(&ctx) }
}

/// Also called for IPv4-mapped addresses of IPv6 sockets, with the plain IPv4 address.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg::<V4, Inet4>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg::<V6, Inet6>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    recvmsg::<V4, Inet4>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) { recvmsg::<V4, Mapped>(&ctx) } else { recvmsg::<V6, Inet6>(&ctx) }
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    getpeername::<V4, Inet4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    if is_mapped(&ctx) { getpeername::<V4, Mapped>(&ctx) } else { getpeername::<V6, Inet6>(&ctx) }
}

/// TCP, and UDP that is to be connected.
#[inline(always)]
fn connect<const W: usize, N: Name<W>>(ctx: &SockAddrContext) -> i32 {
    let proto = name::protocol(ctx);
    let asked = N::read(ctx);
    let mut decision = decide::decide::<W>(ctx, &asked, proto);
    if let Decision::Balance { frontend, view, netns } = &decision {
        let client = choose::by_namespace(*netns, frontend.service);
        if let Some(chosen) = choose::choose::<W>(frontend, view, &client, Spot::Random, 0) {
            connected::remember(ctx, &asked, proto, &chosen);
            return translate::<W, N>(ctx, &chosen);
        }
        // Untranslated, the host's packets would meet no hook that answers them, and their caller would wait in vain.
        decision = decide::nobody(&asked, proto, frontend);
    }
    // Whatever the socket was connected to before, it is not any more.
    connected::forget(ctx);
    settle(&decision)
}

/// UDP to an address that is named in the call.
#[inline(always)]
fn sendmsg<const W: usize, N: Name<W>>(ctx: &SockAddrContext) -> i32 {
    if name::protocol(ctx) != proto::UDP {
        return ALLOW;
    }
    let asked = N::read(ctx);
    let decision = decide::decide::<W>(ctx, &asked, proto::UDP);
    let Decision::Balance { frontend, view, netns } = &decision else { return settle(&decision) };
    // A connected socket receives from its peer alone, so that its datagrams go nowhere else.
    if let Some(backend) = connected::backend_of(ctx, &asked) {
        N::write(ctx, &backend);
        return ALLOW;
    }
    let datagrams = Datagrams::of(ctx, asked);
    if let Some(chosen) = datagrams.chosen(frontend.service) {
        datagrams.show(&chosen);
        N::write(ctx, &name::of_backend(&chosen));
        return ALLOW;
    }
    let client = choose::by_namespace(*netns, frontend.service);
    let Some(chosen) = choose::choose::<W>(frontend, view, &client, Spot::Random, 0) else {
        return settle(&decide::nobody(&asked, proto::UDP, frontend));
    };
    datagrams.remember(&chosen);
    datagrams.show(&chosen);
    translate::<W, N>(ctx, &chosen)
}

/// Shows the frontend as the source of what a backend sent.
#[inline(always)]
fn recvmsg<const W: usize, N: Name<W>>(ctx: &SockAddrContext) -> i32 {
    if name::protocol(ctx) != proto::UDP {
        return ALLOW;
    }
    let seen = N::read(ctx);
    let shown = match connected::peer::<W>(ctx) {
        Some(peer) => connected::frontend_of(ctx, &peer, &seen),
        None => Datagrams::of(ctx, seen).frontend(),
    };
    if let Some(frontend) = shown {
        N::write(ctx, &frontend);
    }
    ALLOW
}

/// Shows the frontend as the peer.
#[inline(always)]
fn getpeername<const W: usize, N: Name<W>>(ctx: &SockAddrContext) -> i32 {
    let peer = N::read(ctx);
    if let Some(frontend) = connected::frontend_of(ctx, &peer, &peer) {
        N::write(ctx, &frontend);
    }
    ALLOW
}

/// Puts the backend in the frontend's place.
#[inline(always)]
fn translate<const W: usize, N: Name<W>>(ctx: &SockAddrContext, chosen: &Chosen<W>) -> i32 {
    count::connection::<W>(chosen.backend.service, chosen.id);
    N::write(ctx, &name::of_backend(chosen));
    ALLOW
}

/// Ends a call that is not translated.
#[inline(always)]
fn settle<const W: usize>(decision: &Decision<W>) -> i32 {
    let Decision::Refuse { reason, incident } = decision else { return ALLOW };
    count::incident(count::Outcome::Rejected, *reason, incident);
    // SAFETY: the helper takes a number; every hook that gets here may call it (connect and sendmsg).
    unsafe { bpf_set_retval(CONNECTION_REFUSED) };
    FAIL
}
