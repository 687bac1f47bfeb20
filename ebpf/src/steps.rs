//! A loop that the verifier follows once (`bpf_loop`), where it would follow each round of one of Rust's.

use core::ptr;

use aya_ebpf::{
    cty::{c_long, c_void},
    helpers::generated::bpf_loop,
};

/// A computation in steps.
pub trait Steps: Sized {
    /// Takes the n-th step, from 0. Whether it was the last.
    fn step(&mut self, n: u32) -> bool;

    /// Takes the steps, at most so many.
    #[inline(always)]
    fn run(&mut self, times: u32) {
        // SAFETY: the helper calls the function with what it is given here, while this waits.
        unsafe { bpf_loop(times, step::<Self> as *mut c_void, ptr::from_mut(self).cast(), 0) };
    }
}

/// A step, as the helper calls it.
#[inline(never)]
unsafe extern "C" fn step<S: Steps>(n: u32, steps: *mut c_void) -> c_long {
    // SAFETY: what `run` handed over, and nobody else holds meanwhile.
    c_long::from(unsafe { &mut *steps.cast::<S>() }.step(n))
}
