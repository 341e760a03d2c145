//! Where a chunked body ends (RFC 9112, section 7.1).
//!
//! hyper decodes the body; this only follows it, to know at which byte the next request begins. It
//! takes a subset of what hyper takes and is therefore never of another opinion: what it refuses ends
//! the connection.

/// Bytes of chunk extensions of one body. Nobody uses them but to exhaust parsers.
const EXTENSIONS_MAX: usize = 4 << 10;

/// Bytes of one body's trailer section.
const TRAILERS_MAX: usize = 8 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    SizeFirst,
    Size,
    /// Whitespace after a size, before an extension.
    SizeSpace,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerFirst,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
}

/// Follows one body.
#[derive(Debug)]
pub(crate) struct Chunked {
    state: State,
    /// Of the current chunk's data.
    left: u64,
    extensions: usize,
    trailers: usize,
}

/// What a piece of the body amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Bytes that belong to the body; all of the piece unless `ended`.
    pub(crate) used: usize,
    pub(crate) ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Chunked {
    pub(crate) fn new() -> Self {
        Self { state: State::SizeFirst, left: 0, extensions: 0, trailers: 0 }
    }

    pub(crate) fn advance(&mut self, piece: &[u8]) -> Result<Progress, Malformed> {
        let mut at = 0;
        while at < piece.len() {
            if self.state == State::Data {
                let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(piece.len() - at);
                self.left -= skipped as u64;
                at += skipped;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                continue;
            }
            let byte = piece[at];
            at += 1;
            if self.state == State::EndLf {
                return if byte == b'\n' { Ok(Progress { used: at, ended: true }) } else { Err(Malformed) };
            }
            self.state = self.step(byte)?;
        }
        Ok(Progress { used: at, ended: false })
    }

    fn step(&mut self, byte: u8) -> Result<State, Malformed> {
        match (self.state, byte) {
            (State::SizeFirst | State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.digit(byte),
            (State::Size | State::SizeSpace, b' ' | b'\t') => self.extension(State::SizeSpace),
            (State::Size | State::SizeSpace, b';') => self.extension(State::Extension),
            // Space is for what stands before an extension (RFC 9112, section 7.1.1).
            (State::Size | State::Extension, b'\r') => Ok(State::SizeLf),
            (State::Extension, b'\t' | 0x20..=0x7e | 0x80..) => self.extension(State::Extension),
            (State::SizeLf, b'\n') => Ok(if self.left == 0 { State::TrailerFirst } else { State::Data }),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::SizeFirst),
            (State::TrailerFirst, b'\r') => Ok(State::EndLf),
            (State::TrailerFirst, b) if is_name_byte(b) => self.trailer(State::TrailerName),
            (State::TrailerName, b) if is_name_byte(b) => self.trailer(State::TrailerName),
            (State::TrailerName, b':') => self.trailer(State::TrailerValue),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, b'\t' | 0x20..=0x7e | 0x80..) => self.trailer(State::TrailerValue),
            (State::TrailerLf, b'\n') => self.trailer(State::TrailerFirst),
            _ => Err(Malformed),
        }
    }

    fn digit(&mut self, byte: u8) -> Result<State, Malformed> {
        let digit = char::from(byte).to_digit(16).ok_or(Malformed)?;
        self.left =
            self.left.checked_mul(16).and_then(|n| n.checked_add(u64::from(digit))).ok_or(Malformed)?;
        // Leading zeros without end would be a way to send for ever.
        self.extension(State::Size)
    }

    fn extension(&mut self, next: State) -> Result<State, Malformed> {
        self.extensions += usize::from(next != State::Size || self.left == 0);
        if self.extensions > EXTENSIONS_MAX { Err(Malformed) } else { Ok(next) }
    }

    fn trailer(&mut self, next: State) -> Result<State, Malformed> {
        self.trailers += 1;
        if self.trailers > TRAILERS_MAX { Err(Malformed) } else { Ok(next) }
    }
}

/// A narrow reading of a field name: what trailers are called in practice.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// Entry for fuzzing: a body ends at the same byte, or breaks, however it is cut.
pub(super) fn any_bytes(body: &[u8]) {
    let whole = Chunked::new().advance(body);
    let (mut pieces, mut used) = (Chunked::new(), 0);
    let mut seen = Ok(Progress { used: 0, ended: false });
    for byte in body {
        seen = pieces.advance(std::slice::from_ref(byte)).map(|Progress { used: more, ended }| {
            used += more;
            Progress { used, ended }
        });
        if !matches!(seen, Ok(Progress { ended: false, .. })) {
            break;
        }
    }
    assert_eq!(whole, seen);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn end(text: &str) -> Result<Progress, Malformed> {
        Chunked::new().advance(text.as_bytes())
    }

    #[test]
    fn a_body_ends_after_its_last_chunk_and_trailers() {
        for body in [
            "0\r\n\r\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "A\r\n0123456789\r\n0\r\n\r\n",
            "1;a=b\r\nx\r\n0\r\n\r\n",
            "1 ;a\r\nx\r\n00\r\n\r\n",
            "1\r\nx\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\n",
        ] {
            let text = format!("{body}GET / HTTP/1.1\r\n");
            assert_eq!(end(&text), Ok(Progress { used: body.len(), ended: true }), "{body:?}");
        }
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        for body in [
            "\r\n",
            "g\r\n",
            " 5\r\n",
            "0x5\r\n",
            "-1\r\n",
            "5\nhello",
            "5 \r\nhello\r\n0\r\n\r\n",
            "5\r\rhello",
            "5\r\nhelloX",
            "5\r\nhello\n",
            "5\r\nhello\rX",
            "1;a\nb",
            "1;a\rb",
            "1 2\r\n",
            "0\r\n\n",
            "0\r\nX\r\n",
            "0\r\n X: a\r\n",
            "0\r\nX : a\r\n",
            "0\r\nX: a\n",
            "0\r\n\rX",
            "11111111111111111\r\n",
        ] {
            assert_eq!(end(body), Err(Malformed), "{body:?}");
        }
    }

    #[test]
    fn extensions_trailers_and_zeros_are_bounded() {
        assert_eq!(end(&format!("1;{}", "a".repeat(EXTENSIONS_MAX + 1))), Err(Malformed));
        assert_eq!(end(&"0".repeat(EXTENSIONS_MAX + 2)), Err(Malformed));
        assert_eq!(end(&format!("0\r\nX:{}", "a".repeat(TRAILERS_MAX + 1))), Err(Malformed));
    }

    proptest! {
        #[test]
        fn pieces_end_where_the_whole_ends(
            text in "([0-9a-f]{1,2}(;[a-z]{0,3})?\r?\n[a-z]{0,20}\r\n){0,4}0\r\n(X:[a-z]{0,3}\r\n){0,2}\r\n[A-Z]{0,9}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let bytes = text.as_bytes();
            let whole = end(&text);
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            ends.sort_unstable();
            ends.push(bytes.len());
            let (mut follower, mut from) = (Chunked::new(), 0);
            let mut verdict = Ok(Progress { used: 0, ended: false });
            for to in ends {
                verdict = follower.advance(&bytes[from..to]);
                if let Ok(progress) = &mut verdict {
                    progress.used += from;
                    if !progress.ended {
                        from = to;
                        continue;
                    }
                }
                break;
            }
            prop_assert_eq!(verdict, whole);
        }
    }
}
