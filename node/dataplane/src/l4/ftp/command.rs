//! Commands of a client that data connections hang on (RFC 959, 1639, 2228, 2428).

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Where can I connect to? By an address of IPv4.
    Pasv,
    /// The same, by a port alone.
    Epsv(Epsv),
    /// Connect to me there.
    Port(Named),
    Eprt(Named),
    /// What follows if it is granted can't be read.
    Auth,
    /// `LPRT`, `LPSV`: what was before `EPRT` and `EPSV`, and nobody speaks.
    Long,
    /// Nothing that concerns us.
    Other,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Epsv {
    /// As the control connection.
    Any,
    /// In this family: 1 is IPv4, 2 is IPv6.
    Family(u8),
    /// From now on no other command will be used, says the client.
    All,
    Malformed,
}

/// An address in a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    At(SocketAddr),
    Malformed,
    /// Of a family that is neither IPv4 nor IPv6.
    Unknown,
}

/// What a line asks for; `text` without its end and without Telnet. Whoever writes what looks like a command
/// for data connections, and is none, gets no further with it.
pub(super) fn parse(text: &[u8]) -> Command {
    let text = text.trim_ascii_start();
    let end = text.iter().position(|byte| !byte.is_ascii_alphabetic()).unwrap_or(text.len());
    let (verb, argument) = text.split_at(end);
    let argument = argument.trim_ascii();
    match verb.to_ascii_uppercase().as_slice() {
        b"PASV" => Command::Pasv,
        b"EPSV" => Command::Epsv(epsv(argument)),
        b"PORT" => {
            Command::Port(six(argument).map_or(Named::Malformed, |(ip, port)| Named::At((ip, port).into())))
        }
        b"EPRT" => Command::Eprt(eprt(argument)),
        b"AUTH" => Command::Auth,
        b"LPRT" | b"LPSV" => Command::Long,
        _ => Command::Other,
    }
}

fn epsv(argument: &[u8]) -> Epsv {
    match argument {
        b"" => Epsv::Any,
        b"1" => Epsv::Family(1),
        b"2" => Epsv::Family(2),
        _ if argument.eq_ignore_ascii_case(b"ALL") => Epsv::All,
        _ => Epsv::Malformed,
    }
}

/// `|1|192.0.2.7|6275|`, with whatever stands first between the fields.
fn eprt(argument: &[u8]) -> Named {
    let fields = || {
        let text = std::str::from_utf8(argument).ok()?;
        let between = text.chars().next().filter(|c| c.is_ascii_punctuation() && !matches!(c, '.' | ':'))?;
        let fields: Vec<&str> = text.split(between).collect();
        let ["", family, ip, port, ""] = fields[..] else { return None };
        Some((family, ip.parse::<IpAddr>().ok(), port_number(port)?))
    };
    match fields() {
        Some(("1", Some(ip @ IpAddr::V4(_)), port)) => Named::At(SocketAddr::new(ip, port)),
        Some(("2", Some(ip @ IpAddr::V6(_)), port)) => Named::At(SocketAddr::new(ip, port)),
        Some((family, ..)) if family != "1" && family != "2" && port_number(family).is_some() => {
            Named::Unknown
        }
        _ => Named::Malformed,
    }
}

/// Digits alone: what others read differently has no port.
pub(super) fn port_number(text: &str) -> Option<u16> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

/// `h1,h2,h3,h4,p1,p2`, and nothing else.
pub(super) fn six(text: &[u8]) -> Option<(Ipv4Addr, u16)> {
    let mut numbers = [0u8; 6];
    let mut fields = text.split(|byte| *byte == b',');
    for number in &mut numbers {
        let field = std::str::from_utf8(fields.next()?).ok()?;
        let digits = (1..=3).contains(&field.len()) && field.bytes().all(|byte| byte.is_ascii_digit());
        *number = field.parse().ok().filter(|_| digits)?;
    }
    let [a, b, c, d, high, low] = numbers;
    fields.next().is_none().then(|| (Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])))
}

