//! Runs `tests/cases/hold.yaml`, and what holds for any observations.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod support;

use std::time::Duration;

use culvert_announce::hold::{Hold, Standing, Times};
use proptest::collection::vec;
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    #[allow(dead_code, reason = "for the reader")]
    about: String,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    at: f64,
    #[serde(default)]
    of: String,
    see: Option<String>,
    stands: String,
    next: Option<String>,
}

#[test]
fn tables() {
    let cases: Vec<Case> = support::cases("hold.yaml");
    for case in &cases {
        let mut hold = Hold::new(Times::default());
        for (i, step) in case.steps.iter().enumerate() {
            let now = Duration::from_secs_f64(step.at);
            match step.see.as_deref() {
                Some("good") => hold.observe(step.of.clone(), true, now),
                Some("bad") => hold.observe(step.of.clone(), false, now),
                Some("gone") => hold.remove(&step.of),
                Some(other) => panic!("see: {other}"),
                None => {}
            }
            let stands = match hold.standing(&step.of, now) {
                Standing::Good => "good".to_owned(),
                Standing::Held(until) => format!("held until {}", until.as_secs_f64()),
                Standing::Bad => "bad".to_owned(),
            };
            assert_eq!(stands, step.stands, "{}: step {}", case.name, i + 1);
            if let Some(next) = &step.next {
                let got = hold.next_change(now).map_or("never".to_owned(), |next| next.as_secs_f64().to_string());
                assert_eq!(got, *next, "{}: step {}", case.name, i + 1);
            }
        }
    }
    assert!(cases.len() >= 5);
}

proptest! {
    /// Nothing bad is ever used; what stays good is used after the longest wait; and however something flaps, it becomes
    /// usable at most as often as waits of doubling length fit into the time.
    #[test]
    fn flapping(gaps in vec(1_u64..60_000, 1..60)) {
        let times = Times::default();
        let mut hold = Hold::new(times);
        hold.observe((), true, Duration::ZERO);
        let (mut now, mut good, mut returns) = (Duration::ZERO, true, 0);
        for gap in gaps {
            let usable_at_end = now + Duration::from_millis(gap);
            if good && now > Duration::ZERO && hold.standing(&(), usable_at_end) == Standing::Good {
                returns += 1;
            }
            now = usable_at_end;
            good = !good;
            hold.observe((), good, now);
            prop_assert_eq!(hold.standing(&(), now) == Standing::Bad, !good);
        }
        hold.observe((), true, now);
        prop_assert_eq!(hold.standing(&(), now + times.longest), Standing::Good);
        // No gap is as long as the fourth wait, nor is one long enough to forget.
        prop_assert!(returns <= 3, "{returns}");
    }
}
