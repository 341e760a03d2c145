//! Cross-origin requests of browsers: preflights are answered here, and answers say who may read them
//! (Fetch standard, section 3.2).

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS as ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS as ALLOW_HEADERS,
    ACCESS_CONTROL_ALLOW_METHODS as ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN as ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS as EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE as MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS as REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD as REQUEST_METHOD,
    ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use trestle_config::model::{self, OriginPattern};

use super::body::Answer;
use super::target;

/// Compiled once.
#[derive(Debug)]
pub(crate) struct Cors {
    origins: Box<[OriginPattern]>,
    methods: HeaderValue,
    /// `None`: those that are asked for.
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: HeaderValue,
}

/// The method that a preflight asks for.
pub(crate) fn preflight(method: &Method, headers: &HeaderMap) -> Option<Method> {
    if method != Method::OPTIONS || !headers.contains_key(ORIGIN) {
        return None;
    }
    Method::from_bytes(headers.get(REQUEST_METHOD)?.as_bytes()).ok()
}

impl Cors {
    pub(crate) fn compile(cors: &model::Cors) -> Option<Box<Self>> {
        if cors.origins.is_empty() {
            return None;
        }
        // Tokens of the config, all of which may stand in a header.
        let list =
            |items: &[String]| HeaderValue::from_str(&items.join(", ")).ok().filter(|list| !list.is_empty());
        let mut methods = vec!["GET".to_owned(), "HEAD".to_owned(), "POST".to_owned()];
        methods
            .extend(cors.methods.iter().filter(|m| !["GET", "HEAD", "POST"].contains(&m.as_str())).cloned());
        let any_header = cors.headers.iter().any(|header| header == "*");
        Some(Box::new(Self {
            origins: cors.origins.clone().into(),
            methods: list(&methods).unwrap_or(HeaderValue::from_static("GET, HEAD, POST")),
            headers: (!any_header).then(|| list(&cors.headers).unwrap_or(HeaderValue::from_static(""))),
            expose: list(&cors.expose),
            credentials: cors.credentials,
            max_age: HeaderValue::from(cors.max_age.as_secs()),
        }))
    }

    /// The answer to a preflight, but for what [`Cors::mark`] says in each: to an origin that may not, one
    /// that allows nothing.
    pub(crate) fn answer(&self, request: &HeaderMap) -> Response<Answer> {
        let mut response = Response::new(Answer::None);
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        if request.get(ORIGIN).is_some_and(|origin| self.allows(origin)) {
            headers.insert(ALLOW_METHODS, self.methods.clone());
            let allowed = self.headers.as_ref().or_else(|| request.get(REQUEST_HEADERS));
            if let Some(allowed) = allowed.filter(|allowed| !allowed.is_empty()) {
                headers.insert(ALLOW_HEADERS, allowed.clone());
            }
            headers.insert(MAX_AGE, self.max_age.clone());
        }
        headers.append(
            VARY,
            HeaderValue::from_static("Access-Control-Request-Method, Access-Control-Request-Headers"),
        );
        response
    }

    /// What an answer says of who may read it: our word, not the member's.
    pub(crate) fn mark(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        for name in [ALLOW_ORIGIN, ALLOW_CREDENTIALS, EXPOSE_HEADERS] {
            headers.remove(name);
        }
        if self.allow(origin, headers)
            && let Some(expose) = &self.expose
        {
            headers.insert(EXPOSE_HEADERS, expose.clone());
        }
    }

    fn allow(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) -> bool {
        if self.origins.contains(&OriginPattern::Any) {
            headers.insert(ALLOW_ORIGIN, HeaderValue::from_static("*"));
            return true;
        }
        // The answer depends on it, also where there is none.
        headers.append(VARY, HeaderValue::from_static("Origin"));
        let Some(origin) = origin.filter(|origin| self.allows(origin)) else { return false };
        headers.insert(ALLOW_ORIGIN, origin.clone());
        if self.credentials {
            headers.insert(ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        true
    }

    pub(crate) fn allows_method(&self, method: &Method) -> bool {
        let listed = self.methods.to_str().unwrap_or_default();
        listed.split(", ").any(|listed| listed == method.as_str())
    }

    pub(crate) fn allows(&self, origin: &HeaderValue) -> bool {
        if self.origins.contains(&OriginPattern::Any) {
            return true;
        }
        let Some((scheme, rest)) = origin.to_str().ok().and_then(|origin| origin.split_once("://")) else {
            return false;
        };
        let (host, port) = target::split_port(rest);
        self.origins.iter().any(|pattern| match pattern {
            // Looked for above, since an opaque origin (`null`) is one too.
            OriginPattern::Any => false,
            OriginPattern::At { scheme: s, host: h, port: p } => {
                let same_port = match (p, port) {
                    (Some(p), Some(port)) => itoa::Buffer::new().format(*p) == port,
                    (None, None) => true,
                    _ => false,
                };
                s.as_str() == scheme && same_port && h.matches(host)
            }
        })
    }
}
