//! HTTP over the agent's Unix socket.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// How long an answer may take. Reading millions of rows takes its time; an agent that hangs must be noticed all the same.
const PATIENCE: Duration = Duration::from_mins(1);

/// Asks for an answer.
pub async fn get<T: DeserializeOwned>(socket: &Path, path: &str, query: &impl Serialize) -> Result<T> {
    within(send(socket, path, query)).await
}

/// Changes something, and asks for what it is now.
pub async fn post<T: DeserializeOwned>(socket: &Path, path: &str, query: &impl Serialize) -> Result<T> {
    within(call(Method::POST, socket, path, query)).await
}

async fn within<T: DeserializeOwned>(response: impl Future<Output = Result<Response<Incoming>>>) -> Result<T> {
    let answer = async {
        let response = response.await?;
        let body = response.into_body().collect().await.context("the answer broke off")?.to_bytes();
        serde_json::from_slice(&body).context("the agent is of another version: its answer is not understood")
    };
    tokio::time::timeout(PATIENCE, answer).await.map_err(|_| anyhow!("the agent does not answer"))?
}

/// Asks, and gives the answer as it comes.
pub async fn send(socket: &Path, path: &str, query: &impl Serialize) -> Result<Response<Incoming>> {
    call(Method::GET, socket, path, query).await
}

async fn call(method: Method, socket: &Path, path: &str, query: &impl Serialize) -> Result<Response<Incoming>> {
    let stream = UnixStream::connect(socket).await;
    let stream = stream.with_context(|| format!("no agent answers at {}", socket.display()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let query = serde_urlencoded::to_string(query)?;
    let request = Request::builder().method(method).uri(format!("{path}?{query}")).header(header::HOST, "culvert");
    let request = request.body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.context("the agent went away")?;
    if response.status() == StatusCode::OK {
        return Ok(response);
    }
    let body = response.into_body().collect().await?.to_bytes();
    bail!("{}", String::from_utf8_lossy(&body));
}
