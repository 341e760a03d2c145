//! What looks at one value: the built-in engine. Another one (rule files of an operator) would stand beside it in
//! [`Engine`].
//!
//! Most values are names, numbers and tokens: one look at each byte tells that nothing is in them. What is left
//! is searched for the literals of all rules at once; a pattern runs where one of its literals is, and libinjection
//! where quotes, operators and words of SQL come together, on at most [`WINDOW`] bytes: it looks at the beginning
//! only, whatever the length, and is far slower than the rest.
//!
//! Bounds: patterns are automata, linear in what they read; libinjection reads at most [`TOKENS_MAX`] bytes for one
//! request. What is beyond that is judged by our own rules.

use std::sync::LazyLock;

use aho_corasick::AhoCorasick;
use regex::bytes::{Regex, RegexBuilder};

use super::decode;
use super::normal::{NO_BREAK, fold, is_lone, uncomment};
use super::rules::{Gate, PATTERNS, Pattern, Rule, Rules, Text};

/// Bytes of a value that libinjection reads from its beginning, and as many from its first quote.
const WINDOW: usize = 512;

/// Bytes that libinjection's search for SQL reads for one request, all values together.
const TOKENS_MAX: usize = 16 << 10;

/// Bytes of a finding that are told, around what was found.
const SHOWN: usize = 80;

/// Memory of one pattern's automaton while it runs, beyond which it starts anew.
const AUTOMATON_BYTES: usize = 1 << 20;

/// Who judges values.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Engine {
    #[default]
    Builtin,
}

/// A rule that fits, and the bytes by which, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) rule: Rule,
    pub(super) matched: Vec<u8>,
}

/// What a value may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Whatever somebody typed.
    Free,
    /// Of a grammar of its own, full of quotes, semicolons and equals signs, such as `accept` or `forwarded`: its
    /// tokens say nothing.
    Structured,
}

/// What one request's values share.
#[derive(Debug)]
pub(super) struct Scratch {
    text: Vec<u8>,
    other: Vec<u8>,
    tokens_left: usize,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { text: Vec::new(), other: Vec::new(), tokens_left: TOKENS_MAX }
    }
}

impl Engine {
    /// Compiles what is compiled once, so that no request has to wait for it.
    pub(super) fn prepare(self) {
        match self {
            Engine::Builtin => {
                LazyLock::force(&COMPILED);
            }
        }
    }

    /// The first of `rules` that finds something in the value as it is, or after one or two rounds of decoding.
    pub(super) fn examine(
        self,
        value: &[u8],
        kind: Kind,
        rules: Rules,
        scratch: &mut Scratch,
    ) -> Option<Finding> {
        match self {
            Engine::Builtin => BUILTIN.with(|builtin| builtin.examine(value, kind, rules, scratch)),
        }
    }
}

thread_local! {
    /// Each worker has its own: what a pattern needs while it runs is then shared with nobody.
    static BUILTIN: Builtin = COMPILED.clone();
}

static COMPILED: LazyLock<Builtin> = LazyLock::new(Builtin::compile);

#[derive(Clone, Debug)]
struct Builtin {
    literals: AhoCorasick,
    /// Of each literal: the patterns that it is of.
    wanted: Vec<u64>,
    /// One for each of [`PATTERNS`].
    patterns: Vec<Regex>,
}

impl Builtin {
    fn compile() -> Self {
        let mut literals: Vec<&'static str> = PATTERNS.iter().flat_map(|p| p.literals).copied().collect();
        literals.sort_unstable();
        literals.dedup();
        let has = |pattern: &Pattern, literal| pattern.literals.contains(literal);
        let wanted = literals.iter().map(|literal| {
            let patterns = PATTERNS.iter().enumerate().filter(|(_, pattern)| has(pattern, literal));
            patterns.fold(0, |all, (at, _)| all | 1 << at)
        });
        let regex = |pattern: &Pattern| {
            RegexBuilder::new(pattern.regex)
                .unicode(false)
                .dot_matches_new_line(true)
                .size_limit(16 << 20)
                .dfa_size_limit(AUTOMATON_BYTES)
                .build()
                .expect("a pattern of the table, which a test compiles")
        };
        Self {
            wanted: wanted.collect(),
            patterns: PATTERNS.iter().map(regex).collect(),
            literals: AhoCorasick::builder()
                .ascii_case_insensitive(true)
                .kind(Some(aho_corasick::AhoCorasickKind::DFA))
                .build(&literals)
                .expect("a few short literals"),
        }
    }

