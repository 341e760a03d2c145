//! A network segment of our own: a switch, nodes, a backend and a client, each in a network namespace.
//!
//! Names are unique to the process and the segment; everything is deleted by name when it is dropped,
//! and what runs in a namespace is killed by its id before that.

mod direct;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tempfile::TempDir;

use crate::wait::until_known;
use crate::{eventually, trestle};

/// The VIP of [`Lan::config`].
pub const VIP: &str = "198.18.0.100";
/// Within this a cluster in namespaces forms or heals on a loaded two-core machine.
pub const SETTLE: Duration = Duration::from_secs(40);

static SEGMENTS: AtomicU32 = AtomicU32::new(0);

/// The segment, and a cluster on it.
pub struct Lan {
    prefix: String,
    namespaces: Vec<String>,
    pub nodes: Vec<LanNode>,
    backend: Option<Child>,
    /// Behind the nodes; see [`Lan::behind_nodes`].
    members: Vec<Child>,
    dir: TempDir,
}

/// A lease that no pause of a busy machine ends.
pub const LONG: &str = "8s";

/// A node in a namespace of its own, and its guard.
pub struct LanNode {
    pub name: String,
    pub namespace: String,
    pub address: String,
    dir: PathBuf,
    /// At each start.
    args: Vec<String>,
    /// At the first one.
    first: Vec<String>,
    child: Option<Child>,
    tracer: Mutex<Option<Tracer>>,
}

/// What holds a thread; the thread goes on when it ends.
struct Tracer(Child);

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a program to its end; what it said if it failed.
fn run(program: &str, args: &[&str]) -> anyhow::Result<Output> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

fn ip(args: &str) {
    let args: Vec<_> = args.split_whitespace().collect();
    run("ip", &args).expect("the network can be set up");
}

impl Lan {
    /// A cluster of `size` nodes whose one VIP `front` has the lease time `ttl`, with an HTTP listener
    /// at its port 80. Waits until everybody is a voter and the VIP has an owner.
    pub fn start(size: usize, ttl: &str) -> Lan {
        Self::with_config(size, &Self::config(&format!("addresses: [{VIP}/24], ttl: {ttl}"), ""))
    }

    /// The VIP as given, and more of the document.
    pub fn config(vip: &str, more: &str) -> String {
        format!(
            "vips: {{ front: {{ {vip} }} }}\n\
             listeners: {{ web: {{ bind: \"@front:80\", protocol: http }}, raw: {{ bind: \"@front:81\", protocol: tcp, pool: app }} }}\n\
             routes: {{ all: {{ rules: [{{ pools: [app] }}] }} }}\n\
             pools: {{ app: {{ members: [\"198.18.0.50:9000\"] }} }}\n\
             {more}\n"
        )
    }

    pub fn with_config(size: usize, config: &str) -> Lan {
        Self::with_options(size, config, &[])
    }

