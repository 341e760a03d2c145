//! The cluster's secret file: made, written and read.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Label of the gossip key's block. The other two blocks are standard ones.
const GOSSIP_LABEL: &str = "TRESTLE GOSSIP KEY";
/// A key file is under 2 KiB; what is far larger is some other file.
const MAX_FILE: usize = 64 << 10;
/// First and last year of every certificate: they never end, see [`super::tls`].
pub(super) const YEARS: (i32, i32) = (1970, 9999);

/// The secret that makes machines one cluster: a certificate authority and a 32-byte gossip key.
/// Cheap to clone. The last one wipes what it holds; `rcgen` and `aws-lc` keep the authority's key in forms of
/// their own.
#[derive(Clone)]
pub struct ClusterKey {
    inner: Arc<Inner>,
}

struct Inner {
    ca: CertificateDer<'static>,
    ca_key_pem: Zeroizing<String>,
    issuer: Issuer<'static, KeyPair>,
    gossip: Zeroizing<[u8; 32]>,
    id: String,
}

/// Why a key file can't be used. Never says what is in it.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the key file has no {0} block: was it written by `trestle keygen`?")]
    Missing(&'static str),
    #[error("the key file has two {0} blocks")]
    Twice(&'static str),
    #[error("the key file is not a key file: {0} bytes")]
    TooLarge(usize),
    #[error("the key file is damaged: {0}")]
    Damaged(String),
    #[error("the certificate in the key file does not belong to the private key in it")]
    Mismatch,
    #[error("a certificate can't be made: {0}")]
    Mint(#[from] rcgen::Error),
    #[error("TLS can't be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl ClusterKey {
    /// A new secret from the system's random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        let key = KeyPair::generate()?;
        let mut gossip = Zeroizing::new([0; 32]);
        rand::TryRngCore::try_fill_bytes(&mut rand::rngs::OsRng, gossip.as_mut_slice())
            .map_err(|e| KeyError::Damaged(format!("no random numbers: {e}")))?;
        let ca = ca_params(&key).self_signed(&key)?;
        Self::assemble(ca.der().clone(), key, gossip)
    }

    /// The secret file's text: keep it readable by the node's user only.
    pub fn to_pem(&self) -> Zeroizing<String> {
        const HEAD: &str = "# A Trestle cluster's secret. Whoever holds this file can join the cluster and read its config.\n";
        let ca = block("CERTIFICATE", &self.inner.ca);
        let gossip = block(GOSSIP_LABEL, self.inner.gossip.as_slice());
        // Joined at once: a text that grows leaves pieces behind.
        Zeroizing::new([HEAD, ca.as_str(), self.inner.ca_key_pem.as_str(), gossip.as_str()].concat())
    }

    /// Reads what [`ClusterKey::to_pem`] wrote. Other blocks are refused, not skipped: a file with
    /// two keys in it is a mistake that should not start a node.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        if text.len() > MAX_FILE {
            return Err(KeyError::TooLarge(text.len()));
        }
        let gossip = gossip_block(text)?;
        let mut ca = None;
        let mut key = None;
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()) {
            let (kind, der) = section.map_err(|e| KeyError::Damaged(e.to_string()))?;
            let der = Zeroizing::new(der);
            match kind {
                SectionKind::Certificate => put(&mut ca, der, "CERTIFICATE")?,
                SectionKind::PrivateKey => put(&mut key, der, "PRIVATE KEY")?,
                other => return Err(KeyError::Damaged(format!("unexpected block {other:?}"))),
            }
        }
        let ca = CertificateDer::from(ca.ok_or(KeyError::Missing("CERTIFICATE"))?.to_vec());
        let key = key.ok_or(KeyError::Missing("PRIVATE KEY"))?;
        let der = PrivatePkcs8KeyDer::from(key.as_slice());
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|e| KeyError::Damaged(format!("private key: {e}")))?;
        if public_key_of(&ca)? != key.public_key_raw() {
            return Err(KeyError::Mismatch);
        }
        Self::assemble(ca, key, gossip)
    }

    /// The key that seals gossip datagrams.
    pub fn gossip_key(&self) -> Zeroizing<[u8; 32]> {
        self.inner.gossip.clone()
    }

    /// What cookies that keep clients at their member are made with.
    pub fn cookie_key(&self) -> Zeroizing<[u8; 32]> {
        self.derived(b"trestle sticky cookie")
    }

    /// HKDF-Expand (RFC 5869, section 2.3) of the gossip key, which is random already: its first block,
    /// which is all that is needed.
    pub(crate) fn derived(&self, label: &[u8]) -> Zeroizing<[u8; 32]> {
        let secret = hmac::Key::new(HMAC_SHA256, self.inner.gossip.as_slice());
        let block = hmac::sign(&secret, &[label, &[1]].concat());
        Zeroizing::new(block.as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes"))
    }

    /// A short fingerprint of the authority, for logs: equal on all nodes of a cluster.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    pub(super) fn ca(&self) -> &CertificateDer<'static> {
        &self.inner.ca
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.inner.issuer
    }

    fn assemble(
        ca: CertificateDer<'static>,
        key: KeyPair,
        gossip: Zeroizing<[u8; 32]>,
    ) -> Result<Self, KeyError> {
        let id = fingerprint(key.public_key_raw());
        let ca_key_pem = Zeroizing::new(key.serialize_pem());
        let issuer = Issuer::from_ca_cert_der(&ca, key)?;
        Ok(Self { inner: Arc::new(Inner { ca, ca_key_pem, issuer, gossip, id }) })
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterKey").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

/// The authority's name carries its fingerprint: with another key the *issuer* is unknown, which is
/// what a person should read, rather than that some signature is bad.
fn ca_params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(YEARS.0, 1, 1);
    params.not_after = date_time_ymd(YEARS.1, 12, 31);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Trestle cluster key {}", fingerprint(key.public_key_raw())));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn fingerprint(public_key: &[u8]) -> String {
    Sha256::digest(public_key).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn public_key_of(ca: &CertificateDer<'_>) -> Result<Vec<u8>, KeyError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(ca)
        .map_err(|e| KeyError::Damaged(format!("certificate: {e}")))?;
    Ok(parsed.public_key().subject_public_key.data.to_vec())
}

type Secret = Zeroizing<Vec<u8>>;

fn put(slot: &mut Option<Secret>, value: Secret, label: &'static str) -> Result<(), KeyError> {
    if slot.replace(value).is_some() { Err(KeyError::Twice(label)) } else { Ok(()) }
}

// === the gossip key's block: a label of our own, which the PEM reader skips ===

const LINE: usize = 64;
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn block(label: &str, data: &[u8]) -> Zeroizing<String> {
    let encoded = encode(data);
    // Room for all of it: a text that grows leaves pieces behind.
    let room = encoded.len() + encoded.len() / LINE + 2 * label.len() + 64;
    let mut text = Zeroizing::new(String::with_capacity(room));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(LINE));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

fn gossip_block(text: &str) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let begin = format!("-----BEGIN {GOSSIP_LABEL}-----");
    let end = format!("-----END {GOSSIP_LABEL}-----");
    let (_, after) = text.split_once(&begin).ok_or(KeyError::Missing(GOSSIP_LABEL))?;
    let (body, tail) =
        after.split_once(&end).ok_or_else(|| KeyError::Damaged(format!("{GOSSIP_LABEL} does not end")))?;
    if tail.contains(&begin) {
        return Err(KeyError::Twice(GOSSIP_LABEL));
    }
    let bytes = decode(body).ok_or_else(|| KeyError::Damaged(format!("{GOSSIP_LABEL} is not base64")))?;
    let key = <[u8; 32]>::try_from(bytes.as_slice());
    key.map(Zeroizing::new)
        .map_err(|_| KeyError::Damaged(format!("{GOSSIP_LABEL} has {} bytes, 32 are right", bytes.len())))
}

