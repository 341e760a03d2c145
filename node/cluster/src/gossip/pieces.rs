//! Cuts messages into pieces that fit a datagram, and joins them again.
//!
//! Chitchat fills a message up to 65,507 bytes. Sent as one datagram that is some 45 IP fragments,
//! lost together with any of them and invisible to us; cut here, what is lost is bounded and counted.
//! A message of which a piece is missing after [`MAX_AGE`] is given up: gossip repeats itself.
//!
//! Pieces are joined by the sender's session, which is authenticated, never by address.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::metrics::Dropped;
use super::seal::{MAX_PAYLOAD, Session};

const HEADER: usize = 4 + 1 + 1;
const PIECE: usize = MAX_PAYLOAD - HEADER;
/// Pieces of one message; a bit each in `Partial::got`.
const MAX_PIECES: usize = 64;
/// Largest message that is sent or taken in.
pub(crate) const MAX_MESSAGE: usize = PIECE * MAX_PIECES;
const _: () = assert!(MAX_MESSAGE >= 65_507 + 64, "chitchat's largest message must fit");

/// Messages of one session that are being joined; one more gives the oldest up.
const MAX_PARTIAL: usize = 8;
/// Bytes of all messages that are being joined.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// Sessions with a message that is being joined.
const MAX_SESSIONS: usize = 256;
pub(crate) const MAX_AGE: Duration = Duration::from_secs(1);

/// The payloads of the datagrams that carry `message`.
pub(crate) fn cut(id: u32, message: &[u8]) -> Result<impl Iterator<Item = Vec<u8>>, Dropped> {
    if message.len() > MAX_MESSAGE {
        return Err(Dropped::TooLarge);
    }
    let count = message.len().div_ceil(PIECE).max(1);
    Ok((0..count).map(move |index| {
        let piece = &message[index * PIECE..message.len().min((index + 1) * PIECE)];
        let mut payload = Vec::with_capacity(HEADER + piece.len());
        payload.extend_from_slice(&id.to_be_bytes());
        payload.push(index as u8);
        payload.push(count as u8);
        payload.extend_from_slice(piece);
        payload
    }))
}

#[derive(Default)]
pub(crate) struct Reassembly {
    /// Oldest first; never empty.
    sessions: HashMap<Session, VecDeque<Partial>>,
    /// Of all pieces held.
    bytes: usize,
}

struct Partial {
    id: u32,
    count: u8,
    got: u64,
    pieces: Vec<Vec<u8>>,
    bytes: usize,
    started: Instant,
}

impl Reassembly {
    /// The message, when this was its last piece. Also says how many messages were given up.
    pub(crate) fn push(
        &mut self,
        session: Session,
        payload: &[u8],
        now: Instant,
        given_up: &mut u64,
    ) -> Result<Option<Vec<u8>>, Dropped> {
        let (header, piece) = payload.split_first_chunk::<HEADER>().ok_or(Dropped::Malformed)?;
        let [a, b, c, d, index, count] = *header;
        let id = u32::from_be_bytes([a, b, c, d]);
        if count == 0 || usize::from(count) > MAX_PIECES || index >= count || piece.len() > PIECE {
            return Err(Dropped::Malformed);
        }
        if count == 1 {
            return Ok(Some(piece.to_vec()));
        }
        *given_up += self.expire(now);
        if self.bytes + piece.len() > MAX_BYTES
            || (self.sessions.len() >= MAX_SESSIONS && !self.sessions.contains_key(&session))
        {
            return Err(Dropped::PiecesFull);
        }
        self.insert(session, id, index, count, piece, now, given_up)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one piece")]
    fn insert(
        &mut self,
        session: Session,
        id: u32,
        index: u8,
        count: u8,
        piece: &[u8],
        now: Instant,
        given_up: &mut u64,
    ) -> Result<Option<Vec<u8>>, Dropped> {
        let partials = self.sessions.entry(session).or_default();
        let at = match partials.iter().position(|partial| partial.id == id) {
            Some(at) => at,
            None => {
                if partials.len() >= MAX_PARTIAL
                    && let Some(oldest) = partials.pop_front()
                {
                    self.bytes -= oldest.bytes;
                    *given_up += 1;
                }
                partials.push_back(Partial::new(id, count, now));
                partials.len() - 1
            }
        };
        let partial = &mut partials[at];
        if partial.count != count {
            return Err(Dropped::Malformed);
        }
        self.bytes += partial.add(index, piece);
        if !partial.is_whole() {
            return Ok(None);
        }
        self.bytes -= partial.bytes;
        let message = partials.remove(at).map(|partial| partial.pieces.concat());
        if partials.is_empty() {
            self.sessions.remove(&session);
        }
        Ok(message)
    }

    /// Gives up what has waited too long; says how many messages that were.
    fn expire(&mut self, now: Instant) -> u64 {
        let (mut bytes, mut lost) = (0, 0);
        self.sessions.retain(|_, partials| {
            partials.retain(|partial| {
                let keep = now.duration_since(partial.started) < MAX_AGE;
                if !keep {
                    bytes += partial.bytes;
                    lost += 1;
                }
                keep
            });
            !partials.is_empty()
        });
        self.bytes -= bytes;
        lost
    }
}

impl Partial {
    fn new(id: u32, count: u8, now: Instant) -> Partial {
        let pieces = vec![Vec::new(); usize::from(count)];
        Partial { id, count, got: 0, pieces, bytes: 0, started: now }
    }

