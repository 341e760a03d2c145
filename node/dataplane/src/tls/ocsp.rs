//! OCSP responses (RFC 6960) that are stapled: whether one is a response at all, and for the certificate beside it.
//!
//! Clients refuse a handshake for a staple that they can't read, or that is of another certificate. Whether its
//! authority signed it, and how old it may be, is theirs to say. Of a response only the few fields are read that
//! name certificates.

use aws_lc_rs::digest;
use x509_parser::asn1_rs::{Any, FromDer as _};
use x509_parser::prelude::X509Certificate;

use super::Fault;

/// 1.3.6.1.5.5.7.48.1.1, id-pkix-ocsp-basic: the one kind of response there is.
const BASIC: &[u8] = b"\x2b\x06\x01\x05\x05\x07\x30\x01\x01";

const INTEGER: u32 = 2;
const OCTETS: u32 = 4;
const OID: u32 = 6;
const ENUMERATED: u32 = 10;
const SEQUENCE: u32 = 16;

/// Whose status a response tells.
struct CertId<'a> {
    hash: &'a [u8],
    issuer_name: &'a [u8],
    issuer_key: &'a [u8],
    serial: &'a [u8],
}

/// `chain`: what stands behind the certificate, with its issuer or without.
pub(super) fn look_at(
    response: &[u8],
    leaf: &X509Certificate<'_>,
    chain: &[X509Certificate<'_>],
) -> Result<(), Fault> {
    let ids = cert_ids(response)?;
    let own = trimmed(leaf.raw_serial());
    let issuers: Vec<_> =
        chain.iter().filter(|one| one.subject().as_raw() == leaf.issuer().as_raw()).collect();
    let (mut other_authority, mut other_serial) = (false, None);
    for id in &ids {
        if trimmed(id.serial) != own {
            other_serial = other_serial.or(Some(id.serial));
            continue;
        }
        let hash = algorithm(id.hash).ok_or(Fault::NoOcsp)?;
        let is_hash = |of: &[u8], expected: &[u8]| digest::digest(hash, of).as_ref() == expected;
        let has_key = |issuer: &&X509Certificate<'_>| {
            is_hash(&issuer.public_key().subject_public_key.data, id.issuer_key)
        };
        let key_fits = issuers.is_empty() || issuers.iter().any(has_key);
        if is_hash(leaf.issuer().as_raw(), id.issuer_name) && key_fits {
            return Ok(());
        }
        other_authority = true;
    }
    Err(match other_serial {
        Some(found) if !other_authority => {
            Fault::OcspOfOther { found: shown(trimmed(found)), own: shown(own) }
        }
        _ if other_authority => Fault::OcspOfOtherAuthority,
        _ => Fault::NoOcsp,
    })
}

/// Section 4.2.1.
fn cert_ids(response: &[u8]) -> Result<Vec<CertId<'_>>, Fault> {
    let (rest, response) = next(response, SEQUENCE).ok_or(Fault::NoOcsp)?;
    let (bytes, status) = next(response, ENUMERATED).ok_or(Fault::NoOcsp)?;
    let why = match *status {
        [0] if rest.is_empty() => return basic(bytes).filter(|ids| !ids.is_empty()).ok_or(Fault::NoOcsp),
        [1] => "malformedRequest",
        [2] => "internalError",
        [3] => "tryLater",
        [5] => "sigRequired",
        [6] => "unauthorized",
        _ => return Err(Fault::NoOcsp),
    };
    Err(Fault::OcspError(why))
}

/// Of what stands behind the status.
fn basic(bytes: &[u8]) -> Option<Vec<CertId<'_>>> {
    let (_, explicit) = any(bytes)?;
    let (_, bytes) = next(explicit.data, SEQUENCE)?;
    let (bytes, kind) = next(bytes, OID)?;
    let (_, basic) = next(bytes, OCTETS).filter(|_| kind == BASIC)?;
    let (_, basic) = next(basic, SEQUENCE)?;
    let (_, mut data) = next(basic, SEQUENCE)?;
    // Version (left out as a rule), who says it, and when: up to the list. None of them is a sequence itself.
    let mut responses = loop {
        let (rest, element) = any(data)?;
        data = rest;
        if element.header.is_universal() && element.tag().0 == SEQUENCE {
            break element.data;
        }
    };
    let mut ids = Vec::new();
    while !responses.is_empty() {
        let (rest, single) = next(responses, SEQUENCE)?;
        let (_, id) = next(single, SEQUENCE)?;
        let (id, hash) = next(id, SEQUENCE)?;
        let (_, hash) = next(hash, OID)?;
        let (id, issuer_name) = next(id, OCTETS)?;
        let (id, issuer_key) = next(id, OCTETS)?;
        let (_, serial) = next(id, INTEGER)?;
        ids.push(CertId { hash, issuer_name, issuer_key, serial });
        responses = rest;
    }
    Some(ids)
}

fn any(bytes: &[u8]) -> Option<(&[u8], Any<'_>)> {
    Any::from_der(bytes).ok()
}

/// What follows the element, and what is in it.
fn next(bytes: &[u8], tag: u32) -> Option<(&[u8], &[u8])> {
    let (rest, element) = any(bytes)?;
    (element.header.is_universal() && element.tag().0 == tag).then_some((rest, element.data))
}

fn algorithm(oid: &[u8]) -> Option<&'static digest::Algorithm> {
    match oid {
        b"\x2b\x0e\x03\x02\x1a" => Some(&digest::SHA1_FOR_LEGACY_USE_ONLY),
        b"\x60\x86\x48\x01\x65\x03\x04\x02\x01" => Some(&digest::SHA256),
        b"\x60\x86\x48\x01\x65\x03\x04\x02\x02" => Some(&digest::SHA384),
        b"\x60\x86\x48\x01\x65\x03\x04\x02\x03" => Some(&digest::SHA512),
        _ => None,
    }
}

