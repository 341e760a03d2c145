//! ARP and neighbour discovery on an interface: telling neighbours who has an address, asking whether
//! somebody has it, and hearing who says so.
//!
//! The receiver is woken only by ARP and by neighbour solicitations and advertisements that others sent
//! (a classic BPF filter sorts in the kernel). It sits before the ingress hook, so it hears what a
//! fence drops. What it sends passes the egress hook: a shut fence drops announcements of its address.
//! Frames with a VLAN tag are heard on the VLAN's own interface.
//!
//! Invariant: [`parse`] takes any bytes without a panic and believes no length it has not checked.
//!
//! Sources: RFC 826 (ARP), RFC 5227 (probe 2.1.1, announcement 2.3), RFC 5944 section 4.6 (gratuitous
//! reply), RFC 4861 (4.3, 4.4, 7.2.6 unsolicited advertisements), RFC 4862 section 5.4.2 (probe), RFC 2464
//! section 7 (multicast), packet(7), `linux/filter.h`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use libc::sock_filter;
use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with},
};

use crate::{route::Mac, socket::Error, sys};

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_ALL: u16 = 0x0003;
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const OPTION_SOURCE_MAC: u8 = 1;
const OPTION_TARGET_MAC: u8 = 2;

pub const ARP_REQUEST: u16 = 1;
pub const ARP_REPLY: u16 = 2;

/// Longest frame of ours: a solicitation or advertisement with one option.
const FRAME_MAX: usize = 14 + 40 + 32;

/// An Ethernet frame, built on the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    bytes: [u8; FRAME_MAX],
    length: usize,
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Frame {
    fn new(to: Mac, from: Mac, ethertype: u16) -> Self {
        let mut frame = Self { bytes: [0; FRAME_MAX], length: 0 };
        frame.put(&to.0);
        frame.put(&from.0);
        frame.put(&ethertype.to_be_bytes());
        frame
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
    }

    fn arp(operation: u16, mac: Mac, sender: Ipv4Addr, target_mac: Mac, target: Ipv4Addr) -> Self {
        let mut frame = Self::new(Mac::BROADCAST, mac, ETHERTYPE_ARP);
        // Ethernet, IPv4, and the lengths of their addresses.
        frame.put(&[0, 1, 8, 0, 6, 4]);
        frame.put(&operation.to_be_bytes());
        frame.put(&mac.0);
        frame.put(&sender.octets());
        frame.put(&target_mac.0);
        frame.put(&target.octets());
        frame
    }

    /// Asks whether somebody has the address, without claiming it (RFC 5227, 2.1.1).
    #[must_use]
    pub fn arp_probe(mac: Mac, address: Ipv4Addr) -> Self {
        Self::arp(ARP_REQUEST, mac, Ipv4Addr::UNSPECIFIED, Mac([0; 6]), address)
    }

    /// Gratuitous ARP as a request: what RFC 5227 calls an announcement.
    #[must_use]
    pub fn arp_announcement(mac: Mac, address: Ipv4Addr) -> Self {
        Self::arp(ARP_REQUEST, mac, address, Mac([0; 6]), address)
    }

    /// Gratuitous ARP as a reply: some neighbours heed only this form.
    #[must_use]
    pub fn arp_gratuitous_reply(mac: Mac, address: Ipv4Addr) -> Self {
        Self::arp(ARP_REPLY, mac, address, mac, address)
    }

    /// Unsolicited advertisement with the override flag to all nodes (RFC 4861, 7.2.6).
    #[must_use]
    pub fn advertisement(mac: Mac, address: Ipv6Addr) -> Self {
        const OVERRIDE: u8 = 0x20;
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        Self::discovery(ADVERTISEMENT, OVERRIDE, mac, address, all_nodes, address, Some(OPTION_TARGET_MAC))
    }

    /// Asks whether somebody has the address, without claiming it (RFC 4862, 5.4.2).
    #[must_use]
    pub fn solicitation_probe(mac: Mac, address: Ipv6Addr) -> Self {
        let [.., a, b, c] = address.octets();
        let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
        Self::discovery(SOLICITATION, 0, mac, Ipv6Addr::UNSPECIFIED, group, address, None)
    }

    fn discovery(
        kind: u8,
        flags: u8,
        mac: Mac,
        from: Ipv6Addr,
        to: Ipv6Addr,
        target: Ipv6Addr,
        option: Option<u8>,
    ) -> Self {
        let [.., a, b, c, d] = to.octets();
        let mut frame = Self::new(Mac([0x33, 0x33, a, b, c, d]), mac, ETHERTYPE_IPV6);
        let payload: u16 = if option.is_some() { 32 } else { 24 };
        frame.put(&[0x60, 0, 0, 0]);
        frame.put(&payload.to_be_bytes());
        frame.put(&[ICMPV6, 255]);
        frame.put(&from.octets());
        frame.put(&to.octets());
        frame.put(&[kind, 0, 0, 0, flags, 0, 0, 0]);
        frame.put(&target.octets());
        if let Some(option) = option {
            frame.put(&[option, 1]);
            frame.put(&mac.0);
        }
        let sum = checksum(from, to, &frame.bytes[54..frame.length]);
        frame.bytes[56..58].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// What tells neighbours that the address is here: for IPv4 both forms.
    #[must_use]
    pub fn announcements(mac: Mac, address: IpAddr) -> (Self, Option<Self>) {
        match address {
            IpAddr::V4(address) => {
                (Self::arp_announcement(mac, address), Some(Self::arp_gratuitous_reply(mac, address)))
            }
            IpAddr::V6(address) => (Self::advertisement(mac, address), None),
        }
    }

    /// What asks whether somebody has the address.
    #[must_use]
    pub fn probe(mac: Mac, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::arp_probe(mac, address),
            IpAddr::V6(address) => Self::solicitation_probe(mac, address),
        }
    }
}

