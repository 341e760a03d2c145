//! One stable hash, and the choice by highest score (rendezvous hashing) that rests on it.
//!
//! Nodes of different releases must choose alike, so the hash is written out here and pinned by
//! golden values: FNV-1a over the bytes (64 bit, Fowler, Noll and Vo) and the finalizer of
//! MurmurHash3 over the result, which spreads the weak high bits of FNV. It resists no attacker;
//! what is hashed comes from the operator's config.

use trestle_raft_store::types::NodeId;

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// A hash in the making. Pieces are delimited: `("ab", "c")` and `("a", "bc")` differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StableHash(u64);

impl StableHash {
    pub(crate) fn new() -> Self {
        Self(FNV_OFFSET)
    }

    /// Adds a piece and its length.
    pub(crate) fn bytes(self, piece: &[u8]) -> Self {
        self.raw(&(piece.len() as u64).to_le_bytes()).raw(piece)
    }

    pub(crate) fn text(self, piece: &str) -> Self {
        self.bytes(piece.as_bytes())
    }

    pub(crate) fn number(self, number: u64) -> Self {
        self.raw(&number.to_le_bytes())
    }

    pub(crate) fn finish(self) -> u64 {
        mix(self.0)
    }

    fn raw(self, bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(self.0, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME)))
    }
}

/// How much `node` is liked by `key` (a [`StableHash`]).
pub(crate) fn score(node: NodeId, key: u64) -> u64 {
    mix(key ^ mix(node.wrapping_add(FNV_OFFSET)))
}

/// The `count` nodes with the highest score, best first; all, if there are fewer. A node that goes
/// moves only the keys it was chosen for, a node that comes takes only keys it wins.
pub(crate) fn choose(nodes: impl IntoIterator<Item = NodeId>, key: u64, count: usize) -> Vec<NodeId> {
    let mut best: Vec<(u64, NodeId)> = nodes.into_iter().map(|node| (score(node, key), node)).collect();
    best.sort_unstable_by(|a, b| b.cmp(a));
    best.truncate(count);
    best.into_iter().map(|(_, node)| node).collect()
}

fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_1a_agrees_with_the_published_vectors() {
        let fnv = |bytes: &[u8]| StableHash::new().raw(bytes).0;
        assert_eq!(fnv(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv(b"foobar"), 0x8594_4171_f739_67e8);
    }

    /// Changing one of these makes nodes of two releases choose differently.
    #[test]
    fn golden_values_never_change() {
        assert_eq!(StableHash::new().text("pool").text("member").number(7).finish(), 0x9478_cd1a_31cb_49d8);
        assert_eq!(score(0, 1), 0x6d87_10d6_ee5b_3149);
        assert_eq!(score(42, 0xdead_beef), 0xe078_b08e_0bcf_6cfd);
        let key = StableHash::new().text("v1").text("192.0.2.11:8080").finish();
        assert_eq!(choose(0..7, key, 3), [3, 4, 1]);
    }

    #[test]
    fn pieces_are_delimited() {
        let (a, b) = (StableHash::new().text("ab").text("c"), StableHash::new().text("a").text("bc"));
        assert_ne!(a.finish(), b.finish());
    }

    #[test]
    fn choices_are_spread_evenly() {
        let mut wins = [0u32; 5];
        for member in 0..10_000u64 {
            let key = StableHash::new().text("pool").number(member).finish();
            for node in choose(0..5, key, 3) {
                wins[node as usize] += 1;
            }
        }
        for count in wins {
            assert!((5_700..6_300).contains(&count), "{wins:?}");
        }
    }
}
