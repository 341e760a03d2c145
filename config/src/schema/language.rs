//! Every key of the language, with type, default and meaning.
//!
//! Defaults here are for the reader, the JSON Schema and the reference; the values that run are the
//! `Default`s of [`crate::model`], and a test compares the two.

use std::time::Duration;

use super::Default::{Required, Words, Yaml};
use super::{Choose, Format, Key, Object, Type};
use crate::scalar::{DURATION_MAX, SIZE_MAX};

const BOOL: Type = Type::Bool;
const TEXT: Type = Type::Text(Format::Any);
const TEXTS: Type = Type::List { of: &TEXT, min: 0 };
const COUNT: Type = Type::Int { min: 0, max: COUNT_MAX };
const POSITIVE: Type = Type::Int { min: 1, max: COUNT_MAX };
/// Fits every integer of the model.
const COUNT_MAX: u64 = 1_000_000_000;
/// As in Gateway API.
const POOL_WEIGHT: Type = Type::Int { min: 0, max: 1_000_000 };
/// The sum over 10,000 members fits in 32 bits.
const MEMBER_WEIGHT: Type = Type::Int { min: 0, max: 65_535 };
const TIME: Type = Type::Duration { min: Duration::ZERO, max: DURATION_MAX };
/// Where zero would mean "never" or "always", which has its own key or makes no sense.
const TIME_POSITIVE: Type = Type::Duration { min: Duration::from_millis(1), max: DURATION_MAX };
/// Shorter than a lease takes to renew, or longer than anybody waits for an address.
const TTL: Type = Type::Duration { min: Duration::from_millis(100), max: Duration::from_secs(60) };
const NODES: Type = Type::List { of: &Type::Text(Format::Name), min: 0 };
const SIZE: Type = Type::Size { min: 0, max: SIZE_MAX };
const STRING_MAP: Type = Type::Map { key: Format::Any, of: &TEXT };
const OPEN_LIST: Type = Type::List { of: &Type::Open, min: 0 };
const HEADER_MAP: Type = Type::Map { key: Format::HeaderName, of: &HEADER_VALUE };
const HEADER_VALUE: Type = Type::Text(Format::HeaderValue);
const USE: Type = Type::List { of: &Type::Text(Format::Ref("policies")), min: 0 };
const TEMPLATE: Type = Type::Text(Format::Template);
const HEADER_TEMPLATES: Type = Type::Map { key: Format::HeaderName, of: &Type::Text(Format::HeaderTemplate) };
const HEADER_NAMES: Type = Type::List { of: &Type::Text(Format::HeaderName), min: 0 };
/// A path, or `stored:DIGEST`.
const FILE: Type = Type::Text(Format::File);
const POOL: Type = Type::Text(Format::Ref("pools"));

const fn one_of(now: &'static [&'static str], later: &'static [&'static str]) -> Type {
    Type::Choice { now, later }
}

const fn key(name: &'static str, ty: Type, default: super::Default, doc: &'static str) -> Key {
    Key::new(name, ty, default, doc)
}

// === the document ===

pub(crate) static DOCUMENT: Object = Object::new("document", DOCUMENT_KEYS);
static DOCUMENT_KEYS: &[Key] = &[
    key("listeners", named(&Type::Object(&LISTENER)), Yaml("{}"), "Where nodes accept traffic"),
    key("routes", named(&Type::Object(&ROUTE)), Yaml("{}"), "Which pool gets an HTTP request"),
    key("policies", named(&Type::Object(&POLICY)), Yaml("{}"), "Bundles of policy keys, pulled in by `use`"),
    key("pools", named(&Type::Object(&POOL_OBJECT)), Yaml("{}"), "Backends that stand in for one another"),
    key("certificates", named(&Type::Object(&CERTIFICATE)), Yaml("{}"), "Certificates with their keys"),
    key("vips", named(&Type::Object(&VIP)), Yaml("{}"), "Addresses that one node at a time holds"),
    key("networks", named(&Type::Object(&NETWORK)), Yaml("{}"), "Named sets of networks").later(),
    key("access_log", Type::Object(&ACCESS_LOG), Yaml("{}"), "How requests are recorded"),
    key("cluster", Type::Object(&CLUSTER), Yaml("{}"), "Timers and sizes of the cluster itself"),
];

const fn named(of: &'static Type) -> Type {
    Type::Map { key: Format::Name, of }
}

// === listeners ===

