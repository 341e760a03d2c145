//! An answer on its way to the client, or what a connection becomes after it.

use std::rc::Rc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SET_COOKIE};
use http::{HeaderValue, Response, StatusCode, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::l7::body::Answer;
use crate::l7::record::Record;
use crate::l7::transfer::{Deadline, Transfer};
use crate::l7::tunnel::{self, Upgrade};
use crate::l7::{forward, page};
use crate::metrics::Reason;
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
    pub(super) fn into_response(self, mut record: Record) -> Response<Answer> {
        let status = self.response.status();
        record.status = status.as_u16();
        if let Some(picked) = &record.picked {
            picked.answered(status.as_u16());
        }
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(record);
        }
        let (mut parts, body) = self.response.into_parts();
        forward::clean(&mut parts.headers);
        record.edit_response(&mut parts.headers);
        parts.headers.extend(record.new_cookie().map(|cookie| (SET_COOKIE, cookie)));
        parts.version = Version::HTTP_11;
        if record.conn.client.handle.is_closing() && !record.conn.is_http2() {
            parts.headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        let ended = body.is_end_stream();
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
        } else {
            Answer::Stream(body, Box::new(transfer))
        };
        Response::from_parts(parts, answer)
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
        headers.extend(record.new_cookie().map(|cookie| (SET_COOKIE, cookie)));
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
        headers.extend(record.new_cookie().map(|cookie| (SET_COOKIE, cookie)));
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
