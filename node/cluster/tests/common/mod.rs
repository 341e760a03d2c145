//! Nodes in this process, each on a runtime of its own, so that one can be killed.
// Each test program uses a part of it.
#![allow(unreachable_pub, dead_code, clippy::unwrap_used)]

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use trestle_cluster::Ended;
use trestle_cluster::identity::ClusterKey;
use trestle_cluster::raft::{Enter, ProposeError, RaftNode, Settings, StartError, Timers, Tuning};
use trestle_raft_store::Store;
use trestle_raft_store::types::{Command, LeaseTimes, NodeId, Outcome, PutConfig};

/// For whatever must happen sooner or later.
pub const SOON: Duration = Duration::from_secs(30);

pub fn timers() -> Timers {
    let ms = Duration::from_millis;
    Timers { heartbeat: ms(60), election: (ms(300), ms(500)) }
}

/// What the nodes of a test share.
pub struct World {
    pub key: ClusterKey,
    pub tuning: Tuning,
    pub target: u32,
    pub folder: TempDir,
}

impl World {
    pub fn new() -> Self {
        capture();
        Self {
            key: ClusterKey::generate().unwrap(),
            tuning: Tuning::default(),
            target: 5,
            folder: TempDir::new().unwrap(),
        }
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub async fn found(&self, name: &str) -> Node {
        self.start(name, Enter::Found { ask: vec![] }).await.unwrap()
    }

    pub async fn join(&self, name: &str, to: &Node) -> Node {
        self.start(name, Enter::Join { ask: vec![to.address.to_string()] }).await.unwrap()
    }

    /// From its folder, under another address.
    pub async fn moved(&self, name: &str) -> Node {
        self.start(name, Enter::Resume).await.unwrap()
    }

    /// From its folder, under the address that it had.
    pub async fn resume(&self, name: &str, address: SocketAddr) -> Node {
        let mut launch = Launch::new(self, name, Enter::Resume);
        launch.bind = address;
        launch.start().await.unwrap()
    }

    pub async fn start(&self, name: &str, enter: Enter) -> Result<Node, StartError> {
        Launch::new(self, name, enter).start().await
    }

    /// Nodes `n0` (which founds) to `n{count-1}`, all voters.
    pub async fn cluster(&self, count: usize) -> Vec<Node> {
        let mut nodes = vec![self.found("n0").await];
        for at in 1..count {
            let node = self.join(&format!("n{at}"), &nodes[0]).await;
            nodes.push(node);
        }
        voters(&nodes, count).await;
        nodes
    }
}

/// A node about to start.
pub struct Launch<'a> {
    world: &'a World,
    name: String,
    enter: Enter,
    pub replace: bool,
    pub key: ClusterKey,
    pub dir: PathBuf,
    /// Port 0: a new one.
    pub bind: SocketAddr,
}

impl<'a> Launch<'a> {
    pub fn new(world: &'a World, name: &str, enter: Enter) -> Self {
        Launch {
            world,
            name: name.to_owned(),
            enter,
            replace: false,
            key: world.key.clone(),
            dir: world.dir(name),
            bind: "127.0.0.1:0".parse().unwrap(),
        }
    }

    pub async fn start(self) -> Result<Node, StartError> {
        let mut runtime = Own::new();
        let dir = self.dir.clone();
        let store = eventually("the folder is free", || {
            let dir = dir.clone();
            async move { tokio::task::spawn_blocking(move || Store::open(&dir)).await.unwrap().ok() }
        })
        .await;
        let listener =
            { eventually("the port is free", || async { TcpListener::bind(self.bind).await.ok() }).await };
        // It moves to the node's own runtime.
        let listener = listener.into_std().unwrap();
        let address = listener.local_addr().unwrap();
        let (voters, target) = watch::channel(self.world.target);
        let (tuning, store_of_node) = (self.world.tuning, store.clone());
        let (name, enter, replace, key) = (self.name.clone(), self.enter, self.replace, self.key);
        let start = runtime.get().spawn(async move {
            RaftNode::start(Settings {
                name,
                advertise: address.to_string(),
                admin: "127.0.0.1:1".to_owned(),
                version: "0.1.0".to_owned(),
                key,
                store: store_of_node,
                listener: TcpListener::from_std(listener).unwrap().into(),
                enter,
                replace,
                timers: timers(),
                voters: target,
                tuning,
            })
            .await
        });
        match start.await.unwrap() {
            Ok(raft) => {
                let runtime = runtime.0.take();
                Ok(Node { name: self.name, raft: Some(raft), store: Some(store), address, voters, runtime })
            }
            Err(error) => Err(error),
        }
    }
}

/// A runtime that may be dropped anywhere.
struct Own(Option<Runtime>);

impl Own {
    fn new() -> Own {
        Own(Some(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()))
    }

