//! A file that a guard has locked for life.
//!
//! A node whose guard is new tells the leader that what an earlier guard held is let go of. That is
//! true only when the earlier one is dead, wherever it ran: the abstract name that a guard binds says
//! so for its own network namespace, this lock for the node's data folder.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io,
    path::Path,
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};

/// As long as a guard takes to let go and send its notices, and a little more.
const PATIENCE: Duration = Duration::from_secs(2);
const PACE: Duration = Duration::from_millis(20);

fn open(path: &OsStr) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(Path::new(path))
}

/// Whether an earlier guard of this node lives.
pub(super) fn is_taken(path: Option<&OsStr>) -> bool {
    let file = path.and_then(|path| open(path).ok());
    file.is_some_and(|file| {
        flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK)
    })
}

/// Waits a moment for the lock of a guard that is ending.
pub(super) fn take(path: Option<&OsStr>) -> io::Result<Option<File>> {
    let Some(path) = path else { return Ok(None) };
    let file = open(path)?;
    let mut waited = Duration::ZERO;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(errno) if waited >= PATIENCE => return Err(errno.into()),
            Err(_) => {
                std::thread::sleep(PACE);
                waited += PACE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_guard_of_a_node_waits_and_is_refused() {
        let path = std::env::temp_dir().join(format!("guard-lock-{}", std::process::id()));
        let taken = || is_taken(Some(path.as_os_str()));
        assert!(!taken() && !is_taken(None));
        let first = take(Some(path.as_os_str())).unwrap().unwrap();
        assert!(taken());
        assert!(take(Some(path.as_os_str())).is_err());
        drop(first);
        assert!(!taken());
        assert!(take(Some(path.as_os_str())).unwrap().is_some());
        std::fs::remove_file(&path).unwrap();
        assert!(take(None).unwrap().is_none());
    }
}
