//! Checksum arithmetic: the Internet checksum (RFC 1071, updated as in RFC 1624) and CRC-32c.

use crate::steps::Steps;

/// What changed, as a one's complement sum: new words minus old ones. The order of bytes does not matter, as long as
/// all are loaded alike (RFC 1071 2 B).
#[derive(Clone, Copy)]
pub struct Diff(u64);

impl Diff {
    /// Nothing changed.
    pub const NONE: Self = Self(0);

    /// An address that changes.
    #[inline(always)]
    pub fn words<const W: usize>(mut self, from: &[u32; W], to: &[u32; W]) -> Self {
        for (from, to) in from.iter().zip(to) {
            self.0 += *to as u64 + !*from as u64;
        }
        self
    }

    /// A 16-bit field that changes.
    #[inline(always)]
    pub fn half(self, from: u16, to: u16) -> Self {
        Self(self.0 + to as u64 + !from as u64)
    }

    /// As the 32-bit sum that the kernel's helpers take.
    #[inline(always)]
    pub fn sum(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((once & 0xffff_ffff) + (once >> 32)) as u32
    }

    /// A checksum field after the change (RFC 1624, equation 3).
    #[inline(always)]
    pub fn apply(self, check: u16) -> u16 {
        !fold(!check as u64 + self.sum() as u64)
    }
}

/// Folds a sum of words to 16 bits.
#[inline(always)]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The sum of a pseudo header (RFC 9293 3.1, RFC 8200 8.1), of `size` bytes behind it.
#[inline(always)]
pub fn pseudo<const W: usize>(src: &[u32; W], dst: &[u32; W], protocol: u8, size: u32) -> u64 {
    let words = |addr: &[u32; W]| addr.iter().fold(0, |sum, word| sum + *word as u64);
    words(src) + words(dst) + (protocol as u32 + size).to_be() as u64
}

/// The polynomial of CRC-32c, bit-reversed: the lowest bit is the highest power.
const CRC32C: u32 = 0x82f6_3b78;

/// `POWERS[k]` is x^(8 * 2^k) modulo the polynomial: what 2^k zero bytes after a message do to its remainder.
static POWERS: [u32; 16] = {
    let mut powers = [0; 16];
    powers[0] = 1 << 23; // x^8
    let mut k = 1;
    while k < 16 {
        powers[k] = multiply(powers[k - 1], powers[k - 1]);
        k += 1;
    }
    powers
};

/// The product of two polynomials modulo CRC-32c's. Without branches, so that the verifier walks it once.
#[inline(always)]
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        product ^= b & ((a >> (31 - bit)) & 1).wrapping_neg();
        b = (b >> 1) ^ (CRC32C & (b & 1).wrapping_neg());
        bit += 1;
    }
    product
}

/// How the CRC-32c of `len` bytes changes when `delta` is xored onto the first four of them (loaded little-endian).
///
/// The CRC is linear: the change is the remainder of the message that has `delta` in front and zeros behind, which is
/// `delta * x^(8 * len)`. The bytes behind are not read.
///
/// Its own symbol makes it a function that the verifier walks once, whatever its callers know.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn crc32c_change(delta: u32, len: u32) -> u32 {
    let mut change = Change { product: delta, len };
    change.run(POWERS.len() as u32);
    change.product
}

/// What is computed, and the bits of the length that are still to come.
struct Change {
    product: u32,
    len: u32,
}

impl Steps for Change {
    /// Goes on by the k-th bit of the length.
    #[inline(always)]
    fn step(&mut self, k: u32) -> bool {
        if self.len & 1 != 0 {
            self.product = multiply(self.product, POWERS[k as usize % POWERS.len()]);
        }
        self.len >>= 1;
        self.len == 0
    }
}
