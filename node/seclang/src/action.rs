//! What a rule says beside what it looks at: a list of actions.

use crate::transform::Transformation;
use crate::variable::{Target, Text, target};

/// A list, read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Actions {
    pub(crate) id: Option<u32>,
    pub(crate) phase: Option<u8>,
    pub(crate) disruptive: Option<Disruptive>,
    pub(crate) logs: Option<bool>,
    pub(crate) chains: bool,
    pub(crate) captures: bool,
    pub(crate) multi_match: bool,
    /// `t:none` among them forgets those before it, and those of `SecDefaultAction`.
    pub(crate) forgets: bool,
    pub(crate) transformations: Vec<Transformation>,
    pub(crate) set: Vec<SetVar>,
    pub(crate) control: Vec<Control>,
    pub(crate) skip: u32,
    pub(crate) skip_after: Option<Box<str>>,
    pub(crate) message: Option<Box<str>>,
    pub(crate) tags: Vec<Box<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Disruptive {
    /// `deny`, `drop`, `redirect` and `proxy`: the request does not pass.
    Deny,
    /// As `SecDefaultAction` of the phase says.
    Block,
    Pass,
    Allow(Allowed),
}

/// What an `allow` ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    Phase,
    All,
}

#[derive(Clone, Debug)]
pub(crate) struct SetVar {
    /// With its collection, as `tx.name`.
    pub(crate) name: Text,
    pub(crate) change: Change,
}

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Set(Text),
    Add(Text),
    Subtract(Text),
    Unset,
}

#[derive(Clone, Debug)]
pub(crate) enum Control {
    /// Of the engine, for the rest of this request.
    Engine(Mode),
    /// Bodies are not looked at.
    NoBody,
    Remove(Which),
    RemoveTarget(Which, Target),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    On,
    DetectionOnly,
    Off,
}

/// Which rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    Ids(Vec<(u32, u32)>),
    /// By what is in one of their tags.
    Tag(Box<str>),
    Message(Box<str>),
}

impl Mode {
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name.to_ascii_lowercase().as_str() {
            "on" => Some(Self::On),
            "off" => Some(Self::Off),
            "detectiononly" => Some(Self::DetectionOnly),
            _ => None,
        }
    }
}

/// Numbers and ranges, divided by blanks or commas.
pub(crate) fn ids(text: &str) -> Result<Vec<(u32, u32)>, String> {
    let of = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
            _ => Err(format!("`{part}` is no id of a rule, and no range of them")),
        }
    };
    text.split([' ', ',']).filter(|part| !part.is_empty()).map(of).collect()
}

pub(crate) fn actions(text: &str) -> Result<Actions, String> {
    let mut actions = Actions::default();
    for (name, value) in pairs(text) {
        one(&mut actions, name, &value).map_err(|why| format!("`{name}`: {why}"))?;
    }
    Ok(actions)
}

/// Divides a list at commas outside of quotes; values without their quotes.
fn pairs(text: &str) -> Vec<(&str, String)> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find([',', ':']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let mut value = String::new();
        let mut chars = after.strip_prefix(':').unwrap_or(after).char_indices();
        let behind = after.len() - chars.as_str().len();
        let mut quoted = false;
        let mut used = after.len();
        let mut escaped = false;
        for (at, c) in &mut chars {
            match c {
                c if escaped => {
                    if c != '\'' {
                        value.push('\\');
                    }
                    value.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '\'' => quoted = !quoted,
                ',' if !quoted => {
                    used = behind + at;
                    break;
                }
                c => value.push(c),
            }
        }
        if escaped {
            value.push('\\');
        }
        if !name.trim().is_empty() {
            pairs.push((name.trim(), value.trim().to_owned()));
        }
        rest = after.get(used..).unwrap_or_default().trim_start_matches(',').trim_start();
    }
    pairs
}

fn one(actions: &mut Actions, name: &str, value: &str) -> Result<(), String> {
    match name.to_ascii_lowercase().as_str() {
        "id" => {
            let id = value.parse().ok().filter(|id| *id > 0);
            actions.id = Some(id.ok_or_else(|| format!("`{value}` is no number"))?);
        }
        "phase" => {
            actions.phase = Some(match value.to_ascii_lowercase().as_str() {
                "1" => 1,
                "2" | "request" => 2,
                "3" => 3,
                "4" | "response" => 4,
                "5" | "logging" => 5,
                _ => return Err(format!("there is no phase `{value}`")),
            });
        }
        "deny" | "drop" | "redirect" | "proxy" => actions.disruptive = Some(Disruptive::Deny),
        "block" => actions.disruptive = Some(Disruptive::Block),
        "pass" => actions.disruptive = Some(Disruptive::Pass),
        "allow" => {
            let allowed = if value.eq_ignore_ascii_case("phase") { Allowed::Phase } else { Allowed::All };
            actions.disruptive = Some(Disruptive::Allow(allowed));
        }
        "log" => actions.logs = Some(true),
        "nolog" => actions.logs = Some(false),
        "chain" => actions.chains = true,
        "capture" => actions.captures = true,
        "multimatch" => actions.multi_match = true,
        "t" if value.eq_ignore_ascii_case("none") => {
            actions.forgets = true;
            actions.transformations.clear();
        }
        "t" => {
            let known = Transformation::named(value);
            actions
                .transformations
                .push(known.ok_or_else(|| format!("there is no transformation `{value}` here"))?);
        }
        "setvar" => actions.set.push(set_var(value)?),
        "ctl" => actions.control.extend(control(value)?),
        "skip" => actions.skip = value.parse().map_err(|_| format!("`{value}` is no number"))?,
        "skipafter" => actions.skip_after = Some(value.into()),
        "msg" => actions.message = Some(value.into()),
        "tag" => actions.tags.push(value.into()),
        // Of logs, answers and storage that are not the rule files' here.
        "accuracy"
        | "append"
        | "auditlog"
        | "deprecatevar"
        | "expirevar"
        | "initcol"
        | "logdata"
        | "maturity"
        | "noauditlog"
        | "pause"
        | "prepend"
        | "rev"
        | "sanitisearg"
        | "sanitisematched"
        | "sanitisematchedbytes"
        | "sanitiserequestheader"
        | "sanitiseresponseheader"
        | "setenv"
        | "setrsc"
        | "setsid"
        | "setuid"
        | "severity"
        | "status"
        | "ver"
        | "xmlns" => {}
        "exec" => return Err("programs are not run".to_owned()),
        _ => return Err("no such action".to_owned()),
    }
    Ok(())
}

