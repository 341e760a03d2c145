//! Regular expressions, written for PCRE and run by automata.
//!
//! A pattern is rewritten to the syntax of `regex` ([`translated`]), byte by byte and without Unicode, as ModSecurity
//! has PCRE do it. What automata can't do (looking around, possessive and atomic groups, references back) is left to
//! `fancy-regex`, whose steps are bounded. Of what a pattern needs at least one of some words is told
//! ([`required`]), so that most patterns need not run at all.

use std::ops::Range;

use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::hir::{Class, Hir, HirKind};

/// Memory of a compiled pattern, and of its automaton while it runs, for each worker.
const SIZE_MAX: usize = 8 << 20;
const AUTOMATON_MAX: usize = 256 << 10;

/// Steps of a pattern that is no automaton, for one value.
const STEPS_MAX: usize = 200_000;

/// A pattern that needs more words than that, or shorter ones, runs always.
const WORDS_MAX: usize = 400;
const WORD_MIN: usize = 2;
const WORD_MAX: usize = 24;

/// Cheap to clone; each clone has memory of its own to run in.
#[derive(Clone, Debug)]
pub(crate) enum Pattern {
    Automaton(Regex),
    Steps(fancy_regex::Regex),
}

/// A pattern took too many steps.
#[derive(Debug)]
pub(crate) struct Exhausted;

impl Pattern {
    pub(crate) fn new(pattern: &str) -> Result<Self, String> {
        let translated = translated(pattern)?;
        let built = RegexBuilder::new(&translated)
            .unicode(false)
            .dot_matches_new_line(true)
            .size_limit(SIZE_MAX)
            .dfa_size_limit(AUTOMATON_MAX)
            .build();
        match built {
            Ok(regex) => Ok(Self::Automaton(regex)),
            Err(why) => Self::steps(&translated).map_err(|other| {
                let is_other = needs_steps(pattern) || unbounded(&translated).is_some();
                if is_other { other } else { reason(&why) }
            }),
        }
    }

    fn steps(translated: &str) -> Result<Self, String> {
        if let Some(why) = unbounded(translated) {
            return Err(why.to_owned());
        }
        fancy_regex::RegexBuilder::new(translated)
            .unicode_mode(false)
            .dot_matches_new_line(true)
            .bytes_mode(fancy_regex::BytesMode::Ascii)
            .backtrack_limit(STEPS_MAX)
            .delegate_size_limit(SIZE_MAX)
            .delegate_dfa_size_limit(AUTOMATON_MAX)
            .build()
            .map(Self::Steps)
            .map_err(|why| why.to_string())
    }

    /// Where it fits first.
    pub(crate) fn find(&self, text: &[u8]) -> Result<Option<Range<usize>>, Exhausted> {
        match self {
            Self::Automaton(regex) => Ok(regex.find(text).map(|found| found.range())),
            Self::Steps(regex) => match regex.find(text) {
                Ok(found) => Ok(found.map(|found| found.start()..found.end())),
                Err(_) => Err(Exhausted),
            },
        }
    }

    /// Its groups, the whole first, at most ten.
    pub(crate) fn groups(&self, text: &[u8]) -> Vec<Range<usize>> {
        match self {
            Self::Automaton(regex) => {
                let groups = regex.captures(text);
                let groups = groups.iter().flat_map(|groups| groups.iter());
                groups.take(10).map(|group| group.map_or(0..0, |group| group.range())).collect()
            }
            Self::Steps(regex) => match regex.captures(text) {
                Ok(Some(groups)) => {
                    let range = |at| groups.get(at).map_or(0..0, |group| group.start()..group.end());
                    (0..groups.len().min(10)).map(range).collect()
                }
                _ => Vec::new(),
            },
        }
    }
}

fn reason(why: &regex::Error) -> String {
    match why {
        regex::Error::CompiledTooBig(_) => format!("the pattern takes more than {SIZE_MAX} bytes of memory"),
        // The message shows the pattern over several lines; its last one says what is wrong.
        why => why.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    }
}

