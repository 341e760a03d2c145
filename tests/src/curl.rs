//! Asking with the real curl.

use std::net::SocketAddr;
use std::process::Command;

/// What curl was answered.
#[derive(Debug)]
pub struct Answer {
    /// Up to the empty line, with it.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// Of the first field of that name; empty if there is none.
    pub fn field(&self, name: &str) -> &str {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut named = fields.filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.next().map_or("", |(_, value)| value.trim())
    }
}

/// Asks for `target` of `host`. Panics if curl fails.
pub fn curl(web: SocketAddr, host: &str, target: &str, args: &[&str]) -> Answer {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "-D", "-", "-H", &format!("Host: {host}")])
        .args(args)
        .arg(format!("http://{web}{target}"))
        .output()
        .expect("curl runs");
    assert!(output.status.success(), "{target}: {}", String::from_utf8_lossy(&output.stderr));
    let end = output.stdout.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    Answer {
        head: String::from_utf8_lossy(&output.stdout[..end]).into_owned(),
        body: output.stdout[end..].to_vec(),
    }
}
