//! As much of HTTP/1.1 as probes and test backends speak: a head, and a body whose length is told.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

const HEAD_MAX: usize = 16 * 1024;
const BODY_MAX: usize = 1 << 20;

/// The first line of a message, its fields and its body.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) first: String,
    fields: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Message {
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn status(&self) -> Option<u16> {
        self.first.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()
    }

    /// Whether the connection ends with it.
    pub(super) fn closes(&self) -> bool {
        self.field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// Reads messages; keeps what was read beyond one.
#[derive(Debug)]
pub(super) struct Reader<R> {
    from: R,
    buffer: Vec<u8>,
}

impl Reader<tokio::net::TcpStream> {
    /// Whether a connection at rest is still there: its peer has not ended it, and said nothing.
    pub(super) fn is_open(&self) -> bool {
        let nothing = |e: &io::Error| e.kind() == io::ErrorKind::WouldBlock;
        self.buffer.is_empty() && self.from.try_read(&mut [0]).is_err_and(|e| nothing(&e))
    }
}

impl<R> Reader<R> {
    /// To write to.
    pub(super) fn get_mut(&mut self) -> &mut R {
        &mut self.from
    }
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from, buffer: Vec::new() }
    }

    async fn more(&mut self) -> io::Result<()> {
        let mut bytes = [0; 4_096];
        match self.from.read(&mut bytes).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => {
                self.buffer.extend_from_slice(&bytes[..length]);
                Ok(())
            }
        }
    }

    /// The next message; `None`: the connection ended before it.
    pub(super) async fn message(&mut self) -> io::Result<Option<Message>> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if self.buffer.len() > HEAD_MAX {
                return Err(bad("a head that does not end"));
            }
            let nothing_yet = self.buffer.is_empty();
            match self.more().await {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && nothing_yet => return Ok(None),
                other => other?,
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let mut fields = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':').ok_or_else(|| bad("a field without a colon"))?;
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut message = Message { first, fields, body: Vec::new() };
        if message.status() == Some(101) {
            return Ok(Some(message));
        }
        if message.field("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            message.body = self.chunks().await?;
        } else if let Some(length) = message.field("content-length") {
            let length: usize = length.parse().map_err(|_| bad("a content-length that is no number"))?;
            message.body = self.take(length).await?;
        }
        Ok(Some(message))
    }

    /// So many bytes.
    pub(super) async fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        if length > BODY_MAX {
            return Err(bad("a body too large"));
        }
        while self.buffer.len() < length {
            self.more().await?;
        }
        Ok(self.buffer.drain(..length).collect())
    }

    /// A line without its end.
    pub(super) async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=at).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.buffer.len() > HEAD_MAX {
                return Err(bad("a line that does not end"));
            }
            self.more().await?;
        }
    }

    async fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line().await?;
            let length = line.split(';').next().unwrap_or_default().trim();
            let length = usize::from_str_radix(length, 16).map_err(|_| bad("a chunk without a length"))?;
            if body.len() + length > BODY_MAX {
                return Err(bad("a body too large"));
            }
            body.extend(self.take(length).await?);
            // The end of the chunk, or of the trailers: there are none.
            if !self.line().await?.is_empty() {
                return Err(bad("a chunk longer than it says"));
            }
            if length == 0 {
                return Ok(body);
            }
        }
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_are_read_one_after_the_other() {
        let bytes = b"HTTP/1.1 200 OK\r\nX-Backend: b1\r\nContent-Length: 2\r\n\r\nhi\
                      HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                      3\r\nabc\r\n1;x=y\r\nd\r\n0\r\n\r\n";
        let mut reader = Reader::new(&bytes[..]);
        let one = reader.message().await.unwrap().unwrap();
        assert_eq!(
            (one.status(), one.field("x-backend"), &one.body[..]),
            (Some(200), Some("b1"), &b"hi"[..])
        );
        assert!(!one.closes());
        let two = reader.message().await.unwrap().unwrap();
        assert_eq!((two.status(), two.closes(), &two.body[..]), (Some(503), true, &b"abcd"[..]));
        assert!(reader.message().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_cut_short_or_no_message_is_an_error() {
        for bytes in [
            &b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi"[..],
            b"HTTP/1.1 200",
            b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ] {
            assert!(Reader::new(bytes).message().await.is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }
}
