//! Gives every node of a document the type that the schema asks for, and reports what has none.
//!
//! Goes on after a problem: what is bad becomes [`Kind::Bad`], and one run reports everything.

use std::collections::HashMap;

use crate::model::Ports;
use crate::problem::{Fault, PROBLEMS_MAX, near_miss, shown};
use crate::scalar;
use crate::schema::{Choose, Default, Format, Key, Object, Type};
use crate::text::{Pattern, Template, network, network_or_set};
use crate::tree::{NodeId, NodeKind, Place, Tree};
use crate::value::{Fields, Kind, Value};

/// Where problems of one document are gathered.
#[derive(Default)]
pub(crate) struct Sink {
    pub(crate) found: Vec<(Place, Fault)>,
    /// Problems beyond [`PROBLEMS_MAX`].
    pub(crate) left_out: usize,
}

impl Sink {
    pub(crate) fn report(&mut self, place: Place, fault: Fault) {
        if self.found.len() < PROBLEMS_MAX {
            self.found.push((place, fault));
        } else {
            self.left_out += 1;
        }
    }

    /// Looking for near misses costs time: not once nobody will see them.
    pub(crate) fn full(&self) -> bool {
        self.found.len() >= PROBLEMS_MAX
    }
}

pub(crate) struct Checker<'t> {
    tree: &'t Tree<'t>,
    sink: Sink,
}

/// The root as an object of the schema.
pub(crate) fn check(tree: &Tree<'_>, object: &'static Object) -> (Option<Fields>, Sink) {
    let mut checker = Checker { tree, sink: Sink::default() };
    let fields = checker.object(NodeId::ROOT, object);
    (fields, checker.sink)
}

