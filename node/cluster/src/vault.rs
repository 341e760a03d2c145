//! Seals what the cluster keeps at rest: certificates, their keys, keys of session tickets.
//!
//! What seals follows from the cluster's key by HKDF-SHA-256 (its expand step: the secret is random
//! already), under a label of its own. What is sealed is bound to what it is: a content to its digest, a
//! ticket key to being one; so neither can be put in the place of another.
//!
//! ```text
//! format 2 | key 6 | nonce 24 | sealed bytes | tag 16        XChaCha20-Poly1305, nonces are random
//! format 1 |         nonce 24 | sealed bytes | tag 16        as long as there was never another key
//! ```
//!
//! `key` is the id of the cluster's key that it was sealed under: while two are exchanged the current one
//! seals and both open, and [`crate::reseal`] has all sealed anew that is not under the current one.
//!
//! A digest is an HMAC-SHA-256: equal content has an equal one in a cluster, and it tells nothing about
//! the content to whoever has not the cluster's key. What makes it stays when the key is exchanged.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use rand::TryRngCore;
use rand::rngs::OsRng;
use trestle_config::model::Digest;
use trestle_raft_store::contents::Sealed;
use zeroize::Zeroizing;

use crate::identity::{Both, ClusterKey, KeyId, Stage};

const FORMAT: u8 = 2;
/// Without the key's id.
const FORMAT_BEFORE: u8 = 1;
const NONCE: usize = 24;
/// Bytes that sealing adds, at most.
pub(crate) const OVERHEAD: usize = 1 + KeyId::BYTES + NONCE + 16;
/// What a ticket key is bound to; contents have their digest here.
const TICKET: &[u8] = b"ticket key";

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Vault(Arc<Keys>);

struct Keys {
    digest: hmac::Key,
    ciphers: Both<(KeyId, XChaCha20Poly1305)>,
    /// Seals with the key's id. A cluster that never exchanged its key writes what earlier releases read.
    names_key: bool,
    /// What is sealed without an id may be under a key that goes, or has gone.
    doubts_nameless: bool,
}

/// There are no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers: {0}")]
pub(crate) struct NoRandom(String);

impl Vault {
    pub(crate) fn new(key: &ClusterKey) -> Self {
        let digest = hmac::Key::new(HMAC_SHA256, key.digest_key().as_slice());
        let cipher = |key: &[u8; 32]| XChaCha20Poly1305::new(Key::from_slice(key));
        let ciphers = key.seal_keys().map(|(id, key)| (id, cipher(&key)));
        let names_key = key.was_exchanged();
        // Beside a new key that is not in use yet it is under the one that is.
        let doubts_nameless = names_key && key.stage() != Stage::Added;
        Self(Arc::new(Keys { digest, ciphers, names_key, doubts_nameless }))
    }

    /// Whether it is not known to be sealed under the current key, and so would not open once that is the only
    /// one.
    pub(crate) fn is_stale(&self, sealed: &Sealed) -> bool {
        match sealed.0.split_first() {
            Some((&FORMAT, rest)) => !rest.starts_with(&self.0.ciphers.current.0.bytes()),
            _ => self.0.doubts_nameless,
        }
    }

    /// What is sealed for `digest`, under the current key. `None`: it can't be opened.
    pub(crate) fn reseal_content(
        &self,
        digest: &Digest,
        sealed: &Sealed,
    ) -> Result<Option<Sealed>, NoRandom> {
        self.reseal(&digest.0, sealed)
    }

    pub(crate) fn reseal_ticket_key(&self, sealed: &Sealed) -> Result<Option<Sealed>, NoRandom> {
        self.reseal(TICKET, sealed)
    }

    fn reseal(&self, what: &[u8], sealed: &Sealed) -> Result<Option<Sealed>, NoRandom> {
        self.open(what, sealed).map(|plain| self.seal(what, &plain)).transpose()
    }

