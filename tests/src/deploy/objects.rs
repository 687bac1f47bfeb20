//! Objects of manifests, compared and written whoever rendered them.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Labels that say that Helm installed an object.
const OF_HELM: [&str; 2] = ["app.kubernetes.io/managed-by", "helm.sh/chart"];

/// Objects by kind and name, without Helm's labels.
pub fn by_name(objects: Vec<Value>) -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for mut object in objects {
        if let Some(labels) = object.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
            labels.retain(|name, _| !OF_HELM.contains(&name.as_str()));
        }
        let name = format!("{} {}", text(&object, "/kind")?, text(&object, "/metadata/name")?);
        let twice = found.insert(name, object);
        ensure!(twice.is_none(), "rendered twice: {twice:?}");
    }
    Ok(found)
}

/// The text at a place of an object.
pub fn text<'a>(object: &'a Value, pointer: &str) -> Result<&'a str> {
    object.pointer(pointer).and_then(Value::as_str).with_context(|| format!("no {pointer} in {object}"))
}

/// An object as YAML, with words above it.
pub fn yaml(comment: &str, object: &Value) -> Result<String> {
    Ok(format!("{comment}\n{}", serde_saphyr::to_string(object)?))
}

/// All containers of a pod template, those that run first included.
pub fn containers(workload: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["/spec/template/spec/initContainers", "/spec/template/spec/containers"];
    lists.into_iter().filter_map(|list| workload.pointer(list)?.as_array()).flatten()
}

/// A container's arguments.
pub fn arguments(container: &Value) -> Vec<&str> {
    container["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}
