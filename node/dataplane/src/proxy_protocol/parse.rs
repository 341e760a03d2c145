//! Headers from bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::{Ends, HEADER_MAX, Header, SIGNATURE, Tlvs, crc32c, kind};

/// The longest header of version 1, its line's end included.
const LINE_MAX: usize = 107;
const WORD: &[u8] = b"PROXY ";

/// Of TLVs, bytes that are kept to be passed on.
const KEPT_MAX: usize = 1024;
/// As the specification has it.
const UNIQUE_ID_MAX: usize = 128;

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// No header: the bytes are the client's own.
    Absent,
    /// Not enough to tell, or a header whose end has not come (`begun`).
    Partial { begun: bool },
    /// A header of `length` bytes.
    Whole { length: usize, header: Header },
}

/// Why a header is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("version 1: the line has no end in 107 bytes")]
    LongLine,
    #[error("version 1: the line ends in LF alone, or has a CR in its midst")]
    LineEnd,
    #[error("version 1: neither TCP4, TCP6 nor UNKNOWN")]
    Protocol,
    #[error("version 1: not two addresses and two ports with one space between them")]
    Fields,
    #[error("an address is none of its family")]
    Address,
    #[error("a port is no number from 0 to 65535")]
    Port,
    #[error("version 2: a version other than 2")]
    Version,
    #[error("version 2: a command other than LOCAL and PROXY")]
    Command,
    #[error("version 2: an address family or transport that is not defined")]
    Family,
    #[error("version 2: shorter than its addresses")]
    Short,
    #[error("version 2: longer than 4096 bytes")]
    Long,
    #[error("version 2: a TLV is longer than what is left")]
    Tlv,
    #[error("version 2: the checksum is wrong")]
    Checksum,
}

/// Looks at the first bytes of a connection.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    if bytes.starts_with(&SIGNATURE) {
        return version_2(bytes);
    }
    if bytes.starts_with(WORD) {
        return version_1(bytes);
    }
    let may_become_one = SIGNATURE.starts_with(bytes) || WORD.starts_with(bytes);
    Ok(if may_become_one { Parsed::Partial { begun: false } } else { Parsed::Absent })
}

fn version_1(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let within = &bytes[..bytes.len().min(LINE_MAX)];
    let Some(end) = within.iter().position(|byte| *byte == b'\r' || *byte == b'\n') else {
        return if bytes.len() < LINE_MAX {
            Ok(Parsed::Partial { begun: true })
        } else {
            Err(Malformed::LongLine)
        };
    };
    match (within[end], within.get(end + 1)) {
        (b'\r', Some(b'\n')) => {}
        (b'\r', None) if bytes.len() < LINE_MAX => return Ok(Parsed::Partial { begun: true }),
        (b'\r', None) => return Err(Malformed::LongLine),
        _ => return Err(Malformed::LineEnd),
    }
    let header = Header { ends: line(&within[WORD.len()..end])?, tlvs: Tlvs::default() };
    Ok(Parsed::Whole { length: end + 2, header })
}

/// What stands behind `PROXY `.
fn line(text: &[u8]) -> Result<Option<Ends>, Malformed> {
    let text = std::str::from_utf8(text).map_err(|_| Malformed::Fields)?;
    let mut fields = text.split(' ');
    let address: fn(&str) -> Option<IpAddr> = match fields.next() {
        // What follows must be ignored.
        Some("UNKNOWN") => return Ok(None),
        Some("TCP4") => |text| parsed::<Ipv4Addr>(text, b".").map(IpAddr::V4),
        Some("TCP6") => |text| parsed::<Ipv6Addr>(text, b":.").map(IpAddr::V6),
        _ => return Err(Malformed::Protocol),
    };
    let (Some(client), Some(local), Some(from), Some(to), None) =
        (fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(Malformed::Fields);
    };
    let (client, local) = (address(client), address(local));
    let (Some(client), Some(local)) = (client, local) else { return Err(Malformed::Address) };
    let (Some(from), Some(to)) = (port(from), port(to)) else { return Err(Malformed::Port) };
    Ok(Some(Ends { client: canonical(client, from), local: canonical(local, to) }))
}

