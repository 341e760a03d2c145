//! Datagrams of listening sockets: who sent one, to which of our addresses, and answers that leave from
//! that address; both many at a time.
//!
//! A socket bound to all addresses would let the kernel choose the source of an answer by route; a
//! client that asked another address of ours would drop it. So such a socket is told where each datagram was
//! sent to (`IP_PKTINFO`, `IPV6_PKTINFO`; ip(7), ipv6(7)) and says the same in the answer.
//!
//! [`Inbox`] receives by recvmmsg(2); [`Outbox`] collects answers and sends them by sendmmsg(2), those that
//! came as one buffer of equal parts (UDP_GRO) as such a buffer again (UDP_SEGMENT). The kernel lowers
//! the lengths that stand in the headers of recvmmsg and the crate does not raise them again: so an inbox
//! serves sockets of one kind only, whose control messages are all of one length. For the same reason there
//! is no UDP_GRO on listening sockets.

use std::array;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg,
    sendmsg, setsockopt, sockopt,
};

/// Holds any datagram: 65,507 bytes over IPv4, 65,527 over IPv6.
pub(super) const DATAGRAM_MAX: usize = 65_536;

/// Datagrams received or sent by one call.
pub(super) const BATCH: usize = 32;

/// Answers that wait to be sent. Room for one datagram of any length is always left, so most of it fills up
/// before they are sent.
const OUTBOX: usize = 4 * DATAGRAM_MAX;

/// Equal datagrams of at most this length are sent as one buffer: longer ones may not fit a link, and the
/// kernel does not fragment parts of a buffer.
pub(super) const SEGMENT_MAX: usize = 1_452;

/// What one buffer of equal datagrams holds: UDP_MAX_SEGMENTS of older kernels, and the length of IP.
pub(super) const SEGMENTS_MAX: usize = 64;
pub(super) const SEGMENTED_MAX: usize = 65_000;

/// Which of our addresses a datagram was sent to. The interface counts for link-local ones only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Local {
    ip: IpAddr,
    interface: u32,
}

/// A bound listening socket.
pub(super) struct Listening {
    socket: UdpSocket,
    /// Where it is bound.
    pub(super) port: u16,
    /// Bound to all addresses.
    wildcard: Option<Family>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Listening {
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let family = if address.is_ipv6() { Family::V6 } else { Family::V4 };
        let wildcard = address.ip().is_unspecified().then_some(family);
        match wildcard {
            Some(Family::V6) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            Some(Family::V4) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            None => {}
        }
        Ok(Self { socket, port: address.port(), wildcard })
    }

    pub(super) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// Room for what is said of a datagram besides its bytes. Exactly so much: what is left over would be
    /// read as one more message.
    fn control(&self) -> Option<Vec<u8>> {
        self.wildcard.map(|family| match family {
            Family::V4 => nix::cmsg_space!(libc::in_pktinfo),
            Family::V6 => nix::cmsg_space!(libc::in6_pktinfo),
        })
    }
}

/// A datagram that waits for its session to begin.
pub(super) struct Kept {
    came: Came,
    bytes: Box<[u8]>,
}

impl Kept {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn run(&self) -> Run<'_> {
        let came = std::slice::from_ref(&self.came);
        Run { from: self.came.from, local: self.came.local, buffer: &self.bytes, came }
    }
}

/// What one call received.
pub(super) struct Inbox {
    headers: MultiHeaders<SockaddrStorage>,
    /// [`BATCH`] datagrams of any length; of what no datagram ever reached there is no memory.
    buffer: Box<[u8]>,
    came: [Came; BATCH],
}

#[derive(Clone, Copy)]
struct Came {
    len: usize,
    from: SocketAddr,
    local: Option<Local>,
}

const NOBODY: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));

/// Datagrams that followed one another from one client to one address of ours. Not empty, at first.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) from: SocketAddr,
    /// Known for sockets bound to all addresses; others have only one.
    pub(super) local: Option<Local>,
    buffer: &'a [u8],
    came: &'a [Came],
}

impl<'a> Run<'a> {
    pub(super) fn len(&self) -> usize {
        self.came.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.came.iter().map(|came| came.len).sum()
    }

