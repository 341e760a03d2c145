//! Header fields that a config adds, sets and removes.

use http::header::STRICT_TRANSPORT_SECURITY;
use http::{HeaderMap, HeaderName, HeaderValue};
use trestle_config::model::{HeaderEdits, Scheme};
use trestle_config::text::Template;

use super::text::{Scope, Text};

/// Compiled once; applied in the order removed, set, added.
#[derive(Debug, Default)]
pub(crate) struct Edits {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, Text)]>,
    add: Box<[(HeaderName, Text)]>,
    security: bool,
}

/// What browsers should be told unless the application knows better (OWASP Secure Headers).
const SECURITY: [(HeaderName, &str); 3] = [
    (http::header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (http::header::X_FRAME_OPTIONS, "SAMEORIGIN"),
    (http::header::REFERRER_POLICY, "strict-origin-when-cross-origin"),
];

/// For a year; names below may have their own reasons not to.
const TLS_ONLY: &str = "max-age=31536000";

impl Edits {
    /// `None`: there is nothing to do.
    pub(crate) fn compile(edits: &HeaderEdits) -> Option<Box<Self>> {
        if *edits == HeaderEdits::default() {
            return None;
        }
        // Names were checked with the config.
        let name = |name: &String| HeaderName::from_bytes(name.as_bytes()).ok();
        Some(Box::new(Self {
            remove: edits.remove.iter().filter_map(name).collect(),
            set: lines(&edits.set),
            add: lines(&edits.add),
            security: edits.security,
        }))
    }

    pub(crate) fn reads_header(&self) -> bool {
        self.set.iter().chain(&self.add).any(|(_, text)| text.reads_header())
    }

    /// Fields that are not as they were afterwards.
    pub(crate) fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.removed_names().chain(self.put_names())
    }

    pub(crate) fn removed_names(&self) -> impl Iterator<Item = &HeaderName> {
        self.remove.iter()
    }

    pub(crate) fn put_names(&self) -> impl Iterator<Item = &HeaderName> {
        self.set.iter().chain(&self.add).map(|(name, _)| name)
    }

    /// The values of variables are those before any of the edits.
    pub(crate) fn apply(&self, headers: &mut HeaderMap, values: &Values) {
        self.remove(headers);
        let (set, add) = values.texts.split_at(self.set.len());
        for ((name, _), value) in self.set.iter().zip(set) {
            headers.insert(name, value.clone());
        }
        for ((name, _), value) in self.add.iter().zip(add) {
            headers.append(name, value.clone());
        }
        if self.security {
            for (name, value) in SECURITY {
                headers.entry(name).or_insert(HeaderValue::from_static(value));
            }
            if values.over_tls {
                headers.entry(STRICT_TRANSPORT_SECURITY).or_insert(HeaderValue::from_static(TLS_ONLY));
            }
        }
    }

    /// Of all it does, only what takes fields away.
    pub(crate) fn remove(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
    }

    pub(crate) fn values(&self, scope: Scope<'_>) -> Values {
        Values {
            texts: self.set.iter().chain(&self.add).map(|(_, text)| text.value(scope)).collect(),
            over_tls: scope.record.scheme() == Scheme::Https,
        }
    }
}

/// Values of one request, in the order of the edits.
pub(crate) struct Values {
    texts: Vec<HeaderValue>,
    over_tls: bool,
}

pub(crate) fn lines(lines: &[(String, Template)]) -> Box<[(HeaderName, Text)]> {
    let line = |(name, template): &(String, Template)| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, Text::compile(template)))
    };
    lines.iter().filter_map(line).collect()
}
