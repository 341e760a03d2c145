//! Who may use the admin API.
//!
//! On loopback the machine's users are trusted, browsers on it are not: a page from anywhere could
//! make one send requests (cross-site forgery) or read answers under a name that it has pointed at
//! 127.0.0.1 (DNS rebinding). So `Host` must be a loopback name, and a write with a foreign
//! `Origin` is refused. On any other address it takes TLS and a client certificate of the cluster's
//! CA, or a token: one that admits to everything, or one that admits to reading.
//!
//! Of tokens only digests are kept. Who offers a wrong one waits for its answer ([`WRONG_WAIT`]), and few may wait
//! at once, so that guessing gets nowhere.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use http::uri::Authority;
use http::{HeaderMap, Method, StatusCode, Uri, header};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::error::ApiError;

/// Whoever asks for these learns only whether the node is there and ready.
const OPEN_PATHS: [&str; 2] = ["/healthz", "/readyz"];

/// Characters of an author's name that are kept.
const AUTHOR_MAX: usize = 128;

/// The rules of one admin address.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) bind: SocketAddr,
    pub(crate) token: Option<Token>,
    /// For requests that change nothing.
    pub(crate) read_token: Option<Token>,
}

/// How long the answer to a wrong token takes.
const WRONG_WAIT: Duration = Duration::from_millis(500);
/// How many wait for one at once; more are told to come later.
const WRONG_MAX: usize = 32;
/// The code of that answer.
const WRONG_TOKEN: &str = "wrong_token";

/// Those who have offered a wrong token, and wait to be told.
pub(crate) struct Wrong(Semaphore);

impl Default for Wrong {
    fn default() -> Self {
        Self(Semaphore::new(WRONG_MAX))
    }
}

impl Wrong {
    /// Makes whoever offered a wrong token wait.
    pub(crate) async fn hold_up(&self, refused: ApiError) -> ApiError {
        if refused.code != WRONG_TOKEN {
            return refused;
        }
        let Ok(_place) = self.0.try_acquire() else {
            let message = "too many wrong tokens were offered just now; try again later";
            return ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_wrong_tokens", message);
        };
        tokio::time::sleep(WRONG_WAIT).await;
        refused
    }
}

/// What a connection has proved before its first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Plain, on loopback.
    Local,
    /// TLS without a client certificate.
    Anonymous,
    /// TLS with a certificate of the cluster's CA.
    ClusterKey,
}

/// Who made a change, for the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Author(pub(crate) String);

/// A bearer token, as its digest, compared without telling by time how much of it was right.
#[derive(Clone)]
pub(crate) struct Token(Digest);

impl Token {
    const LENGTH_MIN: usize = 16;

    /// `setting` names the file.
    pub(crate) fn read(path: &Path, setting: &str) -> anyhow::Result<Token> {
        let text = std::fs::read_to_string(path)
            .map(Zeroizing::new)
            .with_context(|| format!("can't read --{setting} {}", path.display()))?;
        Token::new(text.trim()).with_context(|| format!("--{setting} {}", path.display()))
    }

    fn new(text: &str) -> anyhow::Result<Token> {
        anyhow::ensure!(
            text.len() >= Token::LENGTH_MIN && text.bytes().all(|b| b.is_ascii_graphic()),
            "a token is one line of at least {} visible characters, such as `openssl rand -hex 32` prints",
            Token::LENGTH_MIN
        );
        Ok(Token(digest(&SHA256, text.as_bytes())))
    }

    fn is(&self, offered: &[u8]) -> bool {
        verify_slices_are_equal(self.0.as_ref(), digest(&SHA256, offered).as_ref()).is_ok()
    }
}

impl Access {
    /// Whether connections to this address are plain.
    pub(crate) fn plain(&self) -> bool {
        self.bind.ip().is_loopback()
    }

