//! Certificates on real clusters: how they come in, that their keys are never seen again, how they are
//! replaced, and that a session that began on one node resumes on another.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, ensure};
use rustls_pki_types::pem::PemObject;
use trestle_tests::backend::HttpBackend;
use trestle_tests::cluster::SETTLE;
use trestle_tests::{Cluster, Node, eventually, http, peers, trestle};

/// A certificate that vouches for itself, and its key.
struct Pair {
    chain: String,
    key: String,
}

impl Pair {
    fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
        Self { chain: params.self_signed(&key).expect("a certificate").pem(), key: key.serialize_pem() }
    }

    /// Writes `NAME.pem` and `NAME.key`.
    fn write(&self, dir: &Path, name: &str) -> [PathBuf; 2] {
        let paths = ["pem", "key"].map(|kind| dir.join(format!("{name}.{kind}")));
        std::fs::write(&paths[0], &self.chain).expect("the test's folder is writable");
        std::fs::write(&paths[1], &self.key).expect("the test's folder is writable");
        paths
    }

    /// Parts of the key by which it is found, as text and as bytes.
    fn traces(&self) -> Vec<Vec<u8>> {
        let der = rustls_pki_types::PrivatePkcs8KeyDer::from_pem_slice(self.key.as_bytes()).expect("a key");
        // Before the public key, which is at the end and no secret.
        let secret = der.secret_pkcs8_der()[40..60].to_vec();
        let line = self.key.lines().nth(1).expect("a line");
        vec![secret, line.as_bytes()[44..60].to_vec(), line.as_bytes()[20..40].to_vec()]
    }
}

fn config(backend: &HttpBackend) -> String {
    format!(
        "listeners:\n  web:\n    bind: \"127.0.0.1:0\"\n    protocol: https\n    pool: app\n    tls: {{ certificates: [shop] }}\n\
         pools:\n  app: {{ members: [\"{}\"] }}\n\
         certificates:\n  shop:\n    chain_file: shop.pem\n    key_file: shop.key\n",
        backend.address
    )
}

/// `trestle ARGS` at this node; what it said on both outputs.
fn said(node: &Node, args: &[&str]) -> (bool, String) {
    both(node.cli(args).expect("it runs"))
}

fn validated(document: &str) -> (bool, String) {
    both(Command::new(trestle()).args(["validate", document]).output().expect("it runs"))
}

fn both(Output { status, stdout, stderr }: Output) -> (bool, String) {
    (status.success(), format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr)))
}

fn done(node: &Node, args: &[&str]) -> String {
    let (success, text) = said(node, args);
    assert!(success, "trestle {args:?}: {text}");
    text
}

fn refused(node: &Node, args: &[&str], expected: &[&str]) {
    let (success, text) = said(node, args);
    assert!(!success, "trestle {args:?} was taken: {text}");
    for part in expected {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

fn written(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("the test's folder is writable");
    path.to_str().expect("a plain name").to_owned()
}

fn openssl(address: SocketAddr, args: &[&str]) -> anyhow::Result<String> {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &address.to_string(), "-servername", "shop.example.com", "-ign_eof"])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("stdin")?;
    input.write_all(b"GET / HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n")?;
    drop(input);
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("HTTP/1.1 200"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    Ok(text)
}

/// Waits until every node shows this certificate.
fn all_show(cluster: &Cluster, pair: &Pair) {
    let leaf: String = pair.chain.lines().filter(|line| !line.starts_with("-----")).collect();
    for node in &cluster.nodes {
        eventually(SETTLE, &format!("{} shows the certificate", node.name), || {
            let text = openssl(node.listener("web")?, &[])?;
            let shown: String = text.lines().collect();
            ensure!(shown.contains(&leaf), "another: {text}");
            Ok(())
        });
    }
}

fn files_below(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a folder").flatten() {
        match entry.path() {
            path if path.is_dir() => files_below(&path, found),
            path => found.push(path),
        }
    }
}

