//! The one message of the exchange of claims, and its bytes.
//!
//! Numbers are LEB128 unless said otherwise; a message fits one datagram.
//!
//! ```text
//! message  format 1 | node | session 8 bytes | epoch | version | floor | 0, or 1 | ack | 0, or 1 | delta of entries
//! ack      session 8 bytes | table | upto
//! entry    version - last | key 8 bytes | claim
//! claim    0: gone, or limit × 4 + 1 + want | holds
//!          of a rate (an odd key): 0, or 1 + want | holds | demand | fill | 0, or units | heir | serial
//! ```

use trestle_dataplane::rates::{WHOLE, is_rate};
use trestle_raft_store::types::NodeId;

use crate::gossip::MAX_COUNTS_PAYLOAD;
use crate::wire::{
    Change, MAX_DELTA_HEAD, number, number_len, optional, put, put_optional, put_whole, short_number, take,
    whole,
};

const FORMAT: u8 = 2;
/// Bytes of the largest message without entries.
pub(super) const MAX_HEAD: usize = 1 + 10 + 8 + 10 + 10 + 10 + (1 + 8 + 10 + 10) + (1 + MAX_DELTA_HEAD);
const MAX_ENTRY: usize = 10 + 8 + 1 + 5 + 5 + 5 + (5 + 10 + 10);
const _: () = assert!(MAX_HEAD + MAX_ENTRY <= MAX_COUNTS_PAYLOAD, "each delta must carry an entry at least");

pub(crate) type Delta = crate::wire::Delta<Entry>;

/// How much a node would like to hold more. What is wanted hard goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Want {
    #[default]
    Nothing,
    /// A reserve.
    Soft,
    /// Somebody was refused.
    Hard,
}

/// What a node holds of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// What is open, and what it may open without asking.
    pub(crate) holds: u32,
    /// The whole limit, as the sender's config has it.
    pub(crate) limit: u32,
    pub(crate) want: Want,
    /// Of a rate.
    pub(crate) flow: Flow,
}

/// What a node says of a rate beside what it holds of it. All is 0 for what is no rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flow {
    /// What is asked of the node, in units of the whole rate.
    pub(crate) demand: u32,
    /// In how many milliseconds a whole bucket is gained; 0: it does not know.
    pub(crate) fill: u32,
    /// What of its bucket it gives away, in units of the whole bucket: once, to one node.
    pub(crate) gift: u32,
    pub(crate) heir: NodeId,
    /// Of the gift; grows from one to the next.
    pub(crate) serial: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) node: NodeId,
    /// Of the sender's process; grows with time.
    pub(crate) session: u64,
    /// Of the seat under which the sender has made its last claims; 0: it has none.
    pub(crate) epoch: u64,
    /// The sender's last change.
    pub(crate) version: u64,
    /// The sender has forgotten which claims are gone, up to here.
    pub(crate) floor: u64,
    pub(crate) ack: Option<Ack>,
    pub(crate) delta: Option<Delta>,
}

/// What the sender has of the receiver's changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ack {
    /// Of the receiver's process.
    pub(crate) session: u64,
    /// Grows whenever the sender had to begin the table anew.
    pub(crate) table: u64,
    pub(crate) upto: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) version: u64,
    pub(crate) key: u64,
    /// `None`: gone.
    pub(crate) claim: Option<Claim>,
}

impl Entry {
    /// Bytes after an entry of version `last`.
    pub(super) fn encoded_len(&self, last: u64) -> usize {
        let claim = self.claim.map_or(1, |claim| {
            let flow = if is_rate(self.key) { claim.flow.encoded_len() } else { 0 };
            number_len(claim.head(self.key)) + number_len(claim.holds.into()) + flow
        });
        number_len(self.version - last) + 8 + claim
    }
}

impl Claim {
    /// The whole of a rate is the same for all.
    fn head(&self, key: u64) -> u64 {
        let limit = if is_rate(key) { 0 } else { self.limit };
        u64::from(limit) << 2 | (1 + self.want as u64)
    }

