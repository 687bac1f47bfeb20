//! A node's addresses on its links, over time.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use culvert_announce::probe::packet::{Mac, Packet};
use culvert_announce::probe::{Claim, Standing, Time};
use culvert_announce::speaker::{Action, Link, Place, Speaker, Wanted};

const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
const RIVAL: Mac = Mac([2, 0, 0, 0, 0, 9]);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn place(address: &str, link: u32) -> Place {
    Place { address: ip(address), link }
}

/// Addresses with their links; all links are there.
fn wanted(addresses: &[(&str, &[u32])]) -> Wanted {
    let links = addresses.iter().flat_map(|(_, links)| links.iter()).map(|link| (*link, Link { mac: OWN, since: 1 }));
    let used = addresses.iter().map(|(address, _)| ip(address)).collect();
    let addresses = addresses.iter().map(|(address, links)| (ip(address), links.iter().copied().collect()));
    Wanted { links: links.collect(), addresses: addresses.collect(), used }
}

/// What was done, in a word each: `put ADDRESS@LINK`, `watch ...`, `remove ...`, `probe ...`, `announce ...`, `conflict ...`.
fn words(actions: &[Action]) -> Vec<String> {
    let word = |action: &Action| {
        let (verb, place) = match action {
            Action::Put { place, answers: true } => ("put", place),
            Action::Put { place, answers: false } => ("watch", place),
            Action::Remove(place) => ("remove", place),
            Action::Send { place, packet: Packet::Arp(arp) } if arp.is_probe() => ("probe", place),
            Action::Send { place, .. } => ("announce", place),
            Action::Tell { place, .. } => ("conflict", place),
        };
        format!("{verb} {}@{}", place.address, place.link)
    };
    actions.iter().map(word).collect()
}

/// Lets time pass until nothing is due: everything that is done, and when it ended.
fn pass(speaker: &mut Speaker, mut now: Time) -> (Vec<Action>, Time) {
    let mut all = Vec::new();
    while let Some(next) = speaker.next() {
        now = now.max(next);
        all.extend(speaker.tick(now));
    }
    (all, now)
}

#[test]
fn a_new_address_is_probed_before_the_kernel_answers() {
    let mut speaker = Speaker::new(BTreeMap::new(), 1);
    let begun = speaker.want(&wanted(&[("192.0.2.1", &[7])]), Duration::ZERO);
    assert_eq!(words(&begun), ["watch 192.0.2.1@7"]);
    assert_eq!(speaker.rows(), BTreeMap::from([(place("192.0.2.1", 7), false)]));
    let (done, end) = pass(&mut speaker, Duration::ZERO);
    let words = words(&done);
    assert_eq!(words[..4], ["probe 192.0.2.1@7", "probe 192.0.2.1@7", "probe 192.0.2.1@7", "put 192.0.2.1@7"]);
    assert!(words[4..].iter().all(|word| word == "announce 192.0.2.1@7"), "{words:?}");
    assert_eq!(words.len(), 4 + 2 * 5, "a request and a reply, at once and every 1.1 s for 5 s");
    assert!(end < Duration::from_secs(13), "{end:?}");
    assert_eq!(speaker.rows(), BTreeMap::from([(place("192.0.2.1", 7), true)]));
}

#[test]
fn what_an_earlier_agent_left_goes_on() {
    let left = BTreeMap::from([(place("192.0.2.1", 7), true), (place("192.0.2.2", 7), true)]);
    let mut speaker = Speaker::new(left.clone(), 1);
    assert_eq!(speaker.rows(), left);
    assert_eq!(speaker.next(), None, "nothing is known of what is wanted");
    let done = speaker.want(&wanted(&[("192.0.2.1", &[7])]), Duration::ZERO);
    let expected = ["remove 192.0.2.2@7", "put 192.0.2.1@7", "announce 192.0.2.1@7", "announce 192.0.2.1@7"];
    assert_eq!(words(&done), expected);
    assert_eq!(speaker.rows(), BTreeMap::from([(place("192.0.2.1", 7), true)]));
}

#[test]
fn of_what_an_earlier_agent_left_some_may_be_given_up() {
    let left = BTreeMap::from([(place("192.0.2.1", 7), true), (place("192.0.2.2", 7), true)]);
    let mut speaker = Speaker::new(left, 1);
    assert_eq!(words(&speaker.give_up_all_but(&BTreeSet::from([ip("192.0.2.1")]))), ["remove 192.0.2.2@7"]);
    assert_eq!(speaker.rows(), BTreeMap::from([(place("192.0.2.1", 7), true)]));
}

#[test]
fn what_other_nodes_announced_is_not_asked_for_again() {
    let mut speaker = Speaker::new(BTreeMap::new(), 1);
    speaker.announced_by_others([ip("192.0.2.1")]);
    let done = speaker.want(&wanted(&[("192.0.2.1", &[7])]), Duration::ZERO);
    assert_eq!(words(&done)[0], "put 192.0.2.1@7");
    assert_eq!(speaker.speaks_for(), BTreeSet::from([ip("192.0.2.1")]));
}

#[test]
fn what_was_probed_only_when_the_agent_ended_is_probed_anew() {
    let mut speaker = Speaker::new(BTreeMap::from([(place("192.0.2.1", 7), false)]), 1);
    let done = speaker.want(&wanted(&[("192.0.2.1", &[7])]), Duration::ZERO);
    assert_eq!(words(&done), ["watch 192.0.2.1@7"]);
}

