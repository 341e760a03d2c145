//! What is said and what becomes of it, without sockets; then over real ones on loopback.

use std::fmt::Write as _;

use proptest::prelude::*;
use trestle_config::model::FtpAuth;

use super::follow::{Around, Follower, Sides};
use super::*;

mod sockets;

/// Opens doors at ports from 40000 on, and notes what it is asked.
#[derive(Default)]
pub(super) struct Notes {
    v6: bool,
    /// No door can be had.
    full: bool,
    doors: u16,
    said: String,
}

impl Notes {
    fn open(&mut self, kind: &str, port: u16, ours: [IpAddr; 2]) -> Option<SocketAddr> {
        if self.full {
            return None;
        }
        let at = SocketAddr::new(ours[usize::from(self.v6)], 40_000 + self.doors);
        self.doors += 1;
        let _ = write!(self.said, "[{kind} {port}]");
        Some(at)
    }
}

impl Around for Notes {
    fn await_client(&mut self, member_port: u16) -> Option<SocketAddr> {
        self.open("client", member_port, ["198.51.100.1".parse().unwrap(), "2001:db8::1".parse().unwrap()])
    }

    fn await_member(&mut self, client_port: u16) -> Option<SocketAddr> {
        self.open("member", client_port, ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()])
    }

    fn refused(&mut self, named: SocketAddr) {
        let _ = write!(self.said, "[refused {named}]");
    }

    fn hidden(&mut self) {
        self.said.push_str("[hidden]");
    }
}

struct Talk {
    follower: Follower,
    notes: Notes,
}

impl Talk {
    /// Of clients and members of these families, greeted.
    fn between(client: u8, member: u8) -> Self {
        let mut talk = Self::with(client, member, FtpAuth::Pass);
        assert_eq!(talk.member("220 ready"), "220 ready");
        talk
    }

    fn with(client: u8, member: u8, auth: FtpAuth) -> Self {
        let address = |family, v4: &str, v6: &str| if family == 4 { v4 } else { v6 }.parse().unwrap();
        let sides = Sides {
            client: address(client, "203.0.113.7", "2001:db8::7"),
            member: address(member, "192.0.2.21", "fd00::21"),
        };
        Self { follower: Follower::new(sides, auth), notes: Notes::default() }
    }

    /// What the member reads of a line of the client.
    fn client(&mut self, line: &str) -> String {
        self.client_bytes(format!("{line}\r\n").as_bytes())
    }

    fn client_bytes(&mut self, bytes: &[u8]) -> String {
        let mut out = Vec::new();
        self.follower.commands(bytes, &mut out, &mut self.notes).expect("short lines");
        shown(&out)
    }

    /// What the client reads of a line of the member.
    fn member(&mut self, line: &str) -> String {
        let mut out = Vec::new();
        let line = format!("{}\r\n", line.replace('\n', "\r\n"));
        self.follower.replies(line.as_bytes(), &mut out, &mut self.notes).expect("short lines");
        shown(&out)
    }

    /// What happened beside since the last call.
    fn happened(&mut self) -> String {
        std::mem::take(&mut self.notes.said)
    }
}

fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
    text.strip_suffix('\n').map(str::to_owned).unwrap_or(text)
}

#[test]
fn a_passive_client_is_told_of_a_port_of_ours() {
    let mut talk = Talk::between(4, 4);
    assert_eq!(talk.client("PASV"), "PASV");
    assert_eq!(
        talk.member("227 Entering Passive Mode (10,9,9,9,24,131)."),
        "227 Entering Passive Mode (198,51,100,1,156,64)."
    );
    assert_eq!(talk.client("EPSV"), "EPSV");
    assert_eq!(
        talk.member("229 Entering Extended Passive Mode (|||6446|)"),
        "229 Entering Extended Passive Mode (|||40001|)"
    );
    assert_eq!(talk.happened(), "[client 6275][client 6446]");
    assert_eq!(talk.client("RETR PASV"), "RETR PASV");
    assert_eq!(talk.member("150 Opening\n226 Done"), "150 Opening\n226 Done");
}

