//! The one message of the exchange of slots, and its bytes.
//!
//! Numbers are LEB128 unless said otherwise; a message fits one datagram.
//!
//! ```text
//! message  format 1 | node | session 8 bytes | serial | view 8 bytes | settled 1 | version
//!          | 0, or 1 | ack | 0, or 1 | delta
//! ack      session 8 bytes | upto
//! delta    from | to - from | n | n × entry
//! entry    0 | key 8 bytes | birth | seen | returned | limit | hard | soft    a borrower to its home
//!          1 + denied + 2 × scarce | key 8 bytes | birth | granted | others  a home to its borrower
//! ```

use trestle_raft_store::types::NodeId;

use crate::gossip::MAX_COUNTS_PAYLOAD;
use crate::wire::{
    MAX_DELTA_HEAD, flag, number, optional, put, put_optional, put_span, put_whole, short_number, span, take,
    whole,
};

const FORMAT: u8 = 1;
/// Bytes of the largest message without entries.
const MAX_HEAD: usize = 1 + 10 + 8 + 10 + 8 + 1 + 10 + (1 + 8 + 10) + (1 + MAX_DELTA_HEAD);
const MAX_ENTRY: usize = 1 + 8 + 10 + 10 + 10 + 5 + 5 + 5;
/// Entries that fit a message in any case.
pub(super) const ENTRIES_MAX: usize = (MAX_COUNTS_PAYLOAD - MAX_HEAD) / MAX_ENTRY;
const _: () = assert!(ENTRIES_MAX >= 8, "a message carries some entries");

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) node: NodeId,
    /// Of the sender's process; grows with time.
    pub(crate) session: u64,
    /// Of the message; grows from one to the next.
    pub(crate) serial: u64,
    /// Names the members and seats that the sender goes by.
    pub(crate) view: u64,
    /// Nothing is lent by the sender beyond what may be, under this view.
    pub(crate) settled: bool,
    /// The sender's last change for the receiver.
    pub(crate) version: u64,
    pub(crate) ack: Option<Ack>,
    pub(crate) delta: Option<Delta>,
}

/// What the sender has of the receiver's changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    /// Of the receiver's process.
    pub(crate) session: u64,
    pub(crate) upto: u64,
}

/// All changes after `from` up to `to`, except those that a later change has overtaken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delta {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: u64,
    pub(crate) word: Word,
}

/// What is said of a key. Totals are counted from when the borrower came to this home under this view, and
/// only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    Ask(Ask),
    Grant(Grant),
}

/// Of a borrower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ask {
    /// When the borrower began to count; what was granted before is not in it.
    pub(crate) birth: u64,
    /// All that it knows to be granted, and what it came with.
    pub(crate) seen: u64,
    pub(crate) returned: u64,
    pub(crate) limit: u32,
    /// It would use so many more now.
    pub(crate) hard: u32,
    /// It would like to have so many more in advance.
    pub(crate) soft: u32,
}

/// Of a home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Grant {
    /// Of what it answers.
    pub(crate) birth: u64,
    pub(crate) granted: u64,
    /// What all other borrowers have.
    pub(crate) others: u32,
    /// Of what was wanted hard there is nothing.
    pub(crate) denied: bool,
    /// Somebody lacks some: what is not used is wanted back.
    pub(crate) scarce: bool,
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        put(&mut out, self.node);
        put_whole(&mut out, self.session);
        put(&mut out, self.serial);
        put_whole(&mut out, self.view);
        out.push(u8::from(self.settled));
        put(&mut out, self.version);
        put_optional(&mut out, self.ack.as_ref(), Ack::encode);
        put_optional(&mut out, self.delta.as_ref(), Delta::encode);
        out
    }

    /// `None`: not a message of this format.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Message> {
        let input = &mut &*bytes;
        if take::<1>(input)? != [FORMAT] {
            return None;
        }
        let message = Message {
            node: number(input)?,
            session: whole(input)?,
            serial: number(input)?,
            view: whole(input)?,
            settled: flag(input)?,
            version: number(input)?,
            ack: optional(input, Ack::decode)?,
            delta: optional(input, Delta::decode)?,
        };
        let sound =
            input.is_empty() && message.delta.as_ref().is_none_or(|delta| delta.to <= message.version);
        sound.then_some(message)
    }
}

impl Ack {
    fn encode(&self, out: &mut Vec<u8>) {
        put_whole(out, self.session);
        put(out, self.upto);
    }

    fn decode(input: &mut &[u8]) -> Option<Ack> {
        Some(Ack { session: whole(input)?, upto: number(input)? })
    }
}

