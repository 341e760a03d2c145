//! The cluster's secret file: made, written, read, and taken through a rotation.
//!
//! A file has one key, or two while they are exchanged. The *current* key mints, seals and signs; the *other*
//! one is only accepted: what it has minted, sealed or signed still counts. A rotation takes three steps, each
//! a new file that every node is restarted with before the next:
//!
//! ```text
//! One [old]  --add-->  Added [old, new]  --use-->  Used [new, old]  --drop-->  One [new]
//! ```
//!
//! Any two neighbours in this row understand each other: the current key of each is known to the other. The
//! `rotation` block tells the two in the middle apart and is bound to both keys by a code, so that a file whose
//! blocks were exchanged or joined by hand is refused. What nodes must agree on whatever key they use
//! ([`ClusterKey::seed`], [`ClusterKey::digest_key`]) is carried along in a block of its own; without one it
//! follows from the only key.

use std::fmt;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::pem::{Secret, block, blocks};
use super::single::Single;

const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";
const GOSSIP: &str = "TRESTLE GOSSIP KEY";
const SEEDS: &str = "TRESTLE SEEDS";
const ROTATION: &str = "TRESTLE ROTATION";
/// A key file is under 3 KiB; what is far larger is some other file.
const MAX_FILE: usize = 64 << 10;
/// Of the rotation block.
const FORMAT: u8 = 1;
/// First and last year of every certificate: they never end, see [`super::tls`].
pub(super) const YEARS: (i32, i32) = (1970, 9999);

const COOKIE_LABEL: &[u8] = b"trestle sticky cookie";
const DIGEST_LABEL: &[u8] = b"trestle content digest";
const SEAL_LABEL: &[u8] = b"trestle content seal";

/// The secret that makes machines one cluster: one key, or two while they are exchanged. Cheap to clone. The
/// last one wipes what it holds.
#[derive(Clone)]
pub struct ClusterKey {
    current: Arc<Single>,
    /// With what it is to the current one.
    other: Option<(Other, Arc<Single>)>,
    /// `None`: it follows from the only key.
    seeds: Option<Arc<Seeds>>,
}

/// Seed, then key of digests.
type Seeds = Zeroizing<[u8; 64]>;

/// What the second key in a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Other {
    /// It is to be the current one.
    New = 1,
    /// It was.
    Old = 2,
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// There is one key.
    One,
    /// A new key is accepted, the old one in use.
    Added,
    /// The new key is in use, the old one accepted.
    Used,
}

/// What makes of a file the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Add,
    Use,
    Drop,
}

/// Fingerprint of a key's authority: no secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; KeyId::BYTES]);

/// Something of the current key, and of the other while there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Both<T> {
    pub current: T,
    pub other: Option<T>,
}

