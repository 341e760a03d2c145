//! An end of the socket between node and guard: sends and receives whole messages and never waits.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair},
};

use super::{FromGuard, MESSAGE_MAX, Message, ToGuard, WireError, decode, encode};

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end does not read: try again when the socket is writable.
    #[error("the other end does not keep up")]
    Full,
    /// The other end is closed: its process has ended.
    #[error("the other end is closed")]
    Closed,
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the socket between node and guard: {0}")]
    Io(#[from] io::Error),
}

/// Sends `Out`, receives `In`.
#[derive(Debug)]
pub struct Link<Out, In> {
    fd: OwnedFd,
    buffer: Box<[u8]>,
    kinds: PhantomData<fn(Out) -> In>,
}

/// The node's end.
pub type GuardLink = Link<ToGuard, FromGuard>;
/// The guard's end.
pub type NodeLink = Link<FromGuard, ToGuard>;

/// A connected pair; neither is inherited by other programs.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

impl<Out: Message, In: Message> Link<Out, In> {
    /// Refuses what is no SOCK_SEQPACKET socket.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        if rustix::net::sockopt::socket_type(&fd)? != SocketType::SEQPACKET {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a SOCK_SEQPACKET socket"));
        }
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&fd, true)?;
        // One byte more, so that a message that is too long is seen to be.
        Ok(Self { fd, buffer: vec![0; MESSAGE_MAX + 1].into_boxed_slice(), kinds: PhantomData })
    }

    /// Without waiting.
    pub fn send(&self, message: &Out) -> Result<(), LinkError> {
        let bytes = encode(message)?;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::io::retry_on_intr(|| send(&self.fd, &bytes, flags)) {
            Ok(_) => Ok(()),
            Err(Errno::AGAIN | Errno::NOBUFS) => Err(LinkError::Full),
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Err(LinkError::Closed),
            Err(errno) => Err(LinkError::Io(errno.into())),
        }
    }

    /// The next message that is there, without waiting; `None`: there is none now. After
    /// [`LinkError::Wire`] the next one can be read.
    pub fn try_recv(&mut self) -> Result<Option<In>, LinkError> {
        let (fd, buffer) = (&self.fd, &mut self.buffer[..]);
        let mut receive = || rustix::io::retry_on_intr(|| recv(fd, &mut *buffer, RecvFlags::DONTWAIT));
        // An end that closed with messages unread is told before what it had sent itself: once.
        let received = match receive() {
            Err(Errno::CONNRESET) => receive(),
            received => received,
        };
        match received {
            // A message is at least its version byte.
            Ok((0, _)) | Err(Errno::CONNRESET) => Err(LinkError::Closed),
            Ok((length, _)) => Ok(Some(decode(&self.buffer[..length])?)),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(LinkError::Io(errno.into())),
        }
    }
}

impl<Out, In> AsFd for Link<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// For runtimes that ask for a number, such as tokio's `AsyncFd`.
impl<Out, In> AsRawFd for Link<Out, In> {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> (GuardLink, NodeLink) {
        let (node, guard) = pair().unwrap();
        (Link::new(node).unwrap(), Link::new(guard).unwrap())
    }

    fn probe(vip: &str) -> ToGuard {
        ToGuard::Probe { vip: vip.to_owned() }
    }

    #[test]
    fn what_was_sent_before_the_end_arrives_also_if_that_end_had_messages_unread() {
        let (node, mut guard) = links();
        guard.send(&FromGuard::Silent { vip: "unread".to_owned() }).unwrap();
        node.send(&probe("last")).unwrap();
        drop(node);
        assert_eq!(guard.try_recv().unwrap(), Some(probe("last")));
        assert!(matches!(guard.try_recv(), Err(LinkError::Closed)));
    }

    #[test]
    fn messages_arrive_whole_and_in_order_and_then_the_end() {
        let (node, mut guard) = links();
        assert!(guard.try_recv().unwrap().is_none());
        node.send(&probe("a")).unwrap();
        node.send(&probe("b")).unwrap();
        drop(node);
        assert_eq!(guard.try_recv().unwrap(), Some(probe("a")));
        assert_eq!(guard.try_recv().unwrap(), Some(probe("b")));
        assert!(matches!(guard.try_recv(), Err(LinkError::Closed)));
        assert!(matches!(guard.send(&FromGuard::Silent { vip: String::new() }), Err(LinkError::Closed)));
    }

    #[test]
    fn a_reader_that_stands_still_blocks_nobody() {
        let (node, _guard) = links();
        let full = (0..100_000).find_map(|_| node.send(&probe("a")).err());
        assert!(matches!(full, Some(LinkError::Full)), "{full:?}");
    }

    #[test]
    fn after_a_message_that_is_none_the_next_is_read() {
        let (node, mut guard) = links();
        send(&node, &[9, 9, 9], SendFlags::empty()).unwrap();
        send(&node, &vec![0; MESSAGE_MAX + 50], SendFlags::empty()).unwrap();
        node.send(&probe("a")).unwrap();
        assert!(matches!(guard.try_recv(), Err(LinkError::Wire(WireError::Version(9)))));
        assert!(matches!(guard.try_recv(), Err(LinkError::Wire(WireError::TooLong(_)))));
        assert_eq!(guard.try_recv().unwrap(), Some(probe("a")));
    }

    #[test]
    fn another_kind_of_socket_is_refused() {
        let (one, _) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(GuardLink::new(one.into()).is_err());
    }
}
