//! The folder: whose it is, its lock, its secret, and the names in it.
//!
//! `lock` is held for as long as a process uses the folder. `secret` is what keys and sums are made with; without it
//! nothing that lies there counts. `objects/XX/ID.obj` is a response, by a random number; `ID.tmp` one that has not come
//! whole. Whatever has another name, or is a link, is somebody else's, and left alone.
//!
//! Who can write to the folder can take files away, but puts none in their place that count: the secret is the node's own,
//! and nobody else can read it.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{Error, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

/// For the program before this one to end.
const LOCK_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);

const SECRET: usize = 32;

/// Whose the folder and `secret` are, and nobody else's.
const OTHERS: u32 = 0o077;
const OTHERS_WRITE: u32 = 0o022;

/// Why a folder can't be used for cached responses.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(
        "{} is not there, nor is {}, where it would be made: is the path right? If it is, make that folder first",
        .at.display(), .parent.display()
    )]
    NoParent { at: PathBuf, parent: PathBuf },
    #[error("{} can't be made: give a folder that is there, or that can be made", .at.display())]
    NotMade { at: PathBuf, source: std::io::Error },
    #[error(
        "{} can't be used: it must be a folder that user {user}, whom the node runs as, can reach and write to",
        .at.display()
    )]
    NoFolder { at: PathBuf, user: u32, source: std::io::Error },
    #[error(
        "{} can't be used: it must be a file, and no link, that user {user}, whom the node runs as, can write to",
        .at.display()
    )]
    NoFile { at: PathBuf, user: u32, source: std::io::Error },
    #[error(
        "{} belongs to user {owner}, and the node runs as user {user}: `chown -R {user} {}` gives it away",
        .at.display(), .at.display()
    )]
    Foreign { at: PathBuf, owner: u32, user: u32 },
    #[error("{} is used by another process: each node needs a folder of its own for cached responses", .at.display())]
    Locked { at: PathBuf },
    #[error("its threads can't start")]
    Threads(#[source] std::io::Error),
}

#[derive(Debug)]
pub(super) struct Folder {
    pub(super) objects: PathBuf,
    /// For keys, and for sums.
    pub(super) secret: [u8; SECRET],
    _lock: File,
}

/// What a file is, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    Object(u64),
    /// Left by a process that was killed.
    Unfinished,
    Unknown,
}

impl Folder {
    /// Makes it if need be, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, DiskError> {
        let user = user();
        make(path)?;
        check(path, OTHERS_WRITE)?;
        let objects = path.join("objects");
        match DirBuilder::new().mode(0o700).create(&objects) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(no_folder(&objects)(error)),
            _ if is_link(&objects) => return Err(no_folder(&objects)(Error::other("it is a symbolic link"))),
            _ => check(&objects, OTHERS)?,
        }
        let no_file = |at: &Path| {
            let at = at.to_owned();
            move |source| DiskError::NoFile { at, user, source }
        };
        let at = path.join("lock");
        let lock = options().read(true).write(true).create(true).open(&at).map_err(no_file(&at))?;
        wait_for_lock(&lock).map_err(|error| match error {
            None => DiskError::Locked { at: path.to_owned() },
            Some(source) => no_file(&at)(source),
        })?;
        let at = path.join("secret");
        let secret = secret(&at).map_err(no_file(&at))?;
        Ok(Self { objects, secret, _lock: lock })
    }

    pub(super) fn whole(&self, id: u64) -> PathBuf {
        self.objects.join(format!("{:02x}/{id:016x}.obj", id >> 56))
    }

    pub(super) fn unfinished(&self, id: u64) -> PathBuf {
        self.objects.join(format!("{:02x}/{id:016x}.tmp", id >> 56))
    }

    /// A new file, that has not come whole.
    pub(super) fn create(&self, id: u64) -> std::io::Result<File> {
        let at = self.unfinished(id);
        let part = at.parent().unwrap_or(&self.objects);
        if is_link(part) {
            return Err(Error::other(format!("{} is a symbolic link", part.display())));
        }
        let open = || options().read(true).write(true).create_new(true).open(&at);
        match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(part)?;
                open()
            }
            opened => opened,
        }
    }

    pub(super) fn finish(&self, id: u64) -> std::io::Result<()> {
        std::fs::rename(self.unfinished(id), self.whole(id))
    }

    /// That it is gone already is as good.
    pub(super) fn remove(&self, id: u64) {
        remove(&self.whole(id));
    }

    pub(super) fn give_up(&self, id: u64) {
        remove(&self.unfinished(id));
    }
}

