//! Whether a kube-proxy runs on this node.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Its process, unless it is a part of another one.
const NAME: &str = "kube-proxy";
/// Where it says in which mode it works, by default. The agent answers there, too.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);
/// Its modes.
const MODES: [&str; 3] = ["iptables", "ipvs", "nftables"];
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// More than any answer of its.
const LONGEST: u64 = 8 * 1024;

/// What shows that kube-proxy runs in this network namespace, a sentence each.
pub fn signs() -> Vec<String> {
    let processes = processes().into_iter().map(|id| format!("process {id} is {NAME}"));
    let mode = mode(METRICS).map(|mode| format!("{METRICS} answers as kube-proxy does, in mode {mode}"));
    processes.chain(mode).collect()
}

/// Processes of its name in this thread's network namespace.
fn processes() -> Vec<u32> {
    let namespace = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    let Some(own) = namespace(Path::new("/proc/thread-self")) else { return Vec::new() };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let process = |path: PathBuf| {
        let id = path.file_name()?.to_str()?.parse().ok()?;
        let name = fs::read_to_string(path.join("comm")).ok()?;
        (name.trim_end() == NAME && namespace(&path)? == own).then_some(id)
    };
    entries.filter_map(|entry| process(entry.path())).collect()
}

/// The mode of a kube-proxy that answers at an address, also if it is a part of another process (K3s).
fn mode(address: SocketAddr) -> Option<&'static str> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"GET /proxyMode HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (_, body) = answer.split_once("\r\n\r\n")?;
    MODES.into_iter().find(|mode| *mode == body.trim())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answer(text: &'static str) -> Option<&'static str> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
        });
        let mode = mode(address);
        server.join().unwrap();
        mode
    }

    #[test]
    fn its_mode_is_known_from_its_answer() {
        assert_eq!(answer("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nnftables"), Some("nftables"));
        assert_eq!(answer("HTTP/1.0 200 OK\r\n\r\nculvert"), None, "the agent");
        assert_eq!(answer("HTTP/1.0 404 Not Found\r\n\r\n404 page not found"), None);
        assert_eq!(answer("220 smtp"), None);
    }

    #[test]
    fn nobody_answers() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(mode(address), None);
    }
}
