//! What the access log says, in which form, and where.

use trestle_config::model::{AccessLogFormat, AccessLogTarget, Protocol};

use crate::testing::{Backend, Client, Proxy, config, listener, loopback, send, until, written};

/// A document's log, with the config of one backend.
fn logging(backend: &Backend, log: &str) -> trestle_config::Config {
    let address = backend.address;
    written(&format!(
        "access_log: {log}\nroutes: {{ all: {{ rules: [{{ name: r, pools: [app] }}] }} }}\n\
         pools: {{ app: {{ members: [\"{address}\"], health: off }} }}\n"
    ))
}

/// The line without its time, which stands in brackets.
fn timeless(line: &str) -> String {
    let (before, rest) = line.split_once('[').expect("a time");
    let (time, after) = rest.split_once(']').expect("a time");
    assert_eq!((time.len(), &time[20..]), (26, " +0000"), "{time}");
    format!("{before}[]{after}")
}

#[tokio::test]
async fn combined_is_what_nginx_prints() {
    let backend = Backend::named("hello").await;
    let (proxy, address) = Proxy::serving(logging(&backend, "{ format: combined }")).await;
    let head = b"GET /a?b=%22 HTTP/1.0\r\nHost: h\r\nAuthorization: Basic YTpi\r\nReferer: http://x/\"\\\r\n\
                 User-Agent: c\xfc\tl\r\n\r\n";
    send(address, head).await;
    let line = proxy.log.line(&["/a?b"]).await;
    let expected = r#"127.0.0.1 - a [] "GET /a?b=%22 HTTP/1.0" 200 5 "http://x/\x22\x5C" "c\xFC\x09l""#;
    assert_eq!(timeless(&line), expected);
    send(address, "GET /bare HTTP/1.1\r\nHost: h\r\nUser-Agent:\r\nConnection: close\r\n\r\n").await;
    let line = proxy.log.line(&["/bare"]).await;
    assert_eq!(timeless(&line), r#"127.0.0.1 - - [] "GET /bare HTTP/1.1" 200 5 "-" """#);
}

#[tokio::test]
async fn a_form_of_ones_own_has_what_only_the_end_tells() {
    let backend = Backend::named("hello").await;
    let form = "${node}|${listener}|${route}|${rule}|${pool}|${status}|${bytes_in}|${bytes_out}|${reason}|\
                ${attempts}|${protocol}|${query}|${query.a}|${header.x-a}|${cookie.s}|${tls.sni}|${header.user-agent}";
    let (proxy, address) = Proxy::serving(logging(&backend, &format!("{{ format: \"{form}\" }}"))).await;
    let head = "POST /?a=1&b HTTP/1.1\r\nHost: h\r\nX-A: x y\r\nCookie: s=t\r\nUser-Agent: u\r\nContent-Length: 3\r\n\
                Connection: close\r\n\r\nabc";
    send(address, head).await;
    proxy.log.line(&["n1|web|all|r|app|200|3|5|done|1|HTTP/1.1|a=1&b|1|x y|t|-|u"]).await;
    let times = "${time} ${duration_us} ${request.id} ${client.port} ${member}";
    proxy.install(2, logging(&backend, &format!("{{ format: \"{times}\" }}"))).await;
    let address = proxy.plane.listeners()[0].state.clone().expect("listens");
    send(address, "GET / HTTP/1.0\r\n\r\n").await;
    let line = proxy.log.line(&[&backend.address.to_string()]).await;
    let parts: Vec<&str> = line.split(' ').collect();
    assert!(parts[0].ends_with('Z') && parts[1].parse::<u64>().is_ok_and(|us| us > 0), "{line}");
    assert!(uuid::Uuid::parse_str(parts[2]).is_ok() && parts[3].parse::<u16>().is_ok(), "{line}");
}

#[tokio::test]
async fn form_and_target_change_with_the_revision() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.log");
    let backend = Backend::named("hello").await;
    let mut config = config(&[backend.address]);
    let (proxy, address) = Proxy::serving(config.clone()).await;
    let mut client = Client::connect(address).await;
    client.get("/one").await;
    config.access_log.format = AccessLogFormat::Combined;
    config.access_log.to = AccessLogTarget::File(path.clone());
    proxy.install(2, config.clone()).await;
    client.get("/two").await;
    until("a line in the file", || std::fs::read_to_string(&path).is_ok_and(|text| text.contains("/two")))
        .await;
    proxy.log.line(&["\"path\":\"/one\""]).await;
    assert!(!proxy.log.text().contains("/two"));

    // A folder can't be opened: said, and traffic goes on.
    config.access_log.to = AccessLogTarget::File(folder.path().to_owned());
    proxy.install(3, config.clone()).await;
    until("it is told", || proxy.metric("trestle_access_log_failing ") == Some(1.0)).await;
    assert_eq!(client.get("/three").await.status, 200);
    until("it is counted", || proxy.metric("trestle_access_log_dropped_total ") == Some(1.0)).await;

    config.access_log.to = AccessLogTarget::File(path.clone());
    proxy.install(4, config).await;
    until("it is over", || proxy.metric("trestle_access_log_failing ") == Some(0.0)).await;
    std::fs::rename(&path, folder.path().join("a.log.1")).expect("moved");
    proxy.plane.reopen_logs();
    until("the file is made anew", || path.exists()).await;
}

