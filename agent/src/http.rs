//! HTTP listeners that are never fatal: a busy port is tried again until it is free.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// The first pause after a failed attempt; it doubles...
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// ... up to this: short, for when kube-proxy goes, load balancers soon miss the answers that it gave on these ports.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// The media type of metrics.
pub const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves for ever. What cannot be bound is said once for each different reason.
pub async fn serve(what: String, address: SocketAddr, router: Router) {
    serve_and_tell(what, address, router, |_| ()).await;
}

/// The same; `tell` hears each time why the port cannot be bound, or `None` when it is.
pub async fn serve_and_tell(
    what: String,
    address: SocketAddr,
    router: Router,
    tell: impl Fn(Option<&std::io::Error>) + Send,
) {
    let mut pause = FIRST_PAUSE;
    let mut said = None;
    loop {
        match bind(address) {
            Ok(listener) => {
                tracing::info!(%address, "serving {what}");
                tell(None);
                said = None;
                pause = FIRST_PAUSE;
                // Ends on an error of the listener only.
                let result = axum::serve(listener, router.clone()).await;
                tracing::warn!(%address, ?result, "stopped serving {what}");
            }
            Err(error) => {
                tell(Some(&error));
                if said != Some(error.kind()) {
                    tracing::warn!(%address, %error, "cannot serve {what}; it is tried again");
                    said = Some(error.kind());
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// A listener of one family: `[::]` does not take the IPv4 port too.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use axum::routing::any;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn a_busy_port_is_tried_again() {
        let taken = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = taken.local_addr().unwrap();
        let router = Router::new().route("/", any(|| async { "here" }));
        let server = tokio::spawn(serve("a test".into(), address, router));
        // The server has met the busy port once, at least.
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!server.is_finished());
        drop(taken);
        let answer = async {
            loop {
                let Ok(mut stream) = TcpStream::connect(address).await else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                return answer;
            }
        };
        let answer = tokio::time::timeout(Duration::from_secs(5), answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with("here"), "{answer}");
        server.abort();
    }
}
