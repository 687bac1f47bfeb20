//! Roots of images that need a shell and network tools: this machine's own programs with the libraries they load.
//!
//! A root made by debootstrap has the same programs of the same packages, takes a minute of downloads and unpacking, and
//! is four times the size. `setup` has installed every package that a program here is taken from.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    oci::Layer,
    process,
    workspace::{find_program, search_path},
};

/// What Kubernetes' tests and network daemons call in their containers, beside what busybox has. iptables is
/// whichever of its two variants this machine has chosen, for both work on the same kernel.
const TOOLS: &[&str] = &[
    "bash",
    "conntrack",
    "curl",
    "dig",
    "ip",
    "ip6tables",
    "ip6tables-restore",
    "ip6tables-save",
    "iptables",
    "iptables-restore",
    "iptables-save",
    "nc",
    "nft",
    "ping",
    "ps",
    "ss",
    // busybox' is linked statically, and the resolver of such a program does not survive another C library beside it.
    "wget",
];

/// Users that files and processes of tests name; the second is what agnhost's image has.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
                      nobody:x:65534:65534:nobody:/:/bin/false\n\
                      user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\nuser-defined-in-image:x:1000:\n\
                     group-defined-in-image:x:50000:user-defined-in-image\n";
/// GNU's takes a URL alone, and upstream's image has busybox', which takes an IPv6 address as it stands.
const WGET: &str = r#"#!/bin/sh
for argument; do
  shift
  case $argument in
    *[!0-9a-fA-F:]*) ;;
    *:*:*) argument="http://[$argument]/" ;;
  esac
  set -- "$@" "$argument"
done
exec /usr/bin/wget "$@"
"#;

/// A root with a shell and network tools.
pub fn tools() -> Result<Layer> {
    let mut layer = busybox()?;
    // busybox' shell runs its own `nc` and `ping` whatever the search path says.
    program(&mut layer, "dash")?;
    layer.link("usr/bin/sh", "dash");
    for tool in TOOLS {
        program(&mut layer, tool)?;
    }
    // Upstream's image has busybox', which tries once; with 20 tries a test of what is not there takes hours.
    layer.text("etc/wgetrc", "tries = 1\n");
    layer.script("usr/local/bin/wget", WGET);
    extensions(&mut layer)?;
    Ok(layer)
}

/// A root with a shell and busybox' tools, and nothing else.
pub fn busybox() -> Result<Layer> {
    let path = find_program("busybox").context("no busybox; it is in the package busybox-static")?;
    let applets = process::output(Command::new(&path).arg("--list"))?;
    let mut layer = Layer::default();
    // Like Debian: one directory for programs, whatever the name one calls them by.
    for name in ["bin", "sbin", "lib", "lib64"] {
        layer.link(name, format!("usr/{name}"));
        layer.directory(&format!("usr/{name}"), 0o755);
    }
    layer.file("usr/bin/busybox", path, 0o755);
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        layer.link(Path::new("usr/bin").join(applet), "busybox");
    }
    for (path, mode) in [("tmp", 0o1777), ("run", 0o755), ("root", 0o700), ("var/log", 0o755), ("etc", 0o755)] {
        layer.directory(path, mode);
    }
    layer.link("var/run", "../run");
    layer.text("etc/passwd", PASSWD);
    layer.text("etc/group", GROUP);
    layer.text("etc/nsswitch.conf", "hosts: files dns\n");
    Ok(layer)
}

/// Adds the program of that name, by this machine's search path, and its libraries.
pub fn program(layer: &mut Layer, name: &str) -> Result<()> {
    let path = find_program(name).with_context(|| format!("no program {name} in the search path"))?;
    let target = fs::canonicalize(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let path = place(&path)?;
    object(layer, &target)?;
    if path != target {
        layer.link(&path, target);
    }
    Ok(())
}

/// Adds an ELF file under its own path, and the libraries that it is linked to.
fn object(layer: &mut Layer, file: &Path) -> Result<()> {
    layer.file(file, file, 0o755);
    for library in libraries(file) {
        let place = place(&library)?;
        if !layer.contains(&place) {
            layer.file(place, library, 0o755);
        }
    }
    Ok(())
}

/// A path without links in its directories: `/usr/bin/x` for `/bin/x`.
fn place(path: &Path) -> Result<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(path.to_owned()) };
    let parent = fs::canonicalize(parent).with_context(|| format!("cannot read {}", parent.display()))?;
    Ok(parent.join(name))
}

/// Shared libraries that a program loads when it starts, with the loader.
fn libraries(file: &Path) -> Vec<PathBuf> {
    let mut ldd = Command::new("ldd");
    // It fails for static programs, which need none.
    let Ok(text) = process::output(ldd.arg(file).env("PATH", search_path()).env("LC_ALL", "C")) else {
        return Vec::new();
    };
    text.lines().filter_map(library).collect()
}

/// The path in a line of ldd's: `libc.so.6 => /lib/.../libc.so.6 (0x...)`, `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn library(line: &str) -> Option<PathBuf> {
    let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
    let path = path.split_once(" (").map_or(path, |(path, _)| path);
    path.starts_with('/').then(|| path.into())
}

/// iptables' matches and targets, which it loads when a rule names them.
fn extensions(layer: &mut Layer) -> Result<()> {
    let directory = format!("/usr/lib/{}-linux-gnu/xtables", std::env::consts::ARCH);
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))? {
        let path = entry?.path();
        let target = fs::canonicalize(&path).with_context(|| format!("cannot read {}", path.display()))?;
        layer.file(&path, target, 0o644);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::library;

    #[test]
    fn libraries_are_read_from_ldd() {
        let path = |line| library(line).map(|path| path.display().to_string());
        assert_eq!(path("\tlibm.so.6 => /lib/libm.so.6 (0x00007f)").as_deref(), Some("/lib/libm.so.6"));
        assert_eq!(path("\t/lib64/ld-linux-x86-64.so.2 (0x00007f)").as_deref(), Some("/lib64/ld-linux-x86-64.so.2"));
        assert_eq!(path("\tlinux-vdso.so.1 (0x00007f)"), None);
        assert_eq!(path("\tlibx.so => not found"), None);
    }
}
