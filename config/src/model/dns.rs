//! Members by name: what each node looks up for itself, and what the members that it finds have in common.

use std::fmt;
use std::net::SocketAddr;

/// A DNS name that stands for members, lower case, as it was written: with a final dot it is absolute, else
/// the resolver's search list counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DnsName {
    /// Each of its addresses is a member, at this port.
    Host { host: String, port: u16 },
    /// Each address of the hosts in its SRV records is a member, at the record's port.
    Srv(String),
}

impl DnsName {
    /// Without a final dot.
    pub fn host(&self) -> &str {
        let (DnsName::Host { host, .. } | DnsName::Srv(host)) = self;
        host.strip_suffix('.').unwrap_or(host)
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DnsName::Host { host, port } => write!(f, "{host}:{port}"),
            DnsName::Srv(name) => write!(f, "srv:{name}"),
        }
    }
}

/// A member that was written as a name. The members that it stands for come and go; they are called
/// `LABEL/ADDRESS:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NamedMember {
    pub dns: DnsName,
    /// The member's name, or without one the DNS name.
    pub label: String,
    /// Of each address. Of an SRV name 0 or 1: the records' own weights count, or none.
    pub weight: u32,
    pub zone: String,
    /// Tier of an SRV name's records of the lowest priority; the next priority is a tier further.
    pub backup: u32,
    /// Of each address.
    pub max_connections: u32,
}

impl NamedMember {
    /// With all else at its default.
    pub fn new(dns: DnsName) -> NamedMember {
        NamedMember {
            label: dns.host().to_owned(),
            dns,
            weight: 1,
            zone: String::new(),
            backup: 0,
            max_connections: 0,
        }
    }

    /// As the document names it, where names are unique: its name, or its address.
    pub fn name(&self) -> String {
        if self.label == self.dns.host() { self.dns.to_string() } else { self.label.clone() }
    }

    /// Whether a member of this name is one of those that it stands for.
    pub fn covers(&self, member: &str) -> bool {
        let address = member.strip_prefix(&*self.label).and_then(|rest| rest.strip_prefix('/'));
        let Some(Ok(address)) = address.map(str::parse::<SocketAddr>) else { return false };
        match &self.dns {
            DnsName::Host { port, .. } => *port == address.port(),
            DnsName::Srv(_) => true,
        }
    }

    /// Whether people mean it by this: its name, or its DNS name, in whatever case, and with or without the
    /// port and a final dot.
    pub fn is_called(&self, text: &str) -> bool {
        let host = self.dns.host();
        let is_host = |text: &str| text.strip_suffix('.').unwrap_or(text).eq_ignore_ascii_case(host);
        let is_address = || match &self.dns {
            DnsName::Host { port, .. } => {
                text.rsplit_once(':').is_some_and(|(host, typed)| typed.parse() == Ok(*port) && is_host(host))
            }
            DnsName::Srv(_) => text.strip_prefix("srv:").is_some_and(is_host),
        };
        text == self.label || is_address() || (self.label == host && is_host(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(host: &str, port: u16) -> NamedMember {
        NamedMember::new(DnsName::Host { host: host.into(), port })
    }

    #[test]
    fn a_member_by_name_is_called_as_it_is_written_and_covers_its_addresses() {
        let plain = host("app.internal.", 8080);
        assert_eq!(plain.name(), "app.internal.:8080");
        for text in ["app.internal", "app.internal.", "App.internal:8080", "app.internal.:8080"] {
            assert!(plain.is_called(text), "{text}");
        }
        let titled = NamedMember { label: "two".into(), ..plain.clone() };
        assert_eq!(titled.name(), "two");
        assert!(titled.is_called("two") && titled.is_called("app.internal:8080"));
        let srv = NamedMember::new(DnsName::Srv("_http._tcp.app".into()));
        assert_eq!(srv.name(), "srv:_http._tcp.app");
        assert!(srv.is_called("_http._tcp.app") && srv.is_called("srv:_http._tcp.app."));
        for (member, text) in [
            (&plain, "app.internal:80"),
            (&plain, "app"),
            (&plain, "srv:app.internal"),
            (&titled, "app.internal"),
            (&titled, "TWO"),
            (&srv, "srv:app"),
        ] {
            assert!(!member.is_called(text), "{text}");
        }

        assert!(
            plain.covers("app.internal/192.0.2.1:8080") && plain.covers("app.internal/[2001:db8::1]:8080")
        );
        assert!(titled.covers("two/192.0.2.1:8080") && srv.covers("_http._tcp.app/192.0.2.1:1"));
        for (member, name) in [
            (&plain, "app.internal/192.0.2.1:80"),
            (&plain, "app.internal"),
            (&plain, "app.internals/192.0.2.1:8080"),
            (&titled, "app.internal/192.0.2.1:8080"),
            (&titled, "two/three"),
        ] {
            assert!(!member.covers(name), "{name}");
        }
    }
}
