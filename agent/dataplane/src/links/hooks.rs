//! Attaching: each wanted link has our program at both hooks, and nobody else's is touched.
//!
//! With tcx each hook is a link object, pinned as `<direction>_<ifindex>`; an older agent's is taken over by exchanging its
//! program. Ours is the program nearest to the wire: first at ingress, last at egress, so that other projects'
//! programs see packets as the stack does.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use aya_obj::generated::bpf_attach_type;
use culvert_abi::{Link as Row, Plain, link};

use super::{Direction, Role, Wanted, clsact};
use crate::{
    Error,
    kernel::KernelStore,
    netlink::Netlink,
    object::Object,
    pins::{Pins, unpin},
    store::{Map, Store},
    sys::{self, Anchor, Attached, Link, Target},
};

/// How programs are hooked to links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// tcx links (Linux 6.6).
    Tcx,
    /// Filters of the clsact qdisc.
    Clsact,
}

/// The hooks of this node's links.
#[derive(Debug)]
pub struct Hooks {
    pins: Pins,
    netlink: Netlink,
    method: Method,
    /// With tcx: filters of an earlier agent were looked for.
    no_filters: bool,
    held: BTreeMap<(Direction, u32), Held>,
}

#[derive(Debug)]
struct Held {
    role: Role,
    /// With tcx.
    link: Option<Link>,
}

impl Method {
    /// tcx, if the kernel knows the hook. Kernels are asked, for distributions port features back.
    pub fn probe() -> Self {
        const LOOPBACK: u32 = 1;
        match sys::query(Target::Interface(LOOPBACK), bpf_attach_type::BPF_TCX_INGRESS) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Self::Clsact,
            _ => Self::Tcx,
        }
    }
}

impl Hooks {
    /// No hooks yet.
    pub fn new(pins: Pins, method: Method) -> Result<Self, Error> {
        let netlink = Netlink::route().map_err(Error::netlink("socket"))?;
        Ok(Self { pins, netlink, method, no_filters: false, held: BTreeMap::new() })
    }

    /// What hooks there are is done with this.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Takes over the hooks that an earlier agent left: each gets the program of `object` for the role that `LINKS` has of it,
    /// all egress hooks before all ingress hooks. Returns the roles by ifindex.
    pub fn take_over(&mut self, object: &Object, store: &KernelStore) -> Result<BTreeMap<u32, Role>, Error> {
        let mut roles = rows(store)?;
        for direction in Direction::ALL {
            for (index, role) in &roles {
                self.take_over_one(object, *index, *role, direction)?;
            }
        }
        // A row without any hook is of a link that went away.
        roles.retain(|index, _| Direction::ALL.iter().any(|direction| self.held.contains_key(&(*direction, *index))));
        Ok(roles)
    }

    fn take_over_one(&mut self, object: &Object, index: u32, role: Role, direction: Direction) -> Result<(), Error> {
        let failed = |source| Error::Hook { hook: direction.name(), index, source };
        let name = role.program(direction);
        let program = object.program(name)?;
        let link = match self.method {
            Method::Clsact => {
                if !matches!(clsact::attached(&self.netlink, index, direction), Ok(Some(_))) {
                    return Ok(());
                }
                clsact::attach(&self.netlink, &self.pins, index, direction, name, &program)?;
                None
            }
            Method::Tcx => {
                let path = self.pins.hook(direction, index);
                let Some(link) = Link::open(&path).map_err(failed)? else { return Ok(()) };
                if !is_at(&link, direction, index) {
                    return unpin(&path);
                }
                link.replace(&program).map_err(failed)?;
                Some(link)
            }
        };
        self.held.insert((direction, index), Held { role, link });
        Ok(())
    }

    /// Makes the hooks those that are wanted; what is in order already is left alone. Returns what failed; the rest is
    /// done.
    pub fn apply(&mut self, object: &Object, store: &mut KernelStore, wanted: &BTreeMap<u32, Wanted>) -> Vec<Error> {
        let mut errors = Vec::new();
        for (index, wanted) in wanted {
            match self.apply_one(object, store, *index, wanted) {
                Ok(()) => {}
                // It went away after the links were read, and word of it is under way.
                Err(error) if error.is_of_lost_link() => tracing::debug!(%error, "the link is gone"),
                Err(error) => errors.push(error),
            }
        }
        let unwanted: BTreeSet<u32> =
            self.held.keys().map(|(_, index)| *index).filter(|index| !wanted.contains_key(index)).collect();
        for index in unwanted {
            errors.extend(self.remove(store, index).err());
        }
        errors.extend(self.prune(store, wanted).err());
        errors
    }

