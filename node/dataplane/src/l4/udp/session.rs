//! One client's session: a socket connected to the member that serves it.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use tokio::time::Instant;
use trestle_config::model::UdpSettings;

use super::datagram::{BATCH, Run, SEGMENTS_MAX};
use crate::ledger::Admission;
use crate::metrics::Reason;
use crate::pool::cuts::over;
use crate::pool::{FailureKind, Picked};
use crate::worker::Place;

const _: () = assert!(BATCH <= SEGMENTS_MAX, "a batch fits one buffer");

/// Receives in a row from a member that sends on without being asked.
const STREAM_BATCH: usize = 16;

/// A descriptor, and in memory what `a_session_is_small` says; what waits in its socket is the kernel's.
pub(super) struct Session {
    upstream: UdpSocket,
    picked: Picked,
    idle: Duration,
    /// Replies that each datagram gets; 0: any number.
    replies: u32,
    /// The member is asked at its own port.
    own_port: bool,
    began: Instant,
    /// Of the last datagram in either direction.
    moved: Instant,
    bytes_in: u64,
    bytes_out: u64,
    asked: u64,
    replied: u64,
    /// Replies since it was last asked. From the second on there are likely to be more.
    unasked: u32,
    /// Times that the member had gone down when it was picked.
    downs: u32,
    admission: Admission,
    _place: Place,
}

/// What became of a client's datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Of the first so many: they were sent.
    pub(super) passed: usize,
    /// Others were not, since an earlier one came back: nobody listens there.
    pub(super) unreachable: bool,
}

/// What came from a member: one datagram, or many of one length of which the last may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) len: usize,
    /// That length; 0: it is one datagram.
    pub(super) segment: usize,
}

impl Reply {
    fn datagrams(&self) -> u64 {
        if self.segment == 0 { 1 } else { self.len.div_ceil(self.segment) as u64 }
    }
}

/// Why nothing came.
#[derive(Debug)]
pub(super) enum Silence {
    /// Not yet.
    Waits,
    /// The session is at its end.
    Ended(Reason),
}

impl Session {
    /// A session with a socket of its own to the picked member, at this port of it if there is one.
    ///
    /// # Errors
    /// The system's, if no socket can be had or no route leads to the member.
    pub(super) fn new(
        picked: Picked,
        port: Option<u16>,
        settings: &UdpSettings,
        now: Instant,
        (admission, place): (Admission, Place),
    ) -> io::Result<Self> {
        let member = picked.address_at(port);
        let any: IpAddr = match member {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let upstream = UdpSocket::bind((any, 0))?;
        // Connected: the kernel drops what others send to it, and reports ICMP errors.
        upstream.connect(member)?;
        upstream.set_nonblocking(true)?;
        // Also those that a host or a network can't be reached, which the kernel keeps to itself otherwise. It may
        // lack them; then the session is idle in the end.
        let _ = match member {
            SocketAddr::V4(_) => setsockopt(&upstream, sockopt::Ipv4RecvErr, &true),
            SocketAddr::V6(_) => setsockopt(&upstream, sockopt::Ipv6RecvErr, &true),
        };
        if settings.replies == 0 {
            // Many in one buffer pay for who gets many. An old kernel has no such thing.
            let _ = setsockopt(&upstream, sockopt::UdpGroSegment, &true);
        }
        Ok(Self {
            upstream,
            downs: picked.member().downs(),
            picked,
            idle: settings.idle,
            replies: settings.replies,
            own_port: port.is_none(),
            began: now,
            moved: now,
            bytes_in: 0,
            bytes_out: 0,
            asked: 0,
            replied: 0,
            unasked: 0,
            admission,
            _place: place,
        })
    }

    /// What it takes of limits is taken away.
    pub(super) fn is_cut(&self) -> bool {
        self.admission.is_cut()
    }

    pub(super) fn upstream(&self) -> &UdpSocket {
        &self.upstream
    }

    pub(super) fn picked(&self) -> &Picked {
        &self.picked
    }

    /// Passes a client's datagrams on. Does not wait: what a full socket can't take is dropped.
    pub(super) fn ask(&mut self, run: Run<'_>, now: Instant) -> Asked {
        (self.moved, self.unasked) = (now, 0);
        let asked = match run.segment() {
            Some(segment) => self.send_segmented(run, segment).unwrap_or_else(|| self.send_each(run)),
            None => self.send_each(run),
        };
        self.asked += asked.passed as u64;
        self.bytes_in += match asked.passed {
            all if all == run.len() => run.bytes() as u64,
            some => run.datagrams().take(some).map(|datagram| datagram.len() as u64).sum(),
        };
        asked
    }

    fn send_each(&self, run: Run<'_>) -> Asked {
        let mut passed = 0;
        for datagram in run.datagrams() {
            match rustix::net::send(&self.upstream, datagram, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) => passed += 1,
                Err(error) if is_unreachable(&error.into()) => return Asked { passed, unreachable: true },
                Err(_) => {}
            }
        }
        Asked { passed, unreachable: false }
    }

