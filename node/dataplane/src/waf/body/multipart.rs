//! Multipart (RFC 7578): values of fields, and names of files. What is in a file is not looked at.

use super::{Part, WHOLE, parameter};

/// Bytes of the header of a part.
const HEAD_MAX: usize = 8 << 10;

/// As RFC 2046 has it: at most 70 bytes.
const BOUNDARY_MAX: usize = 70;

pub(super) fn boundary(content_type: &[u8]) -> Option<Vec<u8>> {
    parameter(content_type, b"boundary").filter(|boundary| (1..=BOUNDARY_MAX).contains(&boundary.len()))
}

pub(super) fn read(body: &[u8], boundary: &[u8], see: &mut dyn FnMut(Part<'_>) -> bool) {
    let delimiter = [b"--", boundary].concat();
    let finder = memchr::memmem::Finder::new(&delimiter);
    let Some(first) = finder.find(body) else {
        see(Part::Field { name: WHOLE, value: body });
        return;
    };
    // What stands before the first part is for nobody, unless a lenient reader takes it.
    if !body[..first].trim_ascii().is_empty() && !see(Part::Field { name: WHOLE, value: &body[..first] }) {
        return;
    }
    let mut rest = &body[first + delimiter.len()..];
    loop {
        let end = finder.find(rest).unwrap_or(rest.len());
        // Behind the last part is nobody's either.
        let goes_on = match rest[..end].strip_prefix(b"--") {
            Some(after) => see(Part::Field { name: WHOLE, value: after.trim_ascii() }),
            None => part(&rest[..end], see),
        };
        if !goes_on || end == rest.len() {
            return;
        }
        rest = &rest[end + delimiter.len()..];
    }
}

fn part(bytes: &[u8], see: &mut dyn FnMut(Part<'_>) -> bool) -> bool {
    let bytes = bytes.strip_prefix(b"\r\n").or_else(|| bytes.strip_prefix(b"\n")).unwrap_or(bytes);
    let within = &bytes[..bytes.len().min(HEAD_MAX)];
    let (head, value) =
        match (memchr::memmem::find(within, b"\r\n\r\n"), memchr::memmem::find(within, b"\n\n")) {
            (Some(end), _) => (&bytes[..end], &bytes[end + 4..]),
            (None, Some(end)) => (&bytes[..end], &bytes[end + 2..]),
            // No header that ends: all of it is looked at.
            (None, None) => ([].as_slice(), bytes),
        };
    let value = value.strip_suffix(b"\n").unwrap_or(value);
    let value = value.strip_suffix(b"\r").unwrap_or(value);
    let disposition = head.split(|byte| *byte == b'\n').find_map(|line| {
        let colon = memchr::memchr(b':', line)?;
        let name = line[..colon].trim_ascii();
        name.eq_ignore_ascii_case(b"content-disposition").then(|| line[colon + 1..].trim_ascii())
    });
    let of = |name: &[u8]| disposition.and_then(|disposition| parameter(disposition, name));
    let name = of(b"name").unwrap_or_else(|| WHOLE.to_vec());
    for line in head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()) {
        if !see(Part::Head { name: &name, line }) {
            return false;
        }
    }
    match of(b"filename").or_else(|| of(b"filename*")) {
        // One without a name is no file to everybody.
        Some(file) if !file.is_empty() => see(Part::File { name: &name, file: &file }),
        _ => see(Part::Field { name: &name, value }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_names_of_files_are_told() {
        let body = "--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb 'c'\r\n\
                    --x\r\ncontent-disposition: form-data; name=f; filename=\"it's.png\"\r\nContent-Type: image/png\r\n\r\n\u{1}<x>\r\n\
                    --x\r\nContent-Disposition: form-data; name=\"e\"; filename=\"\"\r\n\r\ng\r\n--x--\r\n";
        let (mut found, mut heads) = (Vec::new(), Vec::new());
        read(body.as_bytes(), b"x", &mut |part| {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            match part {
                Part::Field { name, value } => found.push(format!("{}={}", text(name), text(value))),
                Part::File { name, file } => found.push(format!("{}: {}", text(name), text(file))),
                Part::Head { line, .. } => heads.push(text(line)),
                Part::Broken(_) => {}
            }
            true
        });
        assert_eq!(found, ["a=b 'c'", "f: it's.png", "e=g", "body="]);
        assert_eq!(heads.len(), 4);
        assert_eq!(heads[2], "Content-Type: image/png");
    }

    #[test]
    fn what_is_no_multipart_is_text() {
        let mut found = Vec::new();
        read(b"a=' or 1=1", b"x", &mut |part| {
            if let Part::Field { value, .. } = part {
                found.push(value.to_vec());
            }
            true
        });
        assert_eq!(found, [b"a=' or 1=1"]);
    }
}
