//! The initial file system of the virtual machine: what it takes to mount the real root, and no more.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::kernel::Image;

/// Modules without which the root cannot be mounted; what they depend on comes along.
const MODULES: &[&str] = &["virtio_pci", "virtiofs", "overlay"];
const BUSYBOX: &str = "/bin/busybox";

/// Writes the archive to `path`. `script` is what the machine runs in the end.
pub fn write(path: &Path, image: &Image, guest: &str, script: &str) -> Result<()> {
    let mut archive = Archive::default();
    for directory in ["culvert", "dev", "host", "memory", "modules", "proc", "root", "sys"] {
        archive.directory(directory);
    }
    archive.file("init", 0o755, include_bytes!("init.sh"));
    archive.file("culvert/busybox", 0o755, &fs::read(BUSYBOX).with_context(|| format!("cannot read {BUSYBOX}"))?);
    archive.file("culvert/guest.sh", 0o755, guest.as_bytes());
    archive.file("culvert/command.sh", 0o755, script.as_bytes());

    let mut order = String::new();
    for file in load_order(image)? {
        let name = Path::new(&file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        archive.file(&format!("modules/{name}"), 0o644, &module(&image.modules.join(&file))?);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    fs::write(path, archive.finish()).with_context(|| format!("cannot write {}", path.display()))
}

/// Files of the modules, each after those it needs. A module that is missing is built into the kernel.
fn load_order(image: &Image) -> Result<Vec<String>> {
    let path = image.modules.join("modules.dep");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let needs: HashMap<&str, (&str, Vec<&str>)> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(file, needs)| (module_name(file), (file, needs.split_whitespace().collect())))
        .collect();
    let mut order: Vec<String> = Vec::new();
    for name in MODULES {
        let Some((file, needs)) = needs.get(name) else { continue };
        // The list has the nearest need first.
        for file in needs.iter().rev().chain([file]) {
            if !order.iter().any(|present| present == file) {
                order.push((*file).to_owned());
            }
        }
    }
    Ok(order)
}

/// `kernel/fs/fuse/virtiofs.ko.xz` is `virtiofs`.
fn module_name(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name)
}

/// The module, unpacked: busybox loads no compressed ones.
fn module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let output = Command::new("xz").arg("-dc").arg(path).stdin(Stdio::null()).output().context("cannot start xz")?;
    if !output.status.success() {
        bail!("xz cannot unpack {}", path.display());
    }
    Ok(output.stdout)
}

/// A cpio archive in the one format that the kernel reads (`newc`, kernel documentation "initramfs buffer format").
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const REGULAR: u32 = 0o100_000;

impl Archive {
    fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY, &[]);
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, REGULAR | mode, content);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // inode, mode, owner, group, links, time, size, four device numbers, length of the name with its NUL, checksum
        let (size, length) = (content.len() as u32, name.len() as u32 + 1);
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    /// Names and contents are padded to four bytes.
    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_has_the_kernel_s_shape() {
        let mut archive = Archive::default();
        archive.file("a", 0o644, b"hello");
        let bytes = archive.finish();
        // 110 bytes of header, the name with its NUL; padding to 112; 5 bytes of content, padded to 8.
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[54..62], b"00000005");
        assert_eq!(&bytes[110..120], b"a\0hello\0\0\0");
        assert_eq!(&bytes[120..126], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn module_names() {
        assert_eq!(module_name("kernel/fs/fuse/virtiofs.ko.xz"), "virtiofs");
        assert_eq!(module_name("kernel/fs/overlayfs/overlay.ko"), "overlay");
    }
}