    pub(super) fn datagrams(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let lens = self.came.iter().map(|came| came.len);
        self.buffer.chunks(DATAGRAM_MAX).zip(lens).map(|(chunk, len)| &chunk[..len])
    }

    /// Without the first so many.
    pub(super) fn without(self, first: usize) -> Self {
        let first = first.min(self.came.len());
        Self { buffer: &self.buffer[first * DATAGRAM_MAX..], came: &self.came[first..], ..self }
    }

    /// Copies of its datagrams.
    pub(super) fn kept(&self) -> impl Iterator<Item = Kept> {
        let datagrams = self.came.iter().zip(self.datagrams());
        datagrams.map(|(came, bytes)| Kept { came: *came, bytes: bytes.into() })
    }

    /// Whether all of it can be sent as one buffer: many, of one length, and the last at most as long.
    /// Returns that length.
    pub(super) fn segment(&self) -> Option<u16> {
        let (first, rest) = self.came.split_first()?;
        let (last, middle) = rest.split_last()?;
        let fits = (1..=SEGMENT_MAX).contains(&first.len) && self.bytes() <= SEGMENTED_MAX;
        let equal = middle.iter().all(|came| came.len == first.len) && (1..=first.len).contains(&last.len);
        u16::try_from(first.len).ok().filter(|_| fits && equal)
    }
}

impl Inbox {
    /// For sockets of this kind.
    pub(super) fn new(kind: &Listening) -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, kind.control()),
            buffer: vec![0; BATCH * DATAGRAM_MAX].into_boxed_slice(),
            came: [Came { len: 0, from: NOBODY, local: None }; BATCH],
        }
    }

    /// Receives once, without waiting, and hands over what came. Returns the number of datagrams; fewer
    /// than [`BATCH`]: there were no more.
    pub(super) fn receive(&mut self, at: &Listening, mut each: impl FnMut(Run<'_>)) -> io::Result<usize> {
        let number = self.fill(at)?;
        let mut begin = 0;
        while begin < number {
            let Came { from, local, .. } = self.came[begin];
            let same = |came: &&Came| came.from == from && came.local == local;
            let end = begin + self.came[begin..number].iter().take_while(same).count();
            let (buffer, came) = (&self.buffer[begin * DATAGRAM_MAX..], &self.came[begin..end]);
            each(Run { from, local, buffer, came });
            begin = end;
        }
        Ok(number)
    }

    fn fill(&mut self, at: &Listening) -> io::Result<usize> {
        let mut chunks = self.buffer.chunks_exact_mut(DATAGRAM_MAX);
        let mut slices: [[IoSliceMut<'_>; 1]; BATCH] =
            array::from_fn(|_| [IoSliceMut::new(chunks.next().unwrap_or_default())]);
        let fd = at.socket.as_raw_fd();
        let received = recvmmsg(fd, &mut self.headers, &mut slices, MsgFlags::MSG_DONTWAIT, None)?;
        let mut number = 0;
        for (came, message) in self.came.iter_mut().zip(received) {
            let from = message.address.as_ref().and_then(socket_addr).ok_or(Errno::EAFNOSUPPORT)?;
            let local = match at.wildcard {
                Some(_) => message.cmsgs()?.find_map(local),
                None => None,
            };
            *came = Came { len: message.bytes, from, local };
            number += 1;
        }
        Ok(number)
    }
}

fn local(message: ControlMessageOwned) -> Option<Local> {
    match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            let ip = |address: libc::in_addr| Ipv4Addr::from(u32::from_be(address.s_addr));
            // Not filled in for what came before the socket was told to say it.
            let ours = Some(ip(info.ipi_spec_dst)).filter(|ours| !ours.is_unspecified());
            Some(Local { ip: ours.unwrap_or(ip(info.ipi_addr)).into(), interface: 0 })
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
            let interface = if ip.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
            Some(Local { ip: ip.into(), interface })
        }
        _ => None,
    }
}

/// Whom an answer goes to, and from which of our sockets and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) to: SocketAddr,
    pub(super) local: Option<Local>,
    /// Index of the listening socket.
    pub(super) socket: usize,
}