    fn examine(&self, value: &[u8], kind: Kind, rules: Rules, scratch: &mut Scratch) -> Option<Finding> {
        if let Some(finding) = self.form(value, kind, rules, scratch) {
            return Some(finding);
        }
        let once = decode::round(value)?;
        if let Some(finding) = self.form(&once, kind, rules, scratch) {
            return Some(finding);
        }
        self.form(&decode::round(&once)?, kind, rules, scratch)
    }

    /// One form of a value.
    fn form(&self, form: &[u8], kind: Kind, rules: Rules, scratch: &mut Scratch) -> Option<Finding> {
        let classes = Classes::of(form).with_lone(form);
        if classes.is_plain() || kind == Kind::Structured && !classes.may_break_out(form) {
            return None;
        }
        let wanted = self.wanted(form, classes, rules);
        if wanted != 0
            && let Some(finding) = self.patterns(form, wanted, scratch)
        {
            return Some(finding);
        }
        if rules.has(Rule::XssMarkup)
            && classes.may_be_markup()
            && libinjectionrs::detect_xss(form).is_injection()
        {
            return Some(Finding { rule: Rule::XssMarkup, matched: from_sign(form) });
        }
        let may_be_sql = kind == Kind::Free && rules.has(Rule::SqliTokens) && classes.may_be_sql(form);
        if may_be_sql && let Some((rule, window)) = tokens(form, rules, &mut scratch.tokens_left) {
            return Some(Finding { rule, matched: shown(window, 0, window.len()) });
        }
        None
    }

    /// The patterns of these rules whose gate is open and of which a literal is there.
    fn wanted(&self, form: &[u8], classes: Classes, rules: Rules) -> u64 {
        let (mut wanted, mut missing) = (0u64, 0u64);
        let (mut condition, mut handler) = (None, None);
        for (at, pattern) in PATTERNS.iter().enumerate().filter(|(_, pattern)| rules.has(pattern.rule)) {
            let is_open = match pattern.gate {
                Gate::Open => true,
                Gate::Signs => classes.has(Classes::SIGNS),
                Gate::Quote => classes.has(Classes::QUOTE),
                Gate::Condition => *condition.get_or_insert_with(|| classes.may_be_condition(form)),
                Gate::Handler => {
                    *handler.get_or_insert_with(|| classes.has(Classes::EQUALS) && has_handler(form))
                }
            };
            // A scheme may be torn apart, and its literal with it.
            let torn =
                pattern.text == Text::Tight && classes.has(Classes::CONTROL) && classes.has(Classes::COLON);
            if is_open && (pattern.literals.is_empty() || torn) {
                wanted |= 1 << at;
            } else if is_open {
                missing |= 1 << at;
            }
        }
        for found in self.literals.find_overlapping_iter(form) {
            let new = self.wanted[found.pattern().as_usize()] & missing;
            wanted |= new;
            missing &= !new;
            if missing == 0 {
                break;
            }
        }
        wanted
    }