/// Neither on disk, nor in a log, nor in anything that a node says, is a key to be found.
fn assert_nowhere(cluster: &Cluster, pair: &Pair) {
    let traces = pair.traces();
    let has = |bytes: &[u8]| {
        traces.iter().any(|trace| bytes.windows(trace.len()).any(|window| window == trace.as_slice()))
    };
    assert!(has(pair.key.as_bytes()), "the search finds it where it is");
    for node in &cluster.nodes {
        let mut files = vec![node.log_path()];
        files_below(&node.data_dir(), &mut files);
        assert!(files.iter().any(|path| path.ends_with("raft.redb")), "{files:?}");
        for path in files {
            assert!(!has(&std::fs::read(&path).unwrap_or_default()), "a key is in {}", path.display());
        }
        let admin = node.admin().expect("it runs");
        let paths = [
            "/v1/config",
            "/v1/config/history",
            "/v1/config/diff?from=0",
            "/v1/certificates",
            "/v1/status",
            "/metrics",
        ];
        for path in paths {
            let answer = http::get(admin, "localhost", path).expect("an answer");
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            assert!(!has(&answer.body) && !answer.text().contains("PRIVATE KEY"), "a key is in {path}");
        }
    }
}

#[test]
fn a_certificate_comes_with_the_config_its_key_is_never_seen_again_and_it_can_be_replaced() {
    if !peers::have(&["openssl"]) {
        return;
    }
    let backend = HttpBackend::start("app");
    let mut cluster = Cluster::start(3, "pools: {}\n");
    let dir = cluster.dir().to_owned();
    let (first, second) = (Pair::new("shop.example.com"), Pair::new("shop.example.com"));
    first.write(&dir, "shop");
    let document = written(&dir, "web.yaml", &config(&backend));

    assert_eq!(validated(&document), (true, format!("{document}: valid\n")));
    let dry = done(&cluster.nodes[1], &["apply", "-f", &document, "--dry-run"]);
    assert!(dry.contains("stored:") && dry.contains("revision 1 stays"), "{dry}");
    done(&cluster.nodes[1], &["apply", "-f", &document]);
    all_show(&cluster, &first);

    let got = done(&cluster.nodes[2], &["get"]);
    assert!(got.contains("key: \"stored:") && !got.contains("shop.key"), "{got}");
    let again = written(&dir, "again.yaml", &got);
    let same = done(&cluster.nodes[2], &["apply", "-f", &again]);
    assert!(same.contains("unchanged: revision 2"), "{same}");
    let same = done(&cluster.nodes[0], &["apply", "-f", &document]);
    assert!(same.contains("unchanged: revision 2"), "digests follow from what is in the files: {same}");
    assert!(done(&cluster.nodes[0], &["diff", "-f", &document]).is_empty());
    assert_nowhere(&cluster, &first);

    let [chain, key] = second.write(&dir, "renewed");
    let (chain, key) = (chain.to_str().expect("a plain name"), key.to_str().expect("a plain name"));
    let set = ["certificate", "set", "shop", "--chain", chain, "--key", key, "-m", "renewed"];
    assert!(done(&cluster.nodes[2], &set).contains("revision 3"));
    all_show(&cluster, &second);
    assert!(done(&cluster.nodes[0], &["history"]).contains("renewed"));
    let listed = cluster.nodes[0].json(&["certificate", "list"]).expect("a list");
    let row = &listed["certificates"][0];
    assert_eq!(
        (row["certificate"].as_str(), row["names"][0].as_str()),
        (Some("shop"), Some("shop.example.com"))
    );
    assert_eq!(row["listeners"][0], "web");
    assert!(row["days_left"].as_i64() > Some(30), "{row}");

    done(&cluster.nodes[1], &["rollback", "2"]);
    cluster.join("n4").wait_ready();
    all_show(&cluster, &first);
    for node in &mut cluster.nodes {
        node.kill9();
        node.restart();
    }
    cluster.nodes.iter().for_each(Node::wait_ready);
    all_show(&cluster, &first);
    assert_nowhere(&cluster, &first);
    assert_nowhere(&cluster, &second);
}

