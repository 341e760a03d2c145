//! The few frames with which a client asks who has an address: ARP or neighbour discovery, and TCP's SYN
//! and RST, over IPv4 and IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const ARP: [u8; 2] = [8, 6];
const IPV4: [u8; 2] = [8, 0];
const IPV6: [u8; 2] = [0x86, 0xdd];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;

/// Neighbour discovery, RFC 4861.
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// An answer, which overrides.
const SOLICITED_OVERRIDE: u8 = 0x60;
/// Options with a hardware address: the sender's, the target's.
const SOURCE: u8 = 1;
const TARGET: u8 = 2;

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// An end of a TCP connection.
pub(super) type End = (IpAddr, u16);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// `sender` is at `mac`; said to `target`.
    Reply {
        mac: Mac,
        sender: IpAddr,
        target: IpAddr,
    },
    Request {
        mac: Mac,
        sender: IpAddr,
        target: IpAddr,
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

/// A message of neighbour discovery about `about`, with `mac` as an option.
fn discovery(
    macs: (Mac, Mac),
    ends: (Ipv6Addr, Ipv6Addr),
    (kind, flags): (u8, u8),
    about: Ipv6Addr,
    (option, mac): (u8, Mac),
) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend(about.octets());
    message.extend([option, 1]);
    message.extend(mac);
    let sum = checksum(&[&pseudo6(ends, ICMPV6, message.len()), &message[..]].concat()).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    [ethernet(macs.1, macs.0, IPV6), header6(ends, ICMPV6, message.len()), message].concat()
}

/// `None`: addresses of two families.
pub(super) fn who_has(mac: Mac, sender: IpAddr, target: IpAddr) -> Option<Vec<u8>> {
    match (sender, target) {
        (IpAddr::V4(sender), IpAddr::V4(target)) => {
            Some(arp(BROADCAST, REQUEST, (mac, sender), ([0; 6], target)))
        }
        (IpAddr::V6(sender), IpAddr::V6(target)) => {
            let [.., a, b, c] = target.octets();
            // The solicited-node group, and its hardware address.
            let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
            let to = [0x33, 0x33, 0xff, a, b, c];
            Some(discovery((mac, to), (sender, group), (SOLICITATION, 0), target, (SOURCE, mac)))
        }
        _ => None,
    }
}

pub(super) fn is_at(mac: Mac, sender: IpAddr, to: (Mac, IpAddr)) -> Option<Vec<u8>> {
    match (sender, to.1) {
        (IpAddr::V4(sender), IpAddr::V4(target)) => Some(arp(to.0, REPLY, (mac, sender), (to.0, target))),
        (IpAddr::V6(sender), IpAddr::V6(target)) => {
            let kind = (ADVERTISEMENT, SOLICITED_OVERRIDE);
            Some(discovery((mac, to.0), (sender, target), kind, sender, (TARGET, mac)))
        }
        _ => None,
    }
}

pub(super) fn syn(macs: (Mac, Mac), from: End, to: End, sequence: u32) -> Option<Vec<u8>> {
    tcp(macs, from, to, sequence, SYN)
}

pub(super) fn reset(macs: (Mac, Mac), from: End, to: End, sequence: u32) -> Option<Vec<u8>> {
    tcp(macs, from, to, sequence, RST)
}

/// `macs`: from, to.
fn tcp(macs: (Mac, Mac), from: End, to: End, sequence: u32, flags: u8) -> Option<Vec<u8>> {
    let mut segment = Vec::with_capacity(20);
    segment.extend(from.1.to_be_bytes());
    segment.extend(to.1.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend([5 << 4, flags, 0x20, 0, 0, 0, 0, 0]);
    let (kind, header, pseudo) = match (from.0, to.0) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let pseudo = [&from.octets()[..], &to.octets(), &[0, TCP, 0, 20]].concat();
            let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            (IPV4, header, pseudo)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let ends = (from, to);
            (IPV6, header6(ends, TCP, segment.len()), pseudo6(ends, TCP, segment.len()))
        }
        _ => return None,
    };
    let sum = checksum(&[&pseudo[..], &segment].concat()).to_be_bytes();
    segment[16..18].copy_from_slice(&sum);
    Some([ethernet(macs.1, macs.0, kind), header, segment].concat())
}

/// The hop limit of neighbour discovery, by which it is known not to have been routed.
const HOPS: u8 = 255;

fn header6(ends: (Ipv6Addr, Ipv6Addr), next: u8, length: usize) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0, 0, length as u8, next, HOPS];
    header.extend(ends.0.octets());
    header.extend(ends.1.octets());
    header
}

