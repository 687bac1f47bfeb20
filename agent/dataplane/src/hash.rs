//! The 64-bit hash of names and endpoints. It must be the same on every node and in every version: never change it.

/// FNV-1a over bytes, then the finish of `MurmurHash3` (both public domain): short keys, every bit spread.
#[derive(Clone, Copy)]
pub(crate) struct Hash(u64);

impl Hash {
    /// A hash of its own for each `seed`.
    pub fn new(seed: u64) -> Self {
        Self(0xcbf2_9ce4_8422_2325 ^ mix(seed))
    }

    /// Adds bytes. What has no fixed length is followed by [`Hash::end`].
    pub fn bytes(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |h, byte| (h ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)))
    }

    /// Ends a text: a byte that UTF-8 never holds, so that "a" + "bc" is not "ab" + "c".
    pub fn end(self) -> Self {
        self.bytes(&[0xff])
    }

    /// The hash.
    pub fn finish(self) -> u64 {
        mix(self.0)
    }
}

fn mix(mut h: u64) -> u64 {
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}
