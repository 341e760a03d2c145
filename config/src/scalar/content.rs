//! What stands for the contents of a file.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Parsed, hostname};
use crate::model::{Content, Digest};
use crate::problem::{Fault, shown};

/// What is stored is named by this and its digest.
const STORED: &str = "stored:";

/// A path, or what was stored of a file.
pub(crate) fn file(text: &str) -> Parsed<Content> {
    if let Some(digest) = text.strip_prefix(STORED) {
        return stored(digest);
    }
    if text.starts_with("-----BEGIN") {
        return Err(Fault::new("expected the path of a file, not what is in it")
            .help("a certificate may stand in the document under `chain` and `key`"));
    }
    if text.is_empty() || text.contains('\0') || text.ends_with('/') {
        return Err(Fault::new(format!("{} is no path of a file", shown(text))));
    }
    Ok(Content::File(PathBuf::from(text)))
}

/// PEM text, or what was stored of it.
pub(crate) fn pem(text: &str) -> Parsed<Content> {
    if let Some(digest) = text.strip_prefix(STORED) {
        return stored(digest);
    }
    if !text.contains("-----BEGIN ") {
        // Not shown: it may be a key.
        return Err(Fault::new("this is no PEM text, which begins with `-----BEGIN`")
            .help("a file is named under `chain_file` or `key_file`"));
    }
    Ok(Content::Inline(Arc::from(text)))
}

fn stored(digest: &str) -> Parsed<Content> {
    Digest::parse(digest).map(Content::Stored).ok_or_else(|| {
        Fault::new(format!("{} is no digest", shown(digest)))
            .help("64 digits and letters from a to f, as `trestle get` prints them")
    })
}

/// A host name or an address, as a certificate has it.
pub(crate) fn server_name(text: &str) -> Parsed<String> {
    if text.parse::<std::net::IpAddr>().is_err() {
        hostname(text)?;
    }
    Ok(text.to_owned())
}

/// The name of a protocol in a TLS handshake (RFC 7301, section 3.1).
pub(crate) fn alpn(text: &str) -> Parsed<String> {
    if text.is_empty() || text.len() > 255 {
        return Err(Fault::new("the name of a protocol has 1 to 255 bytes"));
    }
    if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic()) {
        return Err(Fault::new(format!("{odd:?} is in no name of a protocol"))
            .help("such as `h2`, `http/1.1`, `imap` or `dot`"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_have_short_names_without_blanks() {
        for text in ["h2", "http/1.1", "dot", "x-amzn-mqtt-ca"] {
            assert_eq!(alpn(text).unwrap(), text);
        }
        for text in ["", "a b", "é", &"x".repeat(256)] {
            assert!(alpn(text).is_err(), "{text}");
        }
    }

    #[test]
    fn files_texts_and_what_is_stored_are_told_apart() {
        let digest = "0f".repeat(32);
        let stored = Content::Stored(Digest::parse(&digest).unwrap());
        assert_eq!(file(&format!("stored:{digest}")).unwrap(), stored);
        assert_eq!(pem(&format!("stored:{digest}")).unwrap(), stored);
        assert_eq!(stored.to_string(), format!("stored:{digest}"));
        assert_eq!(file("a/b.pem").unwrap(), Content::File("a/b.pem".into()));
        for text in ["", "a/", "stored:xyz", "stored:", "-----BEGIN CERTIFICATE-----"] {
            assert!(file(text).is_err(), "{text}");
        }
        for text in ["a.pem", "", "stored:0F"] {
            assert!(pem(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_may_be_a_key_is_not_shown() {
        assert!(!pem("MIIEvQIBADANBgkqhkiG9w").unwrap_err().message.contains("MIIE"));
    }

    #[test]
    fn server_names_are_names_or_addresses() {
        for text in ["example.com", "192.0.2.1", "2001:db8::1"] {
            assert_eq!(server_name(text).unwrap(), text);
        }
        for text in ["", "a b", "example.com:443", "*.example.com"] {
            assert!(server_name(text).is_err(), "{text}");
        }
    }
}
