//! What was said to be thrown away, and whether something that is kept is among it.
//!
//! Purges have numbers that grow over the whole cluster. Whatever is kept carries the number that was the latest when its
//! request was sent to a member; a purge with a greater number that is about it makes it worthless, also if its response
//! came later. To look costs one comparison as long as nothing was purged since; else once for each purge and kept
//! response, whose number is raised then ([`Mark`]).
//!
//! Bounds: [`URLS_MAX`], [`TAGS_MAX`] and [`PREFIXES_MAX`] purges are told apart. Beyond that the oldest are forgotten
//! and count as purges of everything: what is older than those is lost, and nothing that was purged comes back.

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use http::Uri;
use http::uri::PathAndQuery;
use parking_lot::RwLock;
use trestle_config::model::Scheme;
use trestle_config::path;

use super::key::bare_host;

const URLS_MAX: usize = 16_384;
const TAGS_MAX: usize = 4_096;
const PREFIXES_MAX: usize = 256;

/// An order to throw away what was kept before it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purge {
    /// Greater than those of all earlier ones, over the whole cluster.
    pub number: u64,
    pub what: PurgeWhat,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PurgeWhat {
    /// In the form of [`purged_url`].
    Url(String),
    /// All URLs that begin like this: in the form of [`purged_prefix`].
    Prefix(String),
    /// What a response names in `Cache-Tag` or `Surrogate-Key`.
    Tag(String),
    All,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PurgeError {
    #[error("no URL with scheme and host, like https://shop.example.com/a?b=1")]
    NoUrl,
    #[error("a URL of http or https is meant, not of `{0}`")]
    Scheme(String),
    #[error("name the host without a user: what is kept has none")]
    User,
    #[error("its path can't be read")]
    Path,
}

/// The one form of a URL, as kept responses have it: scheme and host in lower case, the path normalised, without a port
/// that goes without saying.
///
/// # Errors
/// If it is none.
pub fn purged_url(url: &str) -> Result<String, PurgeError> {
    let (scheme, host, uri) = split(url)?;
    let target = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let path = if target.path().is_empty() { "/" } else { target.path() };
    let path = path::normalise(path, false).map_err(|_| PurgeError::Path)?;
    Ok(join(scheme, &host, &path, target.query()))
}

/// The one form of the beginning of URLs. It ends where it ends: `/img` is the beginning of `/images` as well.
///
/// # Errors
/// If it does not name scheme and host.
pub fn purged_prefix(prefix: &str) -> Result<String, PurgeError> {
    let (scheme, host, uri) = split(prefix)?;
    let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    Ok(join(scheme, &host, if target.is_empty() { "/" } else { target }, None))
}

fn split(url: &str) -> Result<(Scheme, String, Uri), PurgeError> {
    let uri: Uri = url.parse().map_err(|_| PurgeError::NoUrl)?;
    let scheme = match uri.scheme_str() {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        Some(other) => return Err(PurgeError::Scheme(other.to_owned())),
        None => return Err(PurgeError::NoUrl),
    };
    let host = uri.authority().ok_or(PurgeError::NoUrl)?.as_str().to_ascii_lowercase();
    if host.contains('@') {
        return Err(PurgeError::User);
    }
    Ok((scheme, host, uri))
}

/// A URL; `host` is in lower case and may have a port.
pub(super) fn join(scheme: Scheme, host: &str, path: &str, query: Option<&str>) -> String {
    let host = bare_host(scheme, host);
    let host = host.strip_suffix('.').unwrap_or(host);
    let mut url = String::with_capacity(host.len() + path.len() + query.map_or(0, str::len) + 10);
    // Writing to a String can't fail.
    let _ = write!(url, "{}://{host}{path}", scheme.as_str());
    if let Some(query) = query {
        url.push('?');
        url.push_str(query);
    }
    url
}

/// Since when something is kept, counted in purges.
#[derive(Debug)]
pub(crate) struct Mark(AtomicU64);

impl Mark {
    pub(crate) fn at(number: u64) -> Self {
        Self(AtomicU64::new(number))
    }

    pub(crate) fn number(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// What a kept response is purged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Named<'a> {
    pub(crate) url: &'a str,
    pub(crate) tags: &'a [Box<str>],
}

/// Purges as this node knows of them.
#[derive(Debug, Default)]
pub(crate) struct Purges {
    /// Of the table, for those who need no more.
    latest: AtomicU64,
    table: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    latest: u64,
    /// Whatever has a lower number is purged.
    floor: u64,
    urls: HashMap<Box<str>, u64, ahash::RandomState>,
    tags: HashMap<Box<str>, u64, ahash::RandomState>,
    prefixes: HashMap<Box<str>, u64, ahash::RandomState>,
}

impl Purges {
    /// What a request that is sent now has seen.
    pub(crate) fn latest(&self) -> u64 {
        self.latest.load(Acquire)
    }

    /// Further purges, in any order.
    pub(crate) fn add(&self, purges: impl IntoIterator<Item = Purge>) {
        let mut table = self.table.write();
        purges.into_iter().for_each(|purge| table.add(purge));
        self.latest.store(table.latest, Release);
    }

    /// All that are known of: everything below `floor` is purged.
    pub(crate) fn set(&self, floor: u64, purges: impl IntoIterator<Item = Purge>) {
        let mut table = self.table.write();
        // Numbers never go back: what is kept has been held against them.
        let (latest, floor) = (table.latest.max(floor), table.floor.max(floor));
        *table = Table { latest, floor, ..Table::default() };
        purges.into_iter().for_each(|purge| table.add(purge));
        self.latest.store(table.latest, Release);
    }

    /// Whether something that is kept was purged; if not, it is not looked at again until something else is.
    pub(crate) fn has(&self, mark: &Mark, named: Named<'_>) -> bool {
        let number = mark.number();
        if number >= self.latest.load(Acquire) {
            return false;
        }
        let table = self.table.read();
        if table.has(number, named) {
            return true;
        }
        mark.0.fetch_max(table.latest, Relaxed);
        false
    }

    /// Whether anything that is not a URL or the beginning of one was purged since: who knows no tags yet may have one.
    pub(crate) fn may_have(&self, number: u64, url: &str) -> bool {
        if number >= self.latest.load(Acquire) {
            return false;
        }
        let table = self.table.read();
        table.has(number, Named { url, tags: &[] }) || table.tags.values().any(|purged| *purged > number)
    }
}

impl Table {
    fn add(&mut self, purge: Purge) {
        let Purge { number, what } = purge;
        self.latest = self.latest.max(number);
        let lost = match what {
            PurgeWhat::All => Some(number),
            PurgeWhat::Url(url) => put(&mut self.urls, url.into(), number, URLS_MAX),
            PurgeWhat::Tag(tag) => put(&mut self.tags, tag.into(), number, TAGS_MAX),
            PurgeWhat::Prefix(prefix) => put(&mut self.prefixes, prefix.into(), number, PREFIXES_MAX),
        };
        self.floor = self.floor.max(lost.unwrap_or_default());
    }

    fn has(&self, number: u64, named: Named<'_>) -> bool {
        let since = |purged: &u64| *purged > number;
        number < self.floor
            || self.urls.get(named.url).is_some_and(since)
            || named.tags.iter().any(|tag| self.tags.get(tag).is_some_and(since))
            || self.prefixes.iter().any(|(prefix, purged)| since(purged) && named.url.starts_with(&**prefix))
    }
}

/// Notes it; the number of the newest that had to be forgotten for it, if any had.
fn put<K: Hash + Eq>(
    all: &mut HashMap<K, u64, ahash::RandomState>,
    what: K,
    number: u64,
    most: usize,
) -> Option<u64> {
    let known = all.entry(what).or_default();
    *known = number.max(*known);
    if all.len() <= most {
        return None;
    }
    // An eighth at once: this does not happen for each.
    let mut numbers: Vec<u64> = all.values().copied().collect();
    numbers.sort_unstable();
    let lost = numbers[most / 8];
    all.retain(|_, number| *number > lost);
    Some(lost)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn purge(number: u64, what: PurgeWhat) -> Purge {
        Purge { number, what }
    }

    fn has(purges: &Purges, number: u64, url: &str, tags: &[&str]) -> bool {
        let tags: Vec<Box<str>> = tags.iter().map(|tag| (*tag).into()).collect();
        purges.has(&Mark::at(number), Named { url, tags: &tags })
    }

    #[test]
    fn a_purge_is_about_what_was_asked_for_before_it() {
        let purges = Purges::default();
        assert!(!has(&purges, 0, "http://h/a", &[]));
        purges.add([
            purge(1, PurgeWhat::Url("http://h/a".into())),
            purge(2, PurgeWhat::Tag("t".into())),
            purge(3, PurgeWhat::Prefix("http://h/p".into())),
        ]);
        for (number, url, tags, expected) in [
            (0, "http://h/a", &[][..], true),
            (1, "http://h/a", &[], false),
            (0, "http://h/ab", &[], false),
            (1, "http://h/b", &["s", "t"], true),
            (2, "http://h/b", &["t"], false),
            (2, "http://h/p/x", &[], true),
            (3, "http://h/p/x", &[], false),
        ] {
            assert_eq!(has(&purges, number, url, tags), expected, "{number} {url} {tags:?}");
        }
        purges.add([purge(4, PurgeWhat::All)]);
        assert!(has(&purges, 3, "http://x/", &[]) && !has(&purges, 4, "http://x/", &[]));
        assert!(purges.may_have(1, "http://x/") && !purges.may_have(4, "http://x/"));
    }

    #[test]
    fn what_was_looked_at_is_not_looked_at_again() {
        let purges = Purges::default();
        purges.add([purge(5, PurgeWhat::Tag("t".into()))]);
        let mark = Mark::at(1);
        assert!(!purges.has(&mark, Named { url: "http://h/", tags: &[] }));
        assert_eq!(mark.number(), 5);
    }

    #[test]
    fn what_is_forgotten_counts_as_everything() {
        let purges = Purges::default();
        let most = PREFIXES_MAX as u64;
        purges.add((1..=most).map(|n| purge(n, PurgeWhat::Prefix(format!("http://h/{n}/")))));
        assert!(!has(&purges, 0, "http://other/", &[]));
        purges.add([purge(most + 1, PurgeWhat::Prefix("http://h/x".into()))]);
        assert!(has(&purges, 0, "http://other/", &[]));
        assert!(!has(&purges, most / 8 + 1, "http://other/", &[]), "what is newer than those stays");
        assert!(has(&purges, most - 1, &format!("http://h/{most}/"), &[]));
        assert!(purges.table.read().prefixes.len() <= PREFIXES_MAX);
    }

    #[test]
    fn who_was_away_takes_all_purges_at_once() {
        let purges = Purges::default();
        purges.add([purge(3, PurgeWhat::Url("http://h/a".into()))]);
        purges.set(2, [purge(3, PurgeWhat::Url("http://h/a".into())), purge(7, PurgeWhat::Tag("t".into()))]);
        assert_eq!(purges.latest(), 7);
        assert!(has(&purges, 1, "http://h/b", &[]) && !has(&purges, 2, "http://h/b", &[]));
        assert!(has(&purges, 2, "http://h/a", &[]) && has(&purges, 6, "http://h/a", &["t"]));
        purges.set(0, []);
        assert_eq!(purges.latest(), 7, "numbers never go back");
    }

    #[test]
    fn urls_have_one_form() {
        for (url, expected) in [
            ("HTTPS://Shop.Example.com:443/a/../b%41?Q=%41", Ok("https://shop.example.com/bA?Q=%41")),
            ("http://h", Ok("http://h/")),
            ("http://h?q", Ok("http://h/?q")),
            ("http://[::1]:80/", Ok("http://[::1]/")),
            ("http://h:8080/", Ok("http://h:8080/")),
            ("/a", Err(PurgeError::NoUrl)),
            ("h/a", Err(PurgeError::NoUrl)),
            ("ftp://h/", Err(PurgeError::Scheme("ftp".to_owned()))),
            ("http://me@h/", Err(PurgeError::User)),
            ("http://h.:80/", Ok("http://h/")),
            ("http://h/%00", Err(PurgeError::Path)),
        ] {
            assert_eq!(purged_url(url).as_deref(), expected.as_ref().copied(), "{url}");
        }
        assert_eq!(purged_prefix("http://H:80/img").as_deref(), Ok("http://h/img"));
        assert_eq!(purged_prefix("http://h").as_deref(), Ok("http://h/"));
    }

    proptest! {
        /// Whatever is forgotten, nothing that was purged is ever served.
        #[test]
        fn nothing_purged_comes_back(urls in prop::collection::vec(0u32..400, 1..600), number in 0u64..600) {
            let purges = Purges::default();
            for (at, url) in urls.iter().enumerate() {
                purges.add([purge(at as u64 + 1, PurgeWhat::Prefix(format!("http://h/{url}/")))]);
            }
            for url in 0..400 {
                let last = urls.iter().rposition(|u| *u == url).map_or(0, |at| at as u64 + 1);
                if last > number {
                    let url = format!("http://h/{url}/");
                    prop_assert!(has(&purges, number, &url, &[]));
                }
            }
        }
    }
}
