//! The few frames with which a client asks who has an address: ARP, and TCP's SYN and RST over IPv4.

use std::net::Ipv4Addr;

pub(super) type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const ARP: [u8; 2] = [8, 6];
const IPV4: [u8; 2] = [8, 0];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const TCP: u8 = 6;

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// An end of a TCP connection.
pub(super) type End = (Ipv4Addr, u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// `sender` is at `mac`; said to `target`.
    Reply {
        mac: Mac,
        sender: Ipv4Addr,
        target: Ipv4Addr,
    },
    Request {
        mac: Mac,
        sender: Ipv4Addr,
        target: Ipv4Addr,
    },
    /// An answer to a SYN: SYN-ACK, or RST. `acknowledged`: what it acknowledges.
    Tcp {
        mac: Mac,
        from: End,
        to: End,
        reset: bool,
        acknowledged: u32,
    },
}

fn ethernet(to: Mac, from: Mac, kind: [u8; 2]) -> Vec<u8> {
    [&to[..], &from, &kind].concat()
}

fn arp(to: Mac, operation: u16, from: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut frame = ethernet(to, from.0, ARP);
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    for (mac, address) in [from, target] {
        frame.extend(mac);
        frame.extend(address.octets());
    }
    frame
}

pub(super) fn who_has(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    arp(BROADCAST, REQUEST, (mac, sender), ([0; 6], target))
}

pub(super) fn is_at(mac: Mac, sender: Ipv4Addr, to: (Mac, Ipv4Addr)) -> Vec<u8> {
    arp(to.0, REPLY, (mac, sender), to)
}

pub(super) fn syn(macs: (Mac, Mac), from: End, to: End, sequence: u32) -> Vec<u8> {
    tcp(macs, from, to, sequence, SYN)
}

pub(super) fn reset(macs: (Mac, Mac), from: End, to: End, sequence: u32) -> Vec<u8> {
    tcp(macs, from, to, sequence, RST)
}

/// `macs`: from, to.
fn tcp(macs: (Mac, Mac), from: End, to: End, sequence: u32, flags: u8) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend(from.1.to_be_bytes());
    segment.extend(to.1.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend([5 << 4, flags, 0x20, 0, 0, 0, 0, 0]);
    let pseudo = [&from.0.octets()[..], &to.0.octets(), &[0, TCP, 0, 20]].concat();
    let sum = checksum(&[&pseudo[..], &segment].concat()).to_be_bytes();
    segment[16..18].copy_from_slice(&sum);
    let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0];
    header.extend(from.0.octets());
    header.extend(to.0.octets());
    let sum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    [ethernet(macs.1, macs.0, IPV4), header, segment].concat()
}

/// RFC 1071. Over bytes that carry a right sum it gives 0.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What a frame says, if it is one of those.
pub(super) fn parse(frame: &[u8]) -> Option<Heard> {
    let array = |at: usize| frame.get(at..at + 4)?.first_chunk::<4>().copied();
    let address = |at: usize| array(at).map(Ipv4Addr::from);
    let mac = |at: usize| frame.get(at..at + 6)?.first_chunk::<6>().copied();
    let port = |at: usize| Some(u16::from_be_bytes(*frame.get(at..at + 2)?.first_chunk()?));
    match *frame.get(12..14)?.first_chunk::<2>()? {
        ARP => {
            let (mac, sender, target) = (mac(22)?, address(28)?, address(38)?);
            match port(20)? {
                REQUEST => Some(Heard::Request { mac, sender, target }),
                REPLY => Some(Heard::Reply { mac, sender, target }),
                _ => None,
            }
        }
        IPV4 => {
            let header = 14 + usize::from(frame.get(14)? & 0xf) * 4;
            // Fragments have no header of their own; ours don't need any.
            if frame.get(14)? >> 4 != 4 || *frame.get(23)? != TCP || port(20)? & 0x1fff != 0 {
                return None;
            }
            let flags = *frame.get(header + 13)?;
            let answers = flags & (SYN | ACK) == SYN | ACK || flags & RST != 0;
            let from = (address(26)?, port(header)?);
            let to = (address(30)?, port(header + 2)?);
            let acknowledged = u32::from_be_bytes(array(header + 8)?);
            answers.then_some(Heard::Tcp { mac: mac(6)?, from, to, reset: flags & RST != 0, acknowledged })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 0, last)
    }

    #[test]
    fn frames_are_read_as_they_were_made() {
        let request = parse(&who_has(A, ip(1), ip(2)));
        assert_eq!(request, Some(Heard::Request { mac: A, sender: ip(1), target: ip(2) }));
        let reply = parse(&is_at(B, ip(2), (A, ip(1))));
        assert_eq!(reply, Some(Heard::Reply { mac: B, sender: ip(2), target: ip(1) }));
        assert_eq!(parse(&syn((A, B), (ip(1), 5), (ip(2), 80), 7)), None, "a question, no answer");
        let end = parse(&reset((A, B), (ip(1), 5), (ip(2), 80), 7));
        let (from, to) = ((ip(1), 5), (ip(2), 80));
        assert_eq!(end, Some(Heard::Tcp { mac: A, from, to, reset: true, acknowledged: 0 }));
    }

    #[test]
    fn sums_are_right_and_bytes_that_are_no_frame_are_nothing() {
        let frame = syn((A, B), (ip(1), 5), (ip(2), 80), 7);
        assert_eq!(checksum(&frame[14..34]), 0);
        let pseudo = [&frame[26..34], &[0, TCP, 0, 20], &frame[34..]].concat();
        assert_eq!(checksum(&pseudo), 0);
        for frame in [who_has(A, ip(1), ip(2)), reset((A, B), (ip(1), 5), (ip(2), 80), 7)] {
            for length in 0..frame.len() {
                // Cut short it is nothing, or what was needed is there: it never panics.
                let _ = parse(&frame[..length]);
            }
        }
    }
}
