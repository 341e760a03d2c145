//! Whether a data folder fits the node that is started on it: looked at before anything is served.

use std::path::{Path, PathBuf};

use trestle_raft_store::LocalIdentity;
use trestle_raft_store::types::NodeId;

use crate::identity::ClusterKey;
use crate::settings::Settings;

/// Fingerprint of the key in use when the node last came into its cluster.
const KEY_ID: &str = "key-id";

#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error(
        "the data folder {} belonged to node {node}, which was removed from its cluster; wipe it, then join as a new node",
        dir.display()
    )]
    Removed { dir: PathBuf, node: NodeId },
    #[error(
        "the data folder {} is that of node {name:?}, not of {given:?}: start it with --name {name}, or give another --data-dir",
        dir.display()
    )]
    OtherName { dir: PathBuf, name: String, given: String },
    #[error(
        "the data folder {} belongs to a cluster with key {known}, the key given is {given}: give that cluster's --key-file, or another --data-dir; if that key was exchanged while the node was away, start it once with the --key-file that has both",
        dir.display()
    )]
    OtherKey { dir: PathBuf, known: String, given: String },
}

pub(crate) fn check(
    identity: &LocalIdentity,
    settings: &Settings,
    key: &ClusterKey,
) -> Result<(), FolderError> {
    let Some(node) = identity.node_id else { return Ok(()) };
    let dir = settings.data_dir.clone();
    if identity.removed {
        return Err(FolderError::Removed { dir, node });
    }
    if identity.name != settings.name {
        return Err(FolderError::OtherName {
            dir,
            name: identity.name.clone(),
            given: settings.name.clone(),
        });
    }
    // A folder without the note is from a start that was cut short: the peers' refusal tells, then.
    match std::fs::read_to_string(dir.join(KEY_ID)) {
        Ok(known) if !key.ids().iter().any(|id| id.to_string() == known.trim()) => {
            Err(FolderError::OtherKey { dir, known: known.trim().to_owned(), given: key.id().to_string() })
        }
        _ => Ok(()),
    }
}

/// Notes the key once the node is in its cluster. A disk that is full must not stop it from serving.
pub(crate) fn note_key(dir: &Path, key: &ClusterKey) {
    let (path, unfinished) = (dir.join(KEY_ID), dir.join(KEY_ID).with_extension("new"));
    let now = format!("{}\n", key.id());
    if std::fs::read_to_string(&path).is_ok_and(|known| known == now) {
        return;
    }
    // As a whole or not at all: half a fingerprint would be another key's.
    let noted = std::fs::write(&unfinished, now).and_then(|()| std::fs::rename(&unfinished, &path));
    if let Err(error) = noted {
        tracing::warn!(path = %path.display(), %error, "fingerprint of the key was not noted");
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use uuid::Uuid;
    use zeroize::Zeroizing;

    use super::*;
    use crate::settings::Start;
    use crate::vip::InheritedGuard;

    #[test]
    fn a_folder_goes_with_its_key_through_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            name: "n".into(),
            data_dir: dir.path().to_owned(),
            cluster: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: None,
            admin: String::new(),
            key: Zeroizing::default(),
            start: Start::Resume,
            replace: false,
            version: String::new(),
            resolver: None,
            guard: InheritedGuard::default(),
        };
        let identity = LocalIdentity {
            name: "n".into(),
            node_id: Some(1),
            join_token: Uuid::nil(),
            cluster_id: None,
            ports: Default::default(),
            removed: false,
        };
        let check = |key: &ClusterKey| check(&identity, &settings, key);
        let mut key = ClusterKey::generate().unwrap();
        for _ in 0..6 {
            note_key(dir.path(), &key);
            let next = key.stepped().unwrap().1;
            assert!(check(&key).is_ok() && check(&next).is_ok());
            let stranger = check(&ClusterKey::generate().unwrap()).unwrap_err().to_string();
            assert!(stranger.contains(&key.id().to_string()), "{stranger}");
            key = next;
        }
        let (_, two_further) = key.stepped().unwrap().1.stepped().unwrap();
        let (_, three_further) = two_further.stepped().unwrap();
        assert!(check(&two_further).is_ok());
        assert!(check(&three_further).unwrap_err().to_string().contains("has both"));
    }
}
