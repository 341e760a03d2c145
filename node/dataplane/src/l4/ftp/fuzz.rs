//! What must hold whatever both sides say; for the fuzzer and for tests.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use trestle_config::model::FtpAuth;

use super::command::{Command, Named, parse};
use super::follow::{Around, Follower, Sides};
use super::line::{text, without_telnet};
use super::reply::{self, Line, extended_port, passive_port};

const OURS_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const OURS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const OURS_PORT: u16 = 40_000;

#[derive(Default)]
struct Fake {
    client_v6: bool,
    member_v6: bool,
    hidden: bool,
    doors: usize,
}

fn ours(v6: bool) -> SocketAddr {
    let ip = if v6 { IpAddr::V6(OURS_V6) } else { IpAddr::V4(OURS_V4) };
    SocketAddr::new(ip, OURS_PORT)
}

impl Around for Fake {
    fn await_client(&mut self, member_port: u16) -> Option<SocketAddr> {
        assert_ne!(member_port, 0);
        self.doors += 1;
        // Now and then there is none.
        (!self.doors.is_multiple_of(5)).then(|| ours(self.client_v6))
    }

    fn await_member(&mut self, client_port: u16) -> Option<SocketAddr> {
        assert!(client_port >= 1024);
        self.doors += 1;
        (!self.doors.is_multiple_of(5)).then(|| ours(self.member_v6))
    }

    fn refused(&mut self, _: SocketAddr) {}

    fn hidden(&mut self) {
        assert!(!std::mem::replace(&mut self.hidden, true), "once");
    }
}

/// What both sides read, of a talk in pieces of at most so many bytes; `None`: a line was too long.
fn listen(setting: u8, pieces: &[(bool, &[u8])], most: usize) -> Option<([Vec<u8>; 2], bool)> {
    let (client_v6, member_v6) = (setting & 1 > 0, setting & 2 > 0);
    let sides = Sides {
        client: if client_v6 { "2001:db8::7".parse() } else { "203.0.113.7".parse() }.expect("an address"),
        member: if member_v6 { "fd00::21".parse() } else { "192.0.2.21".parse() }.expect("an address"),
    };
    let auth = if setting & 4 > 0 { FtpAuth::Refuse } else { FtpAuth::Pass };
    let mut follower = Follower::new(sides, auth);
    let mut fake = Fake { client_v6, member_v6, ..Fake::default() };
    let (mut to_member, mut to_client) = (Vec::new(), Vec::new());
    for (of_member, piece) in pieces {
        for bytes in piece.chunks(most) {
            let said = match of_member {
                true => follower.replies(bytes, &mut to_client, &mut fake),
                false => follower.commands(bytes, &mut to_member, &mut fake),
            };
            said.ok()?;
        }
    }
    if !fake.hidden {
        check(&to_member, &to_client, (client_v6, member_v6));
    }
    Some(([to_member, to_client], fake.hidden))
}

/// Neither side has read of an address that is not ours.
fn check(to_member: &[u8], to_client: &[u8], (client_v6, member_v6): (bool, bool)) {
    for line in to_member.split_inclusive(|byte| *byte == b'\n') {
        match parse(&without_telnet(text(line))) {
            Command::Port(Named::At(at)) => {
                assert!(!member_v6 && at == ours(false), "{}", line.escape_ascii())
            }
            Command::Eprt(Named::At(at)) => assert!(member_v6 && at == ours(true), "{}", line.escape_ascii()),
            Command::Pasv => assert!(!member_v6, "it has no address for that"),
            Command::Port(_) | Command::Eprt(_) | Command::Long => panic!("{}", line.escape_ascii()),
            _ => {}
        }
    }
    let mut within = None;
    for line in to_client.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        let line = without_telnet(text(line)).into_owned();
        match reply::line(&line, within) {
            Line::First(code) => {
                assert!(!matches!(code, reply::PASSIVE | reply::PASSIVE_EXTENDED));
                within = Some(code);
            }
            Line::Last(code) => {
                within = None;
                match code {
                    reply::PASSIVE => {
                        assert!(!client_v6 && line.ends_with(b"(198,51,100,1,156,64)."));
                        assert_eq!(passive_port(&line), Some(OURS_PORT));
                    }
                    reply::PASSIVE_EXTENDED => assert_eq!(extended_port(&line), Some(OURS_PORT)),
                    _ => {}
                }
            }
            Line::Plain => {}
        }
    }
}

/// A byte for the setting, then pieces: a byte for who speaks and how long, and so many bytes. However they are
/// cut, both sides read the same, and never of an address that is not ours.
pub(crate) fn any_bytes(data: &[u8]) {
    let Some((setting, mut rest)) = data.split_first() else { return };
    let mut pieces = Vec::new();
    while let [head, after @ ..] = rest {
        let (piece, after) = after.split_at(after.len().min(usize::from(head >> 1)));
        pieces.push((head & 1 > 0, piece));
        rest = after;
    }
    let whole = listen(*setting, &pieces, usize::MAX);
    for most in [1, 7] {
        assert_eq!(listen(*setting, &pieces, most), whole, "in pieces of {most}");
    }
}
