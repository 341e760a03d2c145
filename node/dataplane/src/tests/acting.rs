//! What a rule does with a request beside passing it on: other matches, redirects, answers of its own,
//! rewrites, header edits.

use crate::testing::{Backend, Client, Proxy, Reply, send, written};

async fn ask(client: &mut Client, line: &str, fields: &str) -> Reply {
    client.write(format!("{line} HTTP/1.1\r\nHost: Shop.example.com:8080\r\n{fields}\r\n")).await;
    client.reply().await
}

#[tokio::test]
async fn requests_are_told_apart_by_regex_query_cookie_client_and_scheme() {
    let backend = Backend::named("app").await;
    let config = written(&format!(
        r#"
pools: {{ app: {{ members: ["{}"] }} }}
routes:
  all:
    rules:
      - {{ name: rest, pools: [app], response_headers: {{ set: {{ x-rule: rest }} }} }}
      - name: regex
        match: [{{ path: {{ regex: "/v[0-9]+/.*" }} }}]
        pools: [app]
        response_headers: {{ set: {{ x-rule: regex }} }}
      - name: query
        match: [{{ query: {{ "a b": {{ regex: "x+" }} }} }}]
        pools: [app]
        response_headers: {{ set: {{ x-rule: query }} }}
      - name: cookie
        match: [{{ cookies: {{ canary: always }} }}]
        pools: [app]
        response_headers: {{ set: {{ x-rule: cookie }} }}
      - name: client
        match: [{{ path: {{ prefix: /near }}, clients: [127.0.0.0/8] }}]
        pools: [app]
        response_headers: {{ set: {{ x-rule: client }} }}
      - name: far
        match: [{{ path: {{ prefix: /near }}, clients: [192.0.2.0/24], headers: {{ a: {{ present: true }} }} }}]
        pools: [app]
        response_headers: {{ set: {{ x-rule: far }} }}
      - name: secure
        match: [{{ path: {{ prefix: /near }}, scheme: https, headers: {{ a: {{ present: true }} }} }}]
        pools: [app]
        response_headers: {{ set: {{ x-rule: secure }} }}
"#,
        backend.address
    ));
    let (_proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    for (line, fields, expected) in [
        ("GET /", "", "rest"),
        ("GET /v12/x", "", "regex"),
        ("GET /v/x", "", "rest"),
        ("GET /v1", "", "rest"),
        ("GET /?a%20b=xx", "", "query"),
        ("GET /?a+b=xy", "", "rest"),
        ("GET /", "Cookie: a=b; canary=always\r\n", "cookie"),
        ("GET /", "Cookie: canary=never\r\n", "rest"),
        ("GET /near", "", "client"),
        ("GET /near", "A: 1\r\n", "client"),
    ] {
        let reply = ask(&mut client, line, fields).await;
        assert_eq!(reply.header("x-rule"), Some(expected), "{line} {fields:?}");
    }
}

#[tokio::test]
async fn a_redirect_names_what_the_config_changes_and_keeps_the_rest() {
    let config = written(
        r#"
routes:
  all:
    rules:
      - { match: [{ path: { prefix: /tls } }], redirect: { scheme: https, code: 301 } }
      - { match: [{ path: { prefix: /port } }], redirect: { scheme: https, port: 8443 } }
      - { match: [{ path: { prefix: /host } }], redirect: { host: "${query.to}.example.org" } }
      - { match: [{ path: { prefix: /full } }], redirect: { path: { full: "/n/${header.x-name}?own" }, code: 307 } }
      - { match: [{ path: { prefix: /old/ } }], redirect: { path: { prefix: /new } } }
      - { match: [{ path: { prefix: /cut } }], redirect: { path: { prefix: / } } }
      - { match: [{ path: { regex: "/users/.*" } }], redirect: { path: { regex: "^/users/([^/]+)", with: "/u/$1" }, code: 308 } }
"#,
    );
    let (proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    for (line, status, expected) in [
        ("GET /tls/a?b=c", 301, "https://Shop.example.com/tls/a?b=c"),
        ("GET /port", 302, "https://Shop.example.com:8443/port"),
        ("GET /host?to=a", 302, "http://a.example.org:8080/host?to=a"),
        ("GET /full/x?y", 307, "http://Shop.example.com:8080/n/a%20b%3F?own"),
        ("GET /old/a/b?c", 302, "http://Shop.example.com:8080/new/a/b?c"),
        ("GET /old", 302, "http://Shop.example.com:8080/new"),
        ("GET /cut/a", 302, "http://Shop.example.com:8080/a"),
        ("GET /cut", 302, "http://Shop.example.com:8080/"),
        ("GET /users/bob/x", 308, "http://Shop.example.com:8080/u/bob/x"),
    ] {
        let reply = ask(&mut client, line, "X-Name: a b?\r\n").await;
        assert_eq!((reply.status, reply.header("location")), (status, Some(expected)), "{line}");
        assert!(reply.text().contains(&status.to_string()) && reply.header("x-request-id").is_some());
    }
    // No host was asked for: what leads elsewhere would lead back here.
    for (path, status, expected) in
        [("/tls", 400, None), ("/port", 400, None), ("/old/a", 302, Some("/new/a"))]
    {
        let reply = send(address, format!("GET {path} HTTP/1.0\r\n\r\n")).await;
        assert_eq!((reply.status, reply.header("location")), (status, expected), "{path}");
    }
    proxy.log.line(&["\"path\":\"/tls\"", "\"status\":400", "\"reason\":\"bad_host\""]).await;
    proxy.log.line(&["\"status\":308", "\"reason\":\"answered\""]).await;
}

#[tokio::test]
async fn what_a_request_brings_into_a_host_can_not_end_it() {
    let backend = Backend::named("app").await;
    let config = written(&format!(
        r#"
pools: {{ app: {{ members: ["{}"] }} }}
routes:
  all:
    rules:
      - {{ match: [{{ path: {{ prefix: /go }} }}], redirect: {{ scheme: https, host: "${{cookie.h}}.example.org" }} }}
      - {{ match: [{{ path: {{ prefix: /whole }} }}], redirect: {{ host: "${{query.to}}" }} }}
      - {{ match: [{{ path: {{ prefix: /same }} }}], redirect: {{ scheme: https, host: "${{host}}" }} }}
      - {{ match: [{{ path: {{ prefix: /in }} }}], pools: [app], rewrite: {{ host: "${{cookie.h}}.internal:8080" }} }}
"#,
        backend.address
    ));
    let (proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    let reply = ask(&mut client, "GET /go", "Cookie: h=a-1.b_c\r\n").await;
    assert_eq!((reply.status, reply.header("location")), (302, Some("https://a-1.b_c.example.org/go")));
    let reply = ask(&mut client, "GET /in", "Cookie: h=a-1\r\n").await;
    assert_eq!((reply.status, backend.last().header("host")), (200, Some("a-1.internal:8080")));
    let mut bad = vec!["", ".", "a.", ".a", "a..b", "-a", "[::1]", "a\u{e9}"];
    bad.extend([
        "evil.com/",
        "evil.com\\",
        "x@evil.com",
        "evil.com:80",
        "a?",
        "a#",
        "a%2f",
        "a b",
        "a\tb",
        "a,b",
    ]);
    for value in bad {
        let seen = backend.seen().len();
        for path in ["/go", "/in"] {
            let reply = ask(&mut client, &format!("GET {path}"), &format!("Cookie: h={value}\r\n")).await;
            assert_eq!((reply.status, reply.header("location")), (400, None), "{value:?} {path}");
        }
        assert_eq!(backend.seen().len(), seen, "{value:?}");
    }
    for (line, expected) in [
        ("GET /whole?to=a.b", Some("http://a.b:8080/whole?to=a.b")),
        ("GET /whole?to=%5B::1%5D", Some("http://[::1]:8080/whole?to=%5B::1%5D")),
        ("GET /whole?to=evil.com%2F", None),
        ("GET /whole?to=", None),
        ("GET /whole", None),
        ("GET /whole?to=a%0d%0ab", None),
    ] {
        let reply = ask(&mut client, line, "").await;
        let status = if expected.is_some() { 302 } else { 400 };
        assert_eq!((reply.status, reply.header("location")), (status, expected), "{line}");
    }
    let reply = send(address, "GET /same HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n").await;
    assert_eq!(reply.header("location"), Some("https://[2001:db8::1]/same"));
    proxy.log.line(&["\"path\":\"/go\"", "\"status\":400", "\"reason\":\"bad_host\""]).await;
}

#[tokio::test]
async fn what_a_request_brings_into_a_path_can_not_climb_out_of_it_or_break_it() {
    let backend = Backend::named("app").await;
    let config = written(&format!(
        r#"
pools: {{ app: {{ members: ["{}"] }} }}
routes:
  all:
    rules:
      - {{ match: [{{ path: {{ prefix: /in }} }}], pools: [app], rewrite: {{ path: {{ full: "/safe/${{query.a}}" }} }} }}
      - {{ match: [{{ path: {{ prefix: /go }} }}], redirect: {{ path: {{ full: "/safe/${{query.a}}" }} }} }}
      - {{ match: [{{ path: {{ prefix: /head }} }}], pools: [app], rewrite: {{ path: {{ full: "/base/${{header.x-v}}/end" }} }} }}
      - {{ match: [{{ path: {{ prefix: /own }} }}], pools: [app], rewrite: {{ path: {{ full: "/find?who=guest&for=${{query.a}}" }} }} }}
      - match: [{{ path: {{ prefix: /dots }} }}]
        pools: [app]
        rewrite: {{ path: {{ regex: "/dots/(.*)_(.*)", with: "/z/$1.$2" }} }}
      - match: [{{ path: {{ prefix: /cut }} }}]
        redirect: {{ path: {{ regex: "^/cut/(.*)x", with: "/y/$1" }} }}
"#,
        backend.address
    ));
    let (proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    for (line, fields, expected) in [
        ("GET /in?a=b/c%20d%25", "", "GET /safe/b/c%20d%25?a=b/c%20d%25"),
        ("GET /in?a=%252e%252e/x", "", "GET /safe/%252e%252e/x?a=%252e%252e/x"),
        ("GET /in?a=...", "", "GET /safe/...?a=..."),
        ("GET /head", "X-V: a%zz\r\n", "GET /base/a%25zz/end"),
        ("GET /head", "X-V: a%2fb\r\n", "GET /base/a%2Fb/end"),
        ("GET /own?a=x%26who=root%2B1", "", "GET /find?who=guest&for=x%26who=root%2B1"),
        ("GET /dots/a_b", "", "GET /z/a.b"),
    ] {
        let reply = ask(&mut client, line, fields).await;
        assert_eq!((reply.status, backend.last().line.as_str()), (200, expected), "{line} {fields}");
    }
    let seen = backend.seen().len();
    for (line, fields) in [
        ("GET /in?a=%00", ""),
        ("GET /in?a=../../etc", ""),
        ("GET /in?a=b/%2e%2e/%2e%2e/etc", ""),
        ("GET /in?a=..%5Cetc", ""),
        ("GET /in?a=.", ""),
        ("GET /go?a=%00", ""),
        ("GET /go?a=../evil", ""),
        ("GET /head", "X-V: %00\r\n"),
        ("GET /head", "X-V: %2e%2e/%2E%2e/secret\r\n"),
        ("GET /head", "X-V: ..%2f..%2fsecret\r\n"),
        ("GET /dots/._/x", ""),
        ("GET /dots/_./x", ""),
        ("GET /cut/..x/b", ""),
    ] {
        let reply = ask(&mut client, line, fields).await;
        assert_eq!((reply.status, reply.header("location")), (400, None), "{line} {fields}");
    }
    assert_eq!(backend.seen().len(), seen, "no member saw any of them");
    proxy.log.line(&["\"path\":\"/in\"", "\"status\":400", "\"reason\":\"bad_path\""]).await;
}

#[tokio::test]
async fn a_rule_answers_by_itself() {
    let config = written(
        r#"
routes:
  all:
    rules:
      - match: [{ path: { exact: /hello } }]
        respond: { code: 418, body: "${client.ip} asks ${method} ${path} at ${host}\n", headers: { content-type: text/x, x-id: "${request.id}" } }
      - { match: [{ path: { exact: /none } }], respond: { code: 204 } }
"#,
    );
    let (_proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    let reply = ask(&mut client, "POST /hello", "Content-Length: 3\r\n\r\nabc").await;
    assert_eq!((reply.status, reply.text()), (418, "127.0.0.1 asks POST /hello at shop.example.com\n"));
    assert_eq!(reply.header("content-type"), Some("text/x"));
    assert_eq!(reply.header("x-id"), reply.header("x-request-id"));
    let reply = send(address, "GET /none HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((reply.status, reply.text(), reply.header("content-type")), (204, "", None));
    client.write("HEAD /hello HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = client.head_reply().await;
    assert_eq!((head.status, head.header("content-length")), (418, Some("32")));
}

#[tokio::test]
async fn the_member_sees_what_was_rewritten_and_the_log_what_was_asked() {
    let backend = Backend::named("app").await;
    let config = written(&format!(
        r#"
pools: {{ app: {{ members: ["{}"] }} }}
routes:
  all:
    rules:
      - match: [{{ path: {{ prefix: /api/v1 }} }}]
        pools: [app]
        rewrite: {{ host: "${{header.x-tenant}}.internal", path: {{ prefix: /v1/ }} }}
      - {{ match: [{{ path: {{ prefix: /full }} }}], pools: [app], rewrite: {{ path: {{ full: /x }} }} }}
      - match: [{{ path: {{ prefix: /up }} }}]
        pools: [app]
        rewrite: {{ path: {{ regex: "/up/(.*)", with: "/a/./$1/%62 c" }} }}
"#,
        backend.address
    ));
    let (proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    for (line, expected) in [
        ("GET /api/v1/a/b?c", "GET /v1/a/b?c"),
        ("GET /api/v1", "GET /v1"),
        ("GET /full/a?b", "GET /x?b"),
        ("GET /up/%7Ex", "GET /a/~x/b%20c"),
    ] {
        ask(&mut client, line, "X-Tenant: acme\r\n").await;
        assert_eq!(backend.last().line, expected);
    }
    ask(&mut client, "GET /api/v1/z", "X-Tenant: acme\r\n").await;
    assert_eq!(backend.last().header("host"), Some("acme.internal"));
    assert_eq!(backend.last().header("x-forwarded-host"), Some("Shop.example.com:8080"));
    proxy.log.line(&["\"path\":\"/api/v1/z\"", "\"host\":\"Shop.example.com:8080\""]).await;
}

#[tokio::test]
async fn header_edits_go_from_the_nearest_place_and_a_pools_come_last() {
    let backend = Backend::named("app").await;
    let config = written(&format!(
        r#"
policies:
  edge: {{ response_headers: {{ preset: security, set: {{ x-from: edge }} }} }}
pools: {{ app: {{ members: ["{}"] }} }}
routes:
  all:
    use: [edge]
    request_headers:
      remove: [x-gone]
      set: {{ x-client: "${{client.ip}}", x-was: "${{header.x-gone}}", x-node: "${{node}}/${{listener}}/${{route}}" }}
      add: {{ x-more: "2" }}
    rules:
      - pools: [{{ pool: app, request_headers: {{ set: {{ x-pool: "${{pool}}" }} }}, response_headers: {{ set: {{ x-member: "${{member}} ${{header.x-asked}}" }}, remove: [server] }} }}]
      - {{ match: [{{ path: {{ prefix: /own }} }}], pools: [app], response_headers: {{ set: {{ x-from: rule }} }} }}
"#,
        backend.address
    ));
    let (_proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    let reply =
        ask(&mut client, "GET /", "X-Gone: 1\r\nX-More: 1\r\nX-Client: fake\r\nX-Asked: me\r\n").await;
    let seen = backend.last();
    for (name, expected) in [
        ("x-gone", None),
        ("x-client", Some("127.0.0.1")),
        ("x-was", Some("1")),
        ("x-node", Some("n1/web/all")),
        ("x-pool", Some("app")),
    ] {
        assert_eq!(seen.header(name), expected, "{name}");
    }
    let member = format!("{} me", backend.address);
    for (name, expected) in [
        ("x-from", Some("edge")),
        ("x-content-type-options", Some("nosniff")),
        ("strict-transport-security", None),
        ("x-member", Some(member.as_str())),
    ] {
        assert_eq!(reply.header(name), expected, "{name}");
    }
    let reply = ask(&mut client, "GET /own", "").await;
    assert_eq!((reply.header("x-from"), reply.header("x-frame-options")), (Some("rule"), None));
}

#[tokio::test]
async fn answers_of_our_own_carry_the_edits_too_and_nothing_can_be_injected() {
    let config = written(
        r#"
pools: { none: { members: [] } }
routes:
  all:
    rules: [{ pools: [none], response_headers: { set: { x-q: "a${query.q}" } } }]
"#,
    );
    let (_proxy, address) = Proxy::serving(config).await;
    let reply = send(address, "GET /?q=b%0d%0aX-Evil:%201 HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!((reply.status, reply.header("x-q")), (503, Some("abX-Evil: 1")));
    assert_eq!(reply.header("x-evil"), None);
}

#[tokio::test]
async fn browsers_of_other_origins_are_told_what_they_may() {
    let backend = Backend::answering(|_| {
        http::Response::builder()
            .header("access-control-allow-origin", "https://from-the-member")
            .header("vary", "accept")
            .body("data".into())
            .expect("a response")
    })
    .await;
    let config = written(&format!(
        r#"
pools: {{ app: {{ members: ["{}"] }} }}
routes:
  all:
    cors: {{ origins: ["https://*.example.com", "http://localhost:3000"], methods: [PUT], headers: [x-token], expose: [x-total], credentials: true, max_age: 10m }}
    rules:
      - {{ match: [{{ method: [GET, PUT] }}], pools: [app] }}
      - {{ match: [{{ path: {{ prefix: /open }} }}], pools: [app], cors: {{ origins: ["*"], headers: ["*"] }} }}
      - {{ match: [{{ path: {{ prefix: /off }} }}], pools: [app], cors: {{}} }}
"#,
        backend.address
    ));
    let (_proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    let preflight = |origin: &str| {
        format!(
            "Origin: {origin}\r\nAccess-Control-Request-Method: PUT\r\nAccess-Control-Request-Headers: X-Token\r\n"
        )
    };
    let reply = ask(&mut client, "OPTIONS /a", &preflight("https://shop.example.com")).await;
    assert_eq!(reply.status, 204);
    for (name, expected) in [
        ("access-control-allow-origin", Some("https://shop.example.com")),
        ("access-control-allow-methods", Some("GET, HEAD, POST, PUT")),
        ("access-control-allow-headers", Some("x-token")),
        ("access-control-allow-credentials", Some("true")),
        ("access-control-max-age", Some("600")),
    ] {
        assert_eq!(reply.header(name), expected, "{name}");
    }
    assert!(backend.seen().is_empty(), "preflights are answered here");
    for origin in
        ["https://example.com", "http://shop.example.com", "https://shop.example.com:8443", "null", "x"]
    {
        let reply = ask(&mut client, "OPTIONS /a", &preflight(origin)).await;
        assert_eq!((reply.status, reply.header("access-control-allow-origin")), (204, None), "{origin}");
        assert_eq!(reply.header("access-control-allow-methods"), None, "{origin}");
    }
    let reply = ask(&mut client, "GET /a", "Origin: http://localhost:3000\r\n").await;
    assert_eq!(reply.header("access-control-allow-origin"), Some("http://localhost:3000"));
    assert_eq!(reply.header("access-control-expose-headers"), Some("x-total"));
    assert!(reply.head.to_lowercase().contains("vary: origin"), "{}", reply.head);
    let reply = ask(&mut client, "GET /a", "Origin: https://evil\r\n").await;
    assert_eq!((reply.text(), reply.header("access-control-allow-origin")), ("data", None));

    let reply = ask(&mut client, "OPTIONS /open", &preflight("https://any")).await;
    assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    assert_eq!(reply.header("access-control-allow-headers"), Some("X-Token"));
    let reply = ask(&mut client, "OPTIONS /open", &preflight("null")).await;
    assert_eq!(reply.header("access-control-allow-methods"), Some("GET, HEAD, POST"), "any is any");
    let reply = ask(&mut client, "OPTIONS /off", &preflight("https://shop.example.com")).await;
    assert_eq!((reply.status, backend.last().line.as_str()), (200, "OPTIONS /off"), "it is the member's");
    let reply = ask(&mut client, "GET /off", "Origin: https://x\r\n").await;
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://from-the-member"));
}

#[tokio::test]
async fn what_is_alike_goes_to_one_member() {
    for (on, alike, other) in [
        ("header:x-user", ("GET /", "X-User: a\r\n"), "X-User: u"),
        ("cookie:sid", ("GET /", "Cookie: x=y; sid=a\r\n"), "Cookie: sid=u"),
        ("path", ("GET /a?1", ""), ""),
    ] {
        for balance in ["hash", "maglev"] {
            let backends = [Backend::named("a").await, Backend::named("b").await];
            let config = written(&format!(
                "pools: {{ app: {{ balance: {balance}, hash: {{ on: \"{on}\" }}, members: [\"{}\", \"{}\"] }} }}\n\
                 routes: {{ all: {{ rules: [{{ pools: [app] }}] }} }}\n",
                backends[0].address, backends[1].address
            ));
            let (_proxy, address) = Proxy::serving(config).await;
            let mut client = Client::connect(address).await;
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..12 {
                seen.insert(ask(&mut client, alike.0, alike.1).await.text().to_owned());
            }
            assert_eq!(seen.len(), 1, "{on} by {balance}");
            for n in 0..60 {
                let fields = if other.is_empty() { String::new() } else { format!("{other}{n}\r\n") };
                seen.insert(ask(&mut client, &format!("GET /{n}"), &fields).await.text().to_owned());
            }
            assert_eq!(seen.len(), 2, "{on} by {balance}: others go elsewhere");
        }
    }
}

#[tokio::test]
async fn a_member_that_answers_slowly_gets_less_by_peak_ewma() {
    let quick = Backend::named("quick").await;
    let slow = Backend::raw(|mut stream| async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut buffer = [0; 4096];
        while matches!(stream.read(&mut buffer).await, Ok(1..)) {
            // Longer than a busy machine makes a quick answer take: one such is remembered for seconds.
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow").await;
        }
    })
    .await;
    let config = written(&format!(
        "pools: {{ app: {{ balance: peak_ewma, members: [\"{}\", \"{}\"] }} }}\n\
         routes: {{ all: {{ rules: [{{ pools: [app] }}] }} }}\n",
        quick.address, slow.address
    ));
    let (_proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    let mut slow = 0;
    for _ in 0..100 {
        slow += usize::from(client.get("/").await.text() == "slow");
    }
    assert!((1..10).contains(&slow), "{slow} of 100 went to the slow one");
}

#[tokio::test]
async fn errors_of_ours_look_as_the_operator_wants_them() {
    let bad = Backend::answering(|_| {
        let mut response = http::Response::new(http_body_util::Full::from("the member's own"));
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        response
    })
    .await;
    let mut config = written(&format!(
        r#"
pools: {{ nobody: {{ members: [] }}, bad: {{ members: ["{}"] }} }}
routes:
  all:
    rules:
      - {{ match: [{{ path: {{ prefix: /none }} }}], pools: [nobody] }}
      - {{ match: [{{ path: {{ prefix: /bad }} }}], pools: [bad] }}
"#,
        bad.address
    ));
    let page = |statuses, text: &str| trestle_config::model::ErrorPage {
        statuses,
        page: trestle_config::model::Content::Inline(text.into()),
    };
    let policies = &mut config.listeners.get_mut("web").expect("web").policies;
    policies.error_pages = Some(vec![
        page((503, 503), "<h1>Back soon</h1> ${request.id}"),
        page((400, 499), "{\"error\": true}"),
    ]);
    let (_proxy, address) = Proxy::serving(config).await;
    let mut client = Client::connect(address).await;
    let reply = client.get("/none").await;
    let id = reply.header("x-request-id").expect("an id").to_owned();
    assert_eq!((reply.status, reply.text()), (503, format!("<h1>Back soon</h1> {id}").as_str()));
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    let reply = client.get("/elsewhere").await;
    assert_eq!((reply.status, reply.text()), (404, "{\"error\": true}"));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    // What a member says is its own affair.
    assert_eq!(client.get("/bad").await.text(), "the member's own");
}

#[tokio::test]
async fn a_mirror_gets_copies_and_nobody_waits_for_it() {
    let (app, shadow) = (Backend::named("app").await, Backend::named("shadow").await);
    let stuck = Backend::raw(|stream| async move {
        let _stream = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let config = written(&format!(
        r#"
pools:
  app: {{ members: ["{}"] }}
  shadow: {{ members: ["{}"] }}
  stuck: {{ members: ["{}"] }}
  nobody: {{ members: [] }}
routes:
  all:
    rules:
      - {{ pools: [app], mirror: [shadow, stuck, nobody], rewrite: {{ path: {{ prefix: /new }} }} }}
      - {{ match: [{{ path: {{ prefix: /some }} }}], pools: [app], mirror: [{{ pool: shadow, share: 0.2 }}] }}
"#,
        app.address, shadow.address, stuck.address
    ));
    let (proxy, address) = Proxy::serving(config).await;
    assert_eq!(send(address, "GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await.text(), "app");
    crate::testing::until("the copy comes", || shadow.seen().len() == 1).await;
    let (original, copy) = (app.last(), shadow.last());
    assert_eq!((original.line.as_str(), copy.line.as_str()), ("GET /new/a", "GET /new/a"));
    assert_eq!(original.header("x-request-id"), copy.header("x-request-id"));
    let post = "POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    assert_eq!(send(address, post).await.text(), "app");
    crate::testing::until("the copy comes", || shadow.seen().len() == 2).await;
    assert_eq!(shadow.last().body, "hello");
    let chunked = "PUT /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nin c\r\n5\r\nhunks\r\n0\r\n\r\n";
    assert_eq!(send(address, chunked).await.text(), "app");
    crate::testing::until("the copy comes", || shadow.seen().len() == 3).await;
    assert_eq!(shadow.last().body, "in chunks");
    let large =
        format!("POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{}", "x".repeat(100_000));
    assert_eq!(send(address, &large).await.text(), "app");
    assert_eq!(app.last().body.len(), 100_000);
    for (series, expected) in [
        ("trestle_pool_mirrored_total{pool=\"shadow\"}", Some(3.0)),
        ("trestle_pool_mirrored_total{pool=\"stuck\"}", Some(3.0)),
        ("trestle_pool_mirrored_total{pool=\"app\"}", Some(0.0)),
        ("trestle_pool_mirror_dropped_total{pool=\"shadow\",reason=\"body\"}", Some(1.0)),
        ("trestle_pool_mirror_dropped_total{pool=\"nobody\",reason=\"no_member\"}", Some(3.0)),
        ("trestle_pool_mirror_dropped_total{pool=\"nobody\",reason=\"body\"}", Some(1.0)),
        ("trestle_pool_mirror_dropped_total{pool=\"stuck\",reason=\"busy\"}", None),
    ] {
        assert_eq!(proxy.metric(series), expected, "{series}");
    }

    for _ in 0..100 {
        assert_eq!(send(address, "GET /some HTTP/1.1\r\nHost: a\r\n\r\n").await.text(), "app");
    }
    crate::testing::until("copies come", || shadow.seen().len() > 5).await;
    assert!(shadow.seen().len() < 60, "{} of 100 are more than a fifth", shadow.seen().len());
    assert!(shadow.seen().iter().all(|seen| seen.body.len() < 100_000), "too large to be copied");
}

#[tokio::test]
async fn copies_above_the_limit_of_their_pool_are_dropped_and_counted() {
    let app = Backend::named("app").await;
    let stuck = Backend::raw(|stream| async move {
        let _stream = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let config = written(&format!(
        "pools: {{ app: {{ members: [\"{}\"] }}, stuck: {{ members: [\"{}\"], breaker: {{ requests: 3 }} }} }}\n\
         routes: {{ all: {{ rules: [{{ pools: [app], mirror: [stuck] }}] }} }}\n",
        app.address, stuck.address
    ));
    let (proxy, address) = Proxy::serving(config).await;
    for _ in 0..5 {
        assert_eq!(send(address, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.text(), "app");
    }
    assert_eq!(proxy.metric("trestle_pool_mirrored_total{pool=\"stuck\"}"), Some(3.0));
    let limit = "trestle_pool_mirror_dropped_total{pool=\"stuck\",reason=\"limit\"}";
    assert_eq!(proxy.metric(limit), Some(2.0));
}

#[tokio::test]
async fn slashes_are_merged_before_a_request_is_routed_and_passed_on_where_the_listener_says_so() {
    let backend = Backend::named("app").await;
    for (merge, path, expected) in [
        (true, "//a///b//", "GET /a/b/"),
        (true, "/a//../b", "GET /b"),
        (true, "/a/%2f/b?x=//", "GET /a/%2F/b?x=//"),
        (false, "/a//b", "GET /a//b"),
    ] {
        let config = written(&format!(
            "listeners: {{ web: {{ bind: \"127.0.0.1:0\", protocol: http, http: {{ merge_slashes: {merge} }} }} }}\n\
             pools: {{ app: {{ members: [\"{}\"] }} }}\n\
             routes: {{ all: {{ rules: [{{ pools: [app] }}, \
             {{ match: [{{ path: {{ exact: /secret/x }} }}], respond: {{ code: 403 }} }}] }} }}\n",
            backend.address
        ));
        let (_proxy, address) = Proxy::serving(config).await;
        let mut client = Client::connect(address).await;
        ask(&mut client, &format!("GET {path}"), "").await;
        assert_eq!(backend.last().line, expected, "{path}");
        let status = ask(&mut client, "GET //secret//x", "").await.status;
        assert_eq!(status, if merge { 403 } else { 200 }, "what is routed is what is forwarded");
    }
}

#[tokio::test]
async fn a_listener_serves_its_own_hosts_and_routes_apply_as_far_as_theirs_are_among_them() {
    let config = written(
        r#"
listeners: { web: { bind: "127.0.0.1:0", protocol: http, hosts: ["*.example.com", shop.example.org], pool: none } }
pools: { none: { members: [] } }
routes:
  all: { rules: [{ match: [{ path: { prefix: /a } }], respond: { code: 200, body: all } }] }
  wild: { hosts: ["*.org", "*.api.example.com"], rules: [{ match: [{ path: { prefix: /a } }], respond: { code: 200, body: wild } }] }
  exact: { hosts: [www.example.com, www.example.org], rules: [{ match: [{ path: { prefix: /a } }], respond: { code: 200, body: exact } }] }
"#,
    );
    let (_proxy, address) = Proxy::serving(config).await;
    for (host, path, expected) in [
        ("x.example.com", "/a", (200, "all")),
        ("v1.api.example.com", "/a", (200, "wild")),
        ("api.example.com", "/a", (200, "all")),
        ("www.example.com:81", "/a", (200, "exact")),
        // Under both routes it is the listener's own host: the route's name decides.
        ("shop.example.org", "/a", (200, "all")),
        ("www.example.org", "/a", (404, "")),
        ("example.com", "/a", (404, "")),
        ("192.0.2.1", "/a", (404, "")),
        // The listener's own pool is for its hosts too.
        ("x.example.com", "/", (503, "")),
        ("www.example.org", "/", (404, "")),
    ] {
        let reply = send(address, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        let body = if reply.status == 200 { reply.text() } else { "" };
        assert_eq!((reply.status, body), expected, "{host}{path}");
    }
}
