//! The packet programs against the oracle, on generated scripts of packets.
//!
//! `CULVERT_ORACLE_PACKETS` says how many packets (2,000,000), `CULVERT_ORACLE_SEED` which ones (a number, decimal or 0x...).
//! `CULVERT_ORACLE_SCRIPT` plays one script alone, by the seed that a report names.

use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use culvert_abi::Reason;
use culvert_tests::oracle::dice::Dice;
use culvert_tests::oracle::play::Player;
use culvert_tests::oracle::report::{Failure, tell};
use culvert_tests::oracle::scene::{Scene, scene};
use culvert_tests::oracle::script::{Script, write};

/// So many packets meet every reason.
const ENOUGH: u64 = 200_000;

/// Scripts between two looks at the counters.
const AUDIT: u64 = 2_000;

#[test]
fn the_programs_do_what_the_oracle_says() -> Result<()> {
    let packets = number("CULVERT_ORACLE_PACKETS")?.unwrap_or(2_000_000);
    let seed = number("CULVERT_ORACLE_SEED")?.map_or_else(fresh_seed, Ok)?;
    let scene = scene();
    let mut player = Player::new(&scene)?;
    if let Some(only) = number("CULVERT_ORACLE_SCRIPT")? {
        return play(&mut player, &scene, only);
    }
    println!("seed {seed:#x}, {packets} packets");
    let (begin, mut dice, mut scripts) = (Instant::now(), Dice::new(seed), 0);
    while player.packets < packets {
        play(&mut player, &scene, dice.number())?;
        scripts += 1;
        if scripts % AUDIT == 0 {
            player.audit().context("after some scripts")?;
        }
    }
    player.audit().context("after the last script")?;
    let [changed, dropped, answered] = player.verdicts;
    println!(
        "{} packets in {scripts} scripts, {:.1} s: {changed} changed, {dropped} dropped, {answered} answered",
        player.packets,
        begin.elapsed().as_secs_f64()
    );
    let [taken_over, beside] = player.makes_room();
    println!("  {taken_over} sources taken over, {beside} connections beside closed flows");
    ensure!((taken_over > 0 && beside > 0) || packets < ENOUGH, "no closed flow had to make room");
    let elsewhere = player.elsewhere();
    println!("  {elsewhere} clients whose last backend was in the list of another traffic policy");
    ensure!(elsewhere > 0 || packets < ENOUGH, "no client changed between the lists of a Service");
    for (reason, count) in player.reasons() {
        println!("  {}: {count}", reason.name());
        // A generator that does not get there proves nothing. These two it cannot: the maps are large enough, and
        // BPF_PROG_TEST_RUN gives no packet a socket with a past.
        let out_of_reach = matches!(reason, Reason::FlowTableFull | Reason::BackendGone);
        ensure!(count > 0 || out_of_reach || packets < ENOUGH, "no packet met {}", reason.name());
    }
    Ok(())
}

/// Plays the script of a seed; a failure is told with as few steps as it needs.
fn play(player: &mut Player, scene: &Scene, seed: u64) -> Result<()> {
    let script = write(scene, seed);
    let Err(failure) = player.play(scene, &script) else { return Ok(()) };
    player.reset()?;
    let (script, failure) = shrink(player, scene, script, failure)?;
    bail!("{}", tell(seed, &script, &failure));
}

/// Leaves out every step that the failure does not need.
fn shrink(player: &mut Player, scene: &Scene, mut script: Script, mut failure: Failure) -> Result<(Script, Failure)> {
    let mut i = script.steps.len();
    while i > 0 {
        i -= 1;
        let mut shorter = script.clone();
        shorter.steps.remove(i);
        if let Err(other) = player.play(scene, &shorter) {
            (script, failure) = (shorter, other);
            i = i.min(script.steps.len());
        }
        player.reset()?;
    }
    Ok((script, failure))
}

fn number(name: &str) -> Result<Option<u64>> {
    let Ok(text) = std::env::var(name) else { return Ok(None) };
    let number = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    Ok(Some(number.with_context(|| format!("{name}={text}"))?))
}

fn fresh_seed() -> Result<u64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos() as u64)
}
