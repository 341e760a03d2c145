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
/// The kernel counts them in seconds, and up to 32,767.
const KEEPALIVE_TIME: Type = Type::Duration { min: Duration::from_secs(1), max: Duration::from_secs(9 * 3600) };
/// Shorter than a lease takes to renew, or longer than anybody waits for an address.
const TTL: Type = Type::Duration { min: Duration::from_millis(100), max: Duration::from_secs(60) };
const NODES: Type = Type::List { of: &Type::Text(Format::Name), min: 0 };
const SIZE: Type = Type::Size { min: 0, max: SIZE_MAX };
const USERS: Type = Type::Map { key: Format::UserName, of: &Type::Text(Format::PasswordHash) };
const HEADER_MAP: Type = Type::Map { key: Format::HeaderName, of: &HEADER_VALUE };
const HEADER_VALUE: Type = Type::Text(Format::HeaderValue);
const USE: Type = Type::List { of: &Type::Text(Format::Ref("policies")), min: 0 };
const TEMPLATE: Type = Type::Text(Format::Template);
const HEADER_TEMPLATES: Type = Type::Map { key: Format::HeaderName, of: &Type::Text(Format::HeaderTemplate) };
const HEADER_NAMES: Type = Type::List { of: &Type::Text(Format::HeaderName), min: 0 };
/// A path, or `stored:DIGEST`.
const FILE: Type = Type::Text(Format::File);
const POOL: Type = Type::Text(Format::Ref("pools"));

const fn one_of(words: &'static [&'static str]) -> Type {
    Type::Choice(words)
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
    key("networks", named(&Type::Object(&NETWORK)), Yaml("{}"), "Named sets of networks, used as `@NAME`"),
    key("access_log", Type::Object(&ACCESS_LOG), Yaml("{}"), "How requests are recorded"),
    key("cluster", Type::Object(&CLUSTER), Yaml("{}"), "Timers and sizes of the cluster itself"),
];

const fn named(of: &'static Type) -> Type {
    Type::Map { key: Format::Name, of }
}

// === listeners ===

static LISTENER: Object = Object::new("listener", LISTENER_KEYS).with(POLICY_KEYS);
static LISTENER_KEYS: &[Key] = &[
    key("bind", Type::OneOrList(&Type::Text(Format::Bind)), Required, "`ADDRESS:PORT`, `[IPv6]:PORT`, `:PORT` (all addresses) or `@VIP:PORT` (all of the VIP's), or a list; port 0 lets the system choose; for tcp and udp also `FIRST-LAST` as port"),
    key("protocol", one_of(&["http", "https", "tcp", "udp", "tcp+udp", "tls"]), Required, "What is spoken; `tls` passes TLS through unopened"),
    key("hosts", Type::List { of: &Type::Text(Format::Host), min: 1 }, Yaml("[\"*\"]"), "Hosts of requests that are served, as a route's `hosts`; routes apply as far as theirs are among them; http and https only"),
    key("via", one_of(&["proxy", "kernel", "auto"]), Yaml("proxy"), "Path of tcp and udp traffic: through this program, or packets that the kernel passes on; `auto`: the kernel's where it can"),
    key("kernel", Type::Object(&KERNEL), Yaml("{}"), "Settings of the kernel path, where `via` is not `proxy`"),
    key("pool", POOL, Words("none"), "Required for tcp and udp; for http and https it answers where no route fits (else 404), for tls it gets names that `sni` has not (else they are refused)"),
    key("tls", Type::Object(&LISTENER_TLS), Words("none"), "Terminates TLS; for https, and required there, and for tcp"),
    key("sni", Type::Map { key: Format::Host, of: &POOL }, Yaml("{}"), "TLS names, exact or `*.example.com`, that are passed through unopened to a pool; tls and https only"),
    key("proxy_protocol", Type::Object(&LISTENER_PROXY_PROTOCOL), Yaml("{}"), "PROXY protocol from whoever stands before us; tcp, http and https"),
    key("trusted_proxies", Type::List { of: &Type::Text(Format::NetworkOrSet), min: 0 }, Yaml("[]"), "Networks of proxies, or sets of them, whose forwarding headers are believed; http and https only"),
    key("udp", Type::Object(&UDP), Yaml("{}"), "Sessions of udp"),
    key("tcp", Type::Object(&TCP), Yaml("{}"), "Connections of tcp"),
    key("ftp", Type::OrOff(&Type::Object(&FTP)), Yaml("off"), "Follows FTP's data connections; tcp only"),
    key("http", Type::Object(&HTTP), Yaml("{}"), "Connections of http"),
    key("on_limit", one_of(&["reset", "close"]), Yaml("reset"), "How a connection of tcp or https above a limit ends; http answers 429 or 503"),
    key("use", USE, Yaml("[]"), "Policies that apply"),
];

