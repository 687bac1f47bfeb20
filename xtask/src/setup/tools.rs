//! Tools that come from crates.io or rustup.

use std::{env, process::Command, time::Duration};

use crate::{kernel::NIGHTLY, process, workspace::search_path};

/// Time that building or fetching one tool may take.
pub const LIMIT: Duration = Duration::from_mins(15);

/// A program that `cargo install` builds.
pub struct Tool {
    /// Its name, as package and as program.
    pub name: &'static str,
    /// The exact version.
    pub version: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

/// The linker of kernel programs, and the judge of dependencies.
pub const TOOLS: &[Tool] = &[
    Tool {
        name: "bpf-linker",
        version: "0.13.0",
        arguments: &["--no-default-features", "--features", "llvm-22"],
        // Its work is LLVM's, which is compiled already.
        environment: &[
            ("LLVM_PREFIX", "/usr/lib/llvm-22"),
            ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
            ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ],
    },
    // Quick to build matters more than quick to run: it runs for a second.
    Tool {
        name: "cargo-deny",
        version: "0.20.2",
        arguments: &["--locked", "--debug"],
        environment: &[("CARGO_PROFILE_DEV_DEBUG", "0")],
    },
];

impl Tool {
    /// Whether it is there, in this version, and runs.
    pub fn present(&self) -> bool {
        let mut command = Command::new(self.name);
        command.env("PATH", search_path()).arg("--version");
        process::output(&mut command).is_ok_and(|text| text.split_whitespace().nth(1) == Some(self.version))
    }

    /// Its `cargo install`.
    pub fn install(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["install", self.name, "--version", self.version, "--force"]).args(self.arguments);
        command.envs(self.environment.iter().copied()).env("PATH", search_path());
        command
    }
}

/// Adds the source of `core` to an installed nightly.
pub fn core_source(nightly: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["component", "add", "rust-src", "--toolchain", nightly]).env("PATH", search_path());
    command
}

/// Fetches the nightly with the source of `core`.
pub fn nightly() -> Command {
    let mut command = Command::new("rustup");
    command.args(["toolchain", "install", NIGHTLY, "--profile", "minimal", "--component", "rust-src,clippy"]);
    command.env("PATH", search_path());
    command
}