static LISTENER: Object = Object::new("listener", LISTENER_KEYS).with(POLICY_KEYS);
static LISTENER_KEYS: &[Key] = &[
    key("bind", Type::OneOrList(&Type::Text(Format::Bind)), Required, "`ADDRESS:PORT`, `[IPv6]:PORT`, `:PORT` (all addresses) or `@VIP:PORT` (all of the VIP's), or a list; port 0 lets the system choose"),
    key("protocol", one_of(&["http", "https", "tcp", "udp", "tcp+udp"], &["tls"]), Required, "What is spoken; `tls` passes TLS through unopened"),
    key("via", one_of(&["proxy", "kernel", "auto"], &[]), Yaml("proxy"), "Path of tcp and udp traffic").later(),
    key("kernel", Type::Object(&KERNEL), Yaml("{}"), "Settings of the kernel path").later(),
    key("pool", POOL, Words("none"), "Required for tcp and udp; for http and https it answers where no route fits (else 404)"),
    key("tls", Type::Object(&LISTENER_TLS), Words("none"), "Terminates TLS; for https, and required there"),
    key("sni", Type::Map { key: Format::Any, of: &POOL }, Yaml("{}"), "TLS names that are passed through to a pool").later(),
    key("proxy_protocol", Type::Object(&LISTENER_PROXY_PROTOCOL), Yaml("{}"), "PROXY protocol from whoever stands before us").later(),
    key("trusted_proxies", TEXTS, Yaml("[]"), "Networks whose forwarding headers are believed").later(),
    key("udp", Type::Object(&UDP), Yaml("{}"), "Sessions of udp"),
    key("tcp", Type::Object(&TCP), Yaml("{}"), "Connections of tcp"),
    key("ftp", Type::OrOff(&Type::Object(&FTP)), Yaml("off"), "Follows FTP's data connections").later(),
    key("http", Type::Object(&HTTP), Yaml("{}"), "Connections of http"),
    key("on_limit", one_of(&["reset", "close"], &[]), Yaml("reset"), "How a connection above a limit ends").later(),
    key("use", USE, Yaml("[]"), "Policies that apply"),
];

static KERNEL: Object = Object::new("listener.kernel", &[
    key("mode", one_of(&["nat", "full-nat", "dsr"], &[]), Yaml("nat"), "How packets reach a member"),
    key("hash", one_of(&["client", "client-port"], &[]), Yaml("client-port"), "What a member is chosen by"),
]);

static LISTENER_TLS: Object = Object::new("listener.tls", &[
    key("certificates", Type::List { of: &Type::Text(Format::Ref("certificates")), min: 1 }, Required, "The first is the default"),
    key("unknown_name", one_of(&["default", "reject"], &[]), Yaml("default"), "For a name that no certificate has"),
    key("min", one_of(&["1.2", "1.3"], &[]), Yaml("\"1.2\""), "Lowest version of TLS"),
    key("alpn", Type::List { of: &one_of(&["h2", "http/1.1"], &[]), min: 1 }, Yaml("[h2, http/1.1]"), "Protocols offered, the preferred first"),
    key("client", Type::Object(&CLIENT_TLS), Yaml("{}"), "Certificates of clients"),
]);

static CLIENT_TLS: Object = Object::new("listener.tls.client", &[
    key("mode", one_of(&["none", "optional", "required"], &[]), Yaml("none"), "Whether a client needs a certificate"),
    key("ca_file", FILE, Words("none"), "PEM file of the authorities that are trusted; required unless `mode` is `none`"),
    key("forward", BOOL, Yaml("false"), "Passes the certificate on, in `Client-Cert` and `Client-Cert-Chain` (RFC 9440)"),
]);

static LISTENER_PROXY_PROTOCOL: Object = Object::new("listener.proxy_protocol", &[
    key("accept", one_of(&["off", "optional", "required"], &[]), Yaml("off"), "Whether a header is read"),
    key("from", TEXTS, Yaml("[]"), "Networks that may send one"),
]);

static UDP: Object = Object::new("listener.udp", &[
    key("idle", TIME_POSITIVE, Yaml("60s"), "A session without a datagram in either direction for this long is dropped"),
    key("replies", COUNT, Yaml("0"), "A session ends after this many replies, 1 for DNS; 0: only by `idle`"),
]);

static TCP: Object = Object::new("listener.tcp", &[
    key("idle", TIME_POSITIVE, Yaml("1h"), "A connection without a byte in either direction for this long is closed"),
    key("nodelay", BOOL, Yaml("true"), "Sends small segments at once"),
    key("buffer", Type::Size { min: 1 << 10, max: 16 << 20 }, Yaml("16KiB"), "Bytes held for one direction of one connection"),
]);

static FTP: Object = Object::new("listener.ftp", &[
    key("ports", TEXT, Required, "Ports of data connections, `30000-30999`"),
]);

static HTTP: Object = Object::new("listener.http", &[
    key("header_timeout", TIME_POSITIVE, Yaml("10s"), "From the first byte of a request, or the accept, to the end of its header"),
    key("idle", TIME_POSITIVE, Yaml("75s"), "A kept connection without a request for this long is closed"),
    key("max_headers", Type::Size { min: 1 << 10, max: 1 << 20 }, Yaml("64KiB"), "Request line and header fields together"),
    key("h2_streams", POSITIVE, Yaml("128"), "HTTP/2 requests at once on one connection"),
    key("merge_slashes", BOOL, Yaml("false"), "Takes `//` in a path for `/`"),
]);

