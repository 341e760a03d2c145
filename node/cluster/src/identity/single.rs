//! One key of the cluster: a certificate authority and 32 bytes for gossip, from which the rest is derived.

use aws_lc_rs::hmac::{self, HMAC_SHA256};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::key::{KeyError, KeyId, YEARS};

/// What it holds is wiped with it; `rcgen` and `aws-lc` keep the authority's key in forms of their own.
pub(super) struct Single {
    ca: CertificateDer<'static>,
    ca_key_pem: Zeroizing<String>,
    issuer: Issuer<'static, KeyPair>,
    gossip: Zeroizing<[u8; 32]>,
    id: KeyId,
}

impl Single {
    /// From the system's random numbers.
    pub(super) fn generate() -> Result<Self, KeyError> {
        let key = KeyPair::generate()?;
        let mut gossip = Zeroizing::new([0; 32]);
        rand::TryRngCore::try_fill_bytes(&mut rand::rngs::OsRng, gossip.as_mut_slice())
            .map_err(|e| KeyError::Damaged(format!("no random numbers: {e}")))?;
        let ca = ca_params(&key).self_signed(&key)?;
        Self::assemble(ca.der().clone(), key, gossip)
    }

    /// Of what its three blocks hold.
    pub(super) fn of(ca: &[u8], private: &[u8], gossip: Zeroizing<[u8; 32]>) -> Result<Self, KeyError> {
        let ca = CertificateDer::from(ca.to_vec());
        let der = PrivatePkcs8KeyDer::from(private);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|e| KeyError::Damaged(format!("private key: {e}")))?;
        if public_key_of(&ca)? != key.public_key_raw() {
            return Err(KeyError::Mismatch);
        }
        Self::assemble(ca, key, gossip)
    }

    fn assemble(
        ca: CertificateDer<'static>,
        key: KeyPair,
        gossip: Zeroizing<[u8; 32]>,
    ) -> Result<Self, KeyError> {
        let id = fingerprint(key.public_key_raw());
        let ca_key_pem = Zeroizing::new(key.serialize_pem());
        let issuer = Issuer::from_ca_cert_der(&ca, key)?;
        Ok(Self { ca, ca_key_pem, issuer, gossip, id })
    }

    pub(super) fn id(&self) -> KeyId {
        self.id
    }

    pub(super) fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    pub(super) fn ca_key_pem(&self) -> &str {
        &self.ca_key_pem
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    pub(super) fn gossip(&self) -> &Zeroizing<[u8; 32]> {
        &self.gossip
    }

    /// HKDF-Expand (RFC 5869, section 2.3) of the gossip key, which is random already: its first block,
    /// which is all that is needed.
    pub(super) fn derived(&self, label: &[u8]) -> Zeroizing<[u8; 32]> {
        let secret = hmac::Key::new(HMAC_SHA256, self.gossip.as_slice());
        let block = hmac::sign(&secret, &[label, &[1]].concat());
        Zeroizing::new(block.as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes"))
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

fn fingerprint(public_key: &[u8]) -> KeyId {
    let digest: [u8; 32] = Sha256::digest(public_key).into();
    KeyId::first_of(&digest)
}

fn public_key_of(ca: &CertificateDer<'_>) -> Result<Vec<u8>, KeyError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(ca)
        .map_err(|e| KeyError::Damaged(format!("certificate: {e}")))?;
    Ok(parsed.public_key().subject_public_key.data.to_vec())
}