pub(super) fn six_text(ip: Ipv4Addr, port: u16) -> String {
    let ([a, b, c, d], [high, low]) = (ip.octets(), port.to_be_bytes());
    format!("{a},{b},{c},{d},{high},{low}")
}

/// The command by which a member is told to connect there.
pub(super) fn connect_to(at: SocketAddr) -> String {
    let mut command = String::new();
    // Writing into a string can't fail.
    let _ = match at.ip() {
        IpAddr::V4(ip) => write!(command, "PORT {}\r\n", six_text(ip, at.port())),
        IpAddr::V6(ip) => write!(command, "EPRT |2|{ip}|{}|\r\n", at.port()),
    };
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> Named {
        Named::At(address.parse().expect("an address"))
    }

    #[test]
    fn commands_are_read_as_servers_read_them() {
        for (text, expected) in [
            ("PASV", Command::Pasv),
            ("pAsV", Command::Pasv),
            ("  PASV x", Command::Pasv),
            ("PASVX", Command::Other),
            ("EPSV", Command::Epsv(Epsv::Any)),
            ("EPSV 1", Command::Epsv(Epsv::Family(1))),
            ("epsv 2 ", Command::Epsv(Epsv::Family(2))),
            ("EPSV all", Command::Epsv(Epsv::All)),
            ("EPSV 3", Command::Epsv(Epsv::Malformed)),
            ("PORT 192,0,2,7,24,131", Command::Port(at("192.0.2.7:6275"))),
            ("port\t192,0,2,7,0,20", Command::Port(at("192.0.2.7:20"))),
            ("PORT192,0,2,7,24,131", Command::Port(at("192.0.2.7:6275"))),
            ("EPRT |1|192.0.2.7|6275|", Command::Eprt(at("192.0.2.7:6275"))),
            ("EPRT !2!2001:db8::7!6275!", Command::Eprt(at("[2001:db8::7]:6275"))),
            ("EPRT |3|x|6275|", Command::Eprt(Named::Unknown)),
            ("AUTH TLS", Command::Auth),
            ("auth", Command::Auth),
            ("LPRT 6,16,1", Command::Long),
            ("LPSV", Command::Long),
            ("RETR PORT 1,2,3,4,5,6", Command::Other),
            ("", Command::Other),
        ] {
            assert_eq!(parse(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn addresses_that_can_be_read_in_two_ways_are_none() {
        for argument in [
            "",
            "1,2,3,4,5",
            "1,2,3,4,5,6,7",
            "1,2,3,4,5,256",
            "1,2,3,4,,6",
            "1,2,3,4,+5,6",
            "1, 2,3,4,5,6",
            "0001,2,3,4,5,6",
            "(1,2,3,4,5,6)",
            "1,2,3,4,5,6x",
            "1.2.3.4:5",
        ] {
            assert_eq!(
                parse(format!("PORT {argument}").as_bytes()),
                Command::Port(Named::Malformed),
                "{argument}"
            );
        }
        for argument in [
            "",
            "|",
            "|1|192.0.2.7|6275",
            "|1|192.0.2.7|6275|x",
            "|1|192.0.2.7|0|",
            "|1|192.0.2.7|65536|",
            "|1|::1|6275|",
            "|2|192.0.2.7|6275|",
            "|2|fe80::1%eth0|6275|",
            "|1|192.0.2.07|6275|",
            "11192.0.2.7162751",
            "|1|192.0.2.7|+5|",
            "||::1|1|",
        ] {
            assert_eq!(
                parse(format!("EPRT {argument}").as_bytes()),
                Command::Eprt(Named::Malformed),
                "{argument}"
            );
        }
    }

    #[test]
    fn what_is_told_a_member_reads_back() {
        for address in ["192.0.2.7:6275", "[2001:db8::7]:1024", "127.0.0.1:65535"] {
            let address: SocketAddr = address.parse().expect("an address");
            let command = connect_to(address);
            let named = match parse(super::super::line::text(command.as_bytes())) {
                Command::Port(named) | Command::Eprt(named) => named,
                other => panic!("{other:?}"),
            };
            assert_eq!(named, Named::At(address));
        }
    }
}
