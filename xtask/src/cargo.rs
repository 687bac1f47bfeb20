//! Calls of cargo. All use one profile and one target directory outside the repository, so that nothing is built twice.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    kernel::Toolchain,
    process,
    step::Job,
    workspace::{Workspace, search_path},
};

/// The package of the kernel programs; it has a compiler and a target of its own.
pub const KERNEL_PACKAGE: &str = "culvert-ebpf";
/// The package of the tests in network namespaces.
pub const TEST_PACKAGE: &str = "culvert-tests";

/// What selects everything that is built for this machine. All builds use it, so that features of shared dependencies
/// are the same in each, and nothing is built twice.
pub const WORKSPACE: [&str; 3] = ["--workspace", "--exclude", KERNEL_PACKAGE];

/// `cargo` with `arguments`, in the workspace.
pub fn cargo<'a>(workspace: &Workspace, arguments: impl IntoIterator<Item = &'a str>) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments);
    place(workspace, &mut command);
    if let Some(toolchain) = workspace.toolchain() {
        command.env("CULVERT_EBPF_RUSTC", &toolchain.rustc);
    }
    command
}

/// `clippy` over the kernel programs, with their own compiler.
pub fn kernel_clippy(workspace: &Workspace, toolchain: &Toolchain, clippy: &Path) -> Command {
    let mut command = Command::new(clippy);
    let target = ["--release", "--target", crate::kernel::TARGET, "-Zbuild-std=core"];
    command.args(["clippy", "-p", KERNEL_PACKAGE]).args(target).args(["--", "-D", "warnings"]);
    place(workspace, &mut command);
    toolchain.apply(&mut command);
    command.env("RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH));
    command
}

fn place(workspace: &Workspace, command: &mut Command) {
    command
        .current_dir(&workspace.root)
        .env("PATH", search_path())
        .env("CARGO_TARGET_DIR", workspace.target())
        .env("CARGO_TERM_COLOR", "never")
        .env_remove("RUSTFLAGS");
    // What `cargo run` told xtask of itself. Some build scripts (ring's) read the like of it, and would run again, with all that
    // depends on them, after each call of cargo without it or from another checkout.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
}

/// Whether the compiler has a standard library for the target `triple`; rustup is asked for one that is missing.
pub fn standard_library(job: &mut Job, triple: &str) -> bool {
    if has_library(triple) {
        return true;
    }
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", triple]).env("PATH", search_path());
    job.run(rustup).is_ok() && has_library(triple)
}

fn has_library(triple: &str) -> bool {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut rustc = Command::new(rustc);
    rustc.args(["--print", "target-libdir", "--target", triple]).env("PATH", search_path());
    process::output(&mut rustc).is_ok_and(|path| {
        let mut files = fs::read_dir(path.trim()).into_iter().flatten().flatten();
        files.any(|file| file.file_name().to_string_lossy().starts_with("libstd-"))
    })
}

/// What cargo says of a build with `--message-format json-render-diagnostics`, picked from its output lines.
#[derive(Default)]
pub struct Artifacts {
    /// Everything that can be executed.
    pub executables: Vec<Executable>,
    /// The output directory of each build script, by package.
    build_scripts: Vec<(String, PathBuf)>,
}

/// An executable that cargo built.
pub struct Executable {
    /// Its package.
    pub package: String,
    /// The target's name: the binary's, the library's or the test's.
    pub name: String,
    /// Whether it is a test harness.
    pub test: bool,
    /// Where it is.
    pub path: PathBuf,
    /// The package's directory, in which cargo would run a test.
    pub directory: PathBuf,
}

impl Artifacts {
    /// Takes up a line of output; `false` if it is none of cargo's messages but text for a person.
    pub fn take(&mut self, line: &str) -> bool {
        let Ok(message) = serde_json::from_str::<Value>(line) else { return false };
        match message["reason"].as_str() {
            Some("compiler-artifact") => self.executables.extend(executable(&message)),
            Some("build-script-executed") => self.build_scripts.extend(build_script(&message)),
            Some(_) => {}
            None => return false,
        }
        true
    }

    /// The binary (not the test harness) of that name.
    pub fn binary(&self, name: &str) -> Result<&Path> {
        let binary = self.executables.iter().find(|executable| !executable.test && executable.name == name);
        binary.map(|executable| executable.path.as_path()).with_context(|| format!("no binary {name} was built"))
    }

    /// The object of the kernel programs, where the dataplane's build script left it.
    pub fn kernel_object(&self) -> Result<PathBuf> {
        let script = self.build_scripts.iter().find(|(package, _)| package == "culvert-dataplane");
        let (_, directory) = script.context("cargo named no build script of culvert-dataplane")?;
        Ok(directory.join("culvert.o"))
    }
}

fn executable(message: &Value) -> Option<Executable> {
    Some(Executable {
        package: package(message)?,
        name: message["target"]["name"].as_str()?.to_owned(),
        test: message["profile"]["test"].as_bool()?,
        path: message["executable"].as_str()?.into(),
        directory: Path::new(message["manifest_path"].as_str()?).parent()?.to_owned(),
    })
}

fn build_script(message: &Value) -> Option<(String, PathBuf)> {
    Some((package(message)?, message["out_dir"].as_str()?.into()))
}

/// The package's name ends its id: `path+file:///x/agent/dataplane#culvert-dataplane@0.1.0`, or `.../culvert#0.1.0`.
fn package(message: &Value) -> Option<String> {
    let (path, fragment) = message["package_id"].as_str()?.rsplit_once('#')?;
    match fragment.split_once('@') {
        Some((name, _version)) => Some(name.to_owned()),
        None => path.rsplit('/').next().map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_from_text() {
        let mut artifacts = Artifacts::default();
        assert!(!artifacts.take("   Compiling culvert v0.1.0"));
        assert!(!artifacts.take("{}"));
        assert!(artifacts.take(r#"{"reason":"build-finished","success":true}"#));
        assert!(artifacts.executables.is_empty());
    }

    #[test]
    fn what_was_built_is_found() {
        let mut artifacts = Artifacts::default();
        for test in [true, false] {
            let line = format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///w/culvert#0.1.0","manifest_path":"/w/agent/Cargo.toml",
                "target":{{"name":"culvert"}},"profile":{{"test":{test}}},"executable":"/t/culvert-{test}"}}"#
            );
            assert!(artifacts.take(&line));
        }
        assert!(artifacts.take(
            r#"{"reason":"build-script-executed","package_id":"path+file:///w/agent/dataplane#culvert-dataplane@0.1.0","out_dir":"/t/out"}"#
        ));
        assert_eq!(artifacts.binary("culvert").unwrap(), Path::new("/t/culvert-false"));
        assert_eq!(artifacts.kernel_object().unwrap(), Path::new("/t/out/culvert.o"));
        assert_eq!(artifacts.executables[0].package, "culvert");
        assert_eq!(artifacts.executables[0].directory, Path::new("/w/agent"));
        assert!(artifacts.binary("xtask").is_err());
    }
}
