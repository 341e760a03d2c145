//! A node's claims as they are told to others, numbered change by change.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::wire::{Claim, Entry};

/// Claims that are gone and whose end is not acknowledged by everybody yet. One more forgets the oldest:
/// who has not heard it begins anew.
pub(super) const MAX_GONE: usize = 8_192;

/// Each change takes the next version, and a key stands under its last one only; so what another node
/// lacks is all that stands after the version it has.
#[derive(Debug, Default)]
pub(super) struct Log {
    version: u64,
    /// Ends have been forgotten up to this version.
    floor: u64,
    entries: HashMap<u64, Entry>,
    by_version: BTreeMap<u64, u64>,
    /// Versions of claims that are gone.
    gone: BTreeSet<u64>,
}

impl Log {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// The version of the change.
    pub(super) fn put(&mut self, key: u64, claim: Option<Claim>) -> u64 {
        self.version += 1;
        let entry = Entry { version: self.version, key, claim };
        if let Some(before) = self.entries.insert(key, entry) {
            self.by_version.remove(&before.version);
            self.gone.remove(&before.version);
        }
        self.by_version.insert(entry.version, key);
        if claim.is_none() {
            self.gone.insert(entry.version);
            while self.gone.len() > MAX_GONE {
                self.forget_oldest_gone();
            }
        }
        self.version
    }

    /// Everybody who lives has all changes up to `version`.
    pub(super) fn settled(&mut self, version: u64) {
        while self.gone.first().is_some_and(|gone| *gone <= version) {
            self.forget_oldest_gone();
        }
    }

    fn forget_oldest_gone(&mut self) {
        if let Some(version) = self.gone.pop_first()
            && let Some(key) = self.by_version.remove(&version)
        {
            self.entries.remove(&key);
            self.floor = self.floor.max(version);
        }
    }

    /// Keys whose last change lies after `from`, up to `to`.
    pub(super) fn keys(&self, from: u64, to: u64) -> impl Iterator<Item = u64> + '_ {
        let range = (from < to).then(|| self.by_version.range(from + 1..=to));
        range.into_iter().flatten().map(|(_, key)| *key)
    }

    /// Changes after `from`, as many as `room` bytes hold; and up to where they are all.
    pub(super) fn changes(&self, from: u64, room: usize) -> (Vec<Entry>, u64) {
        let (mut entries, mut bytes, mut last) = (Vec::new(), 0, from);
        for (version, key) in self.by_version.range(from + 1..) {
            let Some(entry) = self.entries.get(key) else { continue };
            bytes += entry.encoded_len(last);
            if bytes > room {
                return (entries, last);
            }
            entries.push(*entry);
            last = *version;
        }
        (entries, self.version)
    }
}
