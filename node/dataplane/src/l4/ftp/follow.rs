//! A control connection as it is followed: what each side says, and what the other one gets to read of it.
//! Without sockets; what is opened for data is asked of [`Around`].
//!
//! Invariants:
//! - No address that stands in a command or a reply is passed on: both sides are told of ports of ours, and
//!   data goes between the client and the member of this control connection, whatever they name.
//! - Nothing waits: bytes that have come whole go on at once. Which command a reply belongs to is counted, to
//!   have better words for what was refused; should a server leave a reply out, words are all that suffers.
//! - A command that is refused here is refused by the member: in its place goes one that nobody knows
//!   ([`NOTHING`]), so that replies stay in order without a queue of ours.
//! - Once `AUTH` is granted nothing is looked at any more.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use trestle_config::model::FtpAuth;

use super::command::{self, Command, Epsv, Named};
use super::line::{Lines, TooLong, text, without_telnet};
use super::reply::{self, Line};

/// Commands without a reply that are remembered; of more, the oldest are forgotten.
const ASKED_MAX: usize = 64;
/// Ports below are those of services, to which nobody gets a connection by us (RFC 2577, section 3).
const CLIENT_PORT_MIN: u16 = 1024;
/// In place of a command that is refused.
const NOTHING: &[u8] = b"XNOP\r\n";
/// A record of TLS with a ClientHello begins so.
const TLS_HANDSHAKE: u8 = 0x16;

const NO_PORT: &str = "425 No port is free for a data connection.\r\n";
const UNREADABLE: &str = "425 The server named no port that can be read.\r\n";

/// What is done about what is said.
pub(super) trait Around {
    /// A port of ours at which the client is awaited from now on, whose data connection goes to this port of
    /// the member. `None`: there is none.
    fn await_client(&mut self, member_port: u16) -> Option<SocketAddr>;
    /// The same for the member, whose data connection goes to this port of the client.
    fn await_member(&mut self, client_port: u16) -> Option<SocketAddr>;
    /// The client asked for a connection to somebody else, or to a port of services.
    fn refused(&mut self, named: SocketAddr);
    /// From here on nothing can be followed.
    fn hidden(&mut self);
}

/// Who stands at both ends. In their canonical form.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sides {
    pub(super) client: IpAddr,
    pub(super) member: IpAddr,
}

#[derive(Debug)]
pub(super) struct Follower {
    sides: Sides,
    auth: FtpAuth,
    commands: Lines,
    replies: Lines,
    /// Those that have no reply yet.
    asked: VecDeque<Asked>,
    /// The client has said something.
    begun: bool,
    /// The member's greeting has come.
    greeted: bool,
    /// The reply whose lines are coming.
    within: Option<Within>,
    hidden: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// For a port, plainly or extended.
    Pasv,
    Epsv,
    /// Refused; the client is told why.
    Refused(&'static str),
    Other,
}

#[derive(Debug)]
struct Within {
    code: u16,
    /// Its lines are not passed on: another reply takes its place.
    kept: bool,
    /// Named in some line of it.
    port: Option<u16>,
}

impl Follower {
    pub(super) fn new(sides: Sides, auth: FtpAuth) -> Self {
        Self {
            sides,
            auth,
            commands: Lines::default(),
            replies: Lines::default(),
            asked: VecDeque::new(),
            begun: false,
            greeted: false,
            within: None,
            hidden: false,
        }
    }

    /// Bytes of the client; `out` gets what the member reads.
    pub(super) fn commands(
        &mut self,
        mut bytes: &[u8],
        out: &mut Vec<u8>,
        around: &mut impl Around,
    ) -> Result<(), TooLong> {
        if !self.begun && !self.greeted && !self.hidden && bytes.first() == Some(&TLS_HANDSHAKE) {
            // TLS from the first byte, as at port 990: the server waits for it, too.
            self.hide(around);
        }
        self.begun |= !bytes.is_empty();
        while !self.hidden {
            let Some(line) = self.commands.next(&mut bytes)? else { return Ok(()) };
            self.command(&line, out, around);
        }
        out.append(&mut self.commands.take());
        out.extend_from_slice(bytes);
        Ok(())
    }