impl Checker<'_> {
    fn bad(&mut self, node: NodeId, fault: Fault) -> Kind {
        self.sink.report(Place::Value(node), fault);
        Kind::Bad
    }

    fn value(&mut self, node: NodeId, ty: &'static Type) -> Value {
        Value { node, kind: self.kind(node, ty) }
    }

    fn kind(&mut self, node: NodeId, ty: &'static Type) -> Kind {
        if self.tree.is_null(node) {
            let fault = Fault::new("has no value").help("give one, or leave the key out");
            return self.bad(node, fault);
        }
        match ty {
            Type::List { of, min } => self.list(node, of, *min).map_or(Kind::Bad, Kind::List),
            Type::OneOrList(of) => match &self.tree.node(node).kind {
                NodeKind::List(_) => self.list(node, of, 1).map_or(Kind::Bad, Kind::OneOrList),
                _ => Kind::OneOrList(vec![self.value(node, of)]),
            },
            Type::Map { key, of } => self.map(node, *key, of),
            Type::Object(object) => self.object(node, object).map_or(Kind::Bad, Kind::Object),
            Type::Short(short, object) => self.short(node, short, object),
            Type::OrOff(of) => {
                if self.is_off(node) {
                    Kind::Off
                } else {
                    self.kind(node, of)
                }
            }
            _ => self.scalar(node, ty),
        }
    }

    fn is_off(&self, node: NodeId) -> bool {
        match &self.tree.node(node).kind {
            NodeKind::Scalar { text, plain } => text == "off" || (*plain && text == "false"),
            _ => false,
        }
    }

    // === scalars ===

    fn scalar(&mut self, node: NodeId, ty: &'static Type) -> Kind {
        let tree = self.tree;
        let (text, plain) = match &tree.node(node).kind {
            NodeKind::Scalar { text, plain } => (text.as_ref(), *plain),
            NodeKind::List(_) => return self.wrong_kind(node, ty, "a list"),
            NodeKind::Map(_) => return self.wrong_kind(node, ty, "a map"),
        };
        let parsed = match ty {
            Type::Bool => bool(text, plain),
            Type::Int { min, max } => {
                unquoted(text, plain).and_then(|()| scalar::int(text, *min, *max)).map(Kind::Int)
            }
            Type::Share => unquoted(text, plain).and_then(|()| scalar::share(text)).map(Kind::Share),
            Type::Duration { min, max } => scalar::duration(text, *min, *max).map(Kind::Duration),
            Type::DurationRange => {
                scalar::duration_range(text).map(|(low, high)| Kind::DurationRange(low, high))
            }
            Type::Size { min, max } => scalar::size(text, *min, *max).map(Kind::Size),
            Type::Choice(words) => choice(if self.is_off(node) { "off" } else { text }, words),
            Type::Text(format) => typed_text(text, *format),
            _ => unreachable!("{ty:?} is no scalar"),
        };
        parsed.unwrap_or_else(|fault| self.bad(node, fault))
    }

    fn wrong_kind(&mut self, node: NodeId, ty: &'static Type, found: &str) -> Kind {
        let fault = Fault::new(format!("expected {}, not {found}", expected(ty)));
        self.bad(node, fault)
    }

    // === lists and maps ===

    fn list(&mut self, node: NodeId, of: &'static Type, min: usize) -> Option<Vec<Value>> {
        let tree = self.tree;
        let NodeKind::List(items) = &tree.node(node).kind else {
            let fault = Fault::new(format!("expected a list, not {}", kind_name(tree, node)));
            let fault = match &tree.node(node).kind {
                NodeKind::Scalar { text, .. } => fault.help(format!("write {}", shown(&format!("[{text}]")))),
                _ => fault.help("begin each item with `- `"),
            };
            self.bad(node, fault);
            return None;
        };
        if items.len() < min {
            let fault = Fault::new("the list is empty").help("name at least one");
            self.bad(node, fault);
            return None;
        }
        Some(items.iter().map(|item| self.value(*item, of)).collect())
    }

    fn map(&mut self, node: NodeId, key_format: Format, of: &'static Type) -> Kind {
        let tree = self.tree;
        let NodeKind::Map(entries) = &tree.node(node).kind else {
            let fault = Fault::new(format!("expected a map, not {}", kind_name(tree, node)));
            return self.bad(node, fault);
        };
        let mut checked: Vec<(String, Value)> = Vec::with_capacity(entries.len());
        let mut seen: HashMap<String, &str> = HashMap::with_capacity(entries.len());
        for entry in entries {
            let value = self.value(entry.value, of);
            match map_key(&entry.key, key_format) {
                Ok(key) => {
                    match seen.insert(key.clone(), &entry.key) {
                        None => {
                            checked.push((key, value));
                            continue;
                        }
                        // The very same key twice was found when the document was read.
                        Some(first) if first == entry.key => continue,
                        Some(_) => {}
                    }
                    let fault = Fault::new(format!("{} is given twice, in another case", shown(&key)));
                    self.sink.report(Place::Key(entry.value), fault);
                }
                Err(fault) => self.sink.report(Place::Key(entry.value), fault),
            }
        }
        if checked.is_empty() && !entries.is_empty() {
            // That it is empty is not what somebody wrote.
            return Kind::Bad;
        }
        checked.sort_by(|a, b| a.0.cmp(&b.0));
        Kind::Map(checked)
    }

    // === objects ===

    fn short(&mut self, node: NodeId, short: &'static str, object: &'static Object) -> Kind {
        if let NodeKind::Scalar { .. } = self.tree.node(node).kind {
            let Some(key) = object.key(short) else { return Kind::Bad };
            let value = self.value(node, &key.ty);
            if matches!(value.kind, Kind::Bad) {
                return Kind::Bad;
            }
            return Kind::Short(short, Fields { object, set: vec![(key, value)], has_unknown: false });
        }
        self.object(node, object).map_or(Kind::Bad, |fields| Kind::Short(short, fields))
    }

    fn object(&mut self, node: NodeId, object: &'static Object) -> Option<Fields> {
        let tree = self.tree;
        let NodeKind::Map(entries) = &tree.node(node).kind else {
            let keys: Vec<_> = object.all_keys().take(4).map(|key| key.name).collect();
            let mut fault = Fault::new(format!("expected a map, not {}", kind_name(tree, node)));
            if !keys.is_empty() {
                fault = fault.help(format!("with keys such as `{}`", keys.join("`, `")));
            }
            self.bad(node, fault);
            return None;
        };
        let mut set: Vec<(&'static Key, Value)> = Vec::new();
        let mut has_unknown = false;
        for entry in entries {
            match object.key(&entry.key) {
                // The first counts; the second was reported when the document was read.
                Some(key) if set.iter().any(|(k, _)| k.name == key.name) => {}
                Some(key) => {
                    let value = self.value(entry.value, &key.ty);
                    set.push((key, value));
                }
                // Was refused when the document was read.
                None if entry.key == "<<" => {}
                None => {
                    has_unknown = true;
                    let fault = if self.sink.full() {
                        Fault::new("unknown key")
                    } else {
                        unknown_key(&entry.key, object)
                    };
                    self.sink.report(Place::Key(entry.value), fault);
                }
            }
        }
        let order = |name: &str| object.all_keys().position(|key| key.name == name);
        set.sort_by_key(|(key, _)| order(key.name));
        let fields = Fields { object, set, has_unknown };
        self.required(node, &fields);
        self.choose(node, &fields);
        Some(fields)
    }

    fn required(&mut self, node: NodeId, fields: &Fields) {
        for key in fields.object.all_keys() {
            if key.default == Default::Required && !fields.has(key.name) {
                let fault = Fault::new(format!("`{}` is missing", key.name));
                self.sink.report(Place::Key(node), fault);
            }
        }
    }

    fn choose(&mut self, node: NodeId, fields: &Fields) {
        let (names, at_least) = match fields.object.choose {
            Choose::Any => return,
            Choose::ExactlyOne(names) => (names, 1),
            Choose::AtMostOne(names) => (names, 0),
        };
        let given: Vec<_> = fields.set.iter().filter(|(key, _)| names.contains(&key.name)).collect();
        if given.len() < at_least {
            let fault = Fault::new(format!("one of `{}` is missing", names.join("`, `")));
            self.sink.report(Place::Key(node), fault);
        } else if let [(first, _), (second, value), ..] = given.as_slice() {
            let fault = Fault::new(format!("`{}` can't stand beside `{}`", second.name, first.name))
                .help("give one of them");
            self.sink.report(Place::Key(value.node), fault);
        }
    }
}