// === routes ===

static ROUTE: Object = Object::new("route", ROUTE_KEYS).with(POLICY_KEYS);
static ROUTE_KEYS: &[Key] = &[
    key("listeners", Type::List { of: &Type::Text(Format::Ref("listeners")), min: 1 }, Words("all http listeners"), "Listeners whose requests it sees"),
    key("hosts", Type::List { of: &Type::Text(Format::Host), min: 1 }, Yaml("[\"*\"]"), "`www.example.com`, `*.example.com` (any name below, not the bare one) or `*`"),
    key("use", USE, Yaml("[]"), "Policies that apply"),
    key("rules", Type::List { of: &Type::Object(&RULE), min: 1 }, Required, "The most specific match wins, not the first"),
];

const ACTIONS: &[&str] = &["pools", "redirect", "respond"];
static RULE: Object = Object::new("rule", RULE_KEYS).with(POLICY_KEYS).choose(Choose::ExactlyOne(ACTIONS));
static RULE_KEYS: &[Key] = &[
    key("name", Type::Text(Format::Name), Words("its index"), "Name in logs and metrics, unique in the route"),
    key("match", Type::List { of: &Type::Object(&MATCH), min: 1 }, Words("everything"), "Any of these must fit; inside one, all conditions"),
    key("pools", Type::List { of: &Type::Short("pool", &WEIGHTED_POOL), min: 1 }, Words("none"), "Who gets the request, by weight; a bare name has weight 1"),
    key("timeout", Type::Object(&ROUTE_TIMEOUT), Yaml("{}"), "Limits on time; what is set here beats the pool's"),
    key("retry", Type::Object(&RETRY), Yaml("{}"), "When another member is tried"),
    key("redirect", Type::Object(&REDIRECT), Words("none"), "Answers with a redirect"),
    key("respond", Type::Object(&RESPOND), Words("none"), "Answers by itself"),
    key("rewrite", Type::Object(&REWRITE), Words("none"), "Changes host and path before they are forwarded"),
    key("mirror", Type::List { of: &Type::Short("pool", &MIRROR), min: 0 }, Yaml("[]"), "Pools that get a copy of requests and whose answers nobody sees; bodies of up to 64 KiB go along, longer ones are not mirrored"),
    key("max_body", SIZE, Yaml("0"), "Longest request body; 0: no limit"),
    key("upgrade", Type::List { of: &one_of(&["websocket"], &[]), min: 0 }, Yaml("[websocket]"), "Protocols that a connection may change to; `[]`: none"),
    key("use", USE, Yaml("[]"), "Policies that apply"),
];

static MATCH: Object = Object::new("rule.match", &[
    key("path", Type::Object(&PATH), Words("any"), "The path, in its normal form"),
    key("method", Type::OneOrList(&Type::Text(Format::Method)), Words("any"), "One method or a list"),
    key("headers", Type::Map { key: Format::HeaderName, of: &Type::Short("exact", &VALUE) }, Yaml("{}"), "Conditions by header name; a bare value must be equal"),
    key("query", Type::Map { key: Format::Any, of: &Type::Short("exact", &VALUE) }, Yaml("{}"), "Conditions by query parameter, as `headers`"),
    key("cookies", Type::Map { key: Format::Any, of: &Type::Short("exact", &VALUE) }, Yaml("{}"), "Conditions by cookie, as `headers`"),
    key("clients", Type::List { of: &Type::Text(Format::Network), min: 0 }, Yaml("[]"), "Networks of the client"),
    key("scheme", one_of(&["http", "https"], &[]), Words("any"), "How the client came"),
]);

const PATH_KINDS: &[&str] = &["exact", "prefix", "regex"];
static PATH: Object = Object::new("rule.match.path", &[
    key("exact", Type::Text(Format::Path), Words("none"), "The whole path"),
    key("prefix", Type::Text(Format::Path), Words("none"), "By path element: `/a` fits `/a`, `/a/` and `/a/b`, not `/ab`"),
    key("regex", Type::Text(Format::Regex), Words("none"), "The whole path, by a regular expression"),
])
.choose(Choose::ExactlyOne(PATH_KINDS));

const VALUE_KINDS: &[&str] = &["exact", "prefix", "present", "regex"];
static VALUE: Object = Object::new("rule.match.value", &[
    key("exact", HEADER_VALUE, Words("none"), "Equal; the same as a bare value"),
    key("prefix", HEADER_VALUE, Words("none"), "Begins with this"),
    key("present", BOOL, Words("none"), "Whether it is there at all"),
    key("regex", Type::Text(Format::Regex), Words("none"), "The whole value, by a regular expression"),
])
.choose(Choose::ExactlyOne(VALUE_KINDS));