    /// Lets a request in, with who is behind it, or says why not.
    pub(crate) fn judge(
        &self,
        proof: Proof,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<Author, ApiError> {
        let host = requested_host(uri, headers)?;
        if self.plain() && !self.is_own_name(&host) {
            return Err(ApiError::new(
                StatusCode::MISDIRECTED_REQUEST,
                "foreign_host",
                format!(
                    "this admin API does not answer under the name {:?}; use http://{}",
                    host.as_str(),
                    self.bind
                ),
            ));
        }
        if !method.is_safe() {
            refuse_foreign_origin(&host, headers)?;
        }
        if OPEN_PATHS.contains(&uri.path()) {
            return Ok(Author("anybody".to_owned()));
        }
        let by = self.authenticate(proof, method, headers)?;
        Ok(author(headers).unwrap_or_else(|| Author(by.to_owned())))
    }

    fn is_own_name(&self, host: &Authority) -> bool {
        let name = host.host();
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        match bare.parse::<IpAddr>() {
            Ok(ip) => ip.is_loopback() || ip == self.bind.ip(),
            Err(_) => bare.eq_ignore_ascii_case("localhost"),
        }
    }

    fn authenticate(
        &self,
        proof: Proof,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<&'static str, ApiError> {
        if proof == Proof::ClusterKey {
            return Ok("cluster-key");
        }
        let offered = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.as_bytes().split_at_checked(7))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
            .map(|(_, token)| token);
        let is = |token: &Option<Token>, offered| token.as_ref().is_some_and(|token| token.is(offered));
        // Whoever offers it wants no more than it admits to, also where nothing is asked for.
        let only_reads = offered.is_some_and(|offered| is(&self.read_token, offered));
        if proof == Proof::Local && self.token.is_none() && !only_reads {
            return Ok("local");
        }
        match offered {
            _ if self.token.is_none() && self.read_token.is_none() => {
                Err(unauthorized("give the cluster's key (`--key-file`): this node takes no token"))
            }
            None if proof == Proof::Local => Err(unauthorized(
                "give an admin token (`--token-file`): this node asks for one on loopback too, where it speaks plain \
                 HTTP and the cluster's key (`--key-file`) proves nothing",
            )),
            None => {
                Err(unauthorized("give an admin token (`--token-file`) or the cluster's key (`--key-file`)"))
            }
            Some(offered) if is(&self.token, offered) => Ok("admin-token"),
            Some(_) if only_reads && method.is_safe() => Ok("admin-read-token"),
            Some(_) if only_reads => Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "read_only",
                "this token is for reading; changes take the admin token or the cluster's key",
            )),
            Some(_) => Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                WRONG_TOKEN,
                "the token is not one of this node's admin tokens",
            )),
        }
    }
}

fn unauthorized(message: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
}

/// RFC 9112, section 3.2: an absolute target beats `Host`, and `Host` must be there once.
fn requested_host(uri: &Uri, headers: &HeaderMap) -> Result<Authority, ApiError> {
    if let Some(authority) = uri.authority() {
        return Ok(authority.clone());
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next().and_then(|host| Authority::try_from(host.as_bytes()).ok()), hosts.next()) {
        (Some(host), None) => Ok(host),
        _ => Err(ApiError::bad_request("one valid Host header is needed")),
    }
}

fn refuse_foreign_origin(host: &Authority, headers: &HeaderMap) -> Result<(), ApiError> {
    for origin in headers.get_all(header::ORIGIN) {
        let origin = Uri::try_from(origin.as_bytes()).ok();
        if origin.as_ref().and_then(Uri::authority) != Some(host) {
            let message = "a page from elsewhere may not change this cluster";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "foreign_origin", message));
        }
    }
    Ok(())
}

