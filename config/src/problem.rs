//! What is wrong with a document, and where: messages for the person who wrote it.

use std::fmt;

/// How many problems one document may report. More help nobody, and the bound keeps a hostile
/// document of a million bad keys from filling memory with messages about it.
pub const PROBLEMS_MAX: usize = 200;

/// Characters of a source line that an excerpt shows.
const EXCERPT_WIDTH: usize = 100;

/// One mistake (or, in [`crate::Document::warnings`], one doubt) with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Name of the source as the caller gave it.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Where in the document, such as `routes.shop.rules[0].match[0].path`; empty: the whole.
    pub path: String,
    pub message: String,
    /// What to do, such as ``did you mean `x`?``.
    pub help: Option<String>,
    /// The source line with a mark under it, two lines.
    pub(crate) excerpt: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

impl Problem {
    /// The source line and a mark under the place, when the line is known.
    pub fn excerpt(&self) -> Option<&str> {
        self.excerpt.as_deref()
    }
}

/// Everything that is wrong with a document, sorted by place; never empty, at most
/// [`PROBLEMS_MAX`] and one more that says how many were left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub(crate) Vec<Problem>);

impl Problems {
    pub fn as_slice(&self) -> &[Problem] {
        &self.0
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }
}

impl IntoIterator for Problems {
    type Item = Problem;
    type IntoIter = std::vec::IntoIter<Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
            if let Some(excerpt) = &problem.excerpt {
                write!(f, "\n{excerpt}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A mistake in one value, before its place is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>) -> Fault {
        Fault { message: message.into(), help: None }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Fault {
        self.help = Some(help.into());
        self
    }

    /// `help`, when there is a near miss to name.
    pub(crate) fn near(mut self, near: Option<&str>) -> Fault {
        if let Some(near) = near {
            self.help = Some(format!("did you mean {}?", shown(near)));
        }
        self
    }
}

/// Text of the document as a message may show it: in backquotes, without control characters, cut.
pub(crate) fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 60;
    let mut out = String::from("`");
    for (i, c) in text.chars().enumerate() {
        if i == SHOWN_MAX {
            out.push('…');
            break;
        }
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out.push('`');
    out
}

/// The candidate that was probably meant, if one is close enough to be worth naming.
pub fn near_miss<'a>(typed: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Longer than any name of ours: not a slip of the fingers, and the comparison is quadratic.
    const TYPED_MAX: usize = 80;
    if typed.len() > TYPED_MAX {
        return None;
    }
    let typed = typed.to_lowercase().replace('-', "_");
    let allowed = 1 + typed.chars().count() / 4;
    candidates
        .filter(|c| c.len() <= TYPED_MAX)
        .map(|c| (strsim::damerau_levenshtein(&typed, &c.to_lowercase().replace('-', "_")), c))
        .filter(|(distance, c)| *distance <= allowed && *distance < c.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}

/// `line` with a mark of `width` characters under `column` (from 1), cut to a readable width.
pub(crate) fn excerpt(line_number: usize, line: &str, column: usize, width: usize) -> String {
    let start = column.saturating_sub(1);
    let skip =
        if start + width.min(20) > EXCERPT_WIDTH { start.saturating_sub(EXCERPT_WIDTH / 2) } else { 0 };
    let cut: String =
        line.chars().skip(skip).take(EXCERPT_WIDTH).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let cut = cut.trim_end();
    let before = start - skip;
    let room = cut.chars().count().saturating_sub(before).max(1);
    let number = line_number.to_string();
    let gutter = " ".repeat(number.len());
    format!("  {number} | {cut}\n  {gutter} | {}{}", " ".repeat(before), "^".repeat(width.clamp(1, room)),)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_named_and_another_word_is_not() {
        let names = ["protocol", "pool", "proxy_protocol", "bind"];
        assert_eq!(near_miss("protcol", names.into_iter()), Some("protocol"));
        assert_eq!(near_miss("proxy-protocol", names.into_iter()), Some("proxy_protocol"));
        assert_eq!(near_miss("colour", names.into_iter()), None);
        assert_eq!(near_miss(&"x".repeat(100_000), names.into_iter()), None);
    }

    #[test]
    fn an_excerpt_of_a_long_line_shows_the_place() {
        let line = format!("{}bad{}", "a".repeat(5_000), "b".repeat(5_000));
        let text = excerpt(7, &line, 5_001, 3);
        let (shown, mark) = text.split_once('\n').unwrap();
        assert!(shown.len() < 120);
        let at = mark.find('^').unwrap();
        assert_eq!(&shown[at..at + 3], "bad");
    }

    #[test]
    fn control_characters_are_not_shown_raw() {
        assert_eq!(shown("a\u{1b}[31m"), "`a\\u{1b}[31m`");
        assert!(!excerpt(1, "a: \u{1b}[31m", 4, 1).contains('\u{1b}'));
    }
}
