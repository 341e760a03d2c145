//! Authorities and certificates of a test's own, as PEM files.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Signs certificates.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Writes `NAME.pem`.
    pub fn write(&self, dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(format!("{name}.pem"));
        std::fs::write(&path, &self.pem).expect("the test's folder is writable");
        path
    }

    /// Writes `NAME.pem` and `NAME.key`, for these DNS names and addresses.
    pub fn issue(&self, dir: &Path, name: &str, names: &[&str]) -> [PathBuf; 2] {
        let all: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = CertificateParams::new(all).expect("names");
        let key = KeyPair::generate().expect("a key");
        let chain = params.signed_by(&key, &self.issuer).expect("signed").pem();
        let paths = ["pem", "key"].map(|kind| dir.join(format!("{name}.{kind}")));
        std::fs::write(&paths[0], chain).expect("the test's folder is writable");
        std::fs::write(&paths[1], key.serialize_pem()).expect("the test's folder is writable");
        paths
    }
}
