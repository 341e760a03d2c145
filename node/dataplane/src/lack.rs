//! What this machine lacks.

use std::io;

use rustix::io::Errno;

/// Out of descriptors, ports or memory: no member's fault, and the next one would fail as well.
pub(crate) fn is_ours(error: &io::Error) -> bool {
    let ours = [Errno::MFILE, Errno::NFILE, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| ours.iter().any(|errno| errno.raw_os_error() == code))
}
