//! Seals datagrams: XChaCha20-Poly1305 under the cluster's gossip key. While two keys are exchanged, the current
//! one seals and both open: a datagram that nobody of the cluster has sealed costs two looks instead of one.
//!
//! A sender's process has a random session of 16 bytes and counts its datagrams; together they are
//! the nonce of 24 bytes. XChaCha derives a key of its own from the first 16 of them, so each
//! session has its own key and two processes can't spoil each other's nonces. The cluster id is
//! authenticated with every datagram but not sent: clusters with one key stay apart. A short tag of
//! it is sent in the clear, so that a datagram of another cluster is told from one with another key.
//!
//! ```text
//! format 1 | cluster tag 4 | session 16 | counter 8 | sealed( kind 1 | to 8 | epoch 8 | payload ) | tag 16
//! ```
//!
//! `epoch` is the sender's receiving epoch, `to` the receiver's as the sender knows it; what they
//! are for is told in [`super::link`]. Here lives the arithmetic only: seal, open, and the window in
//! which a session's counters are accepted once.
//!
//! What this does not survive is a virtual machine restored from a snapshot of its memory: it would
//! use its counters again. Don't restore a running node from one.

use chacha20poly1305::aead::{AeadInPlace, KeyInit};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::metrics::Dropped;
use crate::identity::Both;

/// Largest datagram that is sent: it fits every path's MTU without IP fragments.
pub(crate) const MAX_DATAGRAM: usize = 1_200;
/// Largest payload of one datagram.
pub(crate) const MAX_PAYLOAD: usize = MAX_DATAGRAM - CLEAR - INNER - MAC;

const FORMAT: u8 = 1;
const CLEAR: usize = 1 + 4 + 16 + 8;
const INNER: usize = 1 + 8 + 8;
const MAC: usize = 16;

pub(crate) type Session = [u8; 16];
/// What seals and opens.
pub(crate) type GossipKeys = Both<Zeroizing<[u8; 32]>>;

/// What a datagram carries. The numbers are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Kind {
    /// "I don't know your epoch." Payload: the address by which the sender knows the receiver.
    Introduce = 0,
    /// The answer to that, and to a datagram that names an epoch of the past.
    Hello = 1,
    /// A piece of a chitchat message.
    Chitchat = 2,
    /// The exchange of connection counts.
    Counts = 3,
    /// The sender's process leaves.
    Leave = 4,
    /// The guard of a process that has died let go of its VIPs. Sealed ahead by that process, and
    /// sent from another socket: it says nothing of a route.
    Release = 5,
    /// The exchange of loads.
    Loads = 6,
    /// The exchange of claims on limits.
    Claims = 7,
    /// The exchange of slots of exact limits.
    Slots = 8,
}

impl Kind {
    pub(crate) const ALL: [Kind; 9] = [
        Kind::Introduce,
        Kind::Hello,
        Kind::Chitchat,
        Kind::Counts,
        Kind::Leave,
        Kind::Release,
        Kind::Loads,
        Kind::Claims,
        Kind::Slots,
    ];

    fn from_byte(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    pub(crate) fn label(self) -> &'static str {
        match self {
            Kind::Introduce => "introduce",
            Kind::Hello => "hello",
            Kind::Chitchat => "chitchat",
            Kind::Counts => "counts",
            Kind::Leave => "leave",
            Kind::Release => "release",
            Kind::Loads => "loads",
            Kind::Claims => "claims",
            Kind::Slots => "slots",
        }
    }
}

/// A datagram that was sealed with our key for our cluster. Nothing is said yet about when.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) session: Session,
    pub(crate) counter: u64,
    pub(crate) kind: Kind,
    /// The receiver's epoch as the sender knows it; 0: it knows none.
    pub(crate) to: u64,
    /// The sender's own receiving epoch.
    pub(crate) epoch: u64,
    pub(crate) payload: Vec<u8>,
}

pub(crate) struct Seal {
    ciphers: Both<XChaCha20Poly1305>,
    cluster: Uuid,
    cluster_tag: [u8; 4],
    session: Session,
    /// Of the last datagram sealed: no two share one.
    counter: u64,
}

impl Seal {
    pub(crate) fn new(keys: &GossipKeys, cluster: Uuid, session: Session) -> Seal {
        let digest = Sha256::digest(cluster.as_bytes());
        let mut cluster_tag = [0; 4];
        cluster_tag.copy_from_slice(&digest[..4]);
        let cipher = |key: &Zeroizing<[u8; 32]>| XChaCha20Poly1305::new(Key::from_slice(key.as_slice()));
        let ciphers = Both { current: cipher(&keys.current), other: keys.other.as_ref().map(cipher) };
        Seal { ciphers, cluster, cluster_tag, session, counter: 0 }
    }

    pub(crate) fn session(&self) -> Session {
        self.session
    }

