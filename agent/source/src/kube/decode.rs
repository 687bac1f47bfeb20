//! The API server's JSON into objects: lists and lines of watches. Each object is decoded by itself, so that one that cannot be
//! read spoils nothing but itself. Only what the model reads is decoded; the rest of the text is skipped, not kept.

use std::borrow::Cow;
use std::sync::Arc;

use culvert_model::objects::{EndpointSlice, Node, ObjectKey, ObjectMeta, Service};
use culvert_pools::Resource;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::fault::Fault;
use crate::object::{Id, Kind, Object};

/// Marks the bookmark that ends the first objects of a streamed list.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// How much of a Service is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What it says.
    Read,
    /// Besides, what somebody needs who writes its status: its version, and its finalizers.
    Written,
}

/// One object of a list or an event.
#[derive(Debug, PartialEq)]
pub struct Item {
    /// Which one.
    pub key: ObjectKey,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// The object without its version, but for a Service of [`Detail::Written`]; or why it cannot be read.
    pub object: Result<Object, Box<Fault>>,
}

/// One page of a list.
#[derive(Debug, PartialEq)]
pub struct Page {
    /// Its objects.
    pub items: Vec<Item>,
    /// Where a watch goes on from this list.
    pub version: String,
    /// What to ask for the next page with; `None` after the last.
    pub next: Option<String>,
    /// Objects of which not even the name can be read.
    pub nameless: usize,
}

/// One line of a watch.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// An object is new or different.
    Upsert(Item),
    /// An object is gone, or is no longer selected.
    Remove(Item),
    /// A watch may go on from here. `initial` if this ends the first objects of a streamed list.
    Bookmark {
        /// The version to go on from.
        version: String,
        /// All objects that exist have been told.
        initial: bool,
    },
    /// The server ends the watch.
    Failed(Failure),
}

/// What the server says of a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The HTTP status, 0 if it names none.
    pub code: u16,
    /// In its words.
    pub message: String,
}

#[derive(Deserialize)]
struct RawPage<'a> {
    #[serde(default)]
    metadata: ListMeta,
    // `null` for none, as Go writes an empty list.
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: Option<String>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: Option<u16>,
    message: Option<String>,
    reason: Option<String>,
}

/// An object of which only the metadata is decoded.
#[derive(Deserialize)]
struct Named {
    metadata: ObjectMeta,
}

/// Decodes a page of a list.
pub fn page(kind: Kind, detail: Detail, text: &str) -> serde_json::Result<Page> {
    let RawPage { metadata, items } = serde_json::from_str(text)?;
    let items = items.unwrap_or_default();
    let count = items.len();
    let items: Vec<Item> = items.into_iter().filter_map(|raw| item(kind, detail, raw.get()).ok()).collect();
    Ok(Page {
        nameless: count - items.len(),
        items,
        version: metadata.resource_version.unwrap_or_default(),
        next: metadata.next.filter(|next| !next.is_empty()),
    })
}

/// Decodes a line of a watch. `Ok(None)` for a kind of event that is not known.
pub fn event(kind: Kind, detail: Detail, line: &str) -> serde_json::Result<Option<Event>> {
    let raw: RawEvent<'_> = serde_json::from_str(line)?;
    let text = raw.object.get();
    Ok(Some(match &*raw.kind {
        "ADDED" | "MODIFIED" => Event::Upsert(item(kind, detail, text)?),
        "DELETED" => Event::Remove(item(kind, detail, text)?),
        "BOOKMARK" => {
            let Named { metadata } = serde_json::from_str(text)?;
            let initial = metadata.annotations.get(INITIAL_EVENTS_END).is_some_and(|value| value == "true");
            Event::Bookmark { version: metadata.resource_version, initial }
        }
        "ERROR" => {
            let Status { code, message, reason } = serde_json::from_str(text)?;
            let message = message.or(reason).unwrap_or_else(|| "the API server ends the watch".to_owned());
            Event::Failed(Failure { code: code.unwrap_or_default(), message })
        }
        _ => return Ok(None),
    }))
}

