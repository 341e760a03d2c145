//! A client connection that speaks HTTP/2 (RFC 9113), from its preface to its end.
//!
//! hyper and h2 do the frames, and refuse most of what section 8 calls malformed; [`refusal`] does the rest.
//! One task drives the
//! connection; each request has a task of its own, with a [`Conn`] of its own. What hyper does not watch is
//! watched here: the idle time, a client that takes nothing of an answer, one that breaks off requests
//! faster than anybody needs to, and whether the connection should go (GOAWAY).
//!
//! A request for a WebSocket (RFC 8441) is made one of HTTP/1.1, and its stream a [`super::tunnel`].
//!
//! Bounds: `h2_streams` requests at once; for each at most [`WINDOW`] bytes of a body that nobody has read
//! and [`UNSENT_MAX`] of an answer that the client has not taken. Over all connections as many requests as
//! a part of the node's memory holds ([`streams_max`]); beyond them a connection that has more than [`FEW`] is
//! ended.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::Either;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use http_body::Body;
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::client::Client;
use super::conn::{Conn, HttpVersion};
use super::exchange;
use super::frames::{Followed, Frames, Told};
use super::head::{
    BodyFields, FIELD_LINES_MAX, Framing, HTTP_PORT, HTTPS_PORT, REQUEST_LINE_MAX, is_host, is_origin,
    is_same_host,
};
use super::refused::Flaw;
use crate::alarm::Alarm;
use crate::batch::batched;
use crate::metrics::{H2Code, Reason};
use crate::stream::Stream;
use crate::worker::Place;

/// Flow control: of a stream, and of a connection.
const WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Of one stream.
const UNSENT_MAX: usize = 64 << 10;

/// Bytes that a request takes here, beside its body: a task, its future, and what h2 and hyper have of it.
const STREAM: usize = 16 << 10;

/// Requests that any connection may have.
const FEW: usize = 8;

/// How many requests a worker may have open, where bodies that are held back may take so many bytes of the node's memory:
/// twice as much of it, all workers together.
pub(crate) fn streams_max(body_memory: u64, workers: usize) -> usize {
    usize::try_from(body_memory.saturating_mul(2)).unwrap_or(usize::MAX) / STREAM / workers.max(1)
}

/// A connection on which nothing moves is asked whether it lives, and ended when it says nothing.
const PING_AFTER: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(20);

/// Requests that a client may break off within a second (CVE-2023-44487).
const RESETS_MAX: u32 = 100;

/// How long a client may take to hear that the connection ends.
const GOODBYE: Duration = Duration::from_secs(2);

/// What the connection's task and those of its requests share.
struct Session {
    client: Rc<Client>,
    alarm: Alarm,
    streams: Rc<Streams>,
    frames: Rc<Frames>,
    used: Cell<bool>,
    /// Since when the client knows that the connection ends.
    told: Cell<Option<Instant>>,
    /// The request that hyper is about to spawn.
    next: Cell<Option<Rc<Conn>>>,
}

/// The requests of a connection.
#[derive(Debug)]
struct Streams {
    open: Cell<usize>,
    /// Since when there is none.
    idle_since: Cell<Instant>,
    /// Broken off by the client, since when.
    resets: Cell<(Instant, u32)>,
    /// It has asked for more than there is room for.
    crowds: Cell<bool>,
}

/// One of them, until all that belongs to it has ended.
#[derive(Debug)]
pub(crate) struct OpenStream {
    all: Rc<Streams>,
    frames: Rc<Frames>,
    /// As the client numbers it, if that is certain.
    id: Option<u32>,
    broken_off: Cell<bool>,
    _place: Option<Place>,
}

impl OpenStream {
    /// `None`: there is no room for it.
    fn new(session: &Session) -> Option<Self> {
        let all = &session.streams;
        let worker = &session.client.worker;
        let place = worker.streams.take(worker.streams_max);
        if place.is_none() && all.open.get() >= FEW {
            return None;
        }
        all.open.set(all.open.get() + 1);
        let (frames, id) = (Rc::clone(&session.frames), session.frames.begun());
        Some(Self { all: Rc::clone(all), frames, id, broken_off: Cell::new(false), _place: place })
    }