    pub(crate) fn digest(&self, content: &[u8]) -> Digest {
        let tag = hmac::sign(&self.0.digest, content);
        Digest(tag.as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes"))
    }

    pub(crate) fn seal_content(&self, digest: &Digest, content: &[u8]) -> Result<Sealed, NoRandom> {
        self.seal(&digest.0, content)
    }

    /// `None`: it was sealed with another cluster's key, or is damaged.
    pub(crate) fn open_content(&self, digest: &Digest, sealed: &Sealed) -> Option<Arc<[u8]>> {
        self.open(&digest.0, sealed).map(|plain| Arc::from(plain.as_slice()))
    }

    /// A new one.
    pub(crate) fn make_ticket_key(&self) -> Result<Sealed, NoRandom> {
        self.seal(TICKET, Zeroizing::new(random::<32>()?).as_slice())
    }

    pub(crate) fn open_ticket_key(&self, sealed: &Sealed) -> Option<Zeroizing<[u8; 32]>> {
        self.open(TICKET, sealed)?.as_slice().try_into().ok().map(Zeroizing::new)
    }

    fn seal(&self, what: &[u8], plain: &[u8]) -> Result<Sealed, NoRandom> {
        let nonce = random::<NONCE>()?;
        let payload = Payload { msg: plain, aad: what };
        let (id, cipher) = &self.0.ciphers.current;
        let sealed = cipher
            .encrypt(XNonce::from_slice(&nonce), payload)
            .expect("a content is far below the cipher's limit of 256 GiB");
        let named = [&[FORMAT][..], &id.bytes()].concat();
        let head = if self.0.names_key { &named[..] } else { &[FORMAT_BEFORE] };
        Ok(Sealed([head, &nonce, &sealed].concat().into()))
    }

    fn open(&self, what: &[u8], sealed: &Sealed) -> Option<Zeroizing<Vec<u8>>> {
        let (format, rest) = sealed.0.split_first()?;
        let (id, rest) = match *format {
            FORMAT => rest.split_first_chunk().map(|(id, rest)| (Some(*id), rest))?,
            FORMAT_BEFORE => (None, rest),
            _ => return None,
        };
        let (nonce, sealed) = rest.split_at_checked(NONCE)?;
        let ours = self.0.ciphers.iter().filter(|(ours, _)| id.is_none_or(|id| id == ours.bytes()));
        let open = |(_, cipher): &(KeyId, XChaCha20Poly1305)| {
            let payload = Payload { msg: sealed, aad: what };
            cipher.decrypt(XNonce::from_slice(nonce), payload).ok().map(Zeroizing::new)
        };
        ours.into_iter().find_map(open)
    }
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").finish_non_exhaustive()
    }
}