#[test]
fn what_can_t_be_used_is_refused_with_its_place_before_anything_changes() {
    let backend = HttpBackend::start("app");
    let cluster = Cluster::start(1, "pools: {}\n");
    let (node, dir) = (&cluster.nodes[0], cluster.dir());
    let document = written(dir, "web.yaml", &config(&backend));
    let apply = ["apply", "-f", &document];
    refused(
        node,
        &apply,
        &["web.yaml:11:17: certificates.shop.chain_file", "web.yaml:12:15", "can't read `shop.key`"],
    );

    let (pair, other) = (Pair::new("shop.example.com"), Pair::new("shop.example.com"));
    pair.write(dir, "shop");
    let [_, other_key] = other.write(dir, "other");
    std::fs::copy(&other_key, dir.join("shop.key")).expect("a copy");
    let mismatch = "web.yaml:12:15: certificates.shop.key_file: the private key does not belong";
    refused(node, &apply, &[mismatch, "nothing was changed"]);
    let (valid, told) = validated(&document);
    assert!(!valid && told.contains(mismatch), "{told}");
    pair.write(dir, "shop");

    let unknown = "pools: {}\ncertificates:\n  shop:\n    chain_file: shop.pem\n    key: \"stored:"
        .to_owned()
        + &"ab".repeat(32)
        + "\"\n";
    let unknown = written(dir, "unknown.yaml", &unknown);
    refused(
        node,
        &["apply", "-f", &unknown],
        &["unknown.yaml:5:10: certificates.shop.key", "is not stored in this cluster"],
    );

    // Without `trestle apply`, the node can't know what is in a file; its own are nobody's business.
    let admin = node.admin().expect("it runs");
    let put = |headers: &[(&str, &str)], body: &str| {
        http::request(admin, "PUT", "localhost", "/v1/config?source=web.yaml", headers, body.as_bytes())
    };
    let answer = put(&[], &config(&backend)).expect("an answer");
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(
        answer.text().contains("trestle apply") && answer.text().contains("\"line\":12"),
        "{}",
        answer.text()
    );
    let parcel = [("content-type", "application/vnd.trestle.draft+json")];
    let answer =
        put(&parcel, "{\"document\": \"pools: {}\", \"files\": {\"a\": \"%%%\"}}").expect("an answer");
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("no base64"), "{}", answer.text());

    let chain = dir.join("shop.pem");
    let set = ["certificate", "set", "shop", "--chain", chain.to_str().expect("plain"), "--key"];
    let wrong = [&set[..], &[other_key.to_str().expect("plain")]].concat();
    refused(node, &wrong, &["certificates.shop.key_file", "does not belong", "nothing was changed"]);
    let key = dir.join("shop.key");
    let late = [&set[..], &[key.to_str().expect("plain"), "--if-revision", "7"]].concat();
    refused(node, &late, &["expected revision 7"]);
    assert_eq!(node.status().expect("it runs")["revision"], 1);

    // Keys may stand in the document, and leave it on the way in.
    let inline = serde_json::json!({ "certificates": { "shop": { "chain": pair.chain, "key": pair.key } } });
    assert_eq!(put(&[], &inline.to_string()).expect("an answer").status, 200);
    assert!(!done(node, &["get"]).contains("PRIVATE"), "{}", done(node, &["get"]));
    assert_nowhere(&cluster, &pair);
    assert_nowhere(&cluster, &other);
}

#[test]
fn a_session_that_began_on_one_node_resumes_on_another_also_after_a_rotation() {
    if !peers::have(&["openssl"]) {
        return;
    }
    let backend = HttpBackend::start("app");
    let cluster = Cluster::start(3, "pools: {}\n");
    let dir = cluster.dir();
    Pair::new("shop.example.com").write(dir, "shop");
    let rotating = |time: &str| {
        let text = format!("{}cluster: {{ ticket_rotation: {time} }}\n", config(&backend));
        done(&cluster.nodes[0], &["apply", "-f", &written(dir, "web.yaml", &text)]);
    };
    rotating("1h");
    cluster.wait_revision(2);
    let session = dir.join("session");
    let session = session.to_str().expect("a plain name");
    let begin = |version: &str| -> anyhow::Result<()> {
        let text = openssl(cluster.nodes[0].listener("web")?, &[version, "-sess_out", session])?;
        ensure!(text.contains("New, TLSv"), "{text}");
        Ok(())
    };
    let resume = |node: &Node, version: &str| -> anyhow::Result<()> {
        let text = openssl(node.listener("web")?, &[version, "-sess_in", session])?;
        ensure!(text.contains("Reused, TLSv"), "a full handshake: {text}");
        Ok(())
    };
    for version in ["-tls1_2", "-tls1_3"] {
        eventually(SETTLE, "a session resumes elsewhere", || {
            begin(version)?;
            resume(&cluster.nodes[1], version)
        });
        resume(&cluster.nodes[2], version).expect("every node has the keys");
    }

    let keys_made = || {
        let made = |node: &Node| node.log().matches("new key for session tickets").count();
        cluster.nodes.iter().map(made).sum::<usize>()
    };
    assert_eq!(keys_made(), 1);
    // The older key opens tickets for two more periods.
    rotating("10s");
    eventually(SETTLE, "a new key is made", || {
        ensure!(keys_made() == 2, "{} by now", keys_made());
        Ok(())
    });
    resume(&cluster.nodes[2], "-tls1_3").expect("a ticket outlives the key that sealed it");
}