#[test]
fn an_address_that_is_the_clusters_is_spoken_for_at_once_on_other_links_and_when_they_come_back() {
    let mut speaker = Speaker::new(BTreeMap::from([(place("192.0.2.1", 7), true)]), 1);
    speaker.want(&wanted(&[("192.0.2.1", &[7])]), Duration::ZERO);
    let (_, now) = pass(&mut speaker, Duration::ZERO);
    let moved = speaker.want(&wanted(&[("192.0.2.1", &[8])]), now);
    assert_eq!(words(&moved)[..2], ["remove 192.0.2.1@7", "put 192.0.2.1@8"]);
    let nowhere = speaker.want(&wanted(&[("192.0.2.1", &[])]), now);
    assert_eq!(words(&nowhere), ["remove 192.0.2.1@8"]);
    let back = speaker.want(&wanted(&[("192.0.2.1", &[8])]), now);
    assert_eq!(words(&back)[..2], ["put 192.0.2.1@8", "announce 192.0.2.1@8"]);
    // Once it was given up, it may be anybody's.
    speaker.want(&wanted(&[]), now);
    let anew = speaker.want(&wanted(&[("192.0.2.1", &[8])]), now);
    assert_eq!(words(&anew), ["watch 192.0.2.1@8"]);
}

#[test]
fn a_link_that_was_away_for_a_moment_is_told_again() {
    let mut speaker = Speaker::new(BTreeMap::from([(place("2001:db8::1", 7), true)]), 1);
    let mut wanted = wanted(&[("2001:db8::1", &[7])]);
    speaker.want(&wanted, Duration::ZERO);
    let (_, now) = pass(&mut speaker, Duration::ZERO);
    assert_eq!(speaker.want(&wanted, now), []);
    wanted.links.values_mut().for_each(|link| link.since += 1);
    assert_eq!(words(&speaker.want(&wanted, now)), ["announce 2001:db8::1@7"]);
    assert_eq!(words(&pass(&mut speaker, now).0).len(), 4);
    // With another MAC, everybody must be told which.
    wanted.links.values_mut().for_each(|link| link.mac = Mac([2, 0, 0, 0, 0, 2]));
    let done = speaker.want(&wanted, now);
    assert_eq!(words(&done), ["put 2001:db8::1@7", "announce 2001:db8::1@7"]);
}

#[test]
fn an_address_that_is_taken_is_not_announced() {
    let mut speaker = Speaker::new(BTreeMap::new(), 1);
    let (at, none) = (place("192.0.2.1", 7), BTreeSet::new());
    speaker.want(&wanted(&[("192.0.2.1", &[7])]), Duration::ZERO);
    let done = speaker.claimed(at, RIVAL, Claim::Uses, &none, Duration::ZERO);
    assert_eq!(words(&done), ["conflict 192.0.2.1@7"]);
    assert_eq!(speaker.standings().collect::<Vec<_>>(), [(at, Standing::Taken, Duration::ZERO)]);
    assert_eq!(speaker.rows(), BTreeMap::from([(at, false)]));
    // A minute later it is tried again.
    assert_eq!(speaker.next(), Some(Duration::from_mins(1)));
    let (done, _) = pass(&mut speaker, Duration::ZERO);
    assert!(words(&done).contains(&"put 192.0.2.1@7".to_owned()));
}

#[test]
fn what_a_node_had_that_was_not_known_as_one_is_no_conflict_for_long() {
    let mut speaker = Speaker::new(BTreeMap::new(), 1);
    let (at, none) = (place("192.0.2.1", 7), BTreeSet::new());
    speaker.want(&wanted(&[("192.0.2.1", &[7])]), Duration::ZERO);
    speaker.claimed(at, RIVAL, Claim::Asks, &none, Duration::ZERO);
    speaker.meet(&BTreeSet::from([OWN]), Duration::ZERO);
    assert_eq!(speaker.standings().collect::<Vec<_>>(), [(at, Standing::Taken, Duration::ZERO)]);
    let second = Duration::from_secs(1);
    speaker.meet(&BTreeSet::from([OWN, RIVAL]), second);
    assert_eq!(speaker.standings().collect::<Vec<_>>(), [(at, Standing::Probing, second)]);
    let (done, end) = pass(&mut speaker, second);
    assert!(words(&done).contains(&"put 192.0.2.1@7".to_owned()) && end < Duration::from_secs(15));
}

#[test]
fn an_address_that_is_announced_is_defended() {
    let at = place("192.0.2.1", 7);
    let mut speaker = Speaker::new(BTreeMap::from([(at, true)]), 1);
    speaker.want(&wanted(&[("192.0.2.1", &[7])]), Duration::ZERO);
    let (_, now) = pass(&mut speaker, Duration::ZERO);
    let none = BTreeSet::new();
    let done = speaker.claimed(at, RIVAL, Claim::Uses, &none, now);
    assert_eq!(words(&done), ["announce 192.0.2.1@7", "conflict 192.0.2.1@7"]);
    assert_eq!(words(&speaker.claimed(at, RIVAL, Claim::Uses, &none, now)), ["conflict 192.0.2.1@7"]);
    assert_eq!(speaker.claimed(at, RIVAL, Claim::Asks, &none, now), [], "it gets an answer");
    assert_eq!(speaker.claimed(at, OWN, Claim::Uses, &none, now), []);
    assert_eq!(speaker.claimed(at, RIVAL, Claim::Uses, &BTreeSet::from([RIVAL]), now), [], "a node of the cluster");
    assert_eq!(speaker.standings().collect::<Vec<_>>(), [(at, Standing::Speaking, Duration::ZERO)]);
}
