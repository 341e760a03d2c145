//! Files of networks: one network or address a line, `#` begins a comment.

use ipnet::IpNet;

use crate::problem::{Fault, PROBLEMS_MAX};
use crate::text::network;

/// What is wrong with a file.
#[derive(Clone, Debug, Default)]
pub struct BadLines {
    pub(crate) found: Vec<BadLine>,
    /// Beyond [`PROBLEMS_MAX`].
    pub(crate) left_out: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct BadLine {
    /// From 1, as all of them.
    pub(crate) number: usize,
    pub(crate) column: usize,
    /// In characters.
    pub(crate) width: usize,
    pub(crate) text: String,
    pub(crate) fault: Fault,
}

/// One network or address, as a document has it.
///
/// # Errors
/// What is wrong with it, and what may be meant.
pub fn parse(text: &str) -> Result<IpNet, String> {
    network(text).map_err(|fault| match fault.help {
        Some(help) => format!("{} ({help})", fault.message),
        None => fault.message,
    })
}

/// The networks of a file, in its order.
///
/// # Errors
/// Every line that is none.
pub fn read(file: &[u8]) -> Result<Vec<IpNet>, BadLines> {
    let mut networks = Vec::with_capacity(file.len() / 16);
    let mut bad = BadLines::default();
    let file = file.strip_prefix("\u{feff}".as_bytes()).unwrap_or(file);
    for (index, line) in file.split(|byte| *byte == b'\n').enumerate() {
        let entry = line.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
        if entry.is_empty() {
            continue;
        }
        let text = String::from_utf8_lossy(entry);
        match network(&text) {
            Ok(network) => networks.push(network),
            Err(_) if bad.found.len() == PROBLEMS_MAX => bad.left_out += 1,
            Err(fault) => {
                let before = line.len() - line.trim_ascii_start().len();
                bad.found.push(BadLine {
                    number: index + 1,
                    column: before + 1,
                    width: text.chars().count(),
                    text: String::from_utf8_lossy(line).into_owned(),
                    fault,
                });
            }
        }
    }
    if bad.found.is_empty() { Ok(networks) } else { Err(bad) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_one_network_or_address_and_a_comment() {
        let file = "\u{feff}# from our office\n192.0.2.0/24\n\n  192.0.2.1\t# the printer\r\n2001:db8::/32#x\n#\n::1";
        let texts: Vec<_> = read(file.as_bytes()).expect("good").iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["192.0.2.0/24", "192.0.2.1/32", "2001:db8::/32", "::1/128"]);
        assert!(read(b"").expect("an empty one is good").is_empty());
    }

    #[test]
    fn each_bad_line_is_told_with_its_number() {
        let bad = read(b"192.0.2.1\n 192.0.2.1/24 # x\n\xff\xfe\n@bad\n10.0.0.0 10.0.0.1\n").unwrap_err();
        let told: Vec<_> = bad.found.iter().map(|line| (line.number, line.column, line.width)).collect();
        assert_eq!(told, [(2, 2, 12), (3, 1, 2), (4, 1, 4), (5, 1, 17)]);
        assert!(bad.found[0].fault.help.as_ref().expect("help").contains("192.0.2.0/24"));
        let many = read("x\n".repeat(PROBLEMS_MAX + 7).as_bytes()).unwrap_err();
        assert_eq!((many.found.len(), many.left_out), (PROBLEMS_MAX, 7));
    }
}