/// Zones (`%eth0`) and the like are no part of the protocol.
fn parsed<A: FromStr>(text: &str, marks: &[u8]) -> Option<A> {
    let fits = |byte: u8| byte.is_ascii_hexdigit() || marks.contains(&byte);
    text.bytes().all(fits).then(|| text.parse().ok())?
}

/// Without leading zeros or a sign.
fn port(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok())?
}

fn canonical(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip.to_canonical(), port)
}

fn version_2(bytes: &[u8]) -> Result<Parsed, Malformed> {
    /// Signature, version and command, family and transport, length.
    const FIXED: usize = 16;
    const PROXY: u8 = 1;
    // Wrong bytes are told as soon as they are there.
    let is_about_another = match bytes.get(12) {
        None => return Ok(Parsed::Partial { begun: true }),
        Some(byte) if byte >> 4 != 2 => return Err(Malformed::Version),
        Some(byte) if byte & 0xf > PROXY => return Err(Malformed::Command),
        Some(byte) => byte & 0xf == PROXY,
    };
    let (family, transport) = match bytes.get(13) {
        None => return Ok(Parsed::Partial { begun: true }),
        Some(byte) if byte >> 4 > 3 || byte & 0xf > 2 => return Err(Malformed::Family),
        Some(byte) => (byte >> 4, byte & 0xf),
    };
    let Some(length) = bytes.get(14..FIXED) else { return Ok(Parsed::Partial { begun: true }) };
    let length = FIXED + usize::from(u16::from_be_bytes([length[0], length[1]]));
    if length > HEADER_MAX {
        return Err(Malformed::Long);
    }
    let Some(whole) = bytes.get(..length) else { return Ok(Parsed::Partial { begun: true }) };
    let rest = &whole[FIXED..];
    if !is_about_another {
        // Its addresses must be ignored, and nothing else is asked of it.
        return Ok(Parsed::Whole { length, header: Header::default() });
    }
    let addresses = match family {
        1 => 12,
        2 => 36,
        3 => 216,
        _ => 0,
    };
    let (addresses, tlvs) = rest.split_at_checked(addresses).ok_or(Malformed::Short)?;
    let kept = tlvs_to_keep(whole, tlvs)?;
    // Unix sockets and datagrams name nobody who could be at the other end of a TCP connection.
    let ends = match (family, transport) {
        (1, 1) => Some(ends_of::<4>(addresses)),
        (2, 1) => Some(ends_of::<16>(addresses)),
        _ => None,
    };
    Ok(Parsed::Whole { length, header: Header { ends, tlvs: kept } })
}

/// `addresses` holds two of `N` bytes and two ports.
fn ends_of<const N: usize>(addresses: &[u8]) -> Ends
where
    [u8; N]: Into<IpAddr>,
{
    let ip = |from: usize| {
        let mut octets = [0; N];
        octets.copy_from_slice(&addresses[from..from + N]);
        octets.into()
    };
    let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
    Ends { client: canonical(ip(0), port(2 * N)), local: canonical(ip(N), port(2 * N + 2)) }
}

fn tlvs_to_keep(whole: &[u8], mut rest: &[u8]) -> Result<Tlvs, Malformed> {
    let mut kept = Vec::new();
    while let Some((head, behind)) = rest.split_at_checked(3) {
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        let (value, behind) = behind.split_at_checked(length).ok_or(Malformed::Tlv)?;
        match head[0] {
            kind::CRC32C => {
                let told = value.try_into().map(u32::from_be_bytes).map_err(|_| Malformed::Checksum)?;
                let at = whole.len() - behind.len() - value.len();
                if crc32c::of_zeroed(whole, at) != told {
                    return Err(Malformed::Checksum);
                }
            }
            kind::UNIQUE_ID if length > UNIQUE_ID_MAX => {}
            kind::ALPN | kind::AUTHORITY | kind::UNIQUE_ID | kind::SSL
                if kept.len() + 3 + length <= KEPT_MAX =>
            {
                kept.extend_from_slice(head);
                kept.extend_from_slice(value);
            }
            _ => {}
        }
        rest = behind;
    }
    if rest.is_empty() { Ok(Tlvs(kept)) } else { Err(Malformed::Tlv) }
}
