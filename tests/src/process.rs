//! A running program that ends with its guard.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A child process: killed and reaped when the guard is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    keep: bool,
}

impl Process {
    /// Starts a command; both its outputs are appended to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child, log: log.to_owned(), keep: false })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What it wrote so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("{signal} to {}", self.id()))
    }

    /// `kill -9`, and the wait for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end (SIGTERM) and waits.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(limit)
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit * slowness();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("process {} does not end within {limit:?}; it said:\n{}", self.id(), self.output());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether it runs still.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Leaves it running when the guard is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        match self.child.kill() {
            Err(error) if error.kind() != ErrorKind::InvalidInput => eprintln!("kill {}: {error}", self.id()),
            _ => drop(self.child.wait()),
        }
    }
}

/// How many times slower this machine is than a real one: every limit of time is multiplied by it, every rate divided.
pub fn slowness() -> u32 {
    static SLOWNESS: LazyLock<u32> = LazyLock::new(|| {
        // QEMU names the processor that it emulates; with hardware support it shows the real one.
        let emulated = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| info.contains("QEMU TCG"));
        if emulated { 10 } else { 1 }
    });
    *SLOWNESS
}

/// Calls `attempt` until it yields something or the time is over; the last error says what was missing.
///
/// For states that offer no event to wait for. `what` is named in the error.
pub fn eventually<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let limit = limit * slowness();
    let deadline = Instant::now() + limit;
    loop {
        let missing = match attempt() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() > deadline {
            let reason = missing.unwrap_or_else(|| anyhow::anyhow!("still not so"));
            return Err(reason.context(format!("{what}: not within {limit:?}")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