    fn patterns(&self, form: &[u8], wanted: u64, scratch: &mut Scratch) -> Option<Finding> {
        let Scratch { text, other, .. } = scratch;
        let of = |kind: Text| {
            let fits = move |(at, pattern): &(usize, &Pattern)| wanted & 1 << at != 0 && pattern.text == kind;
            PATTERNS.iter().enumerate().filter(fits)
        };
        let find = |text: &[u8], kind: Text| {
            of(kind).find_map(|(at, pattern)| {
                let found = self.patterns[at].find(text)?;
                Some(Finding { rule: pattern.rule, matched: shown(text, found.start(), found.end()) })
            })
        };
        if of(Text::Tight).next().is_some() {
            fold(form, Text::Tight, text);
            if let Some(finding) = find(text, Text::Tight) {
                return Some(finding);
            }
        }
        of(Text::Spaced).next()?;
        fold(form, Text::Spaced, text);
        if let Some(finding) = find(text, Text::Spaced) {
            return Some(finding);
        }
        if !uncomment(form, other) {
            return None;
        }
        fold(other, Text::Spaced, text);
        find(text, Text::Spaced)
    }
}

/// What kinds of bytes a value has.
#[derive(Clone, Copy, Debug)]
struct Classes(u16);

impl Classes {
    const SPACE: u16 = 1;
    const DIGIT: u16 = 1 << 1;
    const QUOTE: u16 = 1 << 2;
    const OPERATOR: u16 = 1 << 3;
    const PARENTHESIS: u16 = 1 << 4;
    const ANGLE: u16 = 1 << 5;
    const EQUALS: u16 = 1 << 6;
    const COMMENT: u16 = 1 << 7;
    const CONTROL: u16 = 1 << 8;
    const COLON: u16 = 1 << 9;
    const OTHER: u16 = 1 << 10;
    /// The byte may be a space, or part of a character.
    const NO_BREAK: u16 = 1 << 11;
    const SIGNS: u16 =
        Self::QUOTE | Self::OPERATOR | Self::PARENTHESIS | Self::EQUALS | Self::COMMENT | Self::OTHER;

    fn of(value: &[u8]) -> Self {
        Self(value.iter().fold(0, |all, byte| all | CLASSES[usize::from(*byte)]))
    }

    /// A space in place of a byte that may be one, if it is one somewhere.
    fn with_lone(self, value: &[u8]) -> Self {
        if !self.has(Self::NO_BREAK) {
            return self;
        }
        let has_lone = memchr::memchr_iter(NO_BREAK, value).any(|at| is_lone(value, at));
        Self(self.0 & !Self::NO_BREAK | if has_lone { Self::SPACE } else { 0 })
    }

    fn has(self, some: u16) -> bool {
        self.0 & some != 0
    }

    /// Letters, digits and the signs of names, numbers, paths and hosts, in one word.
    fn is_plain(self) -> bool {
        !self.has(!(Self::DIGIT | Self::COLON))
    }

    /// Out of a grammar that has double quotes, equals signs and semicolons of its own.
    fn may_break_out(self, value: &[u8]) -> bool {
        self.has(Self::PARENTHESIS | Self::ANGLE | Self::COMMENT | Self::CONTROL)
            || memchr::memchr2(b'\'', b'`', value).is_some()
            || has_word(value, is_strong)
    }

    fn may_be_markup(self) -> bool {
        self.has(Self::ANGLE) || self.has(Self::EQUALS) && self.has(Self::QUOTE)
    }

    fn may_be_sql(self, value: &[u8]) -> bool {
        let operators = Self::OPERATOR | Self::PARENTHESIS | Self::EQUALS | Self::COMMENT | Self::ANGLE;
        match self.has(Self::QUOTE) {
            true => self.has(operators) || has_word(value, |word| is_strong(word) || is_weak(word)),
            false => {
                self.has(operators | Self::DIGIT) && has_word(value, is_strong) || self.has(Self::COMMENT)
            }
        }
    }

    fn may_be_condition(self, value: &[u8]) -> bool {
        let joins = |word: &[u8]| {
            matches!(
                word,
                b"or" | b"and" | b"xor" | b"having" | b"where" | b"div" | b"mod" | b"not" | b"sounds"
            )
        };
        self.has(Self::DIGIT | Self::QUOTE) && (self.has(Self::OPERATOR) || has_word(value, joins))
    }
}

static CLASSES: [u16; 256] = classes();