    fn get(&self) -> &Runtime {
        self.0.as_ref().unwrap()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

pub struct Node {
    pub name: String,
    pub address: SocketAddr,
    pub voters: watch::Sender<u32>,
    raft: Option<RaftNode>,
    store: Option<Store>,
    runtime: Option<Runtime>,
}

impl Node {
    pub fn raft(&self) -> &RaftNode {
        self.raft.as_ref().unwrap()
    }

    pub fn id(&self) -> NodeId {
        self.raft().id()
    }

    pub fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// Runs on the node's own runtime, so that its connections die with it.
    pub async fn on<F, Fut>(&self, work: F) -> Fut::Output
    where
        F: FnOnce(RaftNode) -> Fut,
        Fut: Future + Send + 'static,
        Fut::Output: Send + 'static,
    {
        self.runtime.as_ref().unwrap().spawn(work(self.raft().clone())).await.unwrap()
    }

    pub async fn put(&self, document: &str) -> u64 {
        let began = Instant::now();
        loop {
            let command = put(document.as_bytes().to_vec());
            match self.on(|raft| async move { raft.propose(command).await }).await {
                // Twice the same is one revision.
                Ok((Outcome::Revision(number) | Outcome::Unchanged(number), _)) => return number,
                // A leader that stands still for long loses its term in the middle of it.
                Err(ProposeError::Unknown(_)) if began.elapsed() < SOON => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub async fn ended(&self) -> Ended {
        let mut ended = self.raft().ended();
        let reason = tokio::time::timeout(SOON, ended.wait_for(Option::is_some)).await;
        let reason = reason.expect("the node does not end").unwrap().clone();
        reason.unwrap()
    }

    /// As kill -9 would: nothing is said to anybody. What was acknowledged is on disk.
    pub async fn kill(mut self) {
        self.raft = None;
        if let Some(runtime) = self.runtime.take() {
            // It is dead when this returns, whatever it was doing.
            let end = move || runtime.shutdown_timeout(Duration::from_secs(5));
            tokio::task::spawn_blocking(end).await.unwrap();
        }
    }

    pub async fn shutdown(mut self) {
        self.on(|raft| async move { raft.shutdown().await }).await;
        self.store().close().await.unwrap();
        self.raft = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub fn put(document: Vec<u8>) -> Command {
    Command::PutConfig(PutConfig {
        document: document.into(),
        routes: vec![],
        leases: LeaseTimes::default(),
        uses: Vec::new(),
        contents: Vec::new(),
        gone: Vec::new(),
        expected: None,
        author: "test".to_owned(),
        message: String::new(),
        at_ms: 0,
    })
}

/// Asks until there is an answer.
pub async fn eventually<T, Fut: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> Fut) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        if Instant::now() >= deadline {
            let text = capture().text();
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(60)..].join("\n");
            panic!("not within {SOON:?}: {what}\nthe last log lines of all tests:\n{last}");
        }
        sleep(Duration::from_millis(20)).await;
    }
}

pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, || {
        let held = holds();
        async move { held.then_some(()) }
    })
    .await;
}

/// Every node sees so many voters, and no change under way.
pub async fn voters(nodes: &[Node], count: usize) {
    let nodes: Vec<&RaftNode> = nodes.iter().map(Node::raft).collect();
    until(&format!("{count} voters"), || {
        nodes.iter().all(|node| {
            let metrics = node.metrics();
            metrics.voters.len() == count && metrics.settled
        })
    })
    .await;
}

pub async fn leader(nodes: &[Node]) -> usize {
    eventually("a leader", || async {
        let at = nodes.iter().position(|node| node.raft().is_leader())?;
        let id = nodes[at].id();
        nodes.iter().all(|node| node.raft().leader() == Some(id)).then_some(at)
    })
    .await
}

pub async fn revision(nodes: &[Node], number: u64) {
    until(&format!("revision {number} everywhere"), || {
        nodes.iter().all(|node| node.raft().state().revision_number() == number)
    })
    .await;
}

/// Log lines of warnings and above, by everything in this process.
#[derive(Clone, Default)]
pub struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

impl Lines {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Once a process; further calls give the same lines.
pub fn capture() -> Lines {
    static LINES: std::sync::OnceLock<Lines> = std::sync::OnceLock::new();
    LINES
        .get_or_init(|| {
            let lines = Lines::default();
            let writer = lines.clone();
            let filter =
                std::env::var("TRESTLE_TEST_LOG").unwrap_or_else(|_| "error,trestle_cluster=info".to_owned());
            let _ = tracing_subscriber::fmt()
                .with_env_filter(filter)
                .with_ansi(false)
                .with_writer(move || writer.clone())
                .try_init();
            lines
        })
        .clone()
}