fn unknown_key(typed: &str, object: &'static Object) -> Fault {
    let fault = Fault::new(format!("unknown key {}", shown(typed)));
    let meant = called_elsewhere(typed).filter(|name| object.key(name).is_some());
    match meant.or_else(|| near_miss(typed, object.all_keys().map(|key| key.name))) {
        Some(near) => fault.near(Some(near)),
        None => {
            let keys: Vec<_> = object.all_keys().map(|key| key.name).collect();
            if keys.is_empty() { fault } else { fault.help(format!("known are `{}`", keys.join("`, `"))) }
        }
    }
}

/// Keys as other balancers call them, of which another of ours would be nearer by its letters.
fn called_elsewhere(typed: &str) -> Option<&'static str> {
    Some(match typed {
        "cert_file" | "certificate_file" | "crt_file" => "chain_file",
        "cert" | "certificate" | "crt" => "chain",
        "private_key_file" => "key_file",
        "private_key" => "key",
        _ => return None,
    })
}

fn map_key(text: &str, format: Format) -> Result<String, Fault> {
    match format {
        Format::Name => scalar::name(text),
        Format::HeaderName => scalar::header_name(text),
        Format::CookieName => scalar::cookie_name(text),
        Format::Host => scalar::host_pattern(text).map(|host| host.to_string()),
        Format::ErrorStatus => scalar::error_status(text).map(|_| text.to_owned()),
        Format::UserName => scalar::user_name(text),
        _ => Ok(text.to_owned()),
    }
}

fn unquoted(text: &str, plain: bool) -> Result<(), Fault> {
    if plain { Ok(()) } else { Err(Fault::new("expected a number, not text in quotes").near(Some(text))) }
}

fn bool(text: &str, plain: bool) -> Result<Kind, Fault> {
    let fault = || Fault::new(format!("expected `true` or `false`, not {}", shown(text)));
    if !plain && matches!(text, "true" | "false") {
        return Err(Fault::new("expected `true` or `false`, not text in quotes").near(Some(text)));
    }
    match text {
        "true" => Ok(Kind::Bool(true)),
        "false" | "off" => Ok(Kind::Bool(false)),
        _ => Err(match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "y" => fault().near(Some("true")),
            "false" | "no" | "n" => fault().near(Some("false")),
            _ => fault(),
        }),
    }
}

fn choice(text: &str, words: &'static [&'static str]) -> Result<Kind, Fault> {
    if let Some(word) = words.iter().find(|word| **word == text) {
        return Ok(Kind::Word(word));
    }
    let fault = Fault::new(format!("{} is none of `{}`", shown(text), words.join("`, `")));
    if let Some((_, ours, with)) = elsewhere(text).filter(|(_, ours, _)| words.contains(ours)) {
        return Err(match with {
            "" => fault.near(Some(ours)),
            with => fault.help(format!("did you mean `{ours}`, with {}?", shown(with))),
        });
    }
    Err(fault.near(near_miss(text, words.iter().copied())))
}

/// Ways of balancing as other balancers call them; ours, and what goes with it.
fn elsewhere(text: &str) -> Option<(&'static str, &'static str, &'static str)> {
    const WORDS: [(&str, &str, &str); 21] = [
        ("leastconn", "least_request", ""),
        ("least_conn", "least_request", ""),
        ("least_connections", "least_request", ""),
        ("least_outstanding_requests", "least_request", ""),
        ("least_time", "peak_ewma", ""),
        ("ewma", "peak_ewma", ""),
        ("fastest", "peak_ewma", ""),
        ("p2c", "random_two", ""),
        ("random_two_choices", "random_two", ""),
        ("power_of_two", "random_two", ""),
        ("roundrobin", "round_robin", ""),
        ("static_rr", "round_robin", ""),
        ("rr", "round_robin", ""),
        ("wrr", "round_robin", ""),
        ("weighted_round_robin", "round_robin", ""),
        ("ip_hash", "hash", "hash: { on: client }"),
        ("source", "hash", "hash: { on: client }"),
        ("source_ip", "hash", "hash: { on: client }"),
        ("uri", "hash", "hash: { on: path }"),
        ("hdr", "hash", "hash: { on: \"header:NAME\" }"),
        ("ring_hash", "hash", ""),
    ];
    let word = text.to_ascii_lowercase().replace('-', "_");
    WORDS.iter().find(|(theirs, _, _)| *theirs == word).copied()
}

