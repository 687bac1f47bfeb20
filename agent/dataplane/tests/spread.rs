//! How evenly Maglev spreads flows, and how many move when backends come and go. Figures are printed (`--nocapture`).

use std::net::IpAddr;

use culvert_abi::{MAGLEV_SIZES, flow_hash, proto};
use culvert_dataplane::maglev::{self, Member};

fn members(count: usize, seed: u32) -> Vec<Member> {
    let address = |n: usize| IpAddr::from((0x0a00_0000 + (seed << 12) + n as u32).to_be_bytes());
    (1..=count).map(|n| Member { address: address(n), port: 8080, weight: 1 }).collect()
}

/// The member at each slot.
fn table(members: &[Member]) -> Vec<Member> {
    let size = MAGLEV_SIZES[usize::from(maglev::class(members.len()))];
    maglev::slots(members, size).into_iter().map(|index| members[usize::from(index)]).collect()
}

/// A generator of test flows (xorshift64, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// The slot that the kernel programs look at.
fn slot(hash: u32, size: usize) -> usize {
    ((u64::from(hash) * size as u64) >> 32) as usize
}

#[test]
fn the_largest_share_of_ten_is_under_1_01_of_the_mean() {
    const FLOWS: u32 = 10_000_000;
    let mut worst = 0.0_f64;
    for seed in 1..=20 {
        let size = MAGLEV_SIZES[usize::from(maglev::class(10))];
        let slots = maglev::slots(&members(10, seed), size);
        let mut random = Random(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(u64::from(seed)));
        let mut shares = [0_u32; 10];
        for _ in 0..FLOWS {
            let (flow, ports) = (random.next(), random.next());
            let hash = flow_hash(&[flow as u32], &[(flow >> 32) as u32], ports as u16, 443, proto::TCP);
            shares[usize::from(slots[slot(hash, slots.len())])] += 1;
        }
        let largest = f64::from(*shares.iter().max().unwrap()) * 10.0 / f64::from(FLOWS);
        worst = worst.max(largest);
        assert!(largest < 1.01, "seed {seed}: the largest of {shares:?} is {largest} of the mean");
    }
    println!("largest share of 10 backends, 10,000,000 flows, 20 seeds: {worst:.5} of the mean");
}

/// Clients of one small network that count their ports up, to one address: nothing random about them.
#[test]
fn flows_that_are_alike_spread_as_well() {
    let size = MAGLEV_SIZES[usize::from(maglev::class(10))];
    let slots = maglev::slots(&members(10, 1), size);
    let mut shares = [0_u32; 10];
    for client in 0..100_u32 {
        for port in 20_000..60_000_u16 {
            let source = (0x0a01_0000 + client).to_be();
            let hash = flow_hash(&[source], &[0x0a60_0001_u32.to_be()], port.to_be(), 443_u16.to_be(), proto::TCP);
            shares[usize::from(slots[slot(hash, slots.len())])] += 1;
        }
    }
    let largest = f64::from(*shares.iter().max().unwrap()) * 10.0 / 4_000_000.0;
    println!("largest share of 10 backends, 4,000,000 neighbouring flows: {largest:.5} of the mean");
    assert!(largest < 1.01, "{shares:?}");
}

/// Slots of `before`, of members that are in `after` too, that another member has in `after`; of all such slots.
fn moved(before: &[Member], after: &[Member]) -> f64 {
    let (old, new) = (table(before), table(after));
    // Slots of tables of different sizes are compared where the same hashes fall.
    let samples = old.len().max(new.len()) * 4;
    let mut stayed = 0_u32;
    let mut moved = 0_u32;
    for sample in 0..samples {
        let hash = ((sample as u64) << 32).div_ceil(samples as u64) as u32;
        let (old, new) = (old[slot(hash, old.len())], new[slot(hash, new.len())]);
        if !after.contains(&old) {
            continue;
        }
        if old == new { stayed += 1 } else { moved += 1 }
    }
    f64::from(moved) / f64::from(stayed + moved)
}

#[test]
fn one_of_100_that_leaves_moves_at_most_a_hundredth_of_the_others() {
    let mut worst = 0.0_f64;
    for seed in 1..=20 {
        let before = members(100, seed);
        let gone = (seed * 37 % 100) as usize;
        let after: Vec<Member> = before.iter().filter(|member| **member != before[gone]).copied().collect();
        let share = moved(&before, &after);
        worst = worst.max(share);
        assert!(share <= 0.01, "seed {seed}: {:.2} % moved", share * 100.0);
    }
    println!("1 of 100 backends leaves: at most {:.2} % of the others' slots move (20 seeds)", worst * 100.0);
}

#[test]
fn one_more_backend_moves_little_but_for_its_own_share() {
    for (from, to) in [(2_u16, 3_u16), (3, 4), (10, 11), (99, 100), (100, 101)] {
        let share = moved(&members(from.into(), 1), &members(to.into(), 1));
        let must = 1.0 / f64::from(to);
        println!("{from} -> {to} backends: {:.1} % of the slots move, {:.1} % must", share * 100.0, must * 100.0);
        assert!(share >= must * 0.99 && share <= must + 0.03, "{from} -> {to}: {share}");
    }
    for (from, to) in [(1_usize, 2_usize), (12, 13), (30, 31), (125, 126)] {
        assert_ne!(maglev::class(from), maglev::class(to));
        if from > 1 {
            let share = moved(&members(from, 1), &members(to, 1));
            println!("{from} -> {to} backends, across a size class: {:.1} % of the slots move", share * 100.0);
        }
    }
}

#[test]
fn two_agents_fed_in_different_order_hold_equal_tables() {
    for count in [2, 10, 13, 100, 126] {
        let forth = members(count, 3);
        let mut other: Vec<Member> = forth.clone();
        other.reverse();
        other.rotate_left(count / 3);
        assert_eq!(table(&forth), table(&other), "{count} backends");
    }
}
