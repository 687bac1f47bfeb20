//! Reads the tables of `tests/cases`; `tests/cases/README.md` says how they are written.

use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File<T> {
    cases: Vec<T>,
}

/// The cases of a file.
pub fn cases<T: DeserializeOwned>(name: &str) -> Vec<T> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name);
    let text = std::fs::read_to_string(path).unwrap();
    let file: File<T> = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    file.cases
}
