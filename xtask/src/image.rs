//! `cargo xtask image`: the agent's own container image. It holds one static program and the mount points that its
//! manifests use: no shell, no libraries, nothing else to keep up to date.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Result;
use clap::Args;

use crate::{
    cargo::{Artifacts, cargo, standard_library},
    oci::{self, Archive, Config, Layer},
    setup,
    step::{Job, alone},
    ui::say,
    workspace::Workspace,
};

/// The image's name, but for its tag.
pub const REPOSITORY: &str = "ghcr.io/culvert/culvert";
/// Time that the release build may take on a machine that has built nothing yet.
pub const LIMIT: Duration = Duration::from_mins(30);
/// Where the agent keeps its socket; its manifests mount a volume there.
const RUN: &str = "run/culvert";

/// How the agent in an image is compiled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Profile {
    /// As users get it.
    Release,
    /// As tests have it, for it is there in half the time.
    Development,
}

impl Profile {
    /// The environment variable that names one.
    pub const VARIABLE: &str = "CULVERT_IMAGE_PROFILE";

    /// Cargo's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Development => "dev",
        }
    }

    /// The one of a name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Release, Self::Development].into_iter().find(|profile| profile.name() == name)
    }
}

/// Arguments of `image`.
#[derive(Args)]
pub struct Arguments {
    /// Where to write it [default: target/image/culvert.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The image's full name, or only its tag [default: ghcr.io/culvert/culvert:VERSION]
    #[arg(long, value_name = "[NAME:]TAG")]
    tag: Option<String>,
}

/// Builds it and says what came out.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    setup::run(workspace)?;
    setup::image(workspace)?;
    let output = arguments.output.clone().unwrap_or_else(|| default_output(workspace));
    let name = full_name(arguments.tag.as_deref());
    let archive = alone(workspace, "image", LIMIT, |job| build(job, &output, &name))?;
    let file = fs::metadata(&archive.path).map_or(0, |metadata| metadata.len());
    say(&format!("image  {}", archive.name));
    say(&format!("file   {} ({})", archive.path.display(), megabytes(file)));
    say(&format!("digest {}", archive.digest));
    Ok(ExitCode::SUCCESS)
}

/// Builds the one of this checkout, where it is written unless another place is named.
///
/// # Errors
/// As [`build`].
pub fn usual(workspace: &Workspace) -> Result<Archive> {
    setup::image(workspace)?;
    let (output, name) = (default_output(workspace), full_name(None));
    alone(workspace, "agent", LIMIT, |job| build(job, &output, &name))
}

/// Where the image is written unless another place is named.
fn default_output(workspace: &Workspace) -> PathBuf {
    let file = match workspace.image {
        Profile::Release => "culvert.tar",
        Profile::Development => "culvert-dev.tar",
    };
    workspace.root.join("target/image").join(file)
}

/// The full name for what `--tag` says.
pub fn full_name(tag: Option<&str>) -> String {
    match tag {
        None => format!("{REPOSITORY}:{}", env!("CARGO_PKG_VERSION")),
        // A colon before a slash is that of a registry's port.
        Some(name) if name.rsplit('/').next().is_some_and(|last| last.contains(':')) => name.to_owned(),
        Some(tag) if tag.contains('/') => format!("{tag}:latest"),
        Some(tag) => format!("{REPOSITORY}:{tag}"),
    }
}

/// Builds the agent, and writes its image to `output`.
///
/// # Errors
/// If the agent does not build, or the file cannot be written.
pub fn build(job: &mut Job, output: &Path, name: &str) -> Result<Archive> {
    build_with(job, output, name, &[])
}

/// The same with features of the agent's dependencies, as `PACKAGE/FEATURE`.
pub fn build_with(job: &mut Job, output: &Path, name: &str, features: &[&str]) -> Result<Archive> {
    let program = agent(job, features)?;
    let mut layer = Layer::default();
    layer.file("usr/bin/culvert", &program, 0o755);
    // The container's root is read-only: what is mounted into it needs a place.
    for (path, mode) in [("tmp", 0o1777), (RUN, 0o755), ("proc", 0o555), ("sys", 0o555), ("dev", 0o755)] {
        layer.directory(path, mode);
    }
    layer.text("run/xtables.lock", "");
    layer.text("etc/passwd", "root:x:0:0:root:/:/usr/bin/culvert\n");
    layer.text("etc/group", "root:x:0:\n");
    oci::write(output, name, &config(job.workspace), &[layer])
}