/// Answers that wait to be sent, at most [`BATCH`].
pub(super) struct Outbox {
    headers: MultiHeaders<SockaddrStorage>,
    buffer: Box<[u8]>,
    answers: Vec<Answer>,
    /// What is in `buffer`.
    filled: usize,
}

struct Answer {
    envelope: Envelope,
    begin: usize,
    len: usize,
    /// Not 0: it is many datagrams of this length, of which the last may be shorter.
    segment: usize,
}

impl Answer {
    /// The length of its datagrams.
    fn part(&self) -> usize {
        if self.segment == 0 { self.len } else { self.segment }
    }

    /// Whether one more datagram, which follows it in the buffer, can be sent with it as one buffer.
    fn takes(&self, envelope: Envelope, len: usize) -> bool {
        let part = self.part();
        // None after one that is shorter.
        self.envelope == envelope
            && (1..=part).contains(&len)
            && part <= SEGMENT_MAX
            && self.len.is_multiple_of(part)
            && self.datagrams() < SEGMENTS_MAX
            && self.len + len <= SEGMENTED_MAX
    }

    fn datagrams(&self) -> usize {
        if self.segment == 0 { 1 } else { self.len.div_ceil(self.segment) }
    }

    fn parts<'a>(&self, buffer: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        buffer[self.begin..self.begin + self.len].chunks(self.segment.max(1))
    }
}

/// What became of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) datagrams: u64,
    pub(super) bytes: u64,
    pub(super) dropped: u64,
}