static KERNEL: Object = Object::new("listener.kernel", &[
    key("mode", one_of(&["nat", "full-nat", "dsr"]), Yaml("nat"), "How packets reach a member: `nat` keeps the client's address, and members answer through us; `full-nat` puts the node's in its place; `dsr` rewrites nothing, and members, which have the listener's address too, answer clients themselves"),
    key("hash", one_of(&["client", "client-port"]), Yaml("client-port"), "What a member is chosen by: the client's address, or that and its port"),
    key("slots", Type::Int { min: 11, max: 65_537 }, Yaml("65537"), "Places of the pool's Maglev table, a prime: a hundred a member are plenty; all tables together have at most 1,048,592, sixteen of the largest"),
]);

static LISTENER_TLS: Object = Object::new("listener.tls", &[
    key("certificates", Type::List { of: &Type::Text(Format::Ref("certificates")), min: 1 }, Required, "The first is the default"),
    key("unknown_name", one_of(&["default", "reject"]), Yaml("default"), "For a name that no certificate has"),
    key("min", one_of(&["1.2", "1.3"]), Yaml("\"1.2\""), "Lowest version of TLS"),
    key("alpn", Type::List { of: &Type::Text(Format::Alpn), min: 1 }, Words("`[h2, http/1.1]` for https, none for tcp"), "Protocols offered, the preferred first; for https `h2` and `http/1.1`, for tcp any name"),
    key("client", Type::Object(&CLIENT_TLS), Yaml("{}"), "Certificates of clients"),
]);

static CLIENT_TLS: Object = Object::new("listener.tls.client", &[
    key("mode", one_of(&["none", "optional", "required"]), Yaml("none"), "Whether a client needs a certificate"),
    key("ca_file", FILE, Words("none"), "PEM file of the authorities that are trusted; required unless `mode` is `none`"),
    key("forward", BOOL, Yaml("false"), "Passes the certificate on, in `Client-Cert` and `Client-Cert-Chain` (RFC 9440)"),
]);

static LISTENER_PROXY_PROTOCOL: Object = Object::new("listener.proxy_protocol", &[
    key("accept", one_of(&["off", "optional", "required"]), Yaml("off"), "Whether a header is read; `required`: who sends none, or may not send one, is refused"),
    key("from", Type::List { of: &Type::Text(Format::NetworkOrSet), min: 0 }, Yaml("[]"), "Networks, or sets of them, that may send one; needed unless `accept` is `off`"),
    key("timeout", TIME_POSITIVE, Yaml("5s"), "From the accept to the end of the header"),
]);

static UDP: Object = Object::new("listener.udp", &[
    key("idle", TIME_POSITIVE, Yaml("60s"), "A session without a datagram in either direction for this long is dropped"),
    key("replies", COUNT, Yaml("0"), "A session ends after this many replies, 1 for DNS; 0: only by `idle`"),
]);

static TCP: Object = Object::new("listener.tcp", &[
    key("idle", TIME_POSITIVE, Yaml("1h"), "A connection without a byte in either direction for this long is closed"),
    key("nodelay", BOOL, Yaml("true"), "Sends small segments at once"),
    key("buffer", Type::Size { min: 1 << 10, max: 16 << 20 }, Yaml("16KiB"), "Bytes held for one direction of one connection"),
    key("handshake_timeout", TIME_POSITIVE, Yaml("10s"), "From the accept to the end of the handshake (tcp with `tls`), or of the hello that has the name (tls)"),
    key("keepalive", Type::OrOff(&Type::Object(&KEEPALIVE)), Yaml("{}"), "Probes of a peer that is silent, on either side"),
    key("congestion", Type::Text(Format::Name), Words("the system's"), "Congestion control of both sides, such as `bbr`; one that the kernel does not give is warned of, and the system's is used"),
]);

