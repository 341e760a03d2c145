//! The cache of responses, as it stands at a listener, a route or a rule.

use crate::check::Sink;
use crate::model::{Cache, CacheKey, CacheQuery};
use crate::problem::Fault;
use crate::tree::Place;
use crate::value::{Fields, Value};

pub(super) fn cache(fields: &Fields, sink: &mut Sink) -> Cache {
    let mut cache = Cache { on: fields.word("mode") == Some("on"), ..Cache::default() };
    if let Some(key) = fields.object("key") {
        cache.key = self::key(key, sink);
    }
    super::set(&mut cache.max_object, fields.size("max_object"));
    super::set(&mut cache.stale_if_error, fields.duration("stale_if_error"));
    super::set(&mut cache.negative, fields.duration("negative"));
    cache
}

fn key(fields: &Fields, sink: &mut Sink) -> CacheKey {
    let texts = |key: &str| -> Vec<String> {
        let items = fields.list(key).unwrap_or_default().iter();
        items.filter_map(Value::as_text).map(str::to_owned).collect()
    };
    CacheKey {
        headers: texts("headers"),
        cookies: texts("cookies"),
        query: query(fields, &texts("query"), sink),
    }
}

/// A slip here would have strangers' pages served.
fn is_meant_as_word(name: &str) -> bool {
    const WORDS: [&str; 10] = ["all", "none", "any", "on", "off", "true", "false", "yes", "no", "*"];
    WORDS.iter().any(|word| name.eq_ignore_ascii_case(word))
}

/// The words stand alone.
fn query(fields: &Fields, names: &[String], sink: &mut Sink) -> CacheQuery {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    match names[..] {
        [] | ["all"] => CacheQuery::All,
        ["none"] => CacheQuery::None,
        _ => {
            let fault = match names[..] {
                [word] if is_meant_as_word(word) => Some(format!("`{word}` is no parameter")),
                _ => {
                    let word = names.iter().find(|name| matches!(**name, "all" | "none" | "*"));
                    word.map(|word| format!("`{word}` stands among parameters"))
                }
            };
            if let (Some(fault), Some(value)) = (fault, fields.at("query")) {
                let fault = Fault::new(fault).help("give `all`, `none` or a list of parameters");
                sink.report(Place::Value(value.node), fault);
            }
            CacheQuery::Only(names.into_iter().map(str::to_owned).collect())
        }
    }
}
