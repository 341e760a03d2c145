//! Policy keys: those of bundles that are pulled in, and those that stand there themselves.

use crate::check::Sink;
use crate::model::{Auth, BodyEdit, Cors, ErrorPage, HeaderEdits, OriginPattern, Policies};
use crate::problem::{Fault, shown};
use crate::scalar;
use crate::text::{Substitution, Template};
use crate::tree::Place;
use crate::value::{Fields, Kind, Value};

/// Keys that are about requests, and mean nothing for a connection.
pub(crate) const OF_REQUESTS: [&str; 9] = [
    "request_headers",
    "response_headers",
    "auth",
    "cors",
    "substitute",
    "error_pages",
    "waf",
    "cache",
    "compression",
];

/// The object under a policy key of a listener, a route or a rule: inline, or else that of a bundle.
pub(crate) fn written<'f>(root: &'f Fields, fields: &'f Fields, key: &str) -> Option<&'f Fields> {
    written_value(root, fields, key)?.as_object()
}

/// As [`written`], of a key whose value is no object.
pub(super) fn written_value<'f>(root: &'f Fields, fields: &'f Fields, key: &str) -> Option<&'f Value> {
    let of_bundle = |value: &'f Value| root.entry("policies", value.as_text()?)?.as_object()?.at(key);
    fields.at(key).or_else(|| fields.list("use").unwrap_or_default().iter().find_map(of_bundle))
}

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
    let mut policies = own(fields, sink).or(&bundled);
    if let Some(ban) = &mut policies.ban {
        super::set(&mut ban.prefix_v6, written(root, fields, "limits").map(super::limits::prefix_v6));
    }
    policies
}

fn own(fields: &Fields, sink: &mut Sink) -> Policies {
    let mut get = |key: &str| fields.object(key).map(|fields| edits(fields, sink));
    let (request_headers, response_headers) = (get("request_headers"), get("response_headers"));
    Policies {
        request_headers,
        response_headers,
        auth: fields.object("auth").map(|auth| self::auth(auth, sink)),
        cors: fields.object("cors").map(|cors| self::cors(cors, sink)),
        substitute: fields.list("substitute").map(|edits| body_edits(edits, sink)),
        error_pages: fields.at("error_pages").map(|_| error_pages(fields)),
        ban: fields.object("ban").map(|ban| super::guard::ban(ban, sink)),
        waf: fields.object("waf").map(|waf| super::waf::waf(waf, sink)),
        cache: fields.object("cache").map(|cache| super::cache::cache(cache, sink)),
        compression: fields.object("compression").map(super::compression::compression),
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

fn auth(fields: &Fields, sink: &mut Sink) -> Auth {
    let Some(basic) = fields.object("basic") else { return Auth::default() };
    let mut auth = Auth::default();
    if let Some(realm) = basic.text("realm") {
        realm.clone_into(&mut auth.realm);
    }
    let hash = |(name, value): &(String, Value)| Some((name.clone(), value.as_text()?.to_owned()));
    auth.users = basic.map("users").iter().filter_map(hash).collect();
    if let Some(users) = basic.at("users")
        && basic.map("users").is_empty()
    {
        let fault = Fault::new("nobody could come in");
        sink.report(
            Place::Value(users.node),
            fault.help("name a user, or say `auth: {}` to let everybody in"),
        );
    }
    auth
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

fn body_edits(edits: &[Value], sink: &mut Sink) -> Vec<BodyEdit> {
    /// As long as one may be that says nothing else.
    const BODY_MAX: usize = 1 << 20;
    let edit = |value: &Value| {
        let fields = value.as_object()?;
        let (key, is_regex) = if fields.has("regex") { ("regex", true) } else { ("find", false) };
        let (find, empty) = (fields.at(key)?, Template::default());
        let edit = Substitution::parse(find.as_text()?, is_regex, fields.template("with").unwrap_or(&empty));
        let edit = edit.map_err(|fault| sink.report(Place::Value(find.node), fault)).ok()?;
        for value in fields.list("types").unwrap_or_default() {
            if value.as_text() == Some("text/event-stream") {
                let fault = Fault::new("a stream of events has no end to wait for, so it is never edited");
                sink.report(Place::Value(value.node), fault.help("leave it out"));
            }
        }
        let types = fields.list("types").map(|types| types.iter().filter_map(Value::as_text));
        Some(BodyEdit {
            edit,
            types: types
                .map_or_else(|| vec!["text/html".to_owned()], |types| types.map(str::to_owned).collect()),
            max: fields.size("max").and_then(|max| usize::try_from(max).ok()).unwrap_or(BODY_MAX),
        })
    };
    edits.iter().filter_map(edit).collect()
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
    match &value.kind {
        Kind::Map(entries) => entries.is_empty(),
        Kind::List(items) => items.is_empty(),
        Kind::Word(word) => matches!(*word, "none" | "off"),
        _ => value.as_object().is_none_or(|fields| fields.set.iter().all(|(_, value)| is_empty(value))),
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