fn typed_text(text: &str, format: Format) -> Result<Kind, Fault> {
    Ok(match format {
        Format::Any => Kind::Text(text.to_owned()),
        Format::Name | Format::Ref(_) => Kind::Text(scalar::name(text)?),
        Format::Bind => Kind::Bind(scalar::bind(text)?),
        Format::DataPorts => {
            let (first, last) = scalar::data_ports(text)?;
            Kind::Ports(Ports { first, last })
        }
        Format::VipAddress => Kind::VipAddress(scalar::vip_address(text)?),
        Format::Interface => Kind::Text(scalar::interface(text)?),
        Format::Program => Kind::Text(scalar::program(text)?),
        Format::MemberAddress => Kind::Member(scalar::member_address(text)?),
        Format::Host => Kind::Host(scalar::host_pattern(text)?),
        Format::Path => Kind::Text(scalar::request_path(text)?),
        Format::Method => Kind::Text(scalar::method(text)?),
        Format::HeaderName => Kind::Text(scalar::header_name(text)?),
        Format::CookieName => Kind::Text(scalar::cookie_name(text)?),
        Format::HeaderValue => Kind::Text(scalar::header_value(text)?),
        Format::Regex => Kind::Pattern(Pattern::parse(text)?),
        Format::PathRegex => Kind::Pattern(Pattern::of_path(text)?),
        Format::Template => Kind::Template(Template::parse(text)?),
        Format::HeaderTemplate => Kind::Template(Template::parse(&scalar::header_value(text)?)?),
        Format::Network => Kind::Network(network(text)?),
        Format::NetworkOrSet => Kind::NetworkRef(network_or_set(text)?),
        Format::Ports => Kind::Ports(scalar::ports(text)?),
        Format::Origin => Kind::Origin(scalar::origin(text)?),
        Format::HashOn => Kind::HashOn(scalar::hash_on(text)?),
        Format::Rate => Kind::Rate(scalar::rate(text)?),
        Format::LimitBy => Kind::LimitBy(scalar::limit_by(text)?),
        Format::Factor => Kind::Factor(scalar::factor(text)?),
        Format::UserName => Kind::Text(scalar::user_name(text)?),
        Format::PasswordHash => Kind::Text(scalar::password_hash(text)?),
        Format::RuleFile if text == "builtin" => Kind::Word("builtin"),
        Format::RuleFile => Kind::Content(scalar::file(text)?),
        Format::WafRule => Kind::Text(scalar::waf_rule(text)?),
        Format::MediaType => Kind::Text(scalar::media_type(text)?),
        Format::MediaRange => Kind::Text(scalar::media_range(text)?),
        Format::ErrorStatus => Kind::Text(scalar::error_status(text).map(|_| text.to_owned())?),
        Format::RetryOn => Kind::Text(scalar::retry_on(text)?),
        Format::File if text == "none" => Kind::Word("none"),
        Format::File => Kind::Content(scalar::file(text)?),
        Format::Pem => Kind::Content(scalar::pem(text)?),
        Format::LogLine => Kind::LogFormat(scalar::log_format(text)?),
        Format::LogTarget => Kind::LogTarget(scalar::log_target(text)?),
        Format::ServerName => Kind::Text(scalar::server_name(text)?),
        Format::Alpn => Kind::Text(scalar::alpn(text)?),
        Format::Status => {
            let (low, high) = scalar::status_range(text)?;
            Kind::Status(low, high)
        }
    })
}

fn kind_name(tree: &Tree<'_>, node: NodeId) -> String {
    match &tree.node(node).kind {
        NodeKind::Scalar { text, .. } => shown(text),
        NodeKind::List(_) => "a list".to_owned(),
        NodeKind::Map(_) => "a map".to_owned(),
    }
}

fn expected(ty: &Type) -> &'static str {
    match ty {
        Type::Bool => "`true` or `false`",
        Type::Int { .. } => "a whole number",
        Type::Share => "a number from 0 to 1",
        Type::Duration { .. } => "a duration such as `2s`",
        Type::DurationRange => "a range such as `150ms-250ms`",
        Type::Size { .. } => "a size such as `64KiB`",
        Type::Choice(_) => "a word",
        Type::Text(Format::Ref(_) | Format::Name) => "a name",
        Type::Text(Format::Rate) => "a rate such as `100/s`",
        Type::Text(_) => "text",
        Type::List { .. } | Type::OneOrList(_) => "a list",
        _ => "a map",
    }
}