/// Looks around, or back, or holds on.
fn needs_steps(pattern: &str) -> bool {
    ["(?<!", "(?<=", "(?!", "(?=", "(?>", "++", "*+", "?+", "}+", "\\1", "\\2", "\\3", "\\g", "\\k"]
        .iter()
        .any(|sign| pattern.contains(sign))
}

const CALLS: &str = "a pattern that calls a group or itself (\\g, (?1), (?R), (?&name)) is not supported";

/// Why a pattern may not be compiled, since that has no bound: for each group up to one that a reference (`\1`, `\k{1}`,
/// `(?(1)...`) names room is taken, before it is looked whether it is there; and a group that is called (`\g<1>`,
/// `(?1)`, `(?R)`, `(?&name)`) is put in its place, within itself as well.
fn unbounded(pattern: &str) -> Option<&'static str> {
    const DIGITS_MAX: usize = 4;
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        let is_number = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
        let reference = if c == '\\' {
            if let Some(after) = after.strip_prefix('\\') {
                rest = after;
                continue;
            }
            if after.starts_with('g') {
                return Some(CALLS);
            }
            after.strip_prefix('k').unwrap_or(after).trim_start_matches(['<', '{', '\'', '+', '-'])
        } else if let Some(group) = rest.strip_prefix("(?") {
            if ["R", "&", "P>"].iter().any(|call| group.starts_with(call))
                || is_number(group.trim_start_matches(['+', '-']))
            {
                return Some(CALLS);
            }
            group.trim_start_matches(['(', '<', '\'', '+', '-'])
        } else {
            ""
        };
        if reference.bytes().take_while(u8::is_ascii_digit).count() > DIGITS_MAX {
            return Some("a reference to a group has at most four digits");
        }
        rest = after;
    }
    None
}

/// What PCRE writes otherwise than `regex`. What only one of them knows is refused: it would mean something else.
fn translated(pattern: &str) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    let mut class = Bracket::Out;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        match c {
            '\\' => {
                rest = escape(after, class != Bracket::Out, &mut out)?;
                class = class.inside();
                continue;
            }
            '[' if class == Bracket::Out => {
                out.push('[');
                class = Bracket::Begun;
                rest = after;
                if let Some(after) = rest.strip_prefix('^') {
                    out.push('^');
                    rest = after;
                }
                continue;
            }
            '[' => match posix(rest) {
                Some((name, after)) => {
                    out.push_str(name);
                    rest = after;
                    class = class.inside();
                    continue;
                }
                None => out.push_str("\\["),
            },
            // One that stands first is itself.
            ']' if class == Bracket::Begun => out.push_str("\\]"),
            ']' if class == Bracket::In => {
                out.push(']');
                class = Bracket::Out;
                rest = after;
                continue;
            }
            '&' | '~' if class != Bracket::Out => out.extend(['\\', c]),
            '-' if class != Bracket::Out && (after.starts_with('-') || out.ends_with('-')) => {
                out.push_str("\\-")
            }
            '(' if class == Bracket::Out => {
                options(after)?;
                out.push('(');
            }
            '{' if class == Bracket::Out && !is_count(after) => out.push_str("\\{"),
            c if !c.is_ascii() => {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    out.push_str(&format!("\\x{byte:02x}"));
                }
            }
            c => out.push(c),
        }
        class = class.inside();
        rest = after;
    }
    Ok(out)
}