/// Why a key file can't be used. Never says what is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the key file has no {0} block: was it written by `trestle keygen`?")]
    Missing(&'static str),
    #[error("the key file has two {0} blocks")]
    Twice(&'static str),
    #[error(
        "the key file has two keys, but no {ROTATION} block says which is in use: only `trestle key rotate` puts two into one"
    )]
    Joined,
    #[error(
        "the {ROTATION} block of the key file is not of the keys in it, in this order: only `trestle key rotate` changes a file with two"
    )]
    Exchanged,
    #[error("the key file is not a key file: {0} bytes")]
    TooLarge(usize),
    #[error("the key file is damaged: {0}")]
    Damaged(String),
    #[error("the certificate in the key file does not belong to the private key in it")]
    Mismatch,
    #[error("a certificate can't be made: {0}")]
    Mint(#[from] rcgen::Error),
    #[error("TLS can't be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl ClusterKey {
    /// A new secret from the system's random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self { current: Arc::new(Single::generate()?), other: None, seeds: None })
    }

    pub fn stage(&self) -> Stage {
        match self.other {
            None => Stage::One,
            Some((Other::New, _)) => Stage::Added,
            Some((Other::Old, _)) => Stage::Used,
        }
    }

    /// Whether there was ever another key than this one, or is.
    pub(crate) fn was_exchanged(&self) -> bool {
        self.seeds.is_some()
    }

    /// The secret after the next step of its rotation.
    ///
    /// # Errors
    /// There are no random numbers for a new key.
    pub fn stepped(&self) -> Result<(Step, Self), KeyError> {
        let seeds = Some(Arc::new(self.seeds()));
        let current = self.current.clone();
        Ok(match &self.other {
            None => {
                let other = Some((Other::New, Arc::new(Single::generate()?)));
                (Step::Add, Self { current, other, seeds })
            }
            Some((Other::New, new)) => {
                (Step::Use, Self { current: new.clone(), other: Some((Other::Old, current)), seeds })
            }
            Some((Other::Old, _)) => (Step::Drop, Self { current, other: None, seeds }),
        })
    }

    /// The secret file's text: keep it readable by the node's user only.
    pub fn to_pem(&self) -> Zeroizing<String> {
        const HEAD: &str = "# A Trestle cluster's secret. Whoever holds this file can join the cluster and read its config.\n";
        // Joined at once: a text that grows leaves pieces behind.
        let mut parts = vec![Zeroizing::new(HEAD.to_owned())];
        if let Some((role, other)) = &self.other {
            let (now, then) = match role {
                Other::New => ("old", "new"),
                Other::Old => ("new", "old"),
            };
            let (current, other) = (self.current.id(), other.id());
            let told = format!(
                "# Two keys: {current} ({now}) is in use, {other} ({then}) is accepted. `trestle key rotate` goes on.\n"
            );
            parts.push(Zeroizing::new(told));
        }
        for key in self.keys() {
            parts.push(block(CERTIFICATE, key.ca()));
            parts.push(Zeroizing::new(key.ca_key_pem().to_owned()));
            parts.push(block(GOSSIP, key.gossip().as_slice()));
        }
        if let Some(seeds) = &self.seeds {
            parts.push(block(SEEDS, seeds.as_slice()));
        }
        if let Some((role, _)) = &self.other {
            let code = self.code(*role);
            parts.push(block(ROTATION, &[&[FORMAT, *role as u8][..], code.as_slice()].concat()));
        }
        let parts: Vec<&str> = parts.iter().map(|part| part.as_str()).collect();
        Zeroizing::new(parts.concat())
    }

    /// Reads what [`ClusterKey::to_pem`] wrote. Other blocks are refused, not skipped: a file with
    /// two keys that nobody put in an order is a mistake that should not start a node.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        if text.len() > MAX_FILE {
            return Err(KeyError::TooLarge(text.len()));
        }
        let mut found = blocks(text, &[CERTIFICATE, PRIVATE_KEY, GOSSIP, SEEDS, ROTATION])?;
        let mut of = |label: &'static str| -> Vec<Secret> {
            found.extract_if(.., |(is, _)| *is == label).map(|(_, bytes)| bytes).collect()
        };
        let (gossip, ca, private) = (of(GOSSIP), of(CERTIFICATE), of(PRIVATE_KEY));
        let (seeds, rotation) = (at_most_one(of(SEEDS), SEEDS)?, at_most_one(of(ROTATION), ROTATION)?);
        let parts = [(GOSSIP, &gossip), (CERTIFICATE, &ca), (PRIVATE_KEY, &private)];
        for (label, blocks) in parts {
            let fewest = parts.iter().map(|(_, blocks)| blocks.len()).min().unwrap_or(0);
            match blocks.len() {
                0 => return Err(KeyError::Missing(label)),
                2 if fewest == 2 => {}
                1 => {}
                _ => return Err(KeyError::Twice(label)),
            }
        }
        let mut keys = Vec::with_capacity(2);
        for ((ca, private), gossip) in ca.iter().zip(&private).zip(&gossip) {
            keys.push(Arc::new(Single::of(ca, private, exact(GOSSIP, gossip)?)?));
        }
        let seeds = seeds.map(|seeds| exact(SEEDS, &seeds)).transpose()?.map(Arc::new);
        let mut keys = keys.into_iter();
        let current = keys.next().ok_or(KeyError::Missing(CERTIFICATE))?;
        match (keys.next(), rotation) {
            (None, None) => Ok(Self { current, other: None, seeds }),
            (None, Some(_)) => Err(KeyError::Damaged(format!("it has a {ROTATION} block, but a single key"))),
            (Some(_), None) => Err(KeyError::Joined),
            (Some(other), Some(rotation)) => {
                let seeds = Some(seeds.ok_or(KeyError::Missing(SEEDS))?);
                let rotation: Zeroizing<[u8; 34]> = exact(ROTATION, &rotation)?;
                let role = match rotation[..2] {
                    [FORMAT, 1] => Other::New,
                    [FORMAT, 2] => Other::Old,
                    _ => return Err(KeyError::Damaged(format!("{ROTATION} is of a newer release"))),
                };
                let key = Self { current, other: Some((role, other)), seeds };
                if key.code(role).as_slice() == &rotation[2..] { Ok(key) } else { Err(KeyError::Exchanged) }
            }
        }
    }

    /// Of all that a file with two keys says: that they are these, in this order.
    fn code(&self, role: Other) -> Zeroizing<[u8; 32]> {
        let seeds = self.seeds();
        let mut said = Sha256::new_with_prefix([role as u8]).chain_update(seeds.as_slice());
        for key in self.keys() {
            // Of fixed length each: nothing can be moved from one into the next.
            said.update(Sha256::digest(key.ca()));
            said.update(Sha256::digest(key.gossip().as_slice()));
        }
        let said: [u8; 32] = said.finalize().into();
        self.current.derived(&[&b"trestle rotation"[..], &said].concat())
    }

    /// The keys that seal gossip datagrams.
    pub fn gossip_keys(&self) -> Both<Zeroizing<[u8; 32]>> {
        self.both(|key| key.gossip().clone())
    }

    /// What cookies that keep clients at their member are made with.
    pub fn cookie_keys(&self) -> Both<Zeroizing<[u8; 32]>> {
        self.both(|key| key.derived(COOKIE_LABEL))
    }

    /// What seals contents and keys of session tickets at rest, with the ids by which it is told.
    pub(crate) fn seal_keys(&self) -> Both<(KeyId, Zeroizing<[u8; 32]>)> {
        self.both(|key| (key.id(), key.derived(SEAL_LABEL)))
    }

    /// What nodes place clients by, equal on all of them: it stays through rotations.
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        self.half_of_seeds(0)
    }

    /// What names contents: it stays too, so that equal content keeps its name.
    pub(crate) fn digest_key(&self) -> Zeroizing<[u8; 32]> {
        self.half_of_seeds(1)
    }

    /// Fingerprint of what stays, to tell whether nodes agree on it.
    pub fn seeds_id(&self) -> KeyId {
        let digest: [u8; 32] = Sha256::digest(self.seeds().as_slice()).into();
        KeyId::first_of(&digest)
    }

    fn half_of_seeds(&self, half: usize) -> Zeroizing<[u8; 32]> {
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(&self.seeds()[32 * half..][..32]);
        key
    }

    fn seeds(&self) -> Seeds {
        if let Some(seeds) = &self.seeds {
            return Seeds::clone(seeds);
        }
        let mut seeds = Zeroizing::new([0; 64]);
        seeds[..32].copy_from_slice(self.current.derived(COOKIE_LABEL).as_slice());
        seeds[32..].copy_from_slice(self.current.derived(DIGEST_LABEL).as_slice());
        seeds
    }

    /// Fingerprint of the current key, for logs: equal on all nodes of a cluster but while keys are exchanged.
    pub fn id(&self) -> KeyId {
        self.current.id()
    }

    pub fn ids(&self) -> Both<KeyId> {
        self.both(Single::id)
    }

    /// The authorities whose certificates count.
    pub(super) fn authorities(&self) -> Both<CertificateDer<'static>> {
        self.both(|key| key.ca().clone())
    }

    pub(super) fn current(&self) -> &Single {
        &self.current
    }

    fn keys(&self) -> impl Iterator<Item = &Single> {
        std::iter::once(&self.current).chain(self.other.as_ref().map(|(_, other)| other)).map(AsRef::as_ref)
    }

    fn both<T>(&self, of: impl Fn(&Single) -> T) -> Both<T> {
        Both { current: of(&self.current), other: self.other.as_ref().map(|(_, other)| of(other)) }
    }
}

