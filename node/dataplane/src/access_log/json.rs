//! Lines that are JSON objects.

/// Writes one JSON object, member by member.
pub(crate) struct Object<'a> {
    out: &'a mut Vec<u8>,
    numbers: itoa::Buffer,
}

impl<'a> Object<'a> {
    pub(crate) fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, numbers: itoa::Buffer::new() }
    }

    /// `name` needs no escaping; the value gets it.
    pub(crate) fn text(&mut self, name: &str, value: &[u8]) -> &mut Self {
        self.name(name);
        self.out.push(b'"');
        escape(value, self.out);
        self.out.push(b'"');
        self
    }

    pub(crate) fn number(&mut self, name: &str, value: u64) -> &mut Self {
        self.name(name);
        self.out.extend_from_slice(self.numbers.format(value).as_bytes());
        self
    }

    /// Ends object and line.
    pub(crate) fn end(&mut self) {
        self.out.extend_from_slice(b"}\n");
    }

    fn name(&mut self, name: &str) {
        self.out.extend_from_slice(if self.out.last() == Some(&b'{') { b"\"" } else { b",\"" });
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }
}

/// RFC 8259, section 7. Bytes that are no ASCII are taken for Latin-1, so that a line is always valid.
fn escape(value: &[u8], out: &mut Vec<u8>) {
    for byte in value {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            0x20..=0x7e => out.push(*byte),
            _ => {
                const DIGITS: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.push(DIGITS[usize::from(byte >> 4)]);
                out.push(DIGITS[usize::from(byte & 15)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_bytes_can_not_leave_their_string() {
        let mut out = Vec::new();
        Object::begin(&mut out).text("path", b"/\"}\n\\\x00\xff").number("n", 7).end();
        assert_eq!(out, b"{\"path\":\"/\\\"}\\u000a\\\\\\u0000\\u00ff\",\"n\":7}\n");
    }
}