#[tokio::test]
async fn a_connection_has_a_line_of_the_same_form() {
    let backend = Backend::raw(|_| async {}).await;
    let mut config = logging(&backend, "{ format: combined }");
    config.listeners.insert("web".into(), listener(Protocol::Tcp, loopback(0), Some("app")));
    let (proxy, address) = Proxy::serving(config).await;
    Client::connect(address).await.rest().await;
    let line = proxy.log.line(&["127.0.0.1"]).await;
    assert_eq!(timeless(&line), r#"127.0.0.1 - - [] "-" 000 0 "-" "-""#);
}

#[tokio::test]
async fn a_session_of_udp_has_a_line_when_it_ends() {
    let echo = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let mut config = config(&[echo.local_addr().expect("bound")]);
    let mut dns = listener(Protocol::Udp, loopback(0), Some("app"));
    dns.udp.replies = 1;
    config.listeners.insert("web".into(), dns);
    config.routes.clear();
    let (proxy, address) = Proxy::serving(config).await;
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    client.send_to(b"question", address).await.expect("sent");
    let mut space = [0; 64];
    let (n, node) = echo.recv_from(&mut space).await.expect("asked");
    echo.send_to(&space[..n - 2], node).await.expect("answered");
    let line = proxy.log.line(&["\"listener\":\"web\""]).await;
    for part in
        [r#""reason":"replied""#, r#""bytes_in":8"#, r#""bytes_out":6"#, r#""pool":"app""#, r#""member":""#]
    {
        assert!(line.contains(part), "{part} in {line}");
    }
}

/// The number that a line of JSON has under this name.
fn number(line: &str, name: &str) -> Option<u64> {
    let (_, rest) = line.split_once(&format!("\"{name}\":"))?;
    rest.split([',', '}']).next()?.parse().ok()
}

#[tokio::test]
async fn json_tells_who_asked_how_and_where_the_time_went() {
    let backend = Backend::answering(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        http::Response::new(http_body_util::Full::from("hello"))
    })
    .await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    let mut client = Client::connect(address).await;
    client.write("GET /a?b=%22 HTTP/1.1\r\nHost: h\r\nUser-Agent: \"u\"\r\n\r\n").await;
    client.reply().await;
    let line = proxy.log.line(&["\"path\":\"/a\""]).await;
    for part in
        [r#""protocol":"HTTP/1.1""#, r#""scheme":"http""#, r#""query":"b=%22""#, r#""user_agent":"\"u\"""#]
    {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(!line.contains("tls_version") && !line.contains("sni"), "{line}");
    let times = ["connect_us", "first_byte_us", "duration_us"].map(|name| number(&line, name));
    let [Some(connect), Some(first_byte), Some(all)] = times else { panic!("{line}") };
    assert!(first_byte >= 20_000 && connect + first_byte <= all, "{line}");
    client.get("/again").await;
    let line = proxy.log.line(&["/again"]).await;
    assert!(number(&line, "connect_us").is_none(), "the connection was there: {line}");
    assert!(!line.contains("user_agent") && !line.contains("query"), "{line}");
}

#[tokio::test]
async fn the_time_for_a_connection_that_is_not_made_is_told() {
    let (proxy, address) = Proxy::serving(config(&[crate::testing::nobody()])).await;
    send(address, "GET / HTTP/1.0\r\n\r\n").await;
    let line = proxy.log.line(&["\"status\":502", "\"protocol\":\"HTTP/1.0\""]).await;
    assert!(number(&line, "connect_us").is_some() && number(&line, "first_byte_us").is_none(), "{line}");
}

#[tokio::test]
async fn a_trace_is_passed_on_or_begun_and_the_log_has_its_id() {
    let backend = Backend::named("hello").await;
    let mut config = config(&[backend.address]);
    let web = config.listeners.get_mut("web").expect("the listener");
    web.trusted_proxies =
        vec![trestle_config::model::NetworkRef::Network("127.0.0.0/8".parse().expect("a network"))];
    let (proxy, address) = Proxy::serving(config).await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let given = format!("00-{trace}-00f067aa0ba902b7-01");
    send(address, format!("GET /on HTTP/1.0\r\nTraceparent: {given}\r\nTracestate: a=1\r\n\r\n")).await;
    let seen = backend.last();
    let sent = seen.header("traceparent").expect("a trace");
    assert!(sent.starts_with(&format!("00-{trace}-")) && sent.ends_with("-01") && sent != given, "{sent}");
    assert_eq!(seen.header("tracestate"), Some("a=1"));
    proxy.log.line(&["/on", &format!("\"trace_id\":\"{trace}\"")]).await;
    send(address, "GET /new HTTP/1.0\r\nTraceparent: 00-bad\r\nTracestate: a=1\r\n\r\n").await;
    let seen = backend.last();
    let begun = seen.header("x-request-id").expect("an id").replace('-', "");
    let sent = seen.header("traceparent").expect("a trace");
    assert!(sent.starts_with(&format!("00-{begun}-")) && sent.ends_with("-00"), "{sent}");
    assert_eq!(seen.header("tracestate"), None);
    proxy.log.line(&["/new", &format!("\"trace_id\":\"{begun}\"")]).await;
}

#[tokio::test]
async fn of_a_refused_request_the_log_tells_what_was_sent_and_why_it_was_refused() {
    let backend = Backend::named("hello").await;
    let (proxy, address) = Proxy::serving(config(&[backend.address])).await;
    for (head, what, why) in [
        (
            "DELETE /secret?a=1 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            r#""protocol":"HTTP/1.1","scheme":"http","method":"DELETE","host":"a, b","path":"/secret","query":"a=1""#,
            r#""reason":"bad_request","detail":"two_hosts""#,
        ),
        (
            "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
            r#""method":"CONNECT","host":"a:1","path":"a:1""#,
            r#""detail":"connect""#,
        ),
        (
            "PUT /lf HTTP/1.0\n\n",
            r#""protocol":"HTTP/1.0","scheme":"http","method":"PUT","host":"","path":"/lf""#,
            r#""detail":"bare_lf""#,
        ),
        ("GET /\x1b\" HTTP/1.1\r\nHost: a\r\n\r\n", r#""path":"/\u001b\"""#, r#""detail":"target""#),
        ("GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", r#""path":"/%00""#, r#""detail":"path""#),
        (
            "POST /cl HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            r#""path":"/cl""#,
            r#""reason":"bad_request","detail":"length_and_encoding""#,
        ),
        (
            "POST /chunk HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx",
            r#""path":"/chunk""#,
            r#""reason":"bad_request","detail":"chunk""#,
        ),
    ] {
        send(address, head).await;
        proxy.log.line(&[what, why]).await;
    }
    let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(9000));
    send(address, long).await;
    let line = proxy.log.line(&["uri_too_long"]).await;
    assert!(line.contains("aaa...\"") && line.len() < 2000, "{line}");
    assert!(!proxy.log.text().contains(r#""path":"/""#), "{}", proxy.log.text());

    let form = "{ format: \"${request}|${method}|${host}|${path}|${query}|${protocol}|${detail}\" }";
    proxy.install(2, logging(&backend, form)).await;
    let address = proxy.plane.listeners()[0].state.clone().expect("listens");
    send(address, "GET  /x?\"y HTTP/1.1\r\nHost: a\r\n\r\n").await;
    proxy.log.line(&[r"GET  /x?\x22y HTTP/1.1|GET|a|/x|\x22y|HTTP/1.1|request_line"]).await;
    send(address, "GET /fine HTTP/1.0\r\n\r\n").await;
    proxy.log.line(&["GET /fine HTTP/1.0|GET|-|/fine|-|HTTP/1.0|-"]).await;
}

#[tokio::test]
async fn of_a_header_that_came_too_slowly_the_log_tells_what_came() {
    let backend = Backend::named("hello").await;
    let mut config = config(&[backend.address]);
    config.listeners.get_mut("web").expect("the listener").http.header_timeout =
        std::time::Duration::from_secs(1);
    let (proxy, address) = Proxy::serving(config).await;
    assert_eq!(send(address, "PATCH /slow HTTP/1.1\r\nHo").await.status, 408);
    proxy.log.line(&[r#""method":"PATCH","host":"","path":"/slow""#, "client_header_timeout"]).await;
}
