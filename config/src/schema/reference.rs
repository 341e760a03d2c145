//! Keeps `docs/config.md` and the records of the language the same; `UPDATE_EXPECT=1` rewrites the
//! tables of the former.

use std::collections::BTreeSet;
use std::path::Path;

use super::language::DOCUMENT;
use super::{Choose, Default, Format, Object, Type};
use crate::scalar::{DURATION_MAX, duration_text};

/// Tables stand between `<!-- keys: NAME -->` and this.
const END: &str = "<!-- end -->";

#[test]
fn the_reference_in_docs_has_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config.md");
    let written = std::fs::read_to_string(&path).expect("docs/config.md is there");
    let mut objects = Vec::new();
    collect(&DOCUMENT, &mut objects);
    let mut missing: BTreeSet<&str> = objects.iter().map(|object| object.name).collect();
    let mut fresh = String::new();
    let mut rest = written.as_str();
    while let Some(at) = rest.find("<!-- keys: ") {
        let (before, from) = rest.split_at(at);
        let (mark, body) = from.split_once("-->").expect("the mark ends");
        let name = mark.trim_start_matches("<!-- keys:").trim();
        let object = objects.iter().find(|object| object.name == name).expect("an object of this name");
        assert!(missing.remove(name), "{name} has two tables");
        let (_, after) = body.split_once(END).expect("the table ends");
        fresh.push_str(before);
        fresh.push_str(&format!("<!-- keys: {name} -->\n{}{END}", table(object)));
        rest = after;
    }
    fresh.push_str(rest);
    assert!(missing.is_empty(), "docs/config.md has no table of {missing:?}");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, fresh).expect("docs/config.md can be written");
    } else {
        assert!(fresh == written, "docs/config.md is out of date: run the tests with UPDATE_EXPECT=1");
    }
}

#[test]
fn names_are_unique_and_docs_have_one_form() {
    let mut objects = Vec::new();
    collect(&DOCUMENT, &mut objects);
    for object in &objects {
        assert_eq!(objects.iter().filter(|o| o.name == object.name).count(), 1, "{}", object.name);
        let names: BTreeSet<&str> = object.all_keys().map(|key| key.name).collect();
        assert_eq!(names.len(), object.all_keys().count(), "{} has a key twice", object.name);
        for key in object.all_keys() {
            assert!(!key.doc.is_empty() && !key.doc.ends_with('.'), "{}.{}", object.name, key.name);
            assert!(!key.doc.contains('|'), "{}.{} would break the table", object.name, key.name);
        }
    }
}

fn collect(object: &'static Object, objects: &mut Vec<&'static Object>) {
    if objects.iter().any(|o| std::ptr::eq(*o, object)) {
        return;
    }
    objects.push(object);
    object.all_keys().for_each(|key| within(&key.ty, objects));
}

fn within(ty: &'static Type, objects: &mut Vec<&'static Object>) {
    match ty {
        Type::Object(object) | Type::Short(_, object) => collect(object, objects),
        Type::List { of, .. } | Type::OneOrList(of) | Type::Map { of, .. } | Type::OrOff(of) => {
            within(of, objects);
        }
        _ => {}
    }
}

fn table(object: &Object) -> String {
    let mut out = String::new();
    if object.keys.is_empty() && object.more.is_empty() {
        out.push_str("No keys.\n");
        return out;
    }
    if !object.keys.is_empty() {
        out.push_str("| key | value | default | meaning |\n| --- | --- | --- | --- |\n");
    }
    // The policy keys stand in their own table only.
    let keys = if object.keys.is_empty() { object.more } else { object.keys };
    if object.keys.is_empty() {
        out.push_str("| key | value | default | meaning |\n| --- | --- | --- | --- |\n");
    }
    for key in keys {
        let default = match key.default {
            Default::Required => "*required*".to_owned(),
            Default::Yaml("{}") if matches!(key.ty, Type::Object(_)) => "its defaults".to_owned(),
            Default::Yaml(text) => format!("`{text}`"),
            Default::Words(words) => words.to_owned(),
        };
        out.push_str(&format!("| `{}` | {} | {default} | {}. |\n", key.name, value(&key.ty), key.doc));
    }
    match object.choose {
        Choose::Any => {}
        Choose::ExactlyOne(names) => out.push_str(&format!("\nExactly one of `{}`.\n", names.join("`, `"))),
        Choose::AtMostOne(names) => out.push_str(&format!("\nAt most one of `{}`.\n", names.join("`, `"))),
    }
    if !object.keys.is_empty() && !object.more.is_empty() {
        out.push_str("\nAnd the [policy keys](#policies).\n");
    }
    out
}

fn value(ty: &Type) -> String {
    match ty {
        Type::Bool => "`true`, `false`".to_owned(),
        Type::Int { min, max } => format!("{min} to {max}"),
        Type::Share => "0 to 1".to_owned(),
        Type::Duration { min, max } if *max < DURATION_MAX => {
            format!("duration, {} to {}", duration_text(*min), duration_text(*max))
        }
        Type::Duration { min, .. } if min.is_zero() => "duration".to_owned(),
        Type::Duration { .. } => "duration above 0".to_owned(),
        Type::DurationRange => "two durations".to_owned(),
        Type::Size { .. } => "size".to_owned(),
        Type::Text(format) => text(*format),
        Type::Choice(words) => format!("`{}`", words.join("`, `")),
        Type::List { of, .. } => format!("list of {}", value(of)),
        Type::OneOrList(of) => format!("{} or a list", value(of)),
        Type::Map { key: Format::Name, of } => format!("name: {}", value(of)),
        Type::Map { of, .. } => format!("map of {}", value(of)),
        Type::Object(object) => link(object),
        Type::Short(short, object) => format!("`{short}` or {}", link(object)),
        Type::OrOff(of) => format!("`off` or {}", value(of)),
    }
}

fn link(object: &Object) -> String {
    format!("[{}](#{})", object.name, object.name.replace('.', ""))
}

fn text(format: Format) -> String {
    match format {
        Format::Any => "text",
        Format::Name => "name",
        Format::Ref(map) => return format!("name in `{map}`"),
        Format::Bind => "address",
        Format::DataPorts => "ports",
        Format::VipAddress => "address with prefix length",
        Format::Interface => "name of an interface",
        Format::Program => "path or nothing",
        Format::MemberAddress => "address",
        Format::Host => "host",
        Format::Path => "path",
        Format::Method => "method",
        Format::HeaderName => "header name",
        Format::CookieName => "cookie name",
        Format::HeaderValue => "text",
        Format::Status => "status",
        Format::Regex | Format::PathRegex => "regular expression",
        Format::Template | Format::HeaderTemplate => "text with variables",
        Format::Network => "network",
        Format::NetworkOrSet => "network or `@SET`",
        Format::Ports => "port or range of ports",
        Format::Origin => "origin",
        Format::UserName => "user name",
        Format::PasswordHash => "password hash",
        Format::HashOn | Format::LimitBy => "word",
        Format::Rate => "rate",
        Format::ErrorStatus => "status or class",
        Format::MediaType | Format::MediaRange => "media type",
        Format::RuleFile => "`builtin` or path of a file",
        Format::WafRule => "id or class of rules",
        Format::RetryOn => "word or status",
        Format::File => "path of a file",
        Format::Pem => "PEM",
        Format::ServerName => "name or address",
        Format::Alpn => "protocol",
        Format::LogLine => "`json`, `combined`, `off` or text with variables",
        Format::LogTarget => "`stdout`, `file:PATH` or `syslog:ADDRESS`",
        Format::Factor => "1 to 100",
    }
    .to_owned()
}