/// RFC 8200, 8.1: over the pseudo-header and the message, its own field taken as it is. Over a message
/// that carries a right sum it gives 0.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u32 {
        bytes
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
            .sum()
    };
    let mut sum = words(&from.octets())
        + words(&to.octets())
        + message.len() as u32
        + u32::from(ICMPV6)
        + words(message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What a neighbour said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    Arp { operation: u16, sender: Ipv4Addr, sender_mac: Mac, target: Ipv4Addr },
    Advertisement { target: Ipv6Addr, mac: Mac },
    Solicitation { source: Ipv6Addr, mac: Mac, target: Ipv6Addr },
}

impl Heard {
    /// The address that it says is at this MAC; `None`: it claims none (a probe).
    #[must_use]
    pub fn claims(&self) -> Option<(IpAddr, Mac)> {
        match *self {
            Self::Arp { sender, sender_mac, .. } => {
                (!sender.is_unspecified()).then_some((sender.into(), sender_mac))
            }
            Self::Advertisement { target, mac } => Some((target.into(), mac)),
            Self::Solicitation { source, mac, .. } => {
                (!source.is_unspecified()).then_some((source.into(), mac))
            }
        }
    }

    /// The address that it probes for: whoever sends this means to take it (RFC 5227, 2.1.1).
    #[must_use]
    pub fn probes(&self) -> Option<(IpAddr, Mac)> {
        match *self {
            Self::Arp { operation: ARP_REQUEST, sender, sender_mac, target } => {
                sender.is_unspecified().then_some((target.into(), sender_mac))
            }
            Self::Solicitation { source, mac, target } => {
                source.is_unspecified().then_some((target.into(), mac))
            }
            _ => None,
        }
    }
}

/// Reads an Ethernet frame; `None`: it is something else, or not well formed.
#[must_use]
pub fn parse(frame: &[u8]) -> Option<Heard> {
    let (header, rest) = frame.split_first_chunk::<14>()?;
    let from = Mac(*header[6..].first_chunk()?);
    match u16::from_be_bytes([header[12], header[13]]) {
        ETHERTYPE_ARP => parse_arp(rest),
        ETHERTYPE_IPV6 => parse_discovery(from, rest),
        _ => None,
    }
}

fn parse_arp(packet: &[u8]) -> Option<Heard> {
    let packet = packet.first_chunk::<28>()?;
    if packet[..6] != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    Some(Heard::Arp {
        operation: u16::from_be_bytes([packet[6], packet[7]]),
        sender_mac: Mac(*packet[8..].first_chunk()?),
        sender: Ipv4Addr::from(*packet[14..].first_chunk::<4>()?),
        target: Ipv4Addr::from(*packet[24..].first_chunk::<4>()?),
    })
}

