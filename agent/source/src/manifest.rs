//! One file: YAML or JSON, any number of documents, into valid objects and faults.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use culvert_model::objects::{EndpointSlice, Node, ObjectKey, Service};
use culvert_pools::Resource;
use serde::de::DeserializeOwned;

use crate::fault::Fault;
use crate::object::{Id, Kind, Object};
use crate::tree::{self, Tree};
use crate::validate::{self, Rules, Violation};
use crate::{defaults, fields};

/// What a file holds.
#[derive(Debug, Default)]
pub struct Manifest {
    /// Its valid objects.
    pub objects: BTreeMap<Id, Placed>,
    /// What is wrong in it; the file's name is the caller's to add.
    pub faults: Vec<Fault>,
}

/// An object and the line where it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Line in the file, from 1.
    pub line: u64,
    /// The object.
    pub object: Object,
}

/// Reads a file's text.
pub fn read(text: &str, rules: &Rules) -> Manifest {
    let mut manifest = Manifest::default();
    match tree::parse(text) {
        Ok(documents) => documents.iter().for_each(|document| manifest.document(document, None, rules)),
        Err(fault) => manifest.faults.push(fault),
    }
    manifest
}

/// What a document is, by `apiVersion` and `kind`.
enum Content {
    Object(Kind),
    /// A list, whose items may leave out their kind if the list names it.
    List(Option<Kind>),
    Other,
}

impl Manifest {
    fn document(&mut self, document: &Tree, implied: Option<Kind>, rules: &Rules) {
        match content(document, implied) {
            Ok(Content::Object(kind)) => self.object(kind, document, rules),
            Ok(Content::List(implied)) => {
                for item in document.get("items").map_or(&[][..], Tree::items) {
                    self.document(item, implied, rules);
                }
            }
            Ok(Content::Other) => {
                let kind = document.get("kind").and_then(Tree::text);
                tracing::debug!(kind, line = document.line, "kind is not for us");
            }
            Err(fault) => self.faults.push(fault.at_line(Some(document.line))),
        }
    }

    fn object(&mut self, kind: Kind, tree: &Tree, rules: &Rules) {
        let name = name(kind, tree);
        match typed(kind, tree, rules) {
            Ok(object) => {
                fields::unknown(kind, tree, &mut |field, line| {
                    let fault = Fault::warning("unknown field");
                    self.faults.push(fault.of_object(&name).at_field(field).at_line(Some(line)));
                });
                self.insert(Placed { line: tree.line, object });
            }
            Err(faults) => self.faults.extend(faults.into_iter().map(|fault| fault.of_object(&name))),
        }
    }

    fn insert(&mut self, placed: Placed) {
        match self.objects.entry(placed.object.id()) {
            Entry::Vacant(entry) => {
                entry.insert(placed);
            }
            Entry::Occupied(first) => {
                let message = format!("is defined twice; the definition in line {} counts", first.get().line);
                self.faults.push(Fault::new(message).of_object(first.key().to_string()).at_line(Some(placed.line)));
            }
        }
    }
}

fn content(document: &Tree, implied: Option<Kind>) -> Result<Content, Fault> {
    let text = |key: &str| document.get(key).and_then(Tree::text).unwrap_or_default();
    if let ("", "", Some(kind)) = (text("apiVersion"), text("kind"), implied) {
        return Ok(Content::Object(kind));
    }
    let required = |field: &str| Err(Fault::new("Required value").at_field(field));
    match (text("apiVersion"), text("kind")) {
        (_, "") => required("kind"),
        ("", _) => required("apiVersion"),
        ("v1", "Service") => Ok(Content::Object(Kind::Service)),
        ("v1", "Node") => Ok(Content::Object(Kind::Node)),
        ("discovery.k8s.io/v1", "EndpointSlice") => Ok(Content::Object(Kind::EndpointSlice)),
        ("discovery.k8s.io/v1beta1", "EndpointSlice" | "EndpointSliceList") => {
            let message = "Unsupported value: \"discovery.k8s.io/v1beta1\": supported values: \"discovery.k8s.io/v1\"";
            Err(Fault::new(message).at_field("apiVersion"))
        }
        ("v1", "List") => Ok(Content::List(None)),
        ("v1", "ServiceList") => Ok(Content::List(Some(Kind::Service))),
        ("v1", "NodeList") => Ok(Content::List(Some(Kind::Node))),
        ("discovery.k8s.io/v1", "EndpointSliceList") => Ok(Content::List(Some(Kind::EndpointSlice))),
        (version, kind) => of_addresses(version, kind),
    }
}

/// What addresses are configured with: MetalLB's group, and Namespaces.
fn of_addresses(version: &str, kind: &str) -> Result<Content, Fault> {
    if let Some(kind) = culvert_pools::Kind::of(version, kind) {
        return Ok(Content::Object(Kind::Addresses(kind)));
    }
    if let Some(kind) = kind.strip_suffix("List").and_then(|kind| culvert_pools::Kind::of(version, kind)) {
        return Ok(Content::List(Some(Kind::Addresses(kind))));
    }
    let of_group = version.starts_with("metallb.io/");
    match culvert_pools::Kind::ALL.into_iter().find(|known| of_group && known.name() == kind) {
        Some(known) => {
            let versions =
                known.api_versions().iter().map(|version| format!("{version:?}")).collect::<Vec<_>>().join(", ");
            let message = format!("Unsupported value: {version:?}: supported values: {versions}");
            Err(Fault::new(message).at_field("apiVersion"))
        }
        None => Ok(Content::Other),
    }
}

