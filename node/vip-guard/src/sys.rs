//! The calls that neither the standard library nor rustix has a safe form of. The only unsafe code of this
//! crate.

use std::{
    io,
    os::{
        fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
};

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use rustix::io::{FdFlags, fcntl_setfd};

/// Takes over an inherited descriptor; it is not passed on. Once a process.
#[allow(unsafe_code)]
pub(crate) fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if fd < 3 || DONE.swap(true, Ordering::SeqCst) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is only looked up by the kernel, which refuses one that is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, was inherited for this purpose, and nobody else in this process has it: this
    // point is passed once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The child inherits `fd`, and no signal is blocked in it (the standard library promises neither).
#[allow(unsafe_code)]
pub(crate) fn pass_on(command: &mut Command, fd: OwnedFd) {
    let prepare = move || {
        fcntl_setfd(&fd, FdFlags::empty())?;
        Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
    };
    // SAFETY: between fork and exec it makes two system calls and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// SCHED_FIFO with this priority; children start without it.
#[allow(unsafe_code)]
pub(crate) fn run_in_real_time(priority: i32) -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: the pointer is to a live sched_param; the kernel only reads it.
    let result = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameter)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Brings a range of this process's memory in and keeps it there.
#[allow(unsafe_code)]
pub(crate) fn lock_range(start: usize, end: usize) -> io::Result<()> {
    let address = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: locking changes no byte; the kernel refuses a range that is not mapped.
    Ok(unsafe { rustix::mm::mlock(address, end.saturating_sub(start)) }?)
}
