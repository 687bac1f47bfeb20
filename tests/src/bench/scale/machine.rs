//! On what it was measured.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::Result;

use super::proxy::Proxy;
use crate::{programs, shell};

/// Processor, memory, kernel, and versions of what takes part; names and values.
pub fn describe(proxies: &[Proxy]) -> Result<BTreeMap<String, String>> {
    let first = |program: &str| -> Result<String> {
        let text = shell::run(Command::new(programs::find(program)?).arg("--version"))?;
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    };
    let mut facts = BTreeMap::from([
        ("kernel".to_owned(), shell::sh("uname -r")?.trim().to_owned()),
        ("processors".to_owned(), format!("{} x {}", std::thread::available_parallelism()?, processor())),
        ("memory".to_owned(), fact("/proc/meminfo", "MemTotal").unwrap_or_default()),
        ("etcd".to_owned(), first("etcd")?),
        ("API server".to_owned(), first("kube-apiserver")?),
    ]);
    for proxy in proxies {
        facts.insert(proxy.to_string(), proxy.version()?);
    }
    Ok(facts)
}

fn processor() -> String {
    fact("/proc/cpuinfo", "model name").unwrap_or_else(|| "a processor without a name".to_owned())
}

/// What a file of procfs says under a name.
fn fact(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':'))?;
    Some(value.split_whitespace().collect::<Vec<_>>().join(" "))
}
