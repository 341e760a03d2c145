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

            /// A limit on what the client itself has or sends refused it.
            pub(crate) fn is_limit_of_client(self) -> bool {
                matches!(self, Reason::ClientLimit | Reason::RequestLimit | Reason::RateLimit)
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
    /// The request's body came more slowly than the listener's `http.body_rate`.
    ClientBodySlow => ("client_body_slow", 408, No);
    /// The request is malformed, or smells of request smuggling.
    BadRequest => ("bad_request", 400, No);
    /// What the request brings into the host of a redirect or a rewrite makes no host; or a redirect needs one, and
    /// the request names none.
    BadHost => ("bad_host", 400, No);
    /// What the request brings into the path of a redirect or a rewrite makes no path, or has a dot segment.
    BadPath => ("bad_path", 400, No);
    /// The request line is too long.
    UriTooLong => ("uri_too_long", 414, No);
    /// The header is too large.
    HeadersTooLarge => ("headers_too_large", 431, No);
    /// The body is larger than the rule's `max_body`.
    BodyTooLarge => ("body_too_large", 413, No);
    /// The connection broke the rules of HTTP/2, or a command of FTP is longer than any.
    ProtocolError => ("protocol_error", 0, No);
    /// The connection broke off more requests, or sent more frames that carry nothing, than anybody needs to.
    Flood => ("flood", 0, No);
    /// A protocol or upgrade that is not served here.
    Unsupported => ("unsupported", 501, No);

    /// `proxy_protocol` is required, and what came is no header.
    ProxyMissing => ("proxy_missing", 0, No);
    /// The PROXY protocol's header is malformed.
    ProxyMalformed => ("proxy_malformed", 0, No);
    /// The PROXY protocol's header did not arrive in time.
    ProxyTimeout => ("proxy_timeout", 0, No);
    /// `proxy_protocol` is required, and its `from` does not have the peer.
    ProxyUnlisted => ("proxy_unlisted", 0, No);

    /// A firewall of the listener, the route or the rule does not let the client in.
    Firewall => ("firewall", 403, No);
    /// The client is banned.
    Banned => ("banned", 403, No);
    /// The web application firewall found something in the request.
    Waf => ("waf", 403, No);
    /// The rule's `auth` lets only those in who know a password.
    Unauthorized => ("unauthorized", 401, No);
    /// Too many passwords wait to be looked at.
    AuthBusy => ("auth_busy", 503, No);
    /// FTP: a data connection that comes from somebody else, or was asked for at somebody else's address.
    FtpForeign => ("ftp_foreign", 0, No);
    /// FTP: none of the listener's `ftp.ports` is free.
    FtpNoPort => ("ftp_no_port", 0, No);
    /// What came is no TLS, or none whose name could be read.
    NotTls => ("not_tls", 0, No);
    /// TLS had not begun in `tcp.handshake_timeout`.
    HandshakeTimeout => ("handshake_timeout", 0, No);
    /// The TLS handshake failed; `trestle_listener_tls_failures_total` counts why.
    HandshakeFailed => ("handshake_failed", 0, No);
    /// No pool has the TLS name that was asked for.
    UnknownName => ("unknown_name", 0, No);

    /// The client has as many connections or sessions as a listener's `limits` let it.
    ClientLimit => ("client_limit", 429, No);
    /// The listener has as many connections or sessions as its `limits` let it.
    ListenerLimit => ("listener_limit", 503, No);
    /// The node is overloaded: it lets nobody new in until it is not.
    Overload => ("overload", 503, No);
    /// The node holds as many bytes of request bodies as it may, and this one had to be held too.
    BodyMemory => ("body_memory", 503, No);
    /// The client has as many requests in flight as `limits` let it.
    RequestLimit => ("request_limit", 429, No);
    /// It had a slot of an exact limit, and this node has lost its slots: it has no seat any more.
    SlotLost => ("slot_lost", 503, No);
    /// More requests, connections or sessions came in a time than `rate_limits` let through.
    RateLimit => ("rate_limit", 429, No);

    /// The client wants only what is in the cache, and that has nothing for it.
    NotCached => ("not_cached", 504, No);
    /// A long response that lies on disk turned out broken after its beginning had been sent.
    CacheBroken => ("cache_broken", 0, No);
    /// It took a long response so slowly that others, who are sent the same one, had to wait for it.
    ClientSlow => ("client_slow", 0, No);

    /// No route fits, and the listener has no pool.
    NoRoute => ("no_route", 404, No);
    /// The pool has no usable member.
    NoMember => ("no_member", 503, No);
    /// The pool's `breaker`: as much as it may have is under way.
    Breaker => ("breaker", 503, No);
    /// The pool's `breaker.adaptive`: more would only make the others wait, and it has no queue.
    AdaptiveLimit => ("adaptive_limit", 503, No);
    /// Every member has its `max_connections`, or the adaptive limit is reached, and the pool's queue is full
    /// (tcp and udp: always).
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
    /// What the member sent is not HTTP (or FTP), or not safe to pass on.
    UpstreamMalformed => ("upstream_malformed", 502, No);
    /// Members have answered several others with 500, 502, 503 or 504, one after the other, for whose answers this request
    /// has waited.
    MemberFailed => ("member_failed", 503, No);
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
    /// The member went down, and its pool says `on_down: reset`.
    MemberDown => ("member_down", 0, No);
    /// The member's drain had a deadline, and it has passed.
    Drained => ("drained", 0, No);
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
