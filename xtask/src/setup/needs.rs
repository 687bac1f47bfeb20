//! What must be on the machine, how one sees that it is, and the Debian package that brings it.

use std::{fmt, path::Path};

use crate::workspace::find_program;

/// Something that a build or a test uses.
pub struct Need {
    /// How one sees that it is there.
    pub probe: Probe,
    /// The Debian package that brings it.
    pub package: &'static str,
}

/// A sign of presence.
#[derive(Clone, Copy)]
pub enum Probe {
    /// A command in the search path.
    Command(&'static str),
    /// A file.
    File(&'static str),
}

impl Probe {
    fn present(self) -> bool {
        match self {
            Self::Command(name) => find_program(name).is_some(),
            Self::File(path) => Path::new(path).exists(),
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(name) => write!(out, "the command {name}"),
            Self::File(path) => out.write_str(path),
        }
    }
}

const fn command(name: &'static str, package: &'static str) -> Need {
    Need { probe: Probe::Command(name), package }
}

const fn file(path: &'static str, package: &'static str) -> Need {
    Need { probe: Probe::File(path), package }
}

/// Needed on every machine.
pub const COMMON: &[Need] = &[
    // bpf-linker is built against this LLVM.
    command("c++", "g++"),
    file("/usr/lib/llvm-22/bin/llvm-config", "llvm-22-dev"),
    file("/usr/lib/llvm-22/lib/libPolly.a", "libpolly-22-dev"),
    file("/usr/include/zlib.h", "zlib1g-dev"),
    file("/usr/include/zstd.h", "libzstd-dev"),
    // Namespaces, links, rules, and a look at what the kernel holds.
    command("bpftool", "bpftool"),
    command("ip", "iproute2"),
    command("iptables", "iptables"),
    command("nft", "nftables"),
    command("wg", "wireguard-tools"),
    command("ipset", "ipset"),
    command("ipvsadm", "ipvsadm"),
    command("nfacct", "nfacct"),
    // Certificates for an API server.
    command("openssl", "openssl"),
    command("conntrack", "conntrack"),
    command("ethtool", "ethtool"),
    command("capsh", "libcap2-bin"),
    command("modprobe", "kmod"),
    command("ps", "procps"),
    // Backends of tests and demo.
    command("nginx", "nginx-light"),
    command("haproxy", "haproxy"),
    command("etcd", "etcd-server"),
    command("etcdctl", "etcd-client"),
    command("dnsmasq", "dnsmasq-base"),
    // Clients and measures.
    command("curl", "curl"),
    command("nc", "netcat-openbsd"),
    command("dig", "bind9-dnsutils"),
    command("socat", "socat"),
    command("ping", "iputils-ping"),
    command("arping", "iputils-arping"),
    command("ndisc6", "ndisc6"),
    command("tracepath", "iputils-tracepath"),
    command("traceroute", "traceroute"),
    command("hping3", "hping3"),
    command("iperf3", "iperf3"),
    command("wrk", "wrk"),
    command("tcpdump", "tcpdump"),
    // Virtual machines with Debian's kernels.
    command("qemu-system-x86_64", "qemu-system-x86"),
    file("/usr/lib/qemu/virtiofsd", "qemu-system-common"),
    file("/bin/busybox", "busybox-static"),
    command("xz", "xz-utils"),
];

/// Needed for test clusters, beside what is needed everywhere.
pub const CLUSTER: &[Need] = &[
    command("runc", "runc"),
    command("tini", "tini"),
    command("wget", "wget"),
    command("openssl", "openssl"),
    command("bash", "bash"),
    command("ss", "iproute2"),
    command("ldd", "libc-bin"),
];

/// Needed for test clusters where no Go is: one that can fetch the right one.
pub const GO: &[Need] = &[command("go", "golang-go")];

/// Needed for the agent's image: the C compiler of the C library that it is linked to.
pub const IMAGE: &[Need] = &[command("musl-gcc", "musl-tools")];

/// Needed to check the other architecture: libraries bring parts in C, and their build scripts compile them.
pub const AARCH64: &[Need] = &[
    command("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    file("/usr/aarch64-linux-gnu/include/assert.h", "libc6-dev-arm64-cross"),
];

/// Needed to try software with Services on a cluster: `ZooKeeper`, and what runs it.
pub const SOFTWARE: &[Need] =
    &[command("java", "openjdk-17-jre-headless"), file("/usr/share/java/zookeeper.jar", "libzookeeper-java")];

/// Needed where rustup has no nightly with the source of `core`.
pub const COMPILER: &[Need] = &[
    file("/usr/bin/rustc", "rustc-web"),
    file("/usr/lib/rustlib/src/rust/library/core/Cargo.toml", "rust-web-src"),
    file("/usr/bin/cargo-clippy", "rust-web-clippy"),
];

/// Those of `needs` that are not there.
pub fn missing(needs: &'static [Need]) -> Vec<&'static Need> {
    needs.iter().filter(|need| !need.probe.present()).collect()
}
