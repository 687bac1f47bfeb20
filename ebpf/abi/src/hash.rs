//! The hashes that every node must compute alike. Changing one moves flows between nodes of different versions.

/// Mixes one word into the state (the round and the finish of `MurmurHash3` `x86_32`, public domain).
#[inline(always)]
const fn mix(state: u32, word: u32) -> u32 {
    let k = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    (state ^ k).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64)
}

#[inline(always)]
const fn finish(mut h: u32) -> u32 {
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

#[inline(always)]
fn mix_addr<const W: usize>(mut h: u32, addr: &[u32; W]) -> u32 {
    let mut i = 0;
    while i < W {
        h = mix(h, addr[i]);
        i += 1;
    }
    h
}

/// Hash of a flow as the client sent it: addresses and ports raw (network order as loaded), for Maglev slots.
#[inline(always)]
pub fn flow_hash<const W: usize>(src: &[u32; W], dst: &[u32; W], sport: u16, dport: u16, proto: u8) -> u32 {
    let h = mix_addr(mix_addr(0x9747_b28c, src), dst);
    let h = mix(h, sport as u32 | (dport as u32) << 16);
    finish(mix(h, proto as u32))
}

/// Hash of a client address alone: with session affinity all flows of a client take one slot on every node.
#[inline(always)]
pub fn affinity_hash<const W: usize>(client: &[u32; W]) -> u32 {
    finish(mix_addr(0x85a3_08d3, client))
}
