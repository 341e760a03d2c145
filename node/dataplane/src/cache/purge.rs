//! What was said to be thrown away, and whether something that is kept is among it.
//!
//! Purges have numbers that grow over the whole cluster. Whatever is kept carries the number that was the latest when its
//! request was sent to a member; a purge with a greater number that is about it makes it worthless, also if its response
//! came later. To look costs one comparison as long as nothing was purged since; else once for each purge and kept
//! response, whose number is raised then ([`Mark`]).
//!
//! Bounds: [`URLS_MAX`], [`TAGS_MAX`] and [`PREFIXES_MAX`] purges are told apart. Beyond that the oldest are forgotten
//! and count as purges of everything: what is older than those is lost, and nothing that was purged comes back.
//!
//! A rule may count only some of a URL's query. Its responses are known by that part alone, so a purge of a URL is also one
//! of what each such choice leaves of it ([`Purges::set_choices`]). A listener may merge slashes, so it is one of the URL
//! without double ones, too.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;
use std::hash::Hash;
use std::mem::take;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

use http::Uri;
use http::uri::PathAndQuery;
use parking_lot::RwLock;
use percent_encoding::{AsciiSet, utf8_percent_encode};
use trestle_config::model::{CacheQuery, Scheme};
use trestle_config::path::{self, PathError};

use super::key::{bare_host, counted};
use crate::l7::head::is_host;

const URLS_MAX: usize = 16_384;
/// With very many choices of very many parameters all counts as purged.
const CHOSEN_MAX: usize = 4 * URLS_MAX;
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
    #[error(
        "it has no host and port that a request could name (letters beyond ASCII are written as xn--...)"
    )]
    Host,
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
    let target = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let path = match target.query() {
        Some(_) => path::normalise(target.path(), false).map(Cow::into_owned),
        None => beginning(target.path(), false),
    };
    Ok(join(scheme, &host, &path.map_err(|_| PurgeError::Path)?, target.query()))
}

/// Of a path. Its last segment may go on: `.` is the beginning of `.well-known`.
fn beginning(path: &str, merge_slashes: bool) -> Result<String, PathError> {
    let (folder, last) = path.split_at(path.rfind('/').map_or(0, |at| at + 1));
    let mut begun =
        path::normalise(if folder.is_empty() { "/" } else { folder }, merge_slashes)?.into_owned();
    match last {
        "." | ".." => begun.push_str(last),
        _ => begun.push_str(path::normalise(&format!("/{last}"), false)?.trim_start_matches('/')),
    }
    Ok(begun)
}

/// As it is where slashes are merged. `None`: the same.
fn merged(url: &str) -> Option<String> {
    let host = url.find("://")? + 3;
    let start = host + url[host..].find('/')?;
    let end = url.find('?').unwrap_or(url.len()).max(start);
    let path = &url[start..end];
    let merged = path.contains("//").then(|| beginning(path, true).ok())??;
    Some(format!("{}{merged}{}", &url[..start], &url[end..]))
}

fn split(url: &str) -> Result<(Scheme, String, Uri), PurgeError> {
    let host = url.split_once("://").and_then(|(_, rest)| rest.split(['/', '?', '#']).next());
    if host.is_some_and(|host| !host.is_ascii()) {
        return Err(PurgeError::Host);
    }
    let sent: Cow<'_, str> = utf8_percent_encode(url, SHOWN).into();
    let uri: Uri = sent.parse().map_err(|_| PurgeError::NoUrl)?;
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
    if !is_host(host.as_bytes()) {
        return Err(PurgeError::Host);
    }
    Ok((scheme, host, uri))
}

/// Letters beyond ASCII, always, and this as clients send them, who may show them otherwise (RFC 3987, section 3.1).
const SHOWN: &AsciiSet = &AsciiSet::EMPTY.add(b' ').add(b'"').add(b'<').add(b'>').add(b'`');

