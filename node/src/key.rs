//! The cluster's secret file: written so that only its owner reads it, never over another.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use trestle_cluster::identity::ClusterKey;
use zeroize::Zeroizing;

/// Name of the key that a node makes for itself, in its data folder.
pub(crate) const FILE: &str = "cluster.key";

/// Makes a key file. Refuses when there is one: a cluster whose key is overwritten can't take in a
/// node any more.
pub(crate) fn create(path: &Path) -> anyhow::Result<ClusterKey> {
    let key = ClusterKey::generate().context("no key could be made")?;
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = match file {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            anyhow::bail!("{} exists and is not overwritten: a cluster may depend on it", path.display())
        }
        file => file.with_context(|| format!("can't write {}", path.display()))?,
    };
    file.write_all(key.to_pem().as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("can't write {}", path.display()))?;
    Ok(key)
}

pub(crate) fn read(path: &Path) -> anyhow::Result<ClusterKey> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new).with_context(|| {
        format!("can't read the key file {}; `trestle keygen` makes one for a new cluster", path.display())
    })?;
    ClusterKey::parse(&text).with_context(|| format!("key file {}", path.display()))
}

/// Whether others than its owner may read the file; then everybody on the machine can join.
pub(crate) fn readable_by_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let made = create(&path).unwrap();
        assert!(!readable_by_others(&path));
        assert_eq!(read(&path).unwrap().id(), made.id());
        assert!(create(&path).err().unwrap().to_string().contains("not overwritten"));
        assert_eq!(read(&path).unwrap().id(), made.id());
    }

    #[test]
    fn a_missing_or_foreign_key_file_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let missing = read(&dir.path().join("none")).err().unwrap().to_string();
        assert!(missing.contains("trestle keygen"), "{missing}");
        let foreign = dir.path().join("foreign");
        std::fs::write(&foreign, "not a key").unwrap();
        assert!(format!("{:#}", read(&foreign).err().unwrap()).contains("foreign"));
    }
}
