//! Policy keys: those of bundles that are pulled in, and those that stand there themselves.

use crate::check::Sink;
use crate::model::{Cors, ErrorPage, HeaderEdits, OriginPattern, Policies};
use crate::problem::{Fault, shown};
use crate::scalar;
use crate::text::Template;
use crate::tree::Place;
use crate::value::{Fields, Kind, Value};

/// Keys that are about requests, and mean nothing for a connection.
pub(crate) const OF_REQUESTS: [&str; 4] = ["request_headers", "response_headers", "cors", "error_pages"];

/// Of a listener, a route or a rule: what is inline beats what `use` pulls in.
pub(super) fn of(root: &Fields, fields: &Fields, sink: &mut Sink) -> Policies {
    let mut bundled = Policies::default();
    let mut from: Vec<(&str, &str)> = Vec::new();
    for value in fields.list("use").unwrap_or_default() {
        let Some(name) = value.as_text() else { continue };
        let Some(bundle) = root.entry("policies", name).and_then(Value::as_object) else { continue };
        for (key, _) in &bundle.set {
            if let Some((_, first)) = from.iter().find(|(known, _)| *known == key.name)
                && !fields.has(key.name)
            {
                let message = format!("{} and {} both have `{}`", shown(first), shown(name), key.name);
                let fault = Fault::new(message).help("give it inline, or leave one of them out");
                sink.report(Place::Value(value.node), fault);
            }
            from.push((key.name, name));
        }
        // Problems inside of it are told where it stands, once.
        bundled = bundled.or(&own(bundle, &mut Sink::default()));
    }
    own(fields, sink).or(&bundled)
}

fn own(fields: &Fields, sink: &mut Sink) -> Policies {
    let mut get = |key: &str| fields.object(key).map(|fields| edits(fields, sink));
    let (request_headers, response_headers) = (get("request_headers"), get("response_headers"));
    Policies {
        request_headers,
        response_headers,
        cors: fields.object("cors").map(|cors| self::cors(cors, sink)),
        error_pages: fields.at("error_pages").map(|_| error_pages(fields)),
    }
}

/// Those of a single status first.
fn error_pages(fields: &Fields) -> Vec<ErrorPage> {
    let page = |(status, value): &(String, Value)| match &value.kind {
        Kind::Content(page) => {
            Some(ErrorPage { statuses: scalar::error_status(status).ok()?, page: page.clone() })
        }
        _ => None,
    };
    let mut pages: Vec<ErrorPage> = fields.map("error_pages").iter().filter_map(page).collect();
    pages.sort_by_key(|page| page.statuses.1 - page.statuses.0);
    pages
}

fn cors(fields: &Fields, sink: &mut Sink) -> Cors {
    let texts = |key: &str| -> Vec<String> {
        let items = fields.list(key).unwrap_or_default().iter();
        items.filter_map(Value::as_text).map(str::to_owned).collect()
    };
    let origins = fields.list("origins").unwrap_or_default().iter().filter_map(|value| match &value.kind {
        Kind::Origin(origin) => Some(origin.clone()),
        _ => None,
    });
    let mut cors = Cors {
        origins: origins.collect(),
        methods: texts("methods"),
        headers: texts("headers"),
        expose: texts("expose"),
        ..Cors::default()
    };
    cors.credentials = fields.bool("credentials").unwrap_or(cors.credentials);
    cors.max_age = fields.duration("max_age").unwrap_or(cors.max_age);
    if cors.credentials
        && cors.origins.contains(&OriginPattern::Any)
        && let Some(value) = fields.at("credentials")
    {
        let fault = Fault::new("with origin `*` every site could act in a user's name");
        sink.report(Place::Value(value.node), fault.help("name the origins, or leave credentials out"));
    }
    cors
}

/// Reports what is wrong in the bundles themselves.
pub(super) fn bundles(root: &Fields, sink: &mut Sink) {
    for (_, bundle) in root.map("policies") {
        if let Some(fields) = bundle.as_object() {
            own(fields, sink);
        }
    }
}

/// Whether the value of one of [`OF_REQUESTS`] changes nothing.
pub(crate) fn is_empty(value: &Value) -> bool {
    let says_nothing = |value: &Value| match &value.kind {
        Kind::Map(entries) => entries.is_empty(),
        Kind::List(items) => items.is_empty(),
        Kind::Word(word) => *word == "none",
        _ => true,
    };
    match value.as_object() {
        Some(fields) => fields.set.iter().all(|(_, value)| says_nothing(value)),
        None => says_nothing(value),
    }
}

pub(super) fn edits(fields: &Fields, sink: &mut Sink) -> HeaderEdits {
    let removed = fields.list("remove").unwrap_or_default();
    removed.iter().for_each(|value| {
        if let Some(name) = value.as_text() {
            editable(name, value, sink);
        }
    });
    HeaderEdits {
        remove: removed.iter().filter_map(Value::as_text).map(str::to_owned).collect(),
        set: lines(fields, "set", sink),
        add: lines(fields, "add", sink),
        security: fields.object.key("preset").is_some() && fields.word("preset") == Some("security"),
    }
}

pub(super) fn lines(fields: &Fields, key: &str, sink: &mut Sink) -> Vec<(String, Template)> {
    let entries = fields.map(key).iter();
    entries
        .filter_map(|(name, value)| {
            editable(name, value, sink);
            match &value.kind {
                Kind::Template(template) => Some((name.clone(), template.clone())),
                _ => None,
            }
        })
        .collect()
}

/// Fields that frame a message or belong to a connection are ours (RFC 9110, section 7.6.1).
fn editable(name: &str, value: &Value, sink: &mut Sink) {
    let ours = [
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let fault = match name {
        "host" => Fault::new("the host is not changed as a header").help("`rewrite: { host: ... }`"),
        _ if ours.contains(&name) => {
            Fault::new(format!("{} frames the message or belongs to the connection", shown(name)))
                .help("it is set by the proxy itself")
        }
        _ => return,
    };
    sink.report(Place::Value(value.node), fault);
}