    /// As that, with more options for each node.
    pub fn with_options(size: usize, config: &str, options: &[&str]) -> Lan {
        let number = SEGMENTS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("tt{}x{number}", std::process::id() % 1_000_000);
        let dir = tempfile::tempdir().expect("a temporary folder can be made");
        // Nodes may be another user than the test is, with folders of their own in it.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).expect("it is ours");
        let mut lan = Lan {
            prefix,
            namespaces: Vec::new(),
            nodes: Vec::new(),
            backend: None,
            members: Vec::new(),
            dir,
        };
        let switch = lan.namespace("sw");
        ip(&format!("-n {switch} link add br0 type bridge"));
        ip(&format!("-n {switch} link set br0 up"));
        let backend = lan.host("be", "198.18.0.50");
        lan.host("cl", "198.18.0.200");
        let child = in_namespace(&backend, trestle())
            .args(["sample-backend", "--name", "app", "--listen", "198.18.0.50:9000"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        lan.backend = Some(child.expect("the backend starts"));
        let key = lan.dir.path().join("cluster.key");
        run(path(trestle()), &["keygen", "-o", path(&key)]).expect("keygen runs");
        let file = lan.dir.path().join("first.yaml");
        std::fs::write(&file, config).expect("the test's folder is writable");
        for n in 1..=size {
            let how: &[&str] = if n == 1 {
                &["--bootstrap", "--config", path(&file)]
            } else {
                &["--join", "198.18.0.11:7400"]
            };
            lan.add_node(n, how, &[&["--key-file", path(&key)], options].concat());
        }
        lan.wait_formed(size);
        lan
    }

    fn add_node(&mut self, n: usize, how: &[&str], options: &[&str]) {
        let (name, address) = (format!("n{n}"), format!("198.18.0.{}", 10 + n));
        let namespace = self.host(&name, &address);
        let owned = |args: &[&str]| args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut node = LanNode {
            name,
            namespace,
            address,
            dir: self.dir.path().to_owned(),
            args: owned(options),
            first: owned(how),
            child: None,
            tracer: Mutex::default(),
        };
        node.spawn();
        self.nodes.push(node);
    }

    fn namespace(&mut self, name: &str) -> String {
        let full = format!("{}{name}", self.prefix);
        ip(&format!("netns add {full}"));
        self.namespaces.push(full.clone());
        ip(&format!("-n {full} link set lo up"));
        full
    }

    /// A namespace with `eth0` on the switch; 198.18.0.N has 2001:db8:18::N too.
    fn host(&mut self, name: &str, address: &str) -> String {
        let namespace = self.namespace(name);
        let switch = format!("{}sw", self.prefix);
        ip(&format!("-n {switch} link add {name} type veth peer name eth0 netns {namespace}"));
        ip(&format!("-n {switch} link set {name} master br0 up"));
        ip(&format!("-n {namespace} addr add {address}/24 dev eth0"));
        let last = address.rsplit('.').next().unwrap_or(address);
        ip(&format!("-n {namespace} addr add 2001:db8:18::{last}/64 dev eth0 nodad"));
        ip(&format!("-n {namespace} link set eth0 up"));
        namespace
    }

    fn wait_formed(&self, size: usize) {
        for node in &self.nodes {
            eventually(SETTLE, &format!("{} is ready, with {size} voters", node.name), || {
                let status = node.status()?;
                let nodes = status["nodes"].as_array().context("nodes")?;
                let voters = nodes.iter().filter(|n| n["membership"] == "voter").count();
                let counted = nodes.iter().filter(|n| n["alive"] == true && n["seated"] == true).count();
                ensure!(voters == size && counted == size && status["ready"] == true, "{status}");
                Ok(())
            });
        }
        self.wait_served();
    }

    /// Waits until the VIP answers.
    pub fn wait_served(&self) {
        eventually(SETTLE, "the VIP is served", || self.get(VIP).map(drop));
    }

    /// The namespace of the client, or of the switch (`sw`), or of the backend (`be`).
    pub fn ns(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// `GET http://HOST/` from the client; what was answered.
    pub fn get(&self, host: &str) -> anyhow::Result<String> {
        let url = format!("http://{host}/");
        let client = self.ns("cl");
        let args = ["netns", "exec", &client, "curl", "-sS", "-f", "--max-time", "4", &url];
        Ok(String::from_utf8(run("ip", &args)?.stdout)?)
    }

    /// `trestle apply` of a document at a node.
    pub fn apply(&self, node: usize, config: &str) -> anyhow::Result<()> {
        let file = self.dir.path().join("next.yaml");
        std::fs::write(&file, config)?;
        until_known(|| self.nodes[node].cli(&["apply", "-f", path(&file)]).map(drop))
    }

    /// A program in a node's namespace.
    pub fn beside(&self, node: usize, program: &str) -> Command {
        in_namespace(&self.nodes[node].namespace, Path::new(program))
    }

    /// Each node gets an `eth1` on the same segment, with an address of another subnet.
    pub fn second_interfaces(&self) {
        let switch = self.ns("sw");
        for (number, node) in self.nodes.iter().enumerate() {
            let (name, namespace) = (&node.name, &node.namespace);
            ip(&format!("-n {switch} link add {name}b type veth peer name eth1 netns {namespace}"));
            ip(&format!("-n {switch} link set {name}b master br0 up"));
            ip(&format!("-n {namespace} addr add 198.19.9.{}/24 dev eth1", 11 + number));
            ip(&format!("-n {namespace} link set eth1 up"));
        }
    }

    /// A network behind the nodes, at whose other end members stand: 198.19.9.5N, 2001:db8:19::5N and so on, each
    /// with a service at 9000 that is `mN`, and .100 as the gateway. Nodes have an `eth1` there, and forward.
    pub fn behind_nodes(&mut self, members: usize) {
        self.second_interfaces();
        for (number, node) in self.nodes.iter().enumerate() {
            ip(&format!("-n {} addr add 2001:db8:19::{}/64 dev eth1 nodad", node.namespace, 11 + number));
            node.forward(true);
        }
        let switch = self.ns("sw");
        for number in 1..=members {
            let name = format!("m{number}");
            let namespace = self.namespace(&name);
            ip(&format!("-n {switch} link add {name} type veth peer name eth0 netns {namespace}"));
            ip(&format!("-n {switch} link set {name} master br0 up"));
            // All are on one segment: nobody may tell members of a way past the nodes.
            for key in ["net/ipv4/conf/all/accept_redirects", "net/ipv6/conf/eth0/accept_redirects"] {
                sysctl(&namespace, key, "0");
            }
            ip(&format!("-n {namespace} addr add 198.19.9.{}/24 dev eth0", 50 + number));
            ip(&format!("-n {namespace} addr add 2001:db8:19::{}/64 dev eth0 nodad", 50 + number));
            ip(&format!("-n {namespace} link set eth0 up"));
            ip(&format!("-n {namespace} route add default via 198.19.9.100"));
            ip(&format!("-n {namespace} -6 route add default via 2001:db8:19::100"));
            let child = in_namespace(&namespace, Path::new("python3"))
                .args([FLOWS, "serve", &name, "", "9000"])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn();
            self.members.push(child.expect("python3 starts"));
        }
        // Each is up before somebody asks whether it is.
        self.members.iter_mut().for_each(wait_open);
        for key in ["net/ipv4/conf/all/accept_redirects", "net/ipv6/conf/eth0/accept_redirects"] {
            sysctl(&self.ns("cl"), key, "0");
        }
    }

    /// Nobody listens at member `number` any more; what is open there goes on.
    pub fn refuse_at_member(&self, number: usize) {
        let filter = "add table inet refuse; add chain inet refuse in { type filter hook input priority 0; }; \
                      add rule inet refuse in tcp dport 9000 tcp flags & (syn | ack) == syn reject with tcp reset";
        let output = in_namespace(&self.ns(&format!("m{number}")), Path::new("nft")).arg(filter).output();
        assert!(output.expect("nft runs").status.success());
    }

    /// A program at the switch.
    pub fn in_switch(&self, program: &str) -> Command {
        in_namespace(&self.ns("sw"), Path::new(program))
    }

    /// A program in the client's namespace.
    pub fn client(&self, program: &str) -> Command {
        in_namespace(&self.ns("cl"), Path::new(program))
    }

    /// Nodes on whose interface the VIP is now.
    pub fn with_address(&self) -> Vec<usize> {
        let has = |node: &LanNode| {
            let args = ["-n", &node.namespace, "-o", "addr", "show", "dev", "eth0"];
            run("ip", &args).is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(VIP))
        };
        (0..self.nodes.len()).filter(|i| has(&self.nodes[*i])).collect()
    }

    /// Index of the VIP's owner, as a live node other than `but` sees it.
    pub fn owner(&self, but: Option<usize>) -> usize {
        eventually(SETTLE, &format!("the VIP has an owner other than {but:?}"), || {
            for node in self.nodes.iter().filter(|node| node.child.is_some()) {
                let Ok(status) = node.status() else { continue };
                let owner = status["vips"][0]["owner"].as_str().map(str::to_owned);
                let index = owner.and_then(|owner| self.nodes.iter().position(|n| n.name == owner));
                if let Some(index) = index.filter(|index| Some(*index) != but) {
                    return Ok(index);
                }
            }
            anyhow::bail!("nobody")
        })
    }

    /// Index of the leader.
    pub fn leader(&self) -> usize {
        eventually(SETTLE, "a leader is known", || {
            for node in self.nodes.iter().filter(|node| node.child.is_some()) {
                let Ok(status) = node.status() else { continue };
                let nodes = status["nodes"].as_array().context("nodes")?;
                let leader = nodes.iter().find(|n| n["leader"] == true);
                if let Some(index) = leader.and_then(|l| self.nodes.iter().position(|n| l["name"] == n.name))
                {
                    return Ok(index);
                }
            }
            anyhow::bail!("nobody")
        })
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = node.log();
                let tail: Vec<_> = log.lines().rev().take(60).collect();
                eprintln!("--- end of the log of {} ---", node.name);
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
        for node in &mut self.nodes {
            node.kill_all();
        }
        if let Some(mut backend) = self.backend.take() {
            let _ = backend.kill();
            let _ = backend.wait();
        }
        for member in &mut self.members {
            let _ = member.kill();
            let _ = member.wait();
        }
        for namespace in &self.namespaces {
            let _ = run("ip", &["netns", "del", namespace]);
        }
    }
}

impl LanNode {
    fn spawn(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.log_path());
        let data_dir = self.dir.join(&self.name);
        let cluster = format!("{}:7400", self.address);
        let child = in_namespace(&self.namespace, trestle())
            .args(["run", "--name", &self.name, "--cluster", &cluster, "--admin", "127.0.0.1:7480"])
            .args(["--workers", "1", "--data-dir", path(&data_dir)])
            .args(&self.args)
            .args(&self.first)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("the log can be written"))
            .spawn();
        self.child = Some(child.expect("the node starts"));
    }

