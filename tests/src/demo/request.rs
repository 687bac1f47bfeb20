//! Requests that real servers understand, and who answered them.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::dns;
use crate::traffic::Outcome;

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(3);

/// Who answered: the server that was reached, and the one behind it if it is a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The server's name.
    pub server: String,
    /// The name of the server that the proxy asked.
    pub behind: Option<String>,
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `GET /` on a connection of its own.
    Web,
    /// The TXT record of `whoami.culvert.test` over UDP.
    DnsUdp,
    /// The same over TCP.
    DnsTcp,
    /// Writes and reads a key.
    Etcd,
}

impl Request {
    /// Sends it and waits for the answer. `number` makes it unlike others.
    pub async fn send(self, to: SocketAddr, number: u64) -> Result<Answer, Outcome> {
        let plain = |server| Answer { server, behind: None };
        match self {
            Self::Web => patient(async { Web::connect(to).await?.get().await }).await,
            Self::DnsUdp => patient(dns_udp(to, number as u16)).await.map(plain),
            Self::DnsTcp => patient(dns_tcp(to, number as u16)).await.map(plain),
            Self::Etcd => patient(etcd(to, number)).await.map(plain),
        }
    }
}

/// Awaits for as long as a client waits.
pub async fn patient<T>(work: impl Future<Output = io::Result<T>>) -> Result<T, Outcome> {
    match timeout(PATIENCE, work).await {
        Ok(result) => result.map_err(|error| Outcome::from_error(&error)),
        Err(_) => Err(Outcome::Silence),
    }
}

/// An HTTP connection.
#[derive(Debug)]
pub struct Web {
    sender: SendRequest<Full<Bytes>>,
    host: SocketAddr,
}

impl Web {
    /// Connects.
    pub async fn connect(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(error)?;
        tokio::spawn(connection);
        Ok(Self { sender, host: to })
    }

    /// `GET /`; the answer's first word is the web server's name, and a proxy adds its own in a header.
    pub async fn get(&mut self) -> io::Result<Answer> {
        let (head, body) = self.call("GET", "/", String::new()).await?;
        let web = body.split_whitespace().next().map(str::to_owned).ok_or(io::ErrorKind::UnexpectedEof)?;
        let edge = head.headers.get("x-edge").and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(match edge {
            Some(edge) => Answer { server: edge, behind: Some(web) },
            None => Answer { server: web, behind: None },
        })
    }

    async fn call(
        &mut self,
        method: &str,
        path: &str,
        body: String,
    ) -> io::Result<(hyper::http::response::Parts, String)> {
        let request = hyper::Request::builder().method(method).uri(path).header("host", self.host.to_string());
        let request = request.body(Full::new(Bytes::from(body))).map_err(io::Error::other)?;
        let (head, body) = self.sender.send_request(request).await.map_err(error)?.into_parts();
        let body = body.collect().await.map_err(error)?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        if head.status.is_success() { Ok((head, body)) } else { Err(io::Error::other(format!("HTTP {}", head.status))) }
    }
}

/// The I/O error below an HTTP error, if there is one.
fn error(error: hyper::Error) -> io::Error {
    let kind =
        std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>()).map(io::Error::kind);
    io::Error::new(kind.unwrap_or(io::ErrorKind::Other), error)
}

async fn dns_udp(to: SocketAddr, id: u16) -> io::Result<String> {
    let any =
        if to.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)) };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    socket.send(&dns::query(id)).await?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).await?;
    dns::answer(&buffer[..length], id).ok_or_else(|| io::Error::other("not an answer"))
}

/// Over TCP a message follows its length (RFC 1035 4.2.2).
async fn dns_tcp(to: SocketAddr, id: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    let query = dns::query(id);
    stream.write_u16(query.len() as u16).await?;
    stream.write_all(&query).await?;
    let mut buffer = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut buffer).await?;
    dns::answer(&buffer, id).ok_or_else(|| io::Error::other("not an answer"))
}

/// `culvert` and `balanced` in Base64, as etcd's JSON gateway wants them.
const KEY: &str = "Y3VsdmVydA==";
const VALUE: &str = "YmFsYW5jZWQ=";

/// Writes a key, reads it again, and returns the name of the member that answered.
async fn etcd(to: SocketAddr, number: u64) -> io::Result<String> {
    let mut connection = Web::connect(to).await?;
    if number.is_multiple_of(10) {
        connection.call("POST", "/v3/kv/put", format!(r#"{{"key":"{KEY}","value":"{VALUE}"}}"#)).await?;
    }
    let (_, range) = connection.call("POST", "/v3/kv/range", format!(r#"{{"key":"{KEY}"}}"#)).await?;
    let (_, members) = connection.call("POST", "/v3/cluster/member/list", "{}".to_owned()).await?;
    let (range, members): (Value, Value) = (serde_json::from_str(&range)?, serde_json::from_str(&members)?);
    if range["kvs"][0]["value"] != VALUE {
        return Err(io::Error::other("another value than was written"));
    }
    let id = &range["header"]["member_id"];
    let member = members["members"].as_array().and_then(|members| members.iter().find(|member| member["ID"] == *id));
    let name = member.and_then(|member| member["name"].as_str()).map(str::to_owned);
    name.ok_or_else(|| io::Error::other("no such member"))
}
