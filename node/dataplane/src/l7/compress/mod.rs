//! Compression of members' responses, for clients that take it.
//!
//! Where it stands: after the cache, which keeps what members sent (and, beside an entry, its coded forms:
//! [`crate::cache::coded`]), after edits of bodies and of the header; the last thing that happens to a response.
//! [`negotiate`] says what a client takes, [`types`] what is worth it, this module which responses are coded and what their
//! header says; a [`coder`] is one stream, [`coded`] a body that is coded on its way, with [`lanes`] for long ones.
//!
//! Invariants:
//! - a response says `Vary: Accept-Encoding` if another client could have got it otherwise, coded or not;
//! - what a header says of bytes (length, strong tag, digests, ranges) never goes with others than those that it is about;
//! - the memory of all coders of a node stays within one bound ([`Works`]); beyond it responses go as they are.

pub(crate) mod coded;
pub(crate) mod coder;
mod lanes;
mod negotiate;
mod types;

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{
    ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_NONE_MATCH, VARY,
};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use trestle_config::model::{self, Algorithm};

use super::head::has_token;
use super::record::Record;
use super::substitute;
use crate::budget::{Budget, Hold};
use crate::cache::directives::forbids_transforming;
use crate::cache::disk::Form;
use crate::cache::entry::Pieces;
use crate::metrics::{Counter, PerWorker};
use coder::Coder;
use lanes::Lanes;
use negotiate::Choice;
use types::Types;

/// Memory that the coders of a worker may take.
const WORKER_MEMORY: u64 = 64 << 20;

/// What an operator wants of a rule's responses.
#[derive(Debug)]
pub(crate) struct Policy {
    algorithms: Box<[Algorithm]>,
    min: u64,
    types: Types,
}

/// What a client takes, kept until there is an answer.
#[derive(Debug)]
pub(crate) struct Wish {
    choice: Choice,
    /// The tags of what it has.
    has: Vec<HeaderValue>,
}

impl Policy {
    pub(crate) fn compile(settings: &model::Compression) -> Option<Self> {
        settings.on.then(|| Self {
            algorithms: settings.algorithms.as_slice().into(),
            min: settings.min,
            types: Types::compile(&settings.types),
        })
    }

    pub(crate) fn wish(&self, request: &HeaderMap) -> Box<Wish> {
        Box::new(Wish {
            choice: match forbids_transforming(request) {
                true => Choice::NONE,
                false => Choice::of(request, &self.algorithms),
            },
            has: request.get_all(IF_NONE_MATCH).iter().cloned().collect(),
        })
    }

    /// What a response is to be coded with; its header says that there is a choice. `length`: of its body, as far as it
    /// is known.
    fn choose(
        &self,
        wish: &Wish,
        method: &Method,
        status: StatusCode,
        head: &mut HeaderMap,
        length: Option<u64>,
    ) -> Option<Algorithm> {
        if status == StatusCode::NOT_MODIFIED {
            // Nobody knows what a whole response would have been: it may have been coded.
            vary(head);
            if wish.has_weak(head.get(ETAG)) {
                substitute::weaken(head);
            }
            return None;
        }
        if length == Some(0) && *method != Method::HEAD {
            return None;
        }
        if status == StatusCode::PARTIAL_CONTENT {
            // It says what the whole would (RFC 9110, section 15.3.7).
            if is_plain(head) && (self.types.have(head) || types::has_parts(head)) {
                vary(head);
            }
            return None;
        }
        let told = head.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let length = told.or(length.filter(|_| *method != Method::HEAD));
        if length == Some(0) || !may_be_coded(status, head) || !self.types.have(head) {
            return None;
        }
        let is_short = length.is_some_and(|length| length < self.min);
        if is_short && !wish.choice.refuses_identity {
            // Where its length is not told it is short by chance: its end has come with its head.
            if told.is_none() {
                vary(head);
            }
            return None;
        }
        vary(head);
        wish.choice.algorithm
    }
}

