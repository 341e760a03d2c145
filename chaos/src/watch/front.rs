//! The watch's place before all others.

#![allow(unsafe_code)]

use std::io;

/// Puts the calling thread before every other that has no real-time priority; threads that it starts are
/// not. Its turns are short, and it waits in between.
pub(super) fn to_the_front() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: 0 is the calling thread; the parameter is only read, during the call.
    let result = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameter)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