#[test]
fn a_client_and_a_member_of_different_families_understand_one_another() {
    let mut talk = Talk::between(4, 6);
    assert_eq!(talk.client("PASV"), "EPSV");
    assert_eq!(
        talk.member("229 Entering Extended Passive Mode (|||6446|)"),
        "227 Entering Passive Mode (198,51,100,1,156,64)."
    );
    assert_eq!(talk.client("EPSV 1"), "EPSV");
    assert_eq!(talk.member("229 (|||6446|)"), "229 Entering Extended Passive Mode (|||40001|)");
    talk.notes.v6 = true;
    assert_eq!(talk.client("PORT 203,0,113,7,195,80"), "EPRT |2|fd00::1|40002|");
    assert_eq!(talk.member("200 Ok"), "200 Ok");

    let mut talk = Talk::between(6, 4);
    assert_eq!(talk.client("EPSV 2"), "EPSV");
    assert_eq!(talk.client("EPRT |2|2001:db8::7|50000|"), "PORT 10,0,0,1,156,64");
    assert_eq!(talk.happened(), "[member 50000]");
    assert_eq!(talk.client("PASV"), "XNOP");
    assert_eq!(talk.client("EPSV 1"), "XNOP");
    assert_eq!(talk.client("EPRT |1|203.0.113.7|50000|"), "XNOP");
    assert_eq!(talk.member("229 (|||6446|)"), "229 Entering Extended Passive Mode (|||40001|)");
    assert_eq!(talk.member("200 Ok"), "200 Ok");
    assert_eq!(talk.member("500 What?"), "501 PASV is for IPv4: use EPSV.");
    assert_eq!(talk.member("500 What?"), "522 Network protocol not supported, use (2).");
    assert_eq!(talk.member("500 What?"), "522 Network protocol not supported, use (2).");
    assert_eq!(talk.happened(), "[client 6446]");
}

#[test]
fn an_active_client_names_itself_and_nobody_else() {
    let mut talk = Talk::between(4, 4);
    assert_eq!(talk.client("port 203,0,113,7,195,80"), "PORT 10,0,0,1,156,64");
    assert_eq!(talk.client("EPRT |1|203.0.113.7|50000|"), "PORT 10,0,0,1,156,65");
    assert_eq!(talk.happened(), "[member 50000][member 50000]");
    for (command, named) in [
        ("PORT 203,0,113,8,195,80", "203.0.113.8:50000"),
        ("PORT 192,0,2,21,0,25", "192.0.2.21:25"),
        ("PORT 203,0,113,7,3,255", "203.0.113.7:1023"),
        ("EPRT |1|127.0.0.1|50000|", "127.0.0.1:50000"),
    ] {
        assert_eq!(talk.client(command), "XNOP", "{command}");
        assert_eq!(talk.happened(), format!("[refused {named}]"), "{command}");
    }
    for command in
        ["PORT", "PORT 1,2,3", "PORT 203,0,113,7,195,80,1", "EPRT |1|203.0.113.7|50000", "LPRT 4,4,1"]
    {
        assert_eq!(talk.client(command), "XNOP", "{command}");
    }
    assert_eq!(talk.client("EPRT |2|2001:db8::7|50000|"), "XNOP");
    assert_eq!(talk.happened(), "");
    assert_eq!(talk.member("200 a\n200 b"), "200 a\n200 b");
    assert_eq!(talk.member("500 What?"), "504 Your own address alone, and a port from 1024 on.");
}

#[test]
fn what_two_servers_may_read_differently_is_refused() {
    let mut talk = Talk::between(4, 4);
    for (bytes, expected) in [
        (&b"NOOP\rPORT 1,2,3,4,5,6\r\n"[..], "XNOP"),
        (b"PO\0RT 1,2,3,4,5,6\r\n", "XNOP"),
        (b"PORT 1,2,3,4,5,6\r\r\n", "XNOP"),
        (b"NOOP\nPORT 1,2,3,4,5,6\n", "NOOP\nXNOP"),
        (b"PO\xff\xf1RT 1,2,3,4,5,6\r\n", "XNOP"),
        (b"\xff\xfd\nPORT 1,2,3,4,5,6\r\n", "XNOP"),
        (b"RETR a\r\0b\r\n", "RETR a\r\0b"),
        (b"\r\n", ""),
    ] {
        assert_eq!(talk.client_bytes(bytes), expected, "{}", bytes.escape_ascii());
    }
    // Announced by Telnet, and by itself.
    assert_eq!(talk.client_bytes(b"\xff\xf4\xff\xf2ABOR\r\n"), "ABOR");
    assert_eq!(talk.client_bytes(b"RETR \xff\xff\n"), "RETR \u{fffd}\u{fffd}");
}

