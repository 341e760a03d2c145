//! What the tests of the data plane in processes of their own share.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use trestle_dataplane::Options;

/// Of a plane without a cache, a disk or a kernel.
pub(crate) fn options(workers: NonZeroUsize) -> Options {
    Options {
        workers,
        node: "n1".into(),
        zone: String::new(),
        secret: [7; 32],
        cookies: [7; 32].into(),
        pinned: BTreeMap::new(),
        spans: None,
        give_back: || {},
        body_memory: 1 << 20,
        cache_memory: 0,
        cache_disk: None,
        kernel_check: |_, _| Err("not in tests".to_owned()),
    }
}
