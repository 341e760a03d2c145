//! The shape of the language: one record for each object, one line for each key.
//!
//! From these records ([`language`]) follow parsing and its messages ([`crate::check`]), the order
//! of keys in the canonical form, the JSON Schema ([`json`]) and the tables of `docs/config.md`
//! (`reference`, in tests). A key that is in no record is unknown.

pub(crate) mod json;
// A table: one line a key reads better than what a formatter makes of it.
#[rustfmt::skip]
pub(crate) mod language;
#[cfg(test)]
mod reference;

use std::time::Duration;

/// A map with known keys.
#[derive(Debug)]
pub(crate) struct Object {
    /// Name in the JSON Schema and of the table in the reference.
    pub(crate) name: &'static str,
    /// In canonical order.
    pub(crate) keys: &'static [Key],
    /// Keys that follow, shared between objects (the policy keys).
    pub(crate) more: &'static [Key],
    pub(crate) choose: Choose,
}

impl Object {
    pub(crate) const fn new(name: &'static str, keys: &'static [Key]) -> Object {
        Object { name, keys, more: &[], choose: Choose::Any }
    }

    const fn with(mut self, more: &'static [Key]) -> Object {
        self.more = more;
        self
    }

    const fn choose(mut self, choose: Choose) -> Object {
        self.choose = choose;
        self
    }

    pub(crate) fn all_keys(&self) -> impl Iterator<Item = &'static Key> + Clone + use<> {
        self.keys.iter().chain(self.more)
    }

    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.all_keys().find(|key| key.name == name)
    }
}

/// Keys of which only some may stand together.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Choose {
    Any,
    ExactlyOne(&'static [&'static str]),
    AtMostOne(&'static [&'static str]),
}

#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) ty: Type,
    pub(crate) default: Default,
    /// One sentence without its full stop.
    pub(crate) doc: &'static str,
}

/// What a key that is left out means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Default {
    /// It must be given.
    Required,
    /// As if this YAML had been written.
    Yaml(&'static str),
    /// Nothing that could be written: said in words.
    Words(&'static str),
}

impl Key {
    const fn new(name: &'static str, ty: Type, default: Default, doc: &'static str) -> Key {
        Key { name, ty, default, doc }
    }
}

/// What a value may be.
#[derive(Debug)]
pub(crate) enum Type {
    Bool,
    Int {
        min: u64,
        max: u64,
    },
    /// A number from 0 to 1.
    Share,
    Duration {
        min: Duration,
        max: Duration,
    },
    /// `150ms-250ms`
    DurationRange,
    Size {
        min: u64,
        max: u64,
    },
    Text(Format),
    /// One of these words.
    Choice(&'static [&'static str]),
    List {
        of: &'static Type,
        min: usize,
    },
    /// A list of at least one, or its only item.
    OneOrList(&'static Type),
    Map {
        key: Format,
        of: &'static Type,
    },
    Object(&'static Object),
    /// A scalar stands for the object with only this key.
    Short(&'static str, &'static Object),
    /// `off` (or `false`) or the value.
    OrOff(&'static Type),
}

/// What a text means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Any,
    /// A resource's own name.
    Name,
    /// The name of a resource in the map of this name.
    Ref(&'static str),
    Bind,
    /// One port or a range of them, none of those that services have.
    DataPorts,
    /// An address that a host can have, with its prefix length.
    VipAddress,
    Interface,
    /// An absolute path, or nothing.
    Program,
    MemberAddress,
    Host,
    Path,
    Method,
    HeaderName,
    CookieName,
    HeaderValue,
    Status,
    /// A regular expression.
    Regex,
    /// Of a whole path.
    PathRegex,
    /// A text with variables.
    Template,
    /// The same, as the value of a header field.
    HeaderTemplate,
    Network,
    /// The same, or `@` and the name of a set of them.
    NetworkOrSet,
    /// A port, or a range of them.
    Ports,
    /// An origin of the web, `*`, or with `*.` before its host.
    Origin,
    /// What a request is hashed by.
    HashOn,
    /// So many in a unit of time.
    Rate,
    /// What a rate is limited by.
    LimitBy,
    /// A number from 1 to 100.
    Factor,
    /// The status of an error, or a class of them.
    ErrorStatus,
    /// `text/html`, or `*`.
    MediaType,
    /// The same, `text/*`, or `default`.
    MediaRange,
    RuleFile,
    WafRule,
    /// A failure after which a request is sent again.
    RetryOn,
    /// A file of whoever applies, or what was stored of one.
    File,
    /// PEM, or what was stored of it.
    Pem,
    /// A word, or a text with variables, those of the access log among them.
    LogLine,
    /// Where a log goes.
    LogTarget,
    /// A name or address that a certificate may have.
    ServerName,
    /// A protocol as TLS agrees on it.
    Alpn,
    /// Who comes with a password.
    UserName,
    /// What is kept of a password.
    PasswordHash,
}
