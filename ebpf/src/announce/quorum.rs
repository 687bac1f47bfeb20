//! Whether a majority of the nodes grants what this one claims: the decision of `culvert-announce`'s `liveness::Kernel`.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use culvert_abi::{ELECTORATES, Liveness, VOTERS, Voter};

use crate::{clock, maps, maps::config};

/// This CPU's decision. In a map, and read from there each time: what the verifier learns of a number in one comparison
/// it would else follow through all that come after. Private to the programs.
#[map]
static DECISION: PerCpuArray<Decision> = PerCpuArray::with_max_entries(1, 0);

#[repr(C)]
struct Decision {
    now: u64,
    floor: u64,
    /// In the lanes of [`culvert_abi::Voter::sets`].
    votes: [u64; 2],
}

/// What the agent says of this node.
#[inline(always)]
pub fn liveness() -> Option<&'static Liveness> {
    // SAFETY: plain words; the agent replaces the row as a whole, and not twice while a program reads it.
    unsafe { maps::LIVENESS.get(0) }
}

/// Stamps up to here count no more.
#[inline(always)]
pub fn floor() -> Option<*mut u64> {
    maps::FLOOR.get_ptr_mut(0)
}

/// Whether the agent is there, or was a moment ago, and there is a majority of each electorate.
#[inline(always)]
pub fn grants() -> bool {
    config::beat_port() != 0 && quorum_grants() != 0
}

/// Its own symbol makes it a function that the verifier walks once, whatever its callers know, and not at each call.
/// A number, because that is what such a function can return.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn quorum_grants() -> u32 {
    u32::from(decide())
}

#[inline(always)]
fn decide() -> bool {
    let (Some(live), Some(floor), Some(decision)) = (liveness(), floor(), DECISION.get_ptr_mut(0)) else {
        return false;
    };
    // SAFETY: this CPU's own row, and nothing else points to it here.
    let decision = unsafe { &mut *decision };
    // SAFETY: a row that is never freed, and an aligned word, which is read whole.
    decision.floor = unsafe { floor.read_volatile() };
    decision.now = clock::boot_nanoseconds();
    decision.votes = [0; 2];
    for i in 0..VOTERS {
        if i >= live.count as usize {
            break;
        }
        decision.count(live, &live.voters[i]);
    }
    decision.now() < live.agent_until && decision.is_quorum(live)
}

impl Decision {
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a plain word.
        unsafe { (&raw const self.now).read_volatile() }
    }

    #[inline(always)]
    fn floor(&self) -> u64 {
        // SAFETY: a plain word.
        unsafe { (&raw const self.floor).read_volatile() }
    }

    #[inline(never)]
    fn count(&mut self, live: &Liveness, voter: &Voter) {
        if voter.id == live.id || self.is_granted(live, voter.id) {
            self.votes[0] += voter.sets[0];
            self.votes[1] += voter.sets[1];
        }
    }

    /// Whether a node's grant is alive and for what is in force.
    #[inline(always)]
    fn is_granted(&self, live: &Liveness, voter: u64) -> bool {
        // SAFETY: a row is replaced as a whole, and its words are read at once.
        let Some(grant) = (unsafe { maps::GRANTS.get(voter) }) else { return false };
        let alive = self.floor() < grant.stamp && self.now() < grant.stamp.saturating_add(live.lease);
        alive && grant.version >= live.version
    }

    /// A majority of each set that counts; of half of a set the witness decides.
    #[inline(always)]
    fn is_quorum(&self, live: &Liveness) -> bool {
        let witness = self.now() < live.witness_until;
        for i in 0..ELECTORATES {
            let set = &live.electorates[i];
            let twice = (self.votes[i / 4] >> (16 * (i % 4)) & 0xffff) * 2;
            let size = u64::from(set.size);
            let wins = twice > size || witness && twice == size && twice > 0;
            let counts = i == 0 || self.now() < set.until;
            if counts && !wins {
                return false;
            }
        }
        true
    }
}
