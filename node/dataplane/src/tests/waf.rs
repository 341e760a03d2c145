//! The web application firewall, as clients and members meet it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::strain::{Step, Strain};
use crate::testing::{Backend, Client, PATIENCE, Proxy, Reply, get, send, until, written};

/// A listener with this policy, before one member.
async fn serving(policy: &str, member: SocketAddr) -> (Proxy, SocketAddr) {
    Proxy::serving(written(&format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, waf: {{ {policy} }} }}\n\
         routes: {{ all: {{ rules: [\
           {{ name: cms, match: [{{ path: {{ prefix: /cms }} }}], pools: [app], waf: {{ mode: detect }} }}, \
           {{ name: free, match: [{{ path: {{ prefix: /free }} }}], pools: [app], waf: {{ mode: off }} }}, \
           {{ name: local, match: [{{ path: {{ prefix: /local }} }}], respond: {{ code: 204 }} }}, \
           {{ name: rest, pools: [app] }}] }} }}\n\
         pools: {{ app: {{ members: [\"{member}\"] }} }}\n"
    )))
    .await
}

async fn post(address: SocketAddr, path: &str, kind: &str, body: &str) -> Reply {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    );
    send(address, [head.as_bytes(), body.as_bytes()].concat()).await
}

const FORM: &str = "application/x-www-form-urlencoded";
const INJECTION: &str = "/?q=1%27%20or%20%271%27=%271";

#[tokio::test]
async fn an_attack_is_told_403_and_no_member_sees_it_wherever_it_stands() {
    let backend = Backend::named("app").await;
    let (proxy, address) = serving("mode: block", backend.address).await;
    let header = |line: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{line}\r\n\r\n");
    let multipart =
        "--b\r\nContent-Disposition: form-data; name=\"q\"\r\n\r\n<script>alert(1)</script>\r\n--b--\r\n";
    let replies = [
        get(address, INJECTION).await,
        get(address, "/a%3Cscript%3Ealert(1)%3C%2Fscript%3E").await,
        get(address, "/local?q=%3Cscript%3E").await,
        send(address, header("User-Agent: x' or 1=1--")).await,
        send(address, header("Cookie: a=b; c=%3Csvg%20onload%3Dalert(1)%3E")).await,
        post(address, "/", FORM, "a=b&q=1+union+select+1,2").await,
        post(address, "/", "application/json", r#"{"a":{"b":["\u0027 or 1=1--"]}}"#).await,
        post(address, "/", "multipart/form-data; boundary=b", multipart).await,
        post(address, "/", "text/xml", "<a><b>&lt;script&gt;alert(1)</b></a>").await,
        post(address, "/", "application/json; charset=utf-16", "{}").await,
        send(address, "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n8\r\n<script>\r\n2\r\nhi\r\n0\r\n\r\n").await,
    ];
    for reply in &replies {
        assert_eq!(reply.status, 403, "{reply:?}");
        assert!(reply.text().starts_with("403 Forbidden\nrequest "), "{reply:?}");
        assert!(reply.header("x-request-id").is_some_and(|id| reply.text().contains(id)), "{reply:?}");
    }
    assert!(backend.seen().is_empty(), "{:?}", backend.seen());
    proxy
        .log
        .line(&[
            "\"status\":403",
            "\"reason\":\"waf\"",
            "\"waf_rule\":\"sqli-tautology\"",
            "\"waf_at\":\"query:q\"",
            "\"waf_match\":\"or '1'='1\"",
        ])
        .await;
    proxy.log.line(&["\"waf_rule\":\"sqli-union\"", "\"waf_at\":\"body:q\""]).await;
    // What a cookie is stays out of the log.
    let cookie = proxy.log.line(&["\"waf_at\":\"cookie:c\""]).await;
    assert!(cookie.contains(" bytes, not shown)") && !cookie.contains("svg"), "{cookie}");
    proxy.log.line(&["\"waf_rule\":\"body-charset\""]).await;
    let ended = r#"trestle_route_ended_total{route="all",reason="waf"}"#;
    until("all are counted", || proxy.metric(ended) == Some(replies.len() as f64)).await;
    let found = r#"trestle_waf_findings_total{rule="sqli-union",action="block"}"#;
    assert_eq!(proxy.metric(found), Some(1.0));
}

#[tokio::test]
async fn a_connection_goes_on_after_a_request_that_was_refused() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = serving("mode: block", backend.address).await;
    let mut client = Client::connect(address).await;
    assert_eq!(client.get(INJECTION).await.status, 403);
    client
        .write("POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 8\r\n\r\n<script>")
        .await;
    assert_eq!(client.reply().await.status, 403);
    assert_eq!(client.get("/").await.text(), "app");
    assert_eq!(backend.seen().len(), 1);
}

#[tokio::test]
async fn detect_tells_and_passes_and_off_does_neither() {
    let backend = Backend::named("app").await;
    let (proxy, address) = serving("mode: block", backend.address).await;
    let body = "q=<script>alert(1)</script>&r=' or 1=1--";
    assert_eq!(post(address, "/cms/a", FORM, body).await.text(), "app");
    assert_eq!(backend.last().body, body.as_bytes(), "as it came");
    let line = proxy.log.line(&["\"rule\":\"cms\""]).await;
    assert!(line.contains("\"reason\":\"done\"") && line.contains("\"waf_rule\":\"xss-tag,sqli-t"), "{line}");
    assert!(line.contains("\"waf_at\":\"body:q\""), "{line}");
    let found = r#"trestle_waf_findings_total{rule="xss-tag",action="detect"}"#;
    assert_eq!(proxy.metric(found), Some(1.0));
    assert_eq!(post(address, "/free", FORM, body).await.text(), "app");
    let line = proxy.log.line(&["\"rule\":\"free\""]).await;
    assert!(!line.contains("waf"), "{line}");
}

#[tokio::test]
async fn exceptions_hold_where_they_say_and_nowhere_else() {
    let backend = Backend::named("app").await;
    let policy = "mode: block, except: [{ path: /edit, field: html, rule: xss }, { field: \"cookie:track\" }, \
                  { path: /lab }, { rule: sqli-union }]";
    let (_proxy, address) = serving(policy, backend.address).await;
    let html = "html=<script>alert(1)</script>";
    for (path, body, status) in [
        ("/edit/1", html, 200),
        ("/edit", html, 200),
        ("/edited", html, 403),
        ("/", html, 403),
        ("/edit", "text=<script>alert(1)</script>", 403),
        ("/edit", "html=' or 1=1--", 403),
        ("/lab/x", "q=' or 1=1--", 200),
    ] {
        assert_eq!(post(address, path, FORM, body).await.status, status, "{path} {body}");
    }
    let json = r#"{"doc":{"html":"<script>alert(1)</script>"}}"#;
    assert_eq!(post(address, "/edit", "application/json", json).await.status, 200);
    let cookie = |name: &str| format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: {name}=' or 1=1--\r\n\r\n");
    assert_eq!(send(address, cookie("track")).await.status, 200);
    assert_eq!(send(address, cookie("other")).await.status, 403);
}

/// A part of a form.
fn part(head: &str, value: &str) -> String {
    format!("--X\r\nContent-Disposition: form-data; {head}\r\n\r\n{value}\r\n--X--\r\n")
}

#[tokio::test]
async fn what_a_form_hides_from_some_readers_is_refused_and_uploads_pass() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = serving("mode: block", backend.address).await;
    let multipart = "multipart/form-data; boundary=X";
    let attack = "1' UNION SELECT a FROM b-- -";
    let base64 = "MScgVU5JT04gU0VMRUNUIGEgRlJPTSBiLS0gLQ==";
    let mixed = format!("--X\nContent-Disposition: form-data; name=\"q\"\n\n{attack}\r\n\r\n\r\n--X--");
    let in_file = format!("--Y\r\nContent-Disposition: form-data; name=q\r\n\r\n{attack}\r\n--Y--");
    for (kind, body) in [
        (multipart, mixed),
        (multipart, part("name=\"q\"\r\nContent-Transfer-Encoding: base64", base64)),
        (multipart, part("name=\"q\"\r\nContent-Transfer-Encoding: quoted-printable", "1=27 =55NION")),
        (multipart, part("name=\"q\"; filename*=UTF-8''x", attack)),
        (multipart, part("name=\"q\"; filename*=UTF-8''", attack)),
        (multipart, part("name=\"q\"; filename =\"x\"", attack)),
        (multipart, part("name=\"f\"; filename=\"x\"\r\nContent-Disposition: form-data; name=\"q\"", attack)),
        (multipart, part("name=\"q\"\r\nContent-Type: text/plain; charset=ibm037", "\u{7d}")),
        ("multipart/form-data; boundary=X; boundary=Y", part("name=f; filename=x", &in_file)),
    ] {
        assert_eq!(post(address, "/", kind, &body).await.status, 403, "{kind} {body}");
    }
    assert!(backend.seen().is_empty(), "{:?}", backend.seen());
    for head in [
        "name=\"q\"; filename=\"x.sql\"\r\nContent-Type: application/sql",
        "name=\"q\"; filename=\"x.sql\"; filename*=UTF-8''x.sql",
    ] {
        assert_eq!(post(address, "/", multipart, &part(head, attack)).await.status, 200, "{head}");
    }
}