    /// As one buffer. `None`: that can't be done.
    fn send_segmented(&self, run: Run<'_>, segment: u16) -> Option<Asked> {
        let mut slices = [IoSlice::new(&[]); BATCH];
        slices.iter_mut().zip(run.datagrams()).for_each(|(slice, datagram)| *slice = IoSlice::new(datagram));
        let (fd, control) = (self.upstream.as_raw_fd(), [ControlMessage::UdpGsoSegments(&segment)]);
        let sent = sendmsg::<()>(fd, &slices[..run.len()], &control, MsgFlags::MSG_DONTWAIT, None);
        match sent.map_err(io::Error::from) {
            Ok(_) => Some(Asked { passed: run.len(), unreachable: false }),
            Err(error) if is_unreachable(&error) => Some(Asked { passed: 0, unreachable: true }),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                Some(Asked { passed: 0, unreachable: false })
            }
            // No checksums by this device, or parts longer than its frames.
            Err(_) => None,
        }
    }

    /// How often to receive before others get their turn. Once is enough where each question gets an answer:
    /// whether there is more is for the kernel to say.
    pub(super) fn receives(&self) -> usize {
        if self.unasked > 1 { STREAM_BATCH } else { 1 }
    }

    /// The next reply, if there is one. `into` holds any datagram, `control` what is said of it.
    pub(super) fn receive(
        &mut self,
        into: &mut [u8],
        control: &mut [u8],
        now: Instant,
    ) -> Result<Reply, Silence> {
        let reply = self.try_receive(into, control).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::Interrupted => Silence::Waits,
            // Of the path, not of the member: the kernel cuts what is too long from now on.
            _ if error.raw_os_error() == Some(Errno::MSGSIZE.raw_os_error()) => Silence::Waits,
            _ if is_unreachable(&error) => Silence::Ended(Reason::UpstreamUnreachable),
            _ => {
                tracing::debug!(member = self.picked.name(), %error, "udp receive from member failed");
                Silence::Ended(Reason::Internal)
            }
        })?;
        self.moved = now;
        self.replied += reply.datagrams();
        self.bytes_out += reply.len as u64;
        self.unasked = self.unasked.saturating_add(1);
        self.picked.succeeded();
        Ok(reply)
    }

    fn try_receive(&self, into: &mut [u8], control: &mut [u8]) -> io::Result<Reply> {
        if self.replies > 0 {
            let len = rustix::net::recv(&self.upstream, &mut *into, RecvFlags::DONTWAIT)?.0;
            return Ok(Reply { len, segment: 0 });
        }
        let (fd, mut slices) = (self.upstream.as_raw_fd(), [IoSliceMut::new(into)]);
        let message = recvmsg::<SockaddrStorage>(fd, &mut slices, Some(control), MsgFlags::MSG_DONTWAIT)?;
        let segment = message.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::UdpGroSegments(len) => usize::try_from(len).ok(),
            _ => None,
        });
        let len = message.bytes;
        Ok(Reply { len, segment: segment.filter(|segment| *segment < len).unwrap_or(0) })
    }

    /// Every datagram of the client has had its replies: one that asks twice before the first answer
    /// comes gets both.
    pub(super) fn is_done(&self) -> bool {
        let each = u64::from(self.replies);
        each > 0 && self.replied >= self.asked.saturating_mul(each)
    }

    /// Why it is over, if its member's time is.
    pub(super) fn over(&self) -> Option<Reason> {
        over(self.picked.member(), self.downs)
    }

    /// An ICMP error came back: nobody listens there. Of one port of a range that says nothing of the member.
    pub(super) fn unreachable(&self) {
        if self.own_port {
            self.picked.failed(FailureKind::Connect);
        }
    }

    /// Takes what ICMP said out of the socket's queue, which would be told of for ever. The error itself goes with
    /// it, so it must have been looked at.
    pub(super) fn forget_errors(&self) {
        /// Errors at once; more are told of again.
        const ERRORS_MAX: usize = 64;
        let fd = self.upstream.as_raw_fd();
        for _ in 0..ERRORS_MAX {
            let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
            if recvmsg::<SockaddrStorage>(fd, &mut [], None, flags).is_err() {
                break;
            }
        }
    }

    /// From the client, and to it.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.bytes_in, self.bytes_out)
    }

    pub(super) fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// When it will have been idle for too long, if nothing moves.
    pub(super) fn idle_at(&self) -> Instant {
        self.moved + self.idle
    }
}

/// What ICMP told the kernel of a connected socket's peer (RFC 1122, section 4.1.3.3).
pub(super) fn is_unreachable(error: &io::Error) -> bool {
    let unreachable = [
        Errno::CONNREFUSED,
        Errno::HOSTUNREACH,
        Errno::NETUNREACH,
        Errno::HOSTDOWN,
        Errno::NONET,
        Errno::NOPROTOOPT,
    ];
    error.raw_os_error().is_some_and(|code| unreachable.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_small() {
        // With its entries in the table, the map and the timer, about half a KiB (docs/config.md).
        assert!(size_of::<Session>() <= 224, "{}", size_of::<Session>());
    }
}
