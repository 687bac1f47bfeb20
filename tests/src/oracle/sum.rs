//! Checksums, each over all the bytes that it covers.
//!
//! The programs update a checksum by what changed. Here it is worked out from the whole: whatever the old bytes summed up to, right
//! or wrong, the new ones must sum up to as well.

/// The one's complement sum of 16-bit words (RFC 1071), odd data padded with zero.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        let (words, rest) = part.as_chunks::<2>();
        sum += words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum::<u64>();
        sum += rest.first().map_or(0, |byte| u64::from(*byte) << 8);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The value that a checksum field must have for everything to sum up to `wanted`; `rest` is the sum without the field.
/// Of the two forms of zero it is 0x0000.
pub fn balance(wanted: u16, rest: u16) -> u16 {
    let value = u32::from(wanted) + u32::from(!rest);
    ((value & 0xffff) + (value >> 16)) as u16 % 0xffff
}

/// CRC-32c (RFC 9260 appendix A), as the little-endian number that SCTP stores.
pub fn crc32c(parts: &[&[u8]]) -> u32 {
    !parts.iter().flat_map(|part| part.iter()).fold(!0, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // RFC 1071, section 3.
        assert_eq!(sum(&[&[0x00, 0x01, 0xf2, 0x03], &[0xf4, 0xf5, 0xf6, 0xf7]]), 0xddf2);
        assert_eq!(sum(&[&[0x12]]), 0x1200);
        // RFC 3720, B.4: 32 bytes of zeros, of ones.
        assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
        assert_eq!(crc32c(&[&[0xff; 16], &[0xff; 16]]), 0x62a8_ab43);
        assert_eq!(balance(0xffff, 0x1234), !0x1234);
        assert_eq!(balance(0xffff, 0xffff), 0);
    }
}
