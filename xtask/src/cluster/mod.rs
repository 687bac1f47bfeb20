//! `cargo xtask cluster`: real Kubernetes clusters inside this machine.
//!
//! Every node is a set of namespaces with a containerd and a kubelet of its own; pods are real ones.
//! ```text
//!  options ── plan ── config            names, addresses, files, objects: pure
//!               │
//!  parts      up ── pki  network  places  store  node  control_plane  addons
//!             registry  cgroup          what exists on this machine, and how it goes away
//! ```

mod addons;
mod cgroup;
mod config;
mod control_plane;
mod description;
mod kubectl;
mod network;
mod node;
pub mod options;
pub mod parts;
mod pki;
mod places;
mod plan;
mod reboot;
mod registry;
mod store;
mod up;
mod wait;

use std::{
    env,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::{
    setup,
    ui::{clock, say},
    workspace::{Workspace, exclusive},
};
use options::{Name, Options};

/// Arguments of `cluster`.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a cluster; it stays until `down`
    Up {
        #[command(flatten)]
        options: Options,
        /// Build the programs that this project's tests run in pods, too
        #[arg(long)]
        software: bool,
    },
    /// Remove a cluster with everything that it has on this machine
    Down {
        #[command(flatten)]
        which: Which,
        /// Remove all clusters
        #[arg(long, conflicts_with = "name")]
        all: bool,
    },
    /// Say where a cluster's kubeconfig is
    Kubeconfig(Which),
    /// Open a shell on a node (n1, n2, ...), on the hub between the nodes, or on the client outside
    Shell {
        #[command(flatten)]
        which: Which,
        /// n1, n2, ..., hub or client
        place: String,
        /// A command to run there instead
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Reboot all nodes at the same time: their processes, namespaces, links and bpffs go and come anew
    Reboot(Which),
    /// Name the clusters that exist
    List,
    /// Build programs and images of clusters ahead of time
    Build(parts::Arguments),
}

#[derive(Args)]
struct Which {
    /// The cluster's name
    #[arg(long, default_value = "culvert")]
    name: Name,
}

/// Carries out a command.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.action {
        Action::Build(arguments) => return parts::run(workspace, arguments),
        Action::Up { options, software } => {
            up(workspace, options, if *software { Purpose::Software } else { Purpose::Any })?;
        }
        Action::Down { all: true, .. } => {
            for one in registry::all()? {
                down(&one.plan.name)?;
            }
        }
        Action::Down { which, .. } => down(&which.name)?,
        Action::Kubeconfig(which) => {
            say(&control_plane::kubeconfig(&registry::find(&which.name)?.files).display().to_string());
        }
        Action::Reboot(which) => reboot::run(workspace, &registry::find(&which.name)?)?,
        Action::Shell { which, place, command } => shell(&which.name, place, command)?,
        Action::List => {
            for registry::Existing { plan, .. } in registry::all()? {
                let nodes = plan.nodes().count();
                say(&format!("{}: {nodes} nodes, {}, families {}, {}", plan.name, plan.proxy, plan.families, plan.cni));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn up(workspace: &Workspace, options: &Options, purpose: Purpose) -> Result<()> {
    let cluster = bring_up(workspace, options, purpose)?;
    say(&format!("      export KUBECONFIG={}", cluster.kubeconfig().display()));
    cluster.keep()
}

/// What will be run on a cluster, for which programs are built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Whatever a user likes.
    Any,
    /// Upstream's tests.
    Upstream,
    /// This project's, with software that they try in pods.
    Software,
}

/// A cluster that is up.
pub struct Up {
    entry: registry::Entry,
    /// Its programs.
    pub programs: parts::Programs,
}

impl Up {
    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        control_plane::kubeconfig(&self.entry.files)
    }

    /// The file that describes it to tests.
    pub fn description(&self) -> PathBuf {
        description::path(&self.entry.files)
    }

    /// How many nodes it has.
    pub fn nodes(&self) -> usize {
        self.entry.plan.nodes().count()
    }

    /// A command outside of the nodes' network, behind a router.
    pub fn outside(&self, program: &Path) -> Command {
        places::enter(&self.entry.files, plan::Place::Client, program)
    }

    /// Leaves it until somebody removes it. Otherwise it does not outlive this run for long.
    pub fn keep(self) -> Result<()> {
        self.entry.keep()
    }

    /// Removes it with everything that it has on this machine.
    pub fn remove(self) -> Result<()> {
        let (name, started) = (self.entry.plan.name.clone(), Instant::now());
        self.entry.remove()?;
        say(&format!("      cluster {name} is removed ({})", clock(started.elapsed())));
        Ok(())
    }
}

/// Makes a cluster.
///
/// # Errors
/// If one of this name exists.
pub fn bring_up(workspace: &Workspace, options: &Options, purpose: Purpose) -> Result<Up> {
    // One at a time: what two of them need is built once, and a cluster that comes up wants all processors.
    let _alone = exclusive(&workspace.cluster().join("up.lock"))?;
    setup::run(workspace)?;
    setup::cluster(workspace)?;
    let parts = up::Parts::prepare(workspace, options, purpose)?;
    let started = Instant::now();
    let entry = up::run(workspace, options, &parts)?;
    description::write(workspace, &entry, &parts)?;
    say(&format!("      cluster {} is up after {}", options.name, clock(started.elapsed())));
    Ok(Up { entry, programs: parts.programs })
}

fn down(name: &Name) -> Result<()> {
    let started = Instant::now();
    let was = if registry::remove(name)? { "is removed" } else { "does not exist" };
    say(&format!("      cluster {name} {was} ({})", clock(started.elapsed())));
    Ok(())
}

/// Becomes a shell, or another command, in a place of the cluster.
fn shell(name: &Name, place: &str, words: &[String]) -> Result<()> {
    let existing = registry::find(name)?;
    let Some(place) = existing.plan.place(place) else {
        let known: Vec<String> = existing.plan.places().map(plan::Place::name).collect();
        bail!("{place} is none of {}", known.join(", "));
    };
    let shell = [env::var("SHELL").unwrap_or_else(|_| "sh".to_owned())];
    let words = if words.is_empty() { &shell[..] } else { words };
    let mut command: Command = places::enter(&existing.files, place, &words[0]);
    command.args(&words[1..]).env("KUBECONFIG", control_plane::kubeconfig(&existing.files));
    Err(command.exec()).context("cannot start the shell")
}
