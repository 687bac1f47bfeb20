//! Whether a majority of the nodes grants what this one claims: the decision of `culvert-announce`'s `liveness::Kernel`.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use culvert_abi::{ELECTORATES, Liveness, VOTERS};

use crate::{clock, maps, maps::config};

/// The votes for this CPU's decision, in the lanes of [`culvert_abi::Voter::sets`]. In a map, because there the verifier does
/// not follow each count apart. Private to the programs.
#[map]
static VOTES: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

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
#[inline(never)]
pub fn grants() -> bool {
    if config::beat_port() == 0 {
        return false;
    }
    let (Some(live), Some(floor), Some(votes)) = (liveness(), floor(), VOTES.get_ptr_mut(0)) else { return false };
    let now = clock::boot_nanoseconds();
    // SAFETY: a row that is never freed, and an aligned word, which is read whole.
    let floor = unsafe { floor.read_volatile() };
    // SAFETY: this CPU's own row, and nothing else points to it here.
    let votes = unsafe { &mut *votes };
    now < live.agent_until && {
        count(live, floor, now, votes);
        is_quorum(live, now, votes)
    }
}

#[inline(always)]
fn count(live: &Liveness, floor: u64, now: u64, votes: &mut [u64; 2]) {
    *votes = [0; 2];
    for i in 0..VOTERS {
        if i >= live.count as usize {
            return;
        }
        let voter = &live.voters[i];
        if voter.id == live.id || is_granted(live, floor, now, &voter.id) {
            votes[0] += voter.sets[0];
            votes[1] += voter.sets[1];
        }
    }
}

/// Whether a node's grant is alive and for what is in force.
#[inline(always)]
fn is_granted(live: &Liveness, floor: u64, now: u64, voter: &u64) -> bool {
    // SAFETY: a row is replaced as a whole, and its words are read at once.
    let Some(grant) = (unsafe { maps::GRANTS.get(voter) }) else { return false };
    grant.version >= live.version && floor < grant.stamp && now < grant.stamp.saturating_add(live.lease)
}

/// A majority of each set that counts; of half of a set the witness decides.
#[inline(always)]
fn is_quorum(live: &Liveness, now: u64, votes: &[u64; 2]) -> bool {
    let witness = now < live.witness_until;
    for i in 0..ELECTORATES {
        let set = &live.electorates[i];
        let twice = (votes[i / 4] >> (16 * (i % 4)) & 0xffff) * 2;
        let size = u64::from(set.size);
        let wins = twice > size || witness && twice == size && twice > 0;
        let counts = i == 0 || now < set.until;
        if counts && !wins {
            return false;
        }
    }
    true
}