    /// Whether it passes packets on that are not its own.
    pub fn forward(&self, on: bool) {
        let value = if on { "1" } else { "0" };
        sysctl(&self.namespace, "net/ipv4/ip_forward", value);
        sysctl(&self.namespace, "net/ipv6/conf/all/forwarding", value);
        for link in ["all", "eth0", "eth1"] {
            sysctl(&self.namespace, &format!("net/ipv4/conf/{link}/send_redirects"), "0");
        }
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// `trestle ARGS` against this node.
    pub fn cli(&self, args: &[&str]) -> anyhow::Result<Output> {
        let output = in_namespace(&self.namespace, trestle())
            .args(args)
            .args(["--admin", "http://127.0.0.1:7480"])
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "trestle {args:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output)
    }

    /// Prometheus text.
    pub fn metrics(&self) -> anyhow::Result<String> {
        let output = in_namespace(&self.namespace, Path::new("curl"))
            .args(["-sS", "-f", "--max-time", "2", "http://127.0.0.1:7480/metrics"])
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn status(&self) -> anyhow::Result<Value> {
        let output = in_namespace(&self.namespace, trestle())
            .args(["status", "-o", "json", "--admin", "http://127.0.0.1:7480"])
            .output()?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("status of {}: {}", self.name, String::from_utf8_lossy(&output.stderr)))
    }

    pub fn pid(&self) -> Pid {
        let child = self.child.as_ref().expect("the node runs");
        Pid::from_raw(i32::try_from(child.id()).expect("a pid fits")).expect("a pid is not 0")
    }

    /// The guard process of this node, by the kernel's list of its children.
    pub fn guard(&self) -> anyhow::Result<Pid> {
        let pid = self.pid().as_raw_nonzero();
        let mut children = String::new();
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            children += &std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        }
        for child in children.split_whitespace() {
            let name = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
            if name.starts_with("trestle-guard") {
                return Pid::from_raw(child.parse()?).context("a pid is not 0");
            }
        }
        anyhow::bail!("{} has no guard among {children:?}", self.name)
    }

