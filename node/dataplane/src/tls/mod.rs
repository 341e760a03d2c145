//! TLS on both sides: certificates, what a listener shows and asks for, session tickets, members.
//!
//! All of it is compiled with a revision ([`Certificates`], [`server::Terminator`], [`upstream::Origination`])
//! and immutable afterwards, but for the keys of session tickets: those change on their own, in
//! [`tickets::Ring`].
//!
//! Versions and suites are those of rustls with aws-lc-rs: TLS 1.3 and 1.2, ECDHE and AEADs only, which is
//! what Mozilla calls intermediate but for DHE.

pub(crate) mod accept;
pub(crate) mod certificate;
pub(crate) mod failure;
mod ocsp;
pub(crate) mod server;
pub(crate) mod session;
pub(crate) mod tickets;
pub(crate) mod upstream;

use std::collections::BTreeMap;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use trestle_config::model::{self, Content};
use trestle_config::{Config, Contents};
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

use crate::CertificateView;
use certificate::Certificate;
use server::Terminator;
use tickets::Ring;
use upstream::Origination;

/// Why something of a document can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("what it names is not stored here")]
    Missing,
    #[error("there is no certificate in it: PEM with `-----BEGIN CERTIFICATE-----` is expected")]
    NoCertificate,
    #[error("there is no private key in it: PEM with `-----BEGIN PRIVATE KEY-----` is expected")]
    NoKey,
    #[error("the private key can't be used: {0}")]
    Key(rustls::Error),
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    #[error("certificate {place} can't be read: {why}")]
    Unreadable { place: usize, why: String },
    #[error(
        "certificate {place} ({subject}) is no authority (CA:TRUE is not among its basic constraints), so nothing \
         can be checked by it: expected the certificate of whoever has issued it"
    )]
    NoAuthority { place: usize, subject: String },
    #[error("this is no OCSP response: DER is expected, as `openssl ocsp -respout` writes it")]
    NoOcsp,
    #[error("the responder did not answer with a status but with an error ({0}): nothing can be stapled")]
    OcspError(&'static str),
    #[error(
        "the OCSP response does not belong to the certificate: it is for another certificate, of serial {found}; this \
         one has {own}"
    )]
    OcspOfOther { found: String, own: String },
    #[error(
        "the OCSP response does not belong to the certificate: it is for a certificate of another authority with the \
         same serial"
    )]
    OcspOfOtherAuthority,
    #[error("no PEM: {0}")]
    Pem(rustls_pki_types::pem::Error),
    #[error("{0}")]
    Authorities(String),
    #[error("{0}")]
    Other(#[from] rustls::Error),
}

/// Says of a valid document what is wrong with what it takes from files: paths in it, with what is wrong
/// there. `contents` has all that is stored.
pub fn check(config: &Config, contents: &Contents) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut certificates = BTreeMap::new();
    for (name, settings) in &config.certificates {
        match Certificate::read(name, settings, contents) {
            Ok(certificate) => {
                certificates.insert(name.clone(), Arc::new(certificate));
            }
            Err((key, fault)) => {
                let chain_only = key.starts_with("chain");
                found.push((format!("certificates.{name}.{key}"), fault.to_string()));
                if chain_only && let Err((key, fault)) = Certificate::read_key(settings, contents) {
                    found.push((format!("certificates.{name}.{key}"), fault.to_string()));
                }
            }
        }
    }
    let certificates = Certificates(certificates);
    let ring = Arc::new(Ring::default());
    for (name, listener) in &config.listeners {
        let Some(tls) = &listener.tls else { continue };
        if let Some(Err(fault)) = tls.client.ca.as_ref().map(|ca| look_at_authorities(ca, contents)) {
            found.push((format!("listeners.{name}.tls.client.ca_file"), fault.to_string()));
        } else if tls.certificates.iter().all(|name| certificates.0.contains_key(name))
            && let Err(fault) = Terminator::compile(name, tls, &certificates, contents, &ring)
        {
            found.push((format!("listeners.{name}.tls"), fault.to_string()));
        }
    }
    for (name, pool) in &config.pools {
        let Some(tls) = &pool.tls else { continue };
        if tls.certificate.as_ref().is_some_and(|name| !certificates.0.contains_key(name)) {
            continue; // it was said what is wrong with that
        }
        let looked = tls.ca.as_ref().map_or(Ok(()), |ca| look_at_authorities(ca, contents));
        let compiled = Origination::compile(pool.protocol, tls, &certificates, contents, None);
        if let Err(fault) = looked.and(compiled.map(drop)) {
            let key = if tls.ca.is_some() { ".ca_file" } else { "" };
            found.push((format!("pools.{name}.tls{key}"), fault.to_string()));
        }
    }
    found
}

