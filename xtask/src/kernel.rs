//! The compiler of the kernel programs: a Rust compiler with the source of `core`, since no compiled `core` exists
//! for the BPF target.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{process, workspace::find_program};

/// The nightly that kernel programs are built with where rustup can fetch it.
pub const NIGHTLY: &str = "nightly-2026-05-20";
/// Nightlies to look for, the preferred one first.
const NIGHTLIES: &[&str] = &[NIGHTLY, "nightly"];
/// The LLVM that `setup` builds bpf-linker with; the compiler's bitcode must be of the same.
pub const LLVM: u32 = 22;
/// The target of the kernel programs.
pub const TARGET: &str = "bpfel-unknown-none";

/// A compiler that can build the kernel programs.
pub struct Toolchain {
    /// Its `rustc`; `agent/dataplane/build.rs` takes it from `CULVERT_EBPF_RUSTC`.
    pub rustc: PathBuf,
    origin: Origin,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    Rustup,
    Debian,
}

impl Toolchain {
    /// The one that this machine has: rustup's nightly before Debian's `rustc-web`.
    pub fn find() -> Option<Self> {
        Self::rustup().or_else(Self::debian)
    }

    fn rustup() -> Option<Self> {
        NIGHTLIES.iter().find_map(|name| Self::usable(&nightly(name)?, Origin::Rustup).filter(Self::has_core))
    }

    fn debian() -> Option<Self> {
        Self::usable(Path::new("/usr/bin/rustc"), Origin::Debian).filter(Self::has_core)
    }

    /// An installed nightly that lacks nothing but the source of `core`.
    pub fn nightly_without_core() -> Option<&'static str> {
        NIGHTLIES.iter().copied().find(|name| {
            nightly(name).and_then(|rustc| Self::usable(&rustc, Origin::Rustup)).is_some_and(|it| !it.has_core())
        })
    }

    /// `rustc`, if its LLVM is one that bpf-linker can follow.
    fn usable(rustc: &Path, origin: Origin) -> Option<Self> {
        let version = process::output(Command::new(rustc).arg("-vV")).ok()?;
        (llvm_major(&version)? == LLVM).then(|| Self { rustc: rustc.to_owned(), origin })
    }

    fn has_core(&self) -> bool {
        let sysroot = process::output(Command::new(&self.rustc).args(["--print", "sysroot"]));
        sysroot.is_ok_and(|path| Path::new(path.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file())
    }

    /// The `cargo-clippy` that belongs to the compiler.
    pub fn clippy(&self) -> Option<PathBuf> {
        self.rustc.parent().map(|directory| directory.join("cargo-clippy")).filter(|path| path.is_file())
    }

    /// Gives `command`, a call of cargo, this compiler. A compiler that is no nightly is told to act as one.
    pub fn apply(&self, command: &mut Command) {
        command.env("RUSTC", &self.rustc).env("RUSTC_BOOTSTRAP", "1").env_remove("RUSTUP_TOOLCHAIN");
        let cargo = self.rustc.with_file_name("cargo");
        if cargo.is_file() {
            command.env("CARGO", cargo);
        }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = match self.origin {
            Origin::Rustup => "rustup's nightly",
            Origin::Debian => "Debian's rustc-web",
        };
        write!(out, "{origin} ({})", self.rustc.display())
    }
}

/// The `rustc` of an installed toolchain of rustup's.
fn nightly(name: &str) -> Option<PathBuf> {
    find_program("rustup")?;
    let mut command = Command::new("rustup");
    command.args(["which", "rustc", "--toolchain", name]).env("RUSTUP_AUTO_INSTALL", "0");
    process::output(&mut command).ok().map(|path| path.trim().into())
}

/// The major version in the line `LLVM version: 22.1.4` of `rustc -vV`.
fn llvm_major(version: &str) -> Option<u32> {
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_version_is_read() {
        assert_eq!(llvm_major("rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.4\n"), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0"), None);
    }
}