impl Delta {
    fn encode(&self, out: &mut Vec<u8>) {
        put_span(out, (self.from, self.to));
        put(out, self.entries.len() as u64);
        for entry in &self.entries {
            match entry.word {
                Word::Ask(ask) => {
                    out.push(0);
                    put_whole(out, entry.key);
                    put(out, ask.birth);
                    put(out, ask.seen);
                    put(out, ask.returned);
                    put(out, ask.limit.into());
                    put(out, ask.hard.into());
                    put(out, ask.soft.into());
                }
                Word::Grant(grant) => {
                    out.push(1 + u8::from(grant.denied) + 2 * u8::from(grant.scarce));
                    put_whole(out, entry.key);
                    put(out, grant.birth);
                    put(out, grant.granted);
                    put(out, grant.others.into());
                }
            }
        }
    }

    fn decode(input: &mut &[u8]) -> Option<Delta> {
        let (from, to) = span(input)?;
        let count = usize::try_from(number(input)?).ok()?;
        if count > ENTRIES_MAX {
            return None;
        }
        let entries = (0..count).map(|_| Entry::decode(input)).collect::<Option<Vec<_>>>()?;
        Some(Delta { from, to, entries })
    }
}

impl Entry {
    fn decode(input: &mut &[u8]) -> Option<Entry> {
        let [kind] = take::<1>(input)?;
        let key = whole(input)?;
        let word = match kind {
            0 => {
                let (birth, seen, returned) = (number(input)?, number(input)?, number(input)?);
                let (limit, hard, soft) = (short_number(input)?, short_number(input)?, short_number(input)?);
                let ask = Ask { birth, seen, returned, limit, hard, soft };
                // Nobody returns what it does not have, or has more than there is.
                (returned <= seen && seen - returned <= u64::from(u32::MAX)).then_some(Word::Ask(ask))?
            }
            1..=4 => {
                let (denied, scarce) = (matches!(kind, 2 | 4), matches!(kind, 3 | 4));
                let (birth, granted) = (number(input)?, number(input)?);
                Word::Grant(Grant { birth, granted, others: short_number(input)?, denied, scarce })
            }
            _ => return None,
        };
        Some(Entry { key, word })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> impl Strategy<Value = Message> {
        let ask = (any::<u64>(), any::<u32>(), any::<u64>(), any::<[u32; 3]>()).prop_map(
            |(birth, held, back, [limit, hard, soft])| {
                let returned = back.min(u64::MAX - u64::from(held));
                Word::Ask(Ask { birth, seen: returned + u64::from(held), returned, limit, hard, soft })
            },
        );
        let grant = (any::<u64>(), any::<u64>(), any::<u32>(), any::<bool>(), any::<bool>()).prop_map(
            |(birth, granted, others, denied, scarce)| {
                Word::Grant(Grant { birth, granted, others, denied, scarce })
            },
        );
        let entry = (any::<u64>(), prop_oneof![ask, grant]).prop_map(|(key, word)| Entry { key, word });
        let delta = (0..u64::MAX / 4, 0..u64::MAX / 4, prop::collection::vec(entry, 0..ENTRIES_MAX))
            .prop_map(|(from, span, entries)| Delta { from, to: from + span, entries });
        let ack = (any::<u64>(), any::<u64>()).prop_map(|(session, upto)| Ack { session, upto });
        let head = (any::<[u64; 4]>(), any::<bool>(), any::<u32>());
        (head, prop::option::of(ack), prop::option::of(delta)).prop_map(
            |(([node, session, serial, view], settled, after), ack, delta)| {
                let version = delta.as_ref().map_or(0, |delta| delta.to) + u64::from(after);
                Message { node, session, serial, view, settled, version, ack, delta }
            },
        )
    }

    proptest! {
        #[test]
        fn a_message_survives_the_wire_and_fits_a_datagram(message in message()) {
            let bytes = message.encode();
            prop_assert!(bytes.len() <= MAX_COUNTS_PAYLOAD);
            prop_assert_eq!(Message::decode(&bytes), Some(message));
        }

        #[test]
        fn cut_or_junk_bytes_are_refused_without_panic(
            message in message(),
            cut in any::<prop::sample::Index>(),
            junk in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = message.encode();
            prop_assert_eq!(Message::decode(&bytes[..cut.index(bytes.len())]), None);
            let _ = Message::decode(&junk);
            let _ = Message::decode(&[&[FORMAT], junk.as_slice()].concat());
        }
    }
}