impl<T> Both<T> {
    /// The current one first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.current).chain(&self.other)
    }

    pub fn map<U>(self, mut to: impl FnMut(T) -> U) -> Both<U> {
        Both { current: to(self.current), other: self.other.map(to) }
    }
}

impl<T> From<T> for Both<T> {
    fn from(current: T) -> Self {
        Self { current, other: None }
    }
}

impl KeyId {
    pub(crate) const BYTES: usize = 6;

    pub(super) fn first_of(digest: &[u8; 32]) -> Self {
        let mut id = [0; Self::BYTES];
        id.copy_from_slice(&digest[..Self::BYTES]);
        Self(id)
    }

    pub(crate) fn bytes(self) -> [u8; Self::BYTES] {
        self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let other = self.ids().other;
        f.debug_struct("ClusterKey").field("id", &self.id()).field("other", &other).finish_non_exhaustive()
    }
}

fn at_most_one(mut blocks: Vec<Secret>, label: &'static str) -> Result<Option<Secret>, KeyError> {
    if blocks.len() > 1 { Err(KeyError::Twice(label)) } else { Ok(blocks.pop()) }
}

fn exact<const N: usize>(label: &'static str, bytes: &[u8]) -> Result<Zeroizing<[u8; N]>, KeyError> {
    let right = <[u8; N]>::try_from(bytes).map(Zeroizing::new);
    right.map_err(|_| KeyError::Damaged(format!("{label} has {} bytes, {N} are right", bytes.len())))
}

#[cfg(test)]
mod tests;
