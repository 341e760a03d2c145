//! What may stand on listeners, routes and rules alike, or in a bundle.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::{BanPolicy, Cache, Compression, Content, HostPattern, Scheme, Waf};
use crate::text::{Substitution, Template};

/// Keys that may stand on a listener, a route, a rule or in a named bundle; the nearest to the rule
/// counts, as a whole.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Policies {
    pub request_headers: Option<HeaderEdits>,
    pub response_headers: Option<HeaderEdits>,
    pub auth: Option<Auth>,
    pub cors: Option<Cors>,
    pub substitute: Option<Vec<BodyEdit>>,
    pub error_pages: Option<Vec<ErrorPage>>,
    pub ban: Option<BanPolicy>,
    pub waf: Option<Waf>,
    pub cache: Option<Cache>,
    pub compression: Option<Compression>,
}

impl Policies {
    /// What is not set here is taken from there.
    #[must_use]
    pub fn or(&self, outer: &Policies) -> Policies {
        Policies {
            request_headers: self.request_headers.clone().or_else(|| outer.request_headers.clone()),
            response_headers: self.response_headers.clone().or_else(|| outer.response_headers.clone()),
            auth: self.auth.clone().or_else(|| outer.auth.clone()),
            cors: self.cors.clone().or_else(|| outer.cors.clone()),
            substitute: self.substitute.clone().or_else(|| outer.substitute.clone()),
            error_pages: self.error_pages.clone().or_else(|| outer.error_pages.clone()),
            ban: self.ban.clone().or_else(|| outer.ban.clone()),
            waf: self.waf.clone().or_else(|| outer.waf.clone()),
            cache: self.cache.clone().or_else(|| outer.cache.clone()),
            compression: self.compression.clone().or_else(|| outer.compression.clone()),
        }
    }
}

/// Who may send requests: those of basic authentication (RFC 7617).
#[derive(Clone, PartialEq)]
pub struct Auth {
    /// What browsers show. Default `restricted`.
    pub realm: String,
    /// Name to hash of the password; nobody: everybody may.
    pub users: BTreeMap<String, String>,
}

impl Default for Auth {
    fn default() -> Self {
        Self { realm: "restricted".to_owned(), users: BTreeMap::new() }
    }
}

/// Hashes stay out of logs.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { realm, users } = self;
        f.debug_struct("Auth").field("realm", realm).field("users", &users.keys()).finish()
    }
}

/// An edit of a member's text responses.
#[derive(Clone, Debug, PartialEq)]
pub struct BodyEdit {
    pub edit: Substitution,
    /// Lower case; `*` is any. Default `text/html`.
    pub types: Vec<String>,
    /// Bytes, before the edit and after. Default 1 MiB.
    pub max: usize,
}

/// What a client sees of errors that are ours.
#[derive(Clone, Debug, PartialEq)]
pub struct ErrorPage {
    /// The first and the last status.
    pub statuses: (u16, u16),
    pub page: Content,
}

/// Which pages of other origins may use the rule (Fetch standard, section 3.2).
#[derive(Clone, Debug, PartialEq)]
pub struct Cors {
    /// Empty: none, and no preflight is answered.
    pub origins: Vec<OriginPattern>,
    /// Beside GET, HEAD and POST.
    pub methods: Vec<String>,
    /// Lower case; `*` is any.
    pub headers: Vec<String>,
    pub expose: Vec<String>,
    /// Not with [`OriginPattern::Any`].
    pub credentials: bool,
    /// Default 5 s.
    pub max_age: Duration,
}

impl Default for Cors {
    fn default() -> Self {
        Cors {
            origins: Vec::new(),
            methods: Vec::new(),
            headers: Vec::new(),
            expose: Vec::new(),
            credentials: false,
            max_age: Duration::from_secs(5),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    Any,
    At {
        scheme: Scheme,
        host: HostPattern,
        /// `None`: the scheme's.
        port: Option<u16>,
    },
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OriginPattern::Any => f.write_str("*"),
            OriginPattern::At { scheme, host, port: None } => write!(f, "{}://{host}", scheme.as_str()),
            OriginPattern::At { scheme, host, port: Some(port) } => {
                write!(f, "{}://{host}:{port}", scheme.as_str())
            }
        }
    }
}

/// In this order: removed, set, added.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct HeaderEdits {
    /// Names are lower case.
    pub remove: Vec<String>,
    pub set: Vec<(String, Template)>,
    pub add: Vec<(String, Template)>,
    /// Of responses: fields that make browsers careful, where the member set none.
    pub security: bool,
}
