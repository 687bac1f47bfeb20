//! What a process uses, and how busy the machine is, from procfs.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::unistd::{SysconfVar, sysconf};

/// How long one looks whether something rests.
const WINDOW: Duration = Duration::from_secs(1);
/// A process that uses less of one CPU is at rest, a machine that uses less of all is quiet; in percent.
const RESTS: u64 = 3;
const QUIET: u64 = 10;
/// How long one waits for either.
const PATIENCE: Duration = Duration::from_secs(30);

/// CPU time of a process and of its children that have ended: kube-proxy works through `nft` and `iptables-restore`.
pub fn cpu(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let ticks = process_ticks(&text).with_context(|| format!("{path}: {text}"))?;
    Ok(Duration::from_millis(ticks * 1_000 / ticks_per_second()?))
}

/// Anonymous resident memory of a process, in KiB.
pub fn anonymous(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    resident(&text).with_context(|| format!("{path} has no RssAnon"))
}

/// Waits until a process rests, or for half a minute.
pub fn at_rest(pid: u32) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let before = cpu(pid)?;
        sleep(WINDOW);
        if (cpu(pid)?.saturating_sub(before)) * 100 < WINDOW * RESTS as u32 {
            break;
        }
    }
    Ok(())
}

/// Waits until the machine is quiet, or for half a minute; whether it is.
pub fn quiet() -> Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let before = machine()?;
        sleep(WINDOW);
        let now = machine()?;
        let (busy, all) = (now.busy - before.busy, now.all - before.all);
        if busy * 100 < all * QUIET {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Ticks of all CPUs since the machine started.
struct Ticks {
    busy: u64,
    all: u64,
}

fn machine() -> Result<Ticks> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    machine_ticks(&text).context("/proc/stat has no line for all CPUs")
}

fn ticks_per_second() -> Result<u64> {
    let ticks = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
    Ok(ticks.unsigned_abs().max(1))
}

/// utime, stime, cutime and cstime of `/proc/PID/stat` (proc(5)): the 14th to the 17th field. The second is a name in parentheses,
/// which may hold anything.
fn process_ticks(text: &str) -> Option<u64> {
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().skip(11).take(4).collect();
    let ticks: Vec<u64> = fields.iter().map_while(|field| field.parse().ok()).collect();
    (ticks.len() == 4).then(|| ticks.iter().sum())
}

fn resident(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The first line of `/proc/stat`: user nice system idle iowait irq softirq steal; what follows is in user and nice already.
fn machine_ticks(text: &str) -> Option<Ticks> {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
    let idle = ticks.get(3)? + ticks.get(4)?;
    let all: u64 = ticks.iter().sum();
    Some(Ticks { busy: all - idle, all })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_count_as_well() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 100 200 0 0 11 22 33 44 20 0 9 0 5 1000 200";
        assert_eq!(process_ticks(stat), Some(110));
        assert_eq!(process_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn waiting_for_a_disk_is_not_busy() {
        let ticks = machine_ticks("cpu  10 1 5 100 7 0 2 1 50 0\ncpu0 1 1 1 1\n").unwrap();
        assert_eq!((ticks.busy, ticks.all), (19, 126));
        assert!(machine_ticks("cpu0 1").is_none());
    }

    #[test]
    fn anonymous_memory_is_read() {
        assert_eq!(resident("Name:\tx\nRssAnon:\t    1234 kB\nRssFile:\t1 kB\n"), Some(1_234));
        assert!(anonymous(std::process::id()).unwrap() > 0 && cpu(std::process::id()).is_ok());
    }
}
