//! `examples/mail.yaml` and `examples/ssh.yaml` as they stand, with their addresses mapped: mail to a server that wants
//! the PROXY protocol, a login by SSH.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::ensure;
use tempfile::TempDir;
use trestle_tests::python::{self, Server};
use trestle_tests::{Cluster, Node, eventually, example, free_address, peers};

const SOON: Duration = Duration::from_secs(20);

fn all_up(node: &Node) {
    eventually(SOON, "the members are up", || {
        let list = node.json(&["member", "list"])?.to_string();
        ensure!(!list.contains("\"up\":false") && list.contains("\"up\":true"), "{list}");
        Ok(())
    });
}

// === mail ===

fn send(at: SocketAddr, from: &str, subject: &str) -> Output {
    let url = format!("smtp://{at}/client.example.test");
    let mut command = Command::new("curl");
    command.args(["-sSv", "--max-time", "30", "--interface", from, "--mail-from", "ann@example.test"]);
    command.args(["--mail-rcpt", "bob@example.test", "--upload-file", "-", &url]);
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("curl runs");
    let mail = format!("From: ann@example.test\r\nSubject: {subject}\r\n\r\nHello.\r\n");
    child.stdin.take().expect("piped").write_all(mail.as_bytes()).expect("written");
    child.wait_with_output().expect("curl runs")
}

#[test]
fn mail_servers_see_who_their_clients_are() {
    if !peers::have(&["curl"]) || !python::have("aiosmtpd") {
        return;
    }
    let mut servers = [Server::start("smtp_peer.py"), Server::start("smtp_peer.py")];
    let [mx, submission] = [&servers[0], &servers[1]].map(|server| format!("127.0.0.1:{}", server.port));
    let config = example(
        "mail.yaml",
        &[
            ("0.0.0.0:25", "127.0.0.1:0".to_owned()),
            ("0.0.0.0:587", "127.0.0.1:0".to_owned()),
            ("192.0.2.51:25", mx.clone()),
            (", \"192.0.2.52:25\"", String::new()),
            ("192.0.2.51:587", submission.clone()),
            (", \"192.0.2.52:587\"", String::new()),
            ("connections_per_client: 20", "connections_per_client: 2".to_owned()),
        ],
    );
    let cluster = Cluster::start(1, &config);
    let node = &cluster.nodes[0];
    // Their checks come with a header of their own, without which the servers answer nobody.
    all_up(node);
    for (listener, server) in ["smtp", "submission"].iter().zip(&mut servers) {
        let at = node.listener(listener).expect("bound");
        for client in ["127.0.0.1", "127.0.0.9"] {
            let sent = send(at, client, listener);
            assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stderr));
            let got = server.line();
            let fields: Vec<_> = got.split('|').collect();
            assert_eq!(fields[1..], [&at.to_string(), "ann@example.test", "bob@example.test", listener]);
            assert!(fields[0].starts_with(&format!("{client}:")), "{got}");
        }
    }

    // A third connection of a client is refused, and another client's is not.
    let at = node.listener("smtp").expect("bound");
    let greeted = |stream: &std::net::TcpStream| {
        stream.set_read_timeout(Some(SOON)).expect("a time-out");
        std::io::Read::read(&mut &*stream, &mut [0; 4]).is_ok_and(|n| n > 0)
    };
    let held = [0, 1].map(|_| std::net::TcpStream::connect(at).expect("connects"));
    assert!(held.iter().all(greeted));
    assert!(!std::net::TcpStream::connect(at).is_ok_and(|third| greeted(&third)));
    assert!(send(at, "127.0.0.9", "another").status.success());
    drop(held);
    eventually(SOON, "there is room again", || {
        ensure!(send(at, "127.0.0.1", "again").status.success());
        Ok(())
    });
}

// === SSH ===

/// An sshd with host keys of its own that lets one key in.
struct Sshd {
    child: Child,
    address: SocketAddr,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keygen(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path).output();
    assert!(made.expect("ssh-keygen runs").status.success());
    path
}

impl Sshd {
    /// `name` is in its banner of the version, which is the first that it says.
    fn start(dir: &TempDir, name: &str, client: &Path) -> Self {
        let path = |file: &str| dir.path().join(file).display().to_string();
        let host = keygen(dir.path(), &format!("host-{name}"));
        let authorized = path(&format!("authorized-{name}"));
        std::fs::copy(client.with_extension("pub"), &authorized).expect("copied");
        let address = free_address(Ipv4Addr::LOCALHOST.into());
        let config = format!(
            "ListenAddress {address}\nHostKey {}\nAuthorizedKeysFile {authorized}\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nPidFile none\nVersionAddendum {name}\n",
            host.display()
        );
        let file = path(&format!("sshd-{name}.conf"));
        std::fs::write(&file, config).expect("written");
        if rustix::process::geteuid().is_root() {
            // Where sshd shuts its children in; the package's service makes it at boot.
            std::fs::create_dir_all("/run/sshd").expect("root may");
            std::fs::set_permissions("/run/sshd", std::fs::Permissions::from_mode(0o755)).expect("root may");
        }
        let log = std::fs::File::create(path(&format!("sshd-{name}.log"))).expect("created");
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f", &file]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self { child: command.spawn().expect("sshd starts"), address }
    }
}

#[test]
fn a_login_by_ssh_stays_at_its_host_and_carries_what_is_sent() {
    if !peers::have(&["ssh", "ssh-keygen", "sshd"]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let key = keygen(dir.path(), "client");
    let hosts = ["one", "two"].map(|name| Sshd::start(&dir, name, &key));
    let config = example(
        "ssh.yaml",
        &[
            ("0.0.0.0:2222", "127.0.0.1:0".to_owned()),
            ("192.0.2.91:22", hosts[0].address.to_string()),
            ("192.0.2.92:22", hosts[1].address.to_string()),
        ],
    );
    let cluster = Cluster::start(1, &config);
    let node = &cluster.nodes[0];
    all_up(node);
    let at = node.listener("ssh").expect("bound");
    let known = dir.path().join("known_hosts");
    let login = |command: &str| {
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=20",
            "-o",
            "StrictHostKeyChecking=accept-new",
        ]);
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", known.display()));
        ssh.arg("-i").arg(&key).args(["-o", "IdentitiesOnly=yes", "-p", &at.port().to_string()]);
        ssh.args([&at.ip().to_string(), command]).stdin(Stdio::piped());
        ssh.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = ssh.spawn().expect("ssh runs");
        // More than fits into buffers; the other end counts once it has all.
        let sent = vec![7u8; 1 << 20];
        let mut stdin = child.stdin.take().expect("piped");
        let writer = std::thread::spawn(move || {
            let _ = stdin.write_all(&sent);
        });
        let output = child.wait_with_output().expect("ssh runs");
        writer.join().expect("written");
        output
    };
    let log =
        |name: &str| std::fs::read_to_string(dir.path().join(format!("sshd-{name}.log"))).unwrap_or_default();
    // The host key of the first login is the one that the later ones meet.
    for _ in 0..3 {
        let output = login("wc -c");
        let said = format!("{}; {}", String::from_utf8_lossy(&output.stderr), log("one") + &log("two"));
        assert!(output.status.success(), "{said}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "1048576", "{said}");
    }
    let accepted = ["one", "two"].map(|name| log(name).matches("Accepted publickey").count());
    assert!(accepted == [3, 0] || accepted == [0, 3], "{accepted:?}");
    drop(hosts);
}