fn pseudo6(ends: (Ipv6Addr, Ipv6Addr), next: u8, length: usize) -> Vec<u8> {
    [&ends.0.octets()[..], &ends.1.octets(), &[0, 0, 0, length as u8, 0, 0, 0, next]].concat()
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

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

/// What a frame says, if it is one of those.
pub(super) fn parse(frame: &[u8]) -> Option<Heard> {
    let mac: Mac = array(frame, 6)?;
    let packet = frame.get(14..)?;
    let v4 = |at: usize| array(packet, at).map(|octets: [u8; 4]| IpAddr::from(octets));
    let v6 = |at: usize| array(packet, at).map(|octets: [u8; 16]| IpAddr::from(octets));
    match array(frame, 12)? {
        ARP => {
            let (mac, sender, target) = (array(packet, 8)?, v4(14)?, v4(24)?);
            match number(packet, 6)? {
                REQUEST => Some(Heard::Request { mac, sender, target }),
                REPLY => Some(Heard::Reply { mac, sender, target }),
                _ => None,
            }
        }
        IPV4 => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            // Fragments have no header of their own; ours don't need any.
            if packet.first()? >> 4 != 4 || *packet.get(9)? != TCP || number(packet, 6)? & 0x1fff != 0 {
                return None;
            }
            answer(mac, (v4(12)?, v4(16)?), packet.get(header..)?)
        }
        IPV6 => {
            let (ends, inner) = ((v6(8)?, v6(24)?), packet.get(40..)?);
            match *packet.get(6)? {
                TCP => answer(mac, ends, inner),
                ICMPV6 => {
                    let about = v6(48)?;
                    // Without the option, the frame's sender is meant.
                    let option = |wanted: u8| match array(inner, 24) {
                        Some([kind, 1]) if kind == wanted => array(inner, 26),
                        _ => Some(mac),
                    };
                    match *inner.first()? {
                        SOLICITATION => {
                            Some(Heard::Request { mac: option(SOURCE)?, sender: ends.0, target: about })
                        }
                        ADVERTISEMENT => {
                            Some(Heard::Reply { mac: option(TARGET)?, sender: about, target: ends.1 })
                        }
                        _ => None,
                    }
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn answer(mac: Mac, ends: (IpAddr, IpAddr), segment: &[u8]) -> Option<Heard> {
    let flags = *segment.get(13)?;
    let answers = flags & (SYN | ACK) == SYN | ACK || flags & RST != 0;
    let from = (ends.0, number(segment, 0)?);
    let to = (ends.1, number(segment, 2)?);
    let acknowledged = u32::from_be_bytes(array(segment, 8)?);
    answers.then_some(Heard::Tcp { mac, from, to, reset: flags & RST != 0, acknowledged })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];

    fn ip4(last: u8) -> IpAddr {
        Ipv4Addr::new(198, 18, 0, last).into()
    }

    fn ip6(last: u8) -> IpAddr {
        Ipv6Addr::new(0xfd00, 0x198, 0x18, 0, 0, 0, 0, last.into()).into()
    }

    const FAMILIES: [fn(u8) -> IpAddr; 2] = [ip4, ip6];

    #[test]
    fn frames_are_read_as_they_were_made() {
        for ip in FAMILIES {
            let request = parse(&who_has(A, ip(1), ip(2)).unwrap());
            assert_eq!(request, Some(Heard::Request { mac: A, sender: ip(1), target: ip(2) }));
            let reply = parse(&is_at(B, ip(2), (A, ip(1))).unwrap());
            assert_eq!(reply, Some(Heard::Reply { mac: B, sender: ip(2), target: ip(1) }));
            let (from, to) = ((ip(1), 5), (ip(2), 80));
            assert_eq!(parse(&syn((A, B), from, to, 7).unwrap()), None, "a question, no answer");
            let end = parse(&reset((A, B), from, to, 7).unwrap());
            assert_eq!(end, Some(Heard::Tcp { mac: A, from, to, reset: true, acknowledged: 0 }));
        }
        assert_eq!(who_has(A, ip4(1), ip6(2)), None, "two families");
    }

    #[test]
    fn sums_are_right_and_bytes_that_are_no_frame_are_nothing() {
        let frame = syn((A, B), (ip4(1), 5), (ip4(2), 80), 7).unwrap();
        assert_eq!(checksum(&frame[14..34]), 0);
        let pseudo = [&frame[26..34], &[0, TCP, 0, 20], &frame[34..]].concat();
        assert_eq!(checksum(&pseudo), 0);
        let over_ipv6 = [
            (TCP, syn((A, B), (ip6(1), 5), (ip6(2), 80), 7)),
            (ICMPV6, who_has(A, ip6(1), ip6(2))),
            (ICMPV6, is_at(A, ip6(1), (B, ip6(2)))),
        ];
        for (next, frame) in over_ipv6 {
            let frame = frame.unwrap();
            let length = frame.len() - 54;
            assert_eq!(usize::from(frame[19]), length);
            let pseudo = [&frame[22..54], &[0, 0, 0, length as u8, 0, 0, 0, next], &frame[54..]].concat();
            assert_eq!(checksum(&pseudo), 0);
        }
        for ip in FAMILIES {
            for frame in [who_has(A, ip(1), ip(2)), reset((A, B), (ip(1), 5), (ip(2), 80), 7)] {
                let frame = frame.unwrap();
                for length in 0..frame.len() {
                    // Cut short it is nothing, or what was needed is there: it never panics.
                    let _ = parse(&frame[..length]);
                }
            }
        }
    }
}
