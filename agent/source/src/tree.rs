//! YAML documents as trees whose nodes know their line, so that an error found long after parsing can still say
//! where its field stands. JSON is a subset of YAML and takes the same way.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::Spanned;

use crate::fault::Fault;

/// The most bytes one file may have: far above any hand-written folder, and a bound on what a stray file can cost.
pub const MAX_FILE_BYTES: usize = 256 << 20;

/// Decodes an object, and remembers where it stopped.
pub type Decoder<'a, 'b> = serde_path_to_error::Deserializer<'a, 'b, Value>;

/// One node of a document.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    /// Line in the file, from 1; 0 if unknown.
    pub line: u64,
    /// What stands there.
    pub node: Node,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Node {
    /// `null`, `~` or nothing: as good as absent.
    Null,
    /// A boolean.
    Bool(bool),
    /// A number.
    Number(serde_json::Number),
    /// Text.
    Text(String),
    /// A sequence.
    List(Vec<Tree>),
    /// A mapping, in the order of the file.
    Map(Vec<(String, Tree)>),
}

/// Reads all documents of one file. Empty documents are left out.
pub fn parse(text: &str) -> Result<Vec<Tree>, Fault> {
    let documents = serde_saphyr::from_multiple_with_options::<Tree>(text, options(text.len())).map_err(|error| {
        let line = error.location().map(|location| location.line());
        Fault::new(error.without_snippet().to_string()).at_line(line)
    })?;
    Ok(documents.into_iter().filter(|tree| tree.node != Node::Null).collect())
}

/// Limits in step with the size of the file: what a file of that size can honestly contain, so that only aliases
/// can exceed them.
fn options(bytes: usize) -> serde_saphyr::Options {
    let items = bytes.max(1024);
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: items.saturating_mul(2),
            max_nodes: items,
            max_documents: items,
            max_total_scalar_bytes: items.saturating_mul(2),
        },
        with_snippet: false,
        // YAML 1.2: a Service may be called `y`.
        strict_booleans: true,
    }
}

impl Tree {
    /// The value below a key of a mapping.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.node {
            Node::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text of a node.
    pub fn text(&self) -> Option<&str> {
        match &self.node {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a sequence; none for anything else.
    pub fn items(&self) -> &[Self] {
        match &self.node {
            Node::List(items) => items,
            _ => &[],
        }
    }

    /// The line of a field, by its path (`spec.ports[0].port`), or of the nearest ancestor that exists.
    pub fn line_of(&self, path: &str) -> u64 {
        let mut at = self;
        for step in steps(path) {
            let next = match &at.node {
                Node::List(items) => step.parse::<usize>().ok().and_then(|index| items.get(index)),
                _ => at.get(step),
            };
            let Some(next) = next else { break };
            at = next;
        }
        at.line
    }

    /// Reads a typed object. The error names the field; the line is the caller's to add.
    pub fn to_object<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        self.to_object_by(|decoder| T::deserialize(decoder))
    }

    /// Reads a typed object as `read` does. The error names the field; the line is the caller's to add.
    pub fn to_object_by<T>(&self, read: impl FnOnce(Decoder<'_, '_>) -> serde_json::Result<T>) -> Result<T, Fault> {
        let mut track = serde_path_to_error::Track::new();
        read(Decoder::new(self.to_json(), &mut track)).map_err(|error| {
            let path = track.path().to_string();
            let line = self.line_of(&path);
            Fault::new(error.to_string()).at_field(path).at_line(Some(line))
        })
    }

    /// The plain value. Fields that are null are left out, as the API server does.
    fn to_json(&self) -> Value {
        match &self.node {
            Node::Null => Value::Null,
            Node::Bool(value) => Value::Bool(*value),
            Node::Number(value) => Value::Number(value.clone()),
            Node::Text(text) => Value::String(text.clone()),
            Node::List(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Node::Map(entries) => entries
                .iter()
                .filter(|(_, value)| value.node != Node::Null)
                .map(|(key, value)| (key.clone(), value.to_json()))
                .collect(),
        }
    }
}

/// The steps of a field path: names between dots, and what stands in brackets (an index or a key with dots).
fn steps(path: &str) -> impl Iterator<Item = &str> {
    let mut rest = path;
    std::iter::from_fn(move || {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if rest.is_empty() {
            return None;
        }
        if let Some((step, after)) = rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            rest = after;
            return Some(step);
        }
        let end = rest.get(1..)?.find(['.', '[']).map_or(rest.len(), |at| at + 1);
        let (step, after) = rest.split_at(end);
        rest = after;
        Some(step)
    })
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Node>::deserialize(deserializer)?;
        Ok(Self { line: spanned.referenced.line(), node: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Node, E> {
        serde_json::Number::from_f64(value).map(Node::Number).ok_or_else(|| E::custom("not a finite number"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Node, E> {
        Ok(Node::Text(text))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_its_line() {
        let text = "# a comment\nmetadata:\n  name: web\n  labels:\n    a.b/c: x\nspec:\n  ports:\n  - port: 80\n  - port: 81\n    name: two\n";
        let tree = &parse(text).unwrap()[0];
        for (path, line) in [
            ("metadata.name", 3),
            ("metadata.labels[a.b/c]", 5),
            ("spec.ports[0].port", 8),
            ("spec.ports[1].name", 10),
            ("spec.ports[1].nodePort", 9),
            ("spec.ports[7]", 8),
        ] {
            assert_eq!(tree.line_of(path), line, "{path}");
        }
    }

    #[test]
    fn documents_nulls_and_json() {
        assert_eq!(parse("a: 1\n---\n# nothing\n---\nb: ~\n").unwrap().len(), 2);
        assert_eq!(parse("").unwrap(), []);
        assert_eq!(parse("{\n\t\"a\": {\"b\": [1, \"x\", true]}\n}\n").unwrap()[0].line_of("a.b[1]"), 2);
        let tree = &parse("a: null\nb: {}\n").unwrap()[0];
        assert_eq!(tree.to_json(), serde_json::json!({"b": {}}));
    }

    #[test]
    fn a_syntax_error_has_its_line() {
        let fault = parse("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(matches!(fault.line, Some(2..=4)), "{fault:?}");
        assert_eq!(parse("a: 1\na: 2\n").unwrap_err().line, Some(2));
    }

    #[test]
    fn a_type_error_names_field_and_line() {
        #[derive(Debug, Deserialize)]
        struct Port {
            #[allow(dead_code)]
            port: i32,
        }
        #[derive(Debug, Deserialize)]
        struct Spec {
            #[allow(dead_code)]
            ports: Vec<Port>,
        }
        let fault = parse("ports:\n- port: 80\n- port: http\n").unwrap()[0].to_object::<Spec>().unwrap_err();
        assert_eq!((fault.field.as_deref(), fault.line), (Some("ports[1].port"), Some(3)));
    }
}