static WEIGHTED_POOL: Object = Object::new("rule.pool", &[
    key("pool", POOL, Required, "Name of the pool"),
    key("weight", POOL_WEIGHT, Yaml("1"), "Share of the requests, against the sum of the rule's weights; 0: none"),
    key("request_headers", Type::Object(&HEADER_EDITS), Yaml("{}"), "Edits for requests to this pool, after the rule's"),
    key("response_headers", Type::Object(&HEADER_EDITS), Yaml("{}"), "Edits for its responses, after the rule's"),
]);

static ROUTE_TIMEOUT: Object = Object::new("rule.timeout", &[
    key("request", TIME, Yaml("0s"), "All attempts together; 0s: no limit"),
    key("attempt", TIME, Yaml("0s"), "One attempt; 0s: no limit"),
    key("idle", TIME, Yaml("5m"), "A body that stands still; 0s: no limit"),
    key("first_byte", TIME, Words("the pool's"), "Until the member's response header; 0s: no limit"),
]);

static RETRY: Object = Object::new("rule.retry", &[
    key("attempts", Type::Int { min: 0, max: 10 }, Yaml("1"), "Further attempts after the first"),
    key("on", Type::List { of: &Type::Text(Format::RetryOn), min: 0 }, Yaml("[connect, reused]"), "`connect`: nothing was sent; `reused`: a kept connection closed before a byte came back; `reset`: any did; `5xx` or a status such as `503`: this came back, or what we would answer with it; all but `connect` for idempotent methods only"),
    key("backoff", TIME, Yaml("25ms"), "Wait before a further attempt after a failure that is not `connect` or `reused`, doubled for each; up to a half is taken off at random"),
    key("buffer", Type::Size { min: 0, max: 16 << 20 }, Yaml("64KiB"), "As much of a request body is kept so that it can be sent again; 0: none"),
]);

static REDIRECT: Object = Object::new("rule.redirect", &[
    key("scheme", one_of(&["http", "https"], &[]), Words("the request's"), "Scheme of the target"),
    key("host", TEMPLATE, Words("the request's"), "Host of the target"),
    key("port", Type::Int { min: 1, max: 65_535 }, Words("the scheme's"), "Port of the target"),
    key("path", Type::Object(&NEW_PATH), Words("the request's"), "Path of the target"),
    key("code", Type::Int { min: 300, max: 399 }, Yaml("302"), "Status: 301, 302, 303, 307 or 308"),
]);

static NEW_PATH: Object = Object::new("rule.path", &[
    key("full", TEMPLATE, Words("none"), "The whole path"),
    key("prefix", TEXT, Words("none"), "Instead of the prefix that matched"),
    key("regex", TEXT, Words("none"), "What is replaced wherever it occurs, with `with`"),
    key("with", TEXT, Words("none"), "What stands instead; `$1` and `$name` are what the groups matched"),
])
.choose(Choose::ExactlyOne(&["full", "prefix", "regex"]));

static RESPOND: Object = Object::new("rule.respond", &[
    key("code", Type::Int { min: 200, max: 599 }, Yaml("200"), "Status"),
    key("body", TEMPLATE, Yaml("\"\""), "Body"),
    key("headers", HEADER_TEMPLATES, Yaml("{}"), "Header fields"),
]);

static REWRITE: Object = Object::new("rule.rewrite", &[
    key("host", TEMPLATE, Words("none"), "Host that the member sees"),
    key("path", Type::Object(&NEW_PATH), Words("none"), "Path that the member sees"),
]);

static MIRROR: Object = Object::new("rule.mirror", &[
    key("pool", POOL, Required, "Name of the pool"),
    key("share", Type::Share, Yaml("1.0"), "Part of the requests"),
]);

// === policies ===