/// Behind an opening parenthesis: options that `regex` knows, and PCRE does not, or not as options.
fn options(group: &str) -> Result<(), String> {
    let Some(text) = group.strip_prefix('?') else { return Ok(()) };
    let end = text.find(|c: char| !c.is_ascii_alphabetic() && c != '-').unwrap_or(text.len());
    let (options, behind) = text.split_at(end);
    match options {
        "R" => Err(CALLS.to_owned()),
        _ if behind.starts_with([')', ':']) && options.contains(['R', 'u']) => {
            Err(format!("PCRE has no options `(?{options}`"))
        }
        _ => Ok(()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bracket {
    Out,
    Begun,
    In,
}

impl Bracket {
    fn inside(self) -> Self {
        if self == Bracket::Out { Bracket::Out } else { Bracket::In }
    }
}

/// What is behind a backslash; returns what is behind that.
fn escape<'a>(text: &'a str, in_class: bool, out: &mut String) -> Result<&'a str, String> {
    let Some(c) = text.chars().next() else {
        out.push_str("\\\\");
        return Ok(text);
    };
    let after = &text[c.len_utf8()..];
    let bytes = text.as_bytes();
    let hex = |range: Range<usize>| {
        let digits = text.get(range)?;
        u8::from_str_radix(digits, 16).ok().filter(|_| digits.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let octal = || {
        let count = bytes.iter().take(3).take_while(|b| matches!(b, b'0'..=b'7')).count();
        let value = text.get(..count).and_then(|digits| u32::from_str_radix(digits, 8).ok())?;
        Some((value & 0xff, count))
    };
    Ok(match c {
        'x' | 'o' if bytes.get(1) == Some(&b'{') => {
            let (digits, after) = text[2..].split_once('}').unwrap_or_default();
            let radix = if c == 'x' { 16 } else { 8 };
            let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
            let byte = u8::from_str_radix(digits, radix).ok().filter(|_| is_number);
            let byte = byte.ok_or_else(|| format!("`\\{c}{{{digits}}}` is no byte"))?;
            out.push_str(&format!("\\x{byte:02x}"));
            after
        }
        'x' => {
            let (value, used) = match (hex(1..3), hex(1..2)) {
                (Some(value), _) => (value, 3),
                (None, Some(value)) => (value, 2),
                (None, None) => (0, 1),
            };
            out.push_str(&format!("\\x{value:02x}"));
            text.get(used..).unwrap_or_default()
        }
        '0' => {
            let (value, count) = octal().unwrap_or((0, 1));
            out.push_str(&format!("\\x{value:02x}"));
            text.get(count..).unwrap_or_default()
        }
        '1'..='9' if in_class => {
            let (value, count) = octal().filter(|(_, count)| *count > 0).unwrap_or((u32::from(c), 1));
            out.push_str(&format!("\\x{value:02x}"));
            text.get(count..).unwrap_or_default()
        }
        'h' => {
            out.push_str(if in_class { " \\t\\xa0" } else { "[ \\t\\xa0]" });
            after
        }
        'H' => {
            out.push_str("[^ \\t\\xa0]");
            after
        }
        'v' => {
            out.push_str(if in_class { "\\n-\\r\\x85" } else { "[\\n-\\r\\x85]" });
            after
        }
        'V' => {
            out.push_str("[^\\n-\\r\\x85]");
            after
        }
        'R' if !in_class => {
            out.push_str("(?:\\r\\n|[\\n-\\r\\x85])");
            after
        }
        'N' if !in_class && !after.starts_with('{') => {
            out.push_str("[^\\n]");
            after
        }
        'C' if !in_class => {
            out.push_str("[\\x00-\\xff]");
            after
        }
        'Q' => {
            let (quoted, after) = after.split_once("\\E").unwrap_or((after, ""));
            quoted.bytes().for_each(|byte| out.push_str(&format!("\\x{byte:02x}")));
            after
        }
        // Without a `\Q` before it.
        'E' => after,
        'c' => {
            let Some(control) = after.bytes().next().filter(|b| b.is_ascii_graphic()) else {
                return Err("behind `\\c` stands a letter or a sign".to_owned());
            };
            out.push_str(&format!("\\x{:02x}", control.to_ascii_uppercase() ^ 0x40));
            &after[1..]
        }
        'N' | 'X' | 'o' | 'R' | 'C' | 'u' | 'U' | 'l' | 'L' => {
            let place = if in_class { " in a class" } else { "" };
            return Err(format!("`\\{c}`{place} is not supported"));
        }
        'Z' if !in_class => {
            out.push_str("\\z");
            after
        }
        'e' => {
            out.push_str("\\x1b");
            after
        }
        'b' if in_class => {
            out.push_str("\\x08");
            after
        }
        // Letters that mean something to both.
        'a'
        | 'f'
        | 'n'
        | 'r'
        | 't'
        | 'd'
        | 'D'
        | 's'
        | 'S'
        | 'w'
        | 'W'
        | 'b'
        | 'B'
        | 'A'
        | 'z'
        | 'p'
        | 'P'
        | '1'..='9'
        | 'g'
        | 'k'
        | 'G'
        | 'K' => {
            out.extend(['\\', c]);
            after
        }
        // A boundary to `regex`, themselves to PCRE; and letters without a meaning to either.
        '<' | '>' | ' ' | '\n' | '\t' => {
            out.push(c);
            after
        }
        c if c.is_ascii_alphanumeric() => {
            out.push(c);
            after
        }
        c if c.is_ascii() => {
            out.extend(['\\', c]);
            after
        }
        _ => text,
    })
}

/// A class by name, as `[:alpha:]`.
fn posix(text: &str) -> Option<(&str, &str)> {
    let end = text.strip_prefix("[:")?.find(":]")? + 4;
    let (name, after) = text.split_at_checked(end)?;
    name[2..end - 2].bytes().all(|b| b.is_ascii_alphabetic() || b == b'^').then_some((name, after))
}

fn is_count(text: &str) -> bool {
    let Some(end) = text.find('}') else { return false };
    let (least, most) = text[..end].split_once(',').unwrap_or((&text[..end], ""));
    !least.is_empty() && least.bytes().chain(most.bytes()).all(|b| b.is_ascii_digit())
}

// === what a pattern can't do without ===

/// Words in lower case of which a text has at least one, in whichever case, if the pattern fits; `None`: it can't be
/// told, or by too many.
pub(crate) fn required(pattern: &str) -> Option<Vec<Vec<u8>>> {
    let translated = translated(pattern).ok()?;
    let mut parser = regex_syntax::ParserBuilder::new();
    let parser = parser.unicode(false).utf8(false).dot_matches_new_line(true);
    let hir = parser.build().parse(&translated).ok()?;
    let words = needs(&hir)?;
    (!words.is_empty() && words.len() <= WORDS_MAX && words.iter().all(|word| word.len() >= WORD_MIN))
        .then_some(words)
}

/// How good a set of words is: the shortest of them tells.
fn worth(words: &[Vec<u8>]) -> usize {
    let shortest = words.iter().map(Vec::len).min().unwrap_or(0);
    shortest.min(6) * 1_000 / (words.len() + 20)
}

fn needs(hir: &Hir) -> Option<Vec<Vec<u8>>> {
    match hir.kind() {
        HirKind::Capture(capture) => needs(&capture.sub),
        HirKind::Repetition(repetition) if repetition.min > 0 => needs(&repetition.sub),
        HirKind::Literal(_) | HirKind::Class(_) => exact(hir),
        HirKind::Concat(parts) => {
            let mut best: Option<Vec<Vec<u8>>> = None;
            let mut consider = |words: Option<Vec<Vec<u8>>>| {
                let better = |words: &Vec<Vec<u8>>| {
                    words.len() <= WORDS_MAX && best.as_ref().is_none_or(|best| worth(words) > worth(best))
                };
                if let Some(words) = words.filter(better) {
                    best = Some(words);
                }
            };
            // Parts that are known by themselves, in a row.
            let mut run: Option<Vec<Vec<u8>>> = None;
            for part in parts {
                let of_part = exact(part);
                run = match (run.take(), &of_part) {
                    (Some(run), Some(words)) => match joined(&run, words) {
                        Some(longer) => Some(longer),
                        None => {
                            consider(Some(run));
                            of_part.clone()
                        }
                    },
                    (run, _) => {
                        consider(run);
                        of_part.clone()
                    }
                };
                if of_part.is_none() {
                    consider(needs(part));
                }
            }
            consider(run);
            best
        }
        HirKind::Alternation(parts) => {
            let mut all = Vec::new();
            for part in parts {
                all.extend(needs(part)?);
                if all.len() > WORDS_MAX {
                    return None;
                }
            }
            all.sort_unstable();
            all.dedup();
            Some(all)
        }
        _ => None,
    }
}

/// Everything that it may be, in lower case and cut short, if that is little.
fn exact(hir: &Hir) -> Option<Vec<Vec<u8>>> {
    match hir.kind() {
        HirKind::Literal(literal) => Some(vec![literal.0.to_ascii_lowercase()]),
        HirKind::Class(class) => {
            let mut bytes: Vec<u8> = Vec::new();
            let mut add = |from: u32, to: u32| -> Option<()> {
                if to > 0xff || to - from > 8 {
                    return None;
                }
                bytes
                    .extend((from..=to).filter_map(|b| u8::try_from(b).ok()).map(|b| b.to_ascii_lowercase()));
                Some(())
            };
            match class {
                Class::Bytes(class) => {
                    class.ranges().iter().try_for_each(|r| add(u32::from(r.start()), u32::from(r.end())))?;
                }
                Class::Unicode(class) => {
                    class.ranges().iter().try_for_each(|r| add(u32::from(r.start()), u32::from(r.end())))?;
                }
            }
            bytes.sort_unstable();
            bytes.dedup();
            (!bytes.is_empty() && bytes.len() <= 4).then(|| bytes.iter().map(|b| vec![*b]).collect())
        }
        HirKind::Capture(capture) => exact(&capture.sub),
        HirKind::Alternation(parts) => {
            let mut all = Vec::new();
            for part in parts {
                all.extend(exact(part)?);
                if all.len() > 64 {
                    return None;
                }
            }
            Some(all)
        }
        HirKind::Concat(parts) => {
            let mut all = vec![Vec::new()];
            for part in parts {
                all = joined(&all, &exact(part)?)?;
            }
            Some(all)
        }
        _ => None,
    }
}

fn joined(first: &[Vec<u8>], second: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    if first.len() * second.len() > 64 || first.iter().any(|word| word.len() > WORD_MAX) {
        return None;
    }
    Some(first.iter().flat_map(|a| second.iter().map(|b| [a.as_slice(), b].concat())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(pattern: &str, text: &str) -> bool {
        Pattern::new(pattern).unwrap().find(text.as_bytes()).unwrap().is_some()
    }

    #[test]
    fn what_would_be_compiled_without_a_bound_is_refused() {
        let refused = |pattern: &str| Pattern::new(pattern).expect_err("it is refused");
        for far in [r"(a)\2671685606942528852>", r"(a)\k<2671685606942528852>(?=b)", r"(a)(?=b)(?(99999)a|b)"]
        {
            assert!(refused(far).contains("four digits"), "{far}: {}", refused(far));
        }
        for call in [
            r"a|:\g0,:s\g0m",
            r"(a)\g<1>",
            r"(a)(?1)",
            r"(a)(?-1)",
            "a(?R)?",
            "(?R)",
            "a(?R)",
            "(?<n>a)(?&n)",
            "(?P<n>a)(?P>n)",
        ] {
            assert!(refused(call).contains("calls a group"), "{call}: {}", refused(call));
        }
        assert!(fits(r"(a)\1(?=b)", "aab"));
        assert!(fits(r"\\12345(?=b)", r"\12345b"), "a backslash, and digits");
        assert!(fits(r"\\g(?=b)", r"\gb"));
        assert!(fits(r"(?-i)a(?=b)", "ab"));
    }

    #[test]
    fn patterns_of_pcre_mean_the_same() {
        for (pattern, yes, no) in [
            (r"[^[\x5c\]]+a[[b]", "xa[", "xac"),
            (r"[]a]b", "]b", "cb"),
            (r"a{b", "a{b", "ab"),
            (r"{foo}", "{foo}", "foo"),
            (r"a{2}", "aa", "a"),
            (r"\<b\>", "<b>", "b"),
            (r"[a&&b]", "&", "c"),
            (r"[+--/]", "-", "a"),
            (r"\x5ca", "\\a", "a"),
            (r"a\hb", "a b", "a-b"),
            (r"[[:alpha:]]1", "a1", "11"),
            (r"[\0-\10]", "\x05", "a"),
            ("[´’]", "’", "a"),
            (r"a.b", "a\nb", "ab"),
            (r"(?<!a)b", "cb", "ab"),
            (r"a++b", "aab", "b"),
            (r"(a|b)\1", "aa", "ab"),
            (r"^(?i)ab$", "AB", "AB\n"),
            (r"[\b]", "\x08", "b"),
            (r"\_\-\/\:\'\%u", "_-/:'%u", "u"),
            (r"^a\x{2f}b$", "a/b", "a2f}b"),
            (r"^[\x{2f}]$", "/", "2"),
            (r"^\o{101}[\o{102}]$", "AB", "o{101}B"),
            (r"^a\Nb$", "a b", "aNb\n"),
            (r"^a\Nb$", "axb", "a\nb"),
            (r"^\H[\H1]$", "xx", " x"),
            (r"^\v[\v]$", "\n\x0c", "vv"),
            (r"^\V[\V]$", "vx", "\nx"),
            (r"^a\Rb$", "a\r\nb", "aRb"),
            (r"^\Qa.b[(\E+$", "a.b[((", "aXb[("),
            (r"^[\Q]^\E]+$", "^]", "Q"),
            (r"^a\Eb$", "ab", "aEb"),
            (r"^\cA\c[$", "\x01\x1b", "cAc["),
            (r"^\C$", "\n", ""),
            (r"a\Kb", "ab", "aKb"),
            (r"\Gab", "ab", "Gab"),
            (r"\(?R\(?u:[(?R]", "R(u:R", "R"),
            (r"(?i-s:A)", "a", "b"),
        ] {
            assert!(fits(pattern, yes) && !fits(pattern, no), "{pattern}: {:?}", translated(pattern));
        }
        let latin = Pattern::new(r"^\x{e9}\h[\h]$").unwrap();
        assert!(latin.find(b"\xe9\xa0 ").unwrap().is_some());
        for pattern in [
            r"\X",
            r"\x{100}",
            r"\x{zz}",
            r"\x{}",
            r"\x{2f",
            r"\o101",
            r"\o{777}",
            r"\o{9}",
            r"\u0041",
            r"\N{U+41}",
            r"[\N]",
            r"[\R]",
            r"[\X]",
            r"\L",
            r"\c",
            "(?u)a",
            "(?iR:a)",
        ] {
            assert!(Pattern::new(pattern).is_err(), "{pattern}");
        }
        assert!(Pattern::new("(").unwrap_err().contains("unclosed group"));
        assert!(Pattern::new("(?:a{1000}){1000}").unwrap_err().contains("memory"));
    }

    #[test]
    fn what_is_no_automaton_gives_up() {
        let pattern = Pattern::new(r"^(?:(?=a)a+)+(?=b)").unwrap();
        assert!(pattern.find(format!("{}!!", "a".repeat(200)).as_bytes()).is_err());
    }

    #[test]
    fn required_words_are_in_whatever_fits() {
        let of = |pattern: &str| {
            let words = required(pattern)?;
            Some(words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect::<Vec<_>>())
        };
        assert_eq!(of(r"(?i)union\s+(?:all\s+)?select"), Some(vec!["select".into()]));
        assert_eq!(of(r"(?i:sleep\(\s*\d|benchmark\()"), Some(vec!["benchmark(".into(), "sleep(".into()]));
        assert_eq!(of(r"\bfo[ox]bar"), Some(vec!["foobar".into(), "foxbar".into()]));
        assert_eq!(of(r"\d+"), None);
        assert_eq!(of(r"abc|\d"), None);
        assert_eq!(of(r"(?:abc)?x"), None);
    }
}