    fn apply_one(
        &mut self,
        object: &Object,
        store: &mut KernelStore,
        index: u32,
        wanted: &Wanted,
    ) -> Result<(), Error> {
        let hooked = self.held.contains_key(&(Direction::Egress, index));
        if !wanted.up && !hooked && wanted.role != Role::Pod {
            return Ok(());
        }
        // Before the programs: they look for the source there.
        let (key, row) = (index.to_ne_bytes(), row(wanted));
        if store.get(Map::LINKS, &key).map_err(Error::map("LINKS"))?.as_deref() != Some(row.bytes()) {
            store.put(Map::LINKS, &key, row.bytes()).map_err(Error::map("LINKS"))?;
        }
        for direction in Direction::ALL {
            self.hook(object, index, wanted.role, direction)?;
        }
        Ok(())
    }

    fn hook(&mut self, object: &Object, index: u32, role: Role, direction: Direction) -> Result<(), Error> {
        let failed = |source| Error::Hook { hook: direction.name(), index, source };
        let (name, at) = (role.program(direction), (direction, index));
        let path = self.pins.hook(direction, index);
        let held = self.held.get(&at).filter(|held| match (&held.link, self.method) {
            (Some(link), Method::Tcx) => is_at(link, direction, index),
            (None, Method::Clsact) => matches!(clsact::attached(&self.netlink, index, direction), Ok(Some(_))),
            _ => false,
        });
        if let Some(Held { link: Some(link), .. }) = held
            && !path.exists()
        {
            tracing::warn!(link = index, hook = direction.name(), "a pin was removed by somebody else; it is put back");
            link.pin(&path).map_err(failed)?;
        }
        if held.is_some_and(|held| held.role == role) {
            return Ok(());
        }
        let program = object.program(name)?;
        if let Some(Held { link: Some(link), .. }) = held {
            link.replace(&program).map_err(failed)?;
            self.held.entry(at).and_modify(|held| held.role = role);
            return Ok(());
        }
        let was_removed = held.is_none() && self.held.contains_key(&at);
        let link = match self.method {
            Method::Clsact => {
                clsact::attach(&self.netlink, &self.pins, index, direction, name, &program)?;
                None
            }
            Method::Tcx => {
                unpin(&path)?;
                let (kind, anchor) = attach_type(direction);
                let link = Link::create(&program, Target::Interface(index), kind, anchor).map_err(failed)?;
                link.pin(&path).map_err(failed)?;
                Some(link)
            }
        };
        if was_removed {
            tracing::warn!(
                link = index,
                hook = direction.name(),
                "a hook was removed by somebody else; it was put back"
            );
        }
        self.held.insert(at, Held { role, link });
        Ok(())
    }

    fn remove(&mut self, store: &mut KernelStore, index: u32) -> Result<(), Error> {
        for direction in Direction::ALL {
            if let Some(Held { link: Some(link), .. }) = self.held.remove(&(direction, index)) {
                // Fails for a link that is gone, with its hook.
                let _ = link.detach();
                unpin(&self.pins.hook(direction, index))?;
            }
        }
        if self.method == Method::Clsact {
            clsact::detach(&self.netlink, &self.pins, index)?;
        }
        store.delete(Map::LINKS, &index.to_ne_bytes()).map_err(Error::map("LINKS"))
    }

    /// Removes what an earlier agent left of links that are not wanted: pins, rows, filters.
    fn prune(&mut self, store: &mut KernelStore, wanted: &BTreeMap<u32, Wanted>) -> Result<(), Error> {
        for (direction, index) in self.pins.hooks()? {
            // A pin of a hook that is a filter now is left from a time with tcx.
            if self.held.get(&(direction, index)).is_some_and(|held| held.link.is_some()) {
                continue;
            }
            let path = self.pins.hook(direction, index);
            if let Ok(Some(link)) = Link::open(&path) {
                let _ = link.detach();
            }
            unpin(&path)?;
        }
        for index in rows(store)?.into_keys().filter(|index| !wanted.contains_key(index)) {
            self.remove(store, index)?;
        }
        if self.method == Method::Tcx && !std::mem::replace(&mut self.no_filters, true) {
            // An earlier agent may have had no tcx.
            for index in wanted.keys() {
                clsact::detach(&self.netlink, &self.pins, *index)?;
            }
        }
        Ok(())
    }