static POLICY: Object = Object::new("policy", &[]).with(POLICY_KEYS);
static POLICY_KEYS: &[Key] = &[
    key("firewall", Type::Object(&FIREWALL), Yaml("{}"), "Who may connect").later(),
    key("limits", Type::Object(&LIMITS), Yaml("{}"), "Connections and requests at once, over the whole cluster").later(),
    key("rate_limits", OPEN_LIST, Yaml("[]"), "`{ by, rate, burst, of, headers }`: requests or connections in a time, over the whole cluster").later(),
    key("ban", Type::Object(&BAN), Words("none"), "Shuts out a client that was refused too often").later(),
    key("auth", Type::Object(&AUTH), Words("none"), "Who may send requests").later(),
    key("cors", Type::Object(&CORS), Words("what stands further out"), "Requests of browsers from pages of other origins; preflights are answered here"),
    key("waf", Type::Object(&WAF), Yaml("{}"), "Web application firewall").later(),
    key("cache", Type::Object(&CACHE), Yaml("{}"), "Keeps responses").later(),
    key("compression", Type::Object(&COMPRESSION), Yaml("{}"), "Compresses responses").later(),
    key("request_headers", Type::Object(&HEADER_EDITS), Words("what stands further out"), "Edits of the request's header"),
    key("response_headers", Type::Object(&RESPONSE_HEADER_EDITS), Words("what stands further out"), "Edits of the response's header, also of answers of our own"),
    key("substitute", OPEN_LIST, Yaml("[]"), "`{ find, regex, with, types, max }`: edits of the response's body").later(),
    key("error_pages", Type::Map { key: Format::ErrorStatus, of: &FILE }, Words("what stands further out"), "Files for errors that we answer ourselves, by status (`\"503\"`) or class (`5xx`); `${request.id}` in them is filled in"),
];

static FIREWALL: Object = Object::new("policy.firewall", &[
    key("rules", OPEN_LIST, Yaml("[]"), "`{ from, ports, action }`, the first that fits decides"),
    key("default", one_of(&["allow", "deny", "reject"], &[]), Yaml("allow"), "Where no rule fits"),
]);

static LIMITS: Object = Object::new("policy.limits", &[
    key("mode", one_of(&["converging", "exact"], &[]), Yaml("converging"), "How nodes agree on a count"),
    key("prefix_v6", Type::Int { min: 0, max: 128 }, Yaml("64"), "IPv6 addresses with this prefix are one client"),
    key("connections_per_client", COUNT, Yaml("0"), "0: no limit; on listeners only"),
    key("connections", COUNT, Yaml("0"), "0: no limit; on listeners only"),
    key("requests_per_client", COUNT, Yaml("0"), "In flight; 0: no limit"),
    key("wait", TIME, Yaml("0s"), "How long one above the limit waits; 0s: it is refused at once"),
]);

static BAN: Object = Object::new("policy.ban", &[
    key("after", POSITIVE, Yaml("20"), "Refusals"),
    key("of", TEXTS, Yaml("[limit, waf, 4xx]"), "Which refusals count"),
    key("within", TIME_POSITIVE, Yaml("1m"), "Time in which they are counted"),
    key("for", TIME_POSITIVE, Yaml("10m"), "Length of the ban"),
]);

static AUTH: Object = Object::new("policy.auth", &[
    key("basic", Type::Object(&BASIC_AUTH), Words("none"), "User name and password"),
]);

static BASIC_AUTH: Object = Object::new("policy.auth.basic", &[
    key("users", STRING_MAP, Yaml("{}"), "Name to argon2 or bcrypt hash"),
]);

static CORS: Object = Object::new("policy.cors", &[
    key("origins", Type::List { of: &Type::Text(Format::Origin), min: 0 }, Yaml("[]"), "`https://shop.example.com`, `https://*.example.com` (any name below) or `*`; empty: off"),
    key("methods", Type::List { of: &Type::Text(Format::Method), min: 0 }, Yaml("[]"), "Methods allowed beside GET, HEAD and POST"),
    key("headers", Type::List { of: &Type::Text(Format::HeaderName), min: 0 }, Yaml("[]"), "Request headers allowed; `*`: whichever is asked for"),
    key("expose", Type::List { of: &Type::Text(Format::HeaderName), min: 0 }, Yaml("[]"), "Response headers that scripts may read"),
    key("credentials", BOOL, Yaml("false"), "Cookies and authentication allowed; not with origin `*`"),
    key("max_age", TIME, Yaml("5s"), "How long a browser keeps the answer to a preflight"),
]);

static WAF: Object = Object::new("policy.waf", &[
    key("mode", one_of(&["off", "detect", "block"], &[]), Yaml("off"), "What happens on a finding"),
    key("paranoia", Type::Int { min: 1, max: 4 }, Yaml("1"), "Level of the rules"),
    key("rules", Type::Open, Yaml("builtin"), "`builtin` or files"),
    key("inspect_body", SIZE, Yaml("128KiB"), "Bytes of a body that are looked at"),
    key("over", TEXT, Yaml("pass"), "What happens to a longer body"),
    key("except", OPEN_LIST, Yaml("[]"), "`{ rule, path, field }`: where a rule does not apply"),
]);

static CACHE: Object = Object::new("policy.cache", &[
    key("mode", Type::OrOff(&TEXT), Yaml("off"), "Whether responses are kept"),
    key("key", Type::Object(&CACHE_KEY), Yaml("{}"), "What tells two requests apart"),
    key("max_object", SIZE, Yaml("16MiB"), "Longest response kept"),
    key("stale_if_error", TIME, Yaml("0s"), "How long an old response stands in for an error"),
    key("negative", TIME, Yaml("0s"), "How long errors are kept"),
]);