#[test]
fn replies_of_several_lines_are_one_and_what_is_in_them_is_no_reply() {
    let mut talk = Talk::with(4, 4, FtpAuth::Pass);
    let greeting = "220-Welcome\n227 Entering Passive Mode (10,9,9,9,24,131).\n220 ready";
    assert_eq!(talk.client("PASV"), "PASV", "before the greeting");
    assert_eq!(talk.member(greeting), greeting);
    assert_eq!(talk.happened(), "");
    assert_eq!(
        talk.member("227-Entering\n Passive Mode (10,9,9,9,24,131)\n 227 x\n227 Ok"),
        "227 Entering Passive Mode (198,51,100,1,156,64)."
    );
    assert_eq!(talk.client("PORT 1,2,3,4,5,6"), "XNOP");
    assert_eq!(talk.client("FEAT"), "FEAT");
    assert_eq!(
        talk.member("500-No\n such command\n500 really"),
        "504 Your own address alone, and a port from 1024 on."
    );
    assert_eq!(
        talk.member("211-Features\n UTF8\n 229 (|||1|)\n211 End"),
        "211-Features\n UTF8\n 229 (|||1|)\n211 End"
    );
    assert_eq!(talk.member("junk"), "junk");
}

#[test]
fn a_port_that_can_t_be_had_or_read_is_a_425() {
    let mut talk = Talk::between(4, 4);
    talk.client("PASV");
    assert_eq!(talk.member("227 Entering Passive Mode"), "425 The server named no port that can be read.");
    talk.client("EPSV");
    assert_eq!(talk.member("530 Log in first"), "530 Log in first");
    talk.notes.full = true;
    talk.client("PASV");
    assert_eq!(talk.member("227 (10,9,9,9,24,131)"), "425 No port is free for a data connection.");
    assert_eq!(talk.client("PORT 203,0,113,7,195,80"), "XNOP");
    assert_eq!(talk.member("500 What?"), "425 No port is free for a data connection.");
}

#[test]
fn commands_in_a_row_get_their_own_replies_also_when_the_server_leaves_some_out() {
    let mut talk = Talk::between(4, 6);
    assert_eq!(talk.client("CWD a\r\nPASV\r\nPORT 1,2,3,4,5,6\r\nEPSV"), "CWD a\nEPSV\nXNOP\nEPSV");
    assert_eq!(
        talk.member("250 Ok\n229 (|||6446|)\n500 What?\n229 (|||6447|)"),
        "250 Ok\n227 Entering Passive Mode (198,51,100,1,156,64).\n\
         504 Your own address alone, and a port from 1024 on.\n229 Entering Extended Passive Mode (|||40001|)"
    );
    // Of these no reply comes but the last.
    for _ in 0..1_000 {
        talk.client("NOOP");
    }
    talk.client("PASV");
    assert_eq!(talk.member("229 (|||6448|)"), "227 Entering Passive Mode (198,51,100,1,156,66).");
    // What was refused gets our words if the server refuses it too, and else its own.
    talk.client("PORT 1,2,3,4,5,6");
    assert_eq!(talk.member("250 Ok"), "250 Ok");
}

