//! The one message of the exchange of counts, and its bytes.
//!
//! Numbers are LEB128 unless said otherwise; a message fits one datagram.
//!
//! ```text
//! message  format 1 | node | session 8 bytes | version | floor | 0, or 1 | ack | 0, or 1 | delta of entries
//! ack      session 8 bytes | table | n | n × ( gap | length )
//! entry    (version - last) × 2 + is IPv6 | address | connections | rate
//! ```

use std::net::IpAddr;

use trestle_raft_store::types::NodeId;

use super::ranges::Ranges;
use crate::wire::{
    Change, MAX_DELTA_HEAD, number, number_len, optional, put, put_optional, put_span, put_whole,
    short_number, span, take, whole,
};

const FORMAT: u8 = 2;
/// Bytes of the largest message without entries.
pub(crate) const MAX_HEAD: usize =
    1 + 10 + 8 + 10 + 10 + (1 + 8 + 10 + 1 + Ranges::MOST * 20) + (1 + MAX_DELTA_HEAD);

pub(crate) type Delta = crate::wire::Delta<Entry>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) node: NodeId,
    /// Of the sender's ledger: another one begins anew.
    pub(crate) session: u64,
    /// The sender's last change.
    pub(crate) version: u64,
    /// The sender has forgotten which clients went, up to here.
    pub(crate) floor: u64,
    pub(crate) ack: Option<Ack>,
    pub(crate) delta: Option<Delta>,
}

/// What the sender has of the receiver's changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    /// Of the receiver's ledger.
    pub(crate) session: u64,
    /// Grows whenever the sender had to begin the table anew.
    pub(crate) table: u64,
    pub(crate) got: Ranges,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) version: u64,
    pub(crate) client: IpAddr,
    pub(crate) connections: u32,
    /// Requests a second, roughly.
    pub(crate) rate: u32,
}

impl Entry {
    /// What it counts for a place among the heaviest.
    pub(crate) fn weight(&self) -> u32 {
        self.connections.saturating_add(self.rate)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.weight() == 0
    }

    /// Bytes after an entry of version `last`.
    pub(crate) fn encoded_len(&self, last: u64) -> usize {
        let address = if self.client.is_ipv6() { 16 } else { 4 };
        let numbers = number_len(self.connections.into()) + number_len(self.rate.into());
        number_len((self.version - last) << 1) + address + numbers
    }
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        put(&mut out, self.node);
        put_whole(&mut out, self.session);
        put(&mut out, self.version);
        put(&mut out, self.floor);
        put_optional(&mut out, self.ack.as_ref(), Ack::encode);
        put_optional(&mut out, self.delta.as_ref(), Delta::encode);
        out
    }

    /// None: not a message of this format.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Message> {
        let input = &mut &*bytes;
        if take::<1>(input)? != [FORMAT] {
            return None;
        }
        let message = Message {
            node: number(input)?,
            session: whole(input)?,
            version: number(input)?,
            floor: number(input)?,
            ack: optional(input, Ack::decode)?,
            delta: optional(input, Delta::decode)?,
        };
        let sound = input.is_empty()
            && message.floor <= message.version
            && message.delta.as_ref().is_none_or(|delta| delta.to <= message.version);
        sound.then_some(message)
    }
}

impl Ack {
    fn encode(&self, out: &mut Vec<u8>) {
        put_whole(out, self.session);
        put(out, self.table);
        out.push(self.got.iter().len() as u8);
        let mut last = 0;
        for (from, to) in self.got.iter() {
            put_span(out, (from - last, to - last));
            last = to;
        }
    }

    fn decode(input: &mut &[u8]) -> Option<Ack> {
        let session = whole(input)?;
        let table = number(input)?;
        let [ranges] = take::<1>(input)?;
        if usize::from(ranges) > Ranges::MOST {
            return None;
        }
        let (mut got, mut last) = (Ranges::default(), 0u64);
        for _ in 0..ranges {
            let (from, to) = span(input)?;
            let to = last.checked_add(to)?;
            got.insert(last + from, to);
            last = to;
        }
        Some(Ack { session, table, got })
    }
}

impl Change for Entry {
    /// Of IPv4.
    const LEAST: usize = 1 + 4 + 1 + 1;

    fn version(&self) -> u64 {
        self.version
    }

    fn encode(&self, last: u64, out: &mut Vec<u8>) {
        put(out, (self.version - last) << 1 | u64::from(self.client.is_ipv6()));
        match self.client {
            IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
        }
        put(out, self.connections.into());
        put(out, self.rate.into());
    }

    fn decode(last: u64, input: &mut &[u8]) -> Option<Self> {
        let head = number(input)?;
        let client = match head & 1 {
            0 => IpAddr::from(take::<4>(input)?),
            _ => IpAddr::from(take::<16>(input)?),
        };
        let (connections, rate) = (short_number(input)?, short_number(input)?);
        Some(Entry { version: last.checked_add(head >> 1)?, client, connections, rate })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> impl Strategy<Value = Message> {
        let ack = (any::<u64>(), any::<u64>(), prop::collection::vec((0..u64::MAX / 2, 0u64..1_000), 0..20))
            .prop_map(|(session, table, ranges)| {
                let mut got = Ranges::default();
                ranges.iter().for_each(|(from, length)| got.insert(*from, from + length));
                Ack { session, table, got }
            });
        let entry = (1u64..1_000, any::<IpAddr>(), any::<u32>(), any::<u32>());
        let delta = (0..u64::MAX / 4, prop::collection::vec(entry, 0..30), 0u64..9).prop_map(
            |(from, entries, after)| {
                let mut last = from;
                let entries = entries.into_iter().map(|(step, client, connections, rate)| {
                    last += step;
                    Entry { version: last, client, connections, rate }
                });
                let entries: Vec<_> = entries.collect();
                Delta { from, to: last + after, entries }
            },
        );
        let head = (any::<u64>(), any::<u64>(), any::<u64>());
        (head, prop::option::of(ack), prop::option::of(delta)).prop_map(
            |((node, session, floor), ack, delta)| {
                let version = delta.as_ref().map_or(floor, |delta| delta.to.max(floor));
                Message { node, session, version, floor, ack, delta }
            },
        )
    }

    proptest! {
        #[test]
        fn a_message_survives_the_wire(message in message()) {
            let bytes = message.encode();
            let mut room = MAX_HEAD;
            if let Some(delta) = &message.delta {
                let mut last = delta.from;
                for entry in &delta.entries {
                    room += entry.encoded_len(last);
                    last = entry.version;
                }
            }
            prop_assert!(bytes.len() <= room);
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