    /// Bytes of the member; `out` gets what the client reads.
    pub(super) fn replies(
        &mut self,
        mut bytes: &[u8],
        out: &mut Vec<u8>,
        around: &mut impl Around,
    ) -> Result<(), TooLong> {
        while !self.hidden {
            let Some(line) = self.replies.next(&mut bytes)? else { return Ok(()) };
            self.reply(&line, out, around);
        }
        out.append(&mut self.replies.take());
        out.extend_from_slice(bytes);
        Ok(())
    }

    /// The member has ended in the midst of a line: as much of it as the client may read.
    pub(super) fn last_words(&mut self) -> Vec<u8> {
        let begun = self.replies.take();
        let kept = self.within.as_ref().is_some_and(|within| within.kept);
        if kept || begun.starts_with(b"22") { Vec::new() } else { begun }
    }

    fn hide(&mut self, around: &mut impl Around) {
        self.hidden = true;
        around.hidden();
    }

    // === commands ===

    fn command(&mut self, line: &[u8], out: &mut Vec<u8>, around: &mut impl Around) {
        let given = text(line);
        let text = without_telnet(given);
        if text.is_empty() && !given.is_empty() {
            return;
        }
        if is_ambiguous(&text) {
            return self.refuse("500 A command has one line.\r\n", out);
        }
        let own_family = if self.sides.client.is_ipv4() { 1 } else { 2 };
        match command::parse(&text) {
            Command::Pasv if self.sides.client.is_ipv6() => {
                self.refuse("501 PASV is for IPv4: use EPSV.\r\n", out);
            }
            Command::Pasv => self.ask_for_port(Asked::Pasv, out),
            Command::Epsv(Epsv::Any) => self.ask_for_port(Asked::Epsv, out),
            Command::Epsv(Epsv::Family(family)) if family == own_family => {
                self.ask_for_port(Asked::Epsv, out)
            }
            Command::Epsv(Epsv::Family(_)) => self.refuse(self.other_family(), out),
            Command::Epsv(Epsv::Malformed) => self.refuse("501 EPSV has 1, 2, ALL or nothing.\r\n", out),
            Command::Port(named) | Command::Eprt(named) => self.name(named, out, around),
            Command::Auth if self.auth == FtpAuth::Refuse => {
                self.refuse("534 No security mechanism is offered here.\r\n", out);
            }
            Command::Long => self.refuse("502 Use EPSV or EPRT.\r\n", out),
            Command::Auth | Command::Epsv(Epsv::All) | Command::Other => {
                self.note(Asked::Other);
                if text.len() == given.len() {
                    out.extend_from_slice(line);
                } else {
                    out.extend_from_slice(&text);
                    out.extend_from_slice(b"\r\n");
                }
            }
        }
    }

    /// A member of the other family has no address for `PASV`.
    fn ask_for_port(&mut self, asked: Asked, out: &mut Vec<u8>) {
        self.note(asked);
        let plainly = asked == Asked::Pasv && self.sides.member.is_ipv4();
        out.extend_from_slice(if plainly { b"PASV\r\n" } else { b"EPSV\r\n" });
    }

    /// The client is at the address that it names, or nowhere.
    fn name(&mut self, named: Named, out: &mut Vec<u8>, around: &mut impl Around) {
        let at = match named {
            Named::At(at) if at.is_ipv4() == self.sides.client.is_ipv4() => at,
            Named::At(_) | Named::Unknown => return self.refuse(self.other_family(), out),
            Named::Malformed => return self.refuse("501 That is no address with a port.\r\n", out),
        };
        if at.ip() != self.sides.client || at.port() < CLIENT_PORT_MIN {
            around.refused(at);
            return self.refuse("504 Your own address alone, and a port from 1024 on.\r\n", out);
        }
        match around.await_member(at.port()) {
            Some(ours) => {
                self.note(Asked::Other);
                out.extend_from_slice(command::connect_to(ours).as_bytes());
            }
            None => self.refuse(NO_PORT, out),
        }
    }