fn encode(data: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(data.len().div_ceil(3) * 4));
    for chunk in data.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let six = (word >> (18 - 6 * place)) as usize & 63;
            text.push(if place <= chunk.len() { BASE64[six] as char } else { '=' });
        }
    }
    text
}

fn decode(text: &str) -> Option<Secret> {
    let mut symbols: Secret = Zeroizing::new(Vec::with_capacity(text.len()));
    symbols.extend(text.bytes().filter(|b| !b.is_ascii_whitespace()));
    if symbols.is_empty() || !symbols.len().is_multiple_of(4) {
        return None;
    }
    let padding = symbols.iter().rev().take_while(|b| **b == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(symbols.len() / 4 * 3));
    let digits = &symbols[..symbols.len() - padding];
    for group in digits.chunks(4) {
        let mut word = 0u32;
        for symbol in group {
            let six = BASE64.iter().position(|b| b == symbol)?;
            word = word << 6 | six as u32;
        }
        word <<= 6 * (4 - group.len());
        bytes.extend_from_slice(&word.to_be_bytes()[1..group.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::NodeIdentity;
    use super::*;

    #[test]
    fn a_key_file_reads_back_as_what_was_written() {
        let key = ClusterKey::generate().unwrap();
        let again = ClusterKey::parse(&key.to_pem()).unwrap();
        assert_eq!(again.id(), key.id());
        assert_eq!(again.gossip_key(), key.gossip_key());
        assert_eq!(again.cookie_key(), key.cookie_key());
        assert!(key.cookie_key() != key.gossip_key());
        assert_eq!(again.ca(), key.ca());
        assert_eq!(again.to_pem(), key.to_pem());
    }

    #[test]
    fn debug_prints_no_secret() {
        let key = ClusterKey::generate().unwrap();
        let shown = format!("{key:?} {:?}", NodeIdentity::joining(&key, "n").unwrap());
        assert!(shown.contains(key.id()));
        assert!(!shown.contains("PRIVATE"), "{shown}");
        // Neither as text nor as numbers.
        let text = encode(key.gossip_key().as_slice());
        let numbers = format!("{:?}", key.gossip_key());
        assert!(!shown.contains(&text[..8]) && !shown.contains(&numbers[..16]), "{shown}");
    }

    #[test]
    fn a_damaged_file_says_what_is_wrong() {
        let good = ClusterKey::generate().unwrap().to_pem().to_string();
        let other = ClusterKey::generate().unwrap().to_pem().to_string();
        let part = |text: &str, label: &str| {
            let from = text.find(&format!("-----BEGIN {label}")).unwrap();
            let end = format!("-----END {label}-----\n");
            text[from..text.find(&end).unwrap() + end.len()].to_owned()
        };
        let (cert, private, gossip) =
            (part(&good, "CERTIFICATE"), part(&good, "PRIVATE KEY"), part(&good, GOSSIP_LABEL));
        let cases = [
            (String::new(), "no TRESTLE GOSSIP KEY block"),
            (format!("{cert}{gossip}"), "no PRIVATE KEY block"),
            (format!("{private}{gossip}"), "no CERTIFICATE block"),
            (format!("{cert}{private}"), "no TRESTLE GOSSIP KEY block"),
            (format!("{good}{cert}"), "two CERTIFICATE blocks"),
            (format!("{good}{gossip}"), "two TRESTLE GOSSIP KEY blocks"),
            (format!("{}{private}{gossip}", part(&other, "CERTIFICATE")), "does not belong"),
            (good.replace(&gossip, &gossip.replace("\n-----END", "AAAA\n-----END")), "damaged"),
            ("x".repeat(MAX_FILE + 1), "not a key file"),
        ];
        for (text, expected) in cases {
            let error = ClusterKey::parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} does not say {expected:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_survive_base64(data in proptest::collection::vec(proptest::num::u8::ANY, 1..200)) {
            proptest::prop_assert_eq!(decode(&encode(&data)), Some(Zeroizing::new(data)));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = ClusterKey::parse(&text);
        }
    }
}
