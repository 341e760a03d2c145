//! What is replaced in the body of a message, and by what.

use std::ops::Range;

use regex::bytes::{CaptureMatches, Captures, Matches, Regex};

use super::{PATTERN_MAX, Part, Template, Variable, compile};
use crate::problem::{Fault, shown};

/// A text or an expression, and what stands instead.
#[derive(Clone, Debug)]
pub struct Substitution {
    /// A text is an expression that matches only itself.
    find: Regex,
    with: Vec<Piece>,
    has_groups: bool,
}

/// Part of what stands instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Text(String),
    /// What the group of this number has matched.
    Group(usize),
    Variable(Variable),
}

/// Where it occurs.
#[derive(Debug)]
pub struct Place<'b> {
    range: Range<usize>,
    groups: Option<Captures<'b>>,
}

impl Substitution {
    pub(crate) fn parse(find: &str, is_regex: bool, with: &Template) -> Result<Self, Fault> {
        Self::compile(find, is_regex, with, false)
    }

    /// Of the expression `find` by what has no variables; `${1}` and `${name}` are groups too.
    pub(super) fn of_path(find: &str, with: &str) -> Result<Self, Fault> {
        Self::compile(find, true, &Template { parts: vec![Part::Text(with.to_owned())] }, true)
    }

    fn compile(find: &str, is_regex: bool, with: &Template, braces: bool) -> Result<Self, Fault> {
        if find.is_empty() {
            return Err(Fault::new("expected something to look for"));
        }
        if find.len() > PATTERN_MAX {
            return Err(Fault::new(format!("what is looked for has at most {PATTERN_MAX} bytes")));
        }
        let find = if is_regex { compile(find)? } else { compile(&regex::escape(find))? };
        let mut pieces = Vec::new();
        for part in &with.parts {
            match part {
                Part::Variable(variable) => pieces.push(Piece::Variable(variable.clone())),
                Part::Text(text) if is_regex => groups(&find, text, braces, &mut pieces)?,
                Part::Text(text) => pieces.push(Piece::Text(text.clone())),
            }
        }
        let has_groups = pieces.iter().any(|piece| matches!(piece, Piece::Group(_)));
        Ok(Self { find, with: pieces, has_groups })
    }

    /// Where it occurs in `body`, from left to right.
    pub fn places<'a>(&'a self, body: &'a [u8]) -> impl Iterator<Item = Place<'a>> {
        // To know where groups lie costs more than to know where the whole does.
        match self.has_groups {
            true => Places::WithGroups(self.find.captures_iter(body)),
            false => Places::Alone(self.find.find_iter(body)),
        }
    }

    pub fn with(&self) -> &[Piece] {
        &self.with
    }
}

impl PartialEq for Substitution {
    fn eq(&self, other: &Self) -> bool {
        (self.find.as_str(), &self.with) == (other.find.as_str(), &other.with)
    }
}

impl Place<'_> {
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// What a group has matched; nothing if it took no part.
    pub fn group(&self, number: usize) -> &[u8] {
        self.groups.as_ref().and_then(|groups| groups.get(number)).map_or(b"", |group| group.as_bytes())
    }
}

enum Places<'a> {
    Alone(Matches<'a, 'a>),
    WithGroups(CaptureMatches<'a, 'a>),
}

impl<'a> Iterator for Places<'a> {
    type Item = Place<'a>;

    fn next(&mut self) -> Option<Place<'a>> {
        match self {
            Places::Alone(places) => places.next().map(|place| Place { range: place.range(), groups: None }),
            Places::WithGroups(places) => places.next().map(|groups| {
                let whole = groups.get(0).map_or(0..0, |whole| whole.range());
                Place { range: whole, groups: Some(groups) }
            }),
        }
    }
}

