//! The admin API as the suite uses it: one connection a request, every wait bounded, and three ways
//! to end: it was done, it was surely not done, it is not known.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::place::{Place, succeed};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A node answers a change within 5 s and waits up to 2 s more until all serve it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(9);

/// Of a question that a node answers from memory.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// No answer of ours is larger.
const ANSWER_MAX: u64 = 8 << 20;

/// One node's admin API: plain HTTP on the loopback interface of the node's own network, or, where
/// only TLS gets there, the command line.
#[derive(Clone, Debug)]
pub struct Admin {
    pub place: Place,
    pub address: SocketAddr,
    pub cli: Option<Cli>,
}

/// A `trestle` that speaks for us, and the key by which it is known.
#[derive(Clone, Debug)]
pub struct Cli {
    pub program: PathBuf,
    pub key_file: PathBuf,
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Of `ETag`, a config's revision.
    pub revision: Option<u64>,
    pub body: Vec<u8>,
}

/// How an operation on the config ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done<T> {
    Yes(T),
    /// Refused: the revision in force is another.
    Conflict,
    /// Surely without effect.
    No(String),
    /// Nobody can say.
    Unknown(String),
}

/// A part of `GET /v1/status`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub ready: bool,
    pub name: String,
    pub node: u64,
    pub leader: Option<u64>,
    pub term: u64,
    pub quorum: bool,
    pub revision: u64,
    pub served_revision: u64,
    pub applied_index: u64,
    pub listeners: Vec<Listener>,
    pub nodes: Vec<Member>,
    pub vips: Vec<Vip>,
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Listener {
    pub listener: String,
    pub protocol: String,
    pub address: Option<SocketAddr>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Member {
    pub id: u64,
    pub name: String,
    pub membership: String,
    pub leader: bool,
    pub alive: bool,
    pub seated: bool,
    pub revision: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Vip {
    pub vip: String,
    pub addresses: Vec<String>,
    pub owner: Option<String>,
    pub epoch: u64,
    pub held_here: bool,
    pub problem: Option<String>,
}

impl Status {
    /// The leader's name, as this node knows it.
    pub fn leader_name(&self) -> Option<&str> {
        self.nodes.iter().find(|n| n.leader).map(|n| n.name.as_str())
    }

    pub fn owner(&self, vip: &str) -> Option<&str> {
        self.vips.iter().find(|v| v.vip == vip)?.owner.as_deref()
    }
}

impl Admin {
    pub fn plain(place: Place, address: SocketAddr) -> Admin {
        Admin { place, address, cli: None }
    }

    /// What makes the command line speak to this node.
    pub fn arguments(&self) -> Vec<String> {
        let (scheme, key) = match &self.cli {
            Some(cli) => ("https", vec!["--key-file".to_owned(), cli.key_file.display().to_string()]),
            None => ("http", Vec::new()),
        };
        [vec!["--admin".to_owned(), format!("{scheme}://{}", self.address)], key].concat()
    }

    /// # Errors
    /// No answer, or one that is no status.
    pub fn status(&self) -> anyhow::Result<Status> {
        if let Some(cli) = &self.cli {
            let mut command = self.place.command(&cli.program);
            let text = succeed(command.args(["status", "-o", "json"]).args(self.arguments()))?;
            return serde_json::from_str(&text).context("a status as JSON");
        }
        let answer = self.request("GET", "/v1/status", &[], b"", LOOK_TIMEOUT)?;
        ensure!(answer.status == 200, "status {}", answer.status);
        serde_json::from_slice(&answer.body).context("a status as JSON")
    }

    /// One number of `/metrics`.
    ///
    /// # Errors
    /// No answer, or no such metric.
    pub fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let answer = self.request("GET", "/metrics", &[], b"", LOOK_TIMEOUT)?;
        let text = String::from_utf8_lossy(&answer.body);
        let line = text.lines().find(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        let value = line.and_then(|l| l.rsplit(' ').next()).with_context(|| format!("no metric {name}"))?;
        value.parse().with_context(|| format!("{name} is {value:?}"))
    }

    /// The document in force, as YAML, and its revision.
    pub fn read(&self, linearizable: bool) -> Done<(u64, String)> {
        let consistency = if linearizable { "linearizable" } else { "local" };
        let path = format!("/v1/config?consistency={consistency}");
        match self.request("GET", &path, &[], b"", ANSWER_TIMEOUT) {
            Ok(Answer { status: 200, revision: Some(revision), body }) => {
                Done::Yes((revision, String::from_utf8_lossy(&body).into_owned()))
            }
            Ok(other) => Done::No(refusal(&other)),
            // A read changes nothing, however it ends.
            Err(e) => Done::No(format!("{e:#}")),
        }
    }

    /// Puts `document` in force if `expected` still is, and yields the new revision.
    pub fn write(&self, document: &str, expected: Option<u64>, message: &str) -> Done<u64> {
        let expected = expected.map(|e| e.to_string());
        let headers: Vec<_> = expected.iter().map(|e| ("if-match", e.as_str())).collect();
        let path = format!("/v1/config?message={message}&source=chaos.yaml");
        let stream = match self.place.connect(self.address, CONNECT_TIMEOUT) {
            Ok(stream) => stream,
            Err(e) => return Done::No(format!("connect: {e}")),
        };
        match exchange(stream, self.address, "PUT", &path, &headers, document.as_bytes(), ANSWER_TIMEOUT) {
            Ok(answer) => outcome(&answer),
            Err(e) => Done::Unknown(format!("{e:#}")),
        }
    }

    /// # Errors
    /// No answer within the time.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        timeout: Duration,
    ) -> anyhow::Result<Answer> {
        let stream = self.place.connect(self.address, CONNECT_TIMEOUT);
        let stream = stream.with_context(|| format!("connect {}", self.address))?;
        exchange(stream, self.address, method, path, headers, body, timeout)
    }

    /// A change that is no document: `POST` or `DELETE`.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn order(&self, method: &str, path: &str) -> anyhow::Result<Value> {
        let answer = self.request(method, path, &[], b"", ANSWER_TIMEOUT)?;
        ensure!(answer.status < 300, "{method} {path}: {}", refusal(&answer));
        Ok(serde_json::from_slice(&answer.body).unwrap_or(Value::Null))
    }
}

