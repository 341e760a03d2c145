//! The folder: whose it is, its lock, its secret, and the names in it.
//!
//! `lock` is held for as long as a process uses the folder. `secret` is what keys and sums are made with; without it
//! nothing that lies there counts. `objects/XX/ID.obj` is a response, by a random number; `ID.tmp` one that has not come
//! whole. Whatever has another name is somebody else's, and left alone.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For the program before this one to end.
const LOCK_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);

const SECRET: usize = 32;

/// Why a folder can't be used for cached responses.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{}: {source}; it must be a folder that user {user}, whom the node runs as, can write to", .at.display())]
    Unusable { at: PathBuf, user: u32, source: std::io::Error },
    #[error(
        "{} belongs to user {owner}, and the node runs as user {user}: `chown -R {user} {}` gives it away",
        .at.display(), .at.display()
    )]
    Foreign { at: PathBuf, owner: u32, user: u32 },
    #[error("{} is used by another process: each node needs a folder of its own for cached responses", .at.display())]
    Locked { at: PathBuf },
    #[error("its threads: {0}")]
    Threads(std::io::Error),
}

#[derive(Debug)]
pub(super) struct Folder {
    objects: PathBuf,
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
        let user = rustix::process::geteuid().as_raw();
        let unusable = |at: &Path| {
            let at = at.to_owned();
            move |source| DiskError::Unusable { at, user, source }
        };
        let objects = path.join("objects");
        DirBuilder::new().recursive(true).mode(0o700).create(&objects).map_err(unusable(&objects))?;
        for at in [path, &objects] {
            let owner = std::fs::metadata(at).map_err(unusable(at))?.uid();
            if owner != user {
                return Err(DiskError::Foreign { at: at.to_owned(), owner, user });
            }
        }
        let at = path.join("lock");
        let lock = options().read(true).write(true).create(true).open(&at).map_err(unusable(&at))?;
        wait_for_lock(&lock).map_err(|error| match error {
            None => DiskError::Locked { at: path.to_owned() },
            Some(source) => DiskError::Unusable { at: at.clone(), user, source },
        })?;
        let at = path.join("secret");
        let secret = secret(&at).map_err(unusable(&at))?;
        Ok(Self { objects, secret, _lock: lock })
    }

    /// Folders that there may be, each with a part of the objects.
    pub(super) fn parts(&self) -> impl Iterator<Item = PathBuf> {
        (0..=u8::MAX).map(|part| self.objects.join(format!("{part:02x}")))
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
        let open = || options().read(true).write(true).create_new(true).open(&at);
        match open() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let part = at.parent().unwrap_or(&self.objects);
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

/// In the part of this name.
pub(super) fn named(part: &Path, name: &std::ffi::OsStr) -> Named {
    let Some((stem, kind)) = name.to_str().and_then(|name| name.split_once('.')) else {
        return Named::Unknown;
    };
    let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_here = part.file_name().and_then(|part| part.to_str()).is_some_and(|part| stem.starts_with(part));
    if stem.len() != 16 || !stem.bytes().all(hex) || !is_here {
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
    options.mode(0o600);
    options
}

/// `None`: somebody else keeps it.
fn wait_for_lock(lock: &File) -> Result<(), Option<std::io::Error>> {
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

/// That of the folder; a new one if there is none that can be read.
fn secret(at: &Path) -> std::io::Result<[u8; SECRET]> {
    let mut secret = [0; SECRET];
    match File::open(at) {
        Ok(mut file) => {
            let is_whole = file.metadata()?.len() == SECRET as u64;
            if is_whole {
                file.read_exact(&mut secret)?;
                return Ok(secret);
            }
            tracing::warn!(file = %at.display(), "no secret: what lies in the folder is thrown away");
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    secret = rand::random();
    let new = at.with_extension("new");
    let mut file = options().write(true).create(true).truncate(true).open(&new)?;
    file.write_all(&secret)?;
    file.sync_all()?;
    std::fs::rename(&new, at)?;
    Ok(secret)
}

#[cfg(test)]
mod tests {
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
    fn what_is_no_folder_is_refused_with_what_it_must_be() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = dir.path().join("file");
        std::fs::write(&at, "").expect("writable");
        let refused = Folder::open(&at).expect_err("no folder").to_string();
        assert!(refused.contains("file/objects") && refused.contains("can write to"), "{refused}");
    }
}