static CACHE_KEY: Object = Object::new("policy.cache.key", &[
    key("headers", TEXTS, Yaml("[]"), "Header fields"),
    key("cookies", TEXTS, Yaml("[]"), "Cookies"),
    key("query", Type::Open, Yaml("all"), "`all` or query parameters"),
]);

static COMPRESSION: Object = Object::new("policy.compression", &[
    key("mode", Type::OrOff(&TEXT), Yaml("off"), "Whether responses are compressed"),
    key("algorithms", TEXTS, Yaml("[zstd, br, gzip]"), "The preferred first"),
    key("min", SIZE, Yaml("1KiB"), "Shortest response compressed"),
    key("types", Type::Open, Yaml("default"), "`default` or media types"),
]);

static HEADER_EDITS: Object = Object::new("policy.request_headers", &[
    key("set", HEADER_TEMPLATES, Yaml("{}"), "Fields that are replaced"),
    key("add", HEADER_TEMPLATES, Yaml("{}"), "Fields that are added"),
    key("remove", HEADER_NAMES, Yaml("[]"), "Fields that are taken away"),
]);

static RESPONSE_HEADER_EDITS: Object = Object::new("policy.response_headers", &[
    key("set", HEADER_TEMPLATES, Yaml("{}"), "Fields that are replaced"),
    key("add", HEADER_TEMPLATES, Yaml("{}"), "Fields that are added"),
    key("remove", HEADER_NAMES, Yaml("[]"), "Fields that are taken away"),
    key("preset", one_of(&["none", "security"], &[]), Yaml("none"), "`security`: `X-Content-Type-Options`, `X-Frame-Options`, `Referrer-Policy` and over TLS `Strict-Transport-Security`, where the member set none"),
]);

// === pools ===

static POOL_OBJECT: Object = Object::new("pool", &[
    key("members", Type::List { of: &Type::Short("address", &MEMBER), min: 0 }, Required, "`ADDRESS:PORT` or an object; may be empty"),
    key("balance", one_of(&["round_robin", "random", "random_two", "least_request", "peak_ewma", "hash", "maglev"], &[]), Yaml("round_robin"), "How a member is chosen; `random_two` takes the less busy of two, `peak_ewma` the one of two that answers sooner, `hash` and `maglev` the same for what is alike"),
    key("hash", Type::Object(&HASH), Yaml("{}"), "What `hash` and `maglev` go by"),
    key("count", one_of(&["node", "cluster"], &[]), Yaml("node"), "What \"least\" counts").later(),
    key("sticky", Type::OrOff(&Type::Object(&STICKY)), Yaml("off"), "Keeps a client at its member"),
    key("protocol", one_of(&["auto", "http1", "h2c", "h2"], &[]), Yaml("auto"), "What members speak; `auto`: HTTP/1.1, and with `tls` HTTP/2 where a member offers it; `h2c`: HTTP/2 without TLS; `h2`: HTTP/2 over TLS"),
    key("tls", Type::OrOff(&Type::Object(&POOL_TLS)), Yaml("off"), "TLS to members, also of HTTP checks"),
    key("proxy_protocol", one_of(&["off", "v1", "v2"], &[]), Yaml("off"), "PROXY protocol to members").later(),
    key("timeout", Type::Object(&POOL_TIMEOUT), Yaml("{}"), "Limits on time"),
    key("breaker", Type::Object(&BREAKER), Yaml("{}"), "Limits on what a node puts upon the pool"),
    key("queue", Type::Object(&QUEUE), Yaml("{}"), "Requests that wait while every member has its `max_connections`"),
    key("outlier", Type::Object(&OUTLIER), Yaml("{}"), "Members that fail are left out for a time"),
    key("panic", Type::Share, Yaml("0.5"), "Above this share of members down, all are used; 0: never"),
    key("slow_start", TIME, Yaml("0s"), "Time in which a member that is new, or came up again, rises from a tenth of its weight to all of it"),
    key("zone_aware", BOOL, Yaml("false"), "Uses members in the node's own zone (`--zone`) alone, while half of their weight is usable"),
    key("retry_budget", Type::Share, Yaml("0.2"), "Live requests of which retries may be this share"),
    key("on_down", one_of(&["keep", "reset"], &[]), Yaml("keep"), "What happens to connections of a member that went down").later(),
    key("health", Type::OrOff(&Type::Object(&HEALTH)), Words("a TCP check; `off` for a pool that only udp listeners use"), "Checks of members; `off`: all count as up"),
]);