/// Without the zeros before a number.
fn trimmed(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}

/// As `openssl x509 -serial` writes it.
fn shown(serial: &[u8]) -> String {
    match serial {
        [] => "0".to_owned(),
        serial => serial.iter().map(|byte| format!("{byte:02X}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    use x509_parser::prelude::FromDer;

    use super::*;
    use crate::testing::tls::{Authority, Issued};

    fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let inner = parts.concat();
        // DER wants the shortest form of a length.
        let length = match inner.len() {
            short @ ..0x80 => vec![u8::try_from(short).expect("short")],
            length @ ..0x100 => vec![0x81, u8::try_from(length).expect("short")],
            length => [&[0x82][..], &u16::try_from(length).expect("short").to_be_bytes()].concat(),
        };
        [&[tag][..], &length, &inner].concat()
    }

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")
    }

    /// Of one certificate's status; nobody looks at who has signed it.
    fn response(of: &X509Certificate<'_>, issuer: &X509Certificate<'_>, version: bool) -> Vec<u8> {
        let hash = |bytes: &[u8]| digest::digest(&digest::SHA256, bytes);
        let (name, key) = (hash(of.issuer().as_raw()), hash(&issuer.public_key().subject_public_key.data));
        let id = tlv(
            0x30,
            &[
                &tlv(0x30, &[&tlv(6, &[b"\x60\x86\x48\x01\x65\x03\x04\x02\x01"]), &tlv(5, &[])]),
                &tlv(4, &[name.as_ref()]),
                &tlv(4, &[key.as_ref()]),
                &tlv(2, &[of.raw_serial()]),
            ],
        );
        let time = tlv(0x18, &[b"20260101000000Z"]);
        let single = tlv(0x30, &[&id, &tlv(0x80, &[]), &time]);
        let told = if version { tlv(0xa0, &[&tlv(2, &[&[0]])]) } else { Vec::new() };
        let by = tlv(0xa2, &[&tlv(4, &[&[7; 20]])]);
        let data = tlv(0x30, &[&told, &by, &time, &tlv(0x30, &[&single])]);
        let algorithm = tlv(0x30, &[&tlv(6, &[b"\x2a\x86\x48\xce\x3d\x04\x03\x02"])]);
        let basic = tlv(0x30, &[&data, &algorithm, &tlv(3, &[&[0; 70]])]);
        let bytes = tlv(0x30, &[&tlv(6, &[BASIC]), &tlv(4, &[&basic])]);
        tlv(0x30, &[&tlv(10, &[&[0]]), &tlv(0xa0, &[&bytes])])
    }

    #[test]
    fn a_response_must_be_for_the_certificate() {
        let (authority, twin) = (Authority::new("root"), Authority::new("root"));
        let stranger = Authority::new("stranger");
        let [a, b]: [Issued; 2] = ["a.test", "b.test"].map(|name| authority.issue(&[name]));
        let [a, b, issuer, twin, stranger] =
            [&a.chain, &b.chain, &authority.pem, &twin.pem, &stranger.pem].map(|pem| der(pem));
        let [a, b, issuer, twin, stranger] =
            [&a, &b, &issuer, &twin, &stranger].map(|der| X509Certificate::from_der(der).expect("DER").1);
        let said = |response: &[u8], chain: &[&X509Certificate<'_>]| {
            let chain: Vec<_> = chain.iter().map(|one| (*one).clone()).collect();
            look_at(response, &a, &chain).map_err(|fault| fault.to_string()).err().unwrap_or_default()
        };
        for version in [false, true] {
            let good = response(&a, &issuer, version);
            // An authority of another name is not the one that the response speaks of.
            for chain in [&[][..], &[&issuer], &[&stranger], &[&stranger, &twin, &issuer]] {
                assert_eq!(said(&good, chain), "");
            }
            // One of the same name, with another key, is.
            assert!(said(&good, &[&twin]).contains("another authority"), "{}", said(&good, &[&twin]));
        }
        let other = said(&response(&b, &issuer, false), &[&issuer]);
        assert!(
            other.contains("another certificate") && other.contains(&shown(trimmed(b.raw_serial()))),
            "{other}"
        );
        let good = response(&a, &issuer, false);
        for cut in 0..good.len() {
            assert!(said(&good[..cut], &[]).contains("no OCSP response"), "{cut}");
        }
        assert!(said(&[&good[..], b"x"].concat(), &[]).contains("no OCSP response"));
    }

    #[test]
    fn what_is_no_response_or_a_failed_one_is_told() {
        for (response, why) in [
            (&b"\x30\x05\x0a\x01\x00\xa0\x00"[..], "no OCSP response"),
            (b"\x30\x03\x0a\x01\x03", "tryLater"),
            (b"\x30\x03\x0a\x01\x06", "unauthorized"),
            (b"\x30\x03\x0a\x01\x00", "no OCSP response"),
            (b"\x30\x05\x0a\x01\x00\xa0\x00\x00", "no OCSP response"),
            (b"\x30\x05\x0a\x01", "no OCSP response"),
            (b"-----BEGIN OCSP RESPONSE-----", "no OCSP response"),
            (b"", "no OCSP response"),
        ] {
            let fault = cert_ids(response).err().expect("refused").to_string();
            assert!(fault.contains(why), "{fault}");
        }
    }
}
