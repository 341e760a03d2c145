//! Lines of a rule file, taken apart into directives and their words, as Apache reads them.

use crate::Fault;

/// A directive: its words, and where it begins.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) number: usize,
    pub(crate) words: Vec<String>,
}

/// Reads `text`, whose first line has number `first`.
pub(crate) fn lines(text: &str, first: usize) -> Result<Vec<Line>, Fault> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in (first..).zip(text.lines()) {
        let (begun, mut whole) = open.take().unwrap_or_else(|| (number, String::new()));
        match line.strip_suffix('\\') {
            Some(part) => {
                whole.push_str(part);
                open = Some((begun, whole));
            }
            None => {
                whole.push_str(line);
                found.extend(line_of(begun, &whole)?);
            }
        }
    }
    if let Some((begun, whole)) = open {
        found.extend(line_of(begun, &whole)?);
    }
    Ok(found)
}

fn line_of(number: usize, text: &str) -> Result<Option<Line>, Fault> {
    let text = text.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    let words = words(text).map_err(|why| Fault::at(number, why))?;
    Ok(Some(Line { number, words }))
}

fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut rest = text.chars().peekable();
    loop {
        while rest.next_if(|c| c.is_whitespace()).is_some() {}
        let Some(&first) = rest.peek() else { return Ok(words) };
        let quote = matches!(first, '"' | '\'').then_some(first);
        if quote.is_some() {
            rest.next();
        }
        let mut word = String::new();
        loop {
            match (rest.next(), quote) {
                (Some(c), Some(quote)) if c == quote => {
                    if rest.peek().is_some_and(|c| !c.is_whitespace()) {
                        return Err("a word goes on behind its closing quote: is a quote missing before it?");
                    }
                    break;
                }
                (Some(c), None) if c.is_whitespace() => break,
                // A backslash hides a quote and another backslash, and else is itself.
                (Some('\\'), _) => match rest.next_if(|c| *c == '\\' || Some(*c) == quote) {
                    Some(c) => word.push(c),
                    None => word.push('\\'),
                },
                (Some(c), _) => word.push(c),
                (None, None) => break,
                (None, Some(_)) => return Err("a quote is not closed"),
            }
        }
        words.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_on_behind_a_backslash_and_words_stand_in_quotes() {
        let text =
            "# a comment\n\nSecRule ARGS \"@rx \\\"a b\\\\x\\d\" \\\n  \"id:1,\\\n  deny\"\nSecMarker END";
        let found = lines(text, 10).unwrap();
        assert_eq!(found[0].number, 12);
        assert_eq!(found[0].words, ["SecRule", "ARGS", "@rx \"a b\\x\\d", "id:1,  deny"]);
        assert_eq!(found[1], Line { number: 15, words: vec!["SecMarker".into(), "END".into()] });
        assert_eq!(lines("SecRule \"a", 1).unwrap_err().line, 1);
        let merged = lines("SecRule ARGS \"@rx x \"id:1,phase:2,deny", 1).unwrap_err();
        assert!(merged.to_string().contains("closing quote"), "{merged}");
    }
}
