//! What is sent when, and what is a conflict: RFC 5227, RFC 4862, and MetalLB's bursts.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use culvert_announce::probe::packet::{Arp, Mac, Neighbor, Packet};
use culvert_announce::probe::{Conflict, Start, Time, Watch};
use proptest::collection::vec;
use proptest::prelude::*;

const MINE: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OURS: Mac = Mac([2, 0, 0, 0, 0, 2]);
const RIVAL: Mac = Mac([2, 0, 0, 0, 0, 9]);

fn v4() -> IpAddr {
    "192.0.2.1".parse().unwrap()
}

fn v6() -> IpAddr {
    "2001:db8::1".parse().unwrap()
}

/// Milliseconds.
fn ms(ms: u64) -> Time {
    Duration::from_millis(ms)
}

fn cluster() -> BTreeSet<Mac> {
    BTreeSet::from([MINE, OURS])
}

fn probe(mac: Mac, address: IpAddr) -> Packet {
    match address {
        IpAddr::V4(v4) => Packet::Arp(Arp::probe(mac, v4)),
        IpAddr::V6(v6) => Packet::Neighbor(Neighbor::probe(mac, v6)),
    }
}

fn announcement(mac: Mac, address: IpAddr) -> Packet {
    match address {
        IpAddr::V4(v4) => Packet::Arp(Arp::announcement(mac, v4)),
        IpAddr::V6(v6) => Packet::Neighbor(Neighbor::unsolicited(mac, v6)),
    }
}

/// Everything that is sent up to a time.
fn run(watch: &mut Watch, until: Time) -> Vec<(Time, Packet)> {
    let mut sent = Vec::new();
    while let Some(now) = watch.next().filter(|next| *next <= until) {
        sent.extend(watch.tick(now).into_iter().map(|packet| (now, packet)));
    }
    sent
}

/// Into probing, with as many probes sent as are named.
fn probing(address: IpAddr, probes: usize) -> (Watch, Time) {
    let mut watch = Watch::new(address, MINE, Start::Probe, 7, Time::ZERO);
    let mut now = Time::ZERO;
    for _ in 0..probes {
        now = watch.next().unwrap();
        assert_eq!(watch.tick(now), [probe(MINE, address)]);
    }
    (watch, now)
}

#[test]
fn a_free_address_of_ipv4() {
    for seed in 0..200 {
        let start = ms(5000);
        let mut watch = Watch::new(v4(), MINE, Start::Probe, seed, start);
        assert!(!watch.speaks());
        let sent = run(&mut watch, ms(60_000));
        let (probes, burst) = sent.split_at(3);
        assert!(probes.iter().all(|(_, packet)| *packet == probe(MINE, v4())));
        assert!((start..=start + ms(1000)).contains(&probes[0].0));
        for pair in probes.windows(2) {
            assert!((pair[0].0 + ms(1000)..=pair[0].0 + ms(2000)).contains(&pair[1].0), "{pair:?}");
        }
        assert_eq!(burst[0].0, probes[2].0 + ms(2000));
        assert!(watch.speaks() && watch.next().is_none());
        let IpAddr::V4(address) = v4() else { unreachable!() };
        let reply = Packet::Arp(Arp { is_reply: true, ..Arp::announcement(MINE, address) });
        for (i, step) in burst.chunks(2).enumerate() {
            let at = burst[0].0 + ms(1100 * i as u64);
            assert_eq!(step, [(at, announcement(MINE, v4())), (at, reply)]);
        }
        // At once, and every 1.1 s within 5 s.
        assert_eq!(burst.len(), 2 * 5);
    }
}

#[test]
fn a_free_address_of_ipv6() {
    let mut watch = Watch::new(v6(), MINE, Start::Probe, 3, Time::ZERO);
    let sent = run(&mut watch, ms(60_000));
    let first = sent[0].0;
    assert!(first <= ms(1000));
    assert_eq!(sent[0].1, probe(MINE, v6()));
    let burst: Vec<_> = (0..5).map(|i| (first + ms(1000 + 1100 * i), announcement(MINE, v6()))).collect();
    assert_eq!(sent[1..], burst);
}

#[test]
fn a_successor_speaks_at_once() {
    for address in [v4(), v6()] {
        let mut watch = Watch::new(address, MINE, Start::AtOnce, 3, ms(70));
        assert!(watch.speaks());
        assert_eq!(watch.tick(ms(70))[0], announcement(MINE, address));
    }
}