static MEMBER: Object = Object::new("pool.member", &[
    key("address", Type::Text(Format::MemberAddress), Required, "`ADDRESS:PORT` or `[IPv6]:PORT`"),
    key("name", Type::Text(Format::Name), Words("its address"), "Name in status, logs and metrics, unique in the pool"),
    key("weight", MEMBER_WEIGHT, Yaml("1"), "Share of the traffic against the other members; 0: none"),
    key("zone", TEXT, Yaml("\"\""), "Where it stands, for `zone_aware`"),
    key("backup", COUNT, Yaml("0"), "Tier: used while no lower one has a usable member"),
    key("max_connections", COUNT, Yaml("0"), "Requests in flight (tcp: connections, udp: sessions) at the member on each node; 0: no limit"),
]);

static HASH: Object = Object::new("pool.hash", &[
    key("on", Type::Text(Format::HashOn), Yaml("client"), "`client`, `client-port`, `header:NAME`, `cookie:NAME` or `path`; tcp and udp know clients only"),
    key("bound", Type::Text(Format::Factor), Yaml("1.25"), "A member takes at most this much of its share of what is under way, then the next one does; not for `maglev`"),
]);

const STICKY_KINDS: &[&str] = &["cookie", "learn", "client"];
static STICKY: Object = Object::new("pool.sticky", &[
    key("cookie", TEXT, Words("none"), "Name of a cookie that we set; http and https only"),
    key("ttl", TIME, Yaml("0s"), "Its life, from when it is set; 0: until the browser ends"),
    key("learn", TEXT, Words("none"), "Name of a cookie that members set").later(),
    key("client", TIME_POSITIVE, Words("none"), "By client address, for this long at least"),
])
.choose(Choose::ExactlyOne(STICKY_KINDS));

static POOL_TLS: Object = Object::new("pool.tls", &[
    key("ca_file", FILE, Words("the system's"), "PEM file of the authorities that are trusted"),
    key("name", Type::Text(Format::ServerName), Words("the member's address"), "Name that is asked for (SNI) and that the certificate must have"),
    key("certificate", Type::Text(Format::Ref("certificates")), Words("none"), "Our own certificate, for members that ask for one"),
    key("verify", BOOL, Yaml("true"), "Whether the certificate is checked"),
]);

static POOL_TIMEOUT: Object = Object::new("pool.timeout", &[
    key("connect", TIME_POSITIVE, Yaml("5s"), "Until a connection to a member stands"),
    key("first_byte", TIME_POSITIVE, Yaml("60s"), "Until the member's response header; a rule's own beats it"),
    key("pool_idle", TIME_POSITIVE, Yaml("60s"), "A kept connection to a member without a request for this long is closed"),
]);

static BREAKER: Object = Object::new("pool.breaker", &[
    key("connections", COUNT, Yaml("1024"), "Connections to members, but for idle ones; 0: no limit"),
    key("pending", COUNT, Yaml("1024"), "Requests that wait for a connection to be made; 0: no limit"),
    key("requests", COUNT, Yaml("0"), "Requests in flight; 0: no limit"),
    key("adaptive", BOOL, Yaml("false"), "Finds the limit by itself").later(),
]);

static QUEUE: Object = Object::new("pool.queue", &[
    key("max", COUNT, Yaml("0"), "As many may wait on each node; 0: none"),
    key("timeout", TIME_POSITIVE, Yaml("1s"), "For as long"),
]);

static OUTLIER: Object = Object::new("pool.outlier", &[
    key("failures", COUNT, Yaml("5"), "Failures in a row; 0: off"),
    key("eject", TIME_POSITIVE, Yaml("30s"), "Length of an ejection, times the number of ejections in a row"),
    key("max_share", Type::Share, Yaml("0.1"), "Of the pool at once, but always one"),
]);

const HEALTH_KINDS: &[&str] = &["tcp", "http", "grpc", "tls", "smtp", "dns", "exchange"];
static HEALTH: Object = Object::new("pool.health", &[
    key("interval", TIME_POSITIVE, Yaml("2s"), "Time between two checks; jitter only shortens it"),
    key("timeout", TIME_POSITIVE, Yaml("1s"), "A check without an answer for this long has failed"),
    key("rise", Type::Int { min: 1, max: 1_000 }, Yaml("2"), "Good checks in a row until a member is up"),
    key("fall", Type::Int { min: 1, max: 1_000 }, Yaml("3"), "Bad checks in a row until a member is down"),
    key("probers", Type::Int { min: 1, max: 7 }, Yaml("3"), "Nodes that check one member; the majority decides"),
    key("tcp", Type::Object(&EMPTY), Yaml("{}"), "A connection is enough; what is done if no other kind is given"),
    key("http", Type::Object(&HTTP_CHECK), Words("none"), "A request and its answer"),
    key("grpc", Type::Object(&GRPC_CHECK), Words("none"), "gRPC's health protocol, over HTTP/2"),
    key("tls", Type::Object(&TLS_CHECK), Words("none"), "A TLS handshake; the certificate is checked as the pool's `tls` says, and not without one"),
    key("smtp", Type::Open, Words("none"), "`{}`: the greeting of a mail server").later(),
    key("dns", Type::Open, Words("none"), "`{ name }`: a DNS question").later(),
    key("exchange", Type::Open, Words("none"), "`{ send, expect }`: bytes to send and to get").later(),
])
.choose(Choose::AtMostOne(HEALTH_KINDS));

