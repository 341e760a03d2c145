//! Making listening sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use socket2::{Domain, Protocol, SockFilter, Type};

use super::{Socket, Transport};

/// Connections that may wait to be accepted, a socket; the kernel lowers it to `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// Where sockets are wanted.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// `None` is all addresses, IPv6 and IPv4; an address of IPv6 is for IPv6 only, so that one of IPv4 can
    /// stand beside it.
    pub(super) ip: Option<IpAddr>,
    pub(super) ports: RangeInclusive<u16>,
    /// The machine may not have the address now, and the socket serves once it does.
    pub(super) absent: bool,
}

/// One socket for each worker at the same address; of a range one for each port, dealt out to the workers.
/// Returns the first address.
///
/// # Errors
/// If an address is in use by somebody else or can't be bound: then none of the range is.
pub(super) fn bind(
    transport: Transport,
    place: Place,
    workers: usize,
) -> io::Result<(SocketAddr, Vec<Socket>)> {
    let (first, mut each) = (*place.ports.start(), Vec::new());
    let is_range = place.ports.len() > 1;
    let mut address = None;
    for port in place.ports.clone() {
        let (bound, sockets) = bind_port(transport, &place, port, if is_range { 1 } else { workers })
            .map_err(|error| match port == first {
                true => error,
                false => io::Error::new(error.kind(), format!("port {port}: {error}")),
            })?;
        address.get_or_insert(bound);
        each.extend(sockets);
    }
    let mut dealt: Vec<Vec<socket2::Socket>> = (0..workers).map(|_| Vec::new()).collect();
    for (at, socket) in each.into_iter().enumerate() {
        dealt[at % workers].push(socket);
    }
    let finish = |sockets: Vec<socket2::Socket>| match transport {
        Transport::Tcp => {
            sockets.iter().try_for_each(|socket| socket.listen(BACKLOG))?;
            Ok(Socket::Tcp(sockets.into_iter().map(Into::into).collect()))
        }
        Transport::Udp => Ok(Socket::Udp(sockets.into_iter().map(Into::into).collect())),
    };
    let address = address.ok_or(io::ErrorKind::InvalidInput)?;
    Ok((address, dealt.into_iter().map(finish).collect::<io::Result<_>>()?))
}

fn bind_port(
    transport: Transport,
    place: &Place,
    port: u16,
    sockets: usize,
) -> io::Result<(SocketAddr, Vec<socket2::Socket>)> {
    let at = |address, only_v6, absent| bind_all(Want { transport, address, only_v6, absent }, sockets);
    match place.ip {
        Some(ip) => at(SocketAddr::new(ip, port), true, place.absent),
        None => match at((Ipv6Addr::UNSPECIFIED, port).into(), false, false) {
            Err(error) if is_no_ipv6(&error) => at((Ipv4Addr::UNSPECIFIED, port).into(), false, false),
            bound => bound,
        },
    }
}

#[derive(Clone, Copy)]
struct Want {
    transport: Transport,
    address: SocketAddr,
    only_v6: bool,
    absent: bool,
}

fn is_no_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT, EADDRNOTAVAIL: the machine has IPv6 switched off.
    matches!(error.raw_os_error(), Some(97)) || error.kind() == io::ErrorKind::AddrNotAvailable
}

fn bind_all(want: Want, workers: usize) -> io::Result<(SocketAddr, Vec<socket2::Socket>)> {
    // SO_REUSEPORT would let us bind beside another process of the same user and take half of its
    // connections. So the first socket is bound without it, and gets it only then.
    let first = new(want)?;
    first.bind(&want.address.into())?;
    first.set_reuse_port(true)?;
    let bound = first.local_addr()?.as_socket().ok_or_else(|| io::Error::other("no IP address"))?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        let socket = new(want)?;
        socket.set_reuse_port(true)?;
        socket.bind(&bound.into())?;
        sockets.push(socket);
    }
    Ok((bound, sockets))
}

fn new(want: Want) -> io::Result<socket2::Socket> {
    let Want { transport, address, only_v6, absent } = want;
    let domain = Domain::for_address(address);
    let socket = match transport {
        Transport::Tcp => socket2::Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?,
        Transport::Udp => socket2::Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?,
    };
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    match address {
        SocketAddr::V4(_) if absent => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) if absent => socket.set_freebind_v6(true)?,
        _ => {}
    }
    if transport == Transport::Tcp {
        // Connections of an earlier life of this process may still be in TIME_WAIT. For UDP it would
        // mean sharing the port.
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Makes the kernel drop SYNs that come to a listening socket, so that its queue can run empty before
/// it is closed: closing resets what waits there, and a socket of a SO_REUSEPORT group does not hand it
/// to the others. Whoever is turned away sends its SYN again a second later, and is then refused or
/// accepted by whoever listens.
///
/// # Errors
/// If the kernel takes no filter.
pub(super) fn turn_away(socket: &impl std::os::fd::AsFd) -> io::Result<()> {
    // Classic BPF over the packet from its TCP header on: drop if SYN is set and ACK is not.
    const FLAGS_OFFSET: u32 = 13;
    const SYN_AND_ACK: u32 = 0x12;
    const SYN: u32 = 0x02;
    const LOAD_BYTE: u16 = 0x30;
    const AND: u16 = 0x54;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let program = [
        SockFilter::new(LOAD_BYTE, 0, 0, FLAGS_OFFSET),
        SockFilter::new(AND, 0, 0, SYN_AND_ACK),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    socket2::SockRef::from(socket).attach_filter(&program)
}
