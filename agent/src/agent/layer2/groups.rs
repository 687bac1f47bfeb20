//! The groups of IPv6 in which neighbours ask for addresses (RFC 4291 2.7.1), on links that do not carry the addresses.
//!
//! A group is joined twice. As a member, so that switches that listen to MLD pass it on (RFC 4861 7.2.1): the kernel tells
//! them, as long as the agent lives. And at the link itself, whose filter stays open without an agent: the kernel program
//! answers meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv6Addr;

use culvert_announce::probe::packet::solicited_node;
use culvert_dataplane::Frames;
use culvert_dataplane::announced::group;
use socket2::{Domain, Socket, Type};

/// The groups that were joined.
#[derive(Debug, Default)]
pub struct Groups {
    sockets: Vec<Socket>,
    joined: BTreeMap<(u32, Ipv6Addr), Joined>,
}

/// A group on a link.
#[derive(Debug, Default)]
struct Joined {
    /// For these addresses.
    addresses: BTreeSet<Ipv6Addr>,
    /// The socket that is a member; `None`: none could be made one yet.
    member: Option<usize>,
}

impl Groups {
    /// Listens for solicitations of an address on a link. Called again, it tries again what failed.
    pub fn join(&mut self, frames: &Frames, (index, name): (u32, &str), address: Ipv6Addr) {
        let at = (index, solicited_node(address));
        if let Err(error) = frames.open_to(name, group(address)) {
            tracing::warn!(link = name, %address, %error, "the link cannot be opened to solicitations");
        }
        let known = self.joined.entry(at).or_default();
        known.addresses.insert(address);
        if known.member.is_none() {
            let result = become_member(&mut self.sockets, at);
            // A link without IPv6 has no groups, and nobody asks there.
            known.member = result
                .map_err(|error| tracing::debug!(link = name, %address, %error, "the group cannot be joined"))
                .ok();
        }
    }

    /// Takes that back. `name`: of the link, if it is still there.
    pub fn leave(&mut self, frames: &Frames, (index, name): (u32, Option<&str>), address: Ipv6Addr) {
        let at = (index, solicited_node(address));
        if let Some(known) = self.joined.get_mut(&at) {
            known.addresses.remove(&address);
            if !known.addresses.is_empty() {
                return;
            }
        }
        let member = self.joined.remove(&at).and_then(|known| known.member);
        if let Some(socket) = member.and_then(|member| self.sockets.get(member)) {
            // Fails for a link that is gone.
            let _ = socket.leave_multicast_v6(&at.1, index);
        }
        if let Some(name) = name
            && let Err(error) = frames.close_to(name, group(address))
        {
            tracing::debug!(link = name, %address, %error, "the link stays open to solicitations");
        }
    }
}

/// Joins a group with the first socket that has room, or a new one: how many groups a socket can be in depends on
/// `net.core.optmem_max`.
fn become_member(sockets: &mut Vec<Socket>, (link, group): (u32, Ipv6Addr)) -> io::Result<usize> {
    for (i, socket) in sockets.iter().enumerate() {
        match socket.join_multicast_v6(&group, link) {
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {}
            result => return result.map(|()| i),
        }
    }
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
    socket.join_multicast_v6(&group, link)?;
    sockets.push(socket);
    Ok(sockets.len() - 1)
}
