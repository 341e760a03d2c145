//! What rules compute for one request: `TX` and its kin.

use std::collections::BTreeSet;

use ahash::AHashMap;

/// Variables of one request, at most; and bytes of one of them.
const VARIABLES_MAX: usize = 4_096;
const BYTES_MAX: usize = 64 << 10;

/// Names begin with their collection, as `tx.name`, in lower case.
#[derive(Debug, Default)]
pub(crate) struct Variables(AHashMap<Box<[u8]>, Vec<u8>>);

impl Variables {
    pub(crate) fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    pub(crate) fn set(&mut self, name: &[u8], mut value: Vec<u8>) {
        value.truncate(BYTES_MAX);
        if let Some(known) = self.0.get_mut(name) {
            *known = value;
        } else if self.0.len() < VARIABLES_MAX {
            // Only a request that makes rules count thousands of things has more.
            self.0.insert(name.into(), value);
        }
    }

    pub(crate) fn unset(&mut self, name: &[u8]) {
        self.0.remove(name);
    }

    /// Names without their collection, sorted.
    pub(crate) fn of(&self, prefix: &str) -> BTreeSet<Vec<u8>> {
        let names = self.0.keys().filter_map(|name| name.strip_prefix(prefix.as_bytes()));
        names.map(<[u8]>::to_vec).collect()
    }

    /// For the next request, whose memory need not be asked for again.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}
