//! The Go that the parts of test clusters are built with.
//!
//! Debian 12's is too old for them. Any Go can fetch a newer one, though, for Go's releases are modules too: the module
//! `golang.org/toolchain` (go.dev/doc/toolchain), checked against the checksum database like every other.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    process,
    step::Job,
    workspace::{Workspace, find_program, search_path},
};

/// A release by its numbers: major, minor and patch.
type Release = (u32, u32, u32);

/// The oldest that will do: what the modules in `tests/cluster` ask for.
const OLDEST: Release = (1, 26, 8);
/// The one that is fetched where there is none.
const RELEASE: &str = "1.26.8";

/// A Go toolchain.
pub struct Go {
    program: PathBuf,
    /// What it calls itself: `go1.26.8`.
    pub version: String,
}

impl Go {
    /// The one in the search path, else the one in the cache, if it is new enough.
    pub fn find(workspace: &Workspace) -> Option<Self> {
        find_program("go").into_iter().chain([cached(workspace)]).find_map(|program| Self::open(program).ok())
    }

    fn open(program: PathBuf) -> Result<Self> {
        let mut go = Self { program, version: String::new() };
        let version = process::output(go.command().args(["env", "GOVERSION"]))?;
        version.trim().clone_into(&mut go.version);
        match release(&go.version) {
            Some(release) if release >= OLDEST => Ok(go),
            _ => bail!("{} is {}", go.program.display(), go.version),
        }
    }

    /// Fetches the pinned release into the cache, by means of an older Go.
    pub fn fetch(job: &mut Job) -> Result<()> {
        let to = home(job.workspace);
        let older = Self { program: find_program("go").context("no go in the search path")?, version: String::new() };
        let module = format!("golang.org/toolchain@v0.0.1-go{RELEASE}.linux-{}", architecture()?);
        let mut download = older.command();
        download.args(["mod", "download", "-json", &module]).current_dir(&job.workspace.cache);
        let mut answer = String::new();
        job.listen(download, |line| {
            answer.push_str(line);
            false
        })?;
        let answer: Value = serde_json::from_str(&answer).context("go mod download answered no JSON")?;
        let from = answer["Dir"].as_str().context("go mod download named no directory")?;
        let unfinished = to.with_extension("unfinished");
        let _ = fs::remove_dir_all(&unfinished);
        fs::create_dir_all(to.parent().context("no directory")?)?;
        let mut copy = Command::new("cp");
        job.run({
            copy.args(["-r", "--no-preserve=mode", from]).arg(&unfinished);
            copy
        })?;
        // Modules carry no permissions; the Go that unpacked this one may be too old to know that it needs them.
        for directory in ["bin", "pkg/tool"] {
            make_executable(&unfinished.join(directory))?;
        }
        fs::rename(&unfinished, &to).with_context(|| format!("cannot create {}", to.display()))
    }

    /// A call of it. Nothing from this machine's configuration changes what it builds.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("PATH", search_path()).env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0").env("GOWORK", "off");
        for name in ["GOFLAGS", "GOROOT", "GOOS", "GOARCH", "GOAMD64", "GOEXPERIMENT"] {
            command.env_remove(name);
        }
        // A compiler lives for seconds and has little garbage to collect: waiting until memory counts saves three tenths of its work.
        command.env("GOGC", "off").env("GOMEMLIMIT", "2GiB");
        command
    }
}

fn home(workspace: &Workspace) -> PathBuf {
    workspace.cache.join("go").join(RELEASE)
}

fn cached(workspace: &Workspace) -> PathBuf {
    home(workspace).join("bin/go")
}

/// Go's name of this machine's architecture.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no Go release is known for {other}"),
    }
}

/// `(1, 26, 8)` of `go1.26.8`; of `go1.27rc1`, which is before `go1.27.0`, `(1, 27, 0)` too.
fn release(version: &str) -> Option<Release> {
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
    let mut numbers = version.strip_prefix("go")?.split('.');
    let (major, minor) = (number(numbers.next()?)?, number(numbers.next()?)?);
    Some((major, minor, numbers.next().map_or(Some(0), number)?))
}

fn make_executable(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            make_executable(&path)?;
        } else {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_compare_by_their_numbers() {
        assert_eq!(release("go1.26.8"), Some((1, 26, 8)));
        assert_eq!(release("go1.26.10 X:nodwarf5"), Some((1, 26, 10)));
        assert_eq!(release("go1.27rc1"), Some((1, 27, 0)));
        assert_eq!(release("go1.9"), Some((1, 9, 0)));
        assert_eq!(release("devel +abc"), None);
    }

    #[test]
    fn the_oldest_is_what_the_newest_module_asks_for() {
        let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cluster");
        let asked = fs::read_dir(modules).unwrap().filter_map(|module| {
            let text = fs::read_to_string(module.unwrap().path().join("go.mod")).ok()?;
            let version = text.lines().find_map(|line| line.strip_prefix("go "))?;
            Some(release(&format!("go{version}")).unwrap())
        });
        assert_eq!(asked.max(), Some(OLDEST));
        assert!(release(&format!("go{RELEASE}")) >= Some(OLDEST));
    }
}
