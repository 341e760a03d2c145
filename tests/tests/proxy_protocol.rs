//! The PROXY protocol with those who speak it: curl, HAProxy and nginx, in front of us and behind.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tempfile::TempDir;
use trestle_tests::{Cluster, Nginx, eventually, free_port, peers};

/// Ended when it is dropped.
struct HaProxy {
    child: Child,
    _dir: TempDir,
}

impl HaProxy {
    fn start(sections: &str) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let file = dir.path().join("haproxy.cfg");
        let defaults =
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 20s\n  timeout server 20s\n";
        std::fs::write(&file, format!("{defaults}{sections}")).expect("write");
        let child = Command::new("haproxy")
            .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()))
            .args(["-db", "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("haproxy starts");
        Self { child, _dir: dir }
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Without success: what curl says.
fn curl(args: &[&str]) -> Result<String, String> {
    let output =
        Command::new("curl").args(["-sS", "--max-time", "20"]).args(args).output().expect("curl runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// What comes back of these bytes, until the other side closes.
fn talk(address: SocketAddr, bytes: &[u8]) -> anyhow::Result<(String, SocketAddr)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let own = stream.local_addr()?;
    stream.write_all(bytes)?;
    let mut got = String::new();
    stream.read_to_string(&mut got)?;
    Ok((got, own))
}

const GET: &str = "GET /seen HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n";
const SEEN: &str = "$proxy_protocol_addr|$proxy_protocol_port|$proxy_protocol_server_addr|$proxy_protocol_server_port|$http_x_forwarded_for";

/// nginx that wants a header, and says what it was told.
fn nginx() -> (Nginx, u16) {
    let port = free_port();
    let server = |_: &std::path::Path| {
        format!(
            "server {{ listen 127.0.0.1:{port} proxy_protocol; location / {{ return 200 \"{SEEN}\"; }} }}"
        )
    };
    (Nginx::start(server), port)
}

#[test]
fn the_example_behind_a_load_balancer_does_what_it_says() {
    if !peers::have(&["curl", "nginx", "haproxy"]) {
        return;
    }
    let (_nginx, port) = nginx();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/behind-load-balancer.yaml");
    let mut config = std::fs::read_to_string(file).expect("the example is there");
    for (address, here) in [
        ("0.0.0.0:8080", "127.0.0.1:0".to_owned()),
        ("0.0.0.0:2525", "127.0.0.1:0".to_owned()),
        ("198.51.100.0/24", "127.0.0.0/8".to_owned()),
        ("192.0.2.11:80", format!("127.0.0.1:{port}")),
        ("192.0.2.21:25", format!("127.0.0.1:{port}")),
    ] {
        assert!(config.contains(address), "{address}");
        config = config.replace(address, &here);
    }
    let cluster = Cluster::start(1, &config);
    let node = &cluster.nodes[0];
    let (web, mail) = (node.listener("web").expect("bound"), node.listener("mail").expect("bound"));
    // nginx takes no check without a header either.
    eventually(Duration::from_secs(20), "the members are up", || {
        let list = node.json(&["member", "list"])?.to_string();
        ensure!(!list.contains("\"up\":false"), "{list}");
        let (got, _) = talk(web, format!("PROXY TCP4 203.0.113.9 192.0.2.80 4711 80\r\n{GET}").as_bytes())?;
        ensure!(got.contains(" 200 "), "{got}");
        Ok(())
    });

    // From a client through us to nginx: version 1 and version 2.
    for address in [web, mail] {
        let line = format!("PROXY TCP4 203.0.113.9 192.0.2.80 4711 80\r\n{GET}");
        let (got, _) = talk(address, line.as_bytes()).expect("an answer");
        assert!(got.contains("203.0.113.9|4711|192.0.2.80|80|"), "{got}");
        let six = format!("PROXY TCP6 2001:db8::9 2001:db8::80 4711 80\r\n{GET}");
        let (got, _) = talk(address, six.as_bytes()).expect("an answer");
        assert!(got.contains("2001:db8::9|4711|2001:db8::80|80|"), "{got}");
    }
    let url = |address: SocketAddr, path: &str| format!("http://{address}{path}");
    let seen = curl(&["--haproxy-protocol", &url(web, "/seen")]).expect("curl's header is taken");
    assert!(seen.starts_with("127.0.0.1|") && seen.ends_with("|127.0.0.1"), "{seen}");
    let refused = curl(&[&url(web, "/seen")]).expect_err("one is required");
    assert!(refused.contains("reset"), "{refused}");
    let (got, own) = talk(mail, GET.as_bytes()).expect("here it is not");
    assert!(got.contains(&format!("127.0.0.1|{}|127.0.0.1|{}|", own.port(), mail.port())), "{got}");
    // Rules go by it.
    for (client, expected) in
        [("203.0.113.7", "203.0.113.7|"), ("203.0.114.7", "203.0.114.7 may not go there")]
    {
        let admin = GET.replace("/seen", "/admin/");
        let (got, _) = talk(web, format!("PROXY TCP4 {client} 192.0.2.80 1 80\r\n{admin}").as_bytes())
            .expect("an answer");
        assert!(got.contains(expected), "{got}");
    }

    // HAProxy in front, which checks us as well, by LOCAL.
    for send in ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options unique-id,crc32c"] {
        let front = free_port();
        let _haproxy = HaProxy::start(&format!(
            "listen front\n  bind 127.0.0.1:{front}\n  unique-id-format edge-%rt\n  \
               server us {web} {send} check check-send-proxy inter 200\n"
        ));
        let front = SocketAddr::from(([127, 0, 0, 1], front));
        eventually(Duration::from_secs(10), "an answer through HAProxy", || {
            let (got, own) = talk(front, GET.as_bytes())?;
            let expected = format!("127.0.0.1|{}|127.0.0.1|{}|", own.port(), front.port());
            ensure!(got.contains(&expected), "{send}: {got}");
            Ok(())
        });
    }
}

#[test]
fn haproxy_behind_us_is_told_names_and_ids_and_one_client_a_connection() {
    if !peers::have(&["curl", "haproxy"]) {
        return;
    }
    let port = free_port();
    let _haproxy = HaProxy::start(&format!(
        "frontend back\n  bind 127.0.0.1:{port} accept-proxy\n  http-request return status 200 content-type text/plain \
         lf-string \"%[src]:%[src_port] %[dst]:%[dst_port] %[fc_pp_authority] %[fc_pp_unique_id]\"\n"
    ));
    let dir = tempfile::tempdir().expect("folder");
    let authority = trestle_tests::pki::Authority::new("ca");
    let [chain, key] = authority.issue(dir.path(), "app", &["app.test"]);
    let config = format!(
        "certificates: {{ app: {{ chain_file: {}, key_file: {} }} }}\n\
         listeners:\n  \
           web: {{ bind: \"127.0.0.1:0\", protocol: https, tls: {{ certificates: [app] }}, pool: p }}\n  \
           raw: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: p }}\n\
         pools: {{ p: {{ members: [\"127.0.0.1:{port}\"], proxy_protocol: v2 }} }}\n",
        chain.display(),
        key.display()
    );
    let cluster = Cluster::start(1, &config);
    let node = &cluster.nodes[0];
    let (web, raw) = (node.listener("web").expect("bound"), node.listener("raw").expect("bound"));

    eventually(Duration::from_secs(10), "HAProxy answers", || {
        let (got, own) = talk(raw, GET.as_bytes())?;
        ensure!(got.contains(&format!("{own} {raw}  ")), "{got}");
        let id = got.rsplit(' ').next().context("an id")?;
        ensure!(id.len() == 36 && id.split('-').count() == 5, "{got}");
        Ok(())
    });

    // Two requests of a client on one connection, and one of another.
    let url = format!("https://app.test:{}/", web.port());
    let resolve = format!("app.test:{}:127.0.0.1", web.port());
    for version in ["--http1.1", "--http2"] {
        let both = curl(&["-k", version, "--resolve", &resolve, "-w", " %{local_port}\n", &url, &url])
            .expect("answers");
        for line in both.lines() {
            let own = line.rsplit(' ').next().expect("a port");
            assert_eq!(line, format!("127.0.0.1:{own} {web} app.test  {own}"), "{version}: {both}");
        }
        assert_eq!(both.lines().count(), 2, "{both}");
    }
}