static EMPTY: Object = Object::new("pool.health.tcp", &[]);

static GRPC_CHECK: Object = Object::new("pool.health.grpc", &[
    key("service", TEXT, Yaml("\"\""), "Name of the service that must be serving; empty: the server"),
]);

static TLS_CHECK: Object = Object::new("pool.health.tls", &[]);

static HTTP_CHECK: Object = Object::new("pool.health.http", &[
    key("path", Type::Text(Format::Any), Yaml("/"), "Path and query of the request"),
    key("method", Type::Text(Format::Method), Yaml("GET"), "Method of the request"),
    key("host", Type::Text(Format::HeaderValue), Words("the member's address"), "`Host` of the request"),
    key("status", Type::OneOrList(&Type::Text(Format::Status)), Yaml("200-399"), "Accepted: a code, a range, or a list of them"),
    key("header", HEADER_MAP, Yaml("{}"), "Fields that the answer must have, with these values"),
    key("body", TEXT, Words("any"), "Must occur in the first 64 KiB of the answer's body"),
]);

// === the rest ===

static CERTIFICATE: Object = Object::new("certificate", &[
    key("chain_file", FILE, Words("none"), "PEM file with the certificate and those between it and its authority; read by whoever applies"),
    key("key_file", FILE, Words("none"), "PEM file with its private key; read by whoever applies"),
    key("ocsp_file", FILE, Yaml("none"), "DER file with the OCSP response to staple"),
    key("chain", Type::Text(Format::Pem), Words("none"), "PEM text, instead of `chain_file`"),
    key("key", Type::Text(Format::Pem), Words("none"), "PEM text, instead of `key_file`; stored sealed and shown as `stored:DIGEST`"),
]);

static VIP: Object = Object::new("vip", &[
    key("addresses", Type::List { of: &Type::Text(Format::VipAddress), min: 1 }, Required, "`ADDRESS/PREFIX`, moved together; at most 16"),
    key("interface", Type::Text(Format::Interface), Yaml("auto"), "Where the addresses are put; `auto`: the interface that has an address of the same network"),
    key("nodes", NODES, Yaml("[]"), "Nodes that may hold it; none given: all"),
    key("prefer", NODES, Yaml("[]"), "Nodes that hold it rather than others, the first most"),
    key("ttl", TTL, Yaml("1s"), "Life of the owner's lease"),
    key("on_quorum_loss", one_of(&["release", "hold"], &[]), Yaml("release"), "`hold` gives up that there is one owner only"),
    key("preempt", BOOL, Yaml("false"), "Moves back to a preferred node"),
    key("notify", Type::Text(Format::Program), Yaml("\"\""), "Program that is told when the owner changes"),
]);

static NETWORK: Object = Object::new("network", &[
    key("entries", TEXTS, Yaml("[]"), "Addresses and networks"),
    key("file", TEXT, Yaml("none"), "File with one entry a line"),
]);

static ACCESS_LOG: Object = Object::new("access_log", &[
    key("format", one_of(&["json", "off"], &["combined"]), Yaml("json"), "Form of a line"),
    key("to", TEXT, Yaml("stdout"), "`stdout`, `file:PATH` or `syslog:ADDRESS`").later(),
]);

static CLUSTER: Object = Object::new("cluster", &[
    key("voters", Type::Int { min: 1, max: 9 }, Yaml("5"), "Nodes that vote in Raft; further ones are learners"),
    key("heartbeat", TIME_POSITIVE, Yaml("50ms"), "Raft's heartbeat, shorter than the election's first number; takes effect when a node restarts"),
    key("election", Type::DurationRange, Yaml("150ms-250ms"), "Raft's election time-out; at least ten times the disk's fsync; takes effect when a node restarts"),
    key("seat", TIME_POSITIVE, Yaml("1s"), "Life of a node's lease from the leader"),
    key("gossip", TIME_POSITIVE, Yaml("200ms"), "Time between two rounds of gossip"),
    key("drain", Type::Object(&DRAIN), Yaml("{}"), "How a node stops"),
    key("ticket_rotation", TIME_POSITIVE, Yaml("12h"), "A new key for TLS session tickets is made this often; two old ones are kept"),
]);

static DRAIN: Object = Object::new("cluster.drain", &[
    key("announce", TIME, Yaml("0s"), "How long `/readyz` fails before listeners stop accepting"),
    key("deadline", TIME, Yaml("30s"), "After this, connections still open are closed"),
]);
