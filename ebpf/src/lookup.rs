//! What an address and port mean, and to whom.

use culvert_abi::{Frontend, FrontendKey, View, audience};

use crate::maps::{self, RangeData};

/// Bits of [`culvert_abi::address`]; 0 for an address that is not ours.
#[inline(always)]
pub fn address<const W: usize>(addr: &[u32; W]) -> u32 {
    // SAFETY: a word is read whole; a row that is reused meanwhile holds another valid word.
    unsafe { maps::addresses::<W>().get(addr) }.copied().unwrap_or(0)
}

/// The frontend at an address, port (network order) and protocol.
///
/// It is a copy: a row can be reused for another key while it is read. Whoever chooses a backend by it checks that
/// the backend is of the same Service, so a copy of two halves leads nowhere.
#[inline(always)]
pub fn frontend<const W: usize>(addr: &[u32; W], port: u16, proto: u8) -> Option<Frontend> {
    let key = FrontendKey { addr: *addr, port, proto, zero: 0 };
    // SAFETY: the value is plain data and copied at once.
    unsafe { maps::frontends::<W>().get(key) }.copied()
}

/// Who asks. The views lie at constant offsets, so that no index has to be proven.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// A pod of this node.
    Pods,
    /// This node's host network.
    Host,
    /// Everything else.
    External,
}

/// What an audience gets at a frontend.
#[inline(always)]
pub fn view(frontend: &Frontend, audience: Audience) -> View {
    match audience {
        Audience::Pods => frontend.views[audience::PODS],
        Audience::Host => frontend.views[audience::HOST],
        Audience::External => frontend.views[audience::EXTERNAL],
    }
}

/// Whether a source address is inside a set of ranges; set 0 holds every address.
#[inline(always)]
pub fn source_allowed<const W: usize>(ranges: u32, source: &[u32; W]) -> bool {
    ranges == 0 || maps::ranges::<W>().get(RangeData { ranges, addr: *source }.host()).is_some()
}