    /// Has this header block sent before the answer.
    pub(crate) fn interim(&self, block: &[u8]) {
        if let Some(id) = self.id {
            self.frames.interim(id, block);
        }
    }

    /// By the client.
    pub(crate) fn break_off(&self) {
        self.broken_off.set(true);
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let all = &self.all;
        let (now, left) = (Instant::now(), all.open.get() - 1);
        all.open.set(left);
        if left == 0 {
            all.idle_since.set(now);
        }
        if self.broken_off.get() {
            let (since, count) = all.resets.get();
            let fresh = now.duration_since(since) >= Duration::from_secs(1);
            all.resets.set(if fresh { (now, 1) } else { (since, count + 1) });
        }
    }
}

pub(crate) async fn serve(client: Rc<Client>, stream: Stream) {
    let listener = client.listener();
    let settings = &listener.settings.http;
    let now = Instant::now();
    let session = Rc::new(Session {
        client,
        alarm: Alarm::default(),
        streams: Rc::new(Streams {
            open: Cell::new(0),
            idle_since: Cell::new(now),
            resets: Cell::new((now, 0)),
            crowds: Cell::new(false),
        }),
        frames: Frames::new(now),
        used: Cell::new(false),
        told: Cell::new(None),
        next: Cell::new(None),
    });
    let service = service_fn(|request| session.begin(request));
    let header_max = u32::try_from(settings.max_headers).unwrap_or(u32::MAX);
    let (stream, outbox) = batched(stream);
    let stream = Followed::new(stream, Rc::clone(&session.frames));
    let mut connection = pin!(
        http2::Builder::new(Spawner(Rc::clone(&session)))
            .timer(TokioTimer::new())
            .max_concurrent_streams(settings.h2_streams)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(UNSENT_MAX)
            .max_header_list_size(header_max)
            .enable_connect_protocol()
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PONG_WITHIN)
            .serve_connection(TokioIo::new(stream), service)
    );
    poll_fn(|cx| {
        session.frames.drive(cx.waker());
        loop {
            // Before the answers that hyper may have by now.
            session.frames.send_interim(|frame| outbox.put(cx, frame));
            let polled = connection.as_mut().poll(cx);
            session.count_told();
            if let Poll::Ready(outcome) = polled {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "client connection ended early");
                }
                return Poll::Ready(());
            }
            if session.streams.crowds.get() {
                tracing::debug!(client = ?session.client.address, "client has more requests open than there is room for");
                session.ended(Reason::Overload);
                return Poll::Ready(());
            }
            if session.frames.let_go() {
                continue;
            }
            session.frames.send_interim(|frame| outbox.put(cx, frame));
            match session.watch(cx) {
                // What was written for all requests since the last turn goes out together.
                Watch::Wait => match outbox.poll_send(cx) {
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    _ => return Poll::Pending,
                },
                Watch::Goodbye => connection.as_mut().graceful_shutdown(),
                Watch::End => return Poll::Ready(()),
                Watch::Flooded => {
                    session.ended(Reason::Flood);
                    return Poll::Ready(());
                }
            }
        }
    })
    .await;
}

enum Watch {
    Wait,
    /// Say that no further requests are taken.
    Goodbye,
    End,
    /// End it: it costs more than it is for.
    Flooded,
}

