//! The virtual machine itself: virtiofsd serves the files, QEMU runs the kernel.

use std::{
    env, fs,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::{initramfs, kernel::Image, quote};
use crate::workspace::{Workspace, search_path};

const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
/// Memory of the machine, for the kernel, the programs, and all that they write.
const MEMORY: &str = "3G";
const PROCESSORS: &str = "2";

/// Who sits at the machine's console.
#[derive(Clone, Copy)]
pub enum Console {
    /// Nobody: its output is read, and an interrupt ends the machine.
    Output,
    /// A person: every key goes to the machine, but for Ctrl-A X, which ends it.
    Terminal,
}

impl Console {
    fn device(self) -> &'static str {
        match self {
            Self::Output => "stdio",
            Self::Terminal => "mon:stdio",
        }
    }
}

/// A machine ready to run. Its files and its file server go when it is dropped.
pub struct Machine {
    directory: PathBuf,
    release: String,
    files: Child,
    emulator: Command,
}

impl Machine {
    /// Prepares a machine that boots `image`, runs the shell script `script` in the workspace, and switches itself off.
    pub fn prepare(workspace: &Workspace, image: &Image, console: Console, script: &str) -> Result<Self> {
        let machines = workspace.cache.join("vm");
        sweep(&machines);
        let directory = machines.join(process::id().to_string());
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let archive = directory.join("initramfs");
        initramfs::write(&archive, image, &guest(workspace, image), script)?;

        let socket = directory.join("files.sock");
        let files = serve_files(&socket)?;
        let emulator = emulator(console, &directory, &image.vmlinuz, &archive, &socket);
        Ok(Self { directory, release: image.release.clone(), files, emulator })
    }

    /// The emulator's command, once; the machine's console is its standard output. [`Self::result`] tells how it went.
    pub fn command(&mut self) -> Command {
        std::mem::replace(&mut self.emulator, Command::new("false"))
    }

    /// Runs the machine on this terminal.
    pub fn run_here(mut self) -> Result<u8> {
        let status = self.command().status().context("cannot start QEMU")?;
        if !status.success() {
            bail!("QEMU: {status}");
        }
        self.result()
    }

    /// The exit code of the script, after the emulator has ended.
    pub fn result(&self) -> Result<u8> {
        let path = self.status();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        text.trim().parse().with_context(|| format!("the machine ({}) ended without a result", self.release))
    }

    fn status(&self) -> PathBuf {
        self.directory.join("status")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.files.kill();
        let _ = self.files.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Removes what machines left whose process was killed.
fn sweep(machines: &Path) {
    for entry in fs::read_dir(machines).into_iter().flatten().flatten() {
        if !Path::new("/proc").join(entry.file_name()).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The script that the machine's root starts with: the environment of here, then what `guest.sh` does.
fn guest(workspace: &Workspace, image: &Image) -> String {
    let path = search_path();
    let variables = [
        ("PATH", path.to_string_lossy()),
        ("HOME", env::var("HOME").unwrap_or_else(|_| "/root".to_owned()).into()),
        ("MODULES", image.modules.to_string_lossy()),
        ("WORKSPACE", workspace.root.to_string_lossy()),
    ];
    let exports = variables.map(|(name, value)| format!("export {name}={}\n", quote(&value))).concat();
    format!("#!/bin/sh\n{exports}{}", include_str!("guest.sh"))
}

/// Starts the server of `/`. It is handed the listening socket, so that the emulator need not wait for it.
fn serve_files(socket: &Path) -> Result<Child> {
    let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen at {}", socket.display()))?;
    Command::new(VIRTIOFSD)
        .args(["--fd=0", "-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=always"])
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {VIRTIOFSD}"))
}

fn emulator(console: Console, directory: &Path, vmlinuz: &Path, archive: &Path, socket: &Path) -> Command {
    let mut qemu = Command::new("qemu-system-x86_64");
    // QEMU 7.2's cmpxchg16b loses the flags now and then, and Linux 6.12 double-faults in its allocator: go without.
    qemu.args(["-machine", "pc,accel=tcg,memory-backend=memory", "-cpu", "max,-cx16"])
        .args(["-smp", PROCESSORS, "-m", MEMORY])
        // virtiofs works on memory that both processes see.
        .args(["-object", &format!("memory-backend-memfd,id=memory,size={MEMORY},share=on")])
        .args(["-chardev", &format!("socket,id=files,path={}", socket.display())])
        .args(["-device", "vhost-user-fs-pci,chardev=files,tag=host,queue-size=1024"])
        // The console, and a second line for the exit code.
        .args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", console.device()])
        .args(["-serial", &format!("file:{}", directory.join("status").display())])
        .arg("-kernel")
        .arg(vmlinuz)
        .arg("-initrd")
        .arg(archive)
        .args(["-append", "console=ttyS0 quiet panic=-1"]);
    qemu
}
