//! The API server's schema (`OpenAPI` 3, as its source publishes it), and whether an object fits it. Stricter than the API server
//! in one point: a field that it would drop silently is an error.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};

use crate::deploy::objects::text;
use crate::programs;

/// Where `$ref` points to.
const SCHEMAS: &str = "#/components/schemas/";

/// The directory with a file for each group and version.
#[derive(Debug)]
pub struct Schemas {
    directory: PathBuf,
}

impl Schemas {
    /// `$CULVERT_OPENAPI`, else that of the Kubernetes module which the test cluster is built from.
    pub fn new() -> Result<Self> {
        if let Some(directory) = std::env::var_os("CULVERT_OPENAPI") {
            return Ok(Self { directory: directory.into() });
        }
        let module = programs::module("kubernetes", "k8s.io/kubernetes")?;
        Ok(Self { directory: module.join("api/openapi-spec/v3") })
    }

    /// Checks an object: every field is known and has the right type, and none that is required is missing.
    pub fn check(&self, object: &Value) -> Result<()> {
        let (version, kind) = (text(object, "/apiVersion")?, text(object, "/kind")?);
        let file = match version.split_once('/') {
            Some((group, version)) => format!("apis__{group}__{version}_openapi.json"),
            None => format!("api__{version}_openapi.json"),
        };
        let path = self.directory.join(file);
        let document = std::fs::read_to_string(&path).with_context(|| format!("{version}: no {}", path.display()))?;
        let document: Value = serde_json::from_str(&document)?;
        let schemas = document.pointer("/components/schemas").and_then(Value::as_object).context("no schemas")?;
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let wanted = serde_json::json!({"group": group, "kind": kind, "version": version});
        let of_kind = |schema: &&Value| {
            let kinds = schema["x-kubernetes-group-version-kind"].as_array();
            kinds.is_some_and(|kinds| kinds.contains(&wanted))
        };
        let schema = schemas.values().find(of_kind).with_context(|| format!("no kind {kind} in {}", path.display()))?;
        fits(schemas, schema, object, kind)
    }
}

fn fits(schemas: &Map<String, Value>, schema: &Value, value: &Value, at: &str) -> Result<()> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix(SCHEMAS).with_context(|| format!("{at}: {name}"))?;
        return fits(schemas, schemas.get(name).with_context(|| format!("{at}: no {name}"))?, value, at);
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        fits(schemas, part, value, at)?;
    }
    if let Some(ways) = schema["oneOf"].as_array()
        && !ways.iter().any(|way| fits(schemas, way, value, at).is_ok())
    {
        bail!("{at}: {value} has none of the types {ways:?}");
    }
    match (schema["type"].as_str(), value) {
        (None, _)
        | (Some("string"), Value::String(_))
        | (Some("boolean"), Value::Bool(_))
        | (Some("number"), Value::Number(_)) => Ok(()),
        (Some("integer"), Value::Number(number)) if number.is_i64() => Ok(()),
        (Some("array"), Value::Array(items)) => {
            let each = |(i, item)| fits(schemas, &schema["items"], item, &format!("{at}[{i}]"));
            items.iter().enumerate().try_for_each(each)
        }
        (Some("object"), Value::Object(fields)) => object_fits(schemas, schema, fields, at),
        (Some(wanted), _) => bail!("{at}: {value} is no {wanted}"),
    }
}

fn object_fits(schemas: &Map<String, Value>, schema: &Value, fields: &Map<String, Value>, at: &str) -> Result<()> {
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if let Some(missing) = required.into_iter().find(|name| !fields.contains_key(*name)) {
        bail!("{at}: {missing} is missing");
    }
    let (known, others) = (schema["properties"].as_object(), &schema["additionalProperties"]);
    for (name, value) in fields {
        let at = format!("{at}.{name}");
        match known.and_then(|known| known.get(name)) {
            Some(schema) => fits(schemas, schema, value, &at)?,
            None if others.is_object() => fits(schemas, others, value, &at)?,
            None if known.is_none() => {}
            None => bail!("{at}: there is no such field"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn error(value: &Value) -> String {
        let schemas = json!({
            "Pod": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string"},
                "ports": {"type": "array", "items": {"allOf": [{"$ref": "#/components/schemas/Port"}]}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
            }},
            "Port": {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        });
        let schemas = schemas.as_object().unwrap();
        fits(schemas, &schemas["Pod"], value, "Pod").err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert_eq!(error(&json!({"name": "a", "ports": [1, "b"], "labels": {"c": "d"}})), "");
        assert_eq!(error(&json!({})), "Pod: name is missing");
        assert_eq!(error(&json!({"name": 1})), "Pod.name: 1 is no string");
        assert_eq!(error(&json!({"name": "a", "nane": 1})), "Pod.nane: there is no such field");
        assert_eq!(error(&json!({"name": "a", "labels": {"c": true}})), "Pod.labels.c: true is no string");
        assert!(
            error(&json!({"name": "a", "ports": [1, true]})).starts_with("Pod.ports[1]: true has none of the types")
        );
    }
}