fn config(workspace: &Workspace) -> Config {
    let labels = [
        ("title", "culvert"),
        ("description", "Kubernetes Service proxy in eBPF"),
        ("licenses", env!("CARGO_PKG_LICENSE")),
        ("source", env!("CARGO_PKG_REPOSITORY")),
        ("version", env!("CARGO_PKG_VERSION")),
    ];
    let mut labels: Vec<(&str, String)> = labels.map(|(key, value)| (key, value.to_owned())).into();
    let commit = workspace.git(&["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]).ok();
    labels.extend(commit.map(|commit| ("revision", commit)));
    Config {
        entrypoint: vec!["/usr/bin/culvert".to_owned()],
        // `kubectl exec` and the init container's command find it by its name.
        environment: vec!["PATH=/usr/bin".to_owned()],
        labels: labels.into_iter().map(|(key, value)| (format!("org.opencontainers.image.{key}"), value)).collect(),
        // The commit's time, not now: one source gives one image.
        created: workspace.git(&["show", "--no-patch", "--format=%cI", "HEAD"]).ok(),
        ..Config::default()
    }
}

/// Builds the agent as a static program, in the workspace's profile for images.
///
/// # Errors
/// If it does not build.
pub fn agent(job: &mut Job, features: &[&str]) -> Result<PathBuf> {
    let target = Target::find(job);
    let (triple, flags) = target.build();
    let profile = job.workspace.image.name();
    job.note(&format!("building the agent for {triple}, profile {profile}"));
    let arguments = ["build", "--profile", profile, "--package", "culvert", "--bin", "culvert", "--target", &triple];
    let mut build = cargo(job.workspace, arguments.into_iter().chain(["--message-format", "json-render-diagnostics"]));
    for feature in features {
        build.args(["--features", feature]);
    }
    if let Some(flags) = flags {
        build.env("RUSTFLAGS", flags);
    }
    // C code in dependencies is compiled for the same C library.
    build.env(format!("CC_{}", triple.replace('-', "_")), target.compiler());
    let mut artifacts = Artifacts::default();
    job.listen(build, |line| artifacts.take(line))?;
    artifacts.binary("culvert").map(Path::to_owned)
}

/// What the agent is compiled for.
enum Target {
    /// musl: made for static programs.
    Musl,
    /// The GNU C library, linked statically, where the compiler has no standard library for musl.
    Gnu,
}

impl Target {
    fn find(job: &mut Job) -> Self {
        let musl = Self::Musl.build().0;
        if standard_library(job, &musl) { Self::Musl } else { Self::Gnu }
    }

    /// The target's name, and compiler flags.
    fn build(&self) -> (String, Option<&'static str>) {
        let arch = std::env::consts::ARCH;
        match self {
            Self::Musl => (format!("{arch}-unknown-linux-musl"), None),
            Self::Gnu => (format!("{arch}-unknown-linux-gnu"), Some("-Ctarget-feature=+crt-static")),
        }
    }

    fn compiler(&self) -> &'static str {
        match self {
            Self::Musl => "musl-gcc",
            Self::Gnu => "cc",
        }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_known_by_cargos_names() {
        assert_eq!(Profile::named("release"), Some(Profile::Release));
        assert_eq!(Profile::named("dev"), Some(Profile::Development));
        assert_eq!(Profile::named("debug"), None);
    }

    #[test]
    fn a_tag_alone_keeps_the_name() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(full_name(None), format!("{REPOSITORY}:{version}"));
        assert_eq!(full_name(Some("next")), format!("{REPOSITORY}:next"));
        assert_eq!(full_name(Some("localhost:5000/culvert:1")), "localhost:5000/culvert:1");
        assert_eq!(full_name(Some("localhost:5000/culvert")), "localhost:5000/culvert:latest");
        assert_eq!(full_name(Some("culvert:dev")), "culvert:dev");
    }
}