/// Decodes one object. `Err` if it cannot even be said which one it is.
fn item(kind: Kind, detail: Detail, text: &str) -> serde_json::Result<Item> {
    let decoded = match kind {
        Kind::Service => serde_json::from_str(text).map(|mut service: Service| {
            let version = match detail {
                Detail::Read => strip(&mut service.metadata),
                Detail::Written => service.metadata.resource_version.clone(),
            };
            (version, Object::Service(Arc::new(service)))
        }),
        Kind::EndpointSlice => serde_json::from_str(text).map(|mut slice: EndpointSlice| {
            let version = strip(&mut slice.metadata);
            (version, Object::EndpointSlice(Arc::new(slice)))
        }),
        Kind::Node => serde_json::from_str(text).map(|mut node: Node| {
            let version = strip(&mut node.metadata);
            (version, Object::Node(Arc::new(node)))
        }),
        Kind::Addresses(kind) => {
            Resource::deserialize(kind, &mut serde_json::Deserializer::from_str(text)).map(|mut resource| {
                let version = strip(resource.metadata_mut());
                (version, Object::Addresses(resource))
            })
        }
    };
    match decoded {
        Ok((version, object)) if !object.metadata().name.is_empty() => {
            Ok(Item { key: object.metadata().key(), version, object: Ok(object) })
        }
        Ok(_) => Err(serde::de::Error::missing_field("metadata.name")),
        Err(error) => unreadable(kind, text, &error),
    }
}

/// Takes away what changes without being of concern to those who only read. The version.
fn strip(metadata: &mut ObjectMeta) -> String {
    metadata.finalizers.clear();
    std::mem::take(&mut metadata.resource_version)
}

fn unreadable(kind: Kind, text: &str, error: &serde_json::Error) -> serde_json::Result<Item> {
    let Loose { metadata } = serde_json::from_str(text)?;
    let Some(name) = metadata.name.filter(|name| !name.is_empty()) else {
        return Err(serde::de::Error::missing_field("metadata.name"));
    };
    let key = ObjectKey::new(&metadata.namespace.unwrap_or_default(), &name);
    let fault = Fault::new(format!("cannot be read: {error}"));
    let fault = fault.of_object(Id { kind, key: key.clone() }.to_string());
    Ok(Item { key, version: metadata.resource_version.unwrap_or_default(), object: Err(Box::new(fault)) })
}