#[tokio::test]
async fn what_an_xml_document_hides_is_refused() {
    let backend = Backend::named("app").await;
    let (proxy, address) = serving("mode: block", backend.address).await;
    let script: String =
        "<script>alert(1)</script>".chars().map(|sign| format!("<![CDATA[{sign}]]>")).collect();
    let around = |text: &str| format!("<a><b>{text}</b></a>");
    for body in [
        around("1' UNI<![CDATA[ON SEL]]>ECT pass<![CDATA[word FR]]>OM users -- -"),
        around("1' UNI<!-- -->ON SELECT a FROM b -- -"),
        around("1' UNI<?x > ?>ON SELECT a FROM b -- -"),
        around("1' UNI<i>ON SEL</i>ECT a FROM b -- -"),
        around(&script),
        "<!DOCTYPE a [<!ENTITY x \"ON SEL\">]><a>1' UNI&x;ECT</a>".to_owned(),
        "<?xml version=\"1.0\" encoding=\"ibm037\"?><a>b</a>".to_owned(),
    ] {
        assert_eq!(post(address, "/", "application/xml", &body).await.status, 403, "{body}");
    }
    proxy.log.line(&["\"waf_rule\":\"body-doctype\"", "\"waf_at\":\"body\""]).await;
    let page = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
        <!DOCTYPE html PUBLIC \"-//W3C//DTD XHTML 1.0 Strict//EN\" \"http://www.w3.org/TR/xhtml1/DTD/xhtml1-strict.dtd\">\
        <html><p>Please <b>select</b> a table <i>from</i> the list<!-- it's long --> &amp; order.</p></html>";
    assert_eq!(post(address, "/", "application/xml", page).await.status, 200);
}

