//! The checksum that a header of version 2 may have (RFC 4960, appendix B).

/// Of `bytes`, the four at `at` taken as zero: there it stands itself. Bit by bit, for headers are short and
/// few have one.
pub(super) fn of_zeroed(bytes: &[u8], at: usize) -> u32 {
    /// Castagnoli's polynomial, reflected.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let zeroed = |(index, byte): (usize, &u8)| if (at..at + 4).contains(&index) { 0 } else { *byte };
    let update = |mut crc: u32, byte: u8| {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
        }
        crc
    };
    !bytes.iter().enumerate().map(zeroed).fold(!0, update)
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_is_the_checksum_of_rfc_3720() {
        // Appendix B.4; the four bytes behind are zero as well.
        assert_eq!(super::of_zeroed(&[0; 32], 28), 0x8a91_36aa);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(super::of_zeroed(&rising, usize::MAX - 4), 0x46dd_794e);
    }
}
