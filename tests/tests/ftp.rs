//! `examples/ftp.yaml` with its addresses mapped, and beside it other families: curl on one side, pyftpdlib on
//! the other, bytes checked.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::ensure;
use tempfile::TempDir;
use trestle_tests::pki::Authority;
use trestle_tests::python::{self, Server};
use trestle_tests::{Cluster, eventually, example, free_address, http, peers, series};

const SOON: Duration = Duration::from_secs(20);

fn have_peers() -> bool {
    peers::have(&["curl"]) && python::have("pyftpdlib")
}

/// A server with a folder of its own.
struct Files {
    _server: Server,
    address: SocketAddr,
    dir: TempDir,
}

impl Files {
    fn start(ip: &str, name: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("name"), name).expect("written");
        std::fs::write(dir.path().join("large"), large(0)).expect("written");
        let folder = dir.path().to_str().expect("a plain name");
        let server = Server::start_with("ftp_peer.py", &[ip, folder, name]);
        let address = SocketAddr::new(ip.parse().expect("an address"), server.port);
        Self { _server: server, address, dir }
    }

    fn read(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join(file)).unwrap_or_default()
    }
}

/// 3 MB that are alike nowhere.
fn large(seed: u32) -> Vec<u8> {
    let mut x = 0x2545_f491u32 ^ seed;
    let next = |_| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x as u8
    };
    (0..3_000_000).map(next).collect()
}