/// What is heard while it is asked whether the address is free.
#[test]
fn conflicts_of_a_probe() {
    for address in [v4(), v6()] {
        for probes in 0..=1 {
            for (packet, want) in [
                (announcement(RIVAL, address), true),
                (probe(RIVAL, address), true),
                (announcement(OURS, address), false),
                (probe(OURS, address), false),
                (probe(MINE, address), false),
                (announcement(RIVAL, if address == v4() { v6() } else { v4() }), false),
            ] {
                let (mut watch, now) = probing(address, probes);
                let got = watch.heard(&packet, &cluster(), now + ms(10));
                let conflict = (Conflict { mac: RIVAL, gives_way: true }, vec![]);
                assert_eq!(got, want.then_some(conflict), "{packet:?}");
                // It is asked again after a minute, and not announced before.
                let again = run(&mut watch, now + ms(10 + 59_999));
                assert_eq!(again.is_empty(), want, "{packet:?}");
                run(&mut watch, now + ms(80_000));
                assert!(watch.speaks());
            }
        }
    }
}

/// A host that asks for the address, as all do that want to talk to it, is no rival.
#[test]
fn clients_are_no_conflict() {
    let (IpAddr::V4(four), IpAddr::V6(six)) = (v4(), v6()) else { unreachable!() };
    let client = "192.0.2.77".parse().unwrap();
    let request = Arp { is_reply: false, sender_mac: RIVAL, sender: client, target_mac: Mac([0; 6]), target: four };
    let source = "2001:db8::77".parse().unwrap();
    let solicitation = Neighbor::Solicitation { from: RIVAL, source, target: six, link: Some(RIVAL) };
    for (address, packet) in [(v4(), Packet::Arp(request)), (v6(), Packet::Neighbor(solicitation))] {
        let (mut watch, now) = probing(address, 1);
        assert_eq!(watch.heard(&packet, &cluster(), now), None);
        let mut watch = Watch::new(address, MINE, Start::AtOnce, 3, Time::ZERO);
        assert_eq!(watch.heard(&packet, &cluster(), now), None);
        // Who asks before it uses the address gets the kernel's answer.
        assert_eq!(watch.heard(&probe(RIVAL, address), &cluster(), now), None);
    }
}

#[test]
fn defended_once_in_ten_seconds() {
    for address in [v4(), v6()] {
        let mut watch = Watch::new(address, MINE, Start::AtOnce, 3, Time::ZERO);
        run(&mut watch, ms(10_000));
        let conflict = Conflict { mac: RIVAL, gives_way: false };
        let mine = vec![announcement(MINE, address)];
        for (at, defence) in [(20_000, true), (20_001, false), (29_999, false), (30_000, true), (39_999, false)] {
            let got = watch.heard(&announcement(RIVAL, address), &cluster(), ms(at));
            assert_eq!(got, Some((conflict, if defence { mine.clone() } else { vec![] })), "{at} ms");
            assert!(watch.speaks());
        }
        assert_eq!(watch.heard(&announcement(OURS, address), &cluster(), ms(60_000)), None);
    }
}

#[test]
fn announced_again_when_the_link_comes_back() {
    let mut watch = Watch::new(v6(), MINE, Start::AtOnce, 3, Time::ZERO);
    run(&mut watch, ms(60_000));
    watch.announce_again(ms(70_000));
    let sent = run(&mut watch, ms(90_000));
    assert_eq!(sent.iter().map(|(at, _)| at.as_millis()).collect::<Vec<_>>(), [70_000, 71_100, 72_200, 73_300, 74_400]);
    // An address that is still probed for is not announced by that.
    let (mut watch, now) = probing(v4(), 1);
    watch.announce_again(now);
    assert!(!watch.speaks());
}

proptest! {
    /// Whatever comes and however late: nothing is sent for an address that is a rival's, defence stays rare, and time ends it.
    #[test]
    fn any_course(four in any::<bool>(), at_once in any::<bool>(), seed in any::<u64>(), events in vec((0_u64..20_000, 0_u8..5), 1..60)) {
        let address = if four { v4() } else { v6() };
        let start = if at_once { Start::AtOnce } else { Start::Probe };
        let mut watch = Watch::new(address, MINE, start, seed, Time::ZERO);
        let (mut now, mut defences) = (Time::ZERO, Vec::new());
        for (wait, event) in events {
            now += ms(wait);
            let packets = match event {
                0 => watch.heard(&announcement(RIVAL, address), &cluster(), now).map(|(_, packets)| packets),
                1 => watch.heard(&probe(RIVAL, address), &cluster(), now).map(|(_, packets)| packets),
                2 => {
                    watch.announce_again(now);
                    None
                }
                _ => {
                    let sent = watch.tick(now);
                    prop_assert!(watch.speaks() || sent.iter().all(|one| *one == probe(MINE, address)));
                    None
                }
            };
            prop_assert!(!at_once || watch.speaks());
            if packets.is_some_and(|packets| !packets.is_empty()) {
                defences.push(now);
            }
        }
        prop_assert!(defences.windows(2).all(|pair| pair[1] >= pair[0] + ms(10_000)));
        run(&mut watch, now + ms(100_000));
        prop_assert!(watch.speaks() && watch.next().is_none());
    }
}
