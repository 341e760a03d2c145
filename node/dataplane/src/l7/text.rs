//! Texts with variables (`"${client.ip}"`), made for one request.

use std::borrow::Cow;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use trestle_config::host;
use trestle_config::text::{Part, Template, Variable};

use super::new_path::Made;
use super::record::Record;
use super::substitute::escaped;
use super::{target, values};

/// A template whose texts without variables were made when it was compiled.
#[derive(Clone, Debug)]
pub(crate) enum Text {
    Fixed(HeaderValue),
    Made(Template),
}

/// What variables are read from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    pub(crate) record: &'a Record,
    /// The request's, as far as they are known.
    pub(crate) headers: &'a HeaderMap,
}

impl Text {
    pub(crate) fn compile(template: &Template) -> Self {
        match template.fixed().map(HeaderValue::from_str) {
            Some(Ok(fixed)) => Text::Fixed(fixed),
            _ => Text::Made(template.clone()),
        }
    }

    /// Whether it names something that only the request's header knows.
    pub(crate) fn reads_header(&self) -> bool {
        let reads = |part: &Part| matches!(part, Part::Variable(Variable::Header(_) | Variable::Cookie(_)));
        matches!(self, Text::Made(template) if template.parts.iter().any(reads))
    }

    /// As a field value: what can't stand in one is left out.
    pub(crate) fn value(&self, scope: Scope<'_>) -> HeaderValue {
        match self {
            Text::Fixed(fixed) => fixed.clone(),
            Text::Made(template) => {
                let mut bytes = Vec::new();
                write(template, scope, &mut bytes, |bytes, out| {
                    out.extend(bytes.iter().filter(|byte| !byte.is_ascii_control()));
                });
                // Left out above: what remains is allowed.
                HeaderValue::from_bytes(bytes.trim_ascii()).unwrap_or(HeaderValue::from_static(""))
            }
        }
    }

    /// Onto a path or a target.
    pub(crate) fn path(&self, scope: Scope<'_>, made: &mut Made) {
        match self {
            Text::Fixed(fixed) => made.own(&String::from_utf8_lossy(fixed.as_bytes())),
            Text::Made(template) => {
                for part in &template.parts {
                    match part {
                        Part::Text(text) => made.own(text),
                        Part::Variable(variable @ Variable::Query(_)) => {
                            made.bring_decoded(&scope.read(variable));
                        }
                        Part::Variable(variable) => made.bring(&scope.read(variable)),
                    }
                }
            }
        }
    }

    /// As a host, with the port that the config may give it. `None`: what variables brought makes none of it.
    pub(crate) fn host(&self, scope: Scope<'_>) -> Option<String> {
        match self {
            // Checked when the config was read.
            Text::Fixed(fixed) => fixed.to_str().ok().map(str::to_owned),
            Text::Made(template) => {
                let (mut bytes, mut fits) = (Vec::new(), true);
                for part in &template.parts {
                    match part {
                        Part::Text(text) => bytes.extend_from_slice(text.as_bytes()),
                        Part::Variable(variable) => {
                            let value = scope.read(variable);
                            fits &= host::may_be_inserted(&value);
                            bytes.extend_from_slice(&value);
                        }
                    }
                }
                let made = String::from_utf8(bytes).ok().filter(|_| fits)?;
                host::is_host(host::split_port(&made).0).then_some(made)
            }
        }
    }

    /// With what could be markup in a variable's value as character references.
    pub(crate) fn markup(&self, scope: Scope<'_>) -> Vec<u8> {
        match self {
            Text::Fixed(fixed) => fixed.as_bytes().to_vec(),
            Text::Made(template) => {
                let mut bytes = Vec::new();
                write(template, scope, &mut bytes, |bytes, out| out.extend_from_slice(&escaped(bytes)));
                bytes
            }
        }
    }

    /// As it comes.
    pub(crate) fn bytes(&self, scope: Scope<'_>) -> Vec<u8> {
        match self {
            Text::Fixed(fixed) => fixed.as_bytes().to_vec(),
            Text::Made(template) => {
                let mut bytes = Vec::new();
                write(template, scope, &mut bytes, |bytes, out| out.extend_from_slice(bytes));
                bytes
            }
        }
    }
}

fn write(template: &Template, scope: Scope<'_>, out: &mut Vec<u8>, put: impl Fn(&[u8], &mut Vec<u8>)) {
    for part in &template.parts {
        match part {
            Part::Text(text) => out.extend_from_slice(text.as_bytes()),
            Part::Variable(variable) => put(&scope.read(variable), out),
        }
    }
}

/// As an element of `Forwarded` (RFC 7239, section 4).
fn forwarded(record: &Record) -> String {
    let mut text = match record.client().ip() {
        IpAddr::V4(ip) => format!("for={ip}"),
        IpAddr::V6(ip) => format!("for=\"[{ip}]\""),
    };
    if let Some(host) = record.asked_host().and_then(|host| host.to_str().ok()) {
        // No host has quotes in it.
        text.push_str(&format!(";host=\"{host}\""));
    }
    text + ";proto=" + record.scheme().as_str()
}

impl<'a> Scope<'a> {
    pub(super) fn read(&self, variable: &'a Variable) -> Cow<'a, [u8]> {
        let record = self.record;
        let owned = |text: String| Cow::Owned(text.into_bytes());
        match variable {
            Variable::ClientIp => Cow::Borrowed(record.address().as_bytes()),
            Variable::ClientPort => match record.client().port() {
                0 => Cow::Borrowed(b"".as_slice()),
                port => owned(port.to_string()),
            },
            Variable::Host => owned(target::route_host(record.host.as_ref()).into_owned()),
            Variable::Path => Cow::Borrowed(record.target.path().as_bytes()),
            Variable::Method => Cow::Borrowed(record.method.as_str().as_bytes()),
            Variable::Scheme => Cow::Borrowed(record.scheme().as_str().as_bytes()),
            Variable::Forwarded => owned(forwarded(record)),
            Variable::RequestId => Cow::Borrowed(record.request_id().as_bytes()),
            Variable::Node => Cow::Borrowed(record.conn.client.worker.node().as_bytes()),
            Variable::Listener => Cow::Borrowed(record.listener.name.as_bytes()),
            Variable::Route => record
                .rule()
                .map_or(Cow::Borrowed(b"".as_slice()), |rule| Cow::Borrowed(rule.route.as_bytes())),
            Variable::Pool => {
                let pool = record.rule().zip(record.pool).and_then(|(rule, at)| rule.split.pool(at));
                pool.map_or(Cow::Borrowed(b"".as_slice()), |pool| Cow::Borrowed(pool.name().as_bytes()))
            }
            Variable::Member => match &record.picked {
                Some(picked) => Cow::Borrowed(picked.name().as_bytes()),
                None => Cow::Borrowed(b""),
            },
            Variable::Header(name) => match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) => {
                    Cow::Owned(values::header(self.headers, &name).collect::<Vec<_>>().join(&b", "[..]))
                }
                Err(_) => Cow::Borrowed(b""),
            },
            Variable::Cookie(name) => values::cookie(self.headers, name).next().unwrap_or_default(),
            Variable::Query(name) => values::query(record.target.query(), name).next().unwrap_or_default(),
            Variable::TlsVersion => record.tls(|tls| tls.version),
            Variable::TlsSni => record.tls(|tls| tls.name.as_deref().unwrap_or_default()),
            Variable::TlsClientSubject => record.tls(|tls| &tls.subject),
        }
    }
}