fn random<const N: usize>() -> Result<[u8; N], NoRandom> {
    let mut bytes = [0; N];
    OsRng.try_fill_bytes(&mut bytes).map_err(|e| NoRandom(e.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault() -> Vault {
        Vault::new(&ClusterKey::generate().unwrap())
    }

    #[test]
    fn what_was_sealed_opens_on_every_node_of_the_cluster_and_nowhere_else() {
        let key = ClusterKey::generate().unwrap();
        let (one, other) = (Vault::new(&key), Vault::new(&ClusterKey::parse(&key.to_pem()).unwrap()));
        let digest = one.digest(b"a key");
        assert_eq!(other.digest(b"a key"), digest);
        let sealed = one.seal_content(&digest, b"a key").unwrap();
        assert_eq!(other.open_content(&digest, &sealed).as_deref(), Some(&b"a key"[..]));
        let stranger = vault();
        assert_ne!(stranger.digest(b"a key"), digest, "it would tell that two clusters share a key");
        assert_eq!(stranger.open_content(&digest, &sealed), None);
    }

    #[test]
    fn the_plain_bytes_are_not_in_what_is_sealed_and_no_two_seals_are_alike() {
        let (vault, plain) = (vault(), b"-----BEGIN PRIVATE KEY-----");
        let digest = vault.digest(plain);
        let seal = || vault.seal_content(&digest, plain).unwrap();
        assert!(!seal().0.windows(8).any(|bytes| bytes == &plain[..8]));
        assert_ne!(seal(), seal());
        assert_eq!(seal().len(), plain.len() + OVERHEAD - KeyId::BYTES);
        let exchanged = Vault::new(&ClusterKey::generate().unwrap().stepped().unwrap().1);
        assert_eq!(exchanged.seal_content(&digest, plain).unwrap().len(), plain.len() + OVERHEAD);
    }

    #[test]
    fn what_was_sealed_before_opens_through_a_rotation_and_resealed_it_opens_with_the_new_key_alone() {
        let mut keys = vec![ClusterKey::generate().unwrap()];
        for _ in 0..3 {
            keys.push(keys.last().unwrap().stepped().unwrap().1);
        }
        let [one, added, used, dropped] = [0, 1, 2, 3].map(|step| Vault::new(&keys[step]));
        let digest = one.digest(b"a key");
        let ticket = one.make_ticket_key().unwrap();
        // Of each format.
        for writer in [&one, &added] {
            let sealed = writer.seal_content(&digest, b"a key").unwrap();
            for vault in [&one, &added, &used] {
                assert_eq!(vault.open_content(&digest, &sealed).as_deref(), Some(&b"a key"[..]));
            }
            assert_eq!(dropped.open_content(&digest, &sealed), None);
            assert!(!one.is_stale(&sealed) && !added.is_stale(&sealed) && used.is_stale(&sealed));
            assert_eq!(dropped.reseal_content(&digest, &sealed).unwrap(), None);
            let anew = used.reseal_content(&digest, &sealed).unwrap().unwrap();
            assert!(dropped.is_stale(&sealed));
            assert!(!used.is_stale(&anew) && !dropped.is_stale(&anew) && one.is_stale(&anew));
            for vault in [&added, &used, &dropped] {
                assert_eq!(vault.digest(b"a key"), digest, "equal content keeps its name");
                assert_eq!(vault.open_content(&digest, &anew).as_deref(), Some(&b"a key"[..]));
            }
            assert_eq!(one.open_content(&digest, &anew), None);
        }
        let anew = used.reseal_ticket_key(&ticket).unwrap().unwrap();
        assert_eq!(dropped.open_ticket_key(&anew), one.open_ticket_key(&ticket));
        assert!(dropped.open_ticket_key(&anew).is_some());
        assert_eq!(used.open_content(&digest, &ticket), None);
    }

    #[test]
    fn nothing_opens_in_the_place_of_something_else() {
        let vault = vault();
        let (a, b) = (vault.digest(b"a"), vault.digest(b"b"));
        let sealed = vault.seal_content(&a, b"a").unwrap();
        assert_eq!(vault.open_content(&b, &sealed), None);
        assert_eq!(vault.open_ticket_key(&sealed), None);
        let key = vault.make_ticket_key().unwrap();
        assert!(vault.open_ticket_key(&key).is_some());
        assert_eq!(vault.open_content(&a, &key), None);
    }

    proptest::proptest! {
        #[test]
        fn damaged_and_foreign_bytes_do_not_open(
            junk in proptest::collection::vec(proptest::num::u8::ANY, 0..100),
            at in proptest::num::usize::ANY,
            change in 1u8..,
        ) {
            let vault = vault();
            let digest = vault.digest(&junk);
            proptest::prop_assert_eq!(vault.open_content(&digest, &Sealed(junk.clone().into())), None);
            let mut sealed = vault.seal_content(&digest, &junk).unwrap().0.to_vec();
            let at = at % sealed.len();
            sealed[at] ^= change;
            proptest::prop_assert_eq!(vault.open_content(&digest, &Sealed(sealed.into())), None);
        }
    }
}
