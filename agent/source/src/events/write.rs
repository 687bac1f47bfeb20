//! Writes one event (`events.k8s.io/v1`), or the count of a series.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use jiff::Timestamp;
use kube::api::{GetParams, Patch, PatchParams, PostParams};
use kube::core::Request;
use kube::{Client, Error};
use serde::Deserialize;
use serde_json::{Value, json};

use super::board::{Outcome, Post};
use super::{Condition, Involved, Reporter, Scope, Weight};

/// Bytes of a note (`pkg/apis/core/validation/events.go`).
const NOTE: usize = 1024;
/// Bytes of an object's name that go into its event's.
const NAME: usize = 200;

/// Writes a post.
///
/// # Errors
/// When the server could not be asked; everything that it answers is an [`Outcome`].
pub async fn write(client: &Client, reporter: &Reporter, post: &Post, now: Timestamp) -> Result<Outcome, Error> {
    let Condition { object, .. } = &post.condition;
    let Some(place) = Place::of(object) else { return Ok(Outcome::Dropped) };
    // An event is shown beside its object by uid, and an object that is gone needs none.
    let Some(uid) = settled(uid(client, &place, object).await)? else { return Ok(Outcome::Dropped) };
    let name = name(&post.condition, &reporter.instance, &uid);
    let events = Request::new(format!("/apis/events.k8s.io/v1/namespaces/{}/events", place.events_in));
    // One that is forgotten by now is written anew.
    if post.count > 1 && settled(count(client, &events, &name, post.count, now).await)?.is_some() {
        return Ok(Outcome::Written);
    }
    let event = event(&post.condition, &place, reporter, &name, &uid, now);
    let body = serde_json::to_vec(&event).map_err(Error::SerdeError)?;
    let request = events.create(&PostParams::default(), body).map_err(Error::BuildRequest)?;
    match client.request_text(request).await {
        Ok(_) => Ok(Outcome::Written),
        // Another node sees the same, or this agent did before it was started anew.
        Err(Error::Api(status)) if status.is_already_exists() => Ok(Outcome::Written),
        Err(Error::Api(status)) if is_final(status.code) => {
            tracing::warn!(%object, reason = post.condition.reason, message = status.message, "an event is refused");
            Ok(Outcome::Dropped)
        }
        Err(error) => Err(error),
    }
}

/// Where an object is, and where its events are.
struct Place {
    api_version: &'static str,
    path: String,
    events_in: String,
}

impl Place {
    fn of(object: &Involved) -> Option<Self> {
        let Involved { kind, namespace, name: _ } = object;
        let (api_version, path) = match kind.as_str() {
            "Service" => ("v1", format!("/api/v1/namespaces/{namespace}/services")),
            "EndpointSlice" => {
                ("discovery.k8s.io/v1", format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"))
            }
            // Events of objects without a namespace are in `default`.
            "Node" => {
                return Some(Self { api_version: "v1", path: "/api/v1/nodes".into(), events_in: "default".into() });
            }
            kind => {
                let mut kinds = culvert_pools::Kind::ALL.into_iter();
                let kind = kinds.find(|one| one.name() == kind && one.is_namespaced())?;
                let version = kind.api_versions()[0];
                (version, format!("/apis/{version}/namespaces/{namespace}/{}", kind.plural()))
            }
        };
        Some(Self { api_version, path, events_in: namespace.clone() })
    }
}

#[derive(Deserialize)]
struct Named {
    metadata: Uid,
}

#[derive(Deserialize)]
struct Uid {
    uid: String,
}

async fn uid(client: &Client, place: &Place, object: &Involved) -> Result<String, Error> {
    let request = Request::new(&*place.path).get(&object.name, &GetParams::default()).map_err(Error::BuildRequest)?;
    let text = client.request_text(request).await?;
    let Named { metadata } = serde_json::from_str(&text).map_err(Error::SerdeError)?;
    Ok(metadata.uid)
}

async fn count(client: &Client, events: &Request, name: &str, count: u32, now: Timestamp) -> Result<(), Error> {
    let series = json!({"series": {"count": count, "lastObservedTime": micro(now)}});
    let patch = events.patch(name, &PatchParams::default(), &Patch::Merge(series)).map_err(Error::BuildRequest)?;
    client.request_text(patch).await.map(drop)
}

/// What the server answered; `None` if it says that it will never do it.
fn settled<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Api(status)) if is_final(status.code) => Ok(None),
        Err(Error::BuildRequest(_) | Error::SerdeError(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asking again would bring the same answer. Rights may be granted, though, and a busy server is busy for a while.
fn is_final(code: u16) -> bool {
    matches!(code, 400..=499) && !matches!(code, 401 | 403 | 408 | 429)
}

/// The same for the same condition, so that nodes that see it together write one event; another one for a new object of
/// the same name.
fn name(condition: &Condition, node: &str, uid: &str) -> String {
    let Condition { object, reason, action: _, note, scope, weight: _ } = condition;
    let mut hasher = DefaultHasher::new();
    (uid, reason, note).hash(&mut hasher);
    if *scope == Scope::Node {
        node.hash(&mut hasher);
    }
    let prefix = cut(&object.name, NAME).trim_end_matches(['.', '-']);
    format!("{prefix}.{:016x}", hasher.finish())
}

fn event(condition: &Condition, place: &Place, reporter: &Reporter, name: &str, uid: &str, now: Timestamp) -> Value {
    let Condition { object, reason, action, note, scope: _, weight } = condition;
    let weight = match weight {
        Weight::Normal => "Normal",
        Weight::Warning => "Warning",
    };
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": place.events_in},
        "eventTime": micro(now),
        "type": weight,
        "reason": reason,
        "action": action,
        "note": cut(note, NOTE),
        "reportingController": reporter.controller,
        "reportingInstance": cut(&reporter.instance, 128),
        "regarding": {
            "apiVersion": place.api_version,
            "kind": object.kind,
            "namespace": object.namespace,
            "name": object.name,
            "uid": uid,
        },
    })
}

/// As Kubernetes writes times with microseconds.
fn micro(at: Timestamp) -> String {
    format!("{at:.6}")
}

fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(scope: Scope) -> Condition {
        let object = Involved { kind: "Service".into(), namespace: "shop".into(), name: "web".into() };
        Condition {
            object,
            reason: "ConflictAddress".into(),
            action: "Program",
            note: "n".into(),
            scope,
            weight: Weight::Warning,
        }
    }

    #[test]
    fn nodes_that_see_the_same_write_one_event() {
        let cluster = |node, uid| name(&condition(Scope::Cluster), node, uid);
        assert_eq!(cluster("one", "u"), cluster("two", "u"));
        assert_ne!(cluster("one", "u"), cluster("one", "v"));
        let own = |node| name(&condition(Scope::Node), node, "u");
        assert_ne!(own("one"), own("two"));
        assert!(own("one").starts_with("web."));
    }

    #[test]
    fn long_names_and_notes_are_cut() {
        let mut long = condition(Scope::Cluster);
        long.object.name = "a.".repeat(126);
        let name = name(&long, "n", "u");
        assert!(name.len() <= 253 && !name.contains(".."), "{name}");
        assert_eq!(cut("äöü", 3), "ä");
        assert_eq!(micro(Timestamp::UNIX_EPOCH), "1970-01-01T00:00:00.000000Z");
    }

    #[test]
    fn what_is_worth_another_try() {
        for (code, expected) in
            [(400, true), (404, true), (409, true), (422, true), (401, false), (403, false), (429, false), (500, false)]
        {
            assert_eq!(is_final(code), expected, "{code}");
        }
    }
}
