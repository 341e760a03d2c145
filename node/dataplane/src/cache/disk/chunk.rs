//! How a body lies in its file: in chunks of [`DATA`] bytes, each with a sum behind it, so that any part of it is read and
//! held against its sum without the rest. Chunk and sum together are [`CHUNK`] bytes, whole blocks.
//!
//! Sums are 128 bits of SipHash under the folder's secret, over the file's id, the chunk's place and its bytes: a chunk
//! of another file, of another place or of an earlier life of the same blocks does not pass for this one.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

pub(super) const SUM: usize = 16;
pub(super) const CHUNK: usize = 64 << 10;
/// Of the body in each but the last.
pub(super) const DATA: usize = CHUNK - SUM;

#[derive(Clone, Copy)]
pub(crate) struct Sums([u8; 16]);

impl Sums {
    pub(super) fn of(secret: [u8; 16]) -> Self {
        Self(secret)
    }

    fn finish(&self, kind: u8, numbers: [u64; 2], bytes: &[u8]) -> [u8; SUM] {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        hasher.write_u8(kind);
        numbers.iter().for_each(|number| hasher.write(&number.to_le_bytes()));
        hasher.write(bytes);
        hasher.finish128().as_bytes()
    }

    pub(super) fn of_head(&self, id: u64, room: u32, head: &[u8]) -> [u8; SUM] {
        self.finish(b'h', [id, room.into()], head)
    }

    pub(super) fn of_chunk(&self, id: u64, index: u64, data: &[u8]) -> [u8; SUM] {
        self.finish(b'c', [id, index], data)
    }
}

/// Bytes of a file with this body.
pub(super) fn file_length(room: u32, length: u64) -> u64 {
    u64::from(room) + length + chunks(length) * SUM as u64
}

pub(super) fn chunks(length: u64) -> u64 {
    length.div_ceil(DATA as u64)
}

/// Where a chunk begins in its file.
pub(super) fn place(room: u32, index: u64) -> u64 {
    u64::from(room) + index * CHUNK as u64
}

/// Bytes of the body in a chunk.
pub(super) fn data_of(length: u64, index: u64) -> usize {
    let before = index.saturating_mul(DATA as u64);
    usize::try_from(length.saturating_sub(before)).unwrap_or(DATA).min(DATA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_a_body() {
        let data = DATA as u64;
        for (length, expected) in [(1, 1), (data, 1), (data + 1, 2), (3 * data, 3)] {
            assert_eq!(chunks(length), expected, "{length}");
            let sum: u64 = (0..expected).map(|index| data_of(length, index) as u64).sum();
            assert_eq!(sum, length);
            assert_eq!(data_of(length, expected), 0);
            let end = place(4096, expected - 1) + data_of(length, expected - 1) as u64 + SUM as u64;
            assert_eq!(end, file_length(4096, length));
        }
    }

    #[test]
    fn a_sum_is_of_one_place_in_one_file_under_one_secret() {
        let sums = Sums::of([1; 16]);
        let sum = sums.of_chunk(1, 2, b"abc");
        assert_eq!(sum, sums.of_chunk(1, 2, b"abc"));
        for other in [
            sums.of_chunk(2, 2, b"abc"),
            sums.of_chunk(1, 3, b"abc"),
            sums.of_chunk(1, 2, b"abd"),
            sums.of_head(1, 2, b"abc"),
            Sums::of([2; 16]).of_chunk(1, 2, b"abc"),
        ] {
            assert_ne!(sum, other);
        }
    }
}
