//! Lines in a form of text with variables, `combined` among them.

use trestle_config::text::log::{LogTemplate, LogVariable};
use trestle_config::text::{Part, Variable};

#[derive(Debug)]
pub(crate) struct Form {
    template: LogTemplate,
}

/// What of a request's header has to be kept until its line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) user_agent: bool,
    pub(crate) referer: bool,
    pub(crate) authorization: bool,
    /// All of it, since there is more.
    pub(crate) header: bool,
}

/// What a line can be about.
pub(crate) trait Facts {
    /// Writes what the variable stands for; false: nothing is known of it.
    fn put(&self, variable: &LogVariable, field: &mut Field<'_>) -> bool;
}

/// The place of a variable in a line.
pub(crate) struct Field<'a>(&'a mut Vec<u8>);

impl Form {
    pub(crate) fn compile(template: LogTemplate) -> Self {
        Self { template }
    }

    pub(super) fn kept(&self) -> Kept {
        let mut kept = Kept::default();
        for part in &self.template.parts {
            let Part::Variable(variable) = part else { continue };
            match variable {
                LogVariable::Of(Variable::Header(name)) if name == "user-agent" => kept.user_agent = true,
                LogVariable::Of(Variable::Header(name)) if name == "referer" => kept.referer = true,
                LogVariable::Of(Variable::Header(_) | Variable::Cookie(_)) => kept.header = true,
                LogVariable::User => kept.authorization = true,
                _ => {}
            }
        }
        kept
    }

    /// Writes one line, with `-` for what is not known.
    pub(crate) fn write(&self, facts: &impl Facts, out: &mut Vec<u8>) {
        for part in &self.template.parts {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Variable(variable) => {
                    if !facts.put(variable, &mut Field(out)) {
                        out.push(b'-');
                    }
                }
            }
        }
        out.push(b'\n');
    }
}

impl Field<'_> {
    /// Quotes, backslashes and what is not printable ASCII as `\xHH`, as nginx has it, so that a value can't
    /// leave its quotes.
    pub(crate) fn text(&mut self, value: &[u8]) {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        for byte in value {
            match byte {
                b'"' | b'\\' | ..=0x1f | 0x7f.. => {
                    let (high, low) = (DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]);
                    self.0.extend_from_slice(&[b'\\', b'x', high, low]);
                }
                _ => self.0.push(*byte),
            }
        }
    }

    /// True if there is something.
    pub(crate) fn some(&mut self, value: Option<&[u8]>) -> bool {
        value.inspect(|value| self.text(value)).is_some()
    }

    pub(crate) fn number(&mut self, value: u64) {
        self.0.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    /// Three digits.
    pub(crate) fn status(&mut self, status: u16) {
        let digit = |value: u16| b'0' + (value % 10) as u8;
        self.0.extend_from_slice(&[digit(status / 100), digit(status / 10), digit(status)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_header_is_kept_what_the_form_reads() {
        let of = |text: &str| {
            let format =
                trestle_config::Source { name: "-", text: &format!("access_log: {{ format: \"{text}\" }}") };
            let document = trestle_config::parse(format).expect("a form");
            match &document.config().access_log.format {
                trestle_config::model::AccessLogFormat::Own(form) => Form::compile(form.clone()).kept(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(of("${status} ${query.a}"), Kept::default());
        assert_eq!(of("${header.user-agent}"), Kept { user_agent: true, ..Kept::default() });
        assert_eq!(of("${header.X-A}"), Kept { header: true, ..Kept::default() });
        let kept = Form::compile(LogTemplate::combined()).kept();
        assert_eq!(kept, Kept { user_agent: true, referer: true, authorization: true, header: false });
    }

    #[test]
    fn a_value_can_not_leave_its_quotes() {
        let mut out = Vec::new();
        Field(&mut out).text(b"a\"b\\c\n\x7f\xff ~");
        Field(&mut out).status(7);
        assert_eq!(out, br"a\x22b\x5Cc\x0A\x7F\xFF ~007");
    }
}
