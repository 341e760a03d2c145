//! An answer whose body is edited: gathered within a bound, so that its header can tell what was done to it.
//! One that turns out to be longer goes on from its beginning, as it came.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::header::ACCEPT_RANGES;
use http::{HeaderMap, Response};
use http_body::Body;
use tokio::time::Instant;
use trestle_config::text::Variable;

use super::attempt::{after, earlier};
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