    fn decode(key: u64, input: &mut &[u8]) -> Option<Option<Claim>> {
        let head = number(input)?;
        if head == 0 {
            return Some(None);
        }
        let want = match head & 3 {
            1 => Want::Nothing,
            2 => Want::Soft,
            3 => Want::Hard,
            _ => return None,
        };
        let (limit, holds) = (u32::try_from(head >> 2).ok()?, short_number(input)?);
        if is_rate(key) {
            let flow = Flow::decode(input)?;
            return (limit == 0).then_some(Some(Claim { holds, limit: WHOLE, want, flow }));
        }
        Some(Some(Claim { holds, limit, want, flow: Flow::default() }))
    }
}

impl Flow {
    fn encoded_len(&self) -> usize {
        let gift = if self.gift == 0 { 0 } else { number_len(self.heir) + number_len(self.serial) };
        number_len(self.demand.into()) + number_len(self.fill.into()) + number_len(self.gift.into()) + gift
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put(out, self.demand.into());
        put(out, self.fill.into());
        put(out, self.gift.into());
        if self.gift > 0 {
            put(out, self.heir);
            put(out, self.serial);
        }
    }

    fn decode(input: &mut &[u8]) -> Option<Flow> {
        let (demand, fill, gift) = (short_number(input)?, short_number(input)?, short_number(input)?);
        if gift == 0 {
            return Some(Flow { demand, fill, ..Flow::default() });
        }
        Some(Flow { demand, fill, gift, heir: number(input)?, serial: number(input)? })
    }
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        put(&mut out, self.node);
        put_whole(&mut out, self.session);
        put(&mut out, self.epoch);
        put(&mut out, self.version);
        put(&mut out, self.floor);
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
            epoch: number(input)?,
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
        put(out, self.upto);
    }

    fn decode(input: &mut &[u8]) -> Option<Ack> {
        Some(Ack { session: whole(input)?, table: number(input)?, upto: number(input)? })
    }
}

impl Change for Entry {
    const LEAST: usize = 1 + 8 + 1;

    fn version(&self) -> u64 {
        self.version
    }

    fn encode(&self, last: u64, out: &mut Vec<u8>) {
        put(out, self.version - last);
        put_whole(out, self.key);
        match self.claim {
            None => out.push(0),
            Some(claim) => {
                put(out, claim.head(self.key));
                put(out, claim.holds.into());
                if is_rate(self.key) {
                    claim.flow.encode(out);
                }
            }
        }
    }

    fn decode(last: u64, input: &mut &[u8]) -> Option<Self> {
        let version = last.checked_add(number(input)?)?;
        let key = whole(input)?;
        Some(Entry { version, key, claim: Claim::decode(key, input)? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> impl Strategy<Value = Message> {
        let want = prop::sample::select(vec![Want::Nothing, Want::Soft, Want::Hard]);
        let gift = (any::<u32>(), any::<u64>(), any::<u64>());
        let claim = (any::<u32>(), any::<u32>(), want, any::<[u32; 2]>(), gift).prop_map(
            |(holds, limit, want, [demand, fill], (gift, heir, serial))| {
                let (heir, serial) = if gift == 0 { (0, 0) } else { (heir, serial) };
                Claim { holds, limit, want, flow: Flow { demand, fill, gift, heir, serial } }
            },
        );
        let entry = (1u64..1_000, any::<u64>(), prop::option::of(claim)).prop_map(|(step, key, claim)| {
            // A rate has no limit of its own, and what is no rate no flow.
            let of_key = |claim: Claim| match is_rate(key) {
                true => Claim { limit: WHOLE, ..claim },
                false => Claim { flow: Flow::default(), ..claim },
            };
            (step, key, claim.map(of_key))
        });
        let delta = (0..u64::MAX / 4, prop::collection::vec(entry, 0..30), 0u64..9).prop_map(
            |(from, entries, after)| {
                let mut last = from;
                let entries = entries.into_iter().map(|(step, key, claim)| {
                    last += step;
                    Entry { version: last, key, claim }
                });
                let entries: Vec<_> = entries.collect();
                Delta { from, to: last + after, entries }
            },
        );
        let ack = (any::<u64>(), any::<u64>(), any::<u64>());
        let ack = ack.prop_map(|(session, table, upto)| Ack { session, table, upto });
        let head = (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>());
        (head, prop::option::of(ack), prop::option::of(delta)).prop_map(
            |((node, session, epoch, floor), ack, delta)| {
                let version = delta.as_ref().map_or(floor, |delta| delta.to.max(floor));
                Message { node, session, epoch, version, floor, ack, delta }
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
                    prop_assert!(entry.encoded_len(last) <= MAX_ENTRY);
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
