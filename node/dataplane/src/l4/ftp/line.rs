//! Lines of a control connection, and what Telnet may put in them (RFC 959 section 4, RFC 854).

use std::borrow::Cow;

/// Bytes of a line with its end. Paths may have 4,096; nobody needs more for a command or a reply.
pub(super) const LINE_MAX: usize = 8 << 10;

/// A line is longer than [`LINE_MAX`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

/// One direction's bytes, taken apart into lines. A line ends with LF: a peer that also takes CR for an end
/// must not see a command that was not looked at here, so a bare CR in a command is refused elsewhere.
#[derive(Debug, Default)]
pub(super) struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// The next whole line with its end, which is taken from `bytes`; `None`: what is left of them was kept.
    pub(super) fn next<'b>(&mut self, bytes: &mut &'b [u8]) -> Result<Option<Cow<'b, [u8]>>, TooLong> {
        let end = memchr::memchr(b'\n', bytes).map_or(bytes.len(), |at| at + 1);
        let (piece, rest) = bytes.split_at(end);
        *bytes = rest;
        if self.begun.len() + piece.len() > LINE_MAX {
            return Err(TooLong);
        }
        let is_whole = piece.ends_with(b"\n");
        if is_whole && self.begun.is_empty() {
            return Ok(Some(Cow::Borrowed(piece)));
        }
        self.begun.extend_from_slice(piece);
        Ok(is_whole.then(|| Cow::Owned(self.take())))
    }

    /// What has come of a line that has no end yet.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.begun)
    }
}

/// Without its end.
pub(super) fn text(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Without commands of Telnet, such as those that announce an `ABOR`. A doubled 255 is one of a text, and stays
/// doubled; one before anything else is what a client wrote that knows nothing of Telnet.
pub(super) fn without_telnet(text: &[u8]) -> Cow<'_, [u8]> {
    const IAC: u8 = 255;
    let Some(first) = memchr::memchr(IAC, text) else { return Cow::Borrowed(text) };
    let mut kept = text[..first].to_vec();
    let mut rest = &text[first..];
    while let [byte, after @ ..] = rest {
        rest = match (*byte, after) {
            (IAC, [IAC, after @ ..]) => {
                kept.extend([IAC, IAC]);
                after
            }
            // WILL, WONT, DO, DONT have an option behind them; at a line's end it is the end that was cut off.
            (IAC, [251..=254, after @ ..]) => after.get(1..).unwrap_or_default(),
            (IAC, [240..=250, after @ ..]) => after,
            (byte, after) => {
                kept.push(byte);
                after
            }
        };
    }
    Cow::Owned(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        for mut piece in pieces.iter().copied() {
            while let Some(line) = lines.next(&mut piece).expect("short") {
                found.push(line.into_owned());
            }
            assert!(piece.is_empty());
        }
        found
    }

    #[test]
    fn lines_end_with_lf_however_they_are_cut() {
        let expected = [&b"USER a\r\n"[..], b"\n", b"PASS\rb\n"].map(<[u8]>::to_vec);
        assert_eq!(lines(&[b"USER a\r\n\nPASS\rb\nrest"]), expected);
        let whole = b"USER a\r\n\nPASS\rb\nrest";
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(lines(&bytes), expected);
    }

    #[test]
    fn a_line_has_a_longest_length_with_or_without_an_end() {
        let long = vec![b'x'; LINE_MAX];
        let mut lines = Lines::default();
        assert_eq!(lines.next(&mut &long[..]), Ok(None));
        assert_eq!(lines.next(&mut &b"\n"[..]), Err(TooLong));
        let mut whole = long.clone();
        whole[LINE_MAX - 1] = b'\n';
        assert_eq!(
            Lines::default().next(&mut &whole[..]).map(|line| line.map(Cow::into_owned)),
            Ok(Some(whole))
        );
        assert_eq!(Lines::default().next(&mut &[&long[..], b"\n"].concat()[..]), Err(TooLong));
    }

    #[test]
    fn telnet_is_taken_out_of_a_text() {
        for (text, expected) in [
            (&b"ABOR"[..], &b"ABOR"[..]),
            (b"\xff\xf4\xff\xf2ABOR", b"ABOR"),
            (b"\xff\xf4\xf2ABOR", b"\xf2ABOR"),
            (b"PO\xff\xf1RT 1", b"PORT 1"),
            (b"\xff\xfd\x06PORT 1", b"PORT 1"),
            (b"RETR \xff\xffy", b"RETR \xff\xffy"),
            (b"RETR \xffy", b"RETR \xffy"),
            (b"RETR \xff", b"RETR \xff"),
            (b"NOOP\xff\xfd", b"NOOP"),
            (b"\xff\xff\xf4PORT", b"\xff\xff\xf4PORT"),
        ] {
            assert_eq!(without_telnet(text), expected, "{}", text.escape_ascii());
        }
    }
}