/// The object's name for messages, as far as it can be made out before it is decoded.
fn name(kind: Kind, tree: &Tree) -> String {
    let text = |key| tree.get("metadata").and_then(|metadata| metadata.get(key)).and_then(Tree::text);
    let namespace = text("namespace").unwrap_or(if kind.is_namespaced() { "default" } else { "" });
    Id { kind, key: ObjectKey::new(namespace, text("name").unwrap_or("?")) }.to_string()
}

fn typed(kind: Kind, tree: &Tree, rules: &Rules) -> Result<Object, Vec<Fault>> {
    match kind {
        Kind::Service => {
            let object = checked(tree, defaults::service, |service: &Service| validate::service(service, rules))?;
            Ok(Object::Service(Arc::new(object)))
        }
        Kind::EndpointSlice => {
            let object = checked::<EndpointSlice>(tree, defaults::endpoint_slice, validate::endpoint_slice)?;
            Ok(Object::EndpointSlice(Arc::new(object)))
        }
        Kind::Node => Ok(Object::Node(Arc::new(checked::<Node>(tree, |_| {}, validate::node)?))),
        Kind::Addresses(kind) => {
            let resource = tree.to_object_by(|value| Resource::deserialize(kind, value));
            let mut resource = resource.map_err(|fault| vec![fault])?;
            if kind.is_namespaced() {
                defaults::namespaced(resource.metadata_mut());
            }
            let violations = validate::addresses(&resource);
            valid(tree, Object::Addresses(resource), violations)
        }
    }
}

/// Decodes, fills in, validates.
fn checked<T: DeserializeOwned>(
    tree: &Tree,
    fill_in: impl Fn(&mut T),
    validate: impl Fn(&T) -> Vec<Violation>,
) -> Result<T, Vec<Fault>> {
    let mut object = tree.to_object::<T>().map_err(|fault| vec![fault])?;
    fill_in(&mut object);
    let violations = validate(&object);
    valid(tree, object, violations)
}

/// The object, if no rule is broken; else where they are.
fn valid<T>(tree: &Tree, object: T, violations: Vec<Violation>) -> Result<T, Vec<Fault>> {
    if violations.is_empty() {
        return Ok(object);
    }
    let fault = |violation: Violation| {
        let line = tree.line_of(&violation.field);
        Fault::new(violation.message).at_field(violation.field).at_line(Some(line))
    };
    Err(violations.into_iter().map(fault).collect())
}

#[cfg(test)]
mod tests {
    //! The cases are files in `cases/`: a manifest, and what becomes of it.

    use serde::Deserialize;
    use serde_json::Value;

    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Case {
        name: String,
        /// The text of a file.
        manifest: String,
        /// The same after defaulting; for valid manifests.
        #[serde(default)]
        becomes: Option<Value>,
        /// `line: object: field: message`, sorted; nothing for valid manifests.
        #[serde(default)]
        faults: Vec<String>,
    }

    fn check(cases: &str) {
        for case in serde_saphyr::from_multiple::<Case>(cases).unwrap() {
            let manifest = read(&case.manifest, &Rules::default());
            let mut faults = manifest.faults.clone();
            faults.sort();
            let faults: Vec<String> =
                faults.into_iter().map(|fault| format!("{}: {fault}", fault.line.unwrap_or_default())).collect();
            assert_eq!(faults, case.faults, "{}", case.name);
            let Some(expected) = case.becomes else { continue };
            let expected: Vec<Object> = match &expected {
                Value::Array(objects) => objects.iter().map(decode).collect(),
                object => vec![decode(object)],
            };
            let found: Vec<Object> = manifest.objects.into_values().map(|placed| placed.object).collect();
            assert_eq!(found, expected, "{}", case.name);
        }
    }

    /// The object as it is written, without defaults or checks.
    fn decode(value: &Value) -> Object {
        let value = value.clone();
        match value["kind"].as_str().unwrap() {
            "Service" => Object::Service(serde_json::from_value(value).unwrap()),
            "EndpointSlice" => Object::EndpointSlice(serde_json::from_value(value).unwrap()),
            "Node" => Object::Node(serde_json::from_value(value).unwrap()),
            kind => {
                let kind = culvert_pools::Kind::ALL.into_iter().find(|known| known.name() == kind).unwrap();
                Object::Addresses(Resource::deserialize(kind, value).unwrap())
            }
        }
    }

    #[test]
    fn services() {
        check(include_str!("../cases/services.yaml"));
    }

    #[test]
    fn endpoint_slices() {
        check(include_str!("../cases/endpoint-slices.yaml"));
    }

    #[test]
    fn addresses() {
        check(include_str!("../cases/addresses.yaml"));
    }

    #[test]
    fn files() {
        check(include_str!("../cases/files.yaml"));
    }

    /// Whatever becomes of a manifest's text, reading it ends with objects and faults, and both are told of their place.
    mod mishaps {
        use proptest::prelude::*;

        use super::super::*;

        const GOOD: &str = concat!(
            include_str!("../../../deploy/examples/nodes.yaml"),
            "---\n",
            include_str!("../../../deploy/examples/web.yaml")
        );

        proptest! {
            #[test]
            fn any_text(text in "\\PC*") {
                read(&text, &Rules::default());
            }

            #[test]
            fn a_manifest_with_a_piece_replaced(at in 0..GOOD.len(), length in 0..40usize, piece in "[ -~\n]{0,12}") {
                let end = (at + length).min(GOOD.len());
                let text = format!("{}{piece}{}", &GOOD[..at], &GOOD[end..]);
                for fault in read(&text, &Rules::default()).faults {
                    prop_assert!(fault.line.is_some(), "{fault}");
                }
            }
        }
    }
}