/// A URL; `host` is in lower case and may have a port.
pub(super) fn join(scheme: Scheme, host: &str, path: &str, query: Option<&str>) -> String {
    let host = bare_host(scheme, host);
    let end = host.rfind(':').filter(|colon| !host[*colon..].contains(']')).unwrap_or(host.len());
    let (name, port) = host.split_at(end);
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut url = String::with_capacity(host.len() + path.len() + query.map_or(0, str::len) + 10);
    // Writing to a String can't fail.
    let _ = write!(url, "{}://{name}{port}{path}", scheme.as_str());
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
    /// What choices, and merged slashes, leave of them, where that is another URL.
    chosen: HashMap<Box<str>, u64, ahash::RandomState>,
    choices: Vec<CacheQuery>,
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
        let choices = take(&mut table.choices);
        *table = Table { latest, floor, choices, ..Table::default() };
        purges.into_iter().for_each(|purge| table.add(purge));
        self.latest.store(table.latest, Release);
    }

    /// What rules count of queries from now on.
    pub(crate) fn set_choices(&self, choices: Vec<CacheQuery>) {
        let mut table = self.table.write();
        if table.choices != choices {
            table.choices = choices;
            table.choose_anew();
        }
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
            PurgeWhat::Url(url) => {
                self.choose(&url, number);
                let lost = put(&mut self.urls, url.into(), number, URLS_MAX);
                if lost.is_some() {
                    self.choose_anew();
                }
                lost
            }
            PurgeWhat::Tag(tag) => put(&mut self.tags, tag.into(), number, TAGS_MAX),
            PurgeWhat::Prefix(prefix) => {
                let also = merged(&prefix);
                let lost = put(&mut self.prefixes, prefix.into(), number, PREFIXES_MAX);
                let also =
                    also.and_then(|prefix| put(&mut self.prefixes, prefix.into(), number, PREFIXES_MAX));
                lost.max(also)
            }
        };
        self.floor = self.floor.max(lost.unwrap_or_default());
    }

    fn choose_anew(&mut self) {
        self.chosen.clear();
        let urls = take(&mut self.urls);
        urls.iter().for_each(|(url, number)| self.choose(url, *number));
        self.urls = urls;
    }

    fn choose(&mut self, url: &str, number: u64) {
        let merged = merged(url);
        let mut note = |own: String| {
            if own != url {
                let known = self.chosen.entry(own.into()).or_default();
                *known = number.max(*known);
            }
        };
        for url in [Some(url), merged.as_deref()].into_iter().flatten() {
            let Some((bare, query)) = url.split_once('?') else { continue };
            for choice in &self.choices {
                let own = counted(choice, Some(query));
                note(own.map_or_else(|| bare.to_owned(), |own| format!("{bare}?{own}")));
            }
        }
        merged.into_iter().for_each(note);
        if self.chosen.len() > CHOSEN_MAX {
            self.chosen.clear();
            self.floor = self.latest;
        }
    }

    fn has(&self, number: u64, named: Named<'_>) -> bool {
        let since = |purged: &u64| *purged > number;
        number < self.floor
            || self.chosen.get(named.url).is_some_and(since)
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
    fn a_purge_of_a_url_is_one_of_what_rules_count_of_its_query() {
        let purges = Purges::default();
        let only = |names: &[&str]| CacheQuery::Only(names.iter().map(|name| (*name).to_owned()).collect());
        purges.set_choices(vec![only(&["id", "page"])]);
        purges.add([purge(1, PurgeWhat::Url("http://h/a?id=1&utm=9&page=2".into()))]);
        for (url, expected) in [
            ("http://h/a?id=1&page=2", true),
            ("http://h/a?id=1&utm=9&page=2", true),
            ("http://h/a?id=1", false),
            ("http://h/a", false),
        ] {
            assert_eq!(has(&purges, 0, url, &[]), expected, "{url}");
        }
        // Purges that were made before go by choices that come, or come back, after them.
        purges.set_choices(vec![only(&["id"]), CacheQuery::None]);
        assert!(has(&purges, 0, "http://h/a?id=1", &[]) && has(&purges, 0, "http://h/a", &[]));
        assert!(!has(&purges, 0, "http://h/a?id=1&page=2", &[]));
        purges.set(0, [purge(2, PurgeWhat::Url("http://h/b?id=1&x".into()))]);
        assert!(has(&purges, 1, "http://h/b?id=1", &[]) && !has(&purges, 2, "http://h/b?id=1", &[]));
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
            ("http://h:65535/", Ok("http://h:65535/")),
            ("http://h:65536/", Err(PurgeError::Host)),
            ("http://h:99999/a", Err(PurgeError::Host)),
            ("http://h:80a/", Err(PurgeError::Host)),
            ("http://h:/a", Ok("http://h/a")),
            ("http://h.:8080/", Ok("http://h:8080/")),
            ("http://h/q\"<", Ok("http://h/q%22%3C")),
            ("http://[::1]:99999/", Err(PurgeError::Host)),
            ("http://h.:80/", Ok("http://h/")),
            ("http://h/%00", Err(PurgeError::Path)),
            ("http://h/caf\u{e9}/a b?\u{e9}", Ok("http://h/caf%C3%A9/a%20b?%C3%A9")),
            ("http://caf\u{e9}/", Err(PurgeError::Host)),
        ] {
            assert_eq!(purged_url(url).as_deref(), expected.as_ref().copied(), "{url}");
        }
        assert_eq!(purged_prefix("http://H:80/img").as_deref(), Ok("http://h/img"));
        assert_eq!(purged_prefix("http://h").as_deref(), Ok("http://h/"));
        assert_eq!(purged_prefix("http://h:99999/img"), Err(PurgeError::Host));
        assert_eq!(purged_prefix("http://h/b\u{e4}").as_deref(), Ok("http://h/b%C3%A4"));
        for (prefix, expected) in [
            ("http://h/%7Eu/", Ok("http://h/~u/")),
            ("http://h/k%c3%a9/", Ok("http://h/k%C3%A9/")),
            ("http://h/pp/./", Ok("http://h/pp/")),
            ("http://h/q/../pp/%7e", Ok("http://h/pp/~")),
            ("http://h/.", Ok("http://h/.")),
            ("http://h/a/..", Ok("http://h/a/..")),
            ("http://h/a/../?b=%7e", Ok("http://h/?b=%7e")),
            ("http://h/%", Err(PurgeError::Path)),
            ("http://h/%zz", Err(PurgeError::Path)),
        ] {
            assert_eq!(purged_prefix(prefix).as_deref(), expected.as_ref().copied(), "{prefix}");
        }
    }

    #[test]
    fn a_purge_is_about_what_is_left_where_slashes_are_merged_too() {
        let purges = Purges::default();
        purges.set_choices(vec![CacheQuery::None]);
        purges.add([
            purge(1, PurgeWhat::Url("http://h//m///a?x=//".into())),
            purge(2, PurgeWhat::Prefix("http://h/p//".into())),
        ]);
        for url in
            ["http://h//m///a?x=//", "http://h/m/a?x=//", "http://h/m/a", "http://h//m///a", "http://h/p/b"]
        {
            assert!(has(&purges, 0, url, &[]), "{url}");
        }
        assert!(!has(&purges, 0, "http://h/m", &[]) && !has(&purges, 0, "http://h/p", &[]));
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
