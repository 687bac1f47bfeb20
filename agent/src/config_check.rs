//! `culvert config check`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use culvert_api::config_check::{ConfigCheck, PoolSummary, Remark};
use culvert_model::Family;
use culvert_pools::{Config, Finding, Id, Kind, Resources, config::Pool};
use culvert_source::{Fault, Object, Rules, Severity};

use crate::cli::{ConfigCheckArgs, PlanOutput};
use crate::output::{Done, lines, print, print_json, table};

/// Runs the command.
pub fn run(args: &ConfigCheckArgs) -> Result<Done> {
    // Which node ports there are is no part of this.
    let rules = Rules { node_ports: 1..=u16::MAX };
    let (loaded, faults) = culvert_source::load_files(&args.files, &rules).map_err(|fault| anyhow!("{fault}"))?;
    let mut resources = Resources::default();
    let mut places = BTreeMap::new();
    for (file, placed) in loaded {
        match placed.object {
            Object::Node(node) => drop(resources.upsert_node(&node)),
            Object::Addresses(resource) if is_of(&args.config_namespaces, &resource.id()) => {
                places.insert(resource.id(), (file, placed.line));
                resources.upsert(resource);
            }
            _ => {}
        }
    }
    let check = check(&resources, &faults, &places);
    match args.output {
        PlanOutput::Json => print_json(&check)?,
        PlanOutput::Table => print(&text(&check))?,
    }
    Ok(if check.valid { Done::Well } else { Done::Unwell })
}

/// Whether an object is in one of the namespaces, or in whichever if none are named.
fn is_of(namespaces: &[String], id: &Id) -> bool {
    let named = || namespaces.iter().any(|namespace| **namespace == *id.key.namespace);
    namespaces.is_empty() || id.kind == Kind::Namespace || named()
}

fn check(resources: &Resources, faults: &[Fault], places: &BTreeMap<Id, (PathBuf, u64)>) -> ConfigCheck {
    let place = |finding: Finding| {
        let place = places.get(&finding.object);
        Remark {
            file: place.map(|(file, _)| file.clone()),
            line: place.map(|(_, line)| *line),
            object: Some(finding.object.to_string()),
            field: Some(finding.field),
            message: finding.message,
        }
    };
    let (errors, warnings): (Vec<&Fault>, Vec<&Fault>) = faults.iter().partition(|fault| fault.is_error());
    let mut errors: Vec<Remark> = errors.into_iter().map(remark).collect();
    let mut warnings: Vec<Remark> = warnings.into_iter().map(remark).collect();
    let mut pools = Vec::new();
    match Config::new(resources) {
        Ok(config) => {
            warnings.extend(config.warnings(resources).into_iter().map(place));
            pools.extend(config.pools.values().map(|pool| summary(pool, &config)));
        }
        Err(findings) => errors.extend(findings.into_iter().map(place)),
    }
    errors.sort();
    warnings.sort();
    let valid = errors.is_empty();
    ConfigCheck { valid, errors, warnings, pools: if valid { pools } else { Vec::new() } }
}

fn remark(fault: &Fault) -> Remark {
    let Fault { file, line, object, field, message, .. } = fault.clone();
    Remark { file, line, object, field, message }
}

fn summary(pool: &Pool, config: &Config) -> PoolSummary {
    let layer2 = config.layer2.iter().filter(|advertisement| advertisement.pools.matches(pool));
    let bgp = config.bgp.iter().filter(|advertisement| advertisement.pools.matches(pool));
    let name = |kind, key| Id { kind, key }.to_string();
    let layer2 = layer2.map(|advertisement| name(Kind::L2Advertisement, advertisement.key.clone()));
    let bgp = bgp.map(|advertisement| name(Kind::BgpAdvertisement, advertisement.key.clone()));
    PoolSummary {
        name: pool.name.to_string(),
        namespace: pool.namespace.to_string(),
        addresses: pool.ranges.iter().map(ToString::to_string).collect(),
        auto_assign: pool.auto_assign,
        ipv4: pool.capacity(Family::V4),
        ipv6: pool.capacity(Family::V6),
        advertisements: layer2.chain(bgp).collect(),
    }
}

/// The answer for people.
fn text(check: &ConfigCheck) -> String {
    let mut text = String::new();
    for (severity, remarks) in [(Severity::Error, &check.errors), (Severity::Warning, &check.warnings)] {
        for remark in remarks {
            text += &line(severity, remark);
        }
    }
    if !check.valid {
        return text + "not valid: the configuration before this one stays in force\n";
    }
    let mut rows = table(["POOL", "ADDRESSES", "IPV4", "IPV6", "AUTO ASSIGN", "ANNOUNCED BY"]);
    for pool in &check.pools {
        rows.add_row([
            pool.name.clone(),
            pool.addresses.join("\n"),
            count(pool.ipv4),
            count(pool.ipv6),
            if pool.auto_assign { "yes" } else { "no" }.to_owned(),
            pool.advertisements.join("\n"),
        ]);
    }
    if rows.is_empty() { text + "valid: no pools\n" } else { text + &lines(&rows) }
}

fn count(addresses: i64) -> String {
    if addresses == i64::MAX { "endless".to_owned() } else { addresses.to_string() }
}

/// As faults are written: `file:line: severity: object: field: message`, each part where it is known.
fn line(severity: Severity, remark: &Remark) -> String {
    let Remark { file, line, object, field, message } = remark.clone();
    Fault { file, line, object, field, message, severity }.to_string() + "\n"
}
