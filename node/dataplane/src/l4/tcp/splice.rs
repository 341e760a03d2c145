//! Bytes that go from socket to socket inside the kernel, through a pipe (splice(2)).
//!
//! A worker keeps a few empty pipes. A direction has one only while there are bytes in it, or while it is being
//! filled.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What is asked for at once: more than a pipe holds at the kernel's default.
const AT_ONCE: usize = 1 << 20;

/// Empty pipes that a worker keeps, two descriptors each.
const FREE_MAX: usize = 32;

thread_local! {
    static FREE: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes in it.
    pub(super) held: usize,
}

impl Pipe {
    /// # Errors
    /// No descriptors.
    pub(super) fn take() -> io::Result<Self> {
        if let Some(free) = FREE.with(|free| free.borrow_mut().pop()) {
            return Ok(free);
        }
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        Ok(Self { read, write, held: 0 })
    }

    /// Keeps an empty one for the next who needs it.
    pub(super) fn give_back(self) {
        debug_assert_eq!(self.held, 0, "bytes of one connection would come to another");
        // A connection may drop while its thread ends, after the list: then the pipe is simply closed.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if self.held == 0 && free.len() < FREE_MAX {
                free.push(self);
            }
        });
    }

    /// Takes what the socket has, while the pipe is empty. 0: the other side has ended.
    pub(super) fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let n =
            from.try_io(Interest::READABLE, || Ok(splice(from, None, &self.write, None, AT_ONCE, flags)?))?;
        self.held += n;
        Ok(n)
    }

    /// Gives the socket what it takes.
    pub(super) fn drain(&mut self, to: &TcpStream) -> io::Result<usize> {
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let n =
            to.try_io(Interest::WRITABLE, || Ok(splice(&self.read, None, to, None, self.held, flags)?))?;
        self.held -= n;
        Ok(n)
    }
}
