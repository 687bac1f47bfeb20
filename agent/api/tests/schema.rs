//! The JSON schemas in `docs/schema/` are those of the types. `CULVERT_WRITE_SCHEMAS=1 cargo test -p culvert-api` writes
//! them anew after a change.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::fs;
use std::path::Path;

use culvert_api::config_check::ConfigCheck;
use culvert_api::layer2::{Drain, Layer2};
use culvert_api::plan::{NodePlan, Plans};
use culvert_api::reply::{Backends, Flows, Sample, Services};
use culvert_api::status::Status;
use culvert_api::takeover::Cleanup;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;

/// `culvert plan` prints one node's plan with `--node`, and those of all nodes without.
#[derive(JsonSchema)]
#[schemars(untagged, title = "culvert plan -o json")]
#[allow(dead_code)]
enum Plan {
    /// Without `--node`.
    All(Plans),
    /// With `--node NAME`.
    One(NodePlan),
}

fn check<T: JsonSchema>(name: &str) {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let schema = serde_json::to_string_pretty(&generator.into_root_schema_for::<T>()).unwrap() + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema").join(name);
    if std::env::var_os("CULVERT_WRITE_SCHEMAS").is_some() {
        fs::write(&path, schema).unwrap();
        return;
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == schema,
        "{} is out of step: run CULVERT_WRITE_SCHEMAS=1 cargo test -p culvert-api",
        path.display()
    );
}

#[test]
fn plan() {
    check::<Plan>("plan.json");
}

#[test]
fn config_check() {
    check::<ConfigCheck>("config-check.json");
}

#[test]
fn replies() {
    check::<Status>("status.json");
    check::<Services>("services.json");
    check::<Backends>("backends.json");
    check::<Flows>("flows.json");
    check::<Layer2>("l2.json");
    check::<Drain>("drain.json");
    check::<Sample>("monitor.json");
    check::<Cleanup>("cleanup.json");
}
