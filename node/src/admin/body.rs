//! Request bodies: bounded in bytes and in time.

use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::error::ApiError;

/// As large as a config document may be.
pub(crate) const BODY_MAX: usize = trestle_raft_store::MAX_DOCUMENT;

/// A document with its files: together they are that large, as text in JSON up to three times.
pub(crate) const PARCEL_MAX: usize = 3 * BODY_MAX;

/// For the whole body; a client that sends slower than this is gone.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn bytes(body: Body) -> Result<Bytes, ApiError> {
    bytes_within(body, BODY_MAX).await
}

pub(crate) async fn bytes_within(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    // Told before a byte is read: a client that asked `Expect: 100-continue` then sends nothing.
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large(limit));
    }
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await;
    match collected {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => Err(too_large(limit)),
        Ok(Err(e)) => Err(ApiError::bad_request(format!("the body did not arrive: {e}"))),
        Err(_) => {
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not arrive in time"))
        }
    }
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too_large",
        format!("a body has at most {limit} bytes; nothing was changed"),
    )
}

pub(crate) async fn text(body: Body) -> Result<String, ApiError> {
    let bytes = bytes(body).await?;
    String::from_utf8(bytes.into()).map_err(|e| {
        ApiError::bad_request(format!(
            "the document is not UTF-8: byte {} fits nowhere",
            e.utf8_error().valid_up_to()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_past_the_limit_is_refused_as_too_large() {
        let fits = bytes(Body::from(vec![b'a'; BODY_MAX])).await.unwrap();
        assert_eq!(fits.len(), BODY_MAX);
        let declared = Body::from(vec![b'a'; BODY_MAX + 1]);
        assert_eq!(bytes(declared).await.unwrap_err().status, 413);
        let piece = || Ok::<_, std::io::Error>(Bytes::from(vec![b'a'; BODY_MAX]));
        let chunked = Body::from_stream(futures::stream::iter([piece(), piece()]));
        assert_eq!(bytes(chunked).await.unwrap_err().status, 413);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_ends_is_given_up() {
        let body = Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(bytes(body).await.unwrap_err().status, 408);
    }

    #[tokio::test]
    async fn what_is_not_utf_8_is_refused() {
        assert_eq!(text(Body::from(vec![b'a', 0xff])).await.unwrap_err().status, 400);
    }
}
