//! Hosts as they may be sent to: what a redirect or a rewrite makes of its parts must be one.

use std::net::Ipv6Addr;

use crate::scalar::hostname;

/// Whether this is a name (labels of letters, digits, `-` and `_`, none of them empty), an IPv4 address, or an
/// IPv6 address in brackets; without a port.
pub fn is_host(text: &str) -> bool {
    is_v6(text) || hostname(text).is_ok()
}

/// Splits off `:PORT`, if there is one.
pub fn split_port(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (text, None),
    }
}

/// Whether this may stand in a host for a variable: what could end the host, or begin another part of a URL, may
/// not. An address in brackets is for a host that has nothing else.
pub fn may_be_inserted(value: &[u8]) -> bool {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    value.iter().all(fits) || std::str::from_utf8(value).is_ok_and(is_v6)
}

fn is_v6(text: &str) -> bool {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    bare.is_some_and(|bare| bare.parse::<Ipv6Addr>().is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address() {
        for host in ["a", "Shop.example.org", "xn--e1afmkfd.org", "a_b.c-d", "192.0.2.1", "[2001:db8::1]"] {
            assert!(is_host(host), "{host}");
        }
        for none in [
            "", ".", "a.", ".a", "a..b", "a b", "a/b", "a@b", "a:1", "a%2fb", "a\\b", "a?b", "a#b", "-a",
            "::1", "[::1", "[a]", "[::1]:80", "[::1].a", "é.fr",
        ] {
            assert!(!is_host(none), "{none}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_a_host_ends_one_in_a_url(text in "[a-z.:/@?#\\\\%\\[\\] _-]{0,12}") {
            let ends = |c: char| "/@?#\\% ".contains(c);
            prop_assert!(!is_host(&text) || !text.contains(ends));
            prop_assert!(!may_be_inserted(text.as_bytes()) || !text.contains(ends));
        }
    }
}
