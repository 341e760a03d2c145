//! A segment of TCP that makes the other side speak: an acknowledgement of nothing, from an address of this
//! machine. Who has such a connection answers where it is (RFC 9293, section 3.10.7.4: an unacceptable segment is
//! acknowledged), and whatever that answer meets here, or behind, resets it by the right number if it knows no such
//! connection. So a connection that nobody carries any more ends, also where its client only listens.
//!
//! It needs CAP_NET_RAW.

use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, ipproto, sendto, socket_with};

use crate::socket::Error;

/// Sends one to each client, from the address and port that it came to. How many were sent: one that finds no room
/// or no way is left out.
pub fn nudge(pairs: &mut [(SocketAddr, SocketAddr)]) -> Result<usize, Error> {
    // One socket for each address of ours.
    pairs.sort_unstable_by_key(|(_, from)| from.ip());
    let mut sent = 0;
    for some in pairs.chunk_by(|(_, a), (_, b)| a.ip() == b.ip()) {
        let Some((_, from)) = some.first() else { continue };
        let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::RAW, flags, Some(ipproto::TCP))
            .map_err(Error::call("open a raw socket"))?;
        match bind(&socket, &SocketAddr::new(from.ip(), 0)) {
            // The address has just gone elsewhere.
            Err(Errno::ADDRNOTAVAIL) => continue,
            result => result.map_err(Error::call("bind a raw socket"))?,
        }
        for (client, from) in some {
            let segment = segment(*from, *client);
            let to = SocketAddr::new(client.ip(), 0);
            sent += usize::from(sendto(&socket, &segment, SendFlags::DONTWAIT, &to).is_ok());
        }
    }
    Ok(sent)
}

/// Header alone: ACK, all numbers zero.
fn segment(from: SocketAddr, to: SocketAddr) -> [u8; 20] {
    const ACK: u8 = 0x10;
    let mut bytes = [0; 20];
    bytes[..2].copy_from_slice(&from.port().to_be_bytes());
    bytes[2..4].copy_from_slice(&to.port().to_be_bytes());
    bytes[12] = 5 << 4;
    bytes[13] = ACK;
    let sum = checksum(from.ip(), to.ip(), &bytes);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// RFC 9293, section 3.1, and RFC 8200, section 8.1: addresses, protocol and length count.
fn checksum(from: IpAddr, to: IpAddr, segment: &[u8; 20]) -> u16 {
    let mut sum = 6 + segment.len() as u32;
    let mut add = |bytes: &[u8]| {
        for pair in bytes.chunks_exact(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        }
    };
    for ip in [from, to] {
        match ip {
            IpAddr::V4(ip) => add(&ip.octets()),
            IpAddr::V6(ip) => add(&ip.octets()),
        }
    }
    add(segment);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_over_a_segment_with_its_checksum_is_all_ones() {
        for (from, to) in [("198.18.0.1:80", "198.18.0.2:40000"), ("[fd00::1]:80", "[fd00::2]:40001")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            assert_eq!(checksum(from.ip(), to.ip(), &segment(from, to)), 0);
        }
    }
}
