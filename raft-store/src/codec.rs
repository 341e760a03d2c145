//! Values as bytes, on disk and on the wire: a format number (`u16`, little-endian), then bincode 2
//! in its serde mode.
//!
//! This is the only module that knows bincode, so that another encoding is a change of this file
//! and a new [`FORMAT`]. It keeps three promises to whoever reads bytes of a peer or a disk: bytes
//! of a format that this release does not know are an error that says so, a claimed length never
//! makes it reserve more than the limit, and bytes left over are an error, not ignored.
//!
//! Bytes of each format that was ever released stay in `testdata/` and must stay readable: a node
//! of the next release starts on the disk of the last one.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::types::Command;
use crate::{MAX_DOCUMENT, MAX_SNAPSHOT};

/// The format that this release writes, and the only one it reads.
pub const FORMAT: u16 = 1;
/// Bytes of one encoded log entry: a document with what is stored beside it, and what is around them
/// (digests, route names, author, message).
pub const MAX_ENTRY: usize = MAX_DOCUMENT + (1 << 20);
/// Bytes that [`decode`] accepts: one entry, or an append batch of smaller ones, in its request.
/// gRPC limits lie above this.
pub const MAX_MESSAGE: usize = MAX_ENTRY + (1 << 20);

const PREFIX: usize = size_of::<u16>();

#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("format {found} is not known here (this release reads format {FORMAT}); upgrade this node")]
    UnknownFormat { found: u16 },
    #[error("{len} bytes are too few to hold a format number")]
    TooShort { len: usize },
    #[error("{len} bytes exceed the limit of {limit}")]
    TooLarge { len: usize, limit: usize },
    #[error("{left} bytes are left over after the value")]
    Trailing { left: usize },
    #[error("malformed bytes: {0}")]
    Malformed(String),
    #[error("the value can't be encoded: {0}")]
    Unencodable(String),
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        std::io::Error::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// # Errors
/// Only for a type that bincode can't write (none of [`crate::types`]).
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = FORMAT.to_le_bytes().to_vec();
    bincode::serde::encode_into_std_write(value, &mut bytes, bincode::config::standard())
        .map_err(|e| CodecError::Unencodable(e.to_string()))?;
    Ok(bytes)
}

/// Reads a value of at most [`MAX_MESSAGE`] bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_within::<T, MAX_MESSAGE>(bytes)
}

/// Reads what a snapshot holds.
pub(crate) fn decode_snapshot<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    decode_within::<T, MAX_SNAPSHOT>(bytes)
}

/// Whether a command fits into a log entry. Ask before it is proposed: an entry that is too large
/// is a storage error, which stops the node that would append it.
pub fn check_size(command: &Command) -> Result<(), CodecError> {
    let len = match command {
        Command::PutConfig(put) if put.bytes() > MAX_DOCUMENT => {
            return Err(CodecError::TooLarge { len: put.bytes(), limit: MAX_DOCUMENT });
        }
        command => encode(command)?.len(),
    };
    // What Raft puts around a command in an entry: log id and enum tags.
    const FRAME: usize = 64;
    if len + FRAME > MAX_ENTRY {
        return Err(CodecError::TooLarge { len, limit: MAX_ENTRY - FRAME });
    }
    Ok(())
}

