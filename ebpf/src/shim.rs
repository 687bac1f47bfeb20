//! The bench's shim: restores the packet, varies its flow, and tail-calls the program that is measured.
//!
//! `BPF_PROG_TEST_RUN` does not restore the packet between two runs, so a program that rewrites it would see its own
//! output. The shim's own cost is measured with a target that does nothing, and subtracted.
#![no_std]
#![no_main]
#![allow(missing_docs)] // the macros of the entry points drop theirs
#![allow(clippy::needless_pass_by_value)] // the macros hand over contexts

use aya_ebpf::{
    helpers::generated::{bpf_skb_change_tail, bpf_skb_store_bytes},
    macros::{classifier, map},
    maps::{Array, PerCpuArray, ProgramArray},
    programs::TcContext,
};

/// Bytes of every packet, with its Ethernet header.
const LEN: u32 = 128;
/// `TCX_NEXT`, and `TC_ACT_UNSPEC`: the next program decides.
const NEXT: i32 = -1;

/// The packet, and what of it changes from run to run.
#[repr(C)]
#[derive(Clone, Copy)]
struct Template {
    /// How many flows take turns.
    flows: u32,
    /// Offset of the 32-bit word of an address that changes.
    address_at: u32,
    /// Offset of the port that changes.
    port_at: u32,
    /// The word's value in flow 0, host order.
    address: u32,
    bytes: [u8; LEN as usize],
}

#[map]
static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);
#[map]
static TARGET: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[map]
static TURN: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// Runs the target on the next flow's packet.
#[classifier]
pub fn shim(ctx: TcContext) -> i32 {
    prepare(&ctx);
    // SAFETY: the target is a classifier like this one; a missing one lets the call return.
    unsafe { TARGET.tail_call(&ctx, 0) };
    NEXT
}

/// The target that does nothing.
#[classifier]
pub fn stub(_ctx: TcContext) -> i32 {
    NEXT
}

#[inline(always)]
fn prepare(ctx: &TcContext) -> Option<()> {
    let template = TEMPLATE.get(0)?;
    let turn = TURN.get_ptr_mut(0)?;
    // SAFETY: this CPU's own word.
    let index = unsafe {
        let index = *turn;
        *turn = if index + 1 >= template.flows { 0 } else { index + 1 };
        index
    };
    let skb = ctx.skb.skb;
    let address = template.address.wrapping_add(index >> 14).to_be();
    let port = (1024 + (index & 0x3fff) as u16).to_be();
    // SAFETY: the helpers check offsets and lengths; the sources live through the calls.
    unsafe {
        if (*skb).len != LEN {
            bpf_skb_change_tail(skb, LEN, 0);
        }
        bpf_skb_store_bytes(skb.cast(), 0, template.bytes.as_ptr().cast(), LEN, 0);
        bpf_skb_store_bytes(skb.cast(), template.address_at, (&raw const address).cast(), 4, 0);
        bpf_skb_store_bytes(skb.cast(), template.port_at, (&raw const port).cast(), 2, 0);
    }
    Some(())
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