fn parse_discovery(frame_source: Mac, packet: &[u8]) -> Option<Heard> {
    let (header, rest) = packet.split_first_chunk::<40>()?;
    // Hop limit 255: it has passed no router (RFC 4861, 7.1).
    if header[0] >> 4 != 6 || header[6] != ICMPV6 || header[7] != 255 {
        return None;
    }
    let message = rest.get(..usize::from(u16::from_be_bytes([header[4], header[5]])))?;
    let source = Ipv6Addr::from(*header[8..].first_chunk::<16>()?);
    let destination = Ipv6Addr::from(*header[24..].first_chunk::<16>()?);
    let (fixed, options) = message.split_first_chunk::<24>()?;
    if fixed[1] != 0 || checksum(source, destination, message) != 0 {
        return None;
    }
    let target = Ipv6Addr::from(*fixed[8..].first_chunk::<16>()?);
    match fixed[0] {
        SOLICITATION => {
            let mac = option(options, OPTION_SOURCE_MAC)?.unwrap_or(frame_source);
            Some(Heard::Solicitation { source, mac, target })
        }
        ADVERTISEMENT => {
            let mac = option(options, OPTION_TARGET_MAC)?.unwrap_or(frame_source);
            Some(Heard::Advertisement { target, mac })
        }
        _ => None,
    }
}

/// Outer `None`: an option is not well formed, so the message is void (RFC 4861, 7.1).
fn option(mut options: &[u8], wanted: u8) -> Option<Option<Mac>> {
    while let [kind, units, ..] = *options {
        let length = usize::from(units) * 8;
        let whole = options.get(..length).filter(|whole| !whole.is_empty())?;
        if kind == wanted {
            return Some(whole.get(2..).and_then(|value| value.first_chunk()).map(|mac| Mac(*mac)));
        }
        options = &options[length..];
    }
    Some(None)
}

/// Sends and hears frames on one interface.
#[derive(Debug)]
pub struct Port {
    fd: OwnedFd,
}

impl Port {
    /// Only sends.
    pub fn sender(link: u32) -> Result<Self, Error> {
        let fd = open()?;
        // Protocol 0: nothing is received.
        sys::bind_link(&fd, link, 0).map_err(Error::io("bind a packet socket"))?;
        Ok(Self { fd })
    }

    /// Sends, and hears what others say about addresses.
    pub fn listen(link: u32) -> Result<Self, Error> {
        let fd = open()?;
        // Until it is bound nothing is received, so nothing slips in before the filter.
        sys::attach_filter(fd.as_fd(), &filter()).map_err(Error::io("filter a packet socket"))?;
        // Kernels before 4.20 give outgoing frames, too: the filter drops those.
        let _ = sys::set_option(fd.as_fd(), libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1);
        sys::bind_link(&fd, link, ETHERTYPE_ALL).map_err(Error::io("bind a packet socket"))?;
        Ok(Self { fd })
    }

    /// Without waiting. A frame that the egress hook drops may be reported as ENOBUFS or not at all.
    pub fn send(&self, frame: &Frame) -> Result<(), Error> {
        rustix::io::retry_on_intr(|| send(&self.fd, frame.as_ref(), SendFlags::DONTWAIT))
            .map(|_| ())
            .map_err(Error::call("send a frame"))
    }

    /// Tells neighbours that the address is here.
    pub fn announce(&self, mac: Mac, address: IpAddr) -> Result<(), Error> {
        let (first, second) = Frame::announcements(mac, address);
        self.send(&first)?;
        second.map_or(Ok(()), |second| self.send(&second))
    }

    /// The next that was heard, without waiting; `None`: nothing now. What does not parse is skipped, at
    /// most 256 frames a call.
    pub fn hear(&self) -> Result<Option<Heard>, Error> {
        let mut buffer = [0; 256];
        for _ in 0..256 {
            match recv(&self.fd, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => {
                    if let Some(heard) = parse(&buffer[..length]) {
                        return Ok(Some(heard));
                    }
                }
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::Call { what: "hear a frame", errno }),
            }
        }
        Ok(None)
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// linux/if_packet.h
const PACKET_IGNORE_OUTGOING: i32 = 23;

fn open() -> Result<OwnedFd, Error> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)
        .map_err(Error::call("open a packet socket"))
}

