//! Ports that are used again, by a node that has few of them.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use culvert_abi::idle;
use culvert_tests::agent::{Options, SocketMode};
use culvert_tests::manifests::Service;
use culvert_tests::matrix::{PORT, node_port};
use culvert_tests::place::{Family, Place};
use culvert_tests::stage::Scenery;
use culvert_tests::topology::{Lab, PodLinks};
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