/// The least that says which object it is.
#[derive(Deserialize)]
struct Loose {
    metadata: LooseMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LooseMeta {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = r#"{"kind":"Service","metadata":{"name":"web","namespace":"shop","resourceVersion":"7",
        "managedFields":[{"manager":"x"}]},"spec":{"clusterIP":"10.96.0.1","ports":[{"port":80,"protocol":"TCP"}]}}"#;

    fn upserted(line: &str) -> Item {
        match event(Kind::Service, Detail::Read, line).unwrap() {
            Some(Event::Upsert(item)) => item,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn events_are_read_whatever_the_order_of_their_fields() {
        for line in [
            format!(r#"{{"type":"ADDED","object":{SERVICE}}}"#),
            format!(r#"{{"object":{SERVICE},"type":"MODIFIED","more":1}}"#),
        ] {
            let item = upserted(&line);
            assert_eq!((item.key.to_string().as_str(), item.version.as_str()), ("shop/web", "7"));
            let Ok(Object::Service(service)) = item.object else { panic!() };
            assert_eq!((service.spec.ports[0].port, service.metadata.resource_version.as_str()), (80, ""));
        }
        let line = format!(r#"{{"type":"DELETED","object":{SERVICE}}}"#);
        assert!(matches!(event(Kind::Service, Detail::Read, &line), Ok(Some(Event::Remove(_)))));
        assert_eq!(event(Kind::Service, Detail::Read, r#"{"type":"NEWER","object":{}}"#).unwrap(), None);
    }

    #[test]
    fn whoever_writes_a_service_reads_its_version_and_its_finalizers() {
        let finalizers = SERVICE.replace("\"managedFields\"", "\"finalizers\":[\"example.com/x\"],\"managedFields\"");
        let line = format!(r#"{{"type":"ADDED","object":{finalizers}}}"#);
        for (detail, version, finalizers) in [(Detail::Read, "", 0), (Detail::Written, "7", 1)] {
            let Ok(Some(Event::Upsert(item))) = event(Kind::Service, detail, &line) else { panic!() };
            let Ok(Object::Service(service)) = item.object else { panic!() };
            let metadata = &service.metadata;
            assert_eq!((&*item.version, &*metadata.resource_version), ("7", version));
            assert_eq!(metadata.finalizers.len(), finalizers);
        }
    }

    #[test]
    fn bookmarks_say_where_to_go_on_and_when_all_was_told() {
        let bookmark = |annotations: &str| {
            let line = format!(
                r#"{{"type":"BOOKMARK","object":{{"kind":"Service","metadata":{{"resourceVersion":"9","creationTimestamp":null,
                   "annotations":{annotations}}},"spec":{{}}}}}}"#
            );
            event(Kind::Service, Detail::Read, &line).unwrap().unwrap()
        };
        let version = || "9".to_owned();
        assert_eq!(bookmark("null"), Event::Bookmark { version: version(), initial: false });
        let end = r#"{"k8s.io/initial-events-end":"true"}"#;
        assert_eq!(bookmark(end), Event::Bookmark { version: version(), initial: true });
    }

    #[test]
    fn failures_are_in_the_servers_words() {
        let line = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}"#;
        let expected = Failure { code: 410, message: "too old".into() };
        assert_eq!(event(Kind::Node, Detail::Read, line).unwrap(), Some(Event::Failed(expected)));
    }

    #[test]
    fn an_object_that_cannot_be_read_spoils_nothing_else() {
        let bad = SERVICE.replace("80", "\"eighty\"").replace("web", "bad");
        let text = format!(
            r#"{{"metadata":{{"resourceVersion":"5","continue":"more"}},"items":[{SERVICE},{bad},{{"metadata":{{}}}},17]}}"#
        );
        let page = page(Kind::Service, Detail::Read, &text).unwrap();
        assert_eq!((page.version.as_str(), page.next.as_deref(), page.nameless), ("5", Some("more"), 2));
        assert!(page.items[0].object.is_ok());
        let fault = page.items[1].object.as_ref().unwrap_err().to_string();
        assert!(
            fault.starts_with("error: Service/shop/bad: cannot be read: invalid type: string \"eighty\""),
            "{fault}"
        );
        assert_eq!(page.items.len(), 2);
    }

    #[test]
    fn an_empty_list_may_be_null() {
        let text = r#"{"metadata":{"resourceVersion":"5","continue":""},"items":null}"#;
        let expected = Page { items: vec![], version: "5".into(), next: None, nameless: 0 };
        assert_eq!(page(Kind::Node, Detail::Read, text).unwrap(), expected);
    }

    /// Whatever is in an object, decoding it ends, and so does the model's work with it.
    mod mishaps {
        use culvert_model::{Change, Config, Model};
        use proptest::prelude::*;
        use serde_json::{Value, json};

        use super::super::*;

        fn leaf() -> impl Strategy<Value = Value> {
            prop_oneof![
                Just(Value::Null),
                any::<bool>().prop_map(Value::from),
                any::<i64>().prop_map(Value::from),
                (-70_000..70_000_i64).prop_map(Value::from),
                any::<f64>().prop_map(Value::from),
                "\\PC{0,12}".prop_map(Value::from),
                prop::sample::select(vec![
                    "None",
                    "ClientIP",
                    "Local",
                    "Cluster",
                    "TCP",
                    "SCTP",
                    "10.0.0.1",
                    "::1",
                    "0.0.0.0/0",
                    "255.255.255.255",
                    "fe80::1%eth0",
                    "IPv4",
                    "IPv6",
                    "FQDN",
                    "LoadBalancer",
                    "NodePort",
                    "ExternalName",
                    "VIP",
                    "2026-11-25T10:00:00Z",
                    "9999-12-31T23:59:59Z",
                    "-1-01-01T00:00:00Z",
                    "node-1",
                    "web"
                ])
                .prop_map(Value::from),
            ]
        }

        fn tree() -> impl Strategy<Value = Value> {
            leaf().prop_recursive(3, 24, 4, |inner| {
                prop_oneof![
                    prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                    prop::collection::hash_map("[a-z]{1,8}", inner, 0..4)
                        .prop_map(|map| Value::Object(map.into_iter().collect())),
                ]
            })
        }

        fn service() -> Value {
            json!({
                "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "1",
                    "creationTimestamp": "2026-11-25T10:00:00Z", "labels": {"a": "b"}, "annotations": {"c": "d"}},
                "spec": {
                    "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
                    "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack", "externalIPs": ["192.0.2.1"],
                    "ports": [{"name": "a", "port": 80, "protocol": "TCP", "nodePort": 30080, "targetPort": "http"}],
                    "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}},
                    "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30081,
                    "loadBalancerSourceRanges": ["10.0.0.0/8"], "trafficDistribution": "PreferClose",
                },
                "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2", "ipMode": "VIP", "ports": []}]}},
            })
        }

        fn slice() -> Value {
            json!({
                "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4",
                "ports": [{"name": "a", "port": 8080, "protocol": "TCP"}],
                "endpoints": [{"addresses": ["10.0.0.2"], "conditions": {"ready": true, "serving": true, "terminating": false},
                    "nodeName": "node-1", "zone": "z", "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "n"}]}}],
            })
        }

        fn node() -> Value {
            json!({
                "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "z"}},
                "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"], "taints": [{"key": "k"}]},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.9"}], "conditions": []},
            })
        }

        /// Puts `piece` at the `at`-th place of the tree, counted depth first.
        fn replace(tree: &mut Value, at: &mut usize, piece: &Value) {
            if *at == 0 {
                *tree = piece.clone();
            }
            *at = at.wrapping_sub(1);
            match tree {
                Value::Array(items) => items.iter_mut().for_each(|item| replace(item, at, piece)),
                Value::Object(map) => map.values_mut().for_each(|item| replace(item, at, piece)),
                _ => {}
            }
        }

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(2_000))]

            #[test]
            fn any_object_is_read_or_refused(
                which in 0..3_usize,
                pieces in prop::collection::vec((0..70_usize, tree()), 1..4),
            ) {
                let (kind, mut value) = [
                    (Kind::Service, service()), (Kind::EndpointSlice, slice()), (Kind::Node, node()),
                ][which].clone();
                for (at, piece) in pieces {
                    replace(&mut value, &mut { at }, &piece);
                }
                let line = json!({"type": "ADDED", "object": value}).to_string();
                let Ok(Some(Event::Upsert(item))) = event(kind, Detail::Read, &line) else { return Ok(()) };
                let Ok(object) = item.object else { return Ok(()) };
                let mut model = Model::new(Config { node: "node-1".into(), ..Config::default() });
                for change in [service(), slice(), node()].into_iter().zip(0..3) {
                    model.apply(match change {
                        (value, 0) => Change::Service(serde_json::from_value(value).unwrap()),
                        (value, 1) => Change::EndpointSlice(serde_json::from_value(value).unwrap()),
                        (value, _) => Change::Node(serde_json::from_value(value).unwrap()),
                    });
                }
                model.apply(match object {
                    Object::Service(service) => Change::Service(service),
                    Object::EndpointSlice(slice) => Change::EndpointSlice(slice),
                    Object::Node(node) => Change::Node(node),
                    Object::Addresses(resource) => panic!("{resource:?}"),
                });
                model.node_plan();
            }

            #[test]
            fn any_text_is_read_or_refused(text in "\\PC{0,80}") {
                for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
                    let _ = (event(kind, Detail::Written, &text), page(kind, Detail::Written, &text));
                }
            }
        }
    }
}