/// Lets through what others sent: ARP, and IPv6 whose next header is ICMPv6 and whose type is a
/// solicitation or advertisement.
fn filter() -> [sock_filter; 12] {
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    /// SKF_AD_OFF + SKF_AD_PKTTYPE
    const PACKET_TYPE: u32 = (-0x1000i32 + 4).cast_unsigned();
    const PACKET_OUTGOING: u32 = 4;
    let step = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    [
        step(LOAD_BYTE, 0, 0, PACKET_TYPE),
        step(IF_EQUAL, 8, 0, PACKET_OUTGOING),
        step(LOAD_HALF, 0, 0, 12),
        step(IF_EQUAL, 7, 0, ETHERTYPE_ARP.into()),
        step(IF_EQUAL, 0, 5, ETHERTYPE_IPV6.into()),
        step(LOAD_BYTE, 0, 0, 20),
        step(IF_EQUAL, 0, 3, ICMPV6.into()),
        step(LOAD_BYTE, 0, 0, 54),
        step(IF_EQUAL, 2, 0, SOLICITATION.into()),
        step(IF_EQUAL, 1, 0, ADVERTISEMENT.into()),
        step(RETURN, 0, 0, 0),
        step(RETURN, 0, 0, 256),
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

    /// Runs the filter as the kernel does, for the instructions it has.
    fn passes(frame: &[u8], outgoing: bool) -> bool {
        let program = filter();
        let (mut at, mut a) = (0, 0u32);
        loop {
            let step = program[at];
            at += 1;
            match step.code {
                0x28 => match frame.get(step.k as usize..).and_then(|f| f.first_chunk::<2>()) {
                    Some(half) => a = u16::from_be_bytes(*half).into(),
                    None => return false,
                },
                0x30 if step.k > 0xffff_0000 => a = if outgoing { 4 } else { 0 },
                0x30 => match frame.get(step.k as usize) {
                    Some(byte) => a = (*byte).into(),
                    None => return false,
                },
                0x15 => at += usize::from(if a == step.k { step.jt } else { step.jf }),
                0x06 => return step.k > 0,
                code => panic!("no such instruction: {code}"),
            }
        }
    }

    fn all_forms() -> Vec<Frame> {
        let (v4, v6) = (Ipv4Addr::new(198, 18, 0, 100), "fd00:198:18::64".parse().unwrap());
        vec![
            Frame::arp_probe(MAC, v4),
            Frame::arp_announcement(MAC, v4),
            Frame::arp_gratuitous_reply(MAC, v4),
            Frame::advertisement(MAC, v6),
            Frame::solicitation_probe(MAC, v6),
        ]
    }

    #[test]
    fn the_filter_lets_through_what_speaks_of_addresses() {
        for frame in all_forms() {
            assert!(passes(frame.as_ref(), false), "{frame:02x?}");
            assert!(!passes(frame.as_ref(), true), "own frames");
        }
        let mut other = all_forms()[3].as_ref().to_vec();
        other[54] = 128;
        assert!(!passes(&other, false), "an echo request");
        other[20] = 6;
        assert!(!passes(&other, false), "TCP");
        other[12..14].copy_from_slice(&[8, 0]);
        assert!(!passes(&other, false), "IPv4");
        assert!(!passes(&[0; 13], false), "cut off");
    }

    #[test]
    fn each_form_says_what_it_should() {
        let (v4, v6) = (IpAddr::from([198, 18, 0, 100]), "fd00:198:18::64".parse::<IpAddr>().unwrap());
        let heard: Vec<_> = all_forms().iter().map(|frame| parse(frame.as_ref()).unwrap()).collect();
        assert_eq!((heard[0].claims(), heard[0].probes()), (None, Some((v4, MAC))));
        assert_eq!((heard[1].claims(), heard[1].probes()), (Some((v4, MAC)), None));
        assert_eq!((heard[2].claims(), heard[2].probes()), (Some((v4, MAC)), None));
        assert_eq!((heard[3].claims(), heard[3].probes()), (Some((v6, MAC)), None));
        assert_eq!((heard[4].claims(), heard[4].probes()), (None, Some((v6, MAC))));
        assert_eq!(all_forms()[4].as_ref()[..6], [0x33, 0x33, 0xff, 0, 0, 0x64]);
    }

    #[test]
    fn a_wrong_checksum_is_not_heard() {
        let mut frame = all_forms()[3].as_ref().to_vec();
        frame[80] ^= 1;
        assert_eq!(parse(&frame), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn a_damaged_frame_is_parsed(form in 0usize..5, at in 0usize..86, value: u8, cut in 0usize..90) {
            let mut bytes = all_forms()[form].as_ref().to_vec();
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
            bytes.truncate(cut);
            let _ = parse(&bytes);
        }

        #[test]
        fn options_of_any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..100), wanted: u8) {
            let _ = option(&bytes, wanted);
        }
    }
}
