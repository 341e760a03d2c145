//! Whether a regular expression fits any path that there can be: paths are matched in their normal form.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::literal::{Extractor, Literal};

use crate::path::{PathError, normalise};

/// Why none fits. Goes by what a path would have to begin with, so it finds slips, not everything.
pub(super) fn never(pattern: &str) -> Option<&'static str> {
    let parsed = ParserBuilder::new().utf8(false).build().parse(pattern).ok()?;
    let beginnings = Extractor::new().extract(&parsed);
    // None at all: it matches nothing, which is what somebody wants.
    let beginnings = beginnings.literals().filter(|all| !all.is_empty())?;
    let faults: Option<Vec<_>> = beginnings.iter().map(fault).collect();
    faults?.first().copied()
}

fn fault(beginning: &Literal) -> Option<&'static str> {
    let bytes = beginning.as_bytes();
    match bytes.first() {
        Some(b'/') => {}
        None if !beginning.is_exact() => return None,
        // That of OPTIONS.
        Some(b'*') => return None,
        _ => return Some("a path begins with `/`, so this never matches"),
    }
    let text = std::str::from_utf8(bytes).ok()?;
    // What follows may complete the last segment and the last encoding.
    let whole = if beginning.is_exact() { text } else { &text[..=settled(text)] };
    match normalise(whole, false) {
        Ok(normal) if normal == whole => None,
        Err(PathError::Percent) if !beginning.is_exact() => None,
        _ => Some("this never matches, paths are normalised first"),
    }
}

/// Where the last segment begins.
fn settled(text: &str) -> usize {
    text.rfind('/').unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_no_path_is_told() {
        for pattern in [
            "a.*",
            "",
            "(a|b)/c",
            "^a/.*",
            "/%41",
            "/%41/.*",
            "/%2f",
            "/a/%2f/[0-9]+",
            r"/zzz/\.\./b",
            r"/\./.*",
            "/a%",
            "/%00",
            "(?:/%41|b)",
        ] {
            assert!(never(pattern).is_some(), "{pattern}");
        }
    }

    #[test]
    fn what_may_fit_one_is_not() {
        for pattern in [
            "/",
            "/a.*",
            ".*",
            "(/a)?",
            "(/a|b)",
            "^/a$",
            r".*\.php",
            r"/\..*",
            r"/\.\.\..*",
            "/%2F",
            "(?i)/%2f",
            "/%2F/.*",
            "/a%[2-5]F",
            "[^x]*",
            "/zzz/../b",
            r"\*",
            "[/a]b",
            "(?i)/Café",
            "[a&&b]",
        ] {
            assert_eq!(never(pattern), None, "{pattern}");
        }
    }
}
