#![no_std]
#![no_main]
//! Kernel programs.
use aya_ebpf::{macros::{classifier, map}, maps::Array, programs::TcContext, btf_maps};
use culvert_abi::*;

#[map(name = "BACKENDS_V4")]
static B4: Array<Backend<1>> = Array::with_max_entries(16, 0);

#[classifier]
pub fn pod_ingress(_ctx: TcContext) -> i32 { match B4.get(3) { Some(b) => b.port as i32, None => -1 } }

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! { loop {} }

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
