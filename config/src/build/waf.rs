//! The web application firewall, as it stands at a listener, a route or a rule.

use crate::check::Sink;
use crate::model::{WAF_EXCEPTIONS_MAX, WAF_FILES_MAX, Waf, WafException, WafField, WafMode, WafRule};
use crate::problem::Fault;
use crate::scalar;
use crate::tree::Place;
use crate::value::{Fields, Kind, Value};

pub(super) fn waf(fields: &Fields, sink: &mut Sink) -> Waf {
    let mode = match fields.word("mode") {
        Some("detect") => WafMode::Detect,
        Some("block") => WafMode::Block,
        _ => WafMode::Off,
    };
    let mut waf = Waf { mode, ..Waf::default() };
    super::set(&mut waf.paranoia, fields.int32("paranoia").and_then(|level| u8::try_from(level).ok()));
    super::set(
        &mut waf.inspect_body,
        fields.size("inspect_body").and_then(|size| usize::try_from(size).ok()),
    );
    if let Some(rules) = fields.list("rules") {
        waf.builtin = rules.iter().any(|rule| matches!(rule.kind, Kind::Word(_)));
        let file = |rule: &Value| match &rule.kind {
            Kind::Content(content) => Some(content.clone()),
            _ => None,
        };
        waf.files = rules.iter().filter_map(file).collect();
        if waf.files.len() > WAF_FILES_MAX
            && let Some(value) = fields.at("rules")
        {
            let fault = Fault::new(format!("more than {WAF_FILES_MAX} files"));
            sink.report(Place::Value(value.node), fault.help("one file may `Include` others"));
        }
    }
    waf.refuses_longer = fields.word("over") == Some("block");
    let except = fields.list("except").unwrap_or_default();
    // Where files were refused, it is not known what rules they have.
    let has_files =
        fields.has("rules") && fields.list("rules").is_none_or(|rules| rules.iter().any(is_no_word));
    waf.except = except.iter().filter_map(|value| exception(value, has_files, sink)).collect();
    if except.len() > WAF_EXCEPTIONS_MAX
        && let Some(value) = fields.at("except")
    {
        let fault = Fault::new(format!("more than {WAF_EXCEPTIONS_MAX} exceptions"));
        sink.report(
            Place::Value(value.node),
            fault.help("name a class of rules (`sqli`, `xss`) or a shorter path"),
        );
    }
    waf
}

fn is_no_word(value: &Value) -> bool {
    !matches!(value.kind, Kind::Word(_))
}

fn exception(value: &Value, has_files: bool, sink: &mut Sink) -> Option<WafException> {
    let fields = value.as_object()?;
    if fields.set.is_empty() && fields.has_unknown {
        return None;
    }
    if fields.set.is_empty() {
        let fault = Fault::new("an exception without `rule`, `path` and `field` is about everything");
        sink.report(Place::Value(value.node), fault.help("`mode: off` says so"));
        return None;
    }
    let text = |key: &str| fields.at(key).and_then(Value::as_text).map(str::to_owned);
    let field = fields.at("field").and_then(|value| {
        let field = field(value.as_text()?);
        field.map_err(|fault| sink.report(Place::Value(value.node), fault)).ok()
    });
    let rule = text("rule").map(|rule| match rule.parse() {
        Ok(id) => WafRule::Id(id),
        Err(_) => WafRule::Builtin(rule),
    });
    if let (Some(WafRule::Id(id)), false, Some(value)) = (&rule, has_files, fields.at("rule")) {
        let fault = Fault::new(format!("there is no rule {id}: no rule file stands in `rules`"));
        sink.report(Place::Value(value.node), fault.help("built-in rules have names, such as `sqli-union`"));
    }
    Some(WafException { rule, path: text("path"), field })
}

/// As it is written; what the log writes of places (`query:q`, `body:user.name`) is no name of a field.
fn field(text: &str) -> Result<WafField, Fault> {
    const HELP: &str = "`NAME` (a parameter), `(body)`, `header:NAME` or `cookie:NAME`";
    let prefix = text.split_once(':').map(|(kind, name)| (kind.to_ascii_lowercase(), name));
    let (kind, name) = match &prefix {
        Some((kind, name)) if matches!(kind.as_str(), "header" | "cookie" | "query" | "body") => {
            (kind.as_str(), *name)
        }
        _ => ("", text),
    };
    if name.is_empty() {
        return Err(Fault::new("a field without a name").help(HELP));
    }
    match kind {
        "header" => match scalar::header_name(name)? {
            name if name == "cookie" => {
                Err(Fault::new("cookies are looked at one by one").help("`cookie:NAME`"))
            }
            name => Ok(WafField::Header(name)),
        },
        "cookie" => Ok(WafField::Cookie(name.to_owned())),
        "query" | "body" => {
            // Rules of files call fields of JSON so, as ModSecurity does.
            let bare = name.strip_prefix("json.").filter(|name| !name.is_empty()).unwrap_or(name);
            let fault = Fault::new("a parameter stands by its name alone, wherever it came from");
            Err(fault.near(Some(bare)))
        }
        _ if name == "(body)" => Ok(WafField::Body),
        _ => Ok(WafField::Parameter(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_one_that_a_request_can_have() {
        for (text, expected) in [
            ("q", WafField::Parameter("q".into())),
            ("path", WafField::Parameter("path".into())),
            ("form:name", WafField::Parameter("form:name".into())),
            (":q", WafField::Parameter(":q".into())),
            ("article.body", WafField::Parameter("article.body".into())),
            ("(body)", WafField::Body),
            ("header:X-Own", WafField::Header("x-own".into())),
            ("Header:x", WafField::Header("x".into())),
            ("Cookie:Sid", WafField::Cookie("Sid".into())),
        ] {
            assert_eq!(field(text), Ok(expected), "{text}");
        }
        for (text, help) in [
            ("query:q", "did you mean `q`?"),
            ("body:user.name", "did you mean `user.name`?"),
            ("body:json.a.b", "did you mean `a.b`?"),
            ("Query:q", "did you mean `q`?"),
            ("header:cookie", "`cookie:NAME`"),
            ("Header:Cookie", "`cookie:NAME`"),
        ] {
            assert_eq!(field(text).unwrap_err().help.as_deref(), Some(help), "{text}");
        }
        for text in ["", "header:", "cookie:", "query:", "body:", "header:a b", "header:a:b"] {
            assert!(field(text).is_err(), "{text}");
        }
    }
}
