//! The form of a line of the access log: a text with variables, among them those that only the end of a
//! request tells.

use std::fmt;

use super::{Part, Variable, parts, print, variable};
use crate::problem::{Fault, near_miss, shown};

/// Bytes of a form as it is written.
const FORM_MAX: usize = 4096;

const COMBINED: &str = "${client.ip} - ${user} [${time.common}] \"${request}\" ${status} ${bytes_out} \
                        \"${header.referer}\" \"${header.user-agent}\"";

/// As [`super::Template`], with more variables.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LogTemplate {
    pub parts: Vec<Part<LogVariable>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogVariable {
    /// One that is known everywhere.
    Of(Variable),
    /// When it began, RFC 3339.
    Time,
    /// The same, as the Common Log Format has it.
    TimeCommon,
    /// The request line, after normalisation.
    Request,
    /// The raw query.
    RawQuery,
    Protocol,
    Status,
    BytesIn,
    BytesOut,
    DurationUs,
    /// Spent on connecting to members.
    ConnectUs,
    /// From sending to the answer's header.
    FirstByteUs,
    Reason,
    /// The rule that a refused request broke.
    Detail,
    /// What the web application firewall found: its rules, where, and the bytes.
    WafRule,
    WafAt,
    WafMatch,
    /// What became of the request in the cache.
    Cache,
    /// How the response was compressed here, and the bytes of its body before that.
    Coding,
    BytesPlain,
    /// Of the W3C trace context.
    TraceId,
    Attempts,
    Rule,
    /// Who has connected: the client, or the last proxy.
    Peer,
    /// Who the client says it is by basic authentication.
    User,
}

const PLAIN: [(&str, LogVariable); 24] = [
    ("time", LogVariable::Time),
    ("time.common", LogVariable::TimeCommon),
    ("request", LogVariable::Request),
    ("query", LogVariable::RawQuery),
    ("protocol", LogVariable::Protocol),
    ("status", LogVariable::Status),
    ("bytes_in", LogVariable::BytesIn),
    ("bytes_out", LogVariable::BytesOut),
    ("duration_us", LogVariable::DurationUs),
    ("connect_us", LogVariable::ConnectUs),
    ("first_byte_us", LogVariable::FirstByteUs),
    ("trace_id", LogVariable::TraceId),
    ("reason", LogVariable::Reason),
    ("detail", LogVariable::Detail),
    ("waf.rule", LogVariable::WafRule),
    ("waf.at", LogVariable::WafAt),
    ("waf.match", LogVariable::WafMatch),
    ("cache", LogVariable::Cache),
    ("coding", LogVariable::Coding),
    ("bytes_plain", LogVariable::BytesPlain),
    ("attempts", LogVariable::Attempts),
    ("rule", LogVariable::Rule),
    ("user", LogVariable::User),
    ("peer", LogVariable::Peer),
];

impl LogTemplate {
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        if text.len() > FORM_MAX {
            return Err(Fault::new(format!("the form of a line has at most {FORM_MAX} bytes")));
        }
        if text.contains(|c: char| c.is_control() && c != '\t') {
            return Err(Fault::new("a line can't have control characters in it").help("a tab may stand"));
        }
        Ok(Self { parts: parts(text, log_variable)? })
    }

    /// What Apache and nginx call so.
    pub fn combined() -> Self {
        Self::parse(COMBINED).expect("the variables of this form are there")
    }
}

/// Whether a variable of this name is known, but only to the access log.
pub(super) fn is_for_log(name: &str) -> bool {
    PLAIN.iter().any(|(plain, _)| *plain == name)
}

fn log_variable(name: &str) -> Result<LogVariable, Fault> {
    if let Some((_, variable)) = PLAIN.iter().find(|(plain, _)| *plain == name) {
        return Ok(variable.clone());
    }
    variable(name).map(LogVariable::Of).map_err(|fault| {
        let near = near_miss(name, PLAIN.iter().map(|(plain, _)| *plain));
        match near {
            Some(near) => Fault::new(format!("there is no variable {}", shown(name))).near(Some(near)),
            None => fault,
        }
    })
}

impl fmt::Display for LogTemplate {
    /// As it was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(&self.parts, f)
    }
}

impl fmt::Display for LogVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogVariable::Of(variable) => variable.fmt(f),
            plain => {
                let name = PLAIN.iter().find(|(_, variable)| variable == plain).map(|(name, _)| *name);
                f.write_str(name.unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_reads_as_it_prints_and_every_name_is_one() {
        for (name, variable) in PLAIN {
            let text = format!("$${{x}} ${{{name}}}\t${{client.ip}} ${{header.user-agent}}");
            let form = LogTemplate::parse(&text).unwrap();
            assert_eq!(form.parts[1], Part::Variable(variable));
            assert_eq!(form.to_string(), text);
        }
    }

    #[test]
    fn what_only_the_log_knows_is_refused_elsewhere() {
        let fault = super::super::Template::parse("${status}").unwrap_err();
        assert!(format!("{fault:?}").contains("access log"), "{fault:?}");
        let fault = LogTemplate::parse("${statu}").unwrap_err();
        assert!(format!("{fault:?}").contains("status"), "{fault:?}");
        assert!(LogTemplate::parse("${status}\n").is_err());
        assert_eq!(LogTemplate::combined().to_string(), COMBINED);
    }
}
