//! Patterns and templates: texts of a config that are read once and used for every request.

pub mod log;
mod path;
mod substitution;

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use regex::bytes::{Regex, RegexBuilder};

pub use substitution::{Piece, Place, Substitution};

use crate::model::NetworkRef;
use crate::problem::{Fault, near_miss, shown};

/// Bytes that a compiled pattern may take. A pattern is matched in time linear in what it is held against.
const COMPILED_MAX: usize = 1 << 20;
const PATTERN_MAX: usize = 4096;

/// A regular expression (syntax of the `regex` crate) that must match the whole of a value.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    whole: Regex,
}

impl Pattern {
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        if text.len() > PATTERN_MAX {
            return Err(Fault::new(format!("a regular expression has at most {PATTERN_MAX} bytes")));
        }
        // Alone first: parentheses that are put around it could close those in it.
        compile(text)?;
        Ok(Self { text: text.to_owned(), whole: compile(&format!(r"\A(?:{text})\z"))? })
    }

    /// Of a path in its normal form.
    pub(crate) fn of_path(text: &str) -> Result<Self, Fault> {
        let pattern = Self::parse(text)?;
        match path::never(text) {
            Some(why) => Err(Fault::new(why)),
            None => Ok(pattern),
        }
    }

    pub fn is_match(&self, value: &[u8]) -> bool {
        self.whole.is_match(value)
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|fault| fault.message)
    }
}

/// What is replaced in a path, wherever it occurs, and by what (`$1`, `$name`, `${1}`, `$$`).
#[derive(Clone, Debug, PartialEq)]
pub struct Replacement(Substitution);

impl Replacement {
    pub(crate) fn parse(find: &str, with: &str) -> Result<Self, Fault> {
        Substitution::of_path(find, with).map(Self)
    }

    /// Hands over the parts of what `path` becomes, from left to right.
    pub fn apply(&self, path: &str, mut put: impl FnMut(Written<'_>)) {
        let (path, mut from) = (path.as_bytes(), 0);
        for place in self.0.places(path) {
            put(Written::Path(&path[from..place.range().start]));
            for piece in self.0.with() {
                match piece {
                    Piece::Text(text) => put(Written::Config(text)),
                    Piece::Group(number) => put(Written::Path(place.group(*number))),
                    // A path's replacement has none.
                    Piece::Variable(_) => {}
                }
            }
            from = place.range().end;
        }
        put(Written::Path(&path[from..]));
    }
}

/// Who wrote part of a path that a replacement makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written<'a> {
    Config(&'a str),
    /// It was in the path before: what a group has matched, or what stands between the places.
    Path(&'a [u8]),
}

fn compile(text: &str) -> Result<Regex, Fault> {
    RegexBuilder::new(text).size_limit(COMPILED_MAX).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => {
            Fault::new("the regular expression is too large").help("smaller counts of repetition")
        }
        // The last line says what; those before it draw where.
        error => {
            let text = error.to_string();
            let what = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Fault::new(format!("no regular expression: {what}"))
        }
    })
}

pub(crate) fn network(text: &str) -> Result<IpNet, Fault> {
    let alone = || text.parse::<std::net::IpAddr>().ok().map(IpNet::from);
    let parsed = text.parse::<IpNet>().ok().or_else(alone);
    let Some(network) = parsed else {
        if text.starts_with('@') {
            return Err(Fault::new("expected a network, not a set of them").help("write the networks out"));
        }
        return Err(Fault::new(format!("{} is no network", shown(text)))
            .help("`192.0.2.0/24`, `2001:db8::/32` and `192.0.2.1` are"));
    };
    if network.trunc() != network {
        let near = network.trunc().to_string();
        return Err(Fault::new(format!("{} has bits behind its prefix", shown(text))).near(Some(&near)));
    }
    Ok(network)
}

/// A network, or a set of them by its name.
pub(crate) fn network_or_set(text: &str) -> Result<NetworkRef, Fault> {
    match text.strip_prefix('@') {
        Some(name) => crate::scalar::name(name).map(NetworkRef::Set),
        None => network(text).map(NetworkRef::Network),
    }
}