/// The API's own words: `docs/operating.md` and the error codes say which refusals changed nothing.
fn outcome(answer: &Answer) -> Done<u64> {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
    let code = body["error"]["code"].as_str().unwrap_or_default();
    match (answer.status, code) {
        (200..=299, _) => match body["revision"].as_u64() {
            Some(revision) => Done::Yes(revision),
            None => Done::Unknown("a success without a revision".to_owned()),
        },
        (409, "revision_conflict") => Done::Conflict,
        (503, "no_quorum" | "starting") | (400, _) | (401..=404, _) => Done::No(refusal(answer)),
        _ => Done::Unknown(refusal(answer)),
    }
}

fn refusal(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.body);
    format!("{}: {}", answer.status, text.chars().take(300).collect::<String>().trim())
}

fn exchange(
    mut stream: TcpStream,
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    timeout: Duration,
) -> anyhow::Result<Answer> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n");
    head.push_str(&format!("content-length: {}\r\n", body.len()));
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    stream.write_all(&bytes).context("send")?;
    read_answer(BufReader::new(stream.take(ANSWER_MAX)))
}

fn read_answer(mut from: impl BufRead) -> anyhow::Result<Answer> {
    let first = line(&mut from)?;
    let status = first.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.with_context(|| format!("a status line {first:?}"))?;
    let (mut revision, mut length) = (None, None);
    loop {
        let line = line(&mut from)?;
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else { bail!("a header line {line:?}") };
        match name.to_ascii_lowercase().as_str() {
            "etag" => revision = value.trim().trim_matches('"').parse().ok(),
            "content-length" => length = value.trim().parse::<u64>().ok(),
            "transfer-encoding" => bail!("a chunked answer"),
            _ => {}
        }
    }
    let mut body = Vec::new();
    match length {
        Some(length) => {
            let got = from.take(length).read_to_end(&mut body).context("the body")?;
            ensure!(got as u64 == length, "the body was cut: {got} of {length} bytes");
        }
        None => {
            from.read_to_end(&mut body).context("the body")?;
        }
    }
    Ok(Answer { status, revision, body })
}

fn line(from: &mut impl BufRead) -> anyhow::Result<String> {
    let mut line = String::new();
    ensure!(from.read_line(&mut line).context("a line of the answer")? > 0, "the connection was closed");
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, revision: None, body: body.as_bytes().to_vec() }
    }

    #[test]
    fn only_what_the_api_says_is_without_effect_counts_as_not_done() {
        let error = |code: &str| format!(r#"{{"error":{{"code":"{code}"}}}}"#);
        assert_eq!(outcome(&answer(200, r#"{"revision":7}"#)), Done::Yes(7));
        assert_eq!(outcome(&answer(409, &error("revision_conflict"))), Done::Conflict);
        assert!(matches!(outcome(&answer(503, &error("no_quorum"))), Done::No(_)));
        assert!(matches!(outcome(&answer(504, &error("outcome_unknown"))), Done::Unknown(_)));
        assert!(matches!(outcome(&answer(500, "")), Done::Unknown(_)));
        assert!(matches!(outcome(&answer(502, "")), Done::Unknown(_)));
    }

    #[test]
    fn an_answer_that_was_cut_is_none() {
        let whole = "HTTP/1.1 200 OK\r\netag: \"12\"\r\ncontent-length: 4\r\n\r\nbody";
        let read = read_answer(whole.as_bytes()).unwrap();
        assert_eq!((read.status, read.revision, read.body.as_slice()), (200, Some(12), &b"body"[..]));
        assert!(read_answer(&whole.as_bytes()[..whole.len() - 1]).is_err());
    }
}