impl Wish {
    /// Whether the client has a tag in its weak form only: what it has came coded.
    fn has_weak(&self, tag: Option<&HeaderValue>) -> bool {
        let Some(tag) = tag.map(HeaderValue::as_bytes).filter(|tag| tag.starts_with(b"\"")) else {
            return false;
        };
        let lists = || self.has.iter().map(HeaderValue::as_bytes);
        let weak = [b"W/", tag].concat();
        let found =
            |tag: &[u8]| lists().map(|list| memchr::memmem::find_iter(list, tag).count()).sum::<usize>();
        let weak = found(&weak);
        weak > 0 && weak == found(tag)
    }
}

/// Whether there is a whole body that is as its member made it, and may be made otherwise.
fn may_be_coded(status: StatusCode, head: &HeaderMap) -> bool {
    let has_other = matches!(status.as_u16(), 204 | 205 | 206 | 226 | 304 | 416);
    !status.is_informational() && !has_other && !head.contains_key(CONTENT_RANGE) && is_plain(head)
}

/// Whether it is not coded, and nothing forbids that it is.
fn is_plain(head: &HeaderMap) -> bool {
    let mut codings = head.get_all(CONTENT_ENCODING).iter();
    codings.all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"))
        && !types::is_stream(head)
        && !forbids_transforming(head)
}