/// A text with variables, `${client.ip}`; `$${` stands for `${`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Template {
    pub parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part<V = Variable> {
    Text(String),
    Variable(V),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Variable {
    ClientIp,
    ClientPort,
    /// An element of `Forwarded` (RFC 7239).
    Forwarded,
    Host,
    Path,
    Method,
    Scheme,
    RequestId,
    Node,
    Listener,
    Route,
    Pool,
    Member,
    /// Lower case.
    Header(String),
    Cookie(String),
    Query(String),
    TlsVersion,
    TlsSni,
    TlsClientSubject,
}

const PLAIN: [(&str, Variable); 16] = [
    ("client.ip", Variable::ClientIp),
    ("client.port", Variable::ClientPort),
    ("forwarded", Variable::Forwarded),
    ("host", Variable::Host),
    ("path", Variable::Path),
    ("method", Variable::Method),
    ("scheme", Variable::Scheme),
    ("request.id", Variable::RequestId),
    ("node", Variable::Node),
    ("listener", Variable::Listener),
    ("route", Variable::Route),
    ("pool", Variable::Pool),
    ("member", Variable::Member),
    ("tls.version", Variable::TlsVersion),
    ("tls.sni", Variable::TlsSni),
    ("tls.client.subject", Variable::TlsClientSubject),
];

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        Ok(Self { parts: parts(text, variable)? })
    }

    /// A text without variables.
    pub fn fixed(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Text(text)] => Some(text),
            _ => None,
        }
    }
}

impl FromStr for Template {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|fault| fault.message)
    }
}

/// What stands between `${` and `}` is read by `variable`.
fn parts<V>(text: &str, variable: impl Fn(&str) -> Result<V, Fault>) -> Result<Vec<Part<V>>, Fault> {
    let mut parts = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, after) = (&rest[..at], &rest[at + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            plain.push_str(before);
            plain.push_str("${");
            rest = after;
            continue;
        }
        plain.push_str(before);
        let Some((name, behind)) = after.split_once('}') else {
            return Err(Fault::new("`${` has no `}`").help("`$${` stands for `${`"));
        };
        if !plain.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut plain)));
        }
        parts.push(Part::Variable(variable(name)?));
        rest = behind;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        parts.push(Part::Text(plain));
    }
    Ok(parts)
}

fn variable(name: &str) -> Result<Variable, Fault> {
    if let Some((_, variable)) = PLAIN.iter().find(|(plain, _)| *plain == name) {
        return Ok(variable.clone());
    }
    match name.split_once('.') {
        Some(("header", of)) => Ok(Variable::Header(crate::scalar::header_name(of)?)),
        Some(("cookie", of)) if !of.is_empty() => Ok(Variable::Cookie(of.to_owned())),
        Some(("query", of)) if !of.is_empty() => Ok(Variable::Query(of.to_owned())),
        _ if log::is_for_log(name) => {
            Err(Fault::new(format!("only the access log has the variable {}", shown(name))))
        }
        _ => {
            let fault = Fault::new(format!("there is no variable {}", shown(name)));
            let near = near_miss(name, PLAIN.iter().map(|(plain, _)| *plain));
            Err(match near {
                Some(near) => fault.near(Some(near)),
                None => fault.help(
                    "`client.ip`, `host`, `path`, `request.id`, `header.NAME`, `cookie.NAME`, `query.NAME` are some",
                ),
            })
        }
    }
}

impl fmt::Display for Template {
    /// As it was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(&self.parts, f)
    }
}

fn print<V: fmt::Display>(parts: &[Part<V>], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    parts.iter().try_for_each(|part| match part {
        Part::Text(text) => f.write_str(&text.replace("${", "$${")),
        Part::Variable(variable) => write!(f, "${{{variable}}}"),
    })
}

impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Variable::Header(name) => write!(f, "header.{name}"),
            Variable::Cookie(name) => write!(f, "cookie.{name}"),
            Variable::Query(name) => write!(f, "query.{name}"),
            plain => {
                let name = PLAIN.iter().find(|(_, variable)| variable == plain).map(|(name, _)| *name);
                f.write_str(name.unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(result: Result<impl fmt::Debug, Fault>) -> String {
        let fault = result.expect_err("it is bad");
        format!("{fault:?}")
    }

    #[test]
    fn a_pattern_matches_the_whole_value() {
        let pattern = Pattern::parse("a|bc").unwrap();
        for (value, fits) in [("a", true), ("bc", true), ("ab", false), ("abc", false), ("", false)] {
            assert_eq!(pattern.is_match(value.as_bytes()), fits, "{value}");
        }
    }

    #[test]
    fn a_bad_pattern_says_why() {
        assert!(message(Pattern::parse("a)(b")).contains("unopened group"));
        assert!(message(Pattern::parse("(a{1000}){1000}")).contains("too large"));
        assert!(message(Pattern::parse(&"a".repeat(5000))).contains("4096"));
    }

    #[test]
    fn what_is_replaced_in_a_path_names_groups_that_are_there() {
        let replaced = |find: &str, with: &str, path: &str| {
            let mut out = Vec::new();
            Replacement::parse(find, with).unwrap().apply(path, |written| match written {
                Written::Config(text) => out.extend_from_slice(text.as_bytes()),
                Written::Path(bytes) => out.extend_from_slice(bytes),
            });
            String::from_utf8(out).unwrap()
        };
        assert_eq!(replaced("/u/(.*)", "/v/$1", "/u/a"), "/v/a");
        assert_eq!(replaced("/u/(?P<who>[^/]*)", "/v/${who}s/$who$$${1}", "/u/a/b"), "/v/as/a$a/b");
        assert_eq!(replaced("(x)?/", "$1-", "/x/"), "-x-");
        assert_eq!(replaced("([0-9])", "$1a", "/1"), "/1a");
        assert!(message(Replacement::parse("/u/(.*)", "/v/$2")).contains("no group `2`"));
        assert!(message(Replacement::parse("/u/(.*)", "/v/${name}")).contains("no group `name`"));
        assert!(message(Replacement::parse("/u/(.*)", "/v/$name")).contains("no group `name`"));
        assert!(message(Replacement::parse("/u/(.*)", "/v/${1")).contains("no `}`"));
        assert!(message(Replacement::parse("(", "")).contains("no regular expression"));
    }

    #[test]
    fn a_network_has_no_bits_behind_its_prefix() {
        assert_eq!(network("192.0.2.0/24").unwrap().to_string(), "192.0.2.0/24");
        assert_eq!(network("2001:db8::1").unwrap().to_string(), "2001:db8::1/128");
        assert!(message(network("192.0.2.1/24")).contains("192.0.2.0/24"));
        assert!(message(network("a")).contains("no network"));
    }

    #[test]
    fn a_template_is_text_and_variables() {
        let template = Template::parse("a ${client.ip}-${header.X-Tenant}$${b}").unwrap();
        let expected = [
            Part::Text("a ".to_owned()),
            Part::Variable(Variable::ClientIp),
            Part::Text("-".to_owned()),
            Part::Variable(Variable::Header("x-tenant".to_owned())),
            Part::Text("${b}".to_owned()),
        ];
        assert_eq!(template.parts, expected);
        assert_eq!(template.to_string(), "a ${client.ip}-${header.x-tenant}$${b}");
        assert_eq!(Template::parse("plain").unwrap().fixed(), Some("plain"));
        assert!(message(Template::parse("${client.ipp}")).contains("client.ip"));
        assert!(message(Template::parse("${host")).contains("no `}`"));
    }

    proptest! {
        #[test]
        fn what_a_template_prints_reads_the_same(text in r"([a-z$\{}. ]|\$\{host\}|\$\{cookie\.a\}|\$\$\{){0,12}") {
            if let Ok(template) = Template::parse(&text) {
                prop_assert_eq!(Template::parse(&template.to_string()).unwrap(), template);
            }
        }

        #[test]
        fn any_text_is_a_pattern_or_refused(text in ".{0,40}") {
            let _ = Pattern::parse(&text);
            let _ = Template::parse(&text);
            let _ = network(&text);
        }
    }
}