/// The certificates of a revision, by name. One that can't be read is left out; [`check`] refuses it before
/// it becomes part of a revision.
#[derive(Debug, Default)]
pub(crate) struct Certificates(BTreeMap<String, Arc<Certificate>>);

impl Certificates {
    /// Those that are as they were in `previous` are not read again.
    pub(crate) fn compile(config: &Config, contents: &Contents, previous: Option<&Certificates>) -> Self {
        let mut certificates = BTreeMap::new();
        for (name, settings) in &config.certificates {
            let known = previous.and_then(|previous| previous.0.get(name));
            if let Some(known) = known.filter(|known| known.settings == *settings) {
                certificates.insert(name.clone(), Arc::clone(known));
                continue;
            }
            match without_bad_staple(name, settings, contents) {
                Ok(certificate) => {
                    certificates.insert(name.clone(), Arc::new(certificate));
                }
                Err((key, error)) => {
                    tracing::error!(certificate = name, key, %error, "certificate can't be used");
                }
            }
        }
        Self(certificates)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Certificate>> {
        self.0.get(name)
    }

    pub(crate) fn views(&self) -> Vec<CertificateView> {
        self.0.values().map(|certificate| certificate.view()).collect()
    }
}

/// An earlier version has let more be stapled than [`check`] does, and clients can do without.
fn without_bad_staple(
    name: &str,
    settings: &model::Certificate,
    contents: &Contents,
) -> Result<Certificate, (&'static str, Fault)> {
    let read = Certificate::read(name, settings, contents);
    let Err(("ocsp_file", error)) = &read else { return read };
    tracing::warn!(certificate = name, %error, "certificate is shown without its OCSP response");
    let bare = model::Certificate { ocsp: None, ..settings.clone() };
    let mut certificate = Certificate::read(name, &bare, contents)?;
    certificate.settings = settings.clone();
    Ok(certificate)
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::LazyLock<Arc<CryptoProvider>> =
        std::sync::LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    Arc::clone(&PROVIDER)
}

/// The authorities in a PEM text.
fn authorities(content: &Content, contents: &Contents) -> Result<RootCertStore, Fault> {
    let bytes = contents.get(content).ok_or(Fault::Missing)?;
    let mut roots = RootCertStore::empty();
    for (at, certificate) in certificates_in(&bytes)?.into_iter().enumerate() {
        roots
            .add(certificate)
            .map_err(|error| Fault::Unreadable { place: at + 1, why: error.to_string() })?;
    }
    Ok(roots)
}

/// Says more than [`authorities`], which has to go on reading what an earlier version has let pass.
fn look_at_authorities(content: &Content, contents: &Contents) -> Result<(), Fault> {
    authorities(content, contents)?;
    let bytes = contents.get(content).ok_or(Fault::Missing)?;
    for (at, der) in certificates_in(&bytes)?.iter().enumerate() {
        let place = at + 1;
        let (_, parsed) = X509Certificate::from_der(der)
            .map_err(|error| Fault::Unreadable { place, why: error.to_string() })?;
        // One that vouches for itself may stand for itself, whatever it says of authorities. Of version 1 there
        // is nothing that it could say.
        let is_leaf = parsed.version() == X509Version::V3 && !parsed.is_ca();
        if is_leaf && parsed.subject() != parsed.issuer() {
            return Err(Fault::NoAuthority { place, subject: parsed.subject().to_string() });
        }
    }
    Ok(())
}

fn certificates_in(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(Fault::Pem)?;
    if all.is_empty() { Err(Fault::NoCertificate) } else { Ok(all) }
}