pub(super) fn remove(at: &Path) {
    if let Err(error) = std::fs::remove_file(at)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(file = %at.display(), %error, "a cached response can't be removed");
    }
}

/// Makes the folder, but none above it: a slip in its path would go unnoticed. Whether it was not there.
pub(super) fn make(path: &Path) -> Result<bool, DiskError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {
            tracing::info!(dir = %path.display(), "a new folder for cached responses");
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists || path.is_dir() => Ok(false),
        Err(error) if error.kind() == ErrorKind::NotFound && !has_parent(path) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new(".")).to_owned();
            Err(DiskError::NoParent { at: path.to_owned(), parent })
        }
        Err(source) => Err(DiskError::NotMade { at: path.to_owned(), source }),
    }
}

fn has_parent(path: &Path) -> bool {
    path.parent().is_some_and(|parent| parent.as_os_str().is_empty() || parent.is_dir())
}

/// Whether it is a folder of ours; warns if others may do with it what is theirs in no case.
fn check(at: &Path, never: u32) -> Result<(), DiskError> {
    let about = std::fs::metadata(at).map_err(no_folder(at))?;
    if !about.is_dir() {
        return Err(no_folder(at)(ErrorKind::NotADirectory.into()));
    }
    let (owner, user) = (about.uid(), user());
    if owner != user {
        return Err(DiskError::Foreign { at: at.to_owned(), owner, user });
    }
    let mode = about.mode() & 0o7777;
    if mode & never != 0 {
        let mode = format!("{mode:04o}");
        tracing::warn!(dir = %at.display(), mode, "the folder of cached responses is open to others: chmod 700 it");
    }
    Ok(())
}