impl Outbox {
    /// For sockets of this kind.
    pub(super) fn new(kind: &Listening) -> Self {
        Self {
            headers: MultiHeaders::preallocate(BATCH, kind.control()),
            buffer: vec![0; OUTBOX].into_boxed_slice(),
            answers: Vec::with_capacity(BATCH),
            filled: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.answers.is_empty()
    }

    /// Room for one more datagram; `None`: it is full.
    pub(super) fn room(&mut self) -> Option<&mut [u8]> {
        let room = self.buffer.get_mut(self.filled..self.filled + DATAGRAM_MAX)?;
        (self.answers.len() < BATCH).then_some(room)
    }

    /// The first `len` bytes of the room that was given are an answer, of many datagrams if `segment` is
    /// not 0.
    pub(super) fn put(&mut self, envelope: Envelope, len: usize, segment: usize) {
        debug_assert!(self.answers.len() < BATCH, "there was room");
        let begin = self.filled;
        self.filled += len;
        if let Some(last) = self.answers.last_mut()
            && segment == 0
            && last.takes(envelope, len)
        {
            last.segment = last.part();
            last.len += len;
            return;
        }
        self.answers.push(Answer { envelope, begin, len, segment });
    }

    /// Throws away what waits; returns how many datagrams.
    pub(super) fn clear(&mut self) -> u64 {
        self.filled = 0;
        self.answers.drain(..).map(|answer| answer.datagrams() as u64).sum()
    }

    /// Sends what waits. What a full socket does not take waits on.
    pub(super) fn flush(&mut self, sockets: &[Listening]) -> Sent {
        let (mut sent, mut done) = (Sent::default(), 0);
        while let Some(first) = self.answers.get(done) {
            let socket = &sockets[first.envelope.socket];
            let (datagrams, client) = (first.datagrams() as u64, first.envelope.to);
            let number = if first.segment > 0 {
                send_segmented(socket, first, &self.buffer, &mut sent).map(|()| 1)
            } else {
                self.send_many(socket, done)
            };
            match number {
                Ok(number) => {
                    let singles = self.answers[done..done + number].iter().filter(|a| a.segment == 0);
                    singles.for_each(|answer| {
                        sent.datagrams += 1;
                        sent.bytes += answer.len as u64;
                    });
                    done += number;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::debug!(%client, %error, "udp answer can't be sent");
                    sent.dropped += datagrams;
                    done += 1;
                }
            }
        }
        self.answers.drain(..done);
        if self.answers.is_empty() {
            self.filled = 0;
        }
        sent
    }

    /// Sends the answers from this one on that leave from the same address of ours. Returns how many; an error
    /// is the first one's.
    fn send_many(&mut self, socket: &Listening, from: usize) -> io::Result<usize> {
        let Envelope { local, socket: index, .. } = self.answers[from].envelope;
        let same = |answer: &&Answer| {
            answer.segment == 0 && answer.envelope.local == local && answer.envelope.socket == index
        };
        let answers = &self.answers[from..];
        let number = answers.iter().take_while(same).count();
        let slices: [[IoSlice<'_>; 1]; BATCH] = array::from_fn(|at| {
            let bytes = answers.get(at).map(|answer| &self.buffer[answer.begin..answer.begin + answer.len]);
            [IoSlice::new(bytes.unwrap_or_default())]
        });
        let to: [Option<SockaddrStorage>; BATCH] = array::from_fn(|at| {
            answers.get(at).filter(|_| at < number).map(|answer| SockaddrStorage::from(answer.envelope.to))
        });
        let fd = socket.socket.as_raw_fd();
        let sent = with_source(local, |control| {
            let flags = MsgFlags::MSG_DONTWAIT;
            sendmmsg(fd, &mut self.headers, &slices[..number], &to[..number], control, flags)
                .map(Iterator::count)
        })?;
        Ok(sent)
    }
}

/// Sends equal datagrams as one buffer; if that can't be, one by one. An error: nothing was sent.
fn send_segmented(socket: &Listening, answer: &Answer, buffer: &[u8], sent: &mut Sent) -> io::Result<()> {
    let (to, fd) = (SockaddrStorage::from(answer.envelope.to), socket.socket.as_raw_fd());
    let segment = u16::try_from(answer.segment).unwrap_or(u16::MAX);
    let send = |bytes: &[u8], segment: Option<&u16>| {
        with_source(answer.envelope.local, |source| {
            let control: [Option<ControlMessage<'_>>; 2] =
                [source.first().copied(), segment.map(ControlMessage::UdpGsoSegments)];
            let mut all = control.into_iter().flatten();
            let flags = MsgFlags::MSG_DONTWAIT;
            let slices = [IoSlice::new(bytes)];
            match (all.next(), all.next()) {
                (Some(a), Some(b)) => sendmsg(fd, &slices, &[a, b], flags, Some(&to)),
                (Some(a), None) => sendmsg(fd, &slices, &[a], flags, Some(&to)),
                _ => sendmsg(fd, &slices, &[], flags, Some(&to)),
            }
        })
    };
    let mut count = |datagrams: usize, bytes: usize| {
        sent.datagrams += datagrams as u64;
        sent.bytes += bytes as u64;
    };
    if answer.segment <= SEGMENT_MAX {
        match send(&buffer[answer.begin..answer.begin + answer.len], Some(&segment)) {
            Ok(_) => {
                count(answer.datagrams(), answer.len);
                return Ok(());
            }
            Err(Errno::EAGAIN) => return Err(ErrorKind::WouldBlock.into()),
            // No checksums by this device, or parts longer than its frames.
            Err(_) => {}
        }
    }
    let mut lost = 0;
    for part in answer.parts(buffer) {
        match send(part, None) {
            Ok(_) => count(1, part.len()),
            Err(_) => lost += 1,
        }
    }
    sent.dropped += lost;
    Ok(())
}

/// Lends the control message that makes an answer leave from this address.
fn with_source<T>(local: Option<Local>, send: impl FnOnce(&[ControlMessage<'_>]) -> T) -> T {
    match local {
        None => send(&[]),
        Some(Local { ip: IpAddr::V4(ip), .. }) => {
            send(&[ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(ip).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            })])
        }
        Some(Local { ip: IpAddr::V6(ip), interface }) => {
            send(&[ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: ip.octets() },
                ipi6_ifindex: interface,
            })])
        }
    }
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::new(v4.ip(), v4.port())));
    v4.or_else(|| {
        let v6 = address.as_sockaddr_in6()?;
        Some(SocketAddr::V6(SocketAddrV6::new(v6.ip(), v6.port(), v6.flowinfo(), v6.scope_id())))
    })
}
