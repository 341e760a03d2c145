//! Datagrams of the listening socket: who sent one, to which of our addresses, and answers that leave
//! from that address.
//!
//! A socket bound to all addresses would let the kernel choose the source of an answer by route; a
//! client that asked another address of ours would drop it. So such a socket is told where each datagram was
//! sent to (`IP_PKTINFO`, `IPV6_PKTINFO`; ip(7), ipv6(7)) and says the same in the answer.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Holds any datagram: 65,507 bytes over IPv4, 65,527 over IPv6.
pub(super) const DATAGRAM_MAX: usize = 65_536;

/// Which of our addresses a datagram was sent to. The interface counts for link-local ones only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Local {
    ip: IpAddr,
    interface: u32,
}

pub(super) struct Received {
    pub(super) len: usize,
    pub(super) from: SocketAddr,
    /// Known for sockets bound to all addresses; others have only one.
    pub(super) local: Option<Local>,
}

/// A bound listening socket.
pub(super) struct Listening {
    socket: UdpSocket,
    /// Bound to all addresses.
    wildcard: bool,
}

impl Listening {
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let wildcard = address.ip().is_unspecified();
        if wildcard && address.is_ipv6() {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        } else if wildcard {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        }
        Ok(Self { socket, wildcard })
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// The next datagram, or `WouldBlock`. `into` should hold [`DATAGRAM_MAX`].
    pub(super) fn try_receive(&self, into: &mut [u8]) -> io::Result<Received> {
        if self.wildcard {
            return self.socket.try_io(Interest::READABLE, || self.receive_with_local(into));
        }
        let (len, from) = self.socket.try_recv_from(into)?;
        Ok(Received { len, from, local: None })
    }

    /// Sends to a client, from the address that it asked.
    pub(super) async fn send(&self, datagram: &[u8], to: SocketAddr, local: Option<Local>) -> io::Result<()> {
        let sent = self.socket.async_io(Interest::WRITABLE, || self.send_from(datagram, to, local));
        sent.await.map(drop)
    }

    /// As [`Listening::send`], or `WouldBlock`.
    pub(super) fn try_send(&self, datagram: &[u8], to: SocketAddr, local: Option<Local>) -> io::Result<()> {
        let sent = self.socket.try_io(Interest::WRITABLE, || self.send_from(datagram, to, local));
        sent.map(drop)
    }

    fn receive_with_local(&self, into: &mut [u8]) -> io::Result<Received> {
        let mut slices = [IoSliceMut::new(into)];
        let mut control = nix::cmsg_space!(libc::in6_pktinfo);
        let fd = self.socket.as_raw_fd();
        let message =
            recvmsg::<SockaddrStorage>(fd, &mut slices, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
        let from = message.address.as_ref().and_then(socket_addr).ok_or(Errno::EAFNOSUPPORT)?;
        let local = message.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(Local {
                ip: Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)).into(),
                interface: 0,
            }),
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let ip = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                let interface = if ip.is_unicast_link_local() { info.ipi6_ifindex } else { 0 };
                Some(Local { ip: ip.into(), interface })
            }
            _ => None,
        });
        Ok(Received { len: message.bytes, from, local })
    }

    fn send_from(&self, datagram: &[u8], to: SocketAddr, local: Option<Local>) -> io::Result<usize> {
        let (fd, slices, to) = (self.socket.as_raw_fd(), [IoSlice::new(datagram)], SockaddrStorage::from(to));
        let send = |control: &[ControlMessage<'_>]| {
            Ok(sendmsg(fd, &slices, control, MsgFlags::MSG_DONTWAIT, Some(&to))?)
        };
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
}

fn socket_addr(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::new(v4.ip(), v4.port())));
    v4.or_else(|| {
        let v6 = address.as_sockaddr_in6()?;
        Some(SocketAddr::V6(SocketAddrV6::new(v6.ip(), v6.port(), v6.flowinfo(), v6.scope_id())))
    })
}
