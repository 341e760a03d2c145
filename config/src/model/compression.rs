//! Compression of responses, as a document has it.

/// Which of members' responses are compressed, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compression {
    /// Default: nothing is compressed.
    pub on: bool,
    /// The preferred first; none twice. Default: all of them, as in [`Algorithm::ALL`].
    pub algorithms: Vec<Algorithm>,
    /// Bytes of the shortest body. Default 1 KiB.
    pub min: u64,
    /// Lower case: `text/html`, `text/*`, `*`, or `default`. Default: `default`.
    pub types: Vec<String>,
}

impl Default for Compression {
    fn default() -> Self {
        Self {
            on: false,
            algorithms: Algorithm::ALL.to_vec(),
            min: 1 << 10,
            types: vec!["default".to_owned()],
        }
    }
}

/// A content coding (RFC 9110, section 8.4.1). Numbered as in [`Algorithm::ALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RFC 8878.
    Zstd,
    /// RFC 7932.
    Brotli,
    /// RFC 1952.
    Gzip,
}

impl Algorithm {
    /// In the order of preference.
    pub const ALL: [Self; 3] = [Self::Zstd, Self::Brotli, Self::Gzip];

    /// As HTTP calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }
}