#[test]
fn once_auth_is_granted_nothing_is_read_any_more() {
    let mut talk = Talk::between(4, 4);
    assert_eq!(talk.client("AUTH TLS"), "AUTH TLS");
    assert_eq!(talk.member("504 Not known"), "504 Not known");
    assert_eq!(talk.client("PASV"), "PASV");
    assert_eq!(talk.member("227 (10,9,9,9,24,131)"), "227 Entering Passive Mode (198,51,100,1,156,64).");
    talk.happened();
    assert_eq!(talk.client("AUTH TLS"), "AUTH TLS");
    assert_eq!(talk.client_bytes(b"half "), "");
    assert_eq!(talk.member("234 Go on\n227 (10,9,9,9,24,131)"), "234 Go on\n227 (10,9,9,9,24,131)");
    assert_eq!(talk.client_bytes(b"PORT 1,2,3,4,5,6\r"), "half PORT 1,2,3,4,5,6\r");
    assert_eq!(talk.happened(), "[hidden]");

    let mut talk = Talk::with(4, 4, FtpAuth::Refuse);
    talk.member("220 ready");
    assert_eq!(talk.client("AUTH TLS"), "XNOP");
    assert_eq!(talk.member("500 What?"), "534 No security mechanism is offered here.");

    // TLS from the beginning, as it stands in the first byte alone.
    let mut talk = Talk::with(4, 4, FtpAuth::Refuse);
    assert_eq!(talk.client_bytes(b"\x16\x03\x01\r\n\n"), "\u{16}\u{3}\u{1}\n\n".strip_suffix('\n').unwrap());
    assert_eq!(talk.happened(), "[hidden]");
    let mut talk = Talk::with(4, 4, FtpAuth::Refuse);
    talk.client_bytes(b"X");
    talk.client_bytes(b"\x16");
    assert_eq!(talk.happened(), "");
}

#[test]
fn lines_have_a_longest_length() {
    let mut talk = Talk::between(4, 4);
    let long = vec![b'x'; line::LINE_MAX + 1];
    assert!(talk.follower.commands(&long, &mut Vec::new(), &mut talk.notes).is_err());
    assert!(talk.follower.replies(&long, &mut Vec::new(), &mut talk.notes).is_err());
}

#[test]
fn the_fuzz_corpus_breaks_nothing() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/ftp");
    let mut seen = 0;
    for file in std::fs::read_dir(corpus).expect("the corpus is part of the repository") {
        let path = file.expect("a file").path();
        crate::fuzzing::ftp(&std::fs::read(&path).expect("readable"));
        seen += 1;
    }
    assert!(seen >= 10, "{seen} files");
}

fn line() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just("PASV"),
        Just("EPSV"),
        Just("EPSV 1"),
        Just("EPSV 2"),
        Just("PORT 203,0,113,7,195,80"),
        Just("PORT 192,0,2,9,195,80"),
        Just("EPRT |1|203.0.113.7|50000|"),
        Just("EPRT |2|2001:db8::7|50000|"),
        Just("AUTH TLS"),
        Just("NOOP"),
        Just("LPSV"),
        Just("220 ready"),
        Just("227 Entering (192,0,2,9,195,80)"),
        Just("229 Entering (|||50000|)"),
        Just("234 Go"),
        Just("500 What?"),
        Just("227-First"),
        Just("227 Last"),
        Just("200 Ok"),
        Just("150 Wait"),
        Just("211-a"),
        Just("211 b"),
    ];
    let junk = prop::collection::vec(any::<u8>(), 0..12);
    let end = prop_oneof![8 => Just("\r\n"), 1 => Just("\n"), 1 => Just("\r"), 1 => Just("")];
    (prop::option::weighted(0.2, junk.clone()), word, prop::option::weighted(0.2, junk), end).prop_map(
        |(before, word, after, end)| {
            [&before.unwrap_or_default(), word.as_bytes(), &after.unwrap_or_default(), end.as_bytes()]
                .concat()
        },
    )
}

proptest! {
    #[test]
    fn whatever_is_said_no_other_address_gets_through(
        setting in any::<u8>(),
        lines in prop::collection::vec((any::<bool>(), line()), 0..24),
    ) {
        let mut data = vec![setting];
        for (of_member, line) in lines {
            for piece in line.chunks(100) {
                data.push(u8::from(of_member) | (piece.len() as u8) << 1);
                data.extend(piece);
            }
        }
        crate::fuzzing::ftp(&data);
    }

    #[test]
    fn any_bytes_are_answered(data in prop::collection::vec(any::<u8>(), 0..600)) {
        crate::fuzzing::ftp(&data);
    }
}
