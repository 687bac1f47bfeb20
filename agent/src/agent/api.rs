//! The HTTP API on the agent's Unix socket, which the commands use. Readable by root alone.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use culvert_api::layer2::Drain;
use culvert_api::reply::Sample;
use culvert_dataplane::kernel::KernelStore;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::{broadcast, mpsc};

use super::core::{Core, Question, ask};
use super::layer2::{self, Desk};
use super::views;
use crate::cli::FlowFilter;

/// What the handlers share.
#[derive(Clone)]
pub struct Api {
    /// The main loop.
    pub questions: mpsc::Sender<Question>,
    /// The kernel's maps, to read from.
    pub store: KernelStore,
    /// Who knows what is announced in layer 2, where that is on.
    pub layer2: Option<Desk>,
    /// Samples of dropped packets.
    pub samples: broadcast::Sender<Arc<Sample>>,
}

/// One Service, by `NAME` or `NAMESPACE/NAME`.
#[derive(Debug, Deserialize, Serialize)]
pub struct Named {
    /// The name; all Services without.
    pub name: Option<String>,
}

/// The socket's place in the file system, which is left with this value.
#[derive(Debug)]
pub struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Listens on a socket that appears complete: others never see it with another mode, nor without a listener.
pub fn listen(path: &Path) -> io::Result<(UnixListener, Socket)> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = Path::new(&temporary);
    let _ = fs::remove_file(temporary);
    let listener = UnixListener::bind(temporary)?;
    let placed =
        fs::set_permissions(temporary, Permissions::from_mode(0o600)).and_then(|()| fs::rename(temporary, path));
    if placed.is_err() {
        let _ = fs::remove_file(temporary);
    }
    placed.map(|()| (listener, Socket(path.to_owned())))
}

/// The routes.
pub fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/backends", get(backends))
        .route("/v1/flows", get(flows))
        .route("/v1/l2", get(l2))
        .route("/v1/drain", get(drained).post(drain))
        .route("/v1/samples", get(samples))
        .with_state(api)
}

async fn status(State(api): State<Api>) -> Response {
    reply(views::whole_status(&api.questions, &api.store, true).await)
}

async fn services(State(api): State<Api>, Query(named): Query<Named>) -> Response {
    answer(&api, move |core| views::services(core, named.name.as_deref())).await
}

async fn backends(State(api): State<Api>, Query(named): Query<Named>) -> Response {
    answer(&api, move |core| views::backends(core, named.name.as_deref())).await
}

async fn flows(State(api): State<Api>, Query(filter): Query<FlowFilter>) -> Response {
    answer(&api, move |core| views::flows(core, &filter)).await
}

async fn l2(State(api): State<Api>) -> Response {
    reply(layer2::view(&api.questions, api.layer2.as_ref()).await)
}

async fn drained(State(api): State<Api>) -> Response {
    answer(&api, |core| core.drained().ok_or(views::Error::NoLayer2)).await
}

async fn drain(State(api): State<Api>, Query(Drain { drained }): Query<Drain>) -> Response {
    let set = move |core: &mut Core| match core.drain(drained) {
        Some(result) => result.map(|()| Drain { drained }).map_err(views::Error::Drain),
        None => Err(views::Error::NoLayer2),
    };
    reply(ask(&api.questions, set).await)
}

/// Samples as they come, one JSON object a line. A reader that is too slow misses some.
async fn samples(State(api): State<Api>) -> Response {
    let samples = futures_util::stream::unfold(api.samples.subscribe(), |mut samples| async {
        loop {
            match samples.recv().await {
                Ok(sample) => {
                    let line = serde_json::to_string(&*sample).unwrap_or_default() + "\n";
                    return Some((Ok::<_, io::Error>(line), samples));
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], axum::body::Body::from_stream(samples)).into_response()
}

async fn answer<T: Serialize + Send + 'static>(
    api: &Api,
    question: impl FnOnce(&mut Core) -> Result<T, views::Error> + Send + 'static,
) -> Response {
    reply(ask(&api.questions, question).await)
}

fn reply(answer: Option<Result<impl Serialize, views::Error>>) -> Response {
    match answer {
        Some(Ok(reply)) => Json(reply).into_response(),
        Some(Err(error @ (views::Error::Unknown(_) | views::Error::NoLayer2))) => {
            (StatusCode::NOT_FOUND, error.to_string()).into_response()
        }
        Some(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the agent is about to end").into_response(),
    }
}
