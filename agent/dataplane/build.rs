//! Builds the kernel programs (package `culvert-ebpf`) and leaves the object where the crate embeds it.
//!
//! The programs need a compiler that can build `core` for `bpfel-unknown-none`. The first of these is taken:
//! 1. `CULVERT_EBPF_RUSTC`, the path of a rustc,
//! 2. a nightly of rustup's that has the component rust-src,
//! 3. Debian's /usr/bin/rustc (package rustc-web), if its sources (rust-web-src) are there.
//!
//! `CULVERT_EBPF_OBJECT` names an object that is built already, and nothing is compiled then.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

const TARGET: &str = "bpfel-unknown-none";
/// What a workspace build hands to its scripts and must not reach the inner build.
const INHERITED: [&str; 6] =
    ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOC", "RUSTUP_TOOLCHAIN"];

fn main() -> ExitCode {
    match object().and_then(|object| install(&object, "culvert.o")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

/// The path of the finished object.
fn object() -> Result<PathBuf, String> {
    println!("cargo::rerun-if-env-changed=CULVERT_EBPF_OBJECT");
    if let Some(object) = env::var_os("CULVERT_EBPF_OBJECT") {
        let object = PathBuf::from(object);
        println!("cargo::rerun-if-changed={}", object.display());
        return Ok(object);
    }
    build()
}

/// Copies an object to its place in the output directory; `object.rs` embeds `culvert.o`.
fn install(object: &Path, name: &str) -> Result<(), String> {
    let to = variable("OUT_DIR")?.join(name);
    fs::copy(object, &to).map_err(|error| format!("cannot copy {} to {}: {error}", object.display(), to.display()))?;
    Ok(())
}

fn build() -> Result<PathBuf, String> {
    let package = variable("CARGO_MANIFEST_DIR")?.join("../../ebpf");
    // `abi` lies below it.
    println!("cargo::rerun-if-changed={}", package.display());
    let compiler = Compiler::find()?;
    let path = path_with_linker()?;
    let arch = env::var("CARGO_CFG_TARGET_ARCH").map_err(|_| "CARGO_CFG_TARGET_ARCH is not set".to_owned())?;
    let next = env::var_os("CARGO_FEATURE_LAYOUT_NEXT").is_some();
    let target_dir = target_root()?.join("ebpf").join(if next { format!("{arch}-next") } else { arch.clone() });
    let cannot = |error: io::Error| format!("cannot lock {}: {error}", target_dir.display());
    fs::create_dir_all(&target_dir).map_err(cannot)?;
    // Until the objects are copied: the other one is told that they are fresh, and its cargo links them anew.
    let lock = File::create(target_dir.join("lock")).map_err(cannot)?;
    lock.lock().map_err(cannot)?;

    let mut cargo = Command::new(&compiler.cargo);
    for name in INHERITED {
        cargo.env_remove(name);
    }
    cargo
        .current_dir(&package)
        .env("PATH", path)
        .env("RUSTC", &compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&arch))
        .args(["build", "--quiet", "--package", "culvert-ebpf", "--release", "-Zbuild-std=core"])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target_dir);
    if next {
        cargo.args(["--features", "layout-next"]);
    }
    let output = cargo.output().map_err(|error| format!("cannot run {}: {error}", compiler.cargo.display()))?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the kernel programs do not build with {}:\n{log}", compiler.rustc.display()));
    }
    let objects = target_dir.join(TARGET).join("release");
    // Not embedded: the benchmark finds it beside the object.
    install(&objects.join("culvert-shim"), "shim.o")?;
    Ok(objects.join("culvert-ebpf"))
}

/// The root of the outer build's target directory. Every profile and target of the agent embeds the same object: it is compiled once.
fn target_root() -> Result<PathBuf, String> {
    let out = variable("OUT_DIR")?;
    // Cargo marks the root for programs that make backups.
    let root = out.ancestors().find(|directory| directory.join("CACHEDIR.TAG").is_file());
    Ok(root.unwrap_or(&out).to_owned())
}

/// Flags of the inner build, in cargo's encoding. `bpf_target_arch` is the machine the programs will run on.
fn rustflags(arch: &str) -> String {
    let arch = format!("--cfg=bpf_target_arch=\"{arch}\"");
    // bpf-linker makes the BTF from debug information.
    [arch.as_str(), "-Cdebuginfo=2", "-Clink-arg=--btf"].join("\u{1f}")
}

/// A rustc that can build `core`, and the cargo to run it with.
struct Compiler {
    rustc: PathBuf,
    cargo: PathBuf,
}

impl Compiler {
    fn find() -> Result<Self, String> {
        println!("cargo::rerun-if-env-changed=CULVERT_EBPF_RUSTC");
        let cargo = variable("CARGO")?;
        if let Some(rustc) = env::var_os("CULVERT_EBPF_RUSTC").map(PathBuf::from).or_else(nightly) {
            // cargo and the layout of the library's sources change together.
            let beside = rustc.with_file_name("cargo");
            return Ok(Self { rustc, cargo: if beside.exists() { beside } else { cargo } });
        }
        let debian = PathBuf::from("/usr/bin/rustc");
        if debian.exists() && Path::new("/usr/lib/rustlib/src/rust/library/Cargo.toml").exists() {
            return Ok(Self { rustc: debian, cargo });
        }
        Err("no compiler for the kernel programs: neither a rustup nightly with rust-src nor Debian's rustc-web with \
             rust-web-src is here.\nRun `cargo xtask setup`, or set CULVERT_EBPF_RUSTC."
            .to_owned())
    }
}

/// The rustc of the newest nightly of rustup's that has the library's sources.
fn nightly() -> Option<PathBuf> {
    let home = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".rustup")))?;
    let mut toolchains: Vec<PathBuf> = fs::read_dir(home.join("toolchains"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nightly")))
        .filter(|path| path.join("lib/rustlib/src/rust/library/Cargo.toml").exists())
        .filter(|path| path.join("bin/cargo").exists())
        .collect();
    // `nightly-HOST` sorts after `nightly-DATE-HOST`: the one that rustup keeps current.
    toolchains.sort();
    Some(toolchains.pop()?.join("bin/rustc"))
}

/// PATH with cargo's own bin directory at its end, where `cargo install` puts bpf-linker.
fn path_with_linker() -> Result<std::ffi::OsString, String> {
    let mut path: Vec<PathBuf> = env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    path.extend(home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"))).map(|home| home.join("bin")));
    if !path.iter().any(|dir| dir.join("bpf-linker").exists()) {
        return Err("bpf-linker is not in PATH. Run `cargo xtask setup`.".to_owned());
    }
    env::join_paths(path).map_err(|error| error.to_string())
}

fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("{name} is not set"))
}
