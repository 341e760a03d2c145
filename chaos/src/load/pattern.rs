//! Bytes that tell where they belong: what is at a position of a stream follows from the stream's seed
//! and the position, so bytes that are lost, doubled, mixed up or another stream's are seen.

/// Bytes of one block: what is sent and answered at once.
pub(super) const BLOCK: usize = 64;

pub(super) type Block = [u8; BLOCK];

/// Which way a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
}

/// Block `number` of the stream with `seed`.
pub(super) fn block(seed: u64, way: Way, number: u64) -> Block {
    let salt = match way {
        Way::Up => 0x9e37_79b9_7f4a_7c15,
        Way::Down => 0xc2b2_ae3d_27d4_eb4f,
    };
    let mut state = seed ^ salt ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93);
    let mut block = [0; BLOCK];
    for part in block.chunks_mut(8) {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        part.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..part.len()]);
    }
    block
}

/// What a server answers to block `number` where what it got was not what it should be.
pub(super) fn refusal(seed: u64, number: u64) -> Block {
    block(seed, Way::Down, number).map(|byte| !byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_blocks_are_alike() {
        let mut seen = std::collections::HashSet::new();
        for seed in 0..20 {
            for number in 0..20 {
                assert!(seen.insert(block(seed, Way::Up, number)));
                assert!(seen.insert(block(seed, Way::Down, number)));
                assert!(seen.insert(refusal(seed, number)));
            }
        }
    }
}
