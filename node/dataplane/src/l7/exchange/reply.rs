//! An answer on its way to the client, or what a connection becomes after it.

use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::cached;
use crate::l7::body::{Ahead, Answer, Late, Whole};
use crate::l7::compress::{Kept, Opened};
use crate::l7::record::Record;
use crate::l7::transfer::{Deadline, Transfer, put_back};
use crate::l7::tunnel::{self, Upgrade};
use crate::l7::{compress, forward, page};
use crate::metrics::Reason;
use crate::pool::FailureKind;
use crate::upstream::{Target, Upstream};

/// An answer whose header has come.
pub(super) struct Reply {
    pub(super) response: Response<Incoming>,
    pub(super) upstream: Upstream,
    pub(super) target: Target,
    pub(super) deadline: Option<Deadline>,
    pub(super) keep: Duration,
    pub(super) idle: Duration,
    pub(super) upgrade: bool,
}

impl Reply {
    /// What of the body is here already is looked at first: if that is broken, the client had better hear so
    /// than get a header and the end of its connection.
    pub(super) async fn into_response(mut self, mut record: Record) -> Response<Answer> {
        let (upstream, body) = (&mut self.upstream, self.response.body_mut());
        if body.is_end_stream() {
            return self.pass(record, Ahead::default());
        }
        let looked = poll_fn(|cx| {
            let mut next = |cx: &mut Context<'_>| upstream.poll(cx, |cx| Pin::new(&mut *body).poll_frame(cx));
            Poll::Ready(Ahead::look(|| next(cx)))
        });
        match looked.await {
            Ok(ahead) => self.pass(record, ahead),
            Err(_) => {
                let failure = record.upload.as_ref().and_then(|upload| upload.failure.get());
                if let (Some(picked), None) = (&record.picked, failure) {
                    picked.failed(FailureKind::Broken);
                }
                if failure.is_none()
                    && let Some(served) = cached::in_place_of_broken(&mut record).await
                {
                    return served.into_response(record);
                }
                page::answer(record, failure.unwrap_or(Reason::UpstreamBroken))
            }
        }
    }

    /// The same if the beginning of the body has been read already.
    pub(super) fn pass(self, mut record: Record, ahead: Ahead) -> Response<Answer> {
        let status = judge(&mut record, self.response.status());
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(record);
        }
        let (mut parts, body) = self.response.into_parts();
        let ended = ahead.is_over(&body);
        let opened = dress(&mut record, &mut parts, ahead.length(&body), None);
        let conn = Rc::clone(&record.conn);
        let mut transfer = Transfer {
            record,
            upstream: Some(self.upstream),
            target: self.target,
            keep: self.keep,
            idle: self.idle,
            deadline: self.deadline,
            stalled: None,
            over: false,
        };
        let answer = if ended {
            transfer.complete();
            Answer::None
        } else if ahead.is_empty() {
            Answer::Stream(body, Box::new(transfer))
        } else {
            Answer::Late(Box::new(Late { ahead, body, transfer }))
        };
        Response::from_parts(parts, answer.coded(opened, &conn, None))
    }

    /// Of one whose body has been read to its end: the connection can be used again.
    pub(super) fn free(self, record: &Record) -> Parts {
        put_back(record, self.upstream, self.target, self.keep, Instant::now());
        self.response.into_parts().0
    }

    /// Its head alone, of one that has no body.
    pub(super) fn head(self, record: &Record) -> Parts {
        match self.response.body().is_end_stream() {
            true => self.free(record),
            false => self.response.into_parts().0,
        }
    }

    /// The upstream takes up another protocol: the connection becomes a tunnel.
    fn switch(mut self, record: Record) -> Response<Answer> {
        if !self.upgrade || !forward::is_websocket(self.response.headers()) {
            return page::answer(record, Reason::UpstreamMalformed);
        }
        self.upstream.detach();
        let upstream = hyper::upgrade::on(&mut self.response);
        if let Some(tunnel) = record.conn.tunnel.take() {
            return self.switch_stream(record, upstream, tunnel);
        }
        let mut response = Response::new(Answer::None);
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let protocol = self.response.headers().get(http::header::UPGRADE).cloned();
        forward::clean(self.response.headers_mut());
        let headers = self.response.headers_mut();
        headers.remove(CONTENT_LENGTH);
        headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.extend(protocol.map(|protocol| (http::header::UPGRADE, protocol)));
        record.keep_client(headers);
        std::mem::swap(response.headers_mut(), headers);
        let conn = Rc::clone(&record.conn);
        *conn.upgrade.borrow_mut() = Some(Upgrade { upstream, record, idle: self.idle });
        response
    }

    /// The same for a stream of HTTP/2 (RFC 8441, section 5): its 200 says that it is one.
    fn switch_stream(
        mut self,
        mut record: Record,
        upstream: OnUpgrade,
        tunnel: OnUpgrade,
    ) -> Response<Answer> {
        let mut response = Response::new(Answer::None);
        forward::clean(self.response.headers_mut());
        let headers = self.response.headers_mut();
        headers.remove(CONTENT_LENGTH);
        headers.remove(SEC_WEBSOCKET_ACCEPT);
        record.edit_response(headers);
        record.keep_client(headers);
        std::mem::swap(response.headers_mut(), headers);
        record.status = response.status().as_u16();
        let upgrade = Upgrade { upstream, record, idle: self.idle };
        // Ends with its connection, at the latest.
        tokio::task::spawn_local(async move {
            match tunnel.await {
                Ok(stream) => tunnel::run(upgrade, TokioIo::new(stream), Vec::new()).await,
                Err(error) => tracing::debug!(%error, "the stream ended before it was upgraded"),
            }
        });
        response
    }
}

/// An answer whose body is at hand.
pub(super) fn whole(
    mut record: Record,
    mut parts: Parts,
    body: Bytes,
    trailers: Option<HeaderMap>,
) -> Response<Answer> {
    judge(&mut record, parts.status);
    let opened = dress(&mut record, &mut parts, Some(body.len() as u64), None);
    if body.is_empty() && trailers.is_none() {
        record.end(Reason::Done);
        return Response::from_parts(parts, Answer::None);
    }
    let conn = Rc::clone(&record.conn);
    let answer = Answer::Whole(Box::new(Whole { record, body, trailers }));
    Response::from_parts(parts, answer.coded(opened, &conn, None))
}

pub(super) fn judge(record: &mut Record, status: StatusCode) -> StatusCode {
    record.status = status.as_u16();
    if let Some(picked) = &record.picked {
        picked.answered(record.status);
    }
    status
}

/// Makes the header what the client gets, of a body of this length (if it is known), or one that is `kept` as a whole.
/// What is told is what becomes of the body.
pub(super) fn dress(
    record: &mut Record,
    parts: &mut Parts,
    length: Option<u64>,
    kept: Option<Kept<'_>>,
) -> Option<Opened> {
    forward::clean(&mut parts.headers);
    record.cache.iter().for_each(|status| status.mark(&mut parts.headers));
    record.edit_response(&mut parts.headers);
    record.keep_client(&mut parts.headers);
    let opened = compress::open(record, parts, length, kept);
    parts.version = Version::HTTP_11;
    // To a client of HTTP/1.0 only the connection's end tells where a body without a length ends.
    let endless =
        || record.version == Version::HTTP_10 && !parts.headers.contains_key(http::header::CONTENT_LENGTH);
    if !record.conn.is_http2() && (record.conn.client.handle.is_closing() || endless()) {
        page::close(record, &mut parts.version, &mut parts.headers);
    }
    opened
}