    /// `payload` is at most [`MAX_PAYLOAD`] bytes.
    pub(crate) fn seal(&mut self, kind: Kind, to: u64, epoch: u64, payload: &[u8]) -> Vec<u8> {
        assert!(payload.len() <= MAX_PAYLOAD, "callers cut what they send");
        self.counter += 1;
        let mut datagram = Vec::with_capacity(CLEAR + INNER + payload.len() + MAC);
        datagram.push(FORMAT);
        datagram.extend_from_slice(&self.cluster_tag);
        datagram.extend_from_slice(&self.session);
        datagram.extend_from_slice(&self.counter.to_be_bytes());
        datagram.push(kind as u8);
        datagram.extend_from_slice(&to.to_be_bytes());
        datagram.extend_from_slice(&epoch.to_be_bytes());
        datagram.extend_from_slice(payload);
        let nonce = nonce(&self.session, self.counter);
        let mac = self
            .ciphers
            .current
            .encrypt_in_place_detached(&nonce, &self.associated(), &mut datagram[CLEAR..])
            .expect("a datagram is far below the cipher's limit of 256 GiB");
        datagram.extend_from_slice(&mac);
        datagram
    }

    pub(crate) fn open(&self, datagram: &[u8]) -> Result<Frame, Dropped> {
        if datagram.len() > MAX_DATAGRAM {
            return Err(Dropped::Oversize);
        }
        let Some((&format, rest)) = datagram.split_first() else { return Err(Dropped::Truncated) };
        if format != FORMAT {
            return Err(Dropped::Format);
        }
        let (tag, rest) = split::<4>(rest)?;
        if tag != self.cluster_tag {
            return Err(Dropped::Cluster);
        }
        let (session, rest) = split::<16>(rest)?;
        let (counter, rest) = split::<8>(rest)?;
        let counter = u64::from_be_bytes(counter);
        if rest.len() < INNER + MAC {
            return Err(Dropped::Truncated);
        }
        let (sealed, mac) = rest.split_at(rest.len() - MAC);
        let mut plain = sealed.to_vec();
        let (nonce, associated, mac) = (nonce(&session, counter), self.associated(), Tag::from_slice(mac));
        // The code is looked at before a byte is changed: the second key finds what the first one found.
        let opens = |cipher: &XChaCha20Poly1305| {
            cipher.decrypt_in_place_detached(&nonce, &associated, &mut plain, mac).is_ok()
        };
        if !self.ciphers.iter().any(opens) {
            return Err(Dropped::Key);
        }
        Self::frame(session, counter, &plain)
    }

    fn frame(session: Session, counter: u64, plain: &[u8]) -> Result<Frame, Dropped> {
        let ([kind], rest) = split::<1>(plain)?;
        let kind = Kind::from_byte(kind).ok_or(Dropped::Kind)?;
        let (to, rest) = split::<8>(rest)?;
        let (epoch, payload) = split::<8>(rest)?;
        let (to, epoch) = (u64::from_be_bytes(to), u64::from_be_bytes(epoch));
        Ok(Frame { session, counter, kind, to, epoch, payload: payload.to_vec() })
    }

    /// Authenticated with each datagram, never sent. (Session and counter are the nonce.)
    fn associated(&self) -> [u8; 17] {
        let mut data = [FORMAT; 17];
        data[1..].copy_from_slice(self.cluster.as_bytes());
        data
    }
}

fn nonce(session: &Session, counter: u64) -> XNonce {
    let mut nonce = [0; 24];
    nonce[..16].copy_from_slice(session);
    nonce[16..].copy_from_slice(&counter.to_be_bytes());
    nonce.into()
}

fn split<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), Dropped> {
    bytes.split_first_chunk::<N>().map(|(head, rest)| (*head, rest)).ok_or(Dropped::Truncated)
}

/// Which of a session's counters were seen: each is accepted once, and none that lies further back
/// than the window. A ring of words as in RFC 6479.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    top: u64,
    words: [u64; Window::WORDS as usize],
}

impl Window {
    const WORDS: u64 = 17;
    /// So far may a datagram be overtaken, at least.
    #[cfg(test)]
    pub(crate) const SPAN: u64 = (Window::WORDS - 1) * 64;

