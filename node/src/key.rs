//! The cluster's secret file: written so that only its owner reads it, never over another but by the next step of
//! its rotation, and then as a whole or not at all.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

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

/// Puts a key in the place of the one in a file, which keeps its owner and mode: a node that could read it can
/// read the next.
///
/// # Errors
/// The file is as it was.
pub(crate) fn replace(path: &Path, key: &ClusterKey) -> anyhow::Result<()> {
    // Where a link leads to: the link stays.
    let path = path.canonicalize().with_context(|| format!("can't find {}", path.display()))?;
    let unfinished = unfinished(&path);
    let mut options = std::fs::OpenOptions::new();
    let file = match options.write(true).create_new(true).mode(0o600).open(&unfinished) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => anyhow::bail!(
            "{} is there: another `trestle key rotate` is at work, or was cut short; in that case remove it",
            unfinished.display()
        ),
        file => file.with_context(|| format!("can't write {}", unfinished.display()))?,
    };
    let replaced = write_beside(&path, file, key).and_then(|()| std::fs::rename(&unfinished, &path));
    if let Err(e) = replaced {
        let _ = std::fs::remove_file(&unfinished);
        return Err(e)
            .with_context(|| format!("{} is as it was: the next key can't be written", path.display()));
    }
    // The name as well: what is told to be done is on the disk.
    let folder = path.parent().unwrap_or(Path::new("."));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.with_context(|| format!("{} was replaced, but may not be on the disk yet", path.display()))
}

fn write_beside(path: &Path, mut file: File, key: &ClusterKey) -> std::io::Result<()> {
    let (before, now) = (std::fs::metadata(path)?, file.metadata()?);
    if (before.uid(), before.gid()) != (now.uid(), now.gid()) {
        fchown(&file, Some(before.uid()), Some(before.gid()))?;
    }
    file.set_permissions(std::fs::Permissions::from_mode(before.mode() & 0o777))?;
    file.write_all(key.to_pem().as_bytes())?;
    file.sync_all()
}

/// In the same folder, so that it can take the other's place.
fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".next");
    path.with_file_name(name)
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
    fn the_next_key_takes_the_place_of_the_file_and_keeps_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link) = (dir.path().join(FILE), dir.path().join("link"));
        let key = create(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let next = key.stepped().unwrap().1;
        for mode in [0o600, 0o640] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            replace(&link, &next).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, mode);
            assert_eq!(read(&path).unwrap().ids(), next.ids());
        }
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside it");
        // One that was cut short is not written over, and neither is the key.
        std::fs::write(unfinished(&path), "half").unwrap();
        let error = format!("{:#}", replace(&path, &key).unwrap_err());
        assert!(error.contains("cut short"), "{error}");
        assert_eq!(read(&path).unwrap().ids(), next.ids());
        assert!(replace(&dir.path().join("none"), &key).is_err());
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
