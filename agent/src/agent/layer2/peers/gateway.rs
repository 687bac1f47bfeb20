//! The default gateway's answer to a ping (RFC 792, RFC 4443): this node's network works. Both sides of a cut may get one.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use culvert_announce::liveness::Time;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use super::clock;

/// From one ping to the next.
const INTERVAL: Duration = Duration::from_millis(150);

/// Pings the gateway until `end`; each answer holds for `lease` from when it was asked for.
pub async fn ask(until: watch::Sender<Time>, mut end: oneshot::Receiver<()>, lease: Duration) {
    let mut said = false;
    let mut number = 0;
    loop {
        number += 1;
        let asked = clock();
        let answered = tokio::select! {
            _ = &mut end => return,
            answered = timeout(lease, ping(number)) => answered,
        };
        match answered {
            Ok(Ok(())) => drop(until.send_replace(asked + lease)),
            Ok(Err(error)) if !said => {
                tracing::warn!(%error, "layer 2: the gateway cannot be asked who is cut off");
                said = true;
            }
            _ => {}
        }
        tokio::select! {
            _ = &mut end => return,
            () = sleep(INTERVAL) => {}
        }
    }
}

/// Sends one ping and waits for its answer.
async fn ping(number: u16) -> io::Result<()> {
    let gateway = gateway().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no default route"))?;
    let (domain, protocol, request, reply) = match gateway {
        SocketAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        SocketAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.connect(&gateway.into())?;
    let id = std::process::id() as u16;
    let [id_high, id_low] = id.to_be_bytes();
    let [high, low] = number.to_be_bytes();
    let mut packet = [request, 0, 0, 0, id_high, id_low, high, low];
    // In IPv6 the kernel fills it in.
    let [first, second] = checksum(&packet).to_be_bytes();
    if gateway.is_ipv4() {
        (packet[2], packet[3]) = (first, second);
    }
    // Any datagrams will do for tokio.
    let socket = UdpSocket::from_std(socket.into())?;
    socket.send(&packet).await?;
    let mut bytes = [0; 256];
    loop {
        let length = socket.recv(&mut bytes).await?;
        let read = bytes.get(..length).unwrap_or_default();
        if is_reply(read, gateway.is_ipv4(), reply, &packet[4..]) {
            return Ok(());
        }
    }
}

/// Whether a packet, in IPv4 with its header, is the reply to a request with this identifier and number.
fn is_reply(packet: &[u8], v4: bool, kind: u8, asked: &[u8]) -> bool {
    let header = if v4 { packet.first().map_or(0, |first| usize::from(first & 0xf) * 4) } else { 0 };
    let Some(message) = packet.get(header..) else { return false };
    message.first() == Some(&kind) && message.get(4..8) == Some(asked)
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 =
        bytes.chunks(2).map(|two| u32::from(two[0]) << 8 | two.get(1).map_or(0, |low| u32::from(*low))).sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// The default route's next hop: of IPv4 if there is one.
fn gateway() -> Option<SocketAddr> {
    let v4 = fs::read_to_string("/proc/net/route").ok().and_then(|table| of_v4(&table));
    let v6 = || {
        let (address, device) = fs::read_to_string("/proc/net/ipv6_route").ok().and_then(|table| of_v6(&table))?;
        let scope = nix::net::if_::if_nametoindex(device.as_str()).ok()?;
        Some(SocketAddr::V6(SocketAddrV6::new(address, 0, 0, scope)))
    };
    v4.map(|address| SocketAddr::new(IpAddr::V4(address), 0)).or_else(v6)
}

/// Of the kernel's table in words of hexadecimal digits: interface, destination, gateway, flags.
fn of_v4(table: &str) -> Option<Ipv4Addr> {
    table.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (destination, gateway) = (words.next()?, words.next()?);
        let gateway = u32::from_str_radix(gateway, 16).ok().filter(|gateway| *gateway != 0)?;
        (destination == "00000000").then(|| Ipv4Addr::from(gateway.to_ne_bytes()))
    })
}

/// Of the kernel's table: destination, its length, source, its length, gateway, four numbers, interface.
fn of_v6(table: &str) -> Option<(Ipv6Addr, String)> {
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "00", _, _, gateway, .., device] = words[..] else { return None };
        let gateway = u128::from_str_radix(gateway, 16).ok().filter(|gateway| *gateway != 0)?;
        Some((Ipv6Addr::from(gateway), device.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_are_read() {
        let v4 =
            "Iface\tDestination\tGateway \tFlags\neth0\t0000000A\t00000000\t0001\neth0\t00000000\t010200C0\t0003\n";
        assert_eq!(of_v4(v4), Some(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(of_v4("Iface\n"), None);
        let zero = "0".repeat(32);
        let v6 = format!("{zero} 00 {zero} 00 fe80{} 00000400 1 0 00000003 eth0\n", "0".repeat(27) + "1");
        assert_eq!(of_v6(&v6), Some(("fe80::1".parse().unwrap(), "eth0".to_owned())));
        assert_eq!(of_v6(&format!("{zero} 00 {zero} 00 {zero} ffffffff 1 0 00200200 lo\n")), None);
    }

    #[test]
    fn only_the_reply_to_the_request_counts() {
        let message = [0, 0, 1, 2, 0, 7, 0, 9];
        let packet: Vec<u8> = [&[0x45][..], &[0; 19], &message].concat();
        assert!(is_reply(&packet, true, 0, &[0, 7, 0, 9]));
        assert!(!is_reply(&packet, true, 0, &[0, 7, 0, 8]));
        assert!(!is_reply(&packet, true, 8, &[0, 7, 0, 9]));
        assert!(is_reply(&message, false, 0, &[0, 7, 0, 9]));
        assert!(!is_reply(&[], true, 0, &[0, 7, 0, 9]) && !is_reply(&[0x45], true, 0, &[0, 7, 0, 9]));
        assert_eq!(checksum(&[8, 0, 0, 0, 0, 7, 0, 9]), 0xffff - (0x0800 + 7 + 9));
    }
}
