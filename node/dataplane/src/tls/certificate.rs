//! One certificate with its chain and key, as listeners show it and as we show it to members.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls::{InconsistentKeys, SignatureAlgorithm};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use trestle_config::Contents;
use trestle_config::model;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{Fault, certificates_in, ocsp};
use crate::CertificateView;

#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) settings: model::Certificate,
    pub(crate) key: Arc<CertifiedKey>,
    /// Lower case; with `*.` in front, any one label.
    pub(crate) names: Box<[Box<str>]>,
    name: Box<str>,
    subject: Box<str>,
    not_after: i64,
}

impl Certificate {
    /// # Errors
    /// The key of the config that is concerned, and what is wrong there.
    pub(crate) fn read(
        name: &str,
        settings: &model::Certificate,
        contents: &Contents,
    ) -> Result<Self, (&'static str, Fault)> {
        let chain_key = at(&settings.chain, "chain", "chain_file");
        let key_key = at(&settings.key, "key", "key_file");
        let chain = contents.get(&settings.chain).ok_or((chain_key, Fault::Missing))?;
        let chain = certificates_in(&chain).map_err(|fault| (chain_key, fault))?;
        let key = Self::read_key(settings, contents)?;
        let mut above = Vec::new();
        for (place, der) in chain.iter().enumerate().skip(1) {
            above.push(X509Certificate::from_der(der).map_err(|e| (chain_key, unreadable(place, &e)))?.1);
        }
        let (_, parsed) = X509Certificate::from_der(&chain[0]).map_err(|e| (chain_key, unreadable(0, &e)))?;
        let names = names(&parsed);
        let subject = parsed.subject().to_string().into();
        let not_after = parsed.validity().not_after.timestamp();
        let mut certified = CertifiedKey::new(chain.clone(), key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                return Err((key_key, Fault::Mismatch));
            }
            Err(other) => return Err((chain_key, Fault::Other(other))),
        }
        if let Some(ocsp) = &settings.ocsp {
            let response = contents.get(ocsp).ok_or(("ocsp_file", Fault::Missing))?;
            ocsp::look_at(&response, &parsed, &above).map_err(|fault| ("ocsp_file", fault))?;
            certified.ocsp = Some(response.into_owned());
        }
        Ok(Self {
            settings: settings.clone(),
            key: Arc::new(certified),
            names,
            name: name.into(),
            subject,
            not_after,
        })
    }

    /// The key alone.
    pub(crate) fn read_key(
        settings: &model::Certificate,
        contents: &Contents,
    ) -> Result<Arc<dyn SigningKey>, (&'static str, Fault)> {
        let place = at(&settings.key, "key", "key_file");
        let key = contents.get(&settings.key).ok_or((place, Fault::Missing))?;
        // What the reader says could quote the text, which is a key.
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| (place, Fault::NoKey))?;
        // What it is given the provider does not wipe.
        let key = Zeroizing::new(key);
        any_supported_type(&key).map_err(|e| (place, Fault::Key(e)))
    }

    /// Clients that can take both prefer these: signing costs a fraction.
    pub(crate) fn is_rsa(&self) -> bool {
        self.key.key.algorithm() == SignatureAlgorithm::RSA
    }

    pub(crate) fn view(&self) -> CertificateView {
        CertificateView {
            name: self.name.to_string(),
            names: self.names.iter().map(|name| name.to_string()).collect(),
            subject: self.subject.to_string(),
            not_after_unix: self.not_after,
        }
    }
}

/// The key of the config that has this.
fn at(content: &model::Content, inline: &'static str, file: &'static str) -> &'static str {
    match content {
        model::Content::File(_) => file,
        _ => inline,
    }
}

fn unreadable(place: usize, error: &dyn std::fmt::Display) -> Fault {
    Fault::Unreadable { place: place + 1, why: error.to_string() }
}

/// Its DNS names and addresses; the common name only where there are none (RFC 6125, section 6.4.4).
fn names(certificate: &X509Certificate<'_>) -> Box<[Box<str>]> {
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let name = |name: &GeneralName<'_>| -> Option<Box<str>> {
        match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase().into()),
            _ => None,
        }
    };
    let names: Box<[Box<str>]> =
        alternative.iter().flat_map(|names| &names.value.general_names).filter_map(name).collect();
    if !names.is_empty() {
        return names;
    }
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    common.map(|name| name.to_ascii_lowercase().into()).collect()
}
