//! The cache of responses, as a document has it.

use std::time::Duration;

/// What is kept of members' responses, and what tells them apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Default: nothing is kept.
    pub on: bool,
    pub key: CacheKey,
    /// Bytes of a body. Default 16 MiB.
    pub max_object: u64,
    /// For how long after its end a response stands in for an error, unless it says otherwise itself. Default 0.
    pub stale_if_error: Duration,
    /// For how long errors about the resource are kept that say nothing of it. Default 0: they are not.
    pub negative: Duration,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            on: false,
            key: CacheKey::default(),
            max_object: 16 << 20,
            stale_if_error: Duration::ZERO,
            negative: Duration::ZERO,
        }
    }
}

/// Beside scheme, host and path.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CacheKey {
    /// Lower case.
    pub headers: Vec<String>,
    pub cookies: Vec<String>,
    pub query: CacheQuery,
}

/// Which parameters of a query count.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum CacheQuery {
    /// The query counts as it is.
    #[default]
    All,
    None,
    Only(Vec<String>),
}
