//! Replies of a member: their codes, how many lines they have, and the ports in them (RFC 959 section 4.2,
//! RFC 2428).

use std::net::{IpAddr, SocketAddr};

use super::command::{port_number, six, six_text};

/// A line of a reply by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// The first of several.
    First(u16),
    /// The last, or the only one.
    Last(u16),
    /// In the midst of others, or of nothing.
    Plain,
}

pub(super) const PASSIVE: u16 = 227;
pub(super) const PASSIVE_EXTENDED: u16 = 229;
/// `AUTH` was granted: what follows is TLS, or as good as.
pub(super) const AUTH_GRANTED: u16 = 234;

/// `text` without its end and without Telnet. `within`: the code of the reply whose first line has come.
pub(super) fn line(text: &[u8], within: Option<u16>) -> Line {
    let [a @ b'1'..=b'6', b @ b'0'..=b'9', c @ b'0'..=b'9', rest @ ..] = text else { return Line::Plain };
    let code = u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0');
    match (within, rest) {
        // Inside, a line may begin with any number; only the reply's own with a space ends it.
        (Some(own), [b' ', ..] | []) if code == own => Line::Last(code),
        (Some(_), _) => Line::Plain,
        (None, [b'-', ..]) => Line::First(code),
        (None, _) => Line::Last(code),
    }
}

/// The port that a reply to `PASV` names: six numbers somewhere in its text, as clients look for them. Of the
/// address nothing is made: the member is where its control connection goes.
pub(super) fn passive_port(text: &[u8]) -> Option<u16> {
    let is_part = |byte: &u8| byte.is_ascii_digit() || *byte == b',';
    let numbers = text.split(|byte| !is_part(byte)).find_map(|part| six(trim_commas(part)));
    numbers.map(|(_, port)| port).filter(|port| *port != 0)
}

fn trim_commas(mut part: &[u8]) -> &[u8] {
    while let [b',', rest @ ..] | [rest @ .., b','] = part {
        part = rest;
    }
    part
}

/// The port that a reply to `EPSV` names: `(|||6446|)`.
pub(super) fn extended_port(text: &[u8]) -> Option<u16> {
    let open = text.iter().rposition(|byte| *byte == b'(')?;
    let between = *text.get(open + 1)?;
    let rest = text.get(open + 2..)?.strip_prefix(&[between, between])?;
    let end = rest.iter().position(|byte| *byte == between)?;
    port_number(std::str::from_utf8(&rest[..end]).ok()?)
}

/// Tells a client that asked by `PASV` (`plainly`) or by `EPSV` where to connect to.
pub(super) fn connect_to(at: SocketAddr, plainly: bool) -> String {
    match at.ip() {
        IpAddr::V4(ip) if plainly => format!("227 Entering Passive Mode ({}).\r\n", six_text(ip, at.port())),
        _ => format!("229 Entering Extended Passive Mode (|||{}|)\r\n", at.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_ends_with_its_own_code_and_a_space() {
        for (text, within, expected) in [
            ("220 ready", None, Line::Last(220)),
            ("220", None, Line::Last(220)),
            ("220-Welcome", None, Line::First(220)),
            ("220_odd", None, Line::Last(220)),
            ("22", None, Line::Plain),
            ("720 x", None, Line::Plain),
            ("hello", None, Line::Plain),
            ("", None, Line::Plain),
            ("227 Entering (1,2,3,4,5,6)", Some(211), Line::Plain),
            ("211-more", Some(211), Line::Plain),
            (" 211 x", Some(211), Line::Plain),
            ("211x", Some(211), Line::Plain),
            ("211 End", Some(211), Line::Last(211)),
            ("211", Some(211), Line::Last(211)),
        ] {
            assert_eq!(line(text.as_bytes(), within), expected, "{text:?} in {within:?}");
        }
    }

    #[test]
    fn ports_are_found_as_clients_find_them() {
        for (text, port) in [
            ("227 Entering Passive Mode (192,0,2,7,24,131).", Some(6275)),
            ("227 Entering Passive Mode. 192,0,2,7,24,131", Some(6275)),
            ("227 =192,0,2,7,24,131", Some(6275)),
            ("227 Ok, 192,0,2,7,24,131, go", Some(6275)),
            ("227 Modus 1, (192,0,2,7,24,131)", Some(6275)),
            ("227 Entering Passive Mode (192,0,2,7,0,0)", None),
            ("227 Entering Passive Mode (192,0,2,7,24)", None),
            ("227 Entering Passive Mode (192,0,2,7,256,1)", None),
            ("227", None),
            ("22", None),
        ] {
            assert_eq!(passive_port(text.as_bytes()), port, "{text}");
        }
        for (text, port) in [
            ("229 Entering Extended Passive Mode (|||6446|)", Some(6446)),
            ("229 Entering Extended Passive Mode (|||6446|).", Some(6446)),
            ("229 (as asked) (!!!65535!)", Some(65535)),
            ("229 (|||0|)", None),
            ("229 (|||65536|)", None),
            ("229 (||6446|)", None),
            ("229 (|1|192.0.2.7|6446|)", None),
            ("229 (|||6446)", None),
            ("229 |||6446|", None),
            ("229 (", None),
        ] {
            assert_eq!(extended_port(text.as_bytes()), port, "{text}");
        }
    }

    #[test]
    fn what_a_client_is_told_reads_back() {
        let at: SocketAddr = "192.0.2.7:6275".parse().expect("an address");
        assert_eq!(connect_to(at, true), "227 Entering Passive Mode (192,0,2,7,24,131).\r\n");
        assert_eq!(passive_port(connect_to(at, true).as_bytes()), Some(6275));
        assert_eq!(extended_port(connect_to(at, false).as_bytes()), Some(6275));
        // There is no such form for IPv6.
        let at: SocketAddr = "[2001:db8::7]:6275".parse().expect("an address");
        assert_eq!(connect_to(at, true), "229 Entering Extended Passive Mode (|||6275|)\r\n");
    }
}