fn vary(head: &mut HeaderMap) {
    let tells = |line: &[u8]| has_token(line, b"*") || has_token(line, b"accept-encoding");
    if !head.get_all(VARY).iter().any(|line| tells(line.as_bytes())) {
        head.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// Makes a head that of the coded response: what is said of the other's bytes goes.
fn mark(head: &mut HeaderMap, algorithm: Algorithm) {
    substitute::alter(head);
    head.remove(ACCEPT_RANGES);
    head.insert(CONTENT_ENCODING, HeaderValue::from_static(algorithm.name()));
}

/// How a response is coded, and how far that has come; its record and its body both have it.
#[derive(Debug)]
pub(crate) struct Coding {
    pub(crate) algorithm: Algorithm,
    /// Bytes before.
    pub(crate) plain: Cell<u64>,
    /// Bytes after, of a body that is coded on its way; `None`: it was coded before, and is counted as any other.
    pub(crate) sent: Option<Cell<u64>>,
    /// All of it has gone out.
    pub(crate) over: Cell<bool>,
}

impl Coding {
    fn on_the_way(algorithm: Algorithm) -> Rc<Self> {
        Rc::new(Self { algorithm, plain: Cell::new(0), sent: Some(Cell::new(0)), over: Cell::new(false) })
    }

    fn before(algorithm: Algorithm, plain: u64) -> Rc<Self> {
        Rc::new(Self { algorithm, plain: Cell::new(plain), sent: None, over: Cell::new(true) })
    }
}

/// A body that the cache has, whole.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kept<'a> {
    Memory(&'a Arc<Pieces>),
    /// On disk, of so many bytes, with a form of it that can be read.
    Disk(u64, &'a Form),
}

/// What a response's body becomes.
#[derive(Debug)]
pub(crate) enum Opened {
    /// One that was coded before, of these bytes.
    Kept(Arc<Pieces>),
    /// The form on disk.
    Form,
    Stream(Box<Stream>),
}

impl Kept<'_> {
    /// What was coded before, and how many bytes that is, from how many.
    fn coded(self, algorithm: Algorithm) -> Option<(Opened, u64, u64)> {
        match self {
            Kept::Memory(body) => {
                let coded = body.coded(algorithm)?;
                let length = coded.len();
                Some((Opened::Kept(coded), length, body.len()))
            }
            Kept::Disk(plain, form) if form.algorithm == algorithm => {
                Some((Opened::Form, form.reading.length()?, plain))
            }
            Kept::Disk(..) => None,
        }
    }
}

/// A body that is about to be coded.
#[derive(Debug)]
pub(crate) struct Stream {
    coder: Coder,
    coding: Rc<Coding>,
    hold: Hold,
    length: Option<u64>,
}

/// With what a response is likely to be coded whose header is not finished yet.
pub(crate) fn expected(record: &Record, parts: &Parts, length: u64) -> Option<Algorithm> {
    let policy = record.rule()?.compression.as_deref()?;
    let mut head = parts.headers.clone();
    policy.choose(record.wish.as_deref()?, &record.method, parts.status, &mut head, Some(length))
}

/// Decides what becomes of a response, and makes its header say so. `length`: bytes of its body, if they are known;
/// `kept`: it is in the cache, whole. `None`: it goes as it is.
pub(crate) fn open(
    record: &mut Record,
    parts: &mut Parts,
    length: Option<u64>,
    kept: Option<Kept<'_>>,
) -> Option<Opened> {
    let wish = record.wish.take()?;
    let policy = record.rule()?.compression.as_deref()?;
    let algorithm = policy.choose(&wish, &record.method, parts.status, &mut parts.headers, length)?;
    if record.method == Method::HEAD {
        mark(&mut parts.headers, algorithm);
        return None;
    }
    if let Some((opened, coded, plain)) = kept.and_then(|kept| kept.coded(algorithm)) {
        mark(&mut parts.headers, algorithm);
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(coded));
        record.coding = Some(Coding::before(algorithm, plain));
        return Some(opened);
    }
    let worker = &record.conn.client.worker;
    let counters = worker.compression.counters.at(worker.index);
    let opened = worker.compression.budget.hold(coder::weight(algorithm)).map(|hold| {
        let coder = Coder::new(algorithm, length);
        coder
            .inspect_err(|error| tracing::error!(%error, algorithm = algorithm.name(), "no coder"))
            .map(|c| (c, hold))
    });
    let Some(Ok((coder, hold))) = opened else {
        counters.refused.inc();
        return None;
    };
    mark(&mut parts.headers, algorithm);
    let coding = Coding::on_the_way(algorithm);
    record.coding = Some(Rc::clone(&coding));
    Some(Opened::Stream(Box::new(Stream { coder, coding, hold, length })))
}

/// What compresses, of a node: the memory of its coders, its threads, and what it has done.
#[derive(Debug)]
pub(crate) struct Works {
    budget: Arc<Budget>,
    lanes: Arc<Lanes>,
    threads: usize,
    counters: PerWorker<Counters>,
}

/// One worker's part.
#[derive(Debug, Default)]
struct Counters {
    /// By [`Algorithm`].
    responses: [Counter; Algorithm::ALL.len()],
    plain: [Counter; Algorithm::ALL.len()],
    coded: [Counter; Algorithm::ALL.len()],
    /// Of responses that were coded before.
    kept: Counter,
    refused: Counter,
}

/// What was compressed since the node began.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// By algorithm: responses, and bytes of their bodies before and after.
    pub(crate) of: [(&'static str, [u64; 3]); Algorithm::ALL.len()],
    pub(crate) kept: u64,
    pub(crate) refused: u64,
    pub(crate) memory: u64,
}

impl Works {
    pub(crate) fn new(workers: usize) -> Self {
        Self {
            budget: Budget::new(WORKER_MEMORY * workers as u64),
            lanes: Arc::default(),
            threads: lanes::threads(workers),
            counters: PerWorker::new(workers),
        }
    }

    /// Starts the threads for long bodies, unless they run.
    pub(crate) fn open(&self) -> io::Result<()> {
        self.lanes.open(self.threads)
    }

    /// After the workers: nobody may be waiting for the threads.
    pub(crate) fn shut(&self) {
        self.lanes.shut();
    }

    /// Counts a response that has ended.
    pub(crate) fn count(&self, worker: usize, coding: &Coding, sent: u64) {
        let counters = self.counters.at(worker);
        let at = coding.algorithm as usize;
        counters.responses[at].inc();
        counters.plain[at].add(coding.plain.get());
        counters.coded[at].add(sent);
        if coding.sent.is_none() {
            counters.kept.inc();
        }
    }

    pub(crate) fn totals(&self) -> Totals {
        let sum =
            |of: &dyn Fn(&Counters) -> &Counter| self.counters.iter().map(|part| of(part).value()).sum();
        let of = |algorithm: Algorithm| {
            let at = algorithm as usize;
            (algorithm.name(), [sum(&|c| &c.responses[at]), sum(&|c| &c.plain[at]), sum(&|c| &c.coded[at])])
        };
        Totals {
            of: Algorithm::ALL.map(of),
            kept: sum(&|c| &c.kept),
            refused: sum(&|c| &c.refused),
            memory: self.budget.used(),
        }
    }
}
