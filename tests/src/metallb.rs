//! What MetalLB ships as YAML, read from its Go module: samples, definitions, manifests. Nothing of it lies in this repository.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::deploy::chart::documents;
use crate::programs;

/// Where the module lies: `$CULVERT_METALLB`, else Go is asked for the one that `tests/cluster` pins.
pub fn source() -> Result<PathBuf> {
    match std::env::var_os("CULVERT_METALLB") {
        Some(directory) => Ok(directory.into()),
        None => programs::module("kubernetes-0.34", "go.universe.tf/metallb"),
    }
}

/// The files of a folder of the module, by name.
pub fn files(folder: &str) -> Result<Vec<PathBuf>> {
    let folder = source()?.join(folder);
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    Ok(files)
}

/// The objects of a file.
pub fn objects(file: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    documents(&text).with_context(|| file.display().to_string())
}