    /// A signal to the node's process alone.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the node runs");
    }

    /// A signal to the node and its guard: the guard first, so that it can't notice.
    pub fn signal_both(&self, signal: Signal) {
        let guard = self.guard().expect("the node has a guard");
        kill_process_group(guard, signal).expect("the guard runs");
        self.signal(signal);
    }

    /// Stops the first worker's thread, and nothing else, for good: a thread of its own traces it.
    pub fn stop_worker(&self) {
        let pid = self.pid().as_raw_nonzero();
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the node runs");
        let worker = tasks.flatten().find(|task| {
            std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim() == "worker-0")
        });
        let tid = worker.expect("it has a worker").file_name();
        // Whoever holds a thread by ptrace stops it alone; signals would stop the process.
        let script = "import ctypes, os, sys\n\
            libc = ctypes.CDLL(None, use_errno=True)\n\
            tid = int(sys.argv[1])\n\
            assert libc.ptrace(16, tid, None, None) == 0, os.strerror(ctypes.get_errno())\n\
            os.waitpid(tid, 0x40000000)\n\
            print('stopped', flush=True)\n\
            sys.stdin.read()\n";
        let mut tracer = Command::new("python3")
            .args(["-c", script, tid.to_str().expect("a number")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let mut said = [0; 8];
        let stdout = tracer.stdout.as_mut().expect("its output is ours");
        std::io::Read::read_exact(stdout, &mut said).expect("the thread stops");
        self.tracer.lock().expect("nobody panicked with it").replace(Tracer(tracer));
    }

    /// SIGKILL to the node alone; returns when it is gone.
    pub fn kill(&mut self) {
        // Whoever traces a thread would have to reap it first.
        if let Ok(mut tracer) = self.tracer.lock() {
            tracer.take();
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Node and guard at once.
    pub fn kill_all(&mut self) {
        if self.child.is_some() {
            if let Ok(guard) = self.guard() {
                let _ = kill_process(guard, Signal::KILL);
            }
            self.kill();
        }
    }

    /// SIGTERM; waits for the end.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("the node runs");
        let status = eventually(Duration::from_secs(50), &format!("{} ends", self.name), || {
            child.try_wait()?.context("it runs")
        });
        assert!(status.success(), "{} ended with {status}", self.name);
    }

    /// Waits until it takes part again.
    pub fn wait_back(&self) {
        eventually(SETTLE, &format!("{} is back", self.name), || {
            let status = self.status()?;
            ensure!(status["ready"] == true && status["seat"]["seated"] == true, "{status}");
            Ok(())
        });
    }

    /// Starts it again in the same folder.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "stop or kill {} first", self.name);
        self.first.clear();
        self.spawn();
    }
}

