//! Where things are: the checkout, and the caches outside of it.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, ensure};

use crate::{image::Profile, kernel::Toolchain, oci::sha256, process::output};

/// The checkout and its cache directory.
pub struct Workspace {
    /// The directory of the root `Cargo.toml`.
    pub root: PathBuf,
    /// `$CULVERT_CACHE`, else `culvert` in `$XDG_CACHE_HOME` or `~/.cache`.
    pub cache: PathBuf,
    /// How the agent in images is compiled: `$CULVERT_IMAGE_PROFILE`, else for release.
    pub image: Profile,
    toolchain: OnceLock<Option<Toolchain>>,
}

impl Workspace {
    /// The checkout that this program was started in.
    pub fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&manifest).parent().context("xtask lies in no workspace")?.to_owned();
        let cache = cache_directory().context("neither CULVERT_CACHE, XDG_CACHE_HOME nor HOME is set")?;
        fs::create_dir_all(cache.join("log")).with_context(|| format!("cannot create {}", cache.display()))?;
        let image = match set(Profile::VARIABLE) {
            None => Profile::Release,
            Some(name) => Profile::named(&name.to_string_lossy())
                .with_context(|| format!("{} is neither release nor dev", Profile::VARIABLE))?,
        };
        Ok(Self { root, cache, image, toolchain: OnceLock::new() })
    }

    /// The same with images of another profile.
    pub fn with_image(self, image: Profile) -> Self {
        Self { image, ..self }
    }

    /// Cargo's target directory for everything that xtask builds. Each checkout has its own: cargo tells by their times whether
    /// files are newer than what was built of them, which says nothing of another checkout's.
    pub fn target(&self) -> PathBuf {
        let mut key = sha256(self.root.as_os_str().as_encoded_bytes());
        key.truncate(16);
        self.cache.join("target").join(key)
    }

    /// What test clusters are made of: `$CULVERT_CLUSTER_CACHE`, else `cluster` in the cache. Builds of several checkouts
    /// do not disturb each other there, and it is worth sharing, for it takes long to fill.
    pub fn cluster(&self) -> PathBuf {
        set("CULVERT_CLUSTER_CACHE").unwrap_or_else(|| self.cache.join("cluster"))
    }

    /// The compiler of the kernel programs, once `setup` is through.
    pub fn toolchain(&self) -> Option<&Toolchain> {
        self.toolchain.get_or_init(Toolchain::find).as_ref()
    }

    /// What git says of the checkout.
    ///
    /// # Errors
    /// If there is no git or no repository, or it has nothing to say.
    pub fn git(&self, arguments: &[&str]) -> Result<String> {
        let mut git = Command::new("git");
        git.args(arguments).current_dir(&self.root).env("PATH", search_path());
        let said = output(&mut git)?.trim().to_owned();
        ensure!(!said.is_empty(), "git {} says nothing", arguments.join(" "));
        Ok(said)
    }

    /// The log file of a step; the last run's is overwritten.
    pub fn log(&self, step: &str) -> PathBuf {
        let name: String = step.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
        self.cache.join("log").join(name + ".log")
    }
}

/// Has `path`, a file that is made if it is missing, for itself until the answer is dropped; waits for whoever has it now.
///
/// # Errors
/// If the file cannot be made.
pub fn exclusive(path: &Path) -> Result<File> {
    let cannot = || format!("cannot lock {}", path.display());
    fs::create_dir_all(path.parent().context("no directory")?).with_context(cannot)?;
    let file = File::create(path).with_context(cannot)?;
    file.lock().with_context(cannot)?;
    Ok(file)
}

/// A path from the environment.
fn set(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn cache_directory() -> Option<PathBuf> {
    set("CULVERT_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|base| base.join("culvert")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/culvert")))
}

/// `PATH` with the directories that a plain shell may lack: cargo's own binaries, and those for root.
pub fn search_path() -> OsString {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let given = env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = env::split_paths(&given).collect();
    let extra = cargo_home.map(|home| home.join("bin")).into_iter().chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    for directory in extra {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    env::join_paths(directories).unwrap_or(given)
}

/// The executable that a command name stands for.
pub fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|directory| directory.join(name)).find(|path| path.is_file())
}
