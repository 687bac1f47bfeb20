//! HMAC-SHA-256 (RFC 2104, FIPS 180-4) over a message that fits into one block, with a key whose blocks are done already.

/// A state of SHA-256.
pub type State = [u32; 8];
/// A block, as numbers in host order.
pub type Block = [u32; 16];

/// Bytes of the key's block, and of a digest.
const BLOCK: u32 = 64;
const DIGEST: u32 = 32;
/// What follows a message (FIPS 180-4 5.1.1).
pub const END: u8 = 0x80;

/// Where a tag is computed. In a map, because what the verifier knows of a value ends there.
#[repr(C)]
pub struct Hash {
    /// The message with its padding: in, and destroyed.
    pub block: Block,
    /// The tag begins it.
    pub state: State,
}

/// The last number of a block: the bits of a message of `len` bytes behind the key's block.
pub const fn length(len: u32) -> u32 {
    (BLOCK + len) * 8
}

/// Computes the tag of `hash.block` with the states after the key's two blocks.
#[expect(clippy::many_single_char_names, reason = "the standard's names")]
#[inline(never)]
pub fn tag(hash: &mut Hash, inner: &State, outer: &State) {
    hash.state = *inner;
    compress(hash);
    let [a, b, c, d, e, f, g, h] = hash.state;
    let end = u32::from(END) << 24;
    hash.block = [a, b, c, d, e, f, g, h, end, 0, 0, 0, 0, 0, 0, length(DIGEST)];
    hash.state = *outer;
    compress(hash);
}

/// FIPS 180-4 6.2.2. The schedule is made as it is used, in the block's place.
#[expect(clippy::many_single_char_names, reason = "the standard's names")]
#[inline(never)]
fn compress(hash: &mut Hash) {
    let Hash { block, state } = hash;
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = *state;
    for (round, constant) in ROUNDS.iter().enumerate() {
        let at = round & 15;
        let word = block[at];
        let choice = e & f ^ !e & g;
        let first = h.wrapping_add(spread(e, [6, 11, 25])).wrapping_add(choice).wrapping_add(*constant);
        let first = first.wrapping_add(word);
        let majority = a & b ^ a & c ^ b & c;
        let second = spread(a, [2, 13, 22]).wrapping_add(majority);
        (h, g, f, e) = (g, f, e, d.wrapping_add(first));
        (d, c, b, a) = (c, b, a, first.wrapping_add(second));
        let (before, later) = (block[(at + 14) & 15], block[(at + 1) & 15]);
        let before = before.rotate_right(17) ^ before.rotate_right(19) ^ before >> 10;
        let later = later.rotate_right(7) ^ later.rotate_right(18) ^ later >> 3;
        block[at] = word.wrapping_add(before).wrapping_add(block[(at + 9) & 15]).wrapping_add(later);
    }
    for (word, add) in state.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *word = word.wrapping_add(add);
    }
}

#[inline(always)]
fn spread(word: u32, [first, second, third]: [u32; 3]) -> u32 {
    word.rotate_right(first) ^ word.rotate_right(second) ^ word.rotate_right(third)
}

/// FIPS 180-4 4.2.2: the first bits of the fractions of the cube roots of the first 64 primes.
static ROUNDS: [u32; 64] = rounds();

const fn rounds() -> [u32; 64] {
    let mut rounds = [0; 64];
    let (mut count, mut prime) = (0, 2_u128);
    while count < rounds.len() {
        if is_prime(prime) {
            // The cube root of prime * 2^96 is that of the prime, with 32 bits of fraction.
            rounds[count] = cube_root(prime << 96) as u32;
            count += 1;
        }
        prime += 1;
    }
    rounds
}

const fn is_prime(number: u128) -> bool {
    let mut divisor = 2;
    while divisor * divisor <= number {
        if number.is_multiple_of(divisor) {
            return false;
        }
        divisor += 1;
    }
    true
}

/// The greatest number whose cube is not above this one, which is below 2^105.
const fn cube_root(cube: u128) -> u128 {
    let (mut root, mut bit) = (0, 1 << 35);
    while bit != 0 {
        let more = root | bit;
        if more * more * more <= cube {
            root = more;
        }
        bit >>= 1;
    }
    root
}