const fn classes() -> [u16; 256] {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | b'.' | b'~' | b'/' | b',' | b'-' => 0,
            NO_BREAK => Classes::NO_BREAK,
            0x80..=0xff => 0,
            b'0'..=b'9' => Classes::DIGIT,
            b' ' => Classes::SPACE,
            0..=0x1f | 0x7f => Classes::CONTROL,
            b'\'' | b'"' | b'`' => Classes::QUOTE,
            b'+' | b'*' | b'^' | b'|' | b'&' | b'!' | b'%' | b';' | b'@' => Classes::OPERATOR,
            b'(' | b')' => Classes::PARENTHESIS,
            b'<' | b'>' => Classes::ANGLE,
            b'=' => Classes::EQUALS,
            b'#' => Classes::COMMENT,
            b':' => Classes::COLON,
            _ => Classes::OTHER,
        };
        byte += 1;
    }
    classes
}

/// Whether a word of two to nine letters, in lower case, is one of these.
fn has_word(value: &[u8], is_one: impl Fn(&[u8]) -> bool) -> bool {
    let words = value.split(|byte| !byte.is_ascii_alphabetic());
    words.filter(|word| matches!(word.len(), 2..=9)).any(|word| {
        let mut lower = [0; 9];
        lower[..word.len()].copy_from_slice(word);
        lower.make_ascii_lowercase();
        is_one(&lower[..word.len()])
    })
}

/// Without one of them there is no injection but by signs. Prose has some of them too.
fn is_strong(word: &[u8]) -> bool {
    matches!(
        word,
        b"or"
            | b"and"
            | b"xor"
            | b"rlike"
            | b"regexp"
            | b"between"
            | b"div"
            | b"mod"
            | b"union"
            | b"select"
            | b"having"
            | b"where"
            | b"order"
            | b"group"
            | b"limit"
            | b"case"
            | b"sleep"
            | b"insert"
            | b"update"
            | b"delete"
            | b"drop"
            | b"exec"
            | b"execute"
            | b"declare"
            | b"waitfor"
            | b"procedure"
            | b"into"
            | b"exists"
            | b"benchmark"
            | b"coalesce"
            | b"concat"
            | b"unhex"
            | b"chr"
    )
}

/// Those that say something only beside a quote.
fn is_weak(word: &[u8]) -> bool {
    matches!(
        word,
        b"not"
            | b"like"
            | b"in"
            | b"is"
            | b"when"
            | b"if"
            | b"set"
            | b"null"
            | b"char"
            | b"substring"
            | b"substr"
            | b"ascii"
            | b"any"
            | b"all"
            | b"ifnull"
            | b"convert"
            | b"cast"
            | b"table"
            | b"create"
            | b"alter"
            | b"from"
    )
}

/// A word that begins with `on`, before an equals sign.
fn has_handler(value: &[u8]) -> bool {
    memchr::memchr_iter(b'=', value).any(|at| {
        let before = value[..at].trim_ascii_end();
        // Events have at most 30 letters.
        let word = before.iter().rev().take(32).take_while(|byte| byte.is_ascii_alphabetic()).count();
        word >= 4 && before[before.len() - word..][..2].eq_ignore_ascii_case(b"on")
    })
}

/// Fingerprints of libinjection that prose and code have too: names that are joined by `and` in parentheses, a number
/// before words, a call before a word, an inch before `or`. They are for [`Rule::SqliLoose`].
const OF_PROSE: [&str; 6] = ["n&n)&", "f(n)k", "T(ns)", "1knc", "s&n", "nkson"];

