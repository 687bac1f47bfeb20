//! Fragments: only the first one has ports, so it leaves them for the later ones.

use culvert_abi::{Fragment, FragmentKey};

use crate::{
    maps,
    packet::{Kind, Packet},
};

#[inline(always)]
fn key<const W: usize>(packet: &Packet<W>) -> FragmentKey<W> {
    let tuple = &packet.tuple;
    FragmentKey { src: tuple.src, dst: tuple.dst, id: packet.fragment, proto: tuple.proto as u32 }
}

/// Remembers the ports of a first fragment, as they are at this hook.
#[inline(always)]
pub fn remember<const W: usize>(packet: &Packet<W>) {
    if packet.kind == Kind::FirstFragment {
        remember_ports(packet);
    }
}

#[inline(never)]
fn remember_ports<const W: usize>(packet: &Packet<W>) {
    let ports = Fragment { sport: packet.tuple.sport, dport: packet.tuple.dport };
    // Without a row the later fragments are dropped, and the sender sends the datagram again.
    let _ = maps::fragments::<W>().insert(key(packet), ports, 0);
}

/// Gives a later fragment the ports of its first one, if that came by.
#[inline(always)]
pub fn recall<const W: usize>(packet: &mut Packet<W>) -> bool {
    // SAFETY: a word is read at once; a row that is reused meanwhile holds the ports of another datagram, and this
    // fragment then ends in a checksum that does not match.
    let Some(&Fragment { sport, dport }) = (unsafe { maps::fragments::<W>().get(key(packet)) }) else { return false };
    packet.tuple.sport = sport;
    packet.tuple.dport = dport;
    true
}