    /// True the first time for a counter that is not too old.
    pub(crate) fn accept(&mut self, counter: u64) -> bool {
        let (word, top) = (counter / 64, self.top / 64);
        if counter > self.top {
            for step in 1..=(word - top).min(Self::WORDS) {
                self.words[((top + step) % Self::WORDS) as usize] = 0;
            }
            self.top = counter;
        } else if top - word >= Self::WORDS {
            return false;
        }
        let slot = &mut self.words[(word % Self::WORDS) as usize];
        let bit = 1 << (counter % 64);
        let first = *slot & bit == 0;
        *slot |= bit;
        first
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn seal(key: u8, cluster: u128, session: u8) -> Seal {
        sealing(key, None, cluster, session)
    }

    fn sealing(key: u8, other: Option<u8>, cluster: u128, session: u8) -> Seal {
        let keys = Both { current: key, other }.map(|key| Zeroizing::new([key; 32]));
        Seal::new(&keys, Uuid::from_u128(cluster), [session; 16])
    }

    #[test]
    fn while_two_keys_are_there_either_opens_and_the_current_one_seals() {
        let (old, new) = (1, 2);
        let mut senders =
            [seal(old, 7, 1), sealing(old, Some(new), 7, 1), sealing(new, Some(old), 7, 1), seal(new, 7, 1)];
        let receivers =
            [seal(old, 7, 2), sealing(old, Some(new), 7, 2), sealing(new, Some(old), 7, 2), seal(new, 7, 2)];
        for (from, sender) in senders.iter_mut().enumerate() {
            let datagram = sender.seal(Kind::Counts, 5, 6, b"payload");
            for (at, receiver) in receivers.iter().enumerate() {
                let opened = receiver.open(&datagram).map(|frame| frame.payload);
                // One key is known to who has but the other.
                if (from < 2 && at == 3) || (from >= 2 && at == 0) {
                    assert_eq!(opened, Err(Dropped::Key), "{from} {at}");
                } else {
                    assert_eq!(opened.as_deref(), Ok(&b"payload"[..]), "{from} {at}");
                }
            }
        }
    }

    #[test]
    fn what_was_sealed_opens_with_the_same_key_and_cluster() {
        let mut sender = seal(1, 7, 1);
        let datagram = sender.seal(Kind::Counts, 5, 6, b"payload");
        let frame = seal(1, 7, 2).open(&datagram).expect("opens");
        assert_eq!(frame.session, [1; 16]);
        assert_eq!(
            (frame.counter, frame.kind, frame.to, frame.epoch, frame.payload.as_slice()),
            (1, Kind::Counts, 5, 6, b"payload".as_slice())
        );
    }

    #[test]
    fn a_wrong_key_and_a_wrong_cluster_are_told_apart() {
        let datagram = seal(1, 7, 1).seal(Kind::Counts, 5, 6, b"payload");
        assert_eq!(seal(2, 7, 2).open(&datagram), Err(Dropped::Key));
        assert_eq!(seal(1, 8, 2).open(&datagram), Err(Dropped::Cluster));
        // The tag in the clear is no proof: the id itself is authenticated.
        let mut forged = datagram.clone();
        forged[1..5].copy_from_slice(&seal(1, 8, 2).cluster_tag);
        assert_eq!(seal(1, 8, 2).open(&forged), Err(Dropped::Key));
    }

    #[test]
    fn the_largest_payload_makes_the_largest_datagram() {
        let datagram = seal(1, 7, 1).seal(Kind::Chitchat, 5, 6, &[9; MAX_PAYLOAD]);
        assert_eq!(datagram.len(), MAX_DATAGRAM);
        assert!(seal(1, 7, 2).open(&datagram).is_ok());
    }

    #[test]
    fn no_two_datagrams_share_a_nonce() {
        let mut sender = seal(1, 7, 1);
        assert_ne!(sender.seal(Kind::Hello, 0, 0, b""), sender.seal(Kind::Hello, 0, 0, b""));
    }

    proptest! {
        #[test]
        fn a_changed_truncated_or_junk_datagram_is_refused(
            payload in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            change in 1u8..,
            cut in any::<prop::sample::Index>(),
            junk in prop::collection::vec(any::<u8>(), 0..1_400),
        ) {
            let receiver = seal(1, 7, 2);
            let datagram = seal(1, 7, 1).seal(Kind::Leave, 1, 2, &payload);
            let mut changed = datagram.clone();
            changed[at.index(datagram.len())] ^= change;
            prop_assert!(receiver.open(&changed).is_err());
            prop_assert!(receiver.open(&datagram[..cut.index(datagram.len())]).is_err());
            prop_assert!(receiver.open(&junk).is_err());
        }

        #[test]
        fn the_window_accepts_each_counter_once(
            steps in prop::collection::vec((0u64..3_000, 0u64..40), 1..400),
        ) {
            let mut window = Window::default();
            let mut seen = BTreeSet::new();
            let mut base = 0;
            for (back, ahead) in steps {
                base += ahead;
                let counter = (base + 3_000).saturating_sub(back);
                let top = seen.last().copied().unwrap_or(0);
                let accepted = window.accept(counter);
                if !seen.contains(&counter) && counter + Window::SPAN > top {
                    prop_assert!(accepted, "{counter} is new and inside the window under {top}");
                } else if seen.contains(&counter) {
                    prop_assert!(!accepted, "{counter} came twice");
                }
                if accepted {
                    seen.insert(counter);
                }
            }
        }
    }

    #[test]
    fn the_window_survives_the_ends_of_the_number_line() {
        let mut window = Window::default();
        assert!(window.accept(0));
        assert!(window.accept(u64::MAX));
        assert!(!window.accept(u64::MAX));
        assert!(!window.accept(0));
        assert!(window.accept(u64::MAX - 100));
    }
}
