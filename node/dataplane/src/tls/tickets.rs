//! Session tickets (RFC 8446, section 4.6.1; RFC 5077) that open on every node of a cluster.
//!
//! The cluster agrees on a ring of secrets: the newest seals, the older ones still open. From each
//! secret every listener derives keys of its own, by its name and by what it demands of clients: rustls
//! takes up a session of which it can read the ticket, whoever began it, so a session from a listener
//! without client certificates must be unreadable where they are required.
//!
//! A ticket is a key's name (16 bytes), a nonce (12) and what AES-256-GCM makes of the session. Nonces are
//! random; a secret should be replaced before 2^32 tickets.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::rand;
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

use crate::TicketKeys;

const NAME: usize = 16;
const KEY: usize = 32;

/// For how long a client may come back, seconds: as long as a secret surely opens under the usual rotation.
const LIFETIME: u32 = 24 * 3600;

/// The secrets in force, shared by all listeners of all revisions.
#[derive(Default)]
pub(crate) struct Ring(ArcSwap<Option<TicketKeys>>);

impl Ring {
    pub(crate) fn set(&self, keys: TicketKeys) {
        self.0.store(Arc::new(Some(keys)));
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("empty", &self.0.load().is_none()).finish()
    }
}

/// One listener's tickets.
pub(crate) struct Ticketer {
    ring: Arc<Ring>,
    /// What its keys depend on beside the secrets.
    context: Box<[u8]>,
    derived: ArcSwap<Derived>,
}

/// A listener's keys, the newest first.
struct Derived {
    of: Arc<Option<TicketKeys>>,
    keys: Vec<([u8; NAME], LessSafeKey)>,
}

impl Ticketer {
    pub(crate) fn new(ring: Arc<Ring>, context: Box<[u8]>) -> Self {
        let derived = ArcSwap::from_pointee(Derived { of: Arc::new(None), keys: Vec::new() });
        Self { ring, context, derived }
    }

    /// Derived anew after the secrets have changed.
    fn derived(&self) -> Arc<Derived> {
        let ring = self.ring.0.load_full();
        let derived = self.derived.load_full();
        if Arc::ptr_eq(&derived.of, &ring) {
            return derived;
        }
        let secrets = ring.iter().flat_map(|keys| std::iter::once(&keys.current).chain(&keys.older));
        let keys = secrets.filter_map(|secret| derive(secret, &self.context)).collect();
        let derived = Arc::new(Derived { of: ring, keys });
        self.derived.store(Arc::clone(&derived));
        derived
    }
}

fn derive(secret: &[u8; 32], context: &[u8]) -> Option<([u8; NAME], LessSafeKey)> {
    struct Length;
    impl KeyType for Length {
        fn len(&self) -> usize {
            NAME + KEY
        }
    }
    let mut bytes = Zeroizing::new([0; NAME + KEY]);
    let pseudo_random = Salt::new(HKDF_SHA256, b"trestle session tickets 1").extract(secret);
    pseudo_random.expand(&[context], Length).and_then(|okm| okm.fill(bytes.as_mut_slice())).ok()?;
    let (name, key) = bytes.split_at(NAME);
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
    Some((name.try_into().ok()?, key))
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        self.ring.0.load().is_some()
    }

    fn lifetime(&self) -> u32 {
        LIFETIME
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let derived = self.derived();
        let (name, key) = derived.keys.first()?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(name), &mut sealed)
            .ok()?;
        Some([&name[..], &nonce, &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let derived = self.derived();
        let (name, key) = derived.keys.iter().find(|(known, _)| known == name)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let plain = key.open_in_place(nonce, Aad::from(name), &mut sealed).ok()?.len();
        sealed.truncate(plain);
        Some(sealed)
    }
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticketer").field("ring", &self.ring).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ring(current: u8, older: &[u8]) -> Arc<Ring> {
        let ring = Ring::default();
        ring.set(keys(current, older));
        Arc::new(ring)
    }

    fn keys(current: u8, older: &[u8]) -> TicketKeys {
        TicketKeys {
            current: Zeroizing::new([current; 32]),
            older: older.iter().map(|byte| Zeroizing::new([*byte; 32])).collect(),
        }
    }

    fn ticketer(ring: &Arc<Ring>, context: &str) -> Ticketer {
        Ticketer::new(Arc::clone(ring), context.as_bytes().into())
    }

    #[test]
    fn debug_prints_no_secret() {
        let shown = format!("{:?} {:?}", keys(171, &[172]), ring(171, &[172]));
        assert!(!shown.contains("171") && !shown.contains("172"), "{shown}");
    }

    #[test]
    fn a_ticket_opens_on_every_node_and_at_its_own_listener_only() {
        let ticket = ticketer(&ring(1, &[]), "web").encrypt(b"session").expect("a ticket");
        let elsewhere = ring(2, &[1]);
        assert_eq!(ticketer(&elsewhere, "web").decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(ticketer(&elsewhere, "web, with client certificates").decrypt(&ticket), None);
    }

    #[test]
    fn a_ticket_ends_with_its_key() {
        let ring = ring(1, &[]);
        let ticketer = ticketer(&ring, "web");
        let ticket = ticketer.encrypt(b"session").expect("a ticket");
        ring.set(keys(2, &[1]));
        assert!(ticketer.decrypt(&ticket).is_some());
        ring.set(keys(3, &[2]));
        assert_eq!(ticketer.decrypt(&ticket), None);
    }

    #[test]
    fn without_keys_there_are_no_tickets() {
        let ring = Arc::new(Ring::default());
        let ticketer = ticketer(&ring, "web");
        assert!(!ticketer.enabled());
        assert_eq!(ticketer.encrypt(b"session"), None);
        ring.set(keys(1, &[]));
        assert!(ticketer.enabled());
    }

    proptest! {
        #[test]
        fn what_is_no_ticket_of_ours_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<usize>(), bit in 0..8) {
            let ticketer = ticketer(&ring(1, &[2]), "web");
            prop_assert_eq!(ticketer.decrypt(&bytes), None);
            let mut ticket = ticketer.encrypt(&bytes).expect("a ticket");
            prop_assert_eq!(ticketer.decrypt(&ticket), Some(bytes));
            let at = at % ticket.len();
            ticket[at] ^= 1u8 << bit;
            prop_assert_eq!(ticketer.decrypt(&ticket), None);
        }
    }
}
