//! Why a request, connection or session ended: the one table that yields the status a client gets,
//! the label in log and metrics, and whether trying again is safe, so that the three can't disagree.

/// Whether what failed may be sent again, to another member or over a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetrySafe {
    /// The upstream can't have seen a byte of it.
    Yes,
    /// Only on a connection that had carried a request before: its peer had most likely closed it
    /// before ours was sent (RFC 9112, section 9.3.1).
    IfReused,
    No,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => ($label:literal, $status:expr, $retry:ident);)+) => {
        /// What ended a request (HTTP), connection (TCP) or session (UDP).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            pub(crate) const ALL: &'static [Reason] = &[$(Reason::$name),+];
            pub(crate) const COUNT: usize = Self::ALL.len();

            /// Label in metrics and log. Stable: dashboards name it.
            pub(crate) fn label(self) -> &'static str {
                match self { $(Reason::$name => $label,)+ }
            }

            /// The status of the answer the proxy makes itself, if no answer has begun. `None`: the
            /// upstream's own answer went out, or there is nobody left to answer.
            pub(crate) fn status(self) -> Option<u16> {
                let status: u16 = match self { $(Reason::$name => $status,)+ };
                (status != 0).then_some(status)
            }

            pub(crate) fn retry_safe(self) -> RetrySafe {
                match self { $(Reason::$name => RetrySafe::$retry,)+ }
            }
        }
    };
}

reasons! {
    /// Both sides ended in order.
    Done => ("done", 0, No);

    /// The rule answers by itself.
    Answered => ("answered", 0, No);

    /// The client broke its connection off.
    ClientGone => ("client_gone", 0, No);
    /// The request's header did not arrive in time.
    ClientHeaderTimeout => ("client_header_timeout", 408, No);
    /// The request's body stopped coming.
    ClientBodyTimeout => ("client_body_timeout", 408, No);
    /// The request is malformed, or smells of request smuggling.
    BadRequest => ("bad_request", 400, No);
    /// The request line is too long.
    UriTooLong => ("uri_too_long", 414, No);
    /// The header is too large.
    HeadersTooLarge => ("headers_too_large", 431, No);
    /// The body is larger than the rule's `max_body`.
    BodyTooLarge => ("body_too_large", 413, No);
    /// A protocol or upgrade that is not served here.
    Unsupported => ("unsupported", 501, No);

    /// No route fits, and the listener has no pool.
    NoRoute => ("no_route", 404, No);
    /// The pool has no usable member.
    NoMember => ("no_member", 503, No);
    /// The pool's `breaker`: as much as it may have is under way.
    Breaker => ("breaker", 503, No);
    /// Every member has its `max_connections`, and the pool's queue is full (tcp and udp: always).
    QueueFull => ("queue_full", 503, No);
    /// No member had room in the pool's `queue.timeout`.
    QueueTimeout => ("queue_timeout", 503, No);
    /// Trying again would have been safe, but too many retries are under way.
    RetryBudget => ("retry_budget", 503, No);

    /// The member refused the connection or can't be reached.
    ConnectFailed => ("connect_failed", 502, Yes);
    /// The connection was not made in the pool's `timeout.connect`.
    ConnectTimeout => ("connect_timeout", 504, Yes);
    /// The member can't be spoken to: its certificate is not believed, or no protocol is common.
    TlsFailed => ("tls_failed", 502, Yes);
    /// The connection ended before a byte of an answer.
    UpstreamClosed => ("upstream_closed", 502, IfReused);
    /// The connection broke in the middle of an answer.
    UpstreamBroken => ("upstream_broken", 502, No);
    /// What the member sent is not HTTP, or not safe to pass on.
    UpstreamMalformed => ("upstream_malformed", 502, No);
    /// No answer in `timeout.first_byte`.
    FirstByteTimeout => ("first_byte_timeout", 504, No);
    /// One attempt took longer than `timeout.attempt`.
    AttemptTimeout => ("attempt_timeout", 504, No);
    /// All attempts together took longer than `timeout.request`.
    RequestTimeout => ("request_timeout", 504, No);
    /// The member reset the connection.
    UpstreamReset => ("upstream_reset", 502, No);
    /// ICMP: nobody listens at the member's UDP port.
    UpstreamUnreachable => ("upstream_unreachable", 502, No);

    /// Nothing moved for the idle time.
    Idle => ("idle", 504, No);
    /// The session has had all of its replies.
    Replied => ("replied", 0, No);
    /// This worker has as many sessions as it may have.
    SessionLimit => ("session_limit", 503, No);
    /// The node or the listener is closing and could wait no longer.
    Closing => ("closing", 503, No);
    /// A fault of the proxy itself, or of the machine below it (no file descriptor, no port).
    Internal => ("internal", 500, No);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_a_label_of_its_own_that_prometheus_takes() {
        let labels: BTreeSet<_> = Reason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), Reason::COUNT);
        assert!(labels.iter().all(|l| l.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }

    #[test]
    fn time_outs_are_504_broken_answers_502_and_nobody_to_ask_503() {
        for (reason, status) in [
            (Reason::ConnectTimeout, 504),
            (Reason::FirstByteTimeout, 504),
            (Reason::RequestTimeout, 504),
            (Reason::UpstreamMalformed, 502),
            (Reason::ConnectFailed, 502),
            (Reason::UpstreamClosed, 502),
            (Reason::NoMember, 503),
            (Reason::ClientHeaderTimeout, 408),
        ] {
            assert_eq!(reason.status(), Some(status), "{reason:?}");
        }
        assert_eq!(Reason::Done.status(), None);
    }

    #[test]
    fn only_what_the_upstream_has_not_seen_is_sent_again() {
        for reason in Reason::ALL {
            let expected = match reason {
                Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed => RetrySafe::Yes,
                Reason::UpstreamClosed => RetrySafe::IfReused,
                _ => RetrySafe::No,
            };
            assert_eq!(reason.retry_safe(), expected, "{reason:?}");
        }
    }
}