    /// Whether every hook is still there, and pinned.
    pub fn intact(&self) -> bool {
        // One listing instead of a look at each pin: this is asked each second.
        let pinned: BTreeSet<_> = self.pins.hooks().unwrap_or_default().into_iter().collect();
        self.held.iter().all(|(at @ (direction, index), held)| match &held.link {
            Some(link) => pinned.contains(at) && is_at(link, *direction, *index),
            None => matches!(clsact::attached(&self.netlink, *index, *direction), Ok(Some(_))),
        })
    }

    /// Ids of all programs at a hook, ours and others', in the order in which they run.
    pub fn programs(&self, direction: Direction, index: u32) -> io::Result<Vec<u32>> {
        match self.method {
            Method::Tcx => sys::query(Target::Interface(index), attach_type(direction).0),
            Method::Clsact => clsact::programs(&self.netlink, index, direction),
        }
    }
}

/// Removes all packet hooks, of whatever method: the pinned links, and our filters on every link of the namespace.
pub fn detach_all(pins: &Pins) -> Result<(), Error> {
    for (direction, index) in pins.hooks()? {
        let path = pins.hook(direction, index);
        let failed = |source| Error::Hook { hook: direction.name(), index, source };
        if let Some(link) = Link::open(&path).map_err(failed)? {
            // Fails for a link that is gone, with its hook.
            let _ = link.detach();
        }
        unpin(&path)?;
    }
    let netlink = Netlink::route().map_err(Error::netlink("socket"))?;
    let network = super::state::Network::read(&netlink).map_err(Error::netlink("links"))?;
    network.links.keys().try_for_each(|index| clsact::detach(&netlink, pins, *index))
}

fn is_at(link: &Link, direction: Direction, index: u32) -> bool {
    let here = Attached::Interface(index, attach_type(direction).0 as u32);
    link.attached().is_ok_and(|found| found == here)
}

fn attach_type(direction: Direction) -> (bpf_attach_type, Anchor) {
    match direction {
        Direction::Ingress => (bpf_attach_type::BPF_TCX_INGRESS, Anchor::First),
        Direction::Egress => (bpf_attach_type::BPF_TCX_EGRESS, Anchor::Last),
    }
}

fn row(wanted: &Wanted) -> Row {
    let (mut row, source) = (Row::zeroed(), wanted.source);
    row.flags = match wanted.role {
        Role::Pod => link::POD,
        Role::Node => 0,
        Role::NodeL3 => link::NO_HEADER,
    };
    // Addresses lie in maps as they do in packets.
    row.v4 = source.v4.map_or(0, |ip| u32::from_ne_bytes(ip.octets()));
    if let Some(ip) = source.v6 {
        for (word, bytes) in row.v6.iter_mut().zip(ip.octets().as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
    }
    if let Some(bridge) = wanted.bridge {
        row.flags |= if bridge.v4 { link::BRIDGE_V4 } else { 0 } | if bridge.v6 { link::BRIDGE_V6 } else { 0 };
        row.bridge = halves(bridge.mac);
    }
    if let Some(segment) = &wanted.segment {
        row.mac = halves(segment.mac);
    }
    row
}

/// A link address as it lies in a frame.
fn halves(mac: [u8; 6]) -> [u16; 3] {
    let mut words = [0; 3];
    for (word, bytes) in words.iter_mut().zip(mac.as_chunks::<2>().0) {
        *word = u16::from_ne_bytes(*bytes);
    }
    words
}

fn rows(store: &KernelStore) -> Result<BTreeMap<u32, Role>, Error> {
    let mut roles = BTreeMap::new();
    let read = store.for_each(Map::LINKS, &mut |key, value| {
        let row = Row::from_prefix(value);
        let role = match (row.flags & link::POD, row.flags & link::NO_HEADER) {
            (0, 0) => Role::Node,
            (0, _) => Role::NodeL3,
            _ => Role::Pod,
        };
        if let Some(key) = key.first_chunk() {
            roles.insert(u32::from_ne_bytes(*key), role);
        }
    });
    read.map_err(Error::map("LINKS"))?;
    Ok(roles)
}