#[test]
fn a_first_config_takes_its_files_along_and_one_that_runs_out_is_told_of() {
    let backend = HttpBackend::start("app");
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(vec!["shop.example.com".to_owned()]).expect("a name");
    (params.not_before, params.not_after) =
        (rcgen::date_time_ymd(2001, 1, 1), rcgen::date_time_ymd(2002, 1, 1));
    let pair =
        Pair { chain: params.self_signed(&key).expect("a certificate").pem(), key: key.serialize_pem() };
    pair.write(dir.path(), "shop");
    let document = written(dir.path(), "web.yaml", &config(&backend));
    let node = Node::start("n1", dir.path(), &["--bootstrap", "--config", &document]);
    node.wait_ready();
    let status = node.status().expect("it runs");
    assert!(
        status["warnings"].to_string().contains("certificate shop has run out"),
        "{}",
        status["warnings"]
    );
    assert!(done(&node, &["status"]).contains("has run out"));
    let metrics = http::get(node.admin().expect("it runs"), "localhost", "/metrics").expect("metrics").text();
    assert!(
        metrics.contains("trestle_certificate_not_after_seconds{certificate=\"shop\"} 1009843200\n"),
        "{metrics}"
    );
}

/// An authority of openssl's own kind, with a certificate for `shop.example.com`.
struct Papers<'a>(&'a Path);

