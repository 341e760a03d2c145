//! A packet socket on one interface, with frames as the kernel has them.
//!
//! Between virtual interfaces frames carry no checksum yet and may be larger than the link's: the
//! header in front of each (`PACKET_VNET_HDR`) says so, and is handed on unread.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The header, and the largest frame with segmentation left to the device.
pub(super) const FRAME_MAX: usize = 10 + 18 + 65_536;

/// `ETH_P_ALL` in network order, as `sockaddr_ll` wants it.
const ALL: u16 = (libc::ETH_P_ALL as u16).to_be();

/// Not in libc: frames that this host sends on the interface are not wanted.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

pub(super) struct Port(File);

impl Port {
    pub(super) fn open(interface: &str) -> io::Result<Port> {
        let index = std::fs::read_to_string(format!("/sys/class/net/{interface}/ifindex"))?;
        let index: i32 = index.trim().parse().map_err(io::Error::other)?;
        // SAFETY: no pointers are passed; the result is checked before it is used.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        option(&socket, libc::PACKET_VNET_HDR)?;
        option(&socket, PACKET_IGNORE_OUTGOING)?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ALL,
            sll_ifindex: index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the pointer is to a whole `sockaddr_ll` that outlives the call, and the length is its.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Port(File::from(socket)))
    }

    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        (&self.0).write(frame).map(drop)
    }
}

fn option(socket: &OwnedFd, name: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer is to a `c_int` that outlives the call, and the length is its.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            name,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
