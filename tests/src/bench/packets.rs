//! The packets that the shim sends round: 128 bytes each, with an Ethernet header.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use culvert_abi::proto;

/// Bytes of every packet; the shim's `LEN`.
pub const LEN: usize = 128;
const ETHERNET: usize = 14;

/// TCP flags.
pub mod tcp {
    /// The first segment.
    pub const SYN: u8 = 0x02;
    /// Any later one.
    pub const ACK: u8 = 0x10;
}

/// Which end of the packet changes from flow to flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Varies {
    /// Source address and port: packets from clients.
    Source,
    /// Destination address and port: packets to clients.
    Destination,
}

/// The shim's template: the layout of `Template` in `ebpf/src/shim.rs`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Template {
    flows: u32,
    address_at: u32,
    port_at: u32,
    address: u32,
    bytes: [u8; LEN],
}

// SAFETY: plain integers and bytes without padding.
unsafe impl aya::Pod for Template {}

impl Template {
    /// A TCP or UDP packet from `source` to `destination`, of which one end takes `flows` different values.
    pub fn new(
        source: SocketAddr,
        destination: SocketAddr,
        protocol: u8,
        flags: u8,
        flows: u32,
        varies: Varies,
    ) -> Result<Self> {
        ensure!(source.is_ipv4() == destination.is_ipv4(), "{source} and {destination} are of two families");
        let (header, addresses_at, width) = match source {
            SocketAddr::V4(_) => (20, ETHERNET + 12, 4),
            SocketAddr::V6(_) => (40, ETHERNET + 8, 16),
        };
        let transport = ETHERNET + header;
        let mut bytes = [0; LEN];
        bytes[12..14].copy_from_slice(&if source.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        fill_ip(&mut bytes[ETHERNET..], source.ip(), destination.ip(), protocol);
        bytes[transport..transport + 2].copy_from_slice(&source.port().to_be_bytes());
        bytes[transport + 2..transport + 4].copy_from_slice(&destination.port().to_be_bytes());
        match protocol {
            proto::TCP => {
                bytes[transport + 12] = 5 << 4;
                bytes[transport + 13] = flags;
            }
            _ => bytes[transport + 4..transport + 6].copy_from_slice(&((LEN - transport) as u16).to_be_bytes()),
        }
        let (address_at, port_at) = match varies {
            Varies::Source => (addresses_at + width - 4, transport),
            Varies::Destination => (addresses_at + 2 * width - 4, transport + 2),
        };
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[address_at..address_at + 4]);
        let address = u32::from_be_bytes(word);
        Ok(Self { flows, address_at: address_at as u32, port_at: port_at as u32, address, bytes })
    }

    /// The packet of flow 0.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn fill_ip(ip: &mut [u8], source: IpAddr, destination: IpAddr, protocol: u8) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ip[0] = 0x45;
            ip[2..4].copy_from_slice(&((LEN - ETHERNET) as u16).to_be_bytes());
            ip[8] = 64;
            ip[9] = protocol;
            ip[12..16].copy_from_slice(&source.octets());
            ip[16..20].copy_from_slice(&destination.octets());
            let sum = ip[..20].as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum::<u32>();
            let sum = (sum & 0xffff) + (sum >> 16);
            ip[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            ip[0] = 0x60;
            ip[4..6].copy_from_slice(&((LEN - ETHERNET - 40) as u16).to_be_bytes());
            ip[6] = protocol;
            ip[7] = 64;
            ip[8..24].copy_from_slice(&source.octets());
            ip[24..40].copy_from_slice(&destination.octets());
        }
        _ => {}
    }
}