/// What curl got and what it said of it; without success, what it said.
fn curl(listener: SocketAddr, path: &str, args: &[&str]) -> Result<(Vec<u8>, String), String> {
    let url = format!("ftp://{listener}/{path}");
    let output = Command::new("curl")
        .args(["-sSv", "--max-time", "30", "-u", "user:secret", "--no-ftp-skip-pasv-ip"])
        .args(args)
        .arg(&url)
        .stdin(Stdio::null())
        .output()
        .expect("curl runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok((output.stdout, said)) } else { Err(said) }
}

fn metric(admin: SocketAddr, line: &str) -> anyhow::Result<u64> {
    let text = http::get(admin, "localhost", "/metrics")?.text();
    Ok(series(&text, line).unwrap_or(0.0) as u64)
}

/// Ways of asking for data that a client has, with what each says on the wire.
const WAYS: &[(&str, &[&str], &str)] = &[
    ("extended passive", &[], "> EPSV"),
    ("passive", &["--disable-epsv"], "> PASV"),
    ("extended active", &["-P", "-"], "> EPRT"),
    ("active", &["-P", "-", "--disable-eprt"], "> PORT"),
];

#[test]
fn the_example_serves_files_passive_and_active() {
    if !have_peers() {
        return;
    }
    let servers = ["one", "two"].map(|name| Files::start("127.0.0.1", name));
    let mut config = example(
        "ftp.yaml",
        &[
            ("0.0.0.0:21", "127.0.0.1:0".to_owned()),
            ("192.0.2.81:21", servers[0].address.to_string()),
            ("192.0.2.82:21", servers[1].address.to_string()),
        ],
    );
    let log = tempfile::tempdir().expect("a folder");
    let log = log.path().join("access.log");
    config.push_str(&format!("\naccess_log: {{ to: \"file:{}\" }}\n", log.display()));
    let cluster = Cluster::start(1, &config);
    let node = &cluster.nodes[0];
    let ftp = node.listener("ftp").expect("bound");
    eventually(SOON, "the servers are up", || {
        let list = node.json(&["member", "list"])?.to_string();
        ensure!(!list.contains("\"up\":false"), "{list}");
        Ok(())
    });

    let (first, _) = curl(ftp, "name", &[]).expect("a file");
    let own = servers.iter().find(|server| server.read("name") == first).expect("one of them");
    let upload = own.dir.path().join("upload");
    let source = own.dir.path().join("source");
    for (seed, (way, args, command)) in (1..).zip(WAYS) {
        let (got, said) = curl(ftp, "large", args).unwrap_or_else(|said| panic!("{way}: {said}"));
        assert!(got == large(0), "{way}: {} bytes; {said}", got.len());
        assert!(said.contains(command), "{way}: {said}");
        assert!(!said.contains("203,0,113,99"), "an address of the server has got through: {said}");

        std::fs::write(&source, large(seed)).expect("written");
        let args = [*args, &["-T", source.to_str().expect("a plain name")]].concat();
        curl(ftp, "upload", &args).unwrap_or_else(|said| panic!("{way}: {said}"));
        assert!(std::fs::read(&upload).expect("uploaded") == large(seed), "{way}");
    }
    // Two files and a listing over one control connection, each with a data connection of its own.
    let [name, list] = ["name", ""].map(|path| format!("ftp://{ftp}/{path}"));
    let (got, said) = curl(ftp, "large", &["--disable-epsv", &name, &list]).expect("files");
    assert_eq!((said.matches("> PASV").count(), said.matches("> USER").count()), (3, 1), "{said}");
    let listing = got.strip_prefix(&first[..]).and_then(|rest| rest.strip_suffix(&large(0)[..]));
    let listing = listing.map(String::from_utf8_lossy).unwrap_or_default();
    assert!(listing.contains("upload") && listing.contains("3000000"), "{listing:?}");
    // A file that is not there is an error of the server, and the connection goes on.
    let none = format!("ftp://{ftp}/none");
    let said = curl(ftp, "none", &[&name, &none]).expect_err("there is no such file");
    assert!(said.contains("< 550 ") && said.matches("< 226 ").count() == 1, "{said}");

    let admin = node.admin().expect("it runs");
    eventually(SOON, "all ports are closed and all connections counted", || {
        let waiting = metric(admin, "trestle_listener_ftp_ports{listener=\"ftp\"}")?;
        let open = metric(admin, "trestle_listener_open{listener=\"ftp\"}")?;
        ensure!((waiting, open) == (0, 0), "{waiting} ports wait, {open} connections are open");
        let sent = metric(admin, "trestle_listener_sent_bytes_total{listener=\"ftp\"}")?;
        let received = metric(admin, "trestle_listener_received_bytes_total{listener=\"ftp\"}")?;
        ensure!(sent > 5 * 3_000_000 && received > 4 * 3_000_000, "{sent} sent, {received} received");
        Ok(())
    });
    eventually(SOON, "each transfer is in the access log, with its control connection's id", || {
        let text = std::fs::read_to_string(&log)?;
        let lines: Vec<serde_json::Value> =
            text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let of_data: Vec<_> = lines.iter().filter(|line| line["ftp"].is_string()).collect();
        for (mode, bytes) in [
            ("passive", "bytes_out"),
            ("passive", "bytes_in"),
            ("active", "bytes_out"),
            ("active", "bytes_in"),
        ] {
            let whole = |line: &&&serde_json::Value| line["ftp"] == mode && line[bytes] == 3_000_000;
            let found = of_data.iter().filter(whole).count();
            ensure!(found >= 2, "{found} {mode} with 3 MB {bytes}: {text}");
        }
        for line in &of_data {
            let control =
                lines.iter().find(|of| of["ftp"].is_null() && of["connection_id"] == line["connection_id"]);
            ensure!(control.is_some_and(|of| of["member"] == line["member"]), "{line} of {control:?}");
        }
        Ok(())
    });
}

#[test]
fn clients_and_servers_of_different_families_find_one_another() {
    if !have_peers() {
        return;
    }
    let v4 = Files::start("127.0.0.1", "four");
    let v6 = Files::start("::1", "six");
    let listener = |bind: &str, pool: &str| {
        format!("{{ bind: \"{bind}\", protocol: tcp, pool: {pool}, ftp: {{ ports: \"30000-30999\" }} }}")
    };
    let config = format!(
        "listeners:\n  four-to-six: {}\n  six-to-four: {}\n  six-to-six: {}\n  both-to-four: {}\n\
         pools:\n  v4: {{ members: [\"{}\"] }}\n  v6: {{ members: [\"{}\"] }}\n",
        listener("127.0.0.1:0", "v6"),
        listener("[::1]:0", "v4"),
        listener("[::1]:0", "v6"),
        // Where clients of IPv4 have addresses of IPv6.
        listener(":0", "v4"),
        v4.address,
        v6.address,
    );
    let cluster = Cluster::start(1, &config);
    let node = &cluster.nodes[0];
    for (name, ip, server) in [
        ("four-to-six", "127.0.0.1", &v6),
        ("six-to-four", "::1", &v4),
        ("six-to-six", "::1", &v6),
        ("both-to-four", "127.0.0.1", &v4),
        ("both-to-four", "::1", &v4),
    ] {
        let port = node.listener(name).expect("bound").port();
        let at = SocketAddr::new(ip.parse().expect("an address"), port);
        let source = server.dir.path().join("source");
        for (seed, (way, args, command)) in (1..).zip(WAYS) {
            let what = format!("{name} by {ip}, {way}");
            let (got, said) = curl(at, "large", args).unwrap_or_else(|said| panic!("{what}: {said}"));
            assert!(got == large(0), "{what}: {} bytes", got.len());
            // Over IPv6 curl knows none but the extended ones.
            assert!(at.is_ipv6() || said.contains(command), "{what}: {said}");
            std::fs::write(&source, large(seed)).expect("written");
            let args = [*args, &["-T", source.to_str().expect("a plain name")]].concat();
            curl(at, "upload", &args).unwrap_or_else(|said| panic!("{what}: {said}"));
            assert!(server.read("upload") == large(seed), "{what}");
        }
    }
}

/// A client by hand.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn login(at: SocketAddr) -> Self {
        let stream = TcpStream::connect(at).expect("connects");
        stream.set_read_timeout(Some(SOON)).expect("a time-out");
        let mut client = Self { stream: BufReader::new(stream) };
        client.reply();
        assert!(client.ask("USER user").starts_with("331"));
        assert!(client.ask("PASS secret").starts_with("230"));
        client
    }

    fn ask(&mut self, command: &str) -> String {
        self.stream.get_mut().write_all(format!("{command}\r\n").as_bytes()).expect("written");
        self.reply()
    }

    fn reply(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a reply");
        line
    }

    /// Where the reply to `PASV` says that data is.
    fn passive(&mut self) -> SocketAddr {
        let reply = self.ask("PASV");
        let numbers = reply.split(['(', ')']).nth(1).unwrap_or_else(|| panic!("{reply}"));
        let numbers: Vec<u8> = numbers.split(',').map(|n| n.parse().expect("a number")).collect();
        let [a, b, c, d, high, low] = numbers[..] else { panic!("{reply}") };
        SocketAddr::new(IpAddr::from([a, b, c, d]), u16::from_be_bytes([high, low]))
    }
}

