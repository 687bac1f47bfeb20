//! Licences of our own packages: the texts are there, and every manifest names what the texts grant.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    cargo::cargo,
    process,
    step::{Job, Verdict},
};

/// Licence texts, and a line that each must contain.
const TEXTS: &[(&str, &str)] = &[
    ("LICENSE-MIT", "Permission is hereby granted, free of charge"),
    ("LICENSE-APACHE", "Apache License"),
    ("ebpf/LICENSE-GPL-2.0", "GNU GENERAL PUBLIC LICENSE"),
];

const USER_SPACE: &str = "MIT OR Apache-2.0";
/// The kernel lends its GPL helpers only to programs under a licence that it knows as GPL-compatible.
const KERNEL: &str = "MIT OR Apache-2.0 OR GPL-2.0-only";

/// Compares texts and manifests with what they should be.
pub fn check(job: &mut Job) -> Result<Verdict> {
    for (path, line) in TEXTS {
        let text = fs::read_to_string(job.workspace.root.join(path)).with_context(|| format!("cannot read {path}"))?;
        if !text.contains(line) {
            bail!("{path} does not hold the licence");
        }
    }
    let metadata = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let metadata: Value = serde_json::from_str(&process::output(&mut cargo(job.workspace, metadata))?)?;
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let licence = package["license"].as_str().unwrap_or("none");
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let right = if manifest.starts_with(job.workspace.root.join("ebpf")) { KERNEL } else { USER_SPACE };
        if licence != right {
            wrong.push(format!("package {name} says `{licence}` and should say `{right}`"));
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(Verdict::Passed)
}
