//! What is told to a client above a limit: on a connection of http that is one too many, before a byte of it
//! is read, and beside the answer to a request.

use std::time::Duration;

use http::HeaderValue;
use http::header::RETRY_AFTER;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::metrics::Reason;

/// Bytes that such a client has sent are read and dropped, so that closing does not reset the connection
/// before the answer was read (RFC 9112, section 9.6): so many, and for so long.
const LINGER_BYTES: usize = 64 << 10;
const LINGER_TIME: Duration = Duration::from_secs(1);

/// Seconds: nobody knows when others end, and who comes too often is only refused again.
const WAIT: HeaderValue = HeaderValue::from_static("1");

/// What [`tell`] answers.
pub(crate) fn status(reason: Reason) -> u16 {
    reason.status().filter(|status| *status == 429).unwrap_or(503)
}

/// Answers whatever the client is about to ask, and closes.
pub(crate) async fn tell(mut stream: TcpStream, reason: Reason) {
    const OF_CLIENT: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nConnection: close\r\n\
        Content-Type: text/plain; charset=utf-8\r\nContent-Length: 22\r\n\r\n429 Too Many Requests\n";
    const OF_ALL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
        Content-Type: text/plain; charset=utf-8\r\nContent-Length: 24\r\n\r\n503 Service Unavailable\n";
    let answer = if status(reason) == 429 { OF_CLIENT } else { OF_ALL };
    let talk = async {
        if stream.write_all(answer).await.is_err() || stream.shutdown().await.is_err() {
            return;
        }
        let (mut space, mut dropped) = ([0; 1024], 0);
        while dropped < LINGER_BYTES {
            match stream.read(&mut space).await {
                Ok(0) | Err(_) => return,
                Ok(n) => dropped += n,
            }
        }
    };
    let _ = timeout(LINGER_TIME, talk).await;
}

/// A client that is refused since somebody has too much, or the node, should not come back at once.
/// `wait`: seconds until its rate lets it through again, as this node sees it.
pub(super) fn mark(reason: Reason, wait: u16, headers: &mut http::HeaderMap) {
    match reason {
        Reason::RequestLimit | Reason::BodyMemory => headers.insert(RETRY_AFTER, WAIT),
        Reason::RateLimit => headers.insert(RETRY_AFTER, HeaderValue::from(wait.max(1))),
        _ => None,
    };
}
