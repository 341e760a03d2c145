//! Entries for fuzzers, with what must hold of any bytes. Their corpora are replayed as tests.

use crate::l4::sni;
use crate::proxy_protocol::HEADER_MAX;
use crate::proxy_protocol::parse::{Parsed, parse};

/// A header of the PROXY protocol: more bytes never change what fewer have told, and nothing behind its end
/// counts.
pub fn proxy_protocol(data: &[u8]) {
    let whole = parse(data);
    let mut cut = 0;
    while cut < data.len().min(HEADER_MAX) {
        match parse(&data[..cut]) {
            Ok(Parsed::Partial { .. }) => {}
            // It was told early, and stays so.
            early => {
                assert_eq!(early, whole, "after {cut} bytes");
                break;
            }
        }
        cut += 1 + cut / 64;
    }
    if let Ok(Parsed::Whole { length, header }) = &whole {
        assert!(*length <= data.len() && *length <= HEADER_MAX, "{length} bytes");
        assert!(header.tlvs.0.len() <= *length);
        let alone = parse(&data[..*length]);
        assert_eq!(alone, whole, "without what follows");
    }
}

/// The beginning of a connection of TLS: more bytes never change what fewer have told, and a name can be looked
/// up as it is.
pub fn client_hello(data: &[u8]) {
    let whole = sni::parse(data);
    let mut cut = 0;
    while cut < data.len() {
        match sni::parse(&data[..cut]) {
            Ok(sni::Parsed::Partial) => {}
            early => {
                assert_eq!(early, whole, "after {cut} bytes");
                break;
            }
        }
        cut += 1 + cut / 64;
    }
    if let Ok(sni::Parsed::Hello(sni::Hello { name: Some(name), .. })) = &whole {
        assert!((1..=253).contains(&name.len()), "{name}");
        assert!(name.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase()), "{name}");
    }
}

/// Both sides of a control connection of FTP: a byte for the setting, then pieces, each with a byte for who speaks
/// and how long.
pub fn ftp(data: &[u8]) {
    crate::l4::ftp::fuzz::any_bytes(data);
}

/// A rule file, and behind a NUL the values of a request, one a line.
pub fn rules(data: &[u8]) {
    trestle_seclang::any_bytes(data);
}

/// A head of HTTP/1 and the chunked body behind it, however they are cut.
pub fn http1(data: &[u8]) {
    crate::l7::head::any_bytes(data);
}

/// A body before the web application firewall, all rules on: a byte for how it is read, and then the body.
pub fn waf(data: &[u8]) {
    crate::waf::any_bytes(data);
}

/// The head of a file of the cache on disk: any bytes are read or refused, and what is read is written the same.
pub fn cache_head(data: &[u8]) {
    crate::cache::disk::head::any_bytes(data);
}
