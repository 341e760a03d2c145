//! Spans in a row: their texts stand in one string, so that a span costs no allocation of its own.

use std::array;
use std::borrow::Cow;

/// Texts of a span, in the order in which they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Text {
    Method,
    Scheme,
    Host,
    Path,
    Query,
    Protocol,
    Client,
    UserAgent,
    RequestId,
    Listener,
    Route,
    Rule,
    Pool,
    Member,
}

impl Text {
    const COUNT: usize = Text::Member as usize + 1;
}

/// Nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) start_unix_ns: u64,
    pub(crate) end_unix_ns: u64,
}

#[derive(Debug, Default)]
pub struct Batch {
    text: String,
    raw: Vec<Raw>,
}

#[derive(Debug)]
struct Raw {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    parent_id: Option<[u8; 8]>,
    times: Times,
    status: u16,
    attempts: u32,
    reason: &'static str,
    /// Where its texts begin, and where each ends.
    begin: u32,
    ends: [u32; Text::COUNT],
}

/// One request. Texts that do not apply are empty.
#[derive(Clone, Copy, Debug)]
pub struct Span<'a> {
    pub trace_id: [u8; 16],
    /// As members see it in `traceparent`.
    pub span_id: [u8; 8],
    /// The span of a trusted proxy in front; `None`: the trace begins here.
    pub parent_id: Option<[u8; 8]>,
    pub start_unix_ns: u64,
    pub end_unix_ns: u64,
    pub method: &'a str,
    pub scheme: &'a str,
    /// As the client named it, with its port if it named one.
    pub host: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    /// `HTTP/1.1`
    pub protocol: &'a str,
    pub client: &'a str,
    /// Only where the access log reads it.
    pub user_agent: &'a str,
    pub request_id: &'a str,
    pub listener: &'a str,
    pub route: &'a str,
    pub rule: &'a str,
    pub pool: &'a str,
    pub member: &'a str,
    /// 0: no answer had begun.
    pub status: u16,
    /// How often a member was asked.
    pub attempts: u32,
    /// Why it ended, as in the access log.
    pub reason: &'static str,
}

impl Batch {
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = Span<'_>> {
        self.raw.iter().map(|raw| raw.read(&self.text))
    }

    /// Begins a span; it is one once it is finished.
    pub(crate) fn add(
        &mut self,
        trace_id: [u8; 16],
        span_id: [u8; 8],
        parent_id: Option<[u8; 8]>,
        times: Times,
    ) -> Adding<'_> {
        let begin = self.text.len() as u32;
        Adding {
            batch: self,
            trace_id,
            span_id,
            parent_id,
            times,
            begin,
            ends: [begin; Text::COUNT],
            next: 0,
        }
    }
}

/// A span whose texts are told one after the other.
pub(crate) struct Adding<'a> {
    batch: &'a mut Batch,
    trace_id: [u8; 16],
    span_id: [u8; 8],
    parent_id: Option<[u8; 8]>,
    times: Times,
    begin: u32,
    ends: [u32; Text::COUNT],
    next: usize,
}

impl Adding<'_> {
    /// Texts are told in their order; those that do not apply may be left out.
    pub(crate) fn text(mut self, which: Text, value: &[u8]) -> Self {
        debug_assert!(which as usize >= self.next, "{which:?} comes too late");
        let text: Cow<'_, str> = String::from_utf8_lossy(value);
        self.skip_to(which as usize);
        self.batch.text.push_str(&text);
        self.skip_to(which as usize + 1);
        self
    }

    fn skip_to(&mut self, next: usize) {
        let end = self.batch.text.len() as u32;
        self.ends[self.next.min(next)..next].iter_mut().for_each(|to| *to = end);
        self.next = next;
    }

    pub(crate) fn finish(mut self, status: u16, attempts: u32, reason: &'static str) {
        self.skip_to(Text::COUNT);
        let Adding { trace_id, span_id, parent_id, times, begin, ends, .. } = self;
        let raw = Raw { trace_id, span_id, parent_id, times, status, attempts, reason, begin, ends };
        self.batch.raw.push(raw);
    }
}

impl Raw {
    fn read<'a>(&self, text: &'a str) -> Span<'a> {
        let mut begin = self.begin as usize;
        let texts: [&str; Text::COUNT] = array::from_fn(|at| {
            let end = self.ends[at] as usize;
            &text[std::mem::replace(&mut begin, end)..end]
        });
        let of = |which: Text| texts[which as usize];
        Span {
            trace_id: self.trace_id,
            span_id: self.span_id,
            parent_id: self.parent_id,
            start_unix_ns: self.times.start_unix_ns,
            end_unix_ns: self.times.end_unix_ns,
            method: of(Text::Method),
            scheme: of(Text::Scheme),
            host: of(Text::Host),
            path: of(Text::Path),
            query: of(Text::Query),
            protocol: of(Text::Protocol),
            client: of(Text::Client),
            user_agent: of(Text::UserAgent),
            request_id: of(Text::RequestId),
            listener: of(Text::Listener),
            route: of(Text::Route),
            rule: of(Text::Rule),
            pool: of(Text::Pool),
            member: of(Text::Member),
            status: self.status,
            attempts: self.attempts,
            reason: self.reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_out_as_they_were_told_and_what_was_left_out_is_empty() {
        let mut batch = Batch::default();
        let times = Times { start_unix_ns: 3, end_unix_ns: 4 };
        batch
            .add([1; 16], [2; 8], Some([3; 8]), times)
            .text(Text::Path, b"/a\xff")
            .finish(404, 0, "no_route");
        let adding = batch.add([4; 16], [5; 8], None, times);
        let adding = adding.text(Text::Method, b"GET").text(Text::Host, b"h").text(Text::Member, b"m0");
        adding.finish(200, 2, "done");
        let [first, second] = batch.iter().collect::<Vec<_>>().try_into().expect("two");
        assert_eq!((first.method, first.path, first.member), ("", "/a\u{fffd}", ""));
        assert_eq!((first.parent_id, first.status, first.reason), (Some([3; 8]), 404, "no_route"));
        assert_eq!((second.method, second.host, second.path, second.member), ("GET", "h", "", "m0"));
        assert_eq!((second.trace_id, second.attempts, second.end_unix_ns), ([4; 16], 2, 4));
    }
}
