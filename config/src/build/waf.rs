//! The web application firewall, as it stands at a listener, a route or a rule.

use crate::check::Sink;
use crate::model::{WAF_EXCEPTIONS_MAX, WAF_FILES_MAX, Waf, WafException, WafField, WafMode, WafRule};
use crate::problem::Fault;
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
    waf.except = except.iter().filter_map(|value| exception(value, sink)).collect();
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

fn exception(value: &Value, sink: &mut Sink) -> Option<WafException> {
    let fields = value.as_object()?;
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
    Some(WafException { rule, path: text("path"), field })
}

fn field(text: &str) -> Result<WafField, Fault> {
    let (kind, name) = match text.split_once(':') {
        Some((kind @ ("header" | "cookie"), name)) => (kind, name),
        _ => ("", text),
    };
    if name.is_empty() {
        return Err(
            Fault::new("a field without a name").help("`NAME` (a parameter), `header:NAME` or `cookie:NAME`")
        );
    }
    Ok(match kind {
        "header" => WafField::Header(name.to_ascii_lowercase()),
        "cookie" => WafField::Cookie(name.to_owned()),
        _ => WafField::Parameter(name.to_owned()),
    })
}
