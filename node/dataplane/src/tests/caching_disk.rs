//! Long responses on disk: what outlasts a restart, and what must not.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

use super::caching::{ask, cache_status, cached, response};
use super::compressing::{self, plain, text};
use crate::testing::{Backend, Client, Proxy, Reply, until};
use crate::{CacheDisk, CacheDiskStats, Purge, PurgeWhat};

const LEAST: u64 = 100_000;
const LONG: usize = 300_000;
const CLUSTER: [u8; 16] = [1; 16];

/// A folder, and a port that the listener keeps.
struct Place {
    dir: TempDir,
    port: u16,
    max: u64,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder"), port: 0, max: 64 << 20 }
    }

    /// Starts a node of this cluster there, and waits until it knows what lies there.
    async fn start_in(&mut self, cluster: [u8; 16], backend: SocketAddr) -> (Proxy, Client) {
        self.start_with(cluster, cached(backend, "{ mode: on }")).await
    }

    async fn start_with(&mut self, cluster: [u8; 16], config: trestle_config::Config) -> (Proxy, Client) {
        let proxy = self.proxy();
        proxy.plane.enter_cluster(cluster);
        until("what is there is known", || disk_of(&proxy).indexed).await;
        let client = self.serve(&proxy, config).await;
        (proxy, client)
    }

    /// Starts a node that is of no cluster yet.
    fn proxy(&self) -> Proxy {
        let disk = CacheDisk { dir: self.dir.path().to_owned(), max: self.max, least: LEAST };
        let port = self.port;
        Proxy::with(|options| {
            options.cache_disk = Some(disk);
            if port != 0 {
                options.pinned.insert(("web".to_owned(), 0), port);
            }
        })
    }

    async fn serve(&mut self, proxy: &Proxy, config: trestle_config::Config) -> Client {
        let bound = proxy.install(1, config).await;
        let address = *bound[0].state.as_ref().expect("listens");
        self.port = address.port();
        Client::connect(address).await
    }

    async fn start(&mut self, backend: &Backend) -> (Proxy, Client) {
        self.start_in(CLUSTER, backend.address).await
    }

    fn files(&self) -> Vec<PathBuf> {
        let below =
            |at: PathBuf| std::fs::read_dir(at).into_iter().flatten().flatten().map(|entry| entry.path());
        below(self.dir.path().join("objects")).flat_map(below).collect()
    }

    fn file(&self) -> PathBuf {
        let files = self.files();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }
}

fn disk_of(proxy: &Proxy) -> CacheDiskStats {
    proxy.plane.cache_stats().disk.expect("there is a disk")
}

async fn written(proxy: &Proxy, count: u64) {
    until("it is written", || disk_of(proxy).written == count).await;
}

fn body(seed: usize, length: usize) -> Bytes {
    (0..length).map(|at| (at * 31 + at / 253 + seed) as u8).collect()
}

/// A body of this length for each path, another for each request; 304 to who has it.
async fn backend(
    length: usize,
    fields: &'static [(&'static str, &'static str)],
) -> (Backend, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let backend = Backend::answering(move |seen| {
        let number = counter.fetch_add(1, Relaxed);
        let mut fields = fields.to_vec();
        fields.push(("etag", "\"v\""));
        match seen.header("if-none-match") {
            Some("\"v\"") => response(304, &fields, ""),
            _ => response(200, &fields, body(number, length)),
        }
    })
    .await;
    (backend, count)
}

const FRESH: &[(&str, &str)] = &[("cache-control", "max-age=3600"), ("cache-tag", "t"), ("x-own", "1")];

fn is_hit(reply: &Reply) -> bool {
    cache_status(reply).starts_with("trestle; hit")
}

