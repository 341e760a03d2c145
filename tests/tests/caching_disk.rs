//! Long responses on disk, with whole nodes: what outlasts a node's death, and what does not.

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::Signal;
use trestle_tests::{Nginx, Node, eventually, free_port, http, peers};

const SOON: Duration = Duration::from_secs(30);
const HOST: &str = "cdn.example.com";
const LONG: usize = 5 << 20;

/// An origin of large files, and what it was asked for.
struct Origin {
    nginx: Option<Nginx>,
    port: u16,
    site: PathBuf,
}

impl Origin {
    fn start() -> Origin {
        let port = free_port();
        let mut site = PathBuf::new();
        let nginx = Nginx::start(|dir| {
            site = dir.join("site");
            std::fs::create_dir_all(&site).expect("a folder");
            format!(
                "server {{ listen 127.0.0.1:{port}; root {site}; add_header Cache-Control 'max-age=3600' always;\n\
                 location = /ready {{ return 200 ok; }} }}",
                site = site.display(),
            )
        });
        eventually(SOON, "nginx answers", || http::get(([127, 0, 0, 1], port).into(), "x", "/ready"));
        Origin { nginx: Some(nginx), port, site }
    }

    fn publish(&self, path: &str, seed: u8) -> Film {
        let bytes: Vec<u8> = (0..LONG).map(|at| (at / 7 % 251) as u8 ^ seed).collect();
        std::fs::write(self.site.join(path), &bytes).expect("it can be written");
        Film(bytes)
    }

    /// From then on nobody answers.
    fn end(&mut self) {
        self.nginx = None;
    }
}

/// A whole body, which nobody wants printed.
#[derive(Clone, PartialEq)]
struct Film(Vec<u8>);

impl std::fmt::Debug for Film {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, {:?}...", self.0.len(), &self.0[..self.0.len().min(8)])
    }
}

/// What a node answers, and whether it has asked nobody.
fn ask(web: SocketAddr, path: &str) -> anyhow::Result<(Film, bool)> {
    let answer = http::get(web, HOST, path)?;
    ensure!(answer.status == 200, "{}: {}", answer.status, answer.text());
    let is_hit = answer.header("cache-status").is_some_and(|status| status.starts_with("trestle; hit"));
    Ok((Film(answer.body), is_hit))
}

fn config(origin: &Origin) -> String {
    format!(
        "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, cache: {{ mode: on }} }} }}\n\
         routes: {{ all: {{ rules: [{{ pools: [site] }}] }} }}\n\
         pools: {{ site: {{ members: [\"127.0.0.1:{}\"] }} }}\n",
        origin.port
    )
}

/// A cluster of one that keeps long responses on disk, and what it is started again with.
fn node(dir: &Path, origin: &Origin, more: &[&str]) -> (Node, Vec<String>) {
    let file = dir.join("config.yaml");
    std::fs::write(&file, config(origin)).expect("it can be written");
    let disk = dir.join("cache");
    let (file, disk) = (file.display().to_string(), disk.display().to_string());
    let args = ["--bootstrap", "--config", &file, "--cache-disk", &disk];
    let node = Node::start_copy("n1", dir, &[&args, more].concat());
    node.wait_ready();
    (node, vec!["--cache-disk".to_owned(), disk])
}

fn disk(node: &Node) -> anyhow::Result<serde_json::Value> {
    let stats = node.json(&["cache", "stats"])?;
    ensure!(stats["disk"]["indexed"] == true, "{stats}");
    Ok(stats["disk"].clone())
}

fn wait_written(node: &Node, count: u64) {
    eventually(SOON, "it is on disk", || {
        let disk = disk(node)?;
        ensure!(disk["objects"] == count, "{disk}");
        Ok(())
    });
}

/// Back after a start: what was kept is served without asking.
fn wait_serving(node: &Node) -> SocketAddr {
    node.wait_ready();
    eventually(SOON, "it knows what is there and may serve it", || {
        let stats = node.json(&["cache", "stats"])?;
        ensure!(stats["disk"]["indexed"] == true && stats["trusted"] == true, "{stats}");
        node.listener("web")
    })
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let below = |at: PathBuf| std::fs::read_dir(at).into_iter().flatten().flatten().map(|entry| entry.path());
    below(dir.join("cache/objects")).flat_map(below).collect()
}

