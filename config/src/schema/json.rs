//! The language as JSON Schema, draft 2020-12: for editors and for checks before `apply`.
//!
//! It knows shapes, not meaning: names that dangle or listeners that clash are found by
//! [`crate::parse`] only.

use serde_json::{Map, Value as Json, json};

use super::language::DOCUMENT;
use super::{Choose, Default, Format, Key, Object, Type};
use crate::tree::{NodeId, NodeKind, Tree};

/// JSON Schema of the whole language.
pub fn json_schema() -> Json {
    let mut definitions = Map::new();
    let mut root = object(&DOCUMENT, &mut definitions);
    if let Json::Object(root) = &mut root {
        root.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
        root.insert("title".into(), "Trestle's cluster config".into());
        root.insert("$defs".into(), Json::Object(definitions));
    }
    root
}

fn object(object: &'static Object, definitions: &mut Map<String, Json>) -> Json {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in object.all_keys() {
        properties.insert(key.name.to_owned(), property(key, definitions));
        if key.default == Default::Required {
            required.push(Json::from(key.name));
        }
    }
    let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    let with = |name: &&str| json!({ "required": [name] });
    match object.choose {
        Choose::Any => {}
        Choose::ExactlyOne(names) => schema["oneOf"] = names.iter().map(with).collect(),
        Choose::AtMostOne(names) => {
            let none = json!({ "not": { "anyOf": names.iter().map(with).collect::<Vec<_>>() } });
            schema["oneOf"] = std::iter::once(none).chain(names.iter().map(with)).collect();
        }
    }
    schema
}

fn property(key: &'static Key, definitions: &mut Map<String, Json>) -> Json {
    let mut schema = of_type(&key.ty, definitions);
    let mut description = format!("{}.", key.doc);
    match key.default {
        Default::Required => {}
        Default::Yaml(text) => schema["default"] = typed(&Tree::read(text).tree, NodeId::ROOT),
        Default::Words(words) => description.push_str(&format!(" Default: {words}.")),
    }
    schema["description"] = description.into();
    schema
}

