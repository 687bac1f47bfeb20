//! The address that a hook is called with: read, and written, in the three forms it has.

use aya_ebpf::programs::SockAddrContext;
use culvert_abi::{V4, V6};

use crate::choose::Chosen;

/// An address and port, both in network order.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Endpoint<const W: usize> {
    /// Address.
    pub addr: [u32; W],
    /// Port.
    pub port: u16,
}

/// Third word of an IPv4-mapped IPv6 address (RFC 4291 2.5.5.2), as loaded.
const MAPPED: u32 = 0xffff_u32.to_be();

/// How an address of the family lies in the context. Fields are read and written one by one and volatile, because the
/// verifier wants each access to the context to be of a field and of its size.
pub trait Name<const W: usize> {
    /// What the context holds.
    fn read(ctx: &SockAddrContext) -> Endpoint<W>;
    /// Replaces it.
    fn write(ctx: &SockAddrContext, name: &Endpoint<W>);
}

/// An IPv4 address in an IPv4 hook.
pub struct Inet4;
/// An IPv6 address in an IPv6 hook.
pub struct Inet6;
/// An IPv4 address in an IPv6 hook, mapped.
pub struct Mapped;

/// Reads a field of the context.
macro_rules! get {
    ($ctx:expr, $($field:tt)+) => {
        // SAFETY: the context outlives the program and the field is one of it.
        unsafe { (&raw const (*$ctx.sock_addr).$($field)+).read_volatile() }
    };
}

/// Writes a field of the context.
macro_rules! set {
    ($ctx:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: as for reading; these fields are the ones that the kernel lets a program write.
        unsafe { (&raw mut (*$ctx.sock_addr).$($field)+).write_volatile($value) }
    };
}

impl Name<V4> for Inet4 {
    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> Endpoint<V4> {
        Endpoint { addr: [get!(ctx, user_ip4)], port: get!(ctx, user_port) as u16 }
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, name: &Endpoint<V4>) {
        set!(ctx, name.addr[0], user_ip4);
        set!(ctx, name.port as u32, user_port);
    }
}

impl Name<V6> for Inet6 {
    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> Endpoint<V6> {
        let addr = [get!(ctx, user_ip6[0]), get!(ctx, user_ip6[1]), get!(ctx, user_ip6[2]), get!(ctx, user_ip6[3])];
        Endpoint { addr, port: get!(ctx, user_port) as u16 }
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, name: &Endpoint<V6>) {
        set!(ctx, name.addr[0], user_ip6[0]);
        set!(ctx, name.addr[1], user_ip6[1]);
        set!(ctx, name.addr[2], user_ip6[2]);
        set!(ctx, name.addr[3], user_ip6[3]);
        set!(ctx, name.port as u32, user_port);
    }
}

impl Name<V4> for Mapped {
    #[inline(always)]
    fn read(ctx: &SockAddrContext) -> Endpoint<V4> {
        Endpoint { addr: [get!(ctx, user_ip6[3])], port: get!(ctx, user_port) as u16 }
    }

    #[inline(always)]
    fn write(ctx: &SockAddrContext, name: &Endpoint<V4>) {
        // The prefix is there already: only mapped addresses are replaced, and by mapped ones.
        set!(ctx, name.addr[0], user_ip6[3]);
        set!(ctx, name.port as u32, user_port);
    }
}

/// Whether an IPv6 hook is called with an IPv4-mapped address.
#[inline(always)]
pub fn is_mapped(ctx: &SockAddrContext) -> bool {
    get!(ctx, user_ip6[0]) == 0 && get!(ctx, user_ip6[1]) == 0 && get!(ctx, user_ip6[2]) == MAPPED
}

/// The socket's protocol.
#[inline(always)]
pub fn protocol(ctx: &SockAddrContext) -> u8 {
    get!(ctx, protocol) as u8
}

/// Where a backend listens.
#[inline(always)]
pub fn of_backend<const W: usize>(chosen: &Chosen<W>) -> Endpoint<W> {
    Endpoint { addr: chosen.backend.addr, port: chosen.backend.port }
}
