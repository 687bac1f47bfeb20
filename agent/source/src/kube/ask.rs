//! Single requests to the API server, for those who write: each has a limit of time, and what it says of a server is taken note of.

use std::time::Duration;

use kube::Error;
use kube::api::{DeleteParams, GetParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::Request;
use serde_json::Value;
use tokio::time::timeout;

use super::access::Access;

/// What is asked of a collection, such as `/api/v1/namespaces/default/services`.
#[derive(Clone, Copy, Debug)]
pub enum Ask<'a> {
    /// The objects with these labels (`a=b,c=d`).
    List(&'a str),
    /// One object.
    Get(&'a str),
    /// A new object.
    Create(&'a Value),
    /// That an object go.
    Delete(&'a str),
    /// To change an object by a merge patch.
    Patch(&'a str, &'a Value),
    /// To change an object by a merge patch of its status.
    PatchStatus(&'a str, &'a Value),
}

/// Why there is no answer, or not the wanted one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The server refuses; nothing was done.
    #[error("{message} ({code})")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// In its words.
        message: String,
    },
    /// No server answers. Whether anything was done is not known.
    #[error("{0}")]
    Unreachable(String),
}

impl AskError {
    /// Whether the server said this with one of its codes.
    pub fn is(&self, wanted: u16) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == wanted)
    }
}

impl Access {
    /// Asks once, and waits for `limit` at most. The answer is the object's text, or the list's.
    ///
    /// # Errors
    /// When the answer is another one, or none. Dropped before its end, whether anything was done is not known.
    pub async fn ask(&self, collection: &str, ask: Ask<'_>, limit: Duration) -> Result<String, AskError> {
        let unreachable = |error: &dyn std::error::Error| AskError::Unreachable(error.to_string());
        let (server, client) = self.client().await.map_err(|error| unreachable(&error))?;
        let path = Request::new(collection);
        let request = match ask {
            Ask::List(labels) => path.list(&ListParams::default().labels(labels)),
            Ask::Get(name) => path.get(name, &GetParams::default()),
            Ask::Create(object) => path.create(&PostParams::default(), object.to_string().into_bytes()),
            Ask::Delete(name) => path.delete(name, &DeleteParams::default()),
            Ask::Patch(name, patch) => path.patch(name, &PatchParams::default(), &Patch::Merge(patch)),
            Ask::PatchStatus(name, patch) => {
                path.patch_subresource("status", name, &PatchParams::default(), &Patch::Merge(patch))
            }
        };
        let request = request.map_err(|error| unreachable(&error))?;
        let Ok(answer) = timeout(limit, client.request_text(request)).await else {
            self.failed(&server);
            let message = format!("{}: no answer within {} ms", server.url, limit.as_millis());
            return Err(AskError::Unreachable(message));
        };
        match answer {
            Ok(text) => {
                self.worked(&server);
                Ok(text)
            }
            Err(Error::Api(status)) => {
                match status.code {
                    401 => self.refused(&server),
                    500.. => drop(self.failed(&server)),
                    _ => {}
                }
                // A server error may have come after the deed.
                if status.code >= 500 {
                    return Err(AskError::Unreachable(format!("{}: {}", server.url, status.message)));
                }
                Err(AskError::Refused { code: status.code, message: status.message.clone() })
            }
            Err(error) => {
                self.failed(&server);
                let mut cause: &dyn std::error::Error = &error;
                while let Some(source) = cause.source() {
                    cause = source;
                }
                Err(AskError::Unreachable(format!("{}: {cause}", server.url)))
            }
        }
    }
}
