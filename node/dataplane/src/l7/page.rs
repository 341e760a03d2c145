//! Answers that the proxy makes itself: small, plain, with the id under which the log has the request.

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Method, Response, StatusCode};

use super::body::Answer;
use super::forward::REQUEST_ID;
use super::grpc;
use super::record::Record;
use crate::metrics::Reason;

pub(super) const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Ends the request with this reason.
pub(crate) fn answer(record: Record, reason: Reason) -> Response<Answer> {
    let status = reason.status().and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.unwrap_or(StatusCode::BAD_GATEWAY);
    if record.grpc {
        return finish(record, failed_call(reason, status), reason);
    }
    let own = record.error_pages().and_then(|pages| pages.page(status.as_u16(), record.id.as_str()));
    let (page, kind) = own.unwrap_or_else(|| (page(status, &record), PLAIN));
    let mut response = Response::new(Answer::Page(page));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    finish(record, response, reason)
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
    headers.insert(REQUEST_ID, record.id.value());
    record.edit_response(headers);
    if !record.conn.is_http2() && (closes(reason) || record.conn.client.handle.is_closing()) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        record.conn.linger.set(true);
    }
    record.end(reason);
    response
}

/// Says nothing of why: that is in the log, under the id.
pub(super) fn page(status: StatusCode, record: &Record) -> Bytes {
    let phrase = status.canonical_reason().unwrap_or_default();
    let id = record.id.as_str();
    format!("{} {phrase}\nrequest {id}\n", status.as_u16()).into()
}

/// Where the next request of the connection begins is not known, or not worth waiting for.
fn closes(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::BadRequest
            | Reason::UriTooLong
            | Reason::HeadersTooLarge
            | Reason::BodyTooLarge
            | Reason::Unsupported
            | Reason::ClientHeaderTimeout
            | Reason::ClientBodyTimeout
    )
}
