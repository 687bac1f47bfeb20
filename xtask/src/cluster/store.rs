//! One image store for all nodes: images are imported and unpacked once, by a containerd that serves nothing else.
//!
//! A node's containerd starts with a copy of the two small databases; the layers are links into the store, which nobody
//! writes to. That takes milliseconds and no space, where an import of the tests' images takes each node ten seconds and
//! 300 MB.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    parts::{Program, Programs},
    registry,
};
use crate::{
    oci::Archive,
    process::{output, tail},
    step::Job,
    workspace::search_path,
};

const METADATA: &str = "io.containerd.metadata.v1.bolt";
const CONTENT: &str = "io.containerd.content.v1.content";
const SNAPSHOTS: &str = "io.containerd.snapshotter.v1.overlayfs";

/// Directories of unpacked images.
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// The store with these images; it is made if it is not in the cache.
    pub fn prepare(job: &mut Job, programs: &Programs, archives: &[Archive]) -> Result<Self> {
        let base = job.workspace.cache.join("cluster-store");
        let directory = base.join(key(archives));
        let store = Self { directory };
        if store.directory.exists() {
            return Ok(store);
        }
        fs::create_dir_all(&base)?;
        let unfinished = base.join(format!("unfinished-{}", std::process::id()));
        let _ = fs::remove_dir_all(&unfinished);
        fs::create_dir_all(&unfinished)?;
        import(job, programs, archives, &unfinished)?;
        if let Err(error) = fs::rename(&unfinished, &store.directory) {
            // Somebody else was faster.
            fs::remove_dir_all(&unfinished)?;
            if !store.directory.exists() {
                return Err(error).with_context(|| store.directory.display().to_string());
            }
        }
        store.remove_others(&base)?;
        Ok(store)
    }

    /// Fills the root directory of a node's containerd.
    pub fn clone_to(&self, root: &Path) -> Result<()> {
        let snapshots = root.join(SNAPSHOTS).join("snapshots");
        fs::create_dir_all(&snapshots)?;
        let copy = |options: &[&str], from: &str, to: &str| {
            output(Command::new("cp").args(options).arg(self.directory.join(from)).arg(root.join(to)))
        };
        copy(&["-a"], METADATA, "")?;
        copy(&["-al"], CONTENT, "")?;
        copy(&["-a"], &format!("{SNAPSHOTS}/metadata.db"), SNAPSHOTS)?;
        for entry in fs::read_dir(self.directory.join(SNAPSHOTS).join("snapshots"))? {
            let entry = entry?;
            symlink(entry.path(), snapshots.join(entry.file_name()))?;
        }
        Ok(())
    }

    /// Removes older stores, unless there is a cluster, which may use one.
    fn remove_others(&self, base: &Path) -> Result<()> {
        let gate = registry::gate()?;
        if !registry::all()?.is_empty() {
            return Ok(());
        }
        for entry in fs::read_dir(base)? {
            let path = entry?.path();
            if path != self.directory {
                fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
            }
        }
        drop(gate);
        Ok(())
    }
}

fn key(archives: &[Archive]) -> String {
    let mut lines: Vec<String> =
        archives.iter().map(|archive| format!("{} {}", archive.name, archive.digest)).collect();
    lines.sort();
    let mut hasher = DefaultHasher::new();
    lines.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn import(job: &mut Job, programs: &Programs, archives: &[Archive], root: &Path) -> Result<()> {
    let state = tempdir()?;
    let outcome = import_into(job, programs, archives, root, &state);
    fs::remove_dir_all(&state)?;
    outcome
}

fn tempdir() -> Result<PathBuf> {
    let state = PathBuf::from(format!("/run/culvert-cluster-import-{}", std::process::id()));
    fs::create_dir_all(&state)?;
    Ok(state)
}

fn import_into(job: &mut Job, programs: &Programs, archives: &[Archive], root: &Path, state: &Path) -> Result<()> {
    let socket = state.join("containerd.sock");
    let configuration = state.join("containerd.toml");
    let disabled = r#"["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]"#;
    let (root, scratch, address) = (root.display(), state.join("state"), socket.display());
    let scratch = scratch.display();
    fs::write(
        &configuration,
        format!(
            "version = 3\nroot = \"{root}\"\nstate = \"{scratch}\"\ndisabled_plugins = {disabled}\n\
             [grpc]\naddress = \"{address}\"\n"
        ),
    )?;
    let log = state.join("log");
    let mut containerd = Guard(
        // It ends with this program, however that ends.
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(programs.path(Program::Containerd)?)
            .arg("--config")
            .arg(&configuration)
            .env("PATH", search_path())
            .stdin(Stdio::null())
            .stdout(fs::File::create(&log)?)
            .stderr(fs::File::options().append(true).open(&log)?)
            .spawn()
            .context("containerd")?,
    );
    let deadline = Instant::now() + Duration::from_secs(30);
    while !socket.exists() {
        if Instant::now() > deadline || containerd.0.try_wait()?.is_some() {
            bail!("containerd did not start: {}", tail(&log, 5));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for archive in archives {
        job.note(&format!("importing {}", archive.name));
        let mut command = Command::new(programs.path(Program::Ctr)?);
        command.arg("--address").arg(&socket).args(["-n", "k8s.io", "images", "import", "--local"]).arg(&archive.path);
        job.run(command).with_context(|| archive.name.clone())?;
    }
    containerd.terminate()
}

/// A child that does not outlive its guard.
struct Guard(Child);

impl Guard {
    fn terminate(&mut self) -> Result<()> {
        output(Command::new("kill").arg(self.0.id().to_string()))?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}
