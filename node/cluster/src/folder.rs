//! Whether a data folder fits the node that is started on it: looked at before anything is served.

use std::path::{Path, PathBuf};

use trestle_raft_store::LocalIdentity;
use trestle_raft_store::types::NodeId;

use crate::identity::ClusterKey;
use crate::settings::Settings;

/// Fingerprint of the key under which the folder came into its cluster.
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
        "the data folder {} belongs to a cluster with key {known}, the key given is {given}: give that cluster's --key-file, or another --data-dir",
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
        Ok(known) if known.trim() != key.id() => {
            Err(FolderError::OtherKey { dir, known: known.trim().to_owned(), given: key.id().to_owned() })
        }
        _ => Ok(()),
    }
}

/// Notes the key once the node is in its cluster. A disk that is full must not stop it from serving.
pub(crate) fn note_key(dir: &Path, key: &ClusterKey) {
    let path = dir.join(KEY_ID);
    if !path.exists()
        && let Err(error) = std::fs::write(&path, format!("{}\n", key.id()))
    {
        tracing::warn!(path = %path.display(), %error, "fingerprint of the key was not noted");
    }
}
