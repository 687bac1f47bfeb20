//! Counters and samples: what happened to whom, and why.

use core::arch::asm;

use culvert_abi::{Event, Reason, ServiceCounters};

use crate::{clock, maps, words::wide};

/// Samples that one CPU may write in a window of [`WINDOW_SHIFT`].
const SAMPLES: u32 = 128;
/// A window is 2^10 ticks: 1.07 seconds.
const WINDOW_SHIFT: u32 = 10;

/// What became of a packet or connection that was not served.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The client was told.
    Rejected,
    /// It was not.
    Dropped,
}

/// A packet or connection that was not served.
#[derive(Clone, Copy)]
pub struct Incident<const W: usize> {
    /// Source address as far as it is known, network order.
    pub src: [u32; W],
    /// Destination address, network order.
    pub dst: [u32; W],
    /// Source port, network order.
    pub sport: u16,
    /// Destination port, network order.
    pub dport: u16,
    /// IP protocol number.
    pub proto: u8,
    /// One of [`culvert_abi::hook`].
    pub hook: u8,
    /// Link, 0 for a socket.
    pub ifindex: u32,
    /// The Service port's id, 0 if unknown.
    pub service: u32,
}

/// Counts a reason, and nothing else: for packets that go on all the same.
#[inline(always)]
pub fn reason(reason: Reason) {
    if let Some(count) = maps::REASONS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own counter.
        unsafe { *count += 1 };
    }
}

/// Counts a drop or reject: by reason, at its Service, and as a sample while this CPU may still write some.
#[inline(always)]
pub fn incident<const W: usize>(outcome: Outcome, why: Reason, incident: &Incident<W>) {
    reason(why);
    service(incident.service, |counters| match outcome {
        Outcome::Rejected => counters.rejected += 1,
        Outcome::Dropped => counters.dropped += 1,
    });
    if may_sample() {
        // The ring is full when nobody reads it; samples are not worth waiting for.
        let _ = maps::EVENTS.output::<Event>(&event(why, incident), 0);
    }
}

/// Changes the counters of a Service port on this CPU; 0 is no Service.
#[inline(always)]
pub fn service(id: u32, change: impl FnOnce(&mut ServiceCounters)) {
    if id == 0 {
        return;
    }
    if let Some(counters) = maps::SERVICE_COUNTERS.get_ptr_mut(id) {
        // SAFETY: this CPU's own row, and nothing else points to it here.
        change(unsafe { &mut *counters });
    }
}

/// Counts a new flow or translated connect at its Service and its backend.
#[inline(always)]
pub fn connection<const W: usize>(service_id: u32, backend: u32) {
    service(service_id, |counters| counters.connections += 1);
    let Some(counters) = maps::backend_counters::<W>().get_ptr_mut(backend) else { return };
    // SAFETY: an aligned word of a live row, which every CPU adds to atomically.
    unsafe { add(&raw mut (*counters).connections, 1) };
}

/// Folds the packets and bytes of an ended flow into its backend's counters.
#[inline(always)]
pub fn ended<const W: usize>(backend: u32, packets: u64, bytes: u64) {
    let Some(counters) = maps::backend_counters::<W>().get_ptr_mut(backend) else { return };
    // SAFETY: as in `connection`.
    unsafe {
        add(&raw mut (*counters).packets, packets);
        add(&raw mut (*counters).bytes, bytes);
    }
}

/// Adds to a word that other CPUs add to as well.
///
/// # Safety
/// `word` is aligned, valid, and changed only like this.
#[inline(always)]
pub unsafe fn add(word: *mut u64, by: u64) {
    // SAFETY: the caller's promise. In assembly because `core` offers no atomic addition for this target.
    unsafe { asm!("lock *(u64 *)({word} + 0) += {by}", word = in(reg) word, by = in(reg) by, options(nostack)) };
}

/// Takes one sample of this CPU's window, if any is left.
#[inline(always)]
fn may_sample() -> bool {
    let Some(state) = maps::SAMPLING.get_ptr_mut(0) else { return false };
    let window = clock::now() >> WINDOW_SHIFT;
    // SAFETY: this CPU's own row; both elements lie within it.
    unsafe {
        let (current, used) = (state.cast::<u32>(), state.cast::<u32>().add(1));
        if *current != window {
            *current = window;
            *used = 0;
        }
        if *used >= SAMPLES {
            return false;
        }
        *used += 1;
    }
    true
}

/// The sample of an incident.
#[inline(always)]
fn event<const W: usize>(reason: Reason, incident: &Incident<W>) -> Event {
    Event {
        src: wide(&incident.src),
        dst: wide(&incident.dst),
        sport: incident.sport,
        dport: incident.dport,
        ifindex: incident.ifindex,
        family: if W == 1 { 4 } else { 6 },
        proto: incident.proto,
        reason: reason as u8,
        hook: incident.hook,
        service: incident.service,
    }
}
