//! A netlink socket: one request and its answer at a time, or a stream of events.
//!
//! Every wait ends at the socket's patience. Answers to requests that were given up are recognised by
//! their sequence number and dropped. A request socket joins no groups, so that events never stand
//! between it and its answer; an event socket that was too slow hears [`Error::EventsLost`] and must
//! look at the whole state again.
//!
//! Sources: netlink(7), `linux/netlink.h` (nlmsgerr, extended acks), `linux/rtnetlink.h` and
//! `linux/netfilter/nfnetlink.h` (groups).

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::{self, SocketAddrNetlink},
        recvfrom, send, socket_with, sockopt,
    },
};

use crate::{
    clock, sys,
    wire::{self, Message, Messages},
};

/// The kernel's own datagrams are at most 32 KiB (dumps) or as long as what they answer.
const RECEIVE: usize = 64 * 1024;
/// How long an answer may take unless it is set otherwise.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// A list that changes while it is made is asked for again this often.
const DUMP_TRIES: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel understood and said no.
    #[error("{what}: {errno}{}", text.as_deref().map(|t| format!(" ({t})")).unwrap_or_default())]
    Refused {
        what: &'static str,
        errno: Errno,
        /// The kernel's own words, where it gives some.
        text: Option<String>,
    },
    /// A call on the socket failed.
    #[error("{what}: {errno}")]
    Call { what: &'static str, errno: Errno },
    #[error("{what}: no answer in time")]
    Late { what: &'static str },
    /// Events came faster than they were read: what was followed must be read as a whole.
    #[error("events were lost")]
    EventsLost,
    /// The list changed each time it was read.
    #[error("{what}: changed while it was read")]
    Unsteady { what: &'static str },
    #[error("{what}: not understood")]
    Malformed { what: &'static str },
}

impl Error {
    /// The kernel's reason, if it gave one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } | Self::Call { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the kernel refused with this reason.
    #[must_use]
    pub fn is(&self, errno: Errno) -> bool {
        self.errno() == Some(errno)
    }

    pub(crate) fn call(what: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Call { what, errno }
    }

    pub(crate) fn io(what: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |error| Self::Call { what, errno: Errno::from_io_error(&error).unwrap_or(Errno::IO) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Links, addresses, neighbours.
    Route,
    /// nf_tables.
    Netfilter,
}

/// What an event socket hears, as the bits of its groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups(u32);

impl Groups {
    /// RTNLGRP_LINK, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR.
    pub const ADDRESSES: Self = Self(1 | 1 << 4 | 1 << 8);
    /// NFNLGRP_NFTABLES.
    pub const NFTABLES: Self = Self(1 << 6);
}

/// Numbers of requests, process-wide: an answer can't be taken for another's.
pub(crate) fn next_sequence() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    buffer: Box<[u8]>,
    patience: Duration,
}

impl Socket {
    /// For requests.
    pub fn open(protocol: Protocol) -> Result<Self, Error> {
        Self::bound(protocol, 0)
    }

    /// For events.
    pub fn listen(protocol: Protocol, groups: Groups) -> Result<Self, Error> {
        Self::bound(protocol, groups.0)
    }

    fn bound(protocol: Protocol, groups: u32) -> Result<Self, Error> {
        let number = match protocol {
            Protocol::Route => None,
            Protocol::Netfilter => Some(netlink::NETFILTER),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, number)
            .map_err(Error::call("open a netlink socket"))?;
        bind(&fd, &SocketAddrNetlink::new(0, groups)).map_err(Error::call("bind a netlink socket"))?;
        // Kernels without them answer as well, in fewer words.
        let _ = sys::set_option(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
        let _ = sys::set_option(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1);
        Ok(Self { fd, buffer: vec![0; RECEIVE].into_boxed_slice(), patience: PATIENCE })
    }

    /// How long each answer may take.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Room for events; beyond the system's limit where the process may.
    pub fn set_receive_buffer(&self, bytes: usize) -> Result<(), Error> {
        sockopt::set_socket_recv_buffer_size_force(&self.fd, bytes)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&self.fd, bytes))
            .map_err(Error::call("set the receive buffer"))
    }

    /// Room for one request: a transaction must fit as a whole.
    pub fn set_send_buffer(&self, bytes: usize) -> Result<(), Error> {
        sockopt::set_socket_send_buffer_size_force(&self.fd, bytes)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&self.fd, bytes))
            .map_err(Error::call("set the send buffer"))
    }

    /// Sends messages of which the last wants an ack (`last` is its number), and waits for the answers.
    /// `label` names the message that a number belongs to. Allocates nothing unless something fails.
    pub(crate) fn transact(
        &mut self,
        bytes: &[u8],
        last: u32,
        label: impl Fn(u32) -> &'static str,
    ) -> Result<(), Error> {
        self.forget_answers();
        let what = label(last);
        self.send(bytes, what)?;
        let deadline = clock::after(clock::now(), self.patience);
        let mut failed = None;
        loop {
            // The kernel answers inside the send, so an error is followed by nothing that is worth a wait.
            let length = match self.receive(what) {
                Ok(Some(length)) => length,
                Ok(None) => match failed {
                    Some(error) => return Err(error),
                    None => {
                        self.wait(deadline, what)?;
                        continue;
                    }
                },
                Err(error) => return Err(failed.unwrap_or(error)),
            };
            for message in Messages(&self.buffer[..length]) {
                if message.kind != wire::TYPE_ERROR || !within(message.sequence, bytes) {
                    continue;
                }
                match outcome(&message, label(message.sequence)) {
                    Ok(()) if message.sequence == last => return failed.map_or(Ok(()), Err),
                    Ok(()) => {}
                    // The first failure is the cause; later ones are often its echo.
                    Err(error) => _ = failed.get_or_insert(error),
                }
            }
        }
    }

    /// Asks for a list (or for one thing, with an ack behind it); `each` takes what it wants of each
    /// message. A list that changes meanwhile is asked for again.
    pub(crate) fn ask<T>(
        &mut self,
        bytes: &[u8],
        sequence: u32,
        what: &'static str,
        mut each: impl FnMut(&mut Vec<T>, &Message<'_>),
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMP_TRIES {
            let mut found = Vec::new();
            self.forget_answers();
            self.send(bytes, what)?;
            let deadline = clock::after(clock::now(), self.patience);
            if self.read_list(sequence, deadline, what, |message| each(&mut found, message))? {
                return Ok(found);
            }
        }
        Err(Error::Unsteady { what })
    }

    /// Whether the list was of one piece.
    fn read_list(
        &mut self,
        sequence: u32,
        deadline: u64,
        what: &'static str,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<bool, Error> {
        let mut steady = true;
        loop {
            let Some(length) = self.receive(what)? else {
                self.wait(deadline, what)?;
                continue;
            };
            for message in Messages(&self.buffer[..length]) {
                if message.sequence != sequence {
                    continue;
                }
                steady &= message.flags & wire::DUMP_INTERRUPTED == 0;
                match message.kind {
                    wire::TYPE_DONE => {
                        let errno = wire::ne32(message.payload).unwrap_or(0).cast_signed();
                        return match errno {
                            0.. => Ok(steady),
                            _ => Err(Error::Refused { what, errno: errno_of(errno), text: None }),
                        };
                    }
                    wire::TYPE_ERROR => return outcome(&message, what).map(|()| steady),
                    _ => each(&message),
                }
            }
        }
    }

    /// Events that are there, without waiting; `false` if there were none. Call until then.
    pub(crate) fn events(&mut self, mut each: impl FnMut(&Message<'_>)) -> Result<bool, Error> {
        let Some(length) = self.receive("read events")? else { return Ok(false) };
        for message in Messages(&self.buffer[..length]) {
            match message.kind {
                wire::TYPE_OVERRUN => return Err(Error::EventsLost),
                wire::TYPE_ERROR | wire::TYPE_DONE => {}
                _ => each(&message),
            }
        }
        Ok(true)
    }

    fn send(&self, bytes: &[u8], what: &'static str) -> Result<(), Error> {
        // Not connected: a netlink socket's default peer is the kernel.
        let sent = rustix::io::retry_on_intr(|| send(&self.fd, bytes, SendFlags::DONTWAIT))
            .map_err(Error::call(what))?;
        if sent == bytes.len() { Ok(()) } else { Err(Error::Malformed { what }) }
    }

    /// Length of the next datagram from the kernel; `None`: there is none now.
    fn receive(&mut self, what: &'static str) -> Result<Option<usize>, Error> {
        loop {
            let received = recvfrom(&self.fd, &mut self.buffer[..], RecvFlags::DONTWAIT | RecvFlags::TRUNC);
            match received {
                Ok((held, length, from)) => {
                    let from_kernel = from
                        .and_then(|from| SocketAddrNetlink::try_from(from).ok())
                        .is_some_and(|from| from.pid() == 0);
                    if !from_kernel {
                        continue;
                    }
                    if length > held {
                        return Err(Error::EventsLost);
                    }
                    return Ok(Some(length));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::NOBUFS) => return Err(Error::EventsLost),
                Err(errno) => return Err(Error::Call { what, errno }),
            }
        }
    }

    /// Drops what an earlier request left unread.
    fn forget_answers(&mut self) {
        // Bounded: nothing new comes without a request.
        for _ in 0..1024 {
            if matches!(self.receive("drop old answers"), Ok(None) | Err(Error::Call { .. })) {
                return;
            }
        }
    }

    fn wait(&self, deadline: u64, what: &'static str) -> Result<(), Error> {
        let left = clock::left(deadline, clock::now());
        if left.is_zero() {
            return Err(Error::Late { what });
        }
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::Call { what, errno }),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether `sequence` is one of the messages just sent; their numbers need not be in one run.
fn within(sequence: u32, bytes: &[u8]) -> bool {
    Messages(bytes).any(|message| message.sequence == sequence)
}

fn errno_of(negative: i32) -> Errno {
    Errno::from_raw_os_error(negative.saturating_neg())
}

/// An ack (error number zero) or a refusal, with the kernel's words where it gives them.
fn outcome(message: &Message<'_>, what: &'static str) -> Result<(), Error> {
    const CAPPED: u16 = 0x100;
    const HAS_ATTRIBUTES: u16 = 0x200;
    const MESSAGE_TEXT: u16 = 1;
    let error = wire::ne32(message.payload).ok_or(Error::Malformed { what })?.cast_signed();
    if error == 0 {
        return Ok(());
    }
    let text = (message.flags & HAS_ATTRIBUTES != 0).then(|| {
        let request = wire::ne32(message.payload.get(4..)?)? as usize;
        let echoed = if message.flags & CAPPED == 0 { request } else { wire::HEADER };
        let attributes = message.payload.get(4 + ((echoed + 3) & !3)..)?;
        Some(wire::Attributes(attributes).find(MESSAGE_TEXT)?.text())
    });
    Err(Error::Refused { what, errno: errno_of(error), text: text.flatten() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_reason_and_words() {
        let mut builder = wire::Builder::default();
        let open = builder.message(wire::TYPE_ERROR, 0x300, 5);
        builder.raw(&(-1i32).to_ne_bytes());
        builder.raw(&[0; 16]);
        builder.name(1, "not yours");
        builder.end_message(open);
        let message = Messages(builder.bytes()).next().unwrap();
        let error = outcome(&message, "add a table").unwrap_err();
        assert!(error.is(Errno::PERM));
        assert_eq!(error.to_string(), format!("add a table: {} (not yours)", Errno::PERM));
    }
}
