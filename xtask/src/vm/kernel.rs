//! Debian's cloud kernels, downloaded and unpacked into the cache; nothing of them is installed.

use std::{
    env,
    fs::{self, DirBuilder},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::Kernel;
use crate::{process, workspace::Workspace};

const LIMIT: Duration = Duration::from_mins(10);
/// How the names of these packages end.
const SUFFIX: &str = "-cloud-amd64";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An unpacked kernel.
pub struct Image {
    /// The compressed kernel.
    pub vmlinuz: PathBuf,
    /// The directory of its modules, with `modules.dep`.
    pub modules: PathBuf,
    /// Its release, as `uname -r` says it.
    pub release: String,
}

/// The kernel in the cache, fetched if it is not there. To get a newer build, remove its directory.
pub fn image(workspace: &Workspace, kernel: Kernel, listen: &mut dyn FnMut(&str)) -> Result<Image> {
    let directory = workspace.cache.join("kernels").join(kernel.version());
    if !directory.is_dir() {
        let unfinished = directory.with_extension("unfinished");
        let _ = fs::remove_dir_all(&unfinished);
        fs::create_dir_all(&unfinished).with_context(|| format!("cannot create {}", unfinished.display()))?;
        fetch(&unfinished, kernel, listen).with_context(|| format!("kernel {}", kernel.version()))?;
        fs::rename(&unfinished, &directory).with_context(|| format!("cannot create {}", directory.display()))?;
    }
    open(&directory).with_context(|| format!("{} is damaged, remove it", directory.display()))
}

fn open(directory: &Path) -> Result<Image> {
    let modules = only_entry(&directory.join("lib/modules"))?;
    let release = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let vmlinuz = directory.join("boot").join(format!("vmlinuz-{release}"));
    if !vmlinuz.is_file() {
        bail!("no {}", vmlinuz.display());
    }
    Ok(Image { vmlinuz, modules, release })
}

fn only_entry(directory: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    Ok(entries.next().with_context(|| format!("{} is empty", directory.display()))??.path())
}

fn fetch(directory: &Path, kernel: Kernel, listen: &mut dyn FnMut(&str)) -> Result<()> {
    if env::consts::ARCH != "x86_64" {
        bail!("the virtual machine runs this machine's programs, and only x86-64 is supported");
    }
    let apt = Apt::private(directory)?;
    process::run(apt.command("apt-get", &["update"]), LIMIT, &mut *listen)?;
    let package = apt.newest(kernel)?;
    listen(&format!("downloading {package}"));
    process::run(apt.command("apt-get", &["download", &package]), LIMIT, &mut *listen)?;
    let archive = fs::read_dir(directory)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("{package} was not downloaded"))?;
    let mut unpack = Command::new("dpkg-deb");
    process::run(command_in(unpack.arg("-x").arg(&archive).arg("."), directory), LIMIT, &mut *listen)?;
    fs::remove_file(&archive)?;
    apt.remove()?;
    // Newer packages have everything below usr/.
    if !directory.join("lib").exists() {
        symlink("usr/lib", directory.join("lib")).context("cannot link usr/lib")?;
    }
    let release = open(directory)?.release;
    let mut depmod = Command::new("/sbin/depmod");
    process::run(command_in(depmod.arg("-b").arg(".").arg(release), directory), LIMIT, listen)
}

fn command_in(command: &mut Command, directory: &Path) -> Command {
    let mut own = Command::new(command.get_program());
    own.args(command.get_args()).current_dir(directory);
    own
}

/// apt with sources, lists and caches of its own.
struct Apt {
    home: PathBuf,
    work: PathBuf,
}

impl Apt {
    /// Below `directory`; packages are downloaded into `directory` itself.
    fn private(directory: &Path) -> Result<Self> {
        let home = directory.join("apt");
        for part in
            ["etc/apt.conf.d", "etc/preferences.d", "etc/trusted.gpg.d", "state/lists/partial", "cache/archives"]
        {
            DirBuilder::new().recursive(true).create(home.join(part)).context("cannot create apt's directories")?;
        }
        let mirror = mirror().context("this machine's package sources name no mirror of Debian 12")?;
        let sources = ["bookworm", "bookworm-backports"]
            .map(|suite| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))
            .concat();
        fs::write(home.join("etc/sources.list"), sources).context("cannot write apt's sources")?;
        Ok(Self { home, work: directory.to_owned() })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        command
            .args(["-q", "-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root"])
            .args(["-o", &option("Dir::Etc", &self.home.join("etc"))])
            .args(["-o", &option("Dir::State", &self.home.join("state"))])
            .args(["-o", &option("Dir::Cache", &self.home.join("cache"))])
            .args(arguments)
            .current_dir(&self.work);
        command
    }

    /// The newest cloud kernel of that version, by its package's name.
    fn newest(&self, kernel: Kernel) -> Result<String> {
        let prefix = format!("linux-image-{}.", kernel.version());
        let names = process::output(&mut self.command("apt-cache", &["pkgnames", &prefix]))?;
        newest(&names).map(str::to_owned).with_context(|| format!("Debian offers no package {prefix}*{SUFFIX}"))
    }

    fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.home).with_context(|| format!("cannot remove {}", self.home.display()))
    }
}

/// The mirror that this machine takes Debian 12 from.
fn mirror() -> Option<String> {
    let mut command = Command::new("apt-get");
    let sites = process::output(command.args(["indextargets", "--format", "$(SITE)", "Codename: bookworm"])).ok()?;
    sites.lines().next().map(str::to_owned)
}

fn newest(names: &str) -> Option<&str> {
    names.lines().filter(|name| name.ends_with(SUFFIX)).max_by_key(|name| numbers(name))
}

/// The numbers in a name, in their order: versions compare by them.
fn numbers(name: &str) -> Vec<u64> {
    name.trim_end_matches(SUFFIX)
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::newest;

    #[test]
    fn the_newest_kernel_is_taken() {
        let names = "linux-image-6.12.9+deb12-cloud-amd64\nlinux-image-6.12.43+deb12-cloud-amd64\n\
                     linux-image-6.12.95+deb12-amd64\nlinux-image-6.12.90+deb12.1-cloud-amd64\n\
                     linux-image-6.12.90+deb12-cloud-amd64\nlinux-image-6.12.90+deb12-cloud-amd64-dbg\n";
        assert_eq!(newest(names), Some("linux-image-6.12.90+deb12.1-cloud-amd64"));
        assert_eq!(newest(""), None);
    }
}
