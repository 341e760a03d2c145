//! The resolver file (`/etc/resolv.conf`), as far as it counts for us: resolv.conf(5).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const PORT: u16 = 53;
/// What lies beyond is not asked.
const SERVERS_MAX: usize = 8;
const SEARCH_MAX: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    pub(super) servers: Vec<SocketAddr>,
    /// Without final dots; empty: the root.
    pub(super) search: Vec<String>,
    /// Names with so many dots are tried as they are before the search list is.
    pub(super) ndots: usize,
    /// For an answer of one server.
    pub(super) timeout: Duration,
    pub(super) attempts: usize,
}

impl Default for ResolvConf {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
        }
    }
}

impl ResolvConf {
    pub(super) fn of_server(server: SocketAddr) -> Self {
        Self { servers: vec![server], ..Self::default() }
    }

    /// What is no line of it, or none that counts here, is passed over; of `search` and `domain` the last
    /// one counts.
    pub(super) fn parse(text: &str) -> Self {
        let mut parsed = Self::default();
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // One with a zone (`fe80::1%eth0`) is left out.
                    let ip = words.next().and_then(|ip| ip.parse::<IpAddr>().ok());
                    let room = parsed.servers.len() < SERVERS_MAX;
                    parsed.servers.extend(ip.filter(|_| room).map(|ip| SocketAddr::new(ip, PORT)));
                }
                Some("search" | "domain") => {
                    let bare = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
                    parsed.search = words.take(SEARCH_MAX).map(bare).collect();
                }
                Some("options") => words.for_each(|option| parsed.option(option)),
                _ => {}
            }
        }
        parsed
    }

    /// Numbers are cut as libc cuts them.
    fn option(&mut self, option: &str) {
        let Some((name, number)) = option.split_once(':') else { return };
        let Ok(number) = number.parse::<u8>() else { return };
        match name {
            "ndots" => self.ndots = number.min(15).into(),
            "timeout" => self.timeout = Duration::from_secs(number.clamp(1, 30).into()),
            "attempts" => self.attempts = number.clamp(1, 5).into(),
            _ => {}
        }
    }

    /// The absolute names that a name may mean, in the order in which they are tried.
    pub(super) fn candidates(&self, name: &str) -> Vec<String> {
        if name.ends_with('.') {
            return vec![name.to_owned()];
        }
        let below = |domain: &String| match domain.as_str() {
            "" => format!("{name}."),
            domain => format!("{name}.{domain}."),
        };
        let mut names: Vec<String> = self.search.iter().map(below).collect();
        let first = name.bytes().filter(|b| *b == b'.').count() >= self.ndots;
        names.insert(if first { 0 } else { names.len() }, format!("{name}."));
        names
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn servers_search_list_and_options_are_read() {
        let text = "# by hand\n; too\nnameserver 192.0.2.53\nnameserver\t2001:db8::53\nnameserver fe80::1%eth0\n\
                    nameserver nobody\ndomain old.example\nsearch NS.svc.cluster.local. corp.example\n\
                    options ndots:5 timeout:2 attempts:99 rotate edns0 ndots:x\nsortlist 192.0.2.0\n";
        let expected = ResolvConf {
            servers: vec!["192.0.2.53:53".parse().unwrap(), "[2001:db8::53]:53".parse().unwrap()],
            search: vec!["ns.svc.cluster.local".into(), "corp.example".into()],
            ndots: 5,
            timeout: Duration::from_secs(2),
            attempts: 5,
        };
        assert_eq!(ResolvConf::parse(text), expected);
        assert_eq!(ResolvConf::parse(""), ResolvConf::default());
        assert_eq!(ResolvConf::parse("options ndots:0 timeout:0\n").timeout, Duration::from_secs(1));
    }

    #[test]
    fn a_search_list_is_gone_through_as_libc_does() {
        let of = |name: &str, ndots| {
            let search = vec!["ns.svc.cluster.local".to_owned(), "corp.example".to_owned()];
            ResolvConf { search, ndots, ..ResolvConf::default() }.candidates(name).join(" ")
        };
        let (absolute, below) =
            ("app.internal.", "app.internal.ns.svc.cluster.local. app.internal.corp.example.");
        assert_eq!(of("app.internal", 1), format!("{absolute} {below}"));
        assert_eq!(of("app.internal", 5), format!("{below} {absolute}"));
        assert_eq!(of("app", 1), "app.ns.svc.cluster.local. app.corp.example. app.");
        assert_eq!(of("app", 0), "app. app.ns.svc.cluster.local. app.corp.example.");
        assert_eq!(of("app.internal.", 5), absolute);
        assert_eq!(ResolvConf::parse("search .\n").candidates("app"), ["app.", "app."]);
    }

    proptest! {
        #[test]
        fn no_text_panics_and_bounds_hold(text in "((nameserver|search|domain|options|ndots:|[a-z0-9.:%]{0,12})[ \\t\\n#;é]){0,60}") {
            let parsed = ResolvConf::parse(&text);
            prop_assert!(parsed.servers.len() <= SERVERS_MAX && parsed.search.len() <= SEARCH_MAX);
            prop_assert!(parsed.ndots <= 15 && (1..=5).contains(&parsed.attempts));
            prop_assert!(parsed.candidates("a.b").iter().all(|name| name.ends_with('.')));
        }
    }
}