/// Writes a value under /proc/sys in a namespace.
fn sysctl(namespace: &str, key: &str, value: &str) {
    let write = format!("echo {value} > /proc/sys/{key}");
    run("ip", &["netns", "exec", namespace, "sh", "-c", &write]).expect("a sysctl can be set");
}

fn in_namespace(namespace: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace]).arg(program);
    command
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the test's folder has a plain name")
}

/// A client that goes on until it is asked what it saw.
pub struct Prober(Option<Child>);

/// It says so when it goes.
fn wait_open(child: &mut Child) {
    let stdout = child.stdout.as_mut().expect("its output is ours");
    let mut first = [0; 5];
    std::io::Read::read_exact(stdout, &mut first).expect("it opens");
    assert_eq!(&first, b"open\n");
}

/// See there.
const FLOWS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/flows.py");

impl Prober {
    /// `kind`: see `prober.py`.
    pub fn start(lan: &Lan, kind: &str, target: &str) -> Prober {
        Self::run(lan, &[concat!(env!("CARGO_MANIFEST_DIR"), "/src/prober.py"), kind, target])
    }

    /// So many connections to members of [`Lan::behind_nodes`], each byte of which is checked.
    pub fn hold(lan: &Lan, count: usize, targets: &[(&str, u16)]) -> Prober {
        let count = count.to_string();
        let ports: Vec<String> = targets.iter().map(|(_, port)| port.to_string()).collect();
        let mut args = vec![FLOWS, "hold", &count];
        targets.iter().zip(&ports).for_each(|((host, _), port)| args.extend([*host, port.as_str()]));
        Self::run(lan, &args)
    }

    fn run(lan: &Lan, args: &[&str]) -> Prober {
        let mut child = lan
            .client("python3")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        wait_open(&mut child);
        Prober(Some(child))
    }

    pub fn stop(mut self) -> Value {
        let mut child = self.0.take().expect("it runs until here");
        drop(child.stdin.take());
        let output = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("the client said {said:?}: {e}"))
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
