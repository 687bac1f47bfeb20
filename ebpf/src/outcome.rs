//! What the decision comes to. A number, because it is returned by functions of the kernel's machine, in one register.

use culvert_abi::Reason;

/// What happens to a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Outcome(u32);

impl Outcome {
    /// It goes on as it is.
    pub const LEAVE: Self = Self(0);
    /// It is rewritten towards its target, and goes on.
    pub const TRANSLATE: Self = Self(1);

    /// It goes to the node that had the address before.
    pub const HAND_OVER: Self = Self(2);

    const DROP: u32 = 0x100;
    const REJECT: u32 = 0x200;

    /// It dies here, silently.
    #[inline(always)]
    pub const fn drop(reason: Reason) -> Self {
        Self(Self::DROP | reason as u32)
    }

    /// It dies here, and its sender is told if it may be.
    #[inline(always)]
    pub const fn reject(reason: Reason) -> Self {
        Self(Self::REJECT | reason as u32)
    }

    /// Whether its sender is to be told.
    #[inline(always)]
    pub const fn is_reject(self) -> bool {
        self.0 & Self::REJECT != 0
    }

    /// Why it dies: the number of a [`Reason`].
    #[inline(always)]
    pub const fn reason(self) -> u32 {
        self.0 & 0xff
    }
}