    /// How many bytes are held in addition.
    fn add(&mut self, index: u8, piece: &[u8]) -> usize {
        let bit = 1 << index;
        if self.got & bit != 0 {
            return 0;
        }
        self.got |= bit;
        self.pieces[usize::from(index)] = piece.to_vec();
        self.bytes += piece.len();
        piece.len()
    }

    fn is_whole(&self) -> bool {
        self.got.count_ones() == u32::from(self.count)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn join(pieces: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
        let (mut reassembly, now) = (Reassembly::default(), Instant::now());
        let whole = pieces
            .into_iter()
            .filter_map(|piece| reassembly.push([1; 16], &piece, now, &mut 0).expect("well formed"))
            .collect();
        if reassembly.sessions.is_empty() {
            assert_eq!(reassembly.bytes, 0);
        }
        whole
    }

    #[test]
    fn the_largest_message_of_chitchat_arrives_in_pieces_that_fit() {
        let message: Vec<u8> = (0..65_507u32).map(|n| n as u8).collect();
        let pieces: Vec<_> = cut(1, &message).expect("fits").collect();
        assert!(pieces.iter().all(|piece| piece.len() <= MAX_PAYLOAD));
        assert_eq!(join(pieces.into_iter().rev()), [message]);
        assert!(matches!(cut(1, &vec![0; MAX_MESSAGE + 1]).err(), Some(Dropped::TooLarge)));
    }

    #[test]
    fn a_message_with_a_lost_piece_is_given_up_and_counted() {
        let (mut reassembly, now) = (Reassembly::default(), Instant::now());
        let first = cut(1, &[1; 3_000]).expect("fits").next().expect("has a piece");
        let mut lost = 0;
        assert_eq!(reassembly.push([1; 16], &first, now, &mut lost), Ok(None));
        let later = cut(2, &[2; 3_000]).expect("fits").next().expect("has a piece");
        assert_eq!(reassembly.push([2; 16], &later, now + MAX_AGE, &mut lost), Ok(None));
        assert_eq!(lost, 1);
        assert_eq!(reassembly.sessions.len(), 1);
    }

    #[test]
    fn what_is_held_is_bounded() {
        let (mut reassembly, now) = (Reassembly::default(), Instant::now());
        let (mut lost, mut refused) = (0, 0);
        for session in 0..=255u8 {
            for id in 0..20 {
                for piece in cut(id, &[7; 20 * PIECE]).expect("fits").skip(1) {
                    match reassembly.push([session; 16], &piece, now, &mut lost) {
                        Ok(whole) => assert_eq!(whole, None),
                        Err(reason) => {
                            assert_eq!(reason, Dropped::PiecesFull);
                            refused += 1;
                        }
                    }
                    assert!(reassembly.bytes <= MAX_BYTES);
                }
            }
        }
        assert!(lost > 0 && refused > 0);
        assert!(reassembly.sessions.values().all(|partials| partials.len() <= MAX_PARTIAL));
        assert!(reassembly.expire(now + MAX_AGE) > 0);
        assert_eq!((reassembly.bytes, reassembly.sessions.len()), (0, 0));
    }

    proptest! {
        #[test]
        fn pieces_join_in_any_order_with_duplicates(
            message in prop::collection::vec(any::<u8>(), 0..6 * PIECE),
            order in any::<u64>(),
        ) {
            use rand::{SeedableRng, seq::SliceRandom};
            let mut pieces: Vec<_> = cut(9, &message).expect("fits").collect();
            pieces.shuffle(&mut rand::rngs::StdRng::seed_from_u64(order));
            if pieces.len() > 1 {
                pieces.insert(0, pieces[0].clone());
            }
            prop_assert_eq!(join(pieces), [message]);
        }

        #[test]
        fn junk_neither_panics_nor_leaks(
            junk in prop::collection::vec(
                (0u8..3, prop::collection::vec(any::<u8>(), 0..60)), 0..200),
        ) {
            let (mut reassembly, now) = (Reassembly::default(), Instant::now());
            for (session, payload) in junk {
                let _ = reassembly.push([session; 16], &payload, now, &mut 0);
            }
            reassembly.expire(now + MAX_AGE);
            prop_assert_eq!(reassembly.bytes, 0);
        }
    }
}