/// The data connection is there, or awaited.
fn begins(reply: &str) -> bool {
    reply.starts_with("125") || reply.starts_with("150")
}

#[test]
fn nobody_is_made_to_connect_elsewhere_and_nobody_takes_anothers_data() {
    if !have_peers() {
        return;
    }
    let server = Files::start("127.0.0.1", "one");
    let config = format!(
        "listeners: {{ ftp: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: p, ftp: {{ ports: \"30000-30001\" }} }} }}\n\
         pools: {{ p: {{ members: [\"{}\"] }} }}\n",
        server.address
    );
    let cluster = Cluster::start(1, &config);
    let node = &cluster.nodes[0];
    let ftp = node.listener("ftp").expect("bound");
    let mut client = Client::login(ftp);

    // A bounce (RFC 2577): to somebody else, to a service, to us.
    let victim = TcpListener::bind("127.0.0.2:0").expect("bind");
    victim.set_nonblocking(true).expect("no waiting");
    let port = victim.local_addr().expect("bound").port().to_be_bytes();
    for command in [
        format!("PORT 127,0,0,2,{},{}", port[0], port[1]),
        format!("EPRT |1|127.0.0.2|{}|", u16::from_be_bytes(port)),
        "PORT 127,0,0,1,0,25".to_owned(),
    ] {
        let reply = client.ask(&command);
        assert!(reply.starts_with("504 Your own address alone"), "{command}: {reply}");
    }
    assert!(victim.accept().is_err(), "nobody was connected to it");

    // A port that is awaited lets its client in, and nobody else.
    let at = client.passive();
    assert_eq!(at.ip(), IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert!((30_000..=30_001).contains(&at.port()), "{at}");
    let thief = Command::new("curl")
        .args(["-sS", "--max-time", "10", "--interface", "127.0.0.2", &format!("telnet://{at}")])
        .stdin(Stdio::null())
        .output()
        .expect("curl runs");
    assert!(thief.stdout.is_empty(), "{thief:?}");
    let data = TcpStream::connect(at).expect("the client itself");
    assert!(begins(&client.ask("RETR name")));
    let mut got = String::new();
    std::io::Read::read_to_string(&mut &data, &mut got).expect("in order");
    assert_eq!(got, "one");
    assert!(client.reply().starts_with("226"));

    // Two ports, three clients that wait.
    let mut others = [Client::login(ftp), Client::login(ftp)];
    let held = others.each_mut().map(Client::passive);
    assert_ne!(held[0], held[1]);
    let reply = client.ask("PASV");
    assert!(reply.starts_with("425 No port is free"), "{reply}");
    let reply = client.ask("NOOP");
    assert!(reply.starts_with("200"), "and all goes on: {reply}");
    drop(others);
    eventually(SOON, "their ports come back", || {
        let reply = client.ask("PASV");
        ensure!(reply.starts_with("227"), "{reply}");
        Ok(())
    });
    let admin = node.admin().expect("it runs");
    for (reason, least) in [("ftp_foreign", 4), ("ftp_no_port", 1)] {
        let line = format!("trestle_listener_ended_total{{listener=\"ftp\",reason=\"{reason}\"}}");
        let counted = metric(admin, &line).expect("metrics");
        assert!(counted >= least, "{reason}: {counted}");
    }
    let log = node.log();
    assert!(log.contains("data was asked for at an address that is not the client's"), "{log}");
    assert!(log.contains("no port for a data connection") && log.contains("30000-30001"), "{log}");
}

/// A vsftpd that grants `AUTH TLS`, and awaits data at ports of its own.
struct Vsftpd {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Vsftpd {
    fn start(ip: &str, (first, last): (u16, u16)) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let [chain, key] = Authority::new("ca").issue(dir.path(), "ftp", &["ftp.example.test"]);
        let files = dir.path().join("files");
        std::fs::create_dir(&files).expect("made");
        std::fs::write(files.join("name"), "one").expect("written");
        std::fs::write(files.join("large"), large(0)).expect("written");
        let address = free_address(ip.parse().expect("an address"));
        let (files, chain, key) = (files.display(), chain.display(), key.display());
        let config = format!(
            "listen=YES\nlisten_address={ip}\nlisten_port={}\nbackground=NO\nrun_as_launching_user=YES\n\
             seccomp_sandbox=NO\nsecure_chroot_dir={files}\nanonymous_enable=YES\nlocal_enable=NO\nanon_root={files}\n\
             no_anon_password=YES\nssl_enable=YES\nallow_anon_ssl=YES\nforce_anon_logins_ssl=NO\n\
             force_anon_data_ssl=NO\nrequire_ssl_reuse=NO\nrsa_cert_file={chain}\nrsa_private_key_file={key}\n\
             pasv_min_port={first}\npasv_max_port={last}\n",
            address.port()
        );
        let file = dir.path().join("vsftpd.conf");
        std::fs::write(&file, config).expect("written");
        let mut command = Command::new("/usr/sbin/vsftpd");
        command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self { child: command.spawn().expect("vsftpd starts"), address, _dir: dir };
        eventually(SOON, "vsftpd answers", || Ok(TcpStream::connect(address)?));
        server
    }
}

impl Drop for Vsftpd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn after_auth_tls_the_connection_is_the_servers_alone_and_it_can_be_refused() {
    if !peers::have(&["curl", "vsftpd"]) {
        return;
    }
    let server = Vsftpd::start("127.0.0.3", (31_000, 31_019));
    let listener = |auth: &str| {
        format!(
            "{{ bind: \"127.0.0.1:0\", protocol: tcp, pool: p, ftp: {{ ports: \"30000-30999\"{auth} }} }}"
        )
    };
    let config = format!(
        "listeners:\n  passes: {}\n  refuses: {}\n  \
           mapped: {{ bind: \"127.0.0.2:0\", protocol: tcp, pool: p }}\n  \
           data: {{ bind: \"127.0.0.2:31000-31019\", protocol: tcp, pool: p }}\n\
         pools: {{ p: {{ members: [\"{}\"], balance: maglev }} }}\n",
        listener(""),
        listener(", auth: refuse"),
        server.address
    );
    let cluster = Cluster::start(1, &config);
    let node = &cluster.nodes[0];
    let (passes, refuses) =
        (node.listener("passes").expect("bound"), node.listener("refuses").expect("bound"));
    let anonymous = ["-u", "anonymous:"];

    // Who does not ask for TLS is served as ever; who tries it and is refused goes on without.
    for (at, args) in [(passes, &[][..]), (refuses, &[]), (refuses, &["--ssl", "-k"])] {
        let args = [&anonymous, args].concat();
        let (got, said) = curl(at, "name", &args).unwrap_or_else(|said| panic!("{args:?}: {said}"));
        assert_eq!(got, b"one");
        assert_eq!(
            said.contains("534 No security mechanism is offered here."),
            args.contains(&"--ssl"),
            "{said}"
        );
    }
    for (way, args, _) in WAYS {
        let (got, _) = curl(passes, "large", &[&anonymous, *args].concat())
            .unwrap_or_else(|said| panic!("{way}: {said}"));
        assert!(got == large(0), "{way}");
    }
    let secure = [&anonymous[..], &["--ssl-reqd", "-k"]].concat();
    let said = curl(refuses, "name", &secure).expect_err("it wants TLS");
    assert!(said.contains("534"), "{said}");

    // Where it is passed on, commands work, and data goes where the server says: to its port at our address, or
    // to its own address, past us.
    let to_us = [&secure[..], &["--ftp-skip-pasv-ip"]].concat();
    let said = curl(passes, "name", &to_us).expect_err("no data");
    assert!(said.contains("< 234 ") && said.contains("< 230 ") && said.contains("< 229 "), "{said}");
    let (got, said) = curl(passes, "name", &secure).unwrap_or_else(|said| panic!("{said}"));
    assert!(got == b"one" && said.contains("Trying 127.0.0.3:310"), "{said}");
    let (_, said) = curl(passes, "", &[&secure[..], &["--head"]].concat()).expect("no data is needed");
    assert!(said.contains("< 230 "), "{said}");
    eventually(SOON, "it is said", || {
        let log = node.log();
        ensure!(
            log.contains("a control connection is encrypted from here on")
                && log.contains("ftp.auth: refuse")
        );
        Ok(())
    });

    // Unless its ports for data are there too, mapped one to one: docs/ftp.md.
    let mapped = node.listener("mapped").expect("bound");
    let (got, said) = curl(mapped, "large", &secure).unwrap_or_else(|said| panic!("{said}"));
    assert!(got == large(0) && said.contains("< 234 "), "{said}");
}

#[test]
fn a_listener_that_goes_takes_its_data_connections_with_it() {
    if !have_peers() {
        return;
    }
    let server = Files::start("127.0.0.1", "one");
    let config = |ftp: &str| {
        format!(
            "cluster: {{ drain: {{ deadline: 500ms }} }}\n\
             listeners:\n  other: {{ bind: \"127.0.0.1:0\", protocol: tcp, pool: p }}\n{ftp}\
             pools: {{ p: {{ members: [\"{}\"] }} }}\n",
            server.address
        )
    };
    let ftp = "  ftp: { bind: \"127.0.0.1:0\", protocol: tcp, pool: p, ftp: { ports: \"30000-30999\" } }\n";
    let cluster = Cluster::start(1, &config(ftp));
    let node = &cluster.nodes[0];
    let mut client = Client::login(node.listener("ftp").expect("bound"));
    let at = client.passive();
    let data = TcpStream::connect(at).expect("connects");
    data.set_read_timeout(Some(SOON)).expect("a time-out");
    assert!(begins(&client.ask("STOR upload")));
    (&data).write_all(b"half").expect("written");
    let waiting = Client::login(node.listener("ftp").expect("bound")).passive();

    node.apply(&config("")).expect("applied");
    let end = std::io::Read::read(&mut &data, &mut [0; 16]).expect_err("no orderly end");
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset);
    eventually(SOON, "the port that waited is closed", || {
        ensure!(TcpStream::connect(waiting).is_err());
        Ok(())
    });
    eventually(SOON, "the server knows that it got half a file", || {
        ensure!(server.read("upload") == b"half");
        Ok(())
    });
}
