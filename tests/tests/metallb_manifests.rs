//! MetalLB's own samples and definitions, as its Go module has them: what its users have written is read as it is.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use culvert_tests::agent::binary;
use culvert_tests::deploy::chart::documents;
use culvert_tests::deploy::objects::{by_name, text};
use culvert_tests::deploy::repository;
use culvert_tests::metallb;
use serde_json::Value;

/// What MetalLB calls its kinds, status apart.
const KINDS: [&str; 6] = ["BFDProfile", "BGPAdvertisement", "BGPPeer", "Community", "IPAddressPool", "L2Advertisement"];

#[test]
fn every_sample_is_valid() -> Result<()> {
    let mut kinds = BTreeSet::new();
    for path in metallb::files("configsamples")? {
        let objects = metallb::objects(&path)?;
        let named = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
        kinds.extend(objects.iter().filter_map(|object| object["kind"].as_str().map(str::to_owned)));
        let mut check = Command::new(binary()?);
        check.args(["config", "check", "-o", "json"]).arg(&path);
        let output = check.output().with_context(|| format!("{check:?}"))?;
        let said = format!("{}: {}", path.display(), String::from_utf8_lossy(&output.stdout));
        ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let check: Value = serde_json::from_slice(&output.stdout).with_context(|| said.clone())?;
        // Nothing of them is passed over: no field, and each pool has its ranges, and who announces it.
        let warnings = check["warnings"].as_array().context("no warnings")?;
        ensure!(warnings.iter().all(|warning| warning["message"] != "unknown field"), "{said}");
        let pools = check["pools"].as_array().context("no pools")?;
        ensure!(pools.len() == named("IPAddressPool").count(), "{said}");
        let advertisements = named("L2Advertisement").chain(named("BGPAdvertisement")).count();
        for (pool, object) in pools.iter().zip(named("IPAddressPool")) {
            let length = |list: &Value| list.as_array().map(Vec::len);
            ensure!(pool["name"] == object["metadata"]["name"], "{said}");
            ensure!(length(&pool["addresses"]) == length(&object["spec"]["addresses"]), "{said}");
            ensure!(length(&pool["advertisements"]) == Some(advertisements), "{said}");
        }
    }
    for kind in KINDS {
        ensure!(kinds.contains(kind), "no sample has a {kind}: {kinds:?}");
    }
    Ok(())
}

/// Where both are installed, MetalLB's definitions stay; where ours are, whatever MetalLB reads and writes fits them.
#[test]
fn definitions_hold_all_that_those_of_metallb_hold() -> Result<()> {
    let mut ours = Vec::new();
    for entry in repository("deploy/helm/culvert/files/crds").read_dir()? {
        ours.extend(documents(&std::fs::read_to_string(entry?.path())?)?);
    }
    let ours = by_name(ours)?;
    let mut missing = Vec::new();
    for path in metallb::files("config/crd/bases")? {
        for theirs in metallb::objects(&path)? {
            let name = text(&theirs, "/metadata/name")?;
            match ours.get(&format!("CustomResourceDefinition {name}")) {
                Some(ours) => definition(&theirs["spec"], &ours["spec"], name, &mut missing),
                None => missing.push(format!("{name} is not defined")),
            }
        }
    }
    ensure!(missing.is_empty(), "{missing:#?}");
    Ok(())
}

fn definition(theirs: &Value, ours: &Value, name: &str, missing: &mut Vec<String>) {
    for field in ["group", "names", "scope"] {
        if theirs[field] != ours[field] {
            missing.push(format!("{name}: {field}: {} is {} there", ours[field], theirs[field]));
        }
    }
    for version in theirs["versions"].as_array().into_iter().flatten() {
        let same = |other: &&Value| other["name"] == version["name"];
        let Some(ours) = ours["versions"].as_array().into_iter().flatten().find(same) else {
            missing.push(format!("{name} has no version {}", version["name"]));
            continue;
        };
        for field in ["served", "storage", "subresources"] {
            if version[field] != ours[field] {
                missing.push(format!("{name}: {field}: {} is {} there", ours[field], version[field]));
            }
        }
        let (theirs, ours) = (&version["schema"]["openAPIV3Schema"], &ours["schema"]["openAPIV3Schema"]);
        schema(theirs, ours, &format!("{name} {}", version["name"]), missing);
    }
}

/// Every field of theirs is ours too, of the same type and with the same default, and ours demands none that theirs does not.
fn schema(theirs: &Value, ours: &Value, at: &str, missing: &mut Vec<String>) {
    if theirs["type"] != ours["type"] {
        missing.push(format!("{at}: {} is {} there", ours["type"], theirs["type"]));
    }
    if !theirs["default"].is_null() && theirs["default"] != ours["default"] {
        missing.push(format!("{at}: the default {} is {} there", ours["default"], theirs["default"]));
    }
    let wants = |schema: &Value| schema["required"].as_array().cloned().unwrap_or_default();
    let they_want = wants(theirs);
    for field in wants(ours).into_iter().filter(|field| !they_want.contains(field)) {
        missing.push(format!("{at}: {field} need not be there"));
    }
    for (field, theirs) in theirs["properties"].as_object().into_iter().flatten() {
        let at = format!("{at}.{field}");
        match ours["properties"].get(field) {
            Some(ours) => schema(theirs, ours, &at, missing),
            None => missing.push(format!("{at} is missing")),
        }
    }
    if theirs["items"].is_object() {
        schema(&theirs["items"], &ours["items"], &format!("{at}[]"), missing);
    }
}
