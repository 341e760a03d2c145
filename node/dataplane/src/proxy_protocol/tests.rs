//! Headers as others write them, and as nobody should.

use proptest::prelude::*;
use trestle_config::model::ProxyVersion;

use super::parse::{Malformed, Parsed, parse};
use super::*;

const FOUR: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 4, 210, 1, 187];

fn version_2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("short").to_be_bytes();
    [&SIGNATURE[..], &[command, family], &length, body].concat()
}

fn ends(client: &str, local: &str) -> Ends {
    Ends { client: client.parse().expect("an address"), local: local.parse().expect("an address") }
}

fn told(bytes: &[u8]) -> Option<Ends> {
    match parse(bytes) {
        Ok(Parsed::Whole { length, header }) if length == bytes.len() => header.ends,
        other => panic!("{other:?} of {:?}", bytes.escape_ascii().to_string()),
    }
}

#[test]
fn a_line_of_version_1_names_both_ends() {
    for (line, expected) in [
        ("PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", Some(("192.0.2.1:56324", "198.51.100.2:443"))),
        ("PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n", Some(("255.255.255.255:65535", "0.0.0.0:0"))),
        ("PROXY TCP6 2001:db8::1 ::1 56324 443\r\n", Some(("[2001:db8::1]:56324", "[::1]:443"))),
        ("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", Some(("192.0.2.1:1", "[::1]:2"))),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
    ] {
        assert_eq!(told(line.as_bytes()), expected.map(|(client, local)| ends(client, local)), "{line}");
    }
}

#[test]
fn a_line_that_could_be_read_in_two_ways_is_refused() {
    let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
    assert_eq!(long.len(), 108);
    for (line, why) in [
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n", Malformed::LineEnd),
        ("PROXY TCP4 192.0.2.1\r198.51.100.2 1 2\r\n", Malformed::LineEnd),
        (&long, Malformed::LongLine),
        ("PROXY TCP5 192.0.2.1 198.51.100.2 1 2\r\n", Malformed::Protocol),
        ("PROXY tcp4 192.0.2.1 198.51.100.2 1 2\r\n", Malformed::Protocol),
        ("PROXY  TCP4 192.0.2.1 198.51.100.2 1 2\r\n", Malformed::Protocol),
        ("PROXY TCP4 192.0.2.1  198.51.100.2 1 2\r\n", Malformed::Fields),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n", Malformed::Fields),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n", Malformed::Fields),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1 2 \r\n", Malformed::Fields),
        ("PROXY TCP4 192.0.2.01 198.51.100.2 1 2\r\n", Malformed::Address),
        ("PROXY TCP4 192.0.2 198.51.100.2 1 2\r\n", Malformed::Address),
        ("PROXY TCP4 ::1 ::2 1 2\r\n", Malformed::Address),
        ("PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n", Malformed::Address),
        ("PROXY TCP6 fe80::1%1 ::2 1 2\r\n", Malformed::Address),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 65536 2\r\n", Malformed::Port),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 +1 2\r\n", Malformed::Port),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 01 2\r\n", Malformed::Port),
        ("PROXY TCP4 192.0.2.1 198.51.100.2 1 \r\n", Malformed::Port),
    ] {
        assert_eq!(parse(line.as_bytes()), Err(why), "{line:?}");
    }
}

#[test]
fn a_header_of_version_2_names_both_ends() {
    let six: Vec<u8> = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1], &[0; 15], &[1], &FOUR[8..]].concat();
    for (bytes, expected) in [
        (version_2(0x21, 0x11, &FOUR), Some(("192.0.2.1:1234", "198.51.100.2:443"))),
        (version_2(0x21, 0x21, &six), Some(("[2001:db8::1]:1234", "[::1]:443"))),
        // A health check of the proxy itself, with and without addresses.
        (version_2(0x20, 0x00, &[]), None),
        (version_2(0x20, 0x11, &FOUR), None),
        // Nobody who could be at the end of a TCP connection.
        (version_2(0x21, 0x00, &[]), None),
        (version_2(0x21, 0x12, &FOUR), None),
        (version_2(0x21, 0x31, &[b'/'; 216]), None),
    ] {
        assert_eq!(told(&bytes), expected.map(|(client, local)| ends(client, local)), "{bytes:x?}");
    }
}

#[test]
fn a_header_of_version_2_that_is_none_is_refused() {
    let with = |tlvs: &[u8]| version_2(0x21, 0x11, &[&FOUR, tlvs].concat());
    let too_long = [&SIGNATURE[..], &[0x21, 0x11, 0x0f, 0xf1]].concat();
    for (bytes, why) in [
        (version_2(0x11, 0x11, &FOUR), Malformed::Version),
        (version_2(0x22, 0x11, &FOUR), Malformed::Command),
        (version_2(0x21, 0x41, &FOUR), Malformed::Family),
        (version_2(0x21, 0x13, &FOUR), Malformed::Family),
        (version_2(0x21, 0x11, &FOUR[..11]), Malformed::Short),
        (version_2(0x21, 0x21, &FOUR), Malformed::Short),
        (too_long, Malformed::Long),
        (with(&[1, 0]), Malformed::Tlv),
        (with(&[1, 0, 3, b'h', b'2']), Malformed::Tlv),
        (with(&[3, 0, 4, 1, 2, 3, 4]), Malformed::Checksum),
        (with(&[3, 0, 3, 1, 2, 3]), Malformed::Checksum),
    ] {
        assert_eq!(parse(&bytes), Err(why), "{bytes:x?}");
    }
}