#[tokio::test]
async fn a_long_response_outlasts_a_restart_and_its_parts_are_served() {
    let (mut place, (backend, count)) = (Place::new(), backend(LONG, FRESH).await);
    let (proxy, mut client) = place.start(&backend).await;
    let first = ask(&mut client, "GET /a", "").await;
    assert_eq!(first.body, body(0, LONG));
    written(&proxy, 1).await;
    let again = ask(&mut client, "GET /a", "").await;
    assert!(is_hit(&again) && again.body == first.body, "{}", again.head);
    until("it is in memory no longer", || proxy.plane.cache_stats().bytes < 10_000).await;
    drop(proxy);

    let (proxy, mut client) = place.start(&backend).await;
    assert_eq!(disk_of(&proxy).objects, 1);
    for _ in 0..2 {
        let reply = ask(&mut client, "GET /a", "").await;
        assert!(is_hit(&reply) && reply.body == first.body, "{}", reply.head);
        assert_eq!((reply.header("x-own"), reply.header("content-length")), (Some("1"), Some("300000")));
    }
    for (range, part) in [("0-0", 0..1), ("65519-65520", 65_519..65_521), ("131040-", 131_040..LONG)] {
        let reply = ask(&mut client, "GET /a", &format!("Range: bytes={range}\r\n")).await;
        assert_eq!((reply.status, is_hit(&reply)), (206, true), "{}", reply.head);
        assert_eq!(reply.body, first.body[part], "{range}");
    }
    assert_eq!(ask(&mut client, "HEAD /a", "").await.header("content-length"), Some("300000"));
    assert_eq!(ask(&mut client, "GET /a", "If-None-Match: \"v\"\r\n").await.status, 304);
    assert_eq!(count.load(Relaxed), 1, "its member was asked once");
    let stats = disk_of(&proxy);
    assert_eq!((stats.corrupt, stats.not_read, stats.served), (0, 0, 5), "{stats:?}");
    assert_eq!(proxy.metric("trestle_cache_disk_objects "), Some(1.0));
}

#[tokio::test]
async fn a_body_of_unknown_length_goes_to_the_disk_once_it_is_long() {
    let mut place = Place::new();
    let backend = Backend::raw(|mut stream| async move {
        let mut seen = [0; 1000];
        while stream.read(&mut seen).await.is_ok_and(|length| length > 0) {
            let head = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n";
            let mut answer = head.as_bytes().to_vec();
            for chunk in body(0, LONG).chunks(7_000) {
                answer.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                answer.extend_from_slice(chunk);
                answer.extend_from_slice(b"\r\n");
            }
            answer.extend_from_slice(b"0\r\nx-sum: 7\r\n\r\n");
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &answer).await;
        }
    })
    .await;
    let (proxy, mut client) = place.start(&backend).await;
    assert_eq!(ask(&mut client, "GET /a", "").await.body, body(0, LONG));
    written(&proxy, 1).await;
    drop(proxy);
    let (_proxy, mut client) = place.start(&backend).await;
    let reply = ask(&mut client, "GET /a", "").await;
    assert!(is_hit(&reply) && reply.body == body(0, LONG), "{}", reply.head);
}

#[tokio::test]
async fn what_was_changed_on_disk_is_a_miss_and_its_member_is_asked() {
    for place_of_byte in [0, 8, 100, 4096, 70_000, LONG as u64] {
        let (mut place, (backend, count)) = (Place::new(), backend(LONG, FRESH).await);
        let (proxy, mut client) = place.start(&backend).await;
        ask(&mut client, "GET /a", "").await;
        written(&proxy, 1).await;
        drop(proxy);
        flip(&place.file(), place_of_byte);
        let (proxy, mut client) = place.start(&backend).await;
        let reply = ask(&mut client, "GET /a", "").await;
        // The mark makes it be asked for: its member says that it still holds.
        let (expected, asked) = if place_of_byte == 8 { (0, 2) } else { (1, 2) };
        assert!(reply.body == body(expected, LONG), "byte {place_of_byte}: {}", reply.head);
        assert_eq!(count.load(Relaxed), asked, "byte {place_of_byte}");
        assert_eq!(disk_of(&proxy).corrupt, u64::from(place_of_byte != 8), "byte {place_of_byte}");
    }
}

