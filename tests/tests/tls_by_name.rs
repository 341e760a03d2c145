//! TLS that is passed through by name, and TLS that ends in front of TCP: the example, with curl, openssl and nginx.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use trestle_tests::backend::{HttpBackend, TcpEcho};
use trestle_tests::pki::Authority;
use trestle_tests::{Cluster, Nginx, eventually, free_port, peers};

const SETTLE: Duration = Duration::from_secs(20);

/// Answers with its name over TLS, with a certificate of its own.
fn nginx(authority: &Authority, name: &str, more: &str) -> (Nginx, u16) {
    let port = free_port();
    let servers = |dir: &Path| {
        let [chain, key] = authority.issue(dir, "own", &[name]);
        format!(
            "server {{ listen 127.0.0.1:{port} ssl{more}; ssl_certificate {}; ssl_certificate_key {}; \
             location / {{ return 200 \"$ssl_server_name|$http_x_forwarded_for|$proxy_protocol_addr\"; }} }}",
            chain.display(),
            key.display()
        )
    };
    (Nginx::start(servers), port)
}

/// What curl gets of a name at an address, believing this authority.
fn curl(at: SocketAddr, name: &str, authority: &Path) -> anyhow::Result<String> {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20", "--cacert"])
        .arg(authority)
        .arg("--connect-to")
        .arg(format!("{name}:443:{at}"))
        .arg(format!("https://{name}/"))
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// What comes back of a line, over TLS that is believed for this name.
fn openssl(at: SocketAddr, name: &str, authority: &Path, line: &str) -> anyhow::Result<String> {
    let mut child = Command::new("openssl")
        .args(["s_client", "-quiet", "-verify_return_error", "-no_ign_eof", "-connect", &at.to_string()])
        .args(["-servername", name, "-verify_hostname", name, "-CAfile"])
        .arg(authority)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("stdin")?;
    input.write_all(line.as_bytes())?;
    let mut said = String::new();
    let read = BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut said);
    drop(input);
    let output = child.wait_with_output()?;
    read?;
    ensure!(!said.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

#[test]
fn the_example_does_what_it_says() {
    if !peers::have(&["curl", "openssl", "nginx"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("root");
    let root = authority.write(dir.path(), "root");
    authority.issue(dir.path(), "example", &["www.example.com", "imap.example.com"]);
    let (_git, git) = nginx(&authority, "git.example.com", " proxy_protocol");
    let (_inside, inside) = nginx(&authority, "*.internal.example.com", "");
    let app = HttpBackend::start("app");
    let imap = TcpEcho::start();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/tls-by-name.yaml");
    let mut config = std::fs::read_to_string(file).expect("the example is there");
    for (address, here) in [
        ("0.0.0.0:443", "127.0.0.1:0".to_owned()),
        ("0.0.0.0:8443", "127.0.0.1:0".to_owned()),
        ("0.0.0.0:993", "127.0.0.1:0".to_owned()),
        ("192.0.2.11:80", app.address.to_string()),
        ("192.0.2.21:443", format!("127.0.0.1:{git}")),
        ("192.0.2.31:443\", \"192.0.2.32:443", format!("127.0.0.1:{inside}")),
        ("192.0.2.41:143", imap.address.to_string()),
    ] {
        assert!(config.contains(address), "{address}");
        config = config.replace(address, &here);
    }
    let log = dir.path().join("access.log");
    config.push_str(&format!("access_log: {{ to: \"file:{}\" }}\n", log.display()));
    let document = dir.path().join("config.yaml");
    std::fs::write(&document, config).expect("the test's folder is writable");
    let cluster = Cluster::start(1, "{}");
    let node = &cluster.nodes[0];
    let document = document.to_str().expect("a plain name");
    let applied = node.cli(&["apply", "-f", document]).expect("it runs");
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    eventually(SETTLE, "the members are up", || {
        let list = node.json(&["member", "list"])?.to_string();
        ensure!(!list.contains("\"up\":false"), "{list}");
        Ok(())
    });
    let at = |name: &str| node.listener(name).expect("bound");

    // On one port: what ends here knows its client by a header, what is passed through knows its name.
    eventually(SETTLE, "a name ends here", || {
        let text = curl(at("web"), "www.example.com", &root)?;
        ensure!(text.contains("app"), "{text}");
        Ok(())
    });
    for listener in ["web", "through"] {
        let text = curl(at(listener), "wiki.internal.example.com", &root).expect("passed through");
        assert_eq!(text, "wiki.internal.example.com||", "{listener}");
    }
    // Its certificate is its own: for this name ours would not be believed.
    assert_eq!(
        curl(at("through"), "git.example.com", &root).expect("passed through"),
        "git.example.com||127.0.0.1"
    );
    let unknown = curl(at("through"), "www.example.com", &root).expect_err("nobody has it");
    assert!(unknown.to_string().contains("unrecognized name"), "{unknown:#}");
    let plain = Command::new("curl")
        .args(["-sS", "--max-time", "20", &format!("http://{}/", at("through"))])
        .output()
        .expect("it runs");
    assert!(!plain.status.success(), "{}", String::from_utf8_lossy(&plain.stdout));

    // TLS ends in front of a service without it.
    let said = openssl(at("imaps"), "imap.example.com", &root, "a1 NOOP\n").expect("it answers");
    assert_eq!(said, "a1 NOOP\n");
    eventually(SETTLE, "the connections are logged", || {
        let lines = std::fs::read_to_string(&log)?;
        for part in ["\"sni\":\"git.example.com\"", "\"reason\":\"unknown_name\"", "\"reason\":\"not_tls\""] {
            ensure!(lines.contains(part), "{part} is missing");
        }
        ensure!(
            lines.contains("\"sni\":\"imap.example.com\"") && lines.contains("\"tls_version\":\"TLSv1.3\"")
        );
        Ok(())
    });
}
