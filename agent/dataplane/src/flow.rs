//! What a flow row says: its state, and how long it may be idle. The same rules as the kernel programs'.

use std::time::Duration;

use culvert_abi::{TICK_SHIFT, flow, idle, proto, ticks};
use culvert_api::flows::FlowState;

use crate::codec::FlowRow;

/// The tick of a time of the monotonic clock.
pub fn tick(now: Duration) -> u32 {
    (now.as_nanos() >> TICK_SHIFT) as u32
}

/// Ticks as time.
pub fn span(ticks: u32) -> Duration {
    Duration::from_nanos(u64::from(ticks) << TICK_SHIFT)
}

/// Ticks from `then` to `now`; 0 if `then` is a little ahead.
pub fn elapsed(now: u32, then: u32) -> u32 {
    let ticks = now.wrapping_sub(then);
    if ticks > u32::MAX / 2 { 0 } else { ticks }
}

/// The state that the flags and the map tell.
pub fn state(row: &FlowRow) -> FlowState {
    let has = |bit| row.flags & bit != 0;
    if has(flow::FOREIGN) {
        return FlowState::Foreign;
    }
    let closed = has(flow::RESET) || has(flow::CLIENT_FIN) && has(flow::BACKEND_FIN);
    if row.proto != proto::UDP && closed {
        return FlowState::Closed;
    }
    if !row.established {
        return FlowState::New;
    }
    let closing = has(flow::CLIENT_FIN) || has(flow::BACKEND_FIN);
    if row.proto != proto::UDP && closing { FlowState::Closing } else { FlowState::Established }
}

/// Seconds that the flow may be idle.
pub fn limit(row: &FlowRow) -> u32 {
    match (row.proto, state(row)) {
        (proto::UDP, FlowState::New) => idle::UDP_NEW,
        (proto::UDP, _) => idle::UDP,
        (_, FlowState::New) => idle::OPENING,
        (_, FlowState::Established | FlowState::Foreign) => idle::ESTABLISHED,
        (_, FlowState::Closing) => idle::CLOSING,
        (_, FlowState::Closed) => idle::CLOSED,
    }
}

/// Whether the row has been idle for longer than that.
pub fn expired(row: &FlowRow, now: u32) -> bool {
    elapsed(now, row.seen) > ticks(limit(row))
}
