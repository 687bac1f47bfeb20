//! What is to become of a call: left alone, refused, or balanced.

use aya_ebpf::{EbpfContext, helpers::generated::bpf_get_netns_cookie, programs::SockAddrContext};
use culvert_abi::{Frontend, Reason, View, address, hook, proto, socket_mode, verdict};

use super::name::Endpoint;
use crate::{
    count::Incident,
    lookup::{self, Audience},
    maps::config,
};

/// What is to become of a call.
pub enum Decision<const W: usize> {
    /// It is none of ours, or the packet hooks know more.
    Leave,
    /// It fails at once.
    Refuse {
        /// Why.
        reason: Reason,
        /// What is counted and sampled.
        incident: Incident<W>,
    },
    /// It goes to a backend.
    Balance {
        /// The frontend that was asked for.
        frontend: Frontend,
        /// What this socket gets there.
        view: View,
        /// Cookie of the socket's network namespace: the client, as far as it is known.
        netns: u64,
    },
}

/// Decides about a call to an address.
#[inline(always)]
pub fn decide<const W: usize>(ctx: &SockAddrContext, asked: &Endpoint<W>, protocol: u8) -> Decision<W> {
    if protocol != proto::TCP && protocol != proto::UDP {
        return Decision::Leave;
    }
    let meaning = lookup::address(&asked.addr);
    if meaning & (address::FRONTEND | address::REFUSE) == 0 {
        return Decision::Leave;
    }
    // SAFETY: the context is this program's own.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let host = netns == config::host_netns();
    if !host && config::socket_mode() == socket_mode::HOST {
        return Decision::Leave;
    }
    let Some(frontend) = lookup::frontend(&asked.addr, asked.port, protocol) else {
        return unserved(asked, protocol, meaning);
    };
    // The packet hooks know the source address, this one does not. For the host the agent has judged its addresses
    // and written the verdict into the host's view.
    if !host && frontend.ranges != 0 {
        return Decision::Leave;
    }
    let view = lookup::view(&frontend, if host { Audience::Host } else { Audience::Pods });
    match view.verdict {
        verdict::BALANCE => Decision::Balance { frontend, view, netns },
        verdict::REJECT => refuse(asked, protocol, Reason::NoEndpoints, frontend.service),
        // A call can fail, but it cannot be lost. Its packets can.
        _ => Decision::Leave,
    }
}

/// A frontend that balances, and has nobody to give.
#[inline(always)]
pub fn nobody<const W: usize>(asked: &Endpoint<W>, protocol: u8, frontend: &Frontend) -> Decision<W> {
    refuse(asked, protocol, Reason::NoTable, frontend.service)
}

/// No frontend has this port.
#[inline(always)]
fn unserved<const W: usize>(asked: &Endpoint<W>, protocol: u8, meaning: u32) -> Decision<W> {
    if meaning & address::REFUSE == 0 || is_route_probe(asked, protocol) {
        return Decision::Leave;
    }
    refuse(asked, protocol, Reason::PortNotServed, 0)
}

/// Resolvers connect a datagram socket to each address that a name has, with the port that is wanted of TCP, only to
/// learn their own address on the way there (RFC 6724; getaddrinfo of glibc and musl). To refuse that would make them think that the
/// address cannot be reached.
#[inline(always)]
fn is_route_probe<const W: usize>(asked: &Endpoint<W>, protocol: u8) -> bool {
    protocol == proto::UDP && (asked.port == 0 || lookup::frontend(&asked.addr, asked.port, proto::TCP).is_some())
}

#[inline(always)]
fn refuse<const W: usize>(asked: &Endpoint<W>, protocol: u8, reason: Reason, service: u32) -> Decision<W> {
    let incident = Incident {
        src: [0; W],
        dst: asked.addr,
        sport: 0,
        dport: asked.port,
        proto: protocol,
        hook: hook::SOCKET,
        ifindex: 0,
        service,
    };
    Decision::Refuse { reason, incident }
}
