//! What clusters are made of: programs built from the Go modules that `tests/cluster/` pins, and images made of them.
//!
//! Both are kept in `Workspace::cluster`, by a hash of what they are made of, and made once.

mod build;
mod host;
mod image;
mod program;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::{Args, ValueEnum};

pub use build::{Programs, programs};
pub use image::{Image, images};
pub use program::Program;

pub use crate::oci::Archive;

use crate::{
    setup,
    step::alone,
    ui::{clock, say},
    workspace::Workspace,
};

/// Time that one program may take to build, downloads included, on a machine that has built nothing yet.
pub const LIMIT: Duration = Duration::from_mins(90);

/// Arguments of `cluster build`.
#[derive(Args)]
pub struct Arguments {
    /// Which parts [default: all]
    #[arg(value_name = "PART")]
    parts: Vec<Part>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Kubernetes, containerd, CNI plugins, DNS
    Cluster,
    /// Kubernetes' tests, and the images that they use
    Tests,
    /// The overlay network
    Flannel,
    /// helm
    Helm,
    /// MetalLB's controller
    #[value(name = "metallb")]
    MetalLb,
    /// The image of ordinary servers and clients, and programs that tests run beside those
    Software,
    /// The project's own image
    Agent,
}

impl Part {
    const ALL: &[Self] =
        &[Self::Cluster, Self::Tests, Self::Flannel, Self::Helm, Self::MetalLb, Self::Software, Self::Agent];

    const fn programs(self) -> &'static [Program] {
        match self {
            Self::Cluster => Program::CLUSTER,
            Self::Tests => Program::TESTS,
            Self::Flannel => Program::FLANNEL,
            Self::Helm => &[Program::Helm],
            Self::MetalLb => &[Program::MetalLbController],
            Self::Software => Program::SOFTWARE,
            Self::Agent => &[],
        }
    }

    const fn images(self) -> &'static [Image] {
        match self {
            Self::Cluster => Image::CLUSTER,
            Self::Tests => Image::TESTS,
            Self::Flannel => Image::FLANNEL,
            Self::Software => &[Image::Servers],
            Self::Helm | Self::MetalLb | Self::Agent => &[],
        }
    }
}

/// `cargo xtask cluster build`: makes what is missing, and says where everything is.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    setup::run(workspace)?;
    setup::cluster(workspace)?;
    let started = Instant::now();
    let parts: &[Part] = if arguments.parts.is_empty() { Part::ALL } else { &arguments.parts };
    let wanted: Vec<Program> = parts.iter().flat_map(|part| part.programs()).copied().collect();
    let built: Programs = alone(workspace, "cluster programs", LIMIT, |job| programs(job, &wanted))?;
    for program in wanted {
        say(&format!("      {}", built.path(program)?.display()));
    }
    let wanted: Vec<Image> = parts.iter().flat_map(|part| part.images()).copied().collect();
    let mut archives: Vec<Archive> = alone(workspace, "cluster images", LIMIT, |job| images(job, &wanted))?;
    if parts.contains(&Part::Agent) {
        archives.push(crate::image::usual(workspace)?);
    }
    for archive in archives {
        say(&format!("      {}  {}", archive.name, archive.path.display()));
    }
    say(&format!("      all there after {}", clock(started.elapsed())));
    Ok(ExitCode::SUCCESS)
}
