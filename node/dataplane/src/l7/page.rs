//! Answers that the proxy makes itself: small, plain, with the id under which the log has the request.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};

use super::body::Answer;
use super::excess;
use super::forward::REQUEST_ID;
use super::grpc;
use super::h2::OpenStream;
use super::record::Record;
use crate::metrics::Reason;

pub(super) const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Ends the request with this reason.
pub(crate) fn answer(record: Record, reason: Reason) -> Response<Answer> {
    if reason == Reason::ClientGone {
        return unanswered(record);
    }
    let status = reason.status().and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.unwrap_or(StatusCode::BAD_GATEWAY);
    if record.grpc {
        return finish(record, failed_call(reason, status), reason);
    }
    let own = record.error_pages().and_then(|pages| pages.page(status.as_u16(), record.request_id()));
    let (page, kind) = own.unwrap_or_else(|| (page(status, &record), PLAIN));
    let mut response = Response::new(Answer::Page(page));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    finish(record, response, reason)
}

/// Nobody is there to be told anything: the connection, or its stream, ends with the request.
fn unanswered(mut record: Record) -> Response<Answer> {
    record.conn.gate.end();
    record.conn.stream.iter().for_each(OpenStream::break_off);
    record.end(Reason::ClientGone);
    Response::new(Answer::None)
}

/// Trailers only: no message, and a status that says why.
fn failed_call(reason: Reason, status: StatusCode) -> Response<Answer> {
    let mut response = Response::new(Answer::None);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, grpc::CONTENT);
    headers.insert(grpc::STATUS, HeaderValue::from(u16::from(grpc::status(reason, status.as_u16()))));
    let phrase = HeaderValue::from_static(status.canonical_reason().unwrap_or_default());
    headers.insert(grpc::MESSAGE, phrase);
    response
}

/// Sends an answer of our own, with what the config wants in each.
pub(super) fn finish(mut record: Record, mut response: Response<Answer>, reason: Reason) -> Response<Answer> {
    record.status = response.status().as_u16();
    if let (Answer::Page(page), true) = (response.body(), record.method != Method::HEAD) {
        record.bytes_out = page.len() as u64;
    }
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, record.request_id_value());
    if reason == Reason::Unauthorized
        && let Some(auth) = record.rule().and_then(|rule| rule.auth.as_ref())
    {
        headers.insert(WWW_AUTHENTICATE, auth.challenge());
    }
    excess::mark(reason, record.wait, headers);
    record.edit_response(headers);
    let conn = &record.conn;
    let closing = || conn.body_left.get() || conn.client.handle.is_closing();
    if !conn.is_http2() && (closes(reason) || closing()) {
        conn.linger.set(true);
        let mut version = response.version();
        close(&record, &mut version, response.headers_mut());
        *response.version_mut() = version;
    }
    record.end(reason);
    response
}

/// Says that the connection ends. To an answer of HTTP/1.1 for a client of HTTP/1.0 that asked for more hyper would add
/// the opposite.
pub(super) fn close(record: &Record, version: &mut Version, headers: &mut HeaderMap) {
    if record.version == Version::HTTP_10 {
        *version = Version::HTTP_10;
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
}

/// Says nothing of why: that is in the log, under the id.
pub(super) fn page(status: StatusCode, record: &Record) -> Bytes {
    let phrase = status.canonical_reason().unwrap_or_default();
    let id = record.request_id();
    format!("{} {phrase}\nrequest {id}\n", status.as_u16()).into()
}

/// Where the next request of the connection begins is not known, or not worth waiting for.
pub(super) fn closes(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::BadRequest
            | Reason::UriTooLong
            | Reason::HeadersTooLarge
            | Reason::BodyTooLarge
            | Reason::Unsupported
            | Reason::ClientHeaderTimeout
            | Reason::ClientBodyTimeout
            | Reason::ClientBodySlow
            | Reason::BodyMemory
    )
}