impl Session {
    fn begin(
        &self,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<http::Response<super::body::Answer>, Infallible>> + use<> {
        let Some(stream) = OpenStream::new(self) else {
            // It never comes to be: nothing more is read of the connection, which ends.
            self.streams.crowds.set(true);
            return Either::Left(pending());
        };
        let mut conn = Conn::new(Rc::clone(&self.client), HttpVersion::Http2);
        conn.stream = Some(stream);
        if wants_websocket(&request) {
            *conn.tunnel.borrow_mut() = Some(as_http1(&mut request));
            conn.gate.upgrade.set(true);
        }
        describe(&conn, &request);
        let conn = Rc::new(conn);
        self.used.set(true);
        self.next.set(Some(Rc::clone(&conn)));
        // hyper, the spawner and the task's cell each move what they get.
        Either::Right(Box::pin(exchange::serve(conn, request)))
    }

    fn watch(&self, cx: &mut Context<'_>) -> Watch {
        if self.streams.resets.get().1 > RESETS_MAX {
            tracing::debug!(client = ?self.client.address, "client breaks off too many requests");
            return Watch::Flooded;
        }
        if self.frames.is_flooded() {
            tracing::debug!(client = ?self.client.address, "client sends too many frames that carry nothing");
            return Watch::Flooded;
        }
        if self.client.handle.is_closing() && self.told.get().is_none() {
            return self.say_goodbye();
        }
        if self.streams.open.get() > 0 {
            return Watch::Wait;
        }
        let idle_since = self.streams.idle_since.get();
        if let Some(told) = self.told.get() {
            let over = self.alarm.passed(cx, told.max(idle_since) + GOODBYE);
            return if over { Watch::End } else { Watch::Wait };
        }
        let listener = self.client.listener();
        let settings = &listener.settings.http;
        let patience = if self.used.get() { settings.idle } else { settings.header_timeout };
        if !patience.is_zero() && self.alarm.passed(cx, idle_since + patience) {
            // Who has asked for nothing has nothing to hear of.
            return if self.used.get() { self.say_goodbye() } else { Watch::End };
        }
        Watch::Wait
    }

    /// Counts what hyper and h2 have refused, of which no request tells.
    fn count_told(&self) {
        let told = self.frames.told();
        if told.is_empty() {
            return;
        }
        let listener = self.client.listener();
        let counters = listener.counters.at(self.client.worker.index);
        for told in told {
            let client = &self.client.address;
            match told {
                Told::Reset(stream, code) => {
                    counters.h2_resets.inc(code);
                    tracing::debug!(?client, stream, code = code.label(), "HTTP/2 stream reset");
                }
                Told::GoAway(H2Code::NoError) => counters.h2_goaways.inc(H2Code::NoError),
                Told::GoAway(code) => {
                    counters.h2_goaways.inc(code);
                    self.ended(Reason::ProtocolError);
                    tracing::debug!(?client, code = code.label(), "HTTP/2 connection ended");
                }
            }
        }
    }

    fn ended(&self, reason: Reason) {
        self.client.listener().counters.at(self.client.worker.index).ended.inc(reason);
    }

    fn say_goodbye(&self) -> Watch {
        self.told.set(Some(Instant::now()));
        Watch::Goodbye
    }
}

/// By an extended CONNECT (RFC 8441, section 4).
fn wants_websocket(request: &Request<Incoming>) -> bool {
    let protocol = request.extensions().get::<Protocol>();
    request.method() == Method::CONNECT && protocol.is_some_and(|protocol| protocol.as_str() == "websocket")
}

/// Makes of it what HTTP/1.1 has for it (RFC 6455, section 4.1); what comes out is its stream, if it is
/// granted.
fn as_http1(request: &mut Request<Incoming>) -> OnUpgrade {
    let tunnel = hyper::upgrade::on(&mut *request);
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    let key = STANDARD.encode(rand::random::<[u8; 16]>());
    if let Ok(key) = HeaderValue::from_maybe_shared(key.into_bytes()) {
        headers.insert(SEC_WEBSOCKET_KEY, key);
    }
    headers.entry(SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
    tunnel
}

/// Tells of a request what of HTTP/1.1 the gate finds out.
fn describe(conn: &Conn, request: &Request<Incoming>) {
    let length = request.headers().get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    conn.gate.framing.set(match length {
        _ if conn.tunnel.borrow().is_some() => Framing::None,
        _ if request.body().is_end_stream() => Framing::None,
        Some(length) => Framing::Length(length),
        None => Framing::Chunked,
    });
    let flaw = flaw(request);
    conn.gate.refusal.set(flaw.map(Flaw::reason));
    conn.gate.flaw.set(flaw);
}

/// What can be parsed and still is not served.
fn flaw<B>(request: &Request<B>) -> Option<Flaw> {
    if request.method() == Method::CONNECT {
        return Some(Flaw::Connect);
    }
    let uri = request.uri();
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    if target.len() > REQUEST_LINE_MAX {
        return Some(Flaw::LongLine);
    }
    let headers = request.headers();
    if headers.len() > FIELD_LINES_MAX {
        return Some(Flaw::Lines);
    }
    if !is_origin(request.method().as_str().as_bytes(), target.as_bytes()) {
        return Some(Flaw::Target);
    }
    // A member of HTTP/1 gets it as it stands here.
    let mut body = BodyFields::default();
    let mut lengths = headers.get_all(CONTENT_LENGTH).into_iter();
    if let Some(flaw) = lengths.find_map(|length| body.content_length(length.as_bytes()).err()) {
        return Some(flaw);
    }
    let fields = || (!headers.values().all(is_trimmed)).then_some(Flaw::Field);
    flaw_of_host(uri, headers).or_else(fields)
}

/// RFC 9113, section 8.3.1: `Host` names what `:authority` does, and one of them is there. A user's name is
/// no part of either.
fn flaw_of_host(uri: &Uri, headers: &HeaderMap) -> Option<Flaw> {
    // h2 keeps the scheme only beside an authority; without one it is used for nothing.
    let port = match uri.scheme_str() {
        None | Some("http") => HTTP_PORT,
        Some("https") => HTTPS_PORT,
        Some(_) => return Some(Flaw::Target),
    };
    let mut hosts = headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    match (authority, hosts.next(), hosts.next()) {
        (_, _, Some(_)) => Some(Flaw::TwoHosts),
        (None, None, None) => Some(Flaw::NoHost),
        (Some(one), None, None) | (None, Some(one), None) => (!is_host(one)).then_some(Flaw::Host),
        (Some(authority), Some(host), None) => match is_host(authority) && is_host(host) {
            true => (!is_same_host(authority, host, port)).then_some(Flaw::OtherHost),
            false => Some(Flaw::Host),
        },
    }
}

/// Section 8.2.1.
fn is_trimmed(value: &HeaderValue) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let bytes = value.as_bytes();
    !is_blank(bytes.first()) && !is_blank(bytes.last())
}

/// Runs the futures of a connection's requests.
#[derive(Clone)]
struct Spawner(Rc<Session>);

impl<F: Future<Output = ()> + 'static> Executor<F> for Spawner {
    fn execute(&self, future: F) {
        match self.0.next.take() {
            Some(conn) => drop(spawn_local(run(conn, future))),
            None if self.0.streams.crowds.get() => {}
            None => drop(spawn_local(future)),
        }
    }
}

/// Runs a request until it ends, its client has taken nothing for too long, or the connection is cut; and
/// then reads what the client still sends.
async fn run(conn: Rc<Conn>, future: impl Future<Output = ()>) {
    if !answer(&conn, future).await {
        return;
    }
    let unread = conn.unread.take();
    if let Some(unread) = unread {
        Box::pin(unread.discard()).await;
    }
}

/// False: it was given up.
async fn answer(conn: &Conn, future: impl Future<Output = ()>) -> bool {
    let mut future = pin!(future);
    poll_fn(|cx| {
        if conn.client.handle.is_cut() {
            return Poll::Ready(false);
        }
        if future.as_mut().poll(cx).is_ready() {
            return Poll::Ready(true);
        }
        if conn.slots.borrow().iter().any(|slot| slot.poll_cut(cx)) {
            return Poll::Ready(false);
        }
        if is_stuck(conn, cx) { Poll::Ready(false) } else { Poll::Pending }
    })
    .await
}

fn is_stuck(conn: &Conn, cx: &mut Context<'_>) -> bool {
    let patience = conn.stream_idle.get();
    let since = conn.unsent_since.get();
    since.is_some_and(|since| !patience.is_zero() && conn.alarm.passed(cx, since + patience))
}