/// The part of a value in which libinjection sees an injection, and the rule that says so.
fn tokens<'a>(value: &'a [u8], rules: Rules, left: &mut usize) -> Option<(Rule, &'a [u8])> {
    let first = &value[..value.len().min(WINDOW)];
    let quote = memchr::memchr2(b'\'', b'"', value).filter(|quote| *quote > WINDOW / 2);
    let second = quote.map(|quote| &value[quote - 1..value.len().min(quote + WINDOW)]);
    [Some(first), second].into_iter().flatten().find_map(|window| {
        let affordable = *left >= window.len();
        *left = left.saturating_sub(window.len());
        if !affordable {
            return None;
        }
        let found = libinjectionrs::detect_sqli(window);
        let of_prose = found.fingerprint.as_ref().is_some_and(|print| OF_PROSE.contains(&print.as_str()));
        let rule = if of_prose { Rule::SqliLoose } else { Rule::SqliTokens };
        (found.is_injection() && rules.has(rule)).then_some((rule, window))
    })
}

/// From the first angle bracket on, or else from the beginning.
fn from_sign(value: &[u8]) -> Vec<u8> {
    let at = memchr::memchr(b'<', value).unwrap_or(0);
    shown(value, at, value.len())
}

fn shown(value: &[u8], start: usize, end: usize) -> Vec<u8> {
    let start = start.min(value.len());
    let end = end.clamp(start, value.len()).min(start + SHOWN);
    value[start..end].to_vec()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn find(value: &str) -> Option<&'static str> {
        let mut scratch = Scratch::default();
        let finding = Engine::Builtin.examine(value.as_bytes(), Kind::Free, Rules::up_to(1), &mut scratch)?;
        Some(finding.rule.id())
    }

    #[test]
    fn patterns_fit_into_their_sets_and_their_literals_can_occur() {
        assert!(PATTERNS.len() <= 64 && Rule::COUNT <= 64);
        let builtin = Builtin::compile();
        assert_eq!(builtin.patterns.len(), PATTERNS.len());
        for pattern in PATTERNS {
            assert!(!pattern.literals.is_empty() || pattern.gate != Gate::Open);
            for literal in pattern.literals {
                assert_eq!(*literal, literal.to_ascii_lowercase());
                assert!(!literal.contains(' '), "a comment may stand for a space: {literal}");
            }
        }
    }

    #[test]
    fn a_value_is_judged_in_each_of_its_forms() {
        assert_eq!(find("1 union select 1,2"), Some("sqli-union"));
        assert_eq!(find("1/**/union/*!50000select*/1,2"), Some("sqli-union"));
        assert_eq!(find("%3Cscript%3E"), Some("xss-tag"));
        assert_eq!(find("%253Cscript%253E"), Some("xss-tag"));
        assert_eq!(find("%25253Cscript%25253E"), None, "three rounds are no one's");
        assert_eq!(find("java\tscr\nipt:alert(1)"), Some("xss-scheme"));
        assert_eq!(find("O'Brien"), None);
        assert_eq!(find("Please select a table from the list and order by phone."), None);
    }

    #[test]
    fn a_long_beginning_hides_nothing() {
        for length in [100, 1_000, 100_000] {
            assert!(find(&format!("{}' or 1=1--", "a".repeat(length))).is_some(), "{length}");
            assert!(find(&format!("{}' like 'x", "a".repeat(length))).is_some(), "{length}");
            assert!(find(&format!("{}<svg/onload=alert(1)>", "a b ".repeat(length))).is_some(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(value in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut scratch = Scratch::default();
            Engine::Builtin.examine(&value, Kind::Free, Rules::up_to(4), &mut scratch);
        }

        #[test]
        fn pieces_of_sql_and_markup_are_judged(
            value in "('|\"|`|/\\*|\\*/|--|#|\\\\|0x|1e|\\.|@@|\\$\\$|\\$a\\$|q'|nq'\\(|u&'|x'|\\[|\\{|<!--|<!\\[CDATA\\[|<!|<\\?|<%|&#x?|;|=|union|select| |or|1|\\(|\\)|on|style|\u{a0}|\0|\n|~|\\+|:=|N'|<a|>){0,40}"
        ) {
            let mut scratch = Scratch::default();
            Engine::Builtin.examine(value.as_bytes(), Kind::Free, Rules::up_to(4), &mut scratch);
        }
    }
}
