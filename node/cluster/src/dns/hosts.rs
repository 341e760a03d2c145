//! The hosts file (`/etc/hosts`), which comes before DNS.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What lies beyond is not read.
const SIZE_MAX: u64 = 1 << 20;

/// Tells whether a file is the one that was read; `None`: it can't be looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp(Option<(u64, u64, i64, i64)>);

impl Stamp {
    /// Of what is no file.
    pub(super) fn none() -> Self {
        Self(None)
    }

    pub(super) fn of(path: &Path) -> Self {
        let stamp = std::fs::metadata(path).ok();
        Self(stamp.map(|file| (file.ino(), file.size(), file.mtime(), file.mtime_nsec())))
    }
}

/// A hosts file, read again when it has changed.
pub(super) struct Hosts {
    path: PathBuf,
    read: Option<Stamp>,
    names: HashMap<String, Vec<IpAddr>>,
}

impl Hosts {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: None, names: HashMap::new() }
    }

    /// The addresses of a name, lower case and without a final dot. A file that is not there knows none.
    pub(super) fn find(&mut self, name: &str) -> Option<Vec<IpAddr>> {
        let now = Stamp::of(&self.path);
        if self.read.as_ref() != Some(&now) {
            let mut text = Vec::new();
            let file = File::open(&self.path).map(|file| file.take(SIZE_MAX));
            // As far as it could be read.
            let _ = file.and_then(|mut file| file.read_to_end(&mut text));
            self.names = parse(&String::from_utf8_lossy(&text));
            self.read = Some(now);
        }
        self.names.get(name).cloned()
    }
}

/// `ADDRESS NAME...  # comment`; what is no such line is passed over, as others do.
fn parse(text: &str) -> HashMap<String, Vec<IpAddr>> {
    let mut names: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        let Some(Ok(ip)) = words.next().map(str::parse::<IpAddr>) else { continue };
        for name in words {
            let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
            let known = names.entry(name).or_default();
            if !known.contains(&ip) {
                known.push(ip);
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_have_all_the_addresses_of_their_lines() {
        let names = parse(
            "# hosts\n127.0.0.1 localhost\n::1\tlocalhost ip6-localhost # both\n192.0.2.1  App.Example.  app\n\
             192.0.2.2 app\n192.0.2.2 app\nfe80::1%lo0 scoped\nnonsense app\n192.0.2.3\n",
        );
        let of = |name: &str| {
            names.get(name).map(|ips| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(of("localhost").as_deref(), Some("127.0.0.1 ::1"));
        assert_eq!(of("app").as_deref(), Some("192.0.2.1 192.0.2.2"));
        assert_eq!(of("app.example").as_deref(), Some("192.0.2.1"));
        assert_eq!((of("scoped"), of("nonsense"), of("#")), (None, None, None));
    }

    #[test]
    fn a_file_that_changed_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        let mut hosts = Hosts::new(&path);
        assert_eq!(hosts.find("app"), None);
        std::fs::write(&path, "192.0.2.1 app\n").unwrap();
        assert_eq!(hosts.find("app"), Some(vec![[192, 0, 2, 1].into()]));
        std::fs::write(&path, "192.0.2.1 app\n192.0.2.2 app\n").unwrap();
        assert_eq!(hosts.find("app").map(|ips| ips.len()), Some(2));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(hosts.find("app"), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[ -~\\n\\t#é]{0,200}") {
            parse(&text);
        }

        #[test]
        fn every_name_of_a_line_is_found(ip: [u8; 4], names in prop::collection::vec("[a-z][a-z0-9.-]{0,20}[a-z]", 1..5)) {
            let ip = IpAddr::from(ip);
            let parsed = parse(&format!("{ip} {}\n", names.join("\t")));
            prop_assert!(names.iter().all(|name| parsed[name.as_str()] == [ip]));
        }
    }
}
