//! What a node's certificate says about it.
//!
//! The identity is one URI in the subject alternative names,
//! `trestle://CLUSTER/node/7`, `trestle://none/joining` or `trestle://none/operator`; the name is
//! the subject's common name. Only certificates that our verifier has accepted are read.

use std::fmt;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use trestle_raft_store::types::NodeId;
use uuid::Uuid;
use x509_parser::extensions::GeneralName;

use super::key::{ClusterKey, KeyError, YEARS};

const NO_CLUSTER: &str = "none";

/// Who is at the other end, as its verified certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// `None`: not in a cluster yet.
    pub cluster_id: Option<Uuid>,
    pub standing: Standing,
    /// For people; unique only among a cluster's members.
    pub name: String,
}

/// What the holder of a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A member under this id.
    Node(NodeId),
    /// Holds the key, wants to be let in.
    Joining,
    /// A person's command line.
    Operator,
}

impl PeerIdentity {
    /// The node id, of a member.
    pub fn node(&self) -> Option<NodeId> {
        match self.standing {
            Standing::Node(id) => Some(id),
            Standing::Joining | Standing::Operator => None,
        }
    }

    /// Reads the identity from a certificate that was verified before.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<PeerIdentity> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok()??;
        let (cluster_id, standing) = names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) => parse_uri(uri),
            _ => None,
        })?;
        let name = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
        Some(PeerIdentity { cluster_id, standing, name })
    }

    fn uri(&self) -> String {
        let cluster = self.cluster_id.map_or_else(|| NO_CLUSTER.to_owned(), |id| id.to_string());
        match self.standing {
            Standing::Node(id) => format!("trestle://{cluster}/node/{id}"),
            Standing::Joining => format!("trestle://{cluster}/joining"),
            Standing::Operator => format!("trestle://{cluster}/operator"),
        }
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.standing {
            Standing::Node(id) => write!(f, "node {id} ({})", self.name),
            Standing::Joining => write!(f, "joining node ({})", self.name),
            Standing::Operator => write!(f, "operator ({})", self.name),
        }
    }
}

fn parse_uri(uri: &str) -> Option<(Option<Uuid>, Standing)> {
    let (cluster, path) = uri.strip_prefix("trestle://")?.split_once('/')?;
    let cluster = if cluster == NO_CLUSTER { None } else { Some(Uuid::parse_str(cluster).ok()?) };
    let standing = match path.split_once('/') {
        None if path == "joining" => Standing::Joining,
        None if path == "operator" => Standing::Operator,
        Some(("node", id)) => Standing::Node(id.parse().ok()?),
        _ => return None,
    };
    Some((cluster, standing))
}

/// A fresh certificate and its private key, signed by the current key's authority. `hosts` are names
/// and addresses under which a browser may meet it (the admin API).
pub(super) fn mint(
    key: &ClusterKey,
    identity: &PeerIdentity,
    hosts: &[String],
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), KeyError> {
    let mut params = CertificateParams::new(hosts)?;
    params.not_before = date_time_ymd(YEARS.0, 1, 1);
    params.not_after = date_time_ymd(YEARS.1, 12, 31);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, identity.name.as_str());
    params.subject_alt_names.push(SanType::URI(identity.uri().try_into()?));
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let own = KeyPair::generate()?;
    let certificate = params.signed_by(&own, key.current().issuer())?;
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.serialize_der()));
    Ok((vec![certificate.der().clone(), key.current().ca().clone()], private))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_tells_who_its_holder_is() {
        let key = ClusterKey::generate().unwrap();
        let cluster_id = Some(Uuid::from_u128(7));
        for (cluster_id, standing) in [
            (cluster_id, Standing::Node(0)),
            (cluster_id, Standing::Node(u64::MAX)),
            (None, Standing::Joining),
            (None, Standing::Operator),
        ] {
            let identity = PeerIdentity { cluster_id, standing, name: "node-ä 1".to_owned() };
            let (chain, _) = mint(&key, &identity, &["localhost".to_owned()]).unwrap();
            assert_eq!(PeerIdentity::of(&chain[0]), Some(identity));
        }
    }

    #[test]
    fn a_uri_that_is_not_ours_is_nobody() {
        let uuid = Uuid::from_u128(1);
        for uri in [
            "".to_owned(),
            "https://none/joining".to_owned(),
            "trestle://none".to_owned(),
            "trestle://none/".to_owned(),
            "trestle://nonesuch/joining".to_owned(),
            format!("trestle://{uuid}/node/"),
            format!("trestle://{uuid}/node/-1"),
            format!("trestle://{uuid}/node/18446744073709551616"),
            format!("trestle://{uuid}/node/7/8"),
            format!("trestle://{uuid}/member/7"),
        ] {
            assert_eq!(parse_uri(&uri), None, "{uri}");
        }
    }

    #[test]
    fn the_authority_itself_is_nobody() {
        let key = ClusterKey::generate().unwrap();
        assert_eq!(PeerIdentity::of(key.current().ca()), None);
    }
}