fn decode_within<T: DeserializeOwned, const LIMIT: usize>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > LIMIT {
        return Err(CodecError::TooLarge { len: bytes.len(), limit: LIMIT });
    }
    let Some((prefix, body)) = bytes.split_first_chunk::<PREFIX>() else {
        return Err(CodecError::TooShort { len: bytes.len() });
    };
    let found = u16::from_le_bytes(*prefix);
    if found != FORMAT {
        return Err(CodecError::UnknownFormat { found });
    }
    let config = bincode::config::standard().with_limit::<LIMIT>();
    let (value, read) =
        bincode::serde::decode_from_slice(body, config).map_err(|e| CodecError::Malformed(e.to_string()))?;
    match body.len() - read {
        0 => Ok(value),
        left => Err(CodecError::Trailing { left }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use std::sync::Arc;

    use crate::contents::{ContentDigest, Sealed};
    use crate::types::{Outcome, PutConfig, State};
    use crate::{MAX_CONTENT, MAX_USES, samples};

    #[test]
    fn a_value_reads_back_as_it_was_written() {
        for command in samples::commands() {
            let bytes = encode(&command).unwrap();
            assert_eq!(command, decode::<Command>(&bytes).unwrap());
        }
    }

    #[test]
    fn another_format_is_named_in_the_error() {
        let mut bytes = encode(&Outcome::Done).unwrap();
        bytes[0] = 7;
        let error = decode::<Outcome>(&bytes).unwrap_err();
        assert!(matches!(error, CodecError::UnknownFormat { found: 7 }), "{error}");
        assert!(error.to_string().contains("format 7 is not known"), "{error}");
    }

    #[test]
    fn bytes_left_over_are_an_error() {
        let mut bytes = encode(&Outcome::Revision(3)).unwrap();
        bytes.push(0);
        assert!(matches!(decode::<Outcome>(&bytes), Err(CodecError::Trailing { left: 1 })));
    }

    #[test]
    fn every_prefix_of_a_value_is_an_error() {
        let bytes = encode(&samples::state()).unwrap();
        for len in 0..bytes.len() {
            assert!(decode::<State>(&bytes[..len]).is_err(), "the first {len} bytes were accepted");
        }
    }

    #[test]
    fn a_claimed_length_beyond_the_limit_reserves_nothing() {
        // Format 1, then a byte string that claims 2^60 bytes.
        let mut bytes = FORMAT.to_le_bytes().to_vec();
        bytes.push(253);
        bytes.extend((1u64 << 60).to_le_bytes());
        assert!(matches!(decode::<String>(&bytes), Err(CodecError::Malformed(_))));
        assert!(matches!(decode::<Vec<u64>>(&bytes), Err(CodecError::Malformed(_))));
    }

    #[test]
    fn more_bytes_than_the_limit_are_refused_unread() {
        let bytes = vec![0; MAX_MESSAGE + 1];
        assert!(matches!(decode::<String>(&bytes), Err(CodecError::TooLarge { .. })));
    }

    #[test]
    fn a_command_with_the_largest_document_fits_into_an_entry() {
        check_size(&samples::put_config(&vec![b'x'; MAX_DOCUMENT], None)).unwrap();
        let error = check_size(&samples::put_config(&vec![b'x'; MAX_DOCUMENT + 1], None)).unwrap_err();
        assert!(matches!(error, CodecError::TooLarge { limit: MAX_DOCUMENT, .. }), "{error}");
    }

    #[test]
    fn the_most_and_largest_contents_fit_into_an_entry_with_their_document() {
        let content = |number: usize, bytes| {
            let mut digest = [255; 32];
            digest[..8].copy_from_slice(&number.to_le_bytes());
            (ContentDigest(digest), Sealed(Arc::from(vec![255; bytes])))
        };
        let put = |document: usize, contents: Vec<(ContentDigest, Sealed)>| {
            let Command::PutConfig(put) = samples::put_config(&vec![b'x'; document], None) else {
                unreachable!()
            };
            let uses = contents.iter().map(|(digest, _)| *digest).collect();
            Command::PutConfig(PutConfig { uses, contents, ..put })
        };
        let many = (0..MAX_USES).map(|number| content(number, MAX_DOCUMENT / MAX_USES)).collect();
        check_size(&put(0, many)).unwrap();
        let large = || vec![content(0, MAX_CONTENT)];
        check_size(&put(MAX_DOCUMENT - MAX_CONTENT, large())).unwrap();
        let error = check_size(&put(MAX_DOCUMENT - MAX_CONTENT + 1, large())).unwrap_err();
        assert!(matches!(error, CodecError::TooLarge { limit: MAX_DOCUMENT, .. }), "{error}");
    }

    proptest! {
        #[test]
        fn bytes_of_a_stranger_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode::<Command>(&bytes);
            let mut framed = FORMAT.to_le_bytes().to_vec();
            framed.append(&mut bytes);
            let _ = decode::<Command>(&framed);
            let _ = decode::<State>(&framed);
            let _ = decode::<crate::LogEntry>(&framed);
        }
    }
}