    fn other_family(&self) -> &'static str {
        match self.sides.client {
            IpAddr::V4(_) => "522 Network protocol not supported, use (1).\r\n",
            IpAddr::V6(_) => "522 Network protocol not supported, use (2).\r\n",
        }
    }

    fn refuse(&mut self, why: &'static str, out: &mut Vec<u8>) {
        self.note(Asked::Refused(why));
        out.extend_from_slice(NOTHING);
    }

    fn note(&mut self, asked: Asked) {
        if self.asked.len() == ASKED_MAX {
            self.asked.pop_front();
        }
        self.asked.push_back(asked);
    }

    // === replies ===

    fn reply(&mut self, line: &[u8], out: &mut Vec<u8>, around: &mut impl Around) {
        let text = without_telnet(text(line));
        let kept = match reply::line(&text, self.within.as_ref().map(|within| within.code)) {
            Line::Last(code) => {
                let within = self.within.take();
                return self.whole(code, (line, &text), within, out, around);
            }
            Line::First(code) => {
                let kept = self.is_replaced(code);
                self.within = Some(Within { code, kept, port: port(code, &text) });
                kept
            }
            Line::Plain => match &mut self.within {
                Some(within) => {
                    within.port = within.port.or_else(|| port(within.code, &text));
                    within.kept
                }
                None => false,
            },
        };
        if !kept {
            out.extend_from_slice(line);
        }
    }

    /// Another one takes the place of a reply with this code.
    fn is_replaced(&self, code: u16) -> bool {
        let refused = matches!(self.asked.front(), Some(Asked::Refused(_))) && self.greeted;
        matches!(code, reply::PASSIVE | reply::PASSIVE_EXTENDED) || (refused && code >= 500)
    }

    /// A reply is complete; `line` is its last.
    fn whole(
        &mut self,
        code: u16,
        (line, text): (&[u8], &[u8]),
        within: Option<Within>,
        out: &mut Vec<u8>,
        around: &mut impl Around,
    ) {
        match code {
            reply::PASSIVE | reply::PASSIVE_EXTENDED => {
                let port = port(code, text).or(within.and_then(|within| within.port));
                let plainly = self.asked_plainly().unwrap_or(code == reply::PASSIVE);
                out.extend_from_slice(told(port, plainly, around).as_bytes());
            }
            // More will come to what was asked.
            ..200 => out.extend_from_slice(line),
            // Of itself, whether or not something was asked already.
            _ if !self.greeted => {
                self.greeted = true;
                out.extend_from_slice(line);
            }
            _ => {
                match self.asked.pop_front() {
                    Some(Asked::Refused(why)) if code >= 500 => out.extend_from_slice(why.as_bytes()),
                    _ => out.extend_from_slice(line),
                }
                if code == reply::AUTH_GRANTED {
                    self.hide(around);
                }
            }
        }
    }

    /// How the port was asked for that a reply names. It answers nothing else, so what was asked before has
    /// been answered.
    fn asked_plainly(&mut self) -> Option<bool> {
        let at = self.asked.iter().position(|asked| matches!(asked, Asked::Pasv | Asked::Epsv))?;
        self.asked.drain(..=at).next_back().map(|asked| asked == Asked::Pasv)
    }
}

fn told(port: Option<u16>, plainly: bool, around: &mut impl Around) -> String {
    let Some(port) = port else { return UNREADABLE.to_owned() };
    match around.await_client(port) {
        Some(ours) => reply::connect_to(ours, plainly),
        None => NO_PORT.to_owned(),
    }
}

fn port(code: u16, text: &[u8]) -> Option<u16> {
    match code {
        reply::PASSIVE => reply::passive_port(text),
        reply::PASSIVE_EXTENDED => reply::extended_port(text),
        _ => None,
    }
}

/// What some server may take for more than one line, or for another verb. A CR in a path has a NUL behind it
/// (RFC 2640).
fn is_ambiguous(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some(at) = memchr::memchr2(b'\r', 0, rest) {
        match rest[at..] {
            [b'\r', 0, ..] => rest = &rest[at + 2..],
            _ => return true,
        }
    }
    false
}
