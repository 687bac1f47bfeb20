//! The status of MetalLB's objects: how full a pool is, and what is wrong with the configuration. Nobody else writes these.

use std::time::Duration;

use culvert_pools::PoolStatus;
use culvert_source::kube::{Access, Ask, AskError};
use jiff::Timestamp;
use serde_json::{Value, json};

/// The name of the controller's `ConfigurationState`.
const STATE: &str = "culvert-controller";
/// Characters of a condition's message (`metav1.Condition`).
const MESSAGE: usize = 32_768;

/// Whose status.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A pool's, by namespace and name.
    Pool(String, String),
    /// The configuration's, in a namespace.
    Configuration(String),
}

/// Writes a status, which is waited for so long.
///
/// # Errors
/// When nobody knows whether it is written, or it is not.
pub async fn write(access: &Access, object: &Object, status: &Value, limit: Duration) -> Result<(), AskError> {
    let (namespace, plural, name) = match object {
        Object::Pool(namespace, name) => (namespace, "ipaddresspools", name.as_str()),
        Object::Configuration(namespace) => (namespace, "configurationstates", STATE),
    };
    let collection = format!("/apis/metallb.io/v1beta1/namespaces/{namespace}/{plural}");
    let mut written = access.ask(&collection, Ask::PatchStatus(name, status), limit).await;
    if matches!(object, Object::Configuration(_)) && written.as_ref().is_err_and(|error| error.is(404)) {
        access.ask(&collection, Ask::Create(&state()), limit).await?;
        written = access.ask(&collection, Ask::PatchStatus(name, status), limit).await;
    }
    written.map(drop)
}

fn state() -> Value {
    json!({
        "apiVersion": "metallb.io/v1beta1", "kind": "ConfigurationState",
        "metadata": {"name": STATE, "labels": {"metallb.io/component-type": "controller"}},
    })
}

/// A pool's status, as a patch.
pub fn of_pool(status: PoolStatus) -> Value {
    let PoolStatus { assigned_ipv4, assigned_ipv6, available_ipv4, available_ipv6 } = status;
    json!({"status": {
        "assignedIPv4": assigned_ipv4, "assignedIPv6": assigned_ipv6,
        "availableIPv4": available_ipv4, "availableIPv6": available_ipv6,
    }})
}

/// The configuration's status, as a patch; `wrong` is what is wrong with it. Its one condition is that of MetalLB's controller, with
/// MetalLB's words (`internal/k8s/controllers/configuration_state.go`); it bears the time of the report, as MetalLB's does.
pub fn of_configuration(wrong: &[String], now: Timestamp) -> Value {
    let valid = wrong.is_empty();
    let (result, status, reason) =
        if valid { ("Valid", "True", "Reconciled") } else { ("Invalid", "False", "ConfigurationError") };
    let all = wrong.join("\n");
    let summary = &all[..all.floor_char_boundary(MESSAGE)];
    let condition = json!({
        "type": "poolReconcilerValid", "status": status, "reason": reason, "message": summary,
        "lastTransitionTime": format!("{now:.0}"),
    });
    json!({"status": {"result": result, "errorSummary": summary, "conditions": [condition]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_a_configuration_is_what_metallb_says() {
        let now = Timestamp::UNIX_EPOCH;
        let said = |wrong: &[&str]| {
            let wrong: Vec<String> = wrong.iter().map(|&one| one.to_owned()).collect();
            of_configuration(&wrong, now)["status"].take()
        };
        assert_eq!(
            said(&[]),
            json!({"result": "Valid", "errorSummary": "", "conditions": [{
                "type": "poolReconcilerValid", "status": "True", "reason": "Reconciled", "message": "",
                "lastTransitionTime": "1970-01-01T00:00:00Z",
            }]})
        );
        assert_eq!(
            said(&["one", "two"]),
            json!({"result": "Invalid", "errorSummary": "one\ntwo", "conditions": [{
                "type": "poolReconcilerValid", "status": "False", "reason": "ConfigurationError", "message": "one\ntwo",
                "lastTransitionTime": "1970-01-01T00:00:00Z",
            }]})
        );
        let long = "ä".repeat(MESSAGE);
        assert_eq!(said(&[&long])["errorSummary"].as_str().map(str::len), Some(MESSAGE));
    }
}