/// `X-Author`: who the caller says they are. Whoever holds key or token is trusted to say so.
fn author(headers: &HeaderMap) -> Option<Author> {
    let name = headers.get("x-author")?.to_str().ok()?.trim();
    (!name.is_empty()).then(|| Author(name.chars().take(AUTHOR_MAX).collect()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;

    const TOKEN: &str = "0123456789abcdef0123";

    fn access(bind: &str, token: Option<&str>) -> Access {
        let token = token.map(|t| Token::new(t).unwrap());
        Access { bind: bind.parse().unwrap(), token, read_token: None }
    }

    fn judge(
        access: &Access,
        proof: Proof,
        request: &str,
        headers: &[(&str, &str)],
    ) -> Result<String, &'static str> {
        let (method, target) = request.split_once(' ').unwrap();
        let headers = headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect();
        let method = method.parse().unwrap();
        access.judge(proof, &method, &target.parse().unwrap(), &headers).map(|a| a.0).map_err(|e| e.code)
    }

    #[test]
    fn loopback_answers_only_under_its_own_names() {
        let access = access("127.0.0.1:7480", None);
        for good in ["127.0.0.1:7480", "localhost:7480", "LOCALHOST", "[::1]:7480", "127.0.0.2"] {
            assert!(judge(&access, Proof::Local, "GET /v1/status", &[("host", good)]).is_ok(), "{good}");
        }
        for bad in
            ["evil.example", "127.0.0.1.evil.example:7480", "192.0.2.1", "localhost.evil.example", "x@y z"]
        {
            assert!(judge(&access, Proof::Local, "GET /v1/status", &[("host", bad)]).is_err(), "{bad}");
        }
        let rebound = judge(&access, Proof::Local, "GET /v1/config", &[("host", "evil.example:7480")]);
        assert_eq!(rebound, Err("foreign_host"));
    }

    #[test]
    fn an_absolute_target_does_not_get_around_the_host_check() {
        let access = access("127.0.0.1:7480", None);
        let got = judge(&access, Proof::Local, "GET http://evil.example/v1/status", &[("host", "localhost")]);
        assert_eq!(got, Err("foreign_host"));
    }

    #[test]
    fn a_missing_or_repeated_host_is_refused() {
        let access = access("127.0.0.1:7480", None);
        assert_eq!(judge(&access, Proof::Local, "GET /healthz", &[]), Err("bad_request"));
        let twice = [("host", "localhost"), ("host", "localhost")];
        assert_eq!(judge(&access, Proof::Local, "GET /healthz", &twice), Err("bad_request"));
    }

    #[test]
    fn a_page_from_elsewhere_may_not_write() {
        let access = access("127.0.0.1:7480", None);
        let from = |origin| {
            judge(&access, Proof::Local, "PUT /v1/config", &[("host", "localhost:7480"), ("origin", origin)])
        };
        assert!(from("http://localhost:7480").is_ok());
        for bad in ["https://evil.example", "null", "http://localhost:3000", "http://localhost"] {
            assert_eq!(from(bad), Err("foreign_origin"), "{bad}");
        }
    }

    #[test]
    fn beyond_loopback_it_takes_the_key_or_the_token() {
        let host = ("host", "node-1:7480");
        let bearer = |token: &str| format!("Bearer {token}");
        let keyed = access("0.0.0.0:7480", None);
        assert_eq!(judge(&keyed, Proof::Anonymous, "GET /v1/status", &[host]), Err("unauthorized"));
        assert_eq!(judge(&keyed, Proof::ClusterKey, "GET /v1/status", &[host]), Ok("cluster-key".into()));
        let offered = bearer(TOKEN);
        assert_eq!(
            judge(&keyed, Proof::Anonymous, "GET /v1/status", &[host, ("authorization", &offered)]),
            Err("unauthorized"),
            "no token is set"
        );

        let with_token = access("0.0.0.0:7480", Some(TOKEN));
        assert_eq!(
            judge(&with_token, Proof::Anonymous, "GET /v1/status", &[host, ("authorization", &offered)]),
            Ok("admin-token".into())
        );
        for wrong in
            [bearer("0123456789abcdef012x"), bearer(&TOKEN[1..]), bearer(""), format!("Basic {TOKEN}")]
        {
            let got =
                judge(&with_token, Proof::Anonymous, "GET /v1/status", &[host, ("authorization", &wrong)]);
            let expected = if wrong.starts_with("Bearer") { "wrong_token" } else { "unauthorized" };
            assert_eq!(got, Err(expected), "{wrong}");
        }
        assert_eq!(judge(&with_token, Proof::ClusterKey, "GET /metrics", &[host]), Ok("cluster-key".into()));
    }

    #[test]
    fn health_is_open_to_anybody_and_nothing_else_is() {
        let access = access("0.0.0.0:7480", Some(TOKEN));
        for open in OPEN_PATHS {
            assert!(judge(&access, Proof::Anonymous, &format!("GET {open}"), &[("host", "x")]).is_ok());
        }
        for closed in ["/metrics", "/v1/status", "/v1/openapi.json", "/healthz/x"] {
            let got = judge(&access, Proof::Anonymous, &format!("GET {closed}"), &[("host", "x")]);
            assert_eq!(got, Err("unauthorized"), "{closed}");
        }
    }

    #[test]
    fn a_token_for_reading_changes_nothing() {
        const READ: &str = "fedcba9876543210fedc";
        let both =
            Access { read_token: Some(Token::new(READ).unwrap()), ..access("0.0.0.0:7480", Some(TOKEN)) };
        let asked = |access: &Access, request: &str, token: &str| {
            let bearer = format!("Bearer {token}");
            judge(access, Proof::Anonymous, request, &[("host", "x"), ("authorization", &bearer)])
        };
        for reads in ["GET /v1/config", "HEAD /v1/status", "GET /metrics"] {
            assert_eq!(asked(&both, reads, READ), Ok("admin-read-token".into()), "{reads}");
            assert_eq!(asked(&both, reads, TOKEN), Ok("admin-token".into()), "{reads}");
        }
        for writes in ["PUT /v1/config", "POST /v1/bans", "DELETE /v1/bans/192.0.2.1"] {
            assert_eq!(asked(&both, writes, READ), Err("read_only"), "{writes}");
            assert_eq!(asked(&both, writes, TOKEN), Ok("admin-token".into()), "{writes}");
        }
        let reading = Access { token: None, ..both };
        assert_eq!(asked(&reading, "GET /v1/config", TOKEN), Err("wrong_token"));
        assert_eq!(asked(&reading, "GET /v1/config", READ), Ok("admin-read-token".into()));
    }

    #[test]
    fn a_token_for_reading_changes_nothing_on_loopback_either() {
        const READ: &str = "fedcba9876543210fedc";
        let read_token = Some(Token::new(READ).unwrap());
        let reading = Access { read_token, ..access("127.0.0.1:7480", None) };
        let bearer = format!("Bearer {READ}");
        let with_it = [("host", "localhost"), ("authorization", bearer.as_str())];
        let asked = |request: &str, headers: &[_]| judge(&reading, Proof::Local, request, headers);
        assert_eq!(asked("POST /v1/cache/purge", &with_it), Err("read_only"));
        assert_eq!(asked("GET /v1/status", &with_it), Ok("admin-read-token".into()));
        assert_eq!(asked("POST /v1/cache/purge", &with_it[..1]), Ok("local".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_offers_a_wrong_token_waits_and_few_do_at_once() {
        let wrong = Arc::new(Wrong::default());
        let refused = || ApiError::new(StatusCode::UNAUTHORIZED, WRONG_TOKEN, "no");
        let began = tokio::time::Instant::now();
        let tell = || {
            let wrong = Arc::clone(&wrong);
            tokio::spawn(async move { wrong.hold_up(refused()).await.code })
        };
        let told: Vec<_> = (0..WRONG_MAX + 3).map(|_| tell()).collect();
        let mut codes = BTreeMap::new();
        for told in told {
            *codes.entry(told.await.unwrap()).or_insert(0) += 1;
        }
        assert_eq!(codes, [(WRONG_TOKEN, WRONG_MAX), ("too_many_wrong_tokens", 3)].into());
        assert!(began.elapsed() >= WRONG_WAIT);
        assert_eq!(wrong.hold_up(unauthorized("none")).await.code, "unauthorized");
    }

    #[test]
    fn a_token_on_loopback_is_asked_for_too() {
        let access = access("127.0.0.1:7480", Some(TOKEN));
        assert_eq!(
            judge(&access, Proof::Local, "GET /v1/status", &[("host", "localhost")]),
            Err("unauthorized")
        );
        let headers = [("host".parse().unwrap(), "localhost".parse().unwrap())].into_iter().collect();
        let refused =
            access.judge(Proof::Local, &Method::GET, &"/v1/status".parse().unwrap(), &headers).unwrap_err();
        assert!(refused.message.starts_with("give an admin token"), "{}", refused.message);
        assert!(refused.message.contains("`--key-file`) proves nothing"), "{}", refused.message);
    }

    #[test]
    fn the_history_names_who_they_say_they_are() {
        let access = access("127.0.0.1:7480", None);
        let headers = [("host", "localhost"), ("x-author", "ada@lovelace")];
        assert_eq!(judge(&access, Proof::Local, "PUT /v1/config", &headers), Ok("ada@lovelace".into()));
        assert_eq!(judge(&access, Proof::Local, "PUT /v1/config", &headers[..1]), Ok("local".into()));
    }

    #[test]
    fn a_short_token_is_refused() {
        assert!(Token::new("secret").is_err());
        assert!(Token::new("with a space in it, but long").is_err());
    }
}
