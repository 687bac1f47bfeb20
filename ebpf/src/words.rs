//! Addresses as words.

/// Copies an address.
///
/// Where `to` and `from` could overlap, the compiler makes a call of `memmove` of `*to = *from`: a loop over bytes, for each packet,
/// and for the verifier once more on each way that leads there. And words that are all read before the first is written take
/// stack, of which programs that call each other share 512 bytes.
#[inline(always)]
pub fn copy<const W: usize>(to: &mut [u32; W], from: &[u32; W]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// An address in the four words that both families share in some maps; IPv4 in the first.
#[inline(always)]
pub fn wide<const W: usize>(addr: &[u32; W]) -> [u32; 4] {
    let word = |i: usize| addr.get(i).copied().unwrap_or(0);
    [word(0), word(1), word(2), word(3)]
}

/// Of these four words those that the family uses.
#[inline(always)]
pub fn narrow<const W: usize>(addr: &[u32; 4]) -> [u32; W] {
    core::array::from_fn(|i| addr.get(i).copied().unwrap_or(0))
}
