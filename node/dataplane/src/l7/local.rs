//! Rules that answer by themselves, and those that change what the member is asked for.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, LOCATION};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri};
use trestle_config::model::{self, Scheme};
use trestle_config::text::Part;

use super::body::Answer;
use super::edits::lines;
use super::new_path::NewPath;
use super::record::Record;
use super::text::{Scope, Text};
use super::{page, target};
use crate::metrics::Reason;

/// A redirect or a fixed response.
#[derive(Debug)]
pub(crate) enum LocalAnswer {
    Redirect(Redirect),
    Respond(Respond),
}

#[derive(Debug)]
pub(crate) struct Redirect {
    scheme: Option<Scheme>,
    host: Option<Text>,
    port: Option<u16>,
    path: Option<NewPath>,
    status: StatusCode,
}

#[derive(Debug)]
pub(crate) struct Respond {
    status: StatusCode,
    body: Text,
    /// It is markup, of which what a client chose must not become a part.
    markup: bool,
    headers: Box<[(HeaderName, Text)]>,
}

#[derive(Debug, Default)]
pub(crate) struct Rewrite {
    host: Option<Text>,
    path: Option<NewPath>,
}

/// By its content type, also where that is only known with a request.
fn is_markup(respond: &model::Respond) -> bool {
    let kind = respond.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    kind.flat_map(|(_, value)| &value.parts).any(|part| match part {
        Part::Text(text) => {
            let text = text.to_ascii_lowercase();
            text.contains("html") || text.contains("xml")
        }
        Part::Variable(_) => true,
    })
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

impl LocalAnswer {
    pub(crate) fn compile(answer: &model::LocalAnswer) -> Self {
        match answer {
            model::LocalAnswer::Redirect(redirect) => Self::Redirect(Redirect {
                scheme: redirect.scheme,
                host: redirect.host.as_ref().map(Text::compile),
                port: redirect.port,
                path: redirect.path.as_ref().map(NewPath::compile),
                status: status(redirect.code),
            }),
            model::LocalAnswer::Respond(respond) => Self::Respond(Respond {
                status: status(respond.code),
                body: Text::compile(&respond.body),
                markup: is_markup(respond),
                headers: lines(&respond.headers),
            }),
        }
    }

    /// `prefix`: as many bytes of the path are the prefix that matched.
    pub(crate) fn answer(
        &self,
        record: &Record,
        headers: &HeaderMap,
        prefix: usize,
    ) -> Result<Response<Answer>, Reason> {
        let scope = Scope { record, headers };
        let mut response;
        match self {
            Self::Redirect(redirect) => {
                let location = redirect.location(scope, prefix)?;
                response = Response::new(Answer::Page(page::page(redirect.status, record)));
                *response.status_mut() = redirect.status;
                response.headers_mut().insert(LOCATION, location);
                response.headers_mut().insert(CONTENT_TYPE, page::PLAIN);
            }
            Self::Respond(respond) => {
                let body =
                    if respond.markup { respond.body.markup(scope) } else { respond.body.bytes(scope) };
                let body = Bytes::from(body);
                let bare = body.is_empty() || matches!(respond.status.as_u16(), 204 | 304);
                response = Response::new(if bare { Answer::None } else { Answer::Page(body) });
                *response.status_mut() = respond.status;
                if !bare {
                    response.headers_mut().insert(CONTENT_TYPE, page::PLAIN);
                }
                for (name, text) in &respond.headers {
                    response.headers_mut().insert(name, text.value(scope));
                }
            }
        }
        Ok(response)
    }
}

impl Redirect {
    fn location(&self, scope: Scope<'_>, prefix: usize) -> Result<HeaderValue, Reason> {
        let record = scope.record;
        let target = match &self.path {
            Some(path) => path.target(&record.target, scope, prefix)?.to_string(),
            None => record.target.path_and_query().map_or("/", PathAndQuery::as_str).to_owned(),
        };
        let asked = record.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
        let (name, port) = target::split_port(asked);
        let port = port.and_then(|port| port.parse().ok());
        let host = match &self.host {
            Some(host) => Cow::Owned(host.host(scope).ok_or(Reason::BadHost)?),
            None => Cow::Borrowed(name),
        };
        if host.is_empty() {
            // An HTTP/1.0 client that named no host is at the right one, but a target alone would lead it back to
            // this scheme and port.
            if self.port.is_some() || self.scheme.is_some_and(|scheme| scheme != record.scheme()) {
                return Err(Reason::BadHost);
            }
            return HeaderValue::from_str(&target).map_err(|_| Reason::Internal);
        }
        let scheme = self.scheme.unwrap_or(record.scheme());
        // Gateway API: with another scheme its own port, else the one that was asked.
        let port = match (self.port, self.scheme) {
            (Some(port), _) => Some(port),
            (None, Some(_)) => None,
            (None, None) => port,
        };
        let location = match port.filter(|port| *port != scheme.port()) {
            Some(port) => format!("{}://{host}:{port}{target}", scheme.as_str()),
            None => format!("{}://{host}{target}", scheme.as_str()),
        };
        HeaderValue::from_str(&location).map_err(|_| Reason::Internal)
    }
}

impl Rewrite {
    pub(crate) fn compile(rewrite: &model::Rewrite) -> Self {
        Self {
            host: rewrite.host.as_ref().map(Text::compile),
            path: rewrite.path.as_ref().map(NewPath::compile),
        }
    }

    /// Changes what the member will see.
    pub(crate) fn apply(
        &self,
        record: &Record,
        uri: &mut Uri,
        headers: &mut HeaderMap,
        prefix: usize,
    ) -> Result<(), Reason> {
        if let Some(path) = &self.path {
            let target = path.target(uri, Scope { record, headers }, prefix)?;
            let mut parts = http::uri::Parts::default();
            parts.path_and_query = Some(target);
            *uri = Uri::from_parts(parts).map_err(|_| Reason::Internal)?;
        }
        if let Some(host) = &self.host {
            let host = host.host(Scope { record, headers }).ok_or(Reason::BadHost)?;
            headers.insert(HOST, HeaderValue::try_from(host).map_err(|_| Reason::BadHost)?);
        }
        Ok(())
    }
}
