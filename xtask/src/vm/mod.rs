//! `cargo xtask vm`: another kernel under this machine's files.
//!
//! QEMU boots a kernel of Debian's (emulated, so KVM is not needed). Its root is this machine's own root directory,
//! handed over by virtiofs, read-only, with a layer of memory above that takes the writes. So every program, library
//! and test that works here is there too, under the same path, and nothing has to be packed into an image:
//! ```text
//!  kernel      Debian's package, unpacked into the cache
//!  initramfs   busybox, the few modules that virtiofs needs, init.sh
//!  root        overlay( virtiofs of /  <  memory ), then guest.sh, then the command
//! ```

mod initramfs;
mod kernel;
mod machine;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::{setup, workspace::Workspace};
pub use machine::{Console, Machine};

/// Arguments of `vm`.
#[derive(Args)]
pub struct Arguments {
    /// The kernel to boot
    #[arg(long)]
    kernel: Kernel,
    /// Open a shell there, after the command if there is one
    #[arg(long)]
    keep: bool,
    /// The command to run there, with its arguments
    #[arg(last = true)]
    command: Vec<String>,
}

/// A kernel of Debian 12's.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kernel {
    /// The oldest that is supported; it has no tcx.
    #[value(name = "6.1")]
    V6_1,
    /// From backports.
    #[value(name = "6.12")]
    V6_12,
}

impl Kernel {
    /// The version as packages and people write it.
    pub fn version(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

/// Boots the kernel on this terminal, and ends with the command's exit code.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<ExitCode> {
    setup::run(workspace)?;
    let image = kernel::image(workspace, arguments.kernel, &mut |line| crate::ui::say(&format!("      {line}")))?;
    let shell = arguments.keep || arguments.command.is_empty();
    let console = if shell { Console::Terminal } else { Console::Output };
    let machine = Machine::prepare(workspace, &image, console, &script(&arguments.command, shell))?;
    Ok(ExitCode::from(machine.run_here()?))
}

/// A shell script that runs `command`, then a shell if asked, and ends with the command's exit code.
fn script(command: &[String], shell: bool) -> String {
    let words: Vec<String> = command.iter().map(|word| quote(word)).collect();
    let mut script = words.join(" ");
    if shell {
        script.push_str("\ncode=$?\n/run/culvert-vm/busybox setsid -c sh -i </dev/ttyS0 >/dev/ttyS0 2>&1\nexit $code");
    }
    script
}

/// `word` as one word of a shell's.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Makes sure that the kernel is in the cache, with what happens told to `listen`.
pub fn fetch(workspace: &Workspace, kernel: Kernel, listen: &mut dyn FnMut(&str)) -> Result<kernel::Image> {
    kernel::image(workspace, kernel, listen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        assert_eq!(script(&["echo".into(), "it's  two".into()], false), r"'echo' 'it'\''s  two'");
    }
}