fn no_folder(at: &Path) -> impl FnOnce(Error) -> DiskError {
    let at = at.to_owned();
    |source| DiskError::NoFolder { at, user: user(), source }
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn is_link(at: &Path) -> bool {
    std::fs::symlink_metadata(at).is_ok_and(|about| about.is_symlink())
}

/// Whether what has this name in the folder itself is ours, or a file system's.
pub(super) fn is_known(name: &OsStr) -> bool {
    ["lock", "secret", "secret.new", "objects", "lost+found"].iter().any(|known| name == *known)
}

/// Whether a folder of this name has a part of the objects.
pub(super) fn is_part(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.len() == 2 && name.iter().all(is_hex)
}

fn is_hex(byte: &u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// In the part of this name.
pub(super) fn named(part: &Path, name: &OsStr) -> Named {
    let Some((stem, kind)) = name.to_str().and_then(|name| name.split_once('.')) else {
        return Named::Unknown;
    };
    let is_here = part.file_name().and_then(|part| part.to_str()).is_some_and(|part| stem.starts_with(part));
    if stem.len() != 16 || !stem.as_bytes().iter().all(is_hex) || !is_here {
        return Named::Unknown;
    }
    match (u64::from_str_radix(stem, 16), kind) {
        (Ok(id), "obj") => Named::Object(id),
        (Ok(_), "tmp") => Named::Unfinished,
        _ => Named::Unknown,
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

/// `None`: somebody else keeps it.
fn wait_for_lock(lock: &File) -> Result<(), Option<Error>> {
    let until = Instant::now() + LOCK_WITHIN;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < until => std::thread::sleep(LOOK_EVERY),
            Err(TryLockError::WouldBlock) => return Err(None),
            Err(TryLockError::Error(error)) => return Err(Some(error)),
        }
    }
}

/// That of the folder; a new one if there is none, or none that is ours alone.
fn secret(at: &Path) -> std::io::Result<[u8; SECRET]> {
    let mut secret = [0; SECRET];
    match options().read(true).open(at) {
        Ok(mut file) => match flaw(&file.metadata()?) {
            None => {
                file.read_exact(&mut secret)?;
                return Ok(secret);
            }
            Some(why) => {
                tracing::warn!(file = %at.display(), why, "a new secret: what lies in the folder is thrown away");
            }
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    secret = rand::random();
    let new = at.with_extension("new");
    // Whoever can write to the folder may have put something there.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = options().write(true).create_new(true).open(&new)?;
    file.write_all(&secret)?;
    file.sync_all()?;
    std::fs::rename(&new, at)?;
    Ok(secret)
}

/// Why what is called `secret` is none.
fn flaw(about: &Metadata) -> Option<&'static str> {
    match about {
        _ if !about.is_file() || about.len() != SECRET as u64 => Some("it is not whole"),
        _ if about.uid() != user() => Some("it is somebody else's"),
        _ if about.mode() & OTHERS != 0 => Some("it was open to others"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn names_tell_what_a_file_is() {
        let part = Path::new("/x/objects/0a");
        for (name, expected) in [
            ("0a00000000000001.obj", Named::Object(0x0a00_0000_0000_0001)),
            ("0a00000000000001.tmp", Named::Unfinished),
            ("0b00000000000001.obj", Named::Unknown),
            ("0A00000000000001.obj", Named::Unknown),
            ("0a0000000000001.obj", Named::Unknown),
            ("0a00000000000001.obj.bak", Named::Unknown),
            ("+a00000000000001.obj", Named::Unknown),
            ("notes", Named::Unknown),
        ] {
            assert_eq!(named(part, name.as_ref()), expected, "{name}");
        }
    }

    #[test]
    fn two_processes_never_share_a_folder_and_the_secret_stays() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = Folder::open(dir.path()).expect("it opens");
        let refused = Folder::open(dir.path()).expect_err("it is locked").to_string();
        assert!(refused.contains("another process"), "{refused}");
        let secret = first.secret;
        drop(first);
        assert_eq!(Folder::open(dir.path()).expect("it is free").secret, secret);
        std::fs::write(dir.path().join("secret"), "short").expect("writable");
        assert_ne!(Folder::open(dir.path()).expect("it opens").secret, secret);
    }

    #[test]
    fn a_secret_that_others_know_is_one_no_longer() {
        let dir = tempfile::tempdir().expect("a folder");
        let secret = |mode: u32| {
            let at = dir.path().join("secret");
            std::fs::set_permissions(&at, Permissions::from_mode(mode)).expect("it is ours");
            let secret = Folder::open(dir.path()).expect("it opens").secret;
            assert_eq!(at.metadata().expect("it is there").mode() & 0o777, 0o600);
            secret
        };
        let first = Folder::open(dir.path()).expect("it opens").secret;
        assert_eq!(secret(0o600), first);
        let second = secret(0o640);
        assert_ne!(second, first);
        assert_eq!(secret(0o600), second);
        assert_ne!(secret(0o602), second);
    }

    #[test]
    fn the_folder_is_made_and_none_above_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = dir.path().join("cahce/trestle");
        let refused = said(&at);
        let told = format!("{} is not there, nor is {},", at.display(), dir.path().join("cahce").display());
        assert!(refused.starts_with(&told), "{refused}");
        assert!(!dir.path().join("cahce").exists());
        std::fs::write(dir.path().join("file"), "").expect("writable");
        let said = said(&dir.path().join("file/trestle"));
        assert!(said.contains("can't be made") && said.contains("Not a directory"), "{said}");
        let at = dir.path().join("cache/");
        drop(Folder::open(&at).expect("it is made"));
        assert_eq!(at.metadata().expect("it is there").mode() & 0o777, 0o700);
        assert!(!make(&at).expect("it is there"));
    }

    #[test]
    fn what_is_no_folder_is_refused_with_what_it_must_be() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = dir.path().join("file");
        std::fs::write(&at, "").expect("writable");
        let said = said(&at);
        assert!(said.starts_with(&format!("{} can't be used: it must be a folder", at.display())), "{said}");
        for part in ["not a directory", "can't be used"] {
            assert_eq!(said.matches(part).count(), 1, "{part}: {said}");
        }
    }

    #[test]
    fn links_in_the_folder_are_not_followed() {
        let (dir, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("another"));
        for (name, must_be) in [("objects", "it must be a folder"), ("lock", "a file"), ("secret", "a file")]
        {
            let at = dir.path().join(name);
            symlink(other.path().join(name), &at).expect("writable");
            std::fs::create_dir_all(other.path().join("objects")).expect("writable");
            let said = said(dir.path());
            assert!(said.starts_with(&format!("{} can't be used: ", at.display())), "{said}");
            assert!(said.contains(must_be) && !other.path().join("lock").exists(), "{said}");
            std::fs::remove_file(at).expect("writable");
        }
        let folder = Folder::open(dir.path()).expect("it opens");
        symlink(other.path(), dir.path().join("objects/0a")).expect("writable");
        let said = folder.create(0x0a << 56).expect_err("not there").to_string();
        assert!(said.ends_with("objects/0a is a symbolic link"), "{said}");
    }

    /// Why it can't be used, as the program prints it.
    fn said(at: &Path) -> String {
        let refused = Folder::open(at).expect_err("it can't be used");
        let cause = std::error::Error::source(&refused).map(|cause| format!(": {cause}"));
        format!("{refused}{}", cause.unwrap_or_default())
    }
}
