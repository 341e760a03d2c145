//! What documents name by digest, such as certificates and their keys.
//!
//! Bytes lie here sealed, by whoever proposed them, under a key of the cluster that this crate does not
//! know: so neither log, disk nor snapshot holds them as they are. A digest is a name that follows from
//! the plain bytes and a secret of the cluster; equal content is stored once.
//!
//! Invariant of the state: [`Contents`] holds what the kept revisions use, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::types::{PutConfig, Refusal, Revision};
use crate::{MAX_DOCUMENT, MAX_USES};

/// The name of a content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ContentDigest(pub [u8; 32]);

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Sealed bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed(#[serde(with = "crate::shared_bytes")] pub Arc<[u8]>);

impl Sealed {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sealed bytes", self.len())
    }
}

/// What is stored, by digest. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Contents(Arc<BTreeMap<ContentDigest, Sealed>>);

impl Contents {
    pub fn get(&self, digest: &ContentDigest) -> Option<&Sealed> {
        self.0.get(digest)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&ContentDigest, &Sealed)> {
        self.0.iter()
    }

    /// Those that `other` has not.
    pub(crate) fn beyond(&self, other: &Contents) -> impl Iterator<Item = (&ContentDigest, &Sealed)> {
        let other = (!Arc::ptr_eq(&self.0, &other.0)).then(|| other.0.clone());
        let all = other.is_some().then(|| self.0.iter()).into_iter().flatten();
        all.filter(move |(digest, _)| other.as_ref().is_none_or(|other| !other.contains_key(digest)))
    }

    /// Those that `other` has not, or has sealed otherwise.
    pub(crate) fn unlike<'a>(
        &'a self,
        other: &Contents,
    ) -> impl Iterator<Item = (&'a ContentDigest, &'a Sealed)> {
        let other = (!Arc::ptr_eq(&self.0, &other.0)).then(|| other.0.clone());
        let all = other.is_some().then(|| self.0.iter()).into_iter().flatten();
        let same = |a: &Sealed, b: &Sealed| Arc::ptr_eq(&a.0, &b.0) || a == b;
        all.filter(move |(digest, sealed)| {
            let there = other.as_ref().and_then(|other| other.get(digest));
            there.is_none_or(|there| !same(there, sealed))
        })
    }

    /// Puts these in the place of those with their digests.
    pub(crate) fn replace(&mut self, sealed_anew: &[(ContentDigest, Sealed)]) {
        for (digest, sealed) in sealed_anew {
            if self.get(digest).is_some() {
                self.insert(*digest, sealed.clone());
            }
        }
    }

    pub(crate) fn insert(&mut self, digest: ContentDigest, sealed: Sealed) {
        Arc::make_mut(&mut self.0).insert(digest, sealed);
    }

    fn size(&self, digest: &ContentDigest) -> usize {
        self.get(digest).map_or(0, Sealed::len)
    }

    /// Whether all that the document names is here or comes with it, and fits.
    pub(crate) fn check(&self, put: &PutConfig) -> Result<(), Refusal> {
        let sent: BTreeMap<_, _> = put.contents.iter().map(|(digest, sealed)| (digest, sealed)).collect();
        let mut bytes = put.document.len() as u64;
        for digest in &put.uses {
            let found = self.get(digest).or_else(|| sent.get(digest).copied());
            bytes += found.ok_or(Refusal::NoSuchContent(*digest))?.len() as u64;
        }
        let limit = MAX_DOCUMENT as u64;
        if bytes > limit || put.uses.len() > MAX_USES {
            return Err(Refusal::TooLarge { bytes, limit });
        }
        Ok(())
    }

    /// Takes in what comes with a document that is taken, and is named by it.
    pub(crate) fn take(&mut self, put: &PutConfig) {
        let uses: BTreeSet<_> = put.uses.iter().collect();
        for (digest, sealed) in &put.contents {
            if uses.contains(digest) && self.get(digest).is_none() {
                self.insert(*digest, sealed.clone());
            }
        }
    }

    /// How many of the newest revisions fit into `limit` bytes with what they use.
    pub(crate) fn fitting<'r>(
        &self,
        newest_first: impl Iterator<Item = &'r Arc<Revision>>,
        limit: usize,
    ) -> usize {
        let (mut bytes, mut counted) = (0, BTreeSet::new());
        let fits = newest_first.take_while(|revision| {
            let new = revision.uses.iter().filter(|digest| counted.insert(**digest));
            bytes += revision.document.len() + new.map(|digest| self.size(digest)).sum::<usize>();
            bytes <= limit
        });
        fits.count()
    }

    /// Forgets what none of these revisions uses.
    pub(crate) fn keep(&mut self, revisions: &[Arc<Revision>]) {
        let used: BTreeSet<_> = revisions.iter().flat_map(|revision| &revision.uses).collect();
        if self.0.keys().any(|digest| !used.contains(digest)) {
            Arc::make_mut(&mut self.0).retain(|digest, _| used.contains(digest));
        }
    }
}
