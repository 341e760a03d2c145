//! The one message of the exchange of loads, and its bytes.
//!
//! Numbers are LEB128 unless said otherwise; a message fits one datagram.
//!
//! ```text
//! message  format 1 | node | session 8 bytes | round | from 8 bytes | to 8 bytes | n × ( key - last | count )
//! ```
//!
//! It says all that its sender has to say of keys from `from` to `to`: a key in there that it does not name
//! counts nothing.

use std::collections::BTreeMap;

use trestle_raft_store::types::NodeId;

use crate::gossip::MAX_COUNTS_PAYLOAD as MAX_PAYLOAD;
use crate::wire::{number, number_len, put, put_whole, short_number, take, whole};

const FORMAT: u8 = 1;
/// Bytes of the largest message without entries.
const MAX_HEAD: usize = 1 + 10 + 8 + 10 + 8 + 8;
const _: () = assert!(MAX_HEAD + 32 <= MAX_PAYLOAD, "each message must carry an entry at least");

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) node: NodeId,
    /// Of the sender's process; grows with time.
    pub(crate) session: u64,
    /// Of the sender; all messages of a round speak of one moment.
    pub(crate) round: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// All keys lie within `from..=to`.
    pub(crate) entries: BTreeMap<u64, u32>,
}

/// What a node says in one round, in as many messages as it takes.
pub(crate) fn cut(node: NodeId, session: u64, round: u64, entries: &BTreeMap<u64, u32>) -> Vec<Message> {
    let begin = |from| Message { node, session, round, from, to: u64::MAX, entries: BTreeMap::new() };
    let (mut messages, mut message, mut bytes, mut last) = (Vec::new(), begin(0), MAX_HEAD, 0);
    for (key, count) in entries {
        let room = number_len(*key - last) + number_len(u64::from(*count));
        if bytes + room > MAX_PAYLOAD {
            message.to = last;
            // There is a further key, so the last is not the largest that there can be.
            messages.push(std::mem::replace(&mut message, begin(last + 1)));
            bytes = MAX_HEAD + 10;
        }
        bytes += room;
        message.entries.insert(*key, *count);
        last = *key;
    }
    messages.push(message);
    messages
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        put(&mut out, self.node);
        put_whole(&mut out, self.session);
        put(&mut out, self.round);
        put_whole(&mut out, self.from);
        put_whole(&mut out, self.to);
        let mut last = self.from;
        for (key, count) in &self.entries {
            put(&mut out, key - last);
            put(&mut out, u64::from(*count));
            last = *key;
        }
        out
    }

    /// None: not a message of this format.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Message> {
        let input = &mut &*bytes;
        if take::<1>(input)? != [FORMAT] {
            return None;
        }
        let mut message = Message {
            node: number(input)?,
            session: whole(input)?,
            round: number(input)?,
            from: whole(input)?,
            to: whole(input)?,
            entries: BTreeMap::new(),
        };
        let mut last = message.from;
        while !input.is_empty() {
            let key = last.checked_add(number(input)?)?;
            let count = short_number(input)?;
            if key > message.to || message.entries.insert(key, count).is_some() {
                return None;
            }
            last = key;
        }
        (message.from <= message.to).then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_round_survives_the_wire_in_datagrams_that_cover_every_key(
            entries in prop::collection::btree_map(any::<u64>(), any::<u32>(), 0..600),
            ends in any::<bool>(),
        ) {
            let mut entries = entries;
            if ends {
                entries.extend([(0, 1), (u64::MAX, 2)]);
            }
            let messages = cut(7, 9, 11, &entries);
            let (mut read, mut from) = (BTreeMap::new(), 0);
            for message in &messages {
                let bytes = message.encode();
                prop_assert!(bytes.len() <= MAX_PAYLOAD, "{} bytes", bytes.len());
                prop_assert_eq!(Message::decode(&bytes), Some(message.clone()));
                prop_assert_eq!(message.from, from);
                from = message.to.wrapping_add(1);
                read.extend(message.entries.clone());
            }
            prop_assert_eq!((read, from), (entries, 0));
        }

        #[test]
        fn cut_or_junk_bytes_are_refused_or_sound(
            entries in prop::collection::btree_map(any::<u64>(), any::<u32>(), 0..20),
            at in any::<prop::sample::Index>(),
            junk in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = cut(7, 9, 11, &entries)[0].encode();
            for bytes in [&bytes[..at.index(bytes.len())], &junk, &[&[FORMAT], junk.as_slice()].concat()] {
                if let Some(message) = Message::decode(bytes) {
                    prop_assert!(message.entries.keys().all(|key| (message.from..=message.to).contains(key)));
                }
            }
        }
    }
}