#[test]
fn what_is_no_header_is_left_alone_and_told_as_soon_as_it_can_be() {
    for (bytes, begun) in [
        (&b""[..], false),
        (b"PRO", false),
        (b"PROXY", false),
        (b"PROXY ", true),
        (b"PROXY TCP4 192.0.2.1", true),
        (b"PROXY UNKNOWN\r", true),
        (b"\r\n\r\n\0\r\nQUIT", false),
        (b"\r\n\r\n\0\r\nQUIT\n", true),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c1234", true),
    ] {
        assert_eq!(parse(bytes), Ok(Parsed::Partial { begun }), "{bytes:?}");
    }
    for bytes in
        [&b"G"[..], b"PROPFIND / HTTP/1.1\r\n", b"\r\n\r\nGET", b"\x16\x03\x01", b"SSH-2.0", b"PROXYX"]
    {
        assert_eq!(parse(bytes), Ok(Parsed::Absent), "{bytes:?}");
    }
}

#[test]
fn tlvs_are_written_kept_and_passed_on() {
    let both = ends("192.0.2.1:1234", "198.51.100.2:443");
    let tls = Some(Tls { version: "TLSv1.3", common_name: Some("client") });
    let facts =
        Facts { alpn: Some(b"h2"), authority: Some("example.com"), unique_id: Some("id-1"), tls, told: None };
    let bytes = wanted(ProxyVersion::V2, &both, &facts);
    let Ok(Parsed::Whole { header, .. }) = parse(&bytes) else { panic!("{bytes:x?}") };
    assert_eq!(header.ends, Some(both));
    let expected = [
        &[1, 0, 2][..],
        b"h2",
        &[2, 0, 11],
        b"example.com",
        &[5, 0, 4],
        b"id-1",
        &[0x20, 0, 24, 7, 0, 0, 0, 0, 0x21, 0, 7],
        b"TLSv1.3",
        &[0x22, 0, 6],
        b"client",
    ];
    assert_eq!(header.tlvs.0, expected.concat());
    // What a proxy in front has told is not contradicted.
    let own = Facts { alpn: Some(b"http/1.1"), unique_id: Some("id-2"), ..Facts::default() };
    let passed_on = wanted(ProxyVersion::V2, &both, &Facts { told: Some(&header.tlvs), ..own });
    assert_eq!(passed_on, bytes);
    let no_certificate = Some(Tls { version: "TLSv1.2", common_name: None });
    let bytes = wanted(ProxyVersion::V2, &both, &Facts { tls: no_certificate, ..Facts::default() });
    assert!(bytes.ends_with(b"\x20\0\x0f\x01\0\0\0\x01\x21\0\x07TLSv1.2"), "{}", bytes.escape_ascii());
}

#[test]
fn version_1_says_what_the_specification_has() {
    let line = |client: &str, local: &str| {
        let line = wanted(ProxyVersion::V1, &ends(client, local), &Facts::default());
        String::from_utf8(line).expect("text")
    };
    assert_eq!(line("192.0.2.1:1", "[::ffff:192.0.2.2]:2"), "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n");
    assert_eq!(line("[2001:db8::1]:1", "[::1]:2"), "PROXY TCP6 2001:db8::1 ::1 1 2\r\n");
    assert_eq!(line("192.0.2.1:1", "[::1]:2"), "PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n");
}

#[test]
fn a_check_speaks_for_itself() {
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        assert_eq!(told(local(version)), None);
    }
}

/// Everything that a fuzzer found, or that we thought of, replayed.
#[test]
fn the_fuzz_corpus_breaks_nothing() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/proxy_protocol");
    let mut files = 0;
    for file in std::fs::read_dir(corpus).expect("the corpus is part of the repository") {
        crate::fuzzing::proxy_protocol(&std::fs::read(file.expect("listed").path()).expect("readable"));
        files += 1;
    }
    assert!(files >= 36, "{files} files");
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
    (ip, any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
}

proptest! {
    #[test]
    fn any_bytes_are_answered(
        start in prop_oneof![Just(&b""[..]), Just(&b"PROXY "[..]), Just(&b"PROXY TCP4 "[..]), Just(&b"PROXY TCP6 "[..]), Just(&SIGNATURE[..])],
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        crate::fuzzing::proxy_protocol(&[start, &rest].concat());
    }

    #[test]
    fn what_is_written_is_read(client in address(), local in address(), rest in any::<[u8; 9]>()) {
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            let told = Ends { client, local };
            let header = wanted(version, &told, &Facts { unique_id: Some("x"), ..Facts::default() });
            let bytes = [&header[..], &rest].concat();
            let Ok(Parsed::Whole { length, header: read }) = parse(&bytes) else {
                panic!("{:?}", bytes.escape_ascii().to_string())
            };
            prop_assert_eq!((length, read.ends), (header.len(), Some(told)));
        }
    }
}
