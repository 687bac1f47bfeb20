//! Debian packages, installed without starting the services that some of them bring.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::needs::Need;
use crate::{
    process,
    workspace::{find_program, search_path},
};

/// Time that one call of apt may take.
pub const LIMIT: Duration = Duration::from_mins(15);

/// Whether packages can be installed here at all; the error lists what is missing.
pub fn check(missing: &[&Need]) -> Result<()> {
    let list: Vec<String> = missing.iter().map(|need| format!("{} (package {})", need.probe, need.package)).collect();
    let list = list.join(", ");
    if find_program("apt-get").is_none() {
        bail!("not a Debian system; please install: {list}");
    }
    let user = process::output(Command::new("id").arg("-u"))?;
    if user.trim() != "0" {
        bail!("only root can install packages; missing: {list}");
    }
    Ok(())
}

/// `apt-get update`.
pub fn update() -> Command {
    apt(&["update"])
}

/// `apt-get install` of what is missing.
pub fn install(missing: &[&Need]) -> Command {
    let mut command = apt(&["install", "--yes", "--no-install-recommends"]);
    let mut packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    command.args(packages);
    command
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).args(arguments);
    command.env("PATH", search_path()).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Debian asks this program before a package's script starts a service; the answer 101 forbids it (see policy-rc.d in
/// `invoke-rc.d(8)`).
const POLICY: &str = "/usr/sbin/policy-rc.d";
const ANSWER: &str = "#!/bin/sh\n# Written by `cargo xtask setup`, removed at its end.\nexit 101\n";

/// While this lives, packages that are installed start no service.
pub struct HeldServices {
    aside: Option<PathBuf>,
}

impl HeldServices {
    /// Puts our answer in place of the machine's own, which comes back at the end.
    pub fn hold() -> Result<Self> {
        let policy = Path::new(POLICY);
        let left_over = fs::read_to_string(policy).is_ok_and(|text| text == ANSWER);
        let aside = policy.with_extension("d.culvert-aside");
        if policy.exists() && !left_over {
            fs::rename(policy, &aside).with_context(|| format!("cannot move {POLICY} aside"))?;
        }
        fs::write(policy, ANSWER).with_context(|| format!("cannot write {POLICY}"))?;
        fs::set_permissions(policy, fs::Permissions::from_mode(0o755)).with_context(|| format!("{POLICY}: mode"))?;
        Ok(Self { aside: aside.exists().then_some(aside) })
    }
}

impl Drop for HeldServices {
    fn drop(&mut self) {
        let restored = match &self.aside {
            Some(aside) => fs::rename(aside, POLICY),
            None => fs::remove_file(POLICY),
        };
        if let Err(error) = restored {
            crate::ui::say(&format!("{POLICY} could not be put back: {error}"));
        }
    }
}