static KEEPALIVE: Object = Object::new("listener.tcp.keepalive", &[
    key("idle", KEEPALIVE_TIME, Yaml("30s"), "Silence before the first probe, whole seconds"),
    key("interval", KEEPALIVE_TIME, Yaml("10s"), "From one probe to the next, whole seconds"),
    key("probes", Type::Int { min: 1, max: 127 }, Yaml("3"), "So many without an answer and the connection is reset"),
]);

static FTP: Object = Object::new("listener.ftp", &[
    key("ports", Type::Text(Format::DataPorts), Required, "Ports at which data connections are awaited, `30000-30999`, 1024 or above"),
    key("auth", one_of(&["pass", "refuse"]), Yaml("pass"), "`AUTH TLS` and the like: passed on, after which nothing can be followed, or refused (534)"),
]);

static HTTP: Object = Object::new("listener.http", &[
    key("header_timeout", TIME_POSITIVE, Yaml("10s"), "From the first byte of a request, or the accept, to the end of its header"),
    key("body_rate", Type::Size { min: 0, max: 1 << 30 }, Yaml("256"), "Bytes a second of a request body, on average, that a client must send once it was waited for for 10s; 0: any"),
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
    key("upgrade", Type::List { of: &one_of(&["websocket"]), min: 0 }, Yaml("[websocket]"), "Protocols that a connection may change to; `[]`: none: over HTTP/1.1 the request goes on without `Upgrade`, over HTTP/2 it is answered 501"),
    key("use", USE, Yaml("[]"), "Policies that apply"),
];

static MATCH: Object = Object::new("rule.match", &[
    key("path", Type::Object(&PATH), Words("any"), "The path, in its normal form"),
    key("method", Type::OneOrList(&Type::Text(Format::Method)), Words("any"), "One method or a list"),
    key("headers", Type::Map { key: Format::HeaderName, of: &Type::Short("exact", &VALUE) }, Yaml("{}"), "Conditions by header name; a bare value must be equal"),
    key("query", Type::Map { key: Format::Any, of: &Type::Short("exact", &VALUE) }, Yaml("{}"), "Conditions by query parameter, as `headers`"),
    key("cookies", Type::Map { key: Format::Any, of: &Type::Short("exact", &VALUE) }, Yaml("{}"), "Conditions by cookie, as `headers`"),
    key("clients", Type::List { of: &Type::Text(Format::NetworkOrSet), min: 0 }, Yaml("[]"), "Networks of the client, or sets of them"),
    key("scheme", one_of(&["http", "https"]), Words("any"), "How the client came"),
]);

const PATH_KINDS: &[&str] = &["exact", "prefix", "regex"];
static PATH: Object = Object::new("rule.match.path", &[
    key("exact", Type::Text(Format::Path), Words("none"), "The whole path"),
    key("prefix", Type::Text(Format::Path), Words("none"), "By path element: `/a` fits `/a`, `/a/` and `/a/b`, not `/ab`"),
    key("regex", Type::Text(Format::PathRegex), Words("none"), "The whole path, by a regular expression"),
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
    key("scheme", one_of(&["http", "https"]), Words("the request's"), "Scheme of the target"),
    key("host", TEMPLATE, Words("the request's"), "Host of the target, without a port"),
    key("port", Type::Int { min: 1, max: 65_535 }, Words("the scheme's"), "Port of the target"),
    key("path", Type::Object(&NEW_PATH), Words("the request's"), "Path of the target"),
    key("code", Type::Int { min: 300, max: 399 }, Yaml("302"), "Status: 301, 302, 303, 307 or 308"),
]);

static NEW_PATH: Object = Object::new("rule.path", &[
    key("full", TEMPLATE, Words("none"), "The whole path"),
    key("prefix", TEXT, Words("none"), "Instead of the prefix that matched"),
    key("regex", TEXT, Words("none"), "What is replaced wherever it occurs, with `with`"),
    key("with", TEXT, Words("none"), "What stands instead; `$1` and `$name` (`${1}`, `${name}`) are what the groups matched, `$$` is a dollar sign"),
])
.choose(Choose::ExactlyOne(&["full", "prefix", "regex"]));

static RESPOND: Object = Object::new("rule.respond", &[
    key("code", Type::Int { min: 200, max: 599 }, Yaml("200"), "Status"),
    key("body", TEMPLATE, Yaml("\"\""), "Body"),
    key("headers", HEADER_TEMPLATES, Yaml("{}"), "Header fields"),
]);

static REWRITE: Object = Object::new("rule.rewrite", &[
    key("host", TEMPLATE, Words("none"), "Host that the member sees, with `:PORT` if need be"),
    key("path", Type::Object(&NEW_PATH), Words("none"), "Path that the member sees"),
]);

static MIRROR: Object = Object::new("rule.mirror", &[
    key("pool", POOL, Required, "Name of the pool"),
    key("share", Type::Share, Yaml("1.0"), "Part of the requests"),
]);

// === policies ===

static POLICY: Object = Object::new("policy", &[]).with(POLICY_KEYS);
static POLICY_KEYS: &[Key] = &[
    key("firewall", Type::Object(&FIREWALL), Yaml("{}"), "Who may connect, or ask; those of listener, route and rule hold together"),
    key("limits", Type::Object(&LIMITS), Yaml("{}"), "Connections and requests at once, over the whole cluster"),
    key("rate_limits", Type::List { of: &Type::Object(&RATE_LIMIT), min: 0 }, Yaml("[]"), "Requests or connections in a time, over the whole cluster; at most 8"),
    key("ban", Type::Object(&BAN), Words("what stands further out"), "Shuts out, on all nodes, a client that was refused too often"),
    key("auth", Type::Object(&AUTH), Words("what stands further out"), "Who may send requests; `{}`: everybody"),
    key("cors", Type::Object(&CORS), Words("what stands further out"), "Requests of browsers from pages of other origins; preflights are answered here"),
    key("waf", Type::Object(&WAF), Words("what stands further out"), "Web application firewall: SQL injection and scripts in requests"),
    key("cache", Type::Object(&CACHE), Words("what stands further out"), "Keeps members' responses and serves them again"),
    key("compression", Type::Object(&COMPRESSION), Words("what stands further out"), "Compresses members' responses for clients that take that"),
    key("request_headers", Type::Object(&HEADER_EDITS), Words("what stands further out"), "Edits of the request's header"),
    key("response_headers", Type::Object(&RESPONSE_HEADER_EDITS), Words("what stands further out"), "Edits of the response's header, also of answers of our own"),
    key("substitute", Type::List { of: &Type::Object(&SUBSTITUTION), min: 0 }, Words("what stands further out"), "Edits of the bodies of members' text responses, one after the other"),
    key("error_pages", Type::Map { key: Format::ErrorStatus, of: &FILE }, Words("what stands further out"), "Files for errors that we answer ourselves, by status (`\"503\"`) or class (`5xx`); `${request.id}` in them is filled in"),
];

static SUBSTITUTION: Object = Object::new("policy.substitute", &[
    key("find", TEXT, Words("none"), "Text that is replaced wherever it occurs; case counts"),
    key("regex", TEXT, Words("none"), "The same, by a regular expression"),
    key("with", TEMPLATE, Yaml("\"\""), "What stands instead; with `regex`, `$1` and `$name` are what the groups matched, `$$` is a dollar sign"),
    key("types", Type::List { of: &Type::Text(Format::MediaType), min: 1 }, Yaml("[text/html]"), "Media types of responses that are edited; `\"*\"`: all that have one"),
    key("max", Type::Size { min: 1, max: 16 << 20 }, Yaml("1MiB"), "Longest body, before the edit and after; a longer one passes as it is"),
])
.choose(Choose::ExactlyOne(&["find", "regex"]));

static FIREWALL: Object = Object::new("policy.firewall", &[
    key("rules", Type::List { of: &Type::Object(&FIREWALL_RULE), min: 0 }, Yaml("[]"), "The first that fits decides; at most 1,000"),
    key("default", one_of(FIREWALL_ACTIONS), Yaml("allow"), "Where no rule fits"),
]);

const FIREWALL_ACTIONS: &[&str] = &["allow", "deny", "reject"];
static FIREWALL_RULE: Object = Object::new("policy.firewall.rule", &[
    key("from", Type::List { of: &Type::Text(Format::NetworkOrSet), min: 0 }, Yaml("[]"), "Networks of the client, or sets of them; none given: everybody"),
    key("ports", Type::List { of: &Type::Text(Format::Ports), min: 0 }, Yaml("[]"), "Ports of ours that the client came to, `25` or `8000-8999`; none given: any"),
    key("action", one_of(FIREWALL_ACTIONS), Required, "`deny` closes a connection, `reject` resets it; requests get 403 by either, datagrams are dropped"),
]);

/// Whoever waits longer has gone.
const LIMIT_WAIT: Type = Type::Duration { min: Duration::ZERO, max: Duration::from_secs(60) };

static LIMITS: Object = Object::new("policy.limits", &[
    key("mode", one_of(&["converging", "exact"]), Yaml("converging"), "How nodes agree on a count"),
    key("prefix_v6", Type::Int { min: 0, max: 128 }, Yaml("64"), "IPv6 addresses with this prefix are one client"),
    key("connections_per_client", COUNT, Yaml("0"), "Connections, or sessions of udp, of a client at once; 0: no limit; on listeners only"),
    key("connections", COUNT, Yaml("0"), "The same of all clients together; 0: no limit; on listeners only"),
    key("requests_per_client", COUNT, Yaml("0"), "Requests of a client in flight; 0: no limit; http and https only"),
    key("wait", LIMIT_WAIT, Yaml("0s"), "How long one above the limit waits for room, 60s at most; 0s: only for what other nodes may give, 0.1s at most. Datagrams never wait"),
]);

static RATE_LIMIT: Object = Object::new("policy.rate_limits", &[
    key("by", Type::Text(Format::LimitBy), Required, "Who or what has the rate: `client`, `header:NAME` (each value of it), `route` or `listener`; connections know `client` and `listener` only"),
    key("rate", Type::Text(Format::Rate), Required, "How many a second, minute or hour: `100/s`, `10/m`, `1000/h`"),
    key("burst", POSITIVE, Words("the rate's number"), "How many may come at once after a pause"),
    key("of", one_of(&["requests", "connections"]), Yaml("requests"), "What is counted: requests of http, or new connections and sessions of udp (on listeners only)"),
    key("headers", BOOL, Yaml("false"), "Answers carry `RateLimit` and `RateLimit-Policy`"),
]);

static BAN: Object = Object::new("policy.ban", &[
    key("after", Type::Int { min: 1, max: 10_000 }, Yaml("20"), "So many on one node, and the client is banned"),
    key("of", Type::List { of: &one_of(&["limit", "4xx", "waf"]), min: 1 }, Yaml("[limit, 4xx]"), "What counts: `limit`, refusals by limits on what the client has or sends; `4xx`, answers with such a status, ours or a member's; `waf`, requests that the web application firewall refused"),
    key("within", BAN_TIME, Yaml("1m"), "Time in which they are counted"),
    key("for", BAN_TIME, Yaml("10m"), "Length of the ban"),
]);

/// As long as a ban that is laid on by hand: what is to last goes into a firewall.
const BAN_TIME: Type = Type::Duration { min: Duration::from_secs(1), max: crate::model::BAN_MAX };

static AUTH: Object = Object::new("policy.auth", &[
    key("basic", Type::Object(&BASIC_AUTH), Words("none"), "User name and password"),
]);

static BASIC_AUTH: Object = Object::new("policy.auth.basic", &[
    key("realm", Type::Text(Format::HeaderValue), Yaml("restricted"), "What browsers show when they ask for a password"),
    key("users", USERS, Required, "Name to hash of the password, by argon2 or bcrypt"),
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
    key("mode", one_of(&["off", "detect", "block"]), Yaml("off"), "What happens on a finding: `detect` tells of it in the log and in metrics, `block` also answers 403"),
    key("paranoia", Type::Int { min: 1, max: 4 }, Yaml("1"), "Level of the rules; those of a higher one also find more that is innocent"),
    key("rules", Type::OneOrList(&Type::Text(Format::RuleFile)), Yaml("builtin"), "`builtin`, or files in ModSecurity's language (read by whoever applies, with what they include), or a list of them, at most 16 files"),
    key("inspect_body", Type::Size { min: 0, max: 1 << 20 }, Yaml("128KiB"), "Bytes of a body that are held back and looked at; 0: bodies are not"),
    key("over", one_of(&["pass", "block"]), Yaml("pass"), "What happens to a longer body: `pass`, it goes on after its beginning was looked at; `block`, it is a finding of rule `body-over`"),
    key("except", Type::List { of: &Type::Object(&WAF_EXCEPTION), min: 0 }, Yaml("[]"), "Where rules don't hold; at most 64"),
]);

static WAF_EXCEPTION: Object = Object::new("policy.waf.except", &[
    key("rule", Type::Text(Format::WafRule), Words("any"), "A rule by its id (of a file: a number), or a class of them: `sqli`, `xss`, `body`"),
    key("path", Type::Text(Format::Path), Words("any"), "Requests for this path and what is below it"),
    key("field", TEXT, Words("any"), "`NAME`, a parameter of the query or the body; `(body)`, a body that is one text, and what of one is in no parameter; `header:NAME`; `cookie:NAME`"),
]);

static CACHE: Object = Object::new("policy.cache", &[
    key("mode", one_of(&["off", "on"]), Yaml("off"), "Whether responses are kept"),
    key("key", Type::Object(&CACHE_KEY), Yaml("{}"), "What tells two requests apart, beside scheme, host and path"),
    key("max_object", Type::Size { min: 1, max: 1 << 30 }, Yaml("16MiB"), "Longest response kept"),
    key("stale_if_error", TIME, Yaml("0s"), "How long an old response stands in for an error of its member, where the member says nothing of it"),
    key("negative", TIME, Yaml("0s"), "How long 404, 405, 410, 414, 451 and 501 are kept that say nothing of it"),
]);

static CACHE_KEY: Object = Object::new("policy.cache.key", &[
    key("headers", HEADER_NAMES, Yaml("[]"), "Header fields of the request"),
    key("cookies", Type::List { of: &Type::Text(Format::CookieName), min: 0 }, Yaml("[]"), "Cookies of the request, by name"),
    key("query", Type::OneOrList(&TEXT), Yaml("all"), "`all`, `none`, or the parameters that count"),
]);

static COMPRESSION: Object = Object::new("policy.compression", &[
    key("mode", one_of(&["off", "on"]), Yaml("off"), "Whether responses are compressed"),
    key("algorithms", Type::List { of: &one_of(&["zstd", "br", "gzip"]), min: 1 }, Yaml("[zstd, br, gzip]"), "Those in use; of what a client likes equally the first is taken"),
    key("min", Type::Size { min: 0, max: 1 << 30 }, Yaml("1KiB"), "Shortest body compressed, where its length is known"),
    key("types", Type::OneOrList(&Type::Text(Format::MediaRange)), Yaml("default"), "Media types that are compressed: `text/html`, `text/*`, `*`, or `default` for texts, scripts, JSON, XML, SVG, WebAssembly and fonts that are not compressed already; or a list of them"),
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
    key("preset", one_of(&["none", "security"]), Yaml("none"), "`security`: `X-Content-Type-Options`, `X-Frame-Options`, `Referrer-Policy` and over TLS `Strict-Transport-Security`, where the member set none"),
]);

// === pools ===

static POOL_OBJECT: Object = Object::new("pool", &[
    key("members", Type::List { of: &Type::Short("address", &MEMBER), min: 0 }, Required, "`ADDRESS:PORT`, a DNS name in its place, or an object; may be empty"),
    key("balance", one_of(&["round_robin", "random", "random_two", "least_request", "peak_ewma", "hash", "maglev"]), Yaml("round_robin"), "How a member is chosen; `random_two` takes the less busy of two, `peak_ewma` the one of two that answers sooner, `hash` and `maglev` the same for what is alike"),
    key("hash", Type::Object(&HASH), Yaml("{}"), "What `hash` and `maglev` go by"),
    key("count", one_of(&["node", "cluster"]), Yaml("node"), "What `least_request`, `random_two` and `peak_ewma` count as under way: what this node has there, or what all nodes have"),
    key("sticky", Type::OrOff(&Type::Object(&STICKY)), Yaml("off"), "Keeps a client at its member"),
    key("protocol", one_of(&["auto", "http1", "h2c", "h2"]), Yaml("auto"), "What members speak; `auto`: HTTP/1.1, and with `tls` HTTP/2 where a member offers it; `h2c`: HTTP/2 without TLS; `h2`: HTTP/2 over TLS"),
    key("tls", Type::OrOff(&Type::Object(&POOL_TLS)), Yaml("off"), "TLS to members, also of HTTP checks"),
    key("proxy_protocol", one_of(&["off", "v1", "v2"]), Yaml("off"), "PROXY protocol to members, in front of each connection; tcp, http and https"),
    key("timeout", Type::Object(&POOL_TIMEOUT), Yaml("{}"), "Limits on time"),
    key("breaker", Type::Object(&BREAKER), Yaml("{}"), "Limits on what a node puts upon the pool"),
    key("queue", Type::Object(&QUEUE), Yaml("{}"), "Requests that wait while every member has its `max_connections`"),
    key("outlier", Type::Object(&OUTLIER), Yaml("{}"), "Members that fail are left out for a time"),
    key("panic", Type::Share, Yaml("0.5"), "Above this share of members down, all are used; 0: never"),
    key("slow_start", TIME, Yaml("0s"), "Time in which a member that is new, or came up again, rises from a tenth of its weight to all of it"),
    key("zone_aware", BOOL, Yaml("false"), "Uses members in the node's own zone (`--zone`) alone, while half of their weight is usable"),
    key("retry_budget", Type::Share, Yaml("0.2"), "Live requests of which retries may be this share"),
    key("on_down", one_of(&["keep", "reset"]), Yaml("keep"), "What happens to connections and sessions of tcp, tls and udp at a member that goes down by its checks"),
    key("health", Type::OrOff(&Type::Object(&HEALTH)), Words("a TCP check, with `tls` a handshake; `off` for a pool that only udp listeners use"), "Checks of members; `off`: all count as up"),
]);

static MEMBER: Object = Object::new("pool.member", &[
    key("address", Type::Text(Format::MemberAddress), Required, "`ADDRESS:PORT`, `[IPv6]:PORT`, `NAME:PORT` (each address of a DNS name is a member) or `srv:NAME` (each address in its SRV records)"),
    key("name", Type::Text(Format::Name), Words("its address"), "Name in status, logs and metrics, unique in the pool; what a DNS name stands for is called `NAME/ADDRESS:PORT`"),
    key("weight", MEMBER_WEIGHT, Yaml("1"), "Share of the traffic against the other members; 0: none; SRV records have their own"),
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
    key("learn", TEXT, Words("none"), "Name of a cookie that members set, such as a session's; http and https only"),
    key("client", TIME_POSITIVE, Words("none"), "By client address, for this long at least"),
])
.choose(Choose::ExactlyOne(STICKY_KINDS));

static POOL_TLS: Object = Object::new("pool.tls", &[
    key("ca_file", FILE, Words("the system's"), "PEM file of the authorities that are trusted"),
    key("name", Type::Text(Format::ServerName), Words("the member's DNS name or address"), "Name that is asked for (SNI) and that the certificate must have"),
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
    key("adaptive", BOOL, Yaml("false"), "Limits the requests that wait for an answer to what members take without keeping them waiting, found by itself; http only"),
]);

static QUEUE: Object = Object::new("pool.queue", &[
    key("max", COUNT, Yaml("0"), "As many may wait on each node; 0: none"),
    key("timeout", TIME_POSITIVE, Yaml("1s"), "For as long"),
]);

static OUTLIER: Object = Object::new("pool.outlier", &[
    key("failures", COUNT, Yaml("5"), "Failures in a row; 0: off"),
    key("eject", TIME_POSITIVE, Yaml("30s"), "Length of an ejection, times the number of ejections in a row"),
    key("max_share", Type::Share, Yaml("0.1"), "Of the pool at once, but always one"),
    key("latency", Type::OrOff(&Type::Text(Format::Factor)), Yaml("off"), "A member that of late takes more than this many times the pool's median to begin its answers is ejected; http only"),
    key("success_rate", Type::Share, Yaml("0"), "A member that of late serves less than this share of what it gets is ejected; 0: off"),
]);

/// Keys of `health` that say what is done.
pub(crate) const HEALTH_KINDS: &[&str] = &["tcp", "http", "grpc", "tls", "smtp", "dns", "exchange"];
static HEALTH: Object = Object::new("pool.health", &[
    key("interval", TIME_POSITIVE, Yaml("2s"), "Time between two checks; jitter only shortens it"),
    key("timeout", TIME_POSITIVE, Yaml("1s"), "A check without an answer for this long has failed"),
    key("rise", Type::Int { min: 1, max: 1_000 }, Yaml("2"), "Good checks in a row until a member is up"),
    key("fall", Type::Int { min: 1, max: 1_000 }, Yaml("3"), "Bad checks in a row until a member is down"),
    key("probers", Type::Int { min: 1, max: 7 }, Yaml("3"), "Nodes that check one member; the majority decides"),
    key("tcp", Type::Object(&EMPTY), Yaml("{}"), "A connection is enough; what is done if no kind is given and the pool has no `tls`"),
    key("http", Type::Object(&HTTP_CHECK), Words("none"), "A request and its answer"),
    key("grpc", Type::Object(&GRPC_CHECK), Words("none"), "gRPC's health protocol, over HTTP/2"),
    key("tls", Type::Object(&TLS_CHECK), Words("none"), "A TLS handshake; the certificate is checked as the pool's `tls` says, and not without one. What is done if no kind is given and the pool has `tls`"),
    key("smtp", Type::Object(&SMTP_CHECK), Words("none"), "A mail server's greeting, which must be a 220"),
    key("dns", Type::Object(&DNS_CHECK), Words("none"), "A DNS question over UDP"),
    key("exchange", Type::Object(&EXCHANGE), Words("none"), "Bytes to send, and to get, over TCP or UDP"),
])
.choose(Choose::AtMostOne(HEALTH_KINDS));

static EMPTY: Object = Object::new("pool.health.tcp", &[]);

static GRPC_CHECK: Object = Object::new("pool.health.grpc", &[
    key("service", TEXT, Yaml("\"\""), "Name of the service that must be serving; empty: the server"),
]);

static TLS_CHECK: Object = Object::new("pool.health.tls", &[]);

static SMTP_CHECK: Object = Object::new("pool.health.smtp", &[]);

static DNS_CHECK: Object = Object::new("pool.health.dns", &[
    key("name", TEXT, Required, "Name whose address is asked for; `.` is the root"),
]);

static EXCHANGE: Object = Object::new("pool.health.exchange", &[
    key("over", one_of(&["tcp", "udp"]), Yaml("tcp"), "What the bytes travel over"),
    key("send", TEXT, Yaml("\"\""), "Sent first, at most 4 KiB; empty: the member speaks first, over tcp only"),
    key("expect", TEXT, Yaml("\"\""), "Must occur in the first 64 KiB of the answer, over udp in the first datagram; at most 4 KiB; empty: any answer will do"),
]);

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
    key("on_quorum_loss", one_of(&["release", "hold"]), Yaml("release"), "`hold` gives up that there is one owner only"),
    key("preempt", BOOL, Yaml("false"), "Moves back to a preferred node"),
    key("notify", Type::Text(Format::Program), Yaml("\"\""), "Program that is told when the owner changes"),
]);

static NETWORK: Object = Object::new("network", &[
    key("entries", Type::List { of: &Type::Text(Format::Network), min: 0 }, Yaml("[]"), "Addresses and networks"),
    key("file", FILE, Yaml("none"), "File with more of them, one a line; read by whoever applies"),
]);

static ACCESS_LOG: Object = Object::new("access_log", &[
    key("format", Type::Text(Format::LogLine), Yaml("json"), "Form of a line"),
    key("to", Type::Text(Format::LogTarget), Yaml("stdout"), "Where lines go: an absolute path, `udp://HOST:PORT` or `unix:PATH`"),
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
