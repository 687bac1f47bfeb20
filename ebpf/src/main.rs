//! Culvert's kernel programs: Services balanced where packets and connections pass.
//!
//! ```text
//! ingress ─► packet, parse ─► flow ─(none)─► admit ─► choose ─► nat (destination)
//!    ├─► announce: ARP, neighbour discovery and echo for announced addresses
//!    └─► announce::beat, as a program of its own: what other nodes grant
//! egress  ─► packet, parse ─► flow ─────────────────────────► nat (source)
//!                               └─► outcome: leave, translate, drop, reject ─► verdict, reject
//! socket  ─► lookup ─► choose ─► the socket's storage
//! ```
//!
//! Keys and values are in `culvert-abi`, the walk of a packet is told in `docs/DATAPATH.md`.
#![no_std]
#![no_main]
#![allow(missing_docs)] // the macros of the entry points drop theirs
#![allow(clippy::needless_pass_by_value)] // the macros hand over contexts
#![feature(asm_experimental_arch)] // atomic instructions, see `count` and `announce::beat`

mod admit;
mod announce;
mod bridge;
mod choose;
mod clock;
mod count;
mod csum;
mod egress;
mod filter;
mod flow;
mod fragment;
mod icmp;
mod ingress;
mod lookup;
mod maps;
mod migrate;
mod nat;
mod outcome;
mod packet;
mod parse;
mod reject;
mod skb;
mod socket;
mod source;
mod steps;
mod trace;
mod verdict;
mod words;

use aya_ebpf::{macros::classifier, programs::TcContext};
use culvert_abi::hook;
use skb::Skb;

/// Where IP begins on a link with an Ethernet header, and on one without.
const ETHERNET: u32 = 14;
const BARE: u32 = 0;

#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    ingress::run::<{ hook::POD_INGRESS }, ETHERNET>(Skb::new(&ctx))
}

#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    egress::run::<{ hook::POD_EGRESS }, ETHERNET>(Skb::new(&ctx))
}

#[classifier]
pub fn node_ingress(ctx: TcContext) -> i32 {
    ingress::run::<{ hook::NODE_INGRESS }, ETHERNET>(Skb::new(&ctx))
}

#[classifier]
pub fn node_egress(ctx: TcContext) -> i32 {
    egress::run::<{ hook::NODE_EGRESS }, ETHERNET>(Skb::new(&ctx))
}

#[classifier]
pub fn node_ingress_l3(ctx: TcContext) -> i32 {
    ingress::run::<{ hook::NODE_INGRESS }, BARE>(Skb::new(&ctx))
}

#[classifier]
pub fn node_egress_l3(ctx: TcContext) -> i32 {
    egress::run::<{ hook::NODE_EGRESS }, BARE>(Skb::new(&ctx))
}

/// Called by `node_ingress` alone, as the end of its work on a packet.
#[classifier]
pub fn node_beat(ctx: TcContext) -> i32 {
    announce::beat(Skb::new(&ctx))
}

/// Nothing panics: the build refuses an object with a call to this.
#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

// The programs use helpers that the kernel gives to GPL-compatible programs alone.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