#[test]
fn a_long_response_outlasts_a_killed_node_and_what_was_changed_or_purged_is_asked_for() {
    if !peers::have(&["nginx"]) {
        return;
    }
    let mut origin = Origin::start();
    let dir = tempfile::tempdir().expect("a folder");
    let first = origin.publish("film", 0);
    let (mut node, again) = node(dir.path(), &origin, &[]);
    let again: Vec<&str> = again.iter().map(String::as_str).collect();
    let web = wait_serving(&node);
    assert_eq!(ask(web, "/film").expect("it answers"), (first.clone(), false));
    wait_written(&node, 1);

    // Killed: what it had in memory is gone. Its origin has another one, but is not asked.
    node.kill9();
    let second = origin.publish("film", 1);
    node.restart_with(&again);
    let web = wait_serving(&node);
    assert_eq!(ask(web, "/film").expect("it answers"), (first.clone(), true));
    let range = [("range", "bytes=1000000-1000099")];
    let part = http::request(web, "GET", HOST, "/film", &range, b"").expect("it answers");
    assert_eq!(part.body, first.0[1_000_000..1_000_100]);
    assert_eq!((part.status, part.body.len()), (206, 100));

    // One bit of it is another: the right bytes come from the origin.
    node.kill9();
    let file = files(dir.path()).pop().expect("a file");
    let mut file = std::fs::File::options().read(true).write(true).open(file).expect("it opens");
    let mut byte = [0];
    file.seek(SeekFrom::Start(3 << 20)).expect("it is long");
    file.read_exact(&mut byte).expect("it is there");
    file.seek(SeekFrom::Start(3 << 20)).expect("it is long");
    file.write_all(&[byte[0] ^ 4]).expect("it can be written");
    node.restart_with(&again);
    let web = wait_serving(&node);
    assert_eq!(ask(web, "/film").expect("it answers"), (second.clone(), false));
    eventually(SOON, "it is told", || {
        let disk = disk(&node)?;
        ensure!(disk["corrupt"] == 1 && disk["written"] == 1, "{disk}");
        Ok(())
    });

    // The program on disk takes its place: the folder is its own again.
    let before = node.log().matches("node serves").count();
    node.signal(Signal::USR2);
    eventually(SOON, "the next one serves", || {
        ensure!(node.log().matches("node serves").count() > before, "not yet");
        Ok(())
    });
    let web = wait_serving(&node);
    assert_eq!(ask(web, "/film").expect("it answers"), (second.clone(), true));

    // Without an origin it is served all the same.
    node.kill9();
    origin.end();
    node.restart_with(&again);
    let web = wait_serving(&node);
    assert_eq!(ask(web, "/film").expect("it answers"), (second, true));
    node.json(&["cache", "purge", "--all"]).expect("it is purged");
    assert!(ask(web, "/film").is_err(), "nobody has it any more");
}

#[test]
fn what_is_purged_while_a_node_is_down_is_not_served_from_its_disk() {
    if !peers::have(&["nginx"]) {
        return;
    }
    let origin = Origin::start();
    let dir = tempfile::tempdir().expect("a folder");
    let (first, other) = (origin.publish("film", 0), origin.publish("other", 7));
    let mut cluster = trestle_tests::Cluster::start(3, &config(&origin));
    cluster.wait_grown_up();
    let at = dir.path().join("cache").display().to_string();
    let away = (cluster.leader() + 1) % 3;
    cluster.nodes[away].stop();
    let key = cluster.key().display().to_string();
    let again = ["--key-file", &key, "--cache-disk", &at];
    cluster.nodes[away].restart_with(&again);
    let web = wait_serving(&cluster.nodes[away]);
    for (path, sum) in [("/film", &first), ("/other", &other)] {
        assert_eq!(ask(web, path).expect("it answers").0, *sum);
    }
    wait_written(&cluster.nodes[away], 2);

    cluster.nodes[away].kill9();
    let second = origin.publish("film", 1);
    origin.publish("other", 2);
    let up = (away + 1) % 3;
    let purge = format!("http://{HOST}/film");
    cluster.nodes[up].json(&["cache", "purge", &purge]).expect("it is purged");
    cluster.nodes[away].restart_with(&again);
    let web = eventually(SOON, "it is open", || cluster.nodes[away].listener("web"));
    // From its first answer on.
    eventually(SOON, "it answers", || {
        let (found, is_hit) = ask(web, "/film")?;
        assert!(found == second && !is_hit, "what was purged comes back");
        Ok(())
    });
    let web = wait_serving(&cluster.nodes[away]);
    assert_eq!(ask(web, "/other").expect("it answers"), (other, true), "the other is still its own");
}

#[test]
fn the_folder_stays_within_its_bound_and_belongs_to_one_node() {
    if !peers::have(&["nginx"]) {
        return;
    }
    let origin = Origin::start();
    let dir = tempfile::tempdir().expect("a folder");
    let (node, _) = node(dir.path(), &origin, &["--cache-disk-max", "64MiB"]);
    let web = wait_serving(&node);
    for number in 0..20 {
        let path = format!("film-{number}");
        let sum = origin.publish(&path, number);
        assert_eq!(ask(web, &format!("/{path}")).expect("it answers").0, sum);
        eventually(SOON, "it is written", || {
            let disk = disk(&node)?;
            ensure!(disk["written"] == u64::from(number) + 1, "{disk}");
            Ok(())
        });
        let blocks = |file: &PathBuf| {
            std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(file).expect("a file"))
        };
        let taken: u64 = files(dir.path()).iter().map(blocks).sum::<u64>() * 512;
        assert!(taken <= 64 << 20, "{taken} bytes");
    }
    let metrics = node.metrics().expect("metrics");
    let evicted = metrics.lines().find_map(|line| line.strip_prefix("trestle_cache_disk_evicted_total "));
    assert!(evicted.is_some_and(|count| count.parse().is_ok_and(|count: u64| count >= 8)), "{evicted:?}");

    let second = dir.path().join("second");
    let taken = [
        (dir.path().join("cache"), "is used by another process"),
        (node.data_dir(), "is the data folder of a node"),
    ];
    for (folder, says) in taken {
        let output = std::process::Command::new(trestle_tests::trestle())
            .args(["run", "--bootstrap", "--cluster", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data-dir"])
            .arg(&second)
            .arg("--cache-disk")
            .arg(folder)
            .output()
            .context("it runs")
            .expect("it ends by itself");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success());
        assert_eq!(said.matches(says).count(), 1, "{said}");
    }
}