impl Papers<'_> {
    fn issue(&self) {
        for args in [
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=authority -days 2",
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout shop.key -out shop.csr -subj /CN=shop.example.com \
             -addext subjectAltName=DNS:shop.example.com",
            "x509 -req -in shop.csr -CA ca.pem -CAkey ca.key -set_serial 4711 -out shop.pem -days 2 -copy_extensions copy",
            "ocsp -issuer ca.pem -cert shop.pem -reqout shop.ask -no_nonce",
        ] {
            self.openssl(args);
        }
    }

    /// What the authority says of the certificate, in a file.
    fn say(&self, status: &str, revoked: &str, name: &str) -> String {
        // Serial 4711.
        let index = format!("{status}\t991231235959Z\t{revoked}\t1267\tunknown\t/CN=shop.example.com\n");
        std::fs::write(self.0.join("index.txt"), index).expect("the test's folder is writable");
        self.openssl(&format!(
            "ocsp -index index.txt -CA ca.pem -rsigner ca.pem -rkey ca.key -reqin shop.ask -respout {name} -ndays 1"
        ));
        self.0.join(name).to_str().expect("a plain name").to_owned()
    }

    /// What the authority says of another certificate, of serial 4712.
    fn say_of_other(&self, name: &str) -> String {
        let index = "V\t991231235959Z\t\t1268\tunknown\t/CN=other.example.com\n";
        std::fs::write(self.0.join("index.txt"), index).expect("the test's folder is writable");
        self.openssl("ocsp -issuer ca.pem -serial 4712 -reqout other.ask -no_nonce");
        self.openssl(&format!(
            "ocsp -index index.txt -CA ca.pem -rsigner ca.pem -rkey ca.key -reqin other.ask -respout {name} -ndays 1"
        ));
        self.0.join(name).to_str().expect("a plain name").to_owned()
    }

    fn openssl(&self, args: &str) {
        let output = Command::new("openssl")
            .args(args.split_whitespace())
            .current_dir(self.0)
            .output()
            .expect("it runs");
        assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn an_ocsp_response_is_stapled_and_replaced_with_its_certificate() {
    if !peers::have(&["openssl"]) {
        return;
    }
    let backend = HttpBackend::start("app");
    let cluster = Cluster::start(1, "pools: {}\n");
    let (node, dir) = (&cluster.nodes[0], cluster.dir());
    let papers = Papers(dir);
    papers.issue();
    papers.say("V", "", "good.ocsp");
    let config = config(&backend) + "    ocsp_file: good.ocsp\n";
    let document = written(dir, "web.yaml", &config);
    done(node, &["apply", "-f", &document]);
    let staple = |expected: &str| {
        for version in ["-tls1_2", "-tls1_3"] {
            eventually(SETTLE, &format!("the staple with {version} has {expected:?}"), || {
                let text = openssl(node.listener("web")?, &[version, "-status"])?;
                ensure!(text.contains(expected), "{text}");
                Ok(())
            });
        }
    };
    staple("OCSP Response Status: successful (0x0)");
    staple("Cert Status: good");

    let revoked = papers.say("R", "261101000000Z", "revoked.ocsp");
    let file = |name: &str| dir.join(name).to_str().expect("a plain name").to_owned();
    let (chain, key) = (file("shop.pem"), file("shop.key"));
    let set = ["certificate", "set", "shop", "--chain", &chain, "--key", &key];
    done(node, &[&set[..], &["--ocsp", &revoked]].concat());
    staple("Cert Status: revoked");

    let page = written(dir, "page.ocsp", "<html>");
    refused(
        node,
        &[&set[..], &["--ocsp", &page]].concat(),
        &["certificates.shop.ocsp_file: this is no OCSP response", "nothing was changed"],
    );
    let other = papers.say_of_other("other.ocsp");
    refused(
        node,
        &[&set[..], &["--ocsp", &other]].concat(),
        &["certificates.shop.ocsp_file: the OCSP response does not belong", "serial 1268", "has 1267"],
    );
    let foreign = written(dir, "foreign.yaml", &config.replace("good.ocsp", "other.ocsp"));
    refused(
        node,
        &["apply", "-f", &foreign],
        &["foreign.yaml:13:16: certificates.shop.ocsp_file", "does not belong to the certificate"],
    );
    let bad = written(dir, "bad.yaml", &config.replace("good.ocsp", "page.ocsp"));
    refused(
        node,
        &["apply", "-f", &bad],
        &["bad.yaml:13:16: certificates.shop.ocsp_file", "DER is expected"],
    );
    staple("Cert Status: revoked");
    done(node, &set);
    staple("OCSP response: no response sent");
    done(node, &["apply", "-f", &document]);
    staple("Cert Status: good");
}

#[test]
fn each_reason_why_clients_fail_is_told_whatever_others_do() {
    if !peers::have(&["openssl"]) {
        return;
    }
    let backend = HttpBackend::start("app");
    let cluster = Cluster::start(1, "pools: {}\n");
    let (node, dir) = (&cluster.nodes[0], cluster.dir());
    Pair::new("shop.example.com").write(dir, "shop");
    let text = config(&backend).replace("[shop] }", "[shop], unknown_name: reject }");
    done(node, &["apply", "-f", &written(dir, "web.yaml", &text)]);
    let address = eventually(SETTLE, "it serves", || {
        let address = node.listener("web")?;
        openssl(address, &[])?;
        Ok(address)
    });
    for failing in [["-servername", "other.test"], ["-cipher", "AES128-SHA"]] {
        for _ in 0..5 {
            openssl(address, &[&["-tls1_2"], failing.as_slice()].concat()).expect_err("it is refused");
        }
    }
    let told = |reason: &str| {
        let log = node.log();
        let lines = log.lines().filter(|line| line.contains("TLS handshake failed"));
        lines.filter(|line| line.contains(&format!("reason=\"{reason}\""))).count()
    };
    eventually(SETTLE, "both are told, and not each time", || {
        let told = [told("unknown_name"), told("incompatible")];
        ensure!(told == [1, 1], "{told:?}");
        Ok(())
    });
}