fn set_var(text: &str) -> Result<SetVar, String> {
    let (name, change) = match text.strip_prefix('!') {
        Some(name) => (name, Change::Unset),
        None => match text.split_once('=') {
            None => (text, Change::Set(Text::new("1")?)),
            Some((name, value)) => (
                name,
                match value.split_at_checked(1) {
                    Some(("+", more)) => Change::Add(Text::new(more)?),
                    Some(("-", less)) => Change::Subtract(Text::new(less)?),
                    _ => Change::Set(Text::new(value)?),
                },
            ),
        },
    };
    let name = name.trim();
    let written =
        name.split_once(['.', ':']).and_then(|(collection, _)| target(collection).ok()?.collection.written());
    let Some(prefix) = written else {
        return Err(format!("`{name}` can't be set: it stands in no collection such as `tx`"));
    };
    let own = name.get(prefix.len()..).unwrap_or_default();
    Ok(SetVar { name: Text::new(&format!("{prefix}{own}"))?, change })
}

fn control(text: &str) -> Result<Option<Control>, String> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    let name = name.trim().to_ascii_lowercase();
    let removed = |which: fn(&str) -> Result<Which, String>| match value.split_once(';') {
        Some((which_one, of)) => {
            Ok(Some(Control::RemoveTarget(which(which_one)?, target(of.trim_start_matches('!'))?)))
        }
        None => Err(format!("`{value}` has no target behind a semicolon")),
    };
    let by_id = |text: &str| ids(text).map(Which::Ids);
    let by_tag = |text: &str| Ok(Which::Tag(text.into()));
    let by_message = |text: &str| Ok(Which::Message(text.into()));
    match name.as_str() {
        "ruleengine" => match Mode::named(value) {
            Some(mode) => Ok(Some(Control::Engine(mode))),
            None => Err(format!("there is no mode `{value}`")),
        },
        "requestbodyaccess" => Ok(value.eq_ignore_ascii_case("off").then_some(Control::NoBody)),
        "ruleremovebyid" => Ok(Some(Control::Remove(by_id(value)?))),
        "ruleremovebytag" => Ok(Some(Control::Remove(by_tag(value)?))),
        "ruleremovebymsg" => Ok(Some(Control::Remove(by_message(value)?))),
        "ruleremovetargetbyid" => removed(by_id),
        "ruleremovetargetbytag" => removed(by_tag),
        "ruleremovetargetbymsg" => removed(by_message),
        // A body is read by its type; logs are not the rule files' here.
        "auditengine"
        | "auditlogparts"
        | "debugloglevel"
        | "forcerequestbodyvariable"
        | "hashenforcement"
        | "hashengine"
        | "requestbodylimit"
        | "requestbodyprocessor"
        | "responsebodyaccess"
        | "responsebodylimit" => Ok(None),
        _ => Err(format!("there is no control `{name}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_actions_are_read() {
        let read = actions(
            "id:42,phase:request,  block,t:none,t:urlDecodeUni,msg:'It\\'s, a: test',\
             setvar:'tx.Score=+%{tx.critical}',setvar:!ip.a,ctl:ruleRemoveTargetById=1-5;ARGS:a,tag:'a/b',\
             skipAfter:END,logdata:'%{x',chain",
        )
        .unwrap();
        assert_eq!((read.id, read.phase, read.chains), (Some(42), Some(2), true));
        assert_eq!(read.message.as_deref(), Some("It's, a: test"));
        assert_eq!(read.transformations, [Transformation::UrlDecodeUni]);
        assert!(matches!(read.set[0].change, Change::Add(_)) && matches!(read.set[1].change, Change::Unset));
        assert!(matches!(&read.control[0], Control::RemoveTarget(Which::Ids(ids), _) if *ids == [(1, 5)]));
        assert_eq!(read.skip_after.as_deref(), Some("END"));
        for (bad, why) in [
            ("id:x", "`id`: `x` is no number"),
            ("t:rot13", "no transformation `rot13`"),
            ("exec:/bin/sh", "programs are not run"),
            ("frobnicate", "no such action"),
            ("ctl:nope=1", "no control"),
            ("setvar:args.a=1", "can't be set"),
        ] {
            let told = actions(bad).unwrap_err();
            assert!(told.contains(why), "{told}");
        }
    }
}
