//! Time of the monotonic clock, mostly in ticks.

use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use culvert_abi::TICK_SHIFT;

/// The tick of now. The coarse clock moves once a jiffy, which is finer than any limit here, and costs a sixth of
/// the exact one.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: the helper takes nothing and returns a number.
    (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as u32
}

/// Nanoseconds of the exact clock: for what must end in time.
#[inline(always)]
pub fn nanoseconds() -> u64 {
    // SAFETY: likewise.
    unsafe { bpf_ktime_get_ns() }
}

/// Nanoseconds of the boot clock, which goes on while the machine is suspended: for what others count on the end of.
#[inline(always)]
pub fn boot_nanoseconds() -> u64 {
    // SAFETY: likewise.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// Ticks from `then` to `now`. Zero when `then` is a little ahead, as a row written by another CPU may be.
#[inline(always)]
pub fn elapsed(now: u32, then: u32) -> u32 {
    let ticks = now.wrapping_sub(then);
    if ticks > u32::MAX / 2 { 0 } else { ticks }
}
