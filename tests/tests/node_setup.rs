//! `culvert node-setup`, in namespaces of its own: what a node has after it.

use std::process::Command;

use anyhow::{Result, ensure};
use culvert_tests::agent::binary;
use culvert_tests::scope::Scope;
use culvert_tests::shell::run;

/// Runs a script in a mount and a network namespace of its own; `$culvert` is the program, `$place` a mount of this kind.
fn script(propagation: &str, script: &str) -> Result<String> {
    let scope = Scope::open()?;
    let prepare = format!("mount -t tmpfs place \"$place\" && mount --make-{propagation} \"$place\" && {script}");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--propagation", "private", "sh", "-c", &prepare]);
    run(command.env("culvert", binary()?).env("place", scope.dir()))
}

#[test]
fn a_node_gets_what_it_lacks_once() -> Result<()> {
    let setup = "\"$culvert\" node-setup --bpffs \"$place/bpf\" --shared 2>&1 || exit";
    let output = script("shared", &format!("{setup}; echo again; {setup}; stat -f -c 'kind %T' \"$place/bpf\""))?;
    let (first, rest) = output.split_once("again\n").unwrap_or_default();
    ensure!(first.contains("/bpf: mounted a bpf file system\n"), "{output}");
    ensure!(rest.contains("/bpf: a bpf file system, as it should be\n"), "{output}");
    ensure!(rest.ends_with("kind bpf_fs\n"), "{output}");
    // The timeouts are the network namespace's own; limits of the machine can be set outside it only.
    for (name, value) in [("established", 86_400), ("close_wait", 3_600)] {
        let name = format!("net.netfilter.nf_conntrack_tcp_timeout_{name} = {value}");
        ensure!(first.contains(&format!("{name}, was ")) || first.contains("tracks no connections"), "{output}");
        ensure!(
            rest.contains(&format!("{name}, as it should be")) || rest.contains("tracks no connections"),
            "{output}"
        );
    }
    Ok(())
}

#[test]
fn what_is_skipped_is_left_alone() -> Result<()> {
    let output =
        script("shared", "\"$culvert\" node-setup --bpffs \"$place/bpf\" --skip bpffs,conntrack,forwarding 2>&1")?;
    ensure!(output.is_empty(), "{output}");
    let leave = "--conntrack-max-per-core 0 --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0";
    let output = script("shared", &format!("\"$culvert\" node-setup --bpffs \"$place/bpf\" {leave} 2>&1"))?;
    ensure!(!output.contains("conntrack"), "{output}");
    Ok(())
}

#[test]
fn a_mount_that_the_host_would_not_see_is_refused() -> Result<()> {
    let setup = "\"$culvert\" node-setup --bpffs \"$place/bpf\" --shared 2>&1; echo \"code $?\"";
    let output = script("private", setup)?;
    ensure!(output.contains("mountPropagation: Bidirectional") && output.ends_with("code 1\n"), "{output}");
    Ok(())
}

/// The kernel says of a new network namespace that it does not forward.
#[test]
fn a_node_that_does_not_forward_is_told_of() -> Result<()> {
    let quiet = "echo 0 > /proc/sys/net/ipv4/ip_forward";
    let output = script("shared", &format!("{quiet}; \"$culvert\" node-setup --skip bpffs,conntrack 2>&1"))?;
    ensure!(output.contains("warning: net.ipv4.ip_forward = 0"), "{output}");
    let loud = "echo 1 > /proc/sys/net/ipv4/ip_forward";
    let output = script("shared", &format!("{loud}; \"$culvert\" node-setup --skip bpffs,conntrack 2>&1"))?;
    ensure!(!output.contains("net.ipv4.ip_forward"), "{output}");
    Ok(())
}