fn of_type(ty: &'static Type, definitions: &mut Map<String, Json>) -> Json {
    match ty {
        Type::Bool => json!({ "type": "boolean" }),
        Type::Int { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Type::Share => json!({ "type": "number", "minimum": 0, "maximum": 1 }),
        Type::Duration { .. } => json!({ "type": "string", "pattern": "^(0|[1-9][0-9]*)(ms|s|m|h)$" }),
        Type::DurationRange => json!({
            "type": "string",
            "pattern": "^(0|[1-9][0-9]*)(ms|s|m|h) *- *(0|[1-9][0-9]*)(ms|s|m|h)$",
        }),
        Type::Size { min, max } => json!({
            "type": ["integer", "string"],
            "minimum": min,
            "maximum": max,
            "pattern": "^(0|[1-9][0-9]*)(KiB|MiB|GiB)?$",
        }),
        Type::Text(format) => text(*format),
        Type::Choice(words) => choice(words),
        Type::List { of, min } => {
            let mut schema = json!({ "type": "array", "items": of_type(of, definitions) });
            if *min > 0 {
                schema["minItems"] = (*min).into();
            }
            schema
        }
        Type::OneOrList(of) => {
            let one = of_type(of, definitions);
            json!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
        }
        Type::Map { key, of } => {
            let mut schema = json!({ "type": "object", "additionalProperties": of_type(of, definitions) });
            if *key != Format::Any {
                schema["propertyNames"] = text(*key);
            }
            schema
        }
        Type::Object(object) => reference(object, definitions),
        Type::Short(short, object) => {
            let one = object.key(short).map_or(Json::Bool(true), |key| of_type(&key.ty, definitions));
            json!({ "anyOf": [one, reference(object, definitions)] })
        }
        Type::OrOff(of) => json!({ "anyOf": [{ "enum": ["off", false] }, of_type(of, definitions)] }),
    }
}

/// Every object is written once, under `$defs`.
fn reference(of: &'static Object, definitions: &mut Map<String, Json>) -> Json {
    if !definitions.contains_key(of.name) {
        definitions.insert(of.name.to_owned(), Json::Null);
        let schema = object(of, definitions);
        definitions.insert(of.name.to_owned(), schema);
    }
    json!({ "$ref": format!("#/$defs/{}", of.name) })
}

fn choice(words: &[&str]) -> Json {
    let mut all: Vec<Json> = words.iter().map(|word| Json::from(*word)).collect();
    if words.contains(&"off") {
        all.push(false.into());
    }
    json!({ "enum": all })
}

fn text(format: Format) -> Json {
    match format {
        // Plain words that YAML editors read as numbers or booleans are text to us.
        Format::Any | Format::HeaderValue | Format::Template | Format::HeaderTemplate => {
            json!({ "type": ["string", "number", "boolean"] })
        }
        Format::Name | Format::Ref(_) => {
            json!({ "type": ["string", "number", "boolean"], "pattern": "^[A-Za-z0-9._-]{1,63}$" })
        }
        Format::Bind => json!({ "type": "string", "pattern": "^.*:[0-9]{1,5}(-[0-9]{1,5})?$" }),
        Format::DataPorts => {
            json!({ "type": ["string", "integer"], "pattern": "^[0-9]{4,5}(-[0-9]{4,5})?$" })
        }
        Format::VipAddress => json!({ "type": "string", "pattern": "^[0-9A-Fa-f:.]+/[1-9][0-9]{0,2}$" }),
        Format::Interface => {
            json!({ "type": ["string", "number", "boolean"], "pattern": "^[^/:\\s]{1,15}$" })
        }
        Format::Program => json!({ "type": "string", "pattern": "^(/.*[^/])?$" }),
        Format::MemberAddress => json!({ "type": "string", "pattern": "^(.+:[0-9]{1,5}|srv:.+)$" }),
        Format::Host => {
            json!({ "type": "string", "pattern": "^(\\*|(\\*\\.)?[^*:/ ]+|\\[[0-9A-Fa-f:.]+\\])$" })
        }
        Format::Path => json!({ "type": "string", "pattern": "^/[^?# *]*$" }),
        Format::Method => json!({ "type": "string", "pattern": "^[A-Z0-9!#$%&'*+.^_`|~-]{1,32}$" }),
        Format::HeaderName | Format::CookieName => {
            json!({ "type": "string", "pattern": "^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}$" })
        }
        Format::Regex | Format::PathRegex => json!({ "type": ["string", "number", "boolean"] }),
        Format::Network => json!({ "type": "string", "pattern": "^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$" }),
        Format::NetworkOrSet => {
            json!({ "type": "string", "pattern": "^(@[A-Za-z0-9._-]{1,63}|[0-9A-Fa-f:.]+(/[0-9]{1,3})?)$" })
        }
        Format::Ports => json!({ "type": ["integer", "string"], "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$" }),
        Format::HashOn => {
            json!({ "type": "string", "pattern": "^(client|client-port|path|header:.+|cookie:.+)$" })
        }
        Format::Rate => json!({ "type": "string", "pattern": "^[1-9][0-9]*/[smh]$" }),
        Format::LimitBy => {
            json!({ "type": "string", "pattern": "^(client|route|listener|header:.+)$" })
        }
        Format::UserName => json!({ "type": "string", "pattern": "^[^:]{1,255}$" }),
        Format::PasswordHash => json!({ "type": "string", "pattern": "^\\$(argon2(id|i|d)|2[aby])\\$" }),
        Format::RuleFile => json!({ "type": "string" }),
        Format::WafRule => {
            json!({ "type": ["string", "integer"], "pattern": "^([a-z-]+|[0-9]+)$", "minimum": 1 })
        }
        Format::MediaType => json!({ "type": "string", "pattern": "^(\\*|[^/;* ]+/[^/;* ]+)$" }),
        Format::MediaRange => {
            json!({ "type": "string", "pattern": "^(\\*|default|[^/;* ]+/(\\*|[^/;* ]+))$" })
        }
        Format::ErrorStatus => json!({ "type": "string", "pattern": "^[45](xx|[0-9][0-9])$" }),
        Format::RetryOn => {
            json!({ "type": ["string", "integer"], "pattern": "^(connect|reused|reset|5xx|[45][0-9][0-9])$" })
        }
        Format::LogLine => {
            json!({ "type": ["string", "boolean"], "pattern": "^(json|combined|off|.*\\$\\{.*)$", "not": { "const": true } })
        }
        Format::LogTarget => {
            json!({ "type": "string", "pattern": "^(stdout|file:/.+|syslog:(udp://.+:[0-9]{1,5}|unix:/.+))$" })
        }
        Format::File | Format::Pem => json!({ "type": "string" }),
        Format::Alpn => json!({ "type": "string", "pattern": "^[!-~]{1,255}$" }),
        Format::ServerName => json!({ "type": "string", "pattern": "^[0-9A-Za-z_.:-]+$" }),
        Format::Factor => json!({ "type": "number", "minimum": 1, "maximum": 100 }),
        Format::Origin => json!({ "type": "string", "pattern": "^(\\*|https?://[^/ ]+)$" }),
        Format::Status => {
            json!({ "type": ["integer", "string"], "minimum": 100, "maximum": 599,
                    "pattern": "^[1-5][0-9]{2}( *- *[1-5][0-9]{2})?$" })
        }
    }
}

/// A default as JSON: its plain numbers and booleans as such.
fn typed(tree: &Tree<'_>, node: NodeId) -> Json {
    match &tree.node(node).kind {
        NodeKind::Scalar { text, plain: true } => {
            serde_json::from_str(text).unwrap_or_else(|_| Json::from(text.as_ref()))
        }
        NodeKind::Scalar { text, .. } => Json::from(text.as_ref()),
        NodeKind::List(items) => items.iter().map(|item| typed(tree, *item)).collect(),
        NodeKind::Map(entries) => {
            Json::Object(entries.iter().map(|e| (e.key.to_string(), typed(tree, e.value))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(object: &'static Object, seen: &mut Vec<&'static str>) {
        if seen.contains(&object.name) {
            return;
        }
        seen.push(object.name);
        for key in object.all_keys() {
            each_object(&key.ty, &mut |object| count(object, seen));
        }
    }

    fn each_object(ty: &'static Type, visit: &mut impl FnMut(&'static Object)) {
        match ty {
            Type::Object(object) | Type::Short(_, object) => visit(object),
            Type::List { of, .. } | Type::OneOrList(of) | Type::Map { of, .. } | Type::OrOff(of) => {
                each_object(of, visit);
            }
            _ => {}
        }
    }

    #[test]
    fn every_known_key_is_in_the_schema_and_says_what_it_means() {
        let schema = json_schema();
        let mut objects = Vec::new();
        count(&DOCUMENT, &mut objects);
        assert!(objects.len() > 40, "{objects:?}");
        let check = |object: &Json, name: &str| {
            for (key, property) in object["properties"].as_object().unwrap() {
                let description = property["description"].as_str().unwrap();
                assert!(description.ends_with('.'), "{name}.{key}: {description}");
            }
        };
        check(&schema, "document");
        for name in objects.iter().skip(1) {
            let object = &schema["$defs"][name];
            assert_eq!(object["additionalProperties"], false, "{name}");
            check(object, name);
        }
        assert_eq!(objects.len() - 1, schema["$defs"].as_object().unwrap().len());
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_pattern_is_anchored() {
        fn walk(json: &Json, schema: &Json) {
            match json {
                Json::Object(entries) => {
                    if let Some(Json::String(target)) = entries.get("$ref") {
                        let pointer = target.strip_prefix('#').unwrap();
                        assert!(schema.pointer(pointer).is_some_and(Json::is_object), "{target}");
                    }
                    if let Some(Json::String(pattern)) = entries.get("pattern") {
                        assert!(pattern.starts_with('^') && pattern.ends_with('$'), "{pattern}");
                    }
                    entries.values().for_each(|value| walk(value, schema));
                }
                Json::Array(items) => items.iter().for_each(|item| walk(item, schema)),
                _ => {}
            }
        }
        let schema = json_schema();
        walk(&schema, &schema);
    }

    #[test]
    fn defaults_are_told_as_they_are() {
        let schema = json_schema();
        assert_eq!(schema["$defs"]["listener.tcp"]["properties"]["nodelay"]["default"], true);
    }
}
