//! Echo servers and load of [`crate::traffic`] at sites of a cluster, as processes of the program `culvert-traffic`.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::Site;
use crate::traffic::Report;

/// Seconds that an answer may take on a machine that has other work. A datagram that is lost is not sent again, however long one
/// waits; what TCP sends again shows in how long the slowest answer took.
const PATIENCE: &str = "15";

/// The program: `$CULVERT_TRAFFIC_BIN`.
fn program() -> Result<PathBuf> {
    let path = std::env::var_os("CULVERT_TRAFFIC_BIN");
    path.map(PathBuf::from).context("CULVERT_TRAFFIC_BIN names no culvert-traffic; `cargo xtask test` builds it")
}

/// A process that says `ready`, and ends when its input does; at the latest with its guard.
#[derive(Debug)]
pub struct Told {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Told {
    /// Starts it, and waits until it is ready.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let mut told = Self { child, output };
        if line != "ready\n" {
            let status = told.end()?.1;
            bail!("{command:?} said {line:?} and ended: {status}");
        }
        Ok(told)
    }

    /// Closes its input, and waits; what it said last.
    pub fn end(&mut self) -> Result<(String, ExitStatus)> {
        drop(self.child.stdin.take());
        let mut said = String::new();
        self.output.read_to_string(&mut said)?;
        Ok((said, self.child.wait()?))
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        // One that was ended by its input is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An echo server at a site, over TCP and UDP; it ends with its guard.
#[derive(Debug)]
pub struct Server {
    _process: Told,
}

impl Server {
    /// Listens at the site's addresses; returns once it does. Its name is the site's.
    pub fn start(site: &Site, port: u16) -> Result<Self> {
        let mut command = site.command(program()?);
        command.args(["serve", site.name(), &port.to_string()]);
        command.args(site.addresses().iter().map(ToString::to_string));
        Ok(Self { _process: Told::start(command)? })
    }
}

/// Load from a site on its way.
#[derive(Debug)]
pub struct Load {
    process: Told,
}

impl Load {
    /// Starts [mixed load](crate::traffic::Load::mixed) of `rate` requests a second; returns once all streams stand.
    pub fn start(site: &Site, to: SocketAddr, rate: u32) -> Result<Self> {
        let mut command = site.command(program()?);
        command.args(["load", &to.to_string(), &rate.to_string(), PATIENCE]);
        Ok(Self { process: Told::start(command).with_context(|| format!("load from {} to {to}", site.name()))? })
    }

    /// What becomes of a second of it.
    pub fn brief(site: &Site, to: SocketAddr, rate: u32) -> Result<Report> {
        let load = Self::start(site, to, rate)?;
        std::thread::sleep(Duration::from_secs(1));
        load.finish()
    }

    /// Stops sending, waits for the answers that are due, and reports.
    pub fn finish(mut self) -> Result<Report> {
        let (said, status) = self.process.end()?;
        serde_json::from_str(&said).with_context(|| format!("no report but {said:?}: {status}"))
    }
}
