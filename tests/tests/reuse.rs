//! Ports that are used again: by a node that has few of them, and by a client that asks a Service first and then its backend.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_abi::idle;
use culvert_tests::agent::{Options, SocketMode};
use culvert_tests::manifests::Service;
use culvert_tests::matrix::{PORT, TARGET, node_port};
use culvert_tests::place::{Family, Place};
use culvert_tests::stage::{Scenery, everywhere, session};
use culvert_tests::topology::{Lab, PodLinks, cluster_ip, external_ip};
use culvert_tests::traffic::{Ask, Outcome};
use socket2::{Domain, Socket, Type};

/// Who ends a connection, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The client, with a reset.
    Reset,
    /// The client, with the first FIN: it remembers the connection for a while.
    Client,
    /// The server, with the first FIN: it does.
    Server,
}

/// Serves on a thread that ends with the process. A byte is answered with itself; who ends the connection it says.
fn serve(place: &Place, address: SocketAddr) -> Result<()> {
    let listener = place.run(|| TcpListener::bind(address).with_context(|| address.to_string()))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream);
        }
    });
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)?;
    if byte[0] == Ending::Server as u8 {
        stream.shutdown(Shutdown::Write)?;
    }
    while stream.read(&mut [0])? > 0 {}
    Ok(())
}

/// A whole connection, from an address of the client's.
fn connect(from: IpAddr, to: SocketAddr, ending: Ending) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    let byte = [ending as u8];
    stream.write_all(&byte)?;
    stream.read_exact(&mut [0])?;
    match ending {
        Ending::Reset => socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?,
        Ending::Client => stream.shutdown(Shutdown::Write)?,
        Ending::Server => {}
    }
    if ending != Ending::Reset {
        while stream.read(&mut [0])? > 0 {}
    }
    Ok(())
}

#[test]
fn a_node_opens_more_connections_than_it_has_ports() -> Result<()> {
    const PORTS: &str = "61000-61127";
    const CONNECTIONS: u32 = 500;
    /// Where the server of this test listens.
    const OWN: u16 = 9_000;
    let scenery = Scenery::new(PodLinks::Routed)?;
    for family in Family::BOTH {
        serve(&scenery.cast.c, scenery.cast.c.socket(family, OWN))?;
    }
    let service = Service::new("far", 1).port("TCP", PORT, OWN).node_port(node_port(1)).ready("n2", &scenery.cast.c);
    let mut options = Options::new(SocketMode::Host)?;
    options.flags.extend(["--snat-ports", PORTS].map(str::to_owned));
    let stage = scenery.start(&options, [&service])?;
    let client = &stage.cluster.lab.client;
    for (family, other) in Family::BOTH.into_iter().zip([Lab::CLIENT_2.0.into(), IpAddr::from(Lab::CLIENT_2.1)]) {
        let to = stage.cast.n1.socket(family, node_port(1));
        // Two clients: what one leaves behind at the backend, the other meets.
        let from = [client.ip(family), other];
        for ending in [Ending::Reset, Ending::Client, Ending::Server] {
            let took = client.run(|| {
                let start = Instant::now();
                for (i, from) in (0..CONNECTIONS).zip(from.into_iter().cycle()) {
                    connect(from, to, ending).with_context(|| format!("{family:?} {ending:?}: {from}, number {i}"))?;
                }
                Ok(start.elapsed())
            })?;
            ensure!(took < Duration::from_secs(idle::CLOSED.into()), "{family:?} {ending:?}: {took:?} prove nothing");
        }
    }
    Ok(())
}

/// Who asks which Service, and where its backend is.
struct Case<'a> {
    from: &'a Place,
    service: (IpAddr, u16),
    backend: &'a Place,
}

#[test]
fn a_backend_is_reached_past_a_flow_that_is_over() -> Result<()> {
    let scenery = Scenery::new(PodLinks::Routed)?;
    let cast = scenery.cast.clone();
    let services = [
        everywhere("near", 1).ready("n1", &cast.a),
        everywhere("far", 2).ready("n2", &cast.c),
        everywhere("host", 3).ready("n1", &cast.n1),
    ];
    // The way to the far backend itself leads over the node that translates.
    for family in Family::BOTH {
        let bits = if family == Family::V4 { 32 } else { 128 };
        scenery.lab.route(&format!("{}/{bits}", cast.c.ip(family)), 0)?;
    }
    let stage = scenery.start(&Options::new(SocketMode::Host)?, &services)?;
    let client = &stage.cluster.lab.client;
    let mut port = 20_000;
    for family in Family::BOTH {
        let node = |n| (cast.n1.ip(family), node_port(n));
        let cases = [
            Case { from: client, service: (external_ip(family, 101), PORT), backend: &cast.a },
            Case { from: client, service: node(1), backend: &cast.a },
            Case { from: client, service: node(2), backend: &cast.c },
            Case { from: client, service: node(3), backend: &cast.n1 },
            Case { from: &cast.p, service: (cluster_ip(family, 1), PORT), backend: &cast.a },
            Case { from: &cast.p, service: (cluster_ip(family, 2), PORT), backend: &cast.c },
        ];
        for Case { from, service, backend } in cases {
            let direct = (backend.ip(family), TARGET);
            for resets in [true, false] {
                port += 1;
                let own = SocketAddr::new(from.ip(family), port);
                let talk = |to: (IpAddr, u16)| -> Result<Outcome> {
                    let ask = Ask::tcp(to).from(own);
                    let mut session = session(from, &if resets { ask.reset() } else { ask })?;
                    let outcome = session.exchange();
                    if !resets {
                        session.finish()?;
                    }
                    Ok(outcome)
                };
                let what = format!("{own} -> {service:?}, resets: {resets}");
                let check = |to, how: &str| {
                    let outcome = talk(to).with_context(|| format!("{what}, {how}"))?;
                    ensure!(outcome.server() == Some(backend.name()), "{what}, {how}: {outcome}");
                    Ok(outcome.answer().map(|answer| answer.peer))
                };
                check(service, "by the Service")?;
                ensure!(check(direct, "past it")? == Some(own), "{what}: the backend sees somebody else");
                // Who ended with a FIN keeps its port from another connection to the same place.
                if resets {
                    check(service, "by the Service again")?;
                    check(direct, "past it again")?;
                }
            }
        }
    }
    Ok(())
}
