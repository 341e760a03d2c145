//! An answer whose body is edited: gathered within a bound, so that its header can tell what was done to it.
//! One that turns out to be longer goes on from its beginning, as it came.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::ACCEPT_RANGES;
use http::{HeaderMap, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;
use trestle_config::text::Variable;

use super::attempt::{after, earlier};
use super::cached::{Served, Source};
use super::reply::{Reply, whole};
use crate::alarm::Elapsed;
use crate::l7::body::{Ahead, Answer};
use crate::l7::page;
use crate::l7::record::{Record, rule_at};
use crate::l7::substitute::{Plan, alter};
use crate::l7::text::Scope;
use crate::metrics::Reason;
use crate::pool::FailureKind;

/// Of a rule that edits bodies.
pub(super) async fn answer(mut reply: Reply, record: Record) -> Response<Answer> {
    let listener = Rc::clone(&record.listener);
    let rule = record.rule.and_then(|at| rule_at(&listener, at));
    let Some(edits) = rule.and_then(|rule| rule.body_edits.as_deref()).filter(|_| !record.grpc) else {
        return reply.into_response(record).await;
    };
    // Parts are not asked for.
    reply.response.headers_mut().remove(ACCEPT_RANGES);
    let room = match edits.plan(&record.method, &reply.response) {
        Plan::Pass => return reply.into_response(record).await,
        Plan::Header => {
            alter(reply.response.headers_mut());
            return reply.into_response(record).await;
        }
        Plan::Body(room) => room,
    };
    let gathered = match gather(&mut reply, &record, room).await {
        Ok(gathered) => gathered,
        Err((reason, fault)) => {
            if let (Some(picked), Some(fault)) = (&record.picked, fault) {
                picked.failed(fault);
            }
            return page::answer(record, reason);
        }
    };
    let (body, trailers) = match gathered {
        Gathered::Whole(body, trailers) => (body, trailers),
        Gathered::TooLong(ahead) => return reply.pass(record, Ahead::of(ahead)),
    };
    let mut parts = reply.free(&record);
    let none = HeaderMap::new();
    let scope = Scope { record: &record, headers: record.header.as_deref().unwrap_or(&none) };
    let value = |variable: &Variable| scope.read(variable).into_owned();
    let edited = edits.apply(&body, &parts.headers, value).await;
    if edited.is_some() {
        alter(&mut parts.headers);
    }
    whole(record, parts, edited.unwrap_or(body), trailers)
}

/// The same for what the cache has, whose body is edited for each client.
pub(super) async fn stored(served: Served, mut record: Record) -> Response<Answer> {
    let listener = Rc::clone(&record.listener);
    let rule = record.rule.and_then(|at| rule_at(&listener, at));
    let Some(edits) = rule.and_then(|rule| rule.body_edits.as_deref()) else {
        return served.into_response(record);
    };
    let Served { status, mut parts, mut source, place, edited_by, .. } = served;
    record.edited_by = edited_by;
    parts.headers.remove(ACCEPT_RANGES);
    let mut response = Response::from_parts(parts, Measured(&source));
    let plan = edits.plan(&record.method, &response);
    if matches!(plan, Plan::Header) {
        alter(response.headers_mut());
    }
    let (mut parts, _) = response.into_parts();
    let Plan::Body(room) = plan else {
        return Served { status, parts, source, place, form: None, edited_by }.into_response(record);
    };
    let (mut pieces, mut length, mut trailers) = (VecDeque::new(), 0, None);
    while let Some(frame) = poll_fn(|cx| source.poll(cx)).await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => {
                length += data.len();
                pieces.push_back(data);
                if length > room {
                    let served = Served { status, parts, source, place: None, form: None, edited_by };
                    return served.pass(record, pieces);
                }
            }
            Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
            Err(reason) => return page::answer(record, reason),
        }
    }
    let body = match pieces.len() {
        1 => pieces.pop_front().unwrap_or_default(),
        _ => pieces.iter().flat_map(|piece| piece.iter().copied()).collect(),
    };
    let none = HeaderMap::new();
    let scope = Scope { record: &record, headers: record.header.as_deref().unwrap_or(&none) };
    let value = |variable: &Variable| scope.read(variable).into_owned();
    let edited = edits.apply(&body, &parts.headers, value).await;
    if edited.is_some() {
        alter(&mut parts.headers);
    }
    whole(record, parts, edited.unwrap_or(body), trailers)
}

/// Of a body, how long it is.
struct Measured<'a>(&'a Source);

impl Body for Measured<'_> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.length().map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

enum Gathered {
    Whole(Bytes, Option<HeaderMap>),
    /// The beginning of it.
    TooLong(Bytes),
}

/// Why there is no body, and what the member is to blame for.
type NotGathered = (Reason, Option<FailureKind>);

async fn gather(reply: &mut Reply, record: &Record, room: usize) -> Result<Gathered, NotGathered> {
    let (upstream, body) = (&mut reply.upstream, reply.response.body_mut());
    let told = usize::try_from(body.size_hint().lower()).unwrap_or(0);
    // Copied together: what came in small pieces would hold a buffer each.
    let mut bytes = BytesMut::with_capacity(told.min(room));
    let mut trailers = None;
    loop {
        let idle = after(Instant::now(), reply.idle, Reason::Idle);
        let deadline = earlier(reply.deadline, idle);
        let next = poll_fn(|cx| upstream.poll(cx, |cx| Pin::new(&mut *body).poll_frame(cx)));
        match record.conn.alarm.within(deadline.map(|(at, _)| at), next).await {
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    bytes.extend_from_slice(&data);
                    if bytes.len() > room {
                        return Ok(Gathered::TooLong(bytes.freeze()));
                    }
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
            Ok(None) => return Ok(Gathered::Whole(bytes.freeze(), trailers)),
            Ok(Some(Err(_))) => {
                let failure = record.upload.as_ref().and_then(|upload| upload.failure.get());
                return Err(match failure {
                    Some(reason) => (reason, None),
                    None => (Reason::UpstreamBroken, Some(FailureKind::Broken)),
                });
            }
            Err(Elapsed) => {
                let reason = deadline.map_or(Reason::Idle, |(_, reason)| reason);
                return Err((reason, Some(FailureKind::Timeout)));
            }
        }
    }
}