#[tokio::test]
async fn a_type_in_disguise_is_refused() {
    let backend = Backend::named("app").await;
    let (proxy, address) = serving("mode: block", backend.address).await;
    let injection = "{\"q\":\"1' or 1=1--\"}";
    for kind in [
        "application/x-json",
        "application/x-amz-json-1.1",
        "application/x-ndjson",
        "application/jsonl",
        "application/json; charset=utf-8; charset=ibm037",
        "x/y, application/json",
        "image/png;application/json",
    ] {
        assert_eq!(post(address, "/", kind, injection).await.status, 403, "{kind}");
    }
    let svg = "<svg><text>&lt;script&gt;alert(1)&lt;/script&gt;</text></svg>";
    assert_eq!(post(address, "/", "image/svg+xml", svg).await.status, 403);
    proxy.log.line(&["\"waf_rule\":\"body-ambiguous\""]).await;
    assert!(backend.seen().is_empty(), "{:?}", backend.seen());
}

#[tokio::test]
async fn the_host_is_looked_at() {
    let backend = Backend::named("app").await;
    let (proxy, address) = serving("mode: block", backend.address).await;
    for host in ["1'or'1'='1", "a'--", "1'union(select(a)from(b))'"] {
        let reply = send(address, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(reply.status, 403, "{host}");
    }
    proxy.log.line(&["\"waf_at\":\"header:host\""]).await;
    for host in ["shop.example.com", "my_app-1.internal:8080", "[2001:db8::1]:80", "192.0.2.1"] {
        let reply = send(address, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(reply.status, 200, "{host}");
    }
}

#[tokio::test]
async fn a_parameter_called_body_is_not_the_whole_body() {
    let backend = Backend::named("app").await;
    let policy = "mode: block, except: [{ path: /edit, field: body, rule: xss }, \
                  { path: /paste, field: (body) }]";
    let (proxy, address) = serving(policy, backend.address).await;
    let script = "<script>alert(1)</script>";
    let json = format!("{{\"body\":\"{script}\"}}");
    let form = format!("body={script}");
    assert_eq!(post(address, "/edit/1", "application/json", &json).await.status, 200);
    assert_eq!(post(address, "/edit/1", FORM, &form).await.status, 200);
    for (kind, body) in [
        ("text/plain", script.to_owned()),
        ("application/json", format!("{{\"body\":'{script}'}}")),
        ("application/json", format!("{{body:\"{script}\"}}")),
        ("application/json", format!("{{\"body\":\"a\" \"q\":\"{script}\"}}")),
        ("application/json", format!("[\"{script}\"]")),
        ("application/json", format!("\"{script}\"")),
        ("multipart/form-data", part("name=\"q\"", script)),
    ] {
        assert_eq!(post(address, "/edit/1", kind, &body).await.status, 403, "{kind} {body}");
        assert_eq!(post(address, "/paste", kind, &body).await.status, 200, "{kind} {body}");
    }
    assert_eq!(post(address, "/paste", FORM, &form).await.status, 403, "a parameter is not the whole");
    for path in ["/edit/..;/x", "/edit/..%5cx", "/edit/..%2fx"] {
        assert_eq!(post(address, path, FORM, &form).await.status, 403, "{path}");
    }
    proxy.log.line(&["\"waf_at\":\"body\"", "\"waf_rule\":\"xss-tag\""]).await;
}

#[tokio::test]
async fn what_a_client_has_hidden_from_members_decides_nothing() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = serving("mode: block", backend.address).await;
    let ask = async |fields: &str, body: &str| {
        let length = body.len();
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\nContent-Length: {length}\r\n\r\n");
        send(address, [head.as_bytes(), body.as_bytes()].concat()).await.status
    };
    let (attack, harmless) = (r#"{"q":"1 union select 1,2 from t"}"#, r#"{"q":"a"}"#);
    let picture = "Content-Type: image/png";
    assert_eq!(ask(picture, attack).await, 200, "it is a picture to members too");
    for fields in [
        "Connection: content-type",
        "Connection: close, Content-Type",
        "Connection: close\r\nConnection: x, CONTENT-TYPE , content-encoding",
        "Connection: content-type, content-length, transfer-encoding, host",
    ] {
        let fields = format!("{picture}\r\n{fields}");
        assert_eq!(ask(&fields, attack).await, 403, "{fields}");
        assert_eq!(ask(&fields, harmless).await, 200, "{fields}");
        assert_eq!(backend.last().header("content-type"), None);
    }
    let coded = "Content-Encoding: gzip\r\nContent-Type: application/json";
    assert_eq!(ask(coded, harmless).await, 403);
    let hidden = format!("{coded}\r\nConnection: content-encoding");
    assert_eq!((ask(&hidden, harmless).await, ask(&hidden, attack).await), (200, 403));
    assert_eq!(
        ask("Connection: cookie, authorization\r\nCookie: a=<script>\r\nAuthorization: <script>", "").await,
        200
    );
    let seen = backend.last();
    assert_eq!((seen.header("cookie"), seen.header("authorization")), (None, None));
}

#[tokio::test]
async fn the_log_has_nothing_of_a_value_that_may_be_a_secret() {
    let backend = Backend::named("app").await;
    let (proxy, address) = serving("mode: block", backend.address).await;
    for cookie in [
        "HUNTER2<script>",
        "sess=\"abc; HUNTER2<script>\"",
        "sess=\"abc; HUNTER2' or 1=1--\"",
        "HUNTER2%3Cscript%3E",
    ] {
        let request = format!("GET / HTTP/1.1\r\nHost: x\r\nCookie: {cookie}\r\n\r\n");
        assert_eq!(send(address, request).await.status, 403, "{cookie}");
    }
    for xml in [
        "<password><v>HUNTER2' or 1=1--</v></password>",
        "<a><s:password v=\"HUNTER2' or 1=1--\"/></a>",
        "<userPassword><a>b</a><v w=\"HUNTER2' or 1=1--\">c</v></userPassword>",
    ] {
        assert_eq!(post(address, "/", "text/xml", xml).await.status, 403, "{xml}");
    }
    let ended = r#"trestle_route_ended_total{route="all",reason="waf"}"#;
    until("all are counted", || proxy.metric(ended) == Some(7.0)).await;
    proxy.log.line(&["\"waf_at\":\"cookie\"", "bytes, not shown)"]).await;
    proxy.log.line(&["\"waf_at\":\"body:v\"", "bytes, not shown)"]).await;
    let line = proxy.log.line(&["\"waf_at\":\"body:w\""]).await;
    assert!(!line.contains("HUNTER2") && !proxy.log.text().contains("HUNTER2"), "{}", proxy.log.text());
    // Beside it all is told.
    let xml = "<a><password/><v>1' or '1'='1</v></a>";
    assert_eq!(post(address, "/", "text/xml", xml).await.status, 403);
    proxy.log.line(&["\"waf_at\":\"body:v\"", "\"waf_match\":\"or '1'='1"]).await;
}

#[tokio::test]
async fn paths_of_exceptions_and_rules_may_be_written_in_any_form() {
    let backend = Backend::named("app").await;
    let policy = "mode: block, except: [{ path: \"/B%2fb\" }, { path: \"/u%7Ev/\" }, { path: \"/w%41\" }, \
                  { path: \"/%C3%84%20%6f\" }, { path: \"/\u{d6}\" }]";
    let (_proxy, address) = Proxy::serving(written(&format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, waf: {{ {policy} }} }}\n\
         routes: {{ all: {{ rules: [\
           {{ match: [{{ path: {{ prefix: /\u{e9} }} }}], respond: {{ code: 204 }} }}, \
           {{ match: [{{ path: {{ exact: /\u{20ac}/%7ea }} }}], respond: {{ code: 205 }} }}, \
           {{ pools: [app] }}] }} }}\n\
         pools: {{ app: {{ members: [\"{}\"] }} }}\n",
        backend.address
    )))
    .await;
    for path in ["/B%2Fb", "/B%2fb/x", "/u~v", "/wA/x", "/%C3%84%20o", "/%c3%96", "/%C3%96/x"] {
        assert_eq!(get(address, &format!("{path}?q=%3Cscript%3E")).await.status, 200, "{path}");
    }
    assert_eq!(get(address, "/B/b?q=%3Cscript%3E").await.status, 403);
    assert_eq!(get(address, "/%C3%A9/x").await.status, 204);
    assert_eq!(get(address, "/%E2%82%AC/~a").await.status, 205);
}

#[tokio::test]
async fn a_body_arrives_whole_and_unchanged_however_long_it_is() {
    let backend = Backend::named("app").await;
    let (_proxy, address) = serving("mode: block, inspect_body: 1KiB", backend.address).await;
    for length in [10, 1_023, 1_024, 1_025, 70_000, 1_000_000] {
        let body: String = "it's all right, ".chars().cycle().take(length).collect();
        assert_eq!(post(address, "/", "text/plain", &body).await.status, 200, "{length}");
        assert!(backend.last().body == body.as_bytes(), "{length}");
        let half = length / 2;
        let chunked = format!(
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n{half:x}\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n",
            &body[..half],
            length - half,
            &body[half..]
        );
        assert_eq!(send(address, chunked).await.status, 200, "{length}");
        assert!(backend.last().body == body.as_bytes(), "{length}, in chunks");
    }
    // What is beyond the bound is not looked at.
    let late = format!("{}<script>", "a".repeat(2_000));
    assert_eq!(post(address, "/", "text/plain", &late).await.status, 200);
    let early = format!("<script>{}", "a".repeat(2_000));
    assert_eq!(post(address, "/", "text/plain", &early).await.status, 403);
}

#[tokio::test]
async fn a_longer_body_is_refused_if_the_policy_says_so() {
    let backend = Backend::named("app").await;
    let (proxy, address) = serving("mode: block, inspect_body: 1KiB, over: block", backend.address).await;
    assert_eq!(post(address, "/", "text/plain", &"a".repeat(1_024)).await.status, 200);
    assert_eq!(post(address, "/", "text/plain", &"a".repeat(1_025)).await.status, 403);
    // A picture is not looked at, however large.
    assert_eq!(post(address, "/", "image/png", &"a".repeat(5_000)).await.status, 200);
    proxy.log.line(&["\"waf_rule\":\"body-over\"", "\"waf_at\":\"body\""]).await;
    // Of one that does not say its length, no more than the bound is waited for.
    let mut client = Client::connect(address).await;
    let chunk = format!("800\r\n{}\r\n", "a".repeat(0x800));
    client.write(format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n{chunk}")).await;
    assert_eq!(client.reply().await.status, 403);
    assert_eq!(backend.seen().len(), 2);
}

#[tokio::test]
async fn a_stream_that_is_not_read_begins_before_it_ends() {
    // Echoes each piece as it comes.
    let backend = Backend::raw(async |mut stream: TcpStream| {
        let mut seen = Vec::new();
        while !seen.ends_with(b"first\r\n") {
            if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let _ = stream.read_buf(&mut seen).await;
    })
    .await;
    let (_proxy, address) = serving("mode: block", backend.address).await;
    for (path, kind) in [("/", "application/octet-stream"), ("/free", "text/plain")] {
        let mut client = Client::connect(address).await;
        client
            .write(format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: {kind}\r\n\r\n5\r\nfirst\r\n"))
            .await;
        let reply = timeout(PATIENCE, client.reply()).await.expect("answered before the body has ended");
        assert_eq!(reply.text(), "ok", "{kind}");
    }
}

#[tokio::test]
async fn a_body_that_was_held_back_is_sent_again_to_the_next_member() {
    let gone = crate::testing::nobody();
    let backend = Backend::named("app").await;
    let (_proxy, address) = Proxy::serving(written(&format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, pool: app, waf: {{ mode: block }} }}\n\
         pools: {{ app: {{ members: [\"{gone}\", \"{}\"] }} }}\n",
        backend.address
    )))
    .await;
    for n in 0..8 {
        let body = format!("n={n}&text=it's fine");
        assert_eq!(post(address, "/", FORM, &body).await.text(), "app");
        assert_eq!(backend.last().body, body.as_bytes());
    }
}

#[tokio::test]
async fn a_client_that_stops_in_the_middle_of_a_body_is_not_waited_for() {
    let backend = Backend::named("app").await;
    let (proxy, address) = Proxy::serving(written(&format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, waf: {{ mode: block }} }}\n\
         routes: {{ all: {{ rules: [{{ pools: [app], timeout: {{ idle: 100ms }} }}] }} }}\n\
         pools: {{ app: {{ members: [\"{}\"] }} }}\n",
        backend.address
    )))
    .await;
    let mut client = Client::connect(address).await;
    client
        .write("POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 10\r\n\r\nhalf")
        .await;
    assert_eq!(timeout(Duration::from_secs(5), client.reply()).await.expect("in time").status, 408);
    proxy.log.line(&["\"reason\":\"client_body_timeout\""]).await;
    assert!(backend.seen().is_empty());
    let malformed =
        "POST / HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    assert_eq!(send(address, malformed).await.status, 400);
    assert!(backend.seen().is_empty());
}

/// The head and the beginning of a form that never comes whole.
async fn half_a_form(address: SocketAddr, path: &str, bytes: usize) -> Client {
    let mut client = Client::connect(address).await;
    client
        .write(format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: 100000\r\n\r\n"
        ))
        .await;
    client.write(vec![b'a'; bytes]).await;
    client
}

/// With room for so many bytes of bodies.
async fn with_room(bytes: u64, member: SocketAddr) -> (Proxy, SocketAddr) {
    let proxy = Proxy::with(|options| {
        options.body_memory = bytes;
        // All that is held is known to whoever wants room.
        options.workers = std::num::NonZeroUsize::MIN;
    });
    let config = written(&format!(
        "listeners:\n  web: {{ bind: \"127.0.0.1:0\", protocol: http, waf: {{ mode: block }} }}\n\
         routes: {{ all: {{ rules: [\
           {{ name: cms, match: [{{ path: {{ prefix: /cms }} }}], pools: [app], waf: {{ mode: detect }} }}, \
           {{ name: rest, pools: [app] }}] }} }}\n\
         pools: {{ app: {{ members: [\"{member}\"] }} }}\n"
    ));
    let address = *proxy.install(1, config).await[0].state.as_ref().expect("listens");
    (proxy, address)
}

#[tokio::test]
async fn what_is_held_has_a_bound_and_who_is_slow_makes_room_in_it() {
    const ROOM: u64 = 256 << 10;
    let backend = Backend::named("app").await;
    let (proxy, address) = with_room(ROOM, backend.address).await;
    let held = || proxy.metric("trestle_held_body_bytes ").unwrap_or(-1.0);
    let mut slow = Vec::new();
    for _ in 0..3 {
        slow.push(half_a_form(address, "/", 60_000).await);
        let least = 60_000.0 * slow.len() as f64;
        until("it is held", || held() >= least).await;
    }
    // More of them than there is room for, at once.
    let mut more = Vec::new();
    for _ in 0..4 {
        more.push(half_a_form(address, "/", 60_000).await);
    }
    proxy.log.line(&["\"status\":503", "\"reason\":\"body_memory\""]).await;
    assert!(held() <= ROOM as f64);
    // Whoever needs nothing held is served, and so is a form, once the others have had their time.
    assert_eq!(get(address, "/").await.text(), "app");
    let form = format!("q={}", "b".repeat(60_000));
    let mut last = None;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < deadline {
        // In two pieces, so that it is waited for.
        let mut client = half_a_form(address, "/", 60_000).await;
        client.write(&form[..40_000]).await;
        let reply = client.reply().await;
        last = Some(reply.status);
        if reply.status == 200 {
            break;
        }
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(last, Some(200));
    assert_eq!(slow[0].reply().await.status, 503, "the oldest");
    drop((slow, more));
    until("all is given back", || held() == 0.0).await;
}

#[tokio::test]
async fn a_body_that_is_slow_ends_while_the_node_refuses_clients() {
    let backend = Backend::named("app").await;
    let (proxy, address) = with_room(1 << 20, backend.address).await;
    let mut slow = half_a_form(address, "/", 60_000).await;
    let held = || proxy.metric("trestle_held_body_bytes ");
    until("it is held", || held() >= Some(60_000.0)).await;
    proxy.plane.set_strain(Strain { step: Step::Refuse, why: "a test".to_owned() });
    assert_eq!(slow.reply().await.status, 503);
    until("it is given back", || held() == Some(0.0)).await;
}

#[tokio::test]
async fn where_attacks_are_only_told_of_a_body_without_room_passes_and_that_is_told() {
    let backend = Backend::named("app").await;
    let (proxy, address) = with_room(1000, backend.address).await;
    let mut client = half_a_form(address, "/cms", 60_000).await;
    client.write(vec![b'a'; 40_000]).await;
    assert_eq!(client.reply().await.text(), "app");
    assert_eq!(backend.last().body, vec![b'a'; 100_000]);
    proxy.log.line(&["\"reason\":\"done\"", "\"waf_rule\":\"body-memory\""]).await;
    let found = r#"trestle_waf_findings_total{rule="body-memory",action="detect"}"#;
    assert_eq!(proxy.metric(found), Some(1.0));
}