/// Text with `$1`, `$name` and `$$`; with `braces` also `${1}` and `${name}`.
fn groups(find: &Regex, text: &str, braces: bool, pieces: &mut Vec<Piece>) -> Result<(), Fault> {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        plain.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let fits: fn(char) -> bool = match rest.chars().next() {
            Some('$') => {
                plain.push('$');
                rest = &rest[1..];
                continue;
            }
            Some('{') if braces => |c| c != '}',
            Some(first) if first.is_ascii_digit() => |c| c.is_ascii_digit(),
            Some(first) if first.is_ascii_alphabetic() || first == '_' => {
                |c| c.is_ascii_alphanumeric() || c == '_'
            }
            _ => {
                plain.push('$');
                continue;
            }
        };
        let mut name = &rest[..rest.find(|c| !fits(c)).unwrap_or(rest.len())];
        rest = &rest[name.len()..];
        if let Some(inner) = name.strip_prefix('{') {
            rest = rest
                .strip_prefix('}')
                .ok_or_else(|| Fault::new("`${` in `with` has no `}`").help("`$${` stands for `${`"))?;
            name = inner;
        }
        let by_number = name.parse().ok().filter(|number| *number < find.captures_len());
        let by_name = || find.capture_names().position(|known| known == Some(name));
        let Some(number) = by_number.or_else(by_name) else {
            let fault = Fault::new(format!("it has no group {}, which `with` names", shown(name)));
            return Err(fault.help("`$$` stands for a dollar sign"));
        };
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(Piece::Group(number));
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(find: &str, is_regex: bool, with: &str) -> Result<Substitution, Fault> {
        Substitution::parse(find, is_regex, &with.parse().expect("a template"))
    }

    fn edited(find: &str, is_regex: bool, with: &str, body: &str) -> String {
        let edit = parse(find, is_regex, with).expect("a good one");
        let (mut out, mut from) = (Vec::new(), 0);
        for place in edit.places(body.as_bytes()) {
            out.extend_from_slice(&body.as_bytes()[from..place.range().start]);
            for piece in edit.with() {
                match piece {
                    Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
                    Piece::Group(number) => out.extend_from_slice(place.group(*number)),
                    Piece::Variable(variable) => out.extend_from_slice(format!("<{variable}>").as_bytes()),
                }
            }
            from = place.range().end;
        }
        out.extend_from_slice(&body.as_bytes()[from..]);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_text_stands_for_itself() {
        assert_eq!(edited("a.b", false, "$1 $$ ${host}", "axb a.b"), "axb $1 $$ <host>");
        assert_eq!(edited("aa", false, "b", "aaa A"), "ba A");
        assert_eq!(edited("a", false, "", "banana"), "bnn");
    }

    #[test]
    fn an_expression_has_groups() {
        assert_eq!(edited("(?P<first>\\w)(\\w)", true, "$2$first-$0$$1", "ab c"), "ba-ab$1 c");
        assert_eq!(edited("(a)|(b)", true, "[$1$2]", "abc"), "[a][b]c");
        assert_eq!(edited("(?i)http://", true, "https://", "HTTP://a http://b"), "https://a https://b");
        assert_eq!(edited("(\\d)", true, "$1x$", "12"), "1x$2x$");
        assert_eq!(edited("^", true, "<!-- x -->", "page"), "<!-- x -->page");
    }

    #[test]
    fn what_can_not_be_replaced_says_why() {
        let message = |find, is_regex, with| parse(find, is_regex, with).expect_err("it is bad").message;
        assert!(message("", false, "").contains("something to look for"));
        assert!(message("(a)", true, "$2").contains("no group `2`"));
        assert!(message("(a)", true, "$name").contains("no group `name`"));
        assert!(message("(a", true, "").contains("no regular expression"));
        assert!(message(&"a".repeat(PATTERN_MAX + 1), false, "").contains("4096"));
    }

    proptest! {
        #[test]
        fn a_text_is_replaced_as_by_the_standard_library(find in "[ab.]{1,3}", with in "[a$1]{0,3}", body in "[ab.]{0,40}") {
            prop_assert_eq!(edited(&find, false, &with, &body), body.replace(&find, &with));
        }

        #[test]
        fn an_expression_is_replaced_as_by_its_own_library(body in "[abc]{0,40}") {
            let whole = Regex::new("(a+)(b?)").expect("an expression");
            let expected = whole.replace_all(body.as_bytes(), &b"<${2}x${1}>"[..]);
            prop_assert_eq!(edited("(a+)(b?)", true, "<$2x$1>", &body).into_bytes(), expected.into_owned());
        }

        #[test]
        fn any_text_is_taken_or_refused(find in ".{0,20}", with in "[$a1{}]{0,12}") {
            if let Ok(with) = with.parse() {
                let _ = Substitution::parse(&find, true, &with);
                let _ = Substitution::parse(&find, false, &with);
            }
        }
    }
}