#[tokio::test]
async fn what_breaks_on_the_way_is_cut_short_and_never_wrong() {
    let (mut place, (backend, _)) = (Place::new(), backend(LONG, FRESH).await);
    let (proxy, mut client) = place.start(&backend).await;
    ask(&mut client, "GET /a", "").await;
    written(&proxy, 1).await;
    // Of this process, so it was not looked through again.
    flip(&place.file(), LONG as u64);
    client.write("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    let mut seen = Vec::new();
    let _ = client.stream.read_to_end(&mut seen).await;
    let head = seen.windows(4).position(|end| end == b"\r\n\r\n").expect("a head") + 4;
    assert!(seen.len() < head + LONG && body(0, LONG).starts_with(&seen[head..]));
    proxy.log.line(&["cache_broken"]).await;
    let mut client = Client::connect(([127, 0, 0, 1], place.port).into()).await;
    let reply = ask(&mut client, "GET /a", "").await;
    assert!(!is_hit(&reply) && reply.body == body(1, LONG));
}

#[tokio::test]
async fn what_is_cut_short_under_the_node_is_a_miss() {
    let (mut place, (backend, _)) = (Place::new(), backend(LONG, FRESH).await);
    let (proxy, mut client) = place.start(&backend).await;
    ask(&mut client, "GET /a", "").await;
    written(&proxy, 1).await;
    let file = std::fs::OpenOptions::new().write(true).open(place.file()).expect("it is there");
    file.set_len(LONG as u64 / 2).expect("it can be cut");
    let reply = ask(&mut client, "GET /a", "").await;
    assert!(!is_hit(&reply) && reply.body == body(1, LONG), "{}", reply.head);
    assert_eq!(disk_of(&proxy).corrupt, 1);
}

fn flip(file: &Path, at: u64) {
    let mut bytes = std::fs::read(file).expect("readable");
    bytes[usize::try_from(at).expect("an index")] ^= 1;
    std::fs::write(file, bytes).expect("writable");
}

#[tokio::test]
async fn what_was_purged_while_the_node_was_away_is_not_served() {
    let purge = |number, what| Purge { number, what };
    let url = PurgeWhat::Url("http://shop/a".into());
    for (what, floor, purges, still) in [
        ("nothing", 0, vec![], true),
        ("its URL", 0, vec![purge(7, url.clone())], false),
        ("its tag", 0, vec![purge(7, PurgeWhat::Tag("t".into()))], false),
        ("another", 0, vec![purge(7, PurgeWhat::Url("http://shop/b".into()))], true),
        ("an older one, seen before", 0, vec![purge(5, url.clone())], true),
        ("more than is remembered", 6, vec![], false),
    ] {
        let (mut place, (backend, _)) = (Place::new(), backend(LONG, FRESH).await);
        let (proxy, mut client) = place.start(&backend).await;
        proxy.plane.set_purges(0, [purge(5, url.clone())]);
        ask(&mut client, "GET /a", "").await;
        written(&proxy, 1).await;
        drop(proxy);
        let (proxy, mut client) = place.start(&backend).await;
        // Of that number its file knows.
        let known = [purge(5, PurgeWhat::Tag("none".into()))];
        proxy.plane.set_purges(floor, known.into_iter().chain(purges));
        let reply = ask(&mut client, "GET /a", "").await;
        assert_eq!(is_hit(&reply), still, "{what}: {}", reply.head);
        assert!(reply.body == body(usize::from(!still), LONG), "{what}");
    }
}

#[tokio::test]
async fn a_node_that_knows_of_fewer_purges_or_is_of_another_cluster_serves_nothing_of_it() {
    let (mut place, (backend, count)) = (Place::new(), backend(LONG, FRESH).await);
    let (proxy, mut client) = place.start(&backend).await;
    proxy.plane.set_purges(5, []);
    ask(&mut client, "GET /a", "").await;
    written(&proxy, 1).await;
    drop(proxy);
    // Its cluster began anew from an older state.
    let (proxy, mut client) = place.start(&backend).await;
    let reply = ask(&mut client, "GET /a", "").await;
    assert!(!is_hit(&reply) && count.load(Relaxed) == 2, "{}", reply.head);
    written(&proxy, 1).await;
    drop(proxy);
    let (proxy, mut client) = place.start_in([2; 16], backend.address).await;
    assert_eq!((disk_of(&proxy).objects, place.files().len()), (0, 0));
    assert!(!is_hit(&ask(&mut client, "GET /a", "").await));
}

#[tokio::test]
async fn what_was_invalidated_is_asked_for_also_after_a_restart_and_what_was_validated_is_not() {
    let (mut place, (backend, count)) = (Place::new(), backend(LONG, FRESH).await);
    let (proxy, mut client) = place.start(&backend).await;
    for path in ["/a", "/b"] {
        ask(&mut client, &format!("GET {path}"), "").await;
    }
    written(&proxy, 2).await;
    ask(&mut client, "POST /a", "Content-Length: 0\r\n").await;
    drop(proxy);
    let (proxy, mut client) = place.start(&backend).await;
    assert_eq!(count.load(Relaxed), 3);
    let reply = ask(&mut client, "GET /a", "").await;
    assert!(cache_status(&reply).contains("fwd-status=304") && reply.body == body(0, LONG), "{}", reply.head);
    assert!(is_hit(&ask(&mut client, "GET /a", "").await) && is_hit(&ask(&mut client, "GET /b", "").await));
    assert_eq!(count.load(Relaxed), 4);
    // What is still to be written is, before a node ends.
    drop(proxy);
    let (_proxy, mut client) = place.start(&backend).await;
    assert!(is_hit(&ask(&mut client, "GET /a", "").await));
    assert_eq!(count.load(Relaxed), 4);
}

#[tokio::test]
async fn variants_are_found_after_a_restart() {
    const VARIED: &[(&str, &str)] = &[("cache-control", "max-age=3600"), ("vary", "x-lang")];
    let (mut place, (backend, count)) = (Place::new(), backend(LONG, VARIED).await);
    let (proxy, mut client) = place.start(&backend).await;
    for lang in ["de", "en"] {
        ask(&mut client, "GET /a", &format!("X-Lang: {lang}\r\n")).await;
    }
    written(&proxy, 2).await;
    drop(proxy);
    let (_proxy, mut client) = place.start(&backend).await;
    for (lang, number) in [("en", 1), ("de", 0)] {
        let reply = ask(&mut client, "GET /a", &format!("X-Lang: {lang}\r\n")).await;
        assert!(is_hit(&reply) && reply.body == body(number, LONG), "{lang}: {}", reply.head);
    }
    assert!(!is_hit(&ask(&mut client, "GET /a", "X-Lang: fr\r\n").await));
    assert_eq!(count.load(Relaxed), 3);
}

#[tokio::test]
async fn the_folder_stays_within_its_bound_and_what_is_asked_for_stays() {
    let (mut place, (backend, _)) = (Place::new(), backend(LONG, FRESH).await);
    place.max = 2 << 20;
    let (proxy, mut client) = place.start(&backend).await;
    let taken = |place: &Place| -> u64 {
        let blocks = |file: &PathBuf| {
            std::fs::metadata(file).map_or(0, |file| std::os::unix::fs::MetadataExt::blocks(&file) * 512)
        };
        place.files().iter().map(blocks).sum()
    };
    for number in 0..20 {
        ask(&mut client, &format!("GET /{number}"), "").await;
        until("it is written", || disk_of(&proxy).written > number).await;
        assert!(taken(&place) <= place.max, "{} bytes", taken(&place));
        assert!(number == 0 || is_hit(&ask(&mut client, "GET /0", "").await), "{number}");
    }
    let stats = disk_of(&proxy);
    assert_eq!((stats.objects, stats.objects + stats.evicted), (6, 20), "{stats:?}");
    assert!(stats.bytes <= stats.bytes_max);
    drop(proxy);
    place.max = 1 << 20;
    let (proxy, _) = place.start(&backend).await;
    until("those beyond a smaller bound are gone", || place.files().len() == 3).await;
    assert_eq!(disk_of(&proxy).objects, 3);
}

#[tokio::test]
async fn what_comes_before_the_folder_is_known_takes_nothing_from_it() {
    let (mut place, (backend, count)) = (Place::new(), backend(LONG, FRESH).await);
    let (proxy, mut client) = place.start(&backend).await;
    ask(&mut client, "GET /a", "").await;
    written(&proxy, 1).await;
    let file = place.file();
    drop(proxy);

    // It can't know whose purges it will hear of, and so asks its member.
    let proxy = place.proxy();
    let mut client = place.serve(&proxy, cached(backend.address, "{ mode: on }")).await;
    assert_eq!(ask(&mut client, "GET /a", "").await.body, body(1, LONG));
    proxy.plane.enter_cluster(CLUSTER);
    until("what is there is known", || disk_of(&proxy).indexed).await;
    let newer = ask(&mut client, "GET /a", "").await;
    assert!(is_hit(&newer) && newer.body == body(1, LONG), "{}", newer.head);
    assert_eq!((disk_of(&proxy).objects, place.file()), (1, file));
    drop(proxy);

    // Something newer was there in the meantime: what lies there is served once its member has said that it holds.
    let (_proxy, mut client) = place.start(&backend).await;
    let again = ask(&mut client, "GET /a", "").await;
    assert!(cache_status(&again).starts_with("trestle; fwd=stale; fwd-status=304"), "{}", again.head);
    assert!(is_hit(&ask(&mut client, "GET /a", "").await));
    assert_eq!(count.load(Relaxed), 3);
}

#[tokio::test]
async fn a_body_on_disk_is_compressed_once_and_its_forms_go_with_it() {
    const LENGTH: usize = 2_000_000;
    const KEPT: [(&str, &str); 2] = [("content-type", "text/html"), ("cache-control", "max-age=3600")];
    let page = Bytes::from(text(LENGTH));
    let body = page.clone();
    let backend = Backend::answering(move |_| response(200, &KEPT, body.clone())).await;
    let on = || compressing::with(&backend, "compression: { mode: on }, cache: { mode: on }");
    let mut place = Place::new();
    let gzip = "Accept-Encoding: gzip\r\n";
    let (proxy, mut client) = place.start_with(CLUSTER, on()).await;
    assert_eq!(plain(&ask(&mut client, "GET /a", gzip).await), page);
    written(&proxy, 1).await;
    let coded = ask(&mut client, "GET /a", gzip).await;
    assert!(is_hit(&coded) && plain(&coded) == page, "{}", coded.head);
    written(&proxy, 2).await;
    let served_as_kept = async |client: &mut Client, coded: &Reply| {
        let reply = ask(client, "GET /a", gzip).await;
        let length = coded.body.len().to_string();
        let told = (reply.header("content-encoding"), reply.header("content-length"), reply.header("vary"));
        assert_eq!(told, (Some("gzip"), Some(length.as_str()), Some("Accept-Encoding")), "{}", reply.head);
        assert!(is_hit(&reply) && reply.body == coded.body, "the same bytes");
    };
    served_as_kept(&mut client, &coded).await;
    assert_eq!(proxy.metric("trestle_compression_kept_total"), Some(1.0));
    // Others get theirs, and it is kept as well.
    let plainly = ask(&mut client, "GET /a", "").await;
    assert!(plainly.body == page && plainly.header("content-encoding").is_none());
    assert_eq!(ask(&mut client, "GET /a", &format!("{gzip}Range: bytes=1-9\r\n")).await.body, page[1..10]);
    assert_eq!(plain(&ask(&mut client, "GET /a", "Accept-Encoding: br\r\n").await), page);
    written(&proxy, 3).await;
    assert_eq!(disk_of(&proxy).objects, 3);
    drop(proxy);

    let (proxy, mut client) = place.start_with(CLUSTER, on()).await;
    served_as_kept(&mut client, &coded).await;
    assert_eq!((backend.seen().len(), disk_of(&proxy).objects), (1, 3));
    drop(proxy);

    // A form that has changed is made anew.
    let is_form = |file: &PathBuf| std::fs::metadata(file).is_ok_and(|found| found.len() < LENGTH as u64);
    let forms: Vec<_> = place.files().into_iter().filter(is_form).collect();
    assert_eq!(forms.len(), 2);
    forms.iter().for_each(|form| flip(form, 10_000));
    let (proxy, mut client) = place.start_with(CLUSTER, on()).await;
    let anew = ask(&mut client, "GET /a", gzip).await;
    assert!(is_hit(&anew) && plain(&anew) == page, "{}", anew.head);
    written(&proxy, 1).await;
    served_as_kept(&mut client, &anew).await;
    assert_eq!(disk_of(&proxy).corrupt, 1);

    proxy.plane.purge([Purge { number: 1, what: PurgeWhat::All }]);
    ask(&mut client, "HEAD /a", "").await;
    until("forms go with their body", || place.files().is_empty()).await;
    assert_eq!((disk_of(&proxy).objects, disk_of(&proxy).bytes), (0, 0));
}

#[tokio::test]
async fn a_disk_that_fails_is_told_and_costs_no_request_anything() {
    let (mut place, (backend, _)) = (Place::new(), backend(LONG, FRESH).await);
    let (proxy, mut client) = place.start(&backend).await;
    // Where folders would have to be.
    for part in 0..=255 {
        std::fs::write(place.dir.path().join(format!("objects/{part:02x}")), "").expect("writable");
    }
    for number in 0..3 {
        assert_eq!(
            ask(&mut client, "GET /a", "").await.body,
            body(0, LONG),
            "it is kept in memory: {number}"
        );
    }
    until("it is told", || disk_of(&proxy).problem.is_some()).await;
    ask(&mut client, "GET /b", "").await;
    until("nothing more is tried", || disk_of(&proxy).not_kept == 2).await;
    assert_eq!(proxy.metric("trestle_cache_disk_failing "), Some(1.0));
}

#[tokio::test]
async fn what_is_left_half_written_goes_and_what_is_not_ours_stays() {
    let (mut place, (backend, _)) = (Place::new(), backend(LONG, FRESH).await);
    let part = place.dir.path().join("objects/0a");
    std::fs::create_dir_all(&part).expect("writable");
    for name in ["0a00000000000001.tmp", "0a00000000000002.obj", "notes.txt"] {
        std::fs::write(part.join(name), "something").expect("writable");
    }
    let (proxy, _) = place.start(&backend).await;
    assert_eq!(place.file(), part.join("notes.txt"));
    assert_eq!(disk_of(&proxy).objects, 0);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_kept_nowhere() {
    let mut place = Place::new();
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let backend = Backend::raw(move |mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            let _ = stream.read(&mut [0; 1000]).await;
            let head =
                format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: {LONG}\r\n\r\n");
            let answer = [head.as_bytes(), &body(0, LONG - 1)].concat();
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &answer).await;
            counter.fetch_add(1, Relaxed);
        }
    })
    .await;
    let (proxy, mut client) = place.start(&backend).await;
    client.write("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n").await;
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), client.stream.read_to_end(&mut rest));
    let _ = read.await.expect("it ends");
    until("nothing is left of it", || place.files().is_empty() && disk_of(&proxy).bytes == 0).await;
    assert_eq!((disk_of(&proxy).written, sent.load(Relaxed)), (0, 1));
}
