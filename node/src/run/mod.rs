//! A node's life: start, serve, drain, end.
//!
//! Order of the start: settings, key and whatever else only root may read, another user ([`privileges`]), the
//! admin socket (so that `/readyz` answers from the first
//! moment), the plane, the cluster, which feeds the plane. Nothing is written to the data folder
//! but the key before the store behind [`Cluster`] has locked it. The end is [`shutdown`].

pub(crate) mod backlog;
mod kernel;
mod node;
mod notify;
mod parent;
mod ports;
mod privileges;
mod replace;
mod shutdown;
pub(crate) mod strain;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::process::DumpableBehavior;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use trestle_cluster::identity::ClusterKey;
use trestle_cluster::{Cluster, Draft, Ended, InheritedGuard, Start};
use trestle_dataplane::{CacheDisk, CookieKeys, Options, Plane};
use trestle_raft_store::Store;

use crate::admin::{Access, Api, Server, Token};
use crate::otlp::Exporter;
use crate::settings::{NodeFile, NodeSettings};
use crate::telemetry::Telemetry;
use crate::{documents, key};

pub(crate) use kernel::Kernel;
pub(crate) use node::Node;
pub(crate) use parent::Companion;
pub(crate) use ports::Ports;

use ports::{Use, Wanted};
use privileges::User;
use replace::Origin;

/// Threads for everything but traffic: Raft, gossip, probes, admin.
const CONTROL_THREADS: usize = 2;

/// How often it is looked whether listeners were given ports that are to be kept.
const PORTS_INTERVAL: Duration = Duration::from_millis(250);

/// Runs a node to its end. Returns once it has stopped as asked, or was removed from its cluster.
pub(crate) fn run(
    settings: NodeSettings,
    telemetry: &Telemetry,
    companion: Option<u32>,
) -> anyhow::Result<()> {
    // Before there are threads: it is a descriptor by number.
    let guard = InheritedGuard::from_env().context("the VIPs' guard that was there before this node")?;
    // Before somebody puts another program in its place.
    let origin = Origin::of(&settings)?;
    forbid_dumps();
    strain::raise_descriptors();
    tracing::info!(
        name = settings.name,
        version = crate::VERSION,
        data_dir = %settings.data_dir.display(),
        workers = settings.workers.get(),
        "node starts"
    );
    let prepared = Prepared::new(&settings)?;
    // Who became another user may be dumped again.
    forbid_dumps();
    // In pages of 2 MiB a node at rest takes twice the memory.
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::debug!(%error, "huge pages stay on");
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("trestle-control")
        .enable_all()
        .build()
        .context("no runtime")?
        .block_on(life(settings, prepared, telemetry, companion, (guard, origin)))
}

/// The cluster's key is in memory: it goes into no core dump, and no debugger of the same user gets at it.
fn forbid_dumps() {
    if let Err(error) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "core dumps stay on");
    }
}

async fn life(
    settings: NodeSettings,
    prepared: Prepared,
    telemetry: &Telemetry,
    companion: Option<u32>,
    (guard, origin): (InheritedGuard, Origin),
) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let companion = companion.map_or_else(|| Ok(Companion::none()), Companion::watch)?;
    let Opened { node, admin, exporter } = prepared.open(&settings)?;
    let exporting = exporter.map(|exporter| tokio::spawn(exporter.run()));
    let until = CancellationToken::new();
    let serving = tokio::spawn(admin.serve(until.clone()));
    let entered = tokio::select! {
        entered = prepared.enter(&settings, &node, guard) => entered,
        end = signals.ending.came() => {
            tracing::info!(signal = end, "stopped before the node was part of a cluster");
            node.plane.shutdown();
            return Ok(());
        }
        () = companion.gone() => return Ok(()),
    };
    let (cluster, ports) = entered?;
    node.enter(cluster.clone());
    let mut ports = KeptPorts { ports, node: node.clone(), data_dir: settings.data_dir.clone() };
    // Before anybody is told that it serves: what they connect to is there again at the next start.
    ports.note();
    let serves = CancellationToken::new();
    let kept = tokio::spawn(ports.follow(serves.clone()));
    // Until the process ends: what it sheds while it drains is as welcome.
    let watched = tokio::spawn(node.strain.clone().follow(until.clone()));
    let carries = CancellationToken::new();
    let carried = tokio::spawn(node.kernel.clone().follow(carries.clone()));
    notify::notify("READY=1");
    tracing::info!(name = settings.name, cluster = %cluster.address(), admin = %node.admin, "node serves");

    let reason =
        wait_for_end(&mut signals, &companion, &cluster, &node.plane, (&settings, telemetry, &origin)).await;
    tracing::info!(reason = %reason, "node stops");
    if matches!(reason, Reason::Replaced) {
        notify::notify("RELOADING=1");
        // What is in the kernel stays as it is.
        carried.abort();
        serves.cancel();
        let _ = tokio::time::timeout(Duration::from_secs(1), kept).await;
        return Err(origin.replace(&node, &cluster).await);
    }
    notify::notify("STOPPING=1");
    // While it stops, listeners close one by one: those ports are to be kept all the same.
    serves.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(1), kept).await;
    tokio::select! {
        () = shutdown::shutdown(&node, &cluster, exporting) => {}
        signal = signals.ending.came() => {
            tracing::warn!(signal, "second signal: ends at once");
            std::process::exit(1);
        }
        () = companion.gone() => {}
    }
    carries.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(1), carried).await;
    until.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(1), serving).await;
    let _ = tokio::time::timeout(Duration::from_secs(1), watched).await;
    tracing::info!("node ended");
    match reason {
        Reason::Ended(Ended::Failed(why)) => Err(anyhow::anyhow!("the node can't keep its promises: {why}")),
        _ => Ok(()),
    }
}

/// What is known before anything is started, and what only root may have been able to read.
struct Prepared {
    key: ClusterKey,
    token: Option<Token>,
    read_token: Option<Token>,
    /// Of a cluster that may be founded.
    config: Option<Draft>,
    earlier: Option<Ports>,
    cluster: Wanted,
    admin: Wanted,
}

impl Prepared {
    /// Afterwards the process is the user that was asked for.
    fn new(settings: &NodeSettings) -> anyhow::Result<Prepared> {
        let dir = &settings.data_dir;
        let user = settings.user.as_deref().map(User::find).transpose()?;
        match &user {
            Some(user) => user.take("data folder", dir)?,
            None => privileges::make_private("data folder", dir)?,
        }
        if let Some(disk) = &settings.cache_disk {
            let what = "folder of --cache-disk";
            if Store::is_in(disk) {
                let at = disk.display();
                anyhow::bail!(
                    "{at} is the data folder of a node: give cached responses a folder of their own"
                );
            }
            let is_new = CacheDisk::make(disk).context(what)?;
            if let Some(user) = &user {
                if is_new {
                    user.give(what, disk)?;
                }
                user.take(what, disk)?;
            }
        }
        let earlier = Ports::load(dir)?;
        if key::readable_by_others(dir) {
            tracing::warn!(data_dir = %dir.display(), "data folder is open to others: chmod 700 it");
        }
        let read = |file: &Option<PathBuf>, setting| -> anyhow::Result<Option<Token>> {
            let Some(file) = file.as_deref() else { return Ok(None) };
            if key::readable_by_others(file) {
                tracing::warn!(file = %file.display(), "{setting} is readable by others: chmod 600 it");
            }
            Token::read(file, setting).map(Some)
        };
        let token = read(&settings.admin_token_file, "admin-token-file")?;
        let read_token = read(&settings.admin_read_token_file, "admin-read-token-file")?;
        let key = read_key(settings)?;
        let config = first_config(settings, earlier.is_some())?;
        if let Some(user) = user {
            user.become_it()?;
        }
        Store::check_free(dir)?;
        let cluster = Wanted::new(Use::Cluster, settings.cluster, earlier.as_ref().and_then(|e| e.cluster));
        let admin = Wanted::new(Use::Admin, settings.admin, earlier.as_ref().and_then(|e| e.admin));
        cluster.probe(dir)?;
        let key = key.map_or_else(|| make_key(dir), Ok)?;
        Ok(Prepared { key, token, read_token, config, earlier, cluster, admin })
    }

    /// The admin socket and the plane. Listeners open with the first revision.
    fn open(&self, settings: &NodeSettings) -> anyhow::Result<Opened> {
        let listener = self.admin.bind(&settings.data_dir)?;
        listener.set_nonblocking(true).context("admin socket")?;
        let listener = TcpListener::from_std(listener).context("admin socket")?;
        let bind = listener.local_addr().context("admin socket")?;
        let access = Access { bind, token: self.token.clone(), read_token: self.read_token.clone() };
        let tls = if access.plain() {
            None
        } else {
            let hosts = certificate_hosts(settings, bind);
            Some(self.key.admin_server_config(&settings.name, &hosts).context("admin API over TLS")?)
        };
        let (spans, exporter) = match &settings.otlp {
            None => (None, None),
            Some(otlp) => {
                let (tap, queue) = trestle_dataplane::spans(otlp.ratio);
                let exporter = Exporter::new(otlp.clone(), &settings.name, queue).context("spans")?;
                tracing::info!(endpoint = %otlp.endpoint, ratio = otlp.ratio, "spans are exported");
                (Some(tap), Some(exporter))
            }
        };
        let pinned = self.earlier.as_ref().map(Ports::pinned).unwrap_or_default();
        let cookies = self.key.cookie_keys();
        let options = Options {
            workers: settings.workers,
            node: settings.name.clone(),
            zone: settings.zone.clone(),
            secret: *self.key.seed(),
            cookies: CookieKeys { current: *cookies.current, other: cookies.other.as_deref().copied() },
            pinned,
            spans,
            give_back: crate::memory::give_back,
            body_memory: body_memory(settings),
            cache_memory: cache_memory(settings),
            cache_disk: cache_disk(settings),
            kernel_check: trestle_kernel_path::support::check,
        };
        warn_of_cache(settings);
        let plane = Plane::start(options).context("data plane")?;
        let counts = exporter.as_ref().map(Exporter::counts);
        let node = Arc::new(Node::new(plane, settings, bind, counts));
        tracing::info!(admin = %bind, tls = tls.is_some(), "admin API listens");
        let admin = AdminTask { server: Server::new(listener, tls), api: Api::new(node.clone(), access) };
        Ok(Opened { node, admin, exporter })
    }

    /// Founds, joins or resumes; then the chosen ports are kept.
    async fn enter(
        &self,
        settings: &NodeSettings,
        node: &Node,
        guard: InheritedGuard,
    ) -> anyhow::Result<(Cluster, Ports)> {
        let start = self.start(settings);
        let cluster = Cluster::start(
            trestle_cluster::Settings {
                name: settings.name.clone(),
                data_dir: settings.data_dir.clone(),
                cluster: self.cluster.address,
                advertise: settings.advertise.clone(),
                admin: advertised_admin(settings, node.admin),
                key: self.key.to_pem(),
                start,
                replace: settings.replace,
                version: crate::VERSION.to_owned(),
                resolver: settings.resolver,
                guard,
            },
            node.plane.clone(),
        )
        .await?;
        let mut ports = self.earlier.clone().unwrap_or_default();
        ports.pid = std::process::id();
        ports.cluster = Some(cluster.address());
        ports.admin = Some(node.admin);
        match (ports.save(&settings.data_dir), &self.earlier) {
            (Ok(()), _) => {}
            // A full disk: what the file says of ports holds.
            (Err(e), Some(earlier)) if (earlier.cluster, earlier.admin) == (ports.cluster, ports.admin) => {
                tracing::warn!(error = format!("{e:#}"), "ports of this start not noted");
            }
            (Err(e), _) => return Err(e),
        }
        Ok((cluster, ports))
    }

    fn start(&self, settings: &NodeSettings) -> Start {
        let join = settings.join.clone();
        if settings.bootstrap {
            return Start::Bootstrap { draft: self.config.clone(), join };
        }
        if join.is_empty() { Start::Resume } else { Start::Join { join } }
    }
}

/// What answers and carries before the node is part of a cluster.
struct Opened {
    node: Arc<Node>,
    admin: AdminTask,
    exporter: Option<Exporter>,
}

struct AdminTask {
    server: Server,
    api: Arc<Api>,
}

impl AdminTask {
    async fn serve(self, until: CancellationToken) {
        self.server.serve(self.api, until).await;
    }
}

/// The key that was named; else the one in the data folder. `None`: a founding node is to make it there.
fn read_key(settings: &NodeSettings) -> anyhow::Result<Option<ClusterKey>> {
    let own = settings.data_dir.join(key::FILE);
    let path = settings.key_file.as_ref().unwrap_or(&own);
    if settings.key_file.is_none() && !path.exists() {
        anyhow::ensure!(
            settings.bootstrap && settings.join.is_empty(),
            "a node needs its cluster's key: give --key-file FILE (`trestle keygen` makes one, the cluster's first \
             node may have it in its data folder as {}); to found a cluster of one node give --bootstrap",
            key::FILE
        );
        return Ok(None);
    }
    let loaded = key::read(path)?;
    if key::readable_by_others(path) {
        tracing::warn!(key_file = %path.display(), "key file is readable by others: chmod 600 it");
    }
    Ok(Some(loaded))
}

fn make_key(dir: &Path) -> anyhow::Result<ClusterKey> {
    let path = dir.join(key::FILE);
    let made = key::create(&path)?;
    tracing::info!(key_file = %path.display(), key = %made.id(), "made a key; further nodes need this file");
    Ok(made)
}

/// With the files that it names, as `trestle apply` reads them.
fn first_config(settings: &NodeSettings, member: bool) -> anyhow::Result<Option<Draft>> {
    let Some(path) = settings.config.as_ref().filter(|_| settings.bootstrap) else { return Ok(None) };
    let name = path.display().to_string();
    if member {
        tracing::info!(config = name, "--config is ignored: this node is part of a cluster already");
        return Ok(None);
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("can't read --config {name}"))?;
    let draft = documents::read(&name, &text, &documents::folder_of(path)).map_err(|problems| {
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!(problems.join("\n"))
    })?;
    Ok(Some(draft))
}

/// Names and addresses under which the admin API's certificate is good.
fn certificate_hosts(settings: &NodeSettings, bind: SocketAddr) -> Vec<String> {
    let mut hosts =
        vec![settings.name.clone(), "localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !bind.ip().is_unspecified() {
        hosts.push(bind.ip().to_string());
    }
    hosts.extend(settings.advertise.as_deref().map(|advertised| host_of(advertised).to_owned()));
    hosts.dedup();
    hosts
}

/// Where others find the admin API: on every address bound, it goes by the advertised host.
fn advertised_admin(settings: &NodeSettings, bind: SocketAddr) -> String {
    match &settings.advertise {
        Some(advertised) if bind.ip().is_unspecified() => {
            let host = advertised.rsplit_once(':').map_or(advertised.as_str(), |(host, _)| host);
            format!("{host}:{}", bind.port())
        }
        _ => bind.to_string(),
    }
}

/// The host of `host:port`, an IPv6 address without its brackets.
fn host_of(host_and_port: &str) -> &str {
    let host = host_and_port.rsplit_once(':').map_or(host_and_port, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Writes the ports of listeners down as they are given, for the next start.
struct KeptPorts {
    ports: Ports,
    node: Arc<Node>,
    data_dir: std::path::PathBuf,
}

impl KeptPorts {
    /// Looks now and then; the last time once `serves` has ended.
    async fn follow(mut self, serves: CancellationToken) {
        while serves.run_until_cancelled(tokio::time::sleep(PORTS_INTERVAL)).await.is_some() {
            self.note();
        }
        self.note();
    }

    fn note(&mut self) {
        if self.node.plane.revision() == 0 {
            return;
        }
        let before = self.ports.listeners.clone();
        self.ports.note_listeners(&self.node.plane.listeners());
        if self.ports.listeners != before
            && let Err(e) = self.ports.save(&self.data_dir)
        {
            tracing::warn!(error = format!("{e:#}"), "listener ports not kept for the next start");
        }
    }
}

// === the end ===

/// Why a node stops.
enum Reason {
    Signal(&'static str),
    Companion,
    Ended(Ended),
    /// Another program takes its place.
    Replaced,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::Signal(name) => f.write_str(name),
            Reason::Replaced => f.write_str("SIGUSR2: the program on disk takes its place"),
            Reason::Companion => f.write_str("the process it was to end with is gone"),
            Reason::Ended(Ended::Removed) => f.write_str("removed from the cluster"),
            Reason::Ended(Ended::Failed(why)) => write!(f, "failed: {why}"),
        }
    }
}

async fn wait_for_end(
    signals: &mut Signals,
    companion: &Companion,
    cluster: &Cluster,
    plane: &Plane,
    (settings, telemetry, origin): (&NodeSettings, &Telemetry, &Origin),
) -> Reason {
    let mut ended = cluster.ended();
    let mut failed = None;
    loop {
        tokio::select! {
            signal = signals.ending.came() => {
                return failed.map_or(Reason::Signal(signal), |why| Reason::Ended(Ended::Failed(why)));
            }
            () = companion.gone() => return Reason::Companion,
            ended = ended.wait_for(Option::is_some), if failed.is_none() => {
                match ended.map(|ended| ended.clone()) {
                    Ok(Some(Ended::Removed)) => return Reason::Ended(Ended::Removed),
                    // What it can't promise any more it leaves to the others; traffic needs no disk.
                    Ok(Some(Ended::Failed(why))) => {
                        tracing::error!(why, "left Raft: serves its last config until it is restarted");
                        failed = Some(why);
                    }
                    _ => return Reason::Ended(Ended::Failed("the cluster task is gone".to_owned())),
                }
            }
            _ = signals.replace.recv() => match origin.check().await {
                Ok(version) => {
                    tracing::info!(version, "the program on disk takes this one's place");
                    return Reason::Replaced;
                }
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "SIGUSR2: this program goes on");
                }
            },
            _ = signals.hangup.recv() => {
                plane.reopen_logs();
                reread(settings, telemetry);
            }
        }
    }
}

/// What of the node file can change in a running node is what it logs.
fn reread(settings: &NodeSettings, telemetry: &Telemetry) {
    let Some(path) = &settings.node_file else {
        tracing::info!("SIGHUP: there is no node file to read");
        return;
    };
    match NodeFile::read(path) {
        Ok(file) => {
            let filter = file.entries.get("log").map(|entry| entry.value.as_str());
            telemetry.set_filter(filter.or(settings.log.as_deref()));
            tracing::info!(
                node_file = %path.display(),
                filter = filter.unwrap_or("unchanged"),
                "SIGHUP: node file read again; all but `log` waits for a restart"
            );
        }
        Err(e) => tracing::warn!(error = %e, "SIGHUP: node file not taken over"),
    }
}

/// The signals that a node listens to.
struct Signals {
    ending: Ending,
    hangup: Signal,
    /// SIGUSR2.
    replace: Signal,
}

/// Those that end a node.
struct Ending {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Signals> {
        let listen = |kind| signal(kind).context("signals");
        let terminate = listen(SignalKind::terminate())?;
        let interrupt = listen(SignalKind::interrupt())?;
        let (hangup, replace) = (listen(SignalKind::hangup())?, listen(SignalKind::user_defined2())?);
        Ok(Signals { ending: Ending { terminate, interrupt }, hangup, replace })
    }
}

impl Ending {
    async fn came(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// For cached responses, where nobody has said how much: a sixteenth of what there is.
fn cache_memory(settings: &NodeSettings) -> u64 {
    const MOST: u64 = 1 << 30;
    settings.cache_memory.unwrap_or_else(|| part_of_memory(settings, 16).min(MOST))
}

/// `--memory-max` may say more than there is.
fn warn_of_cache(settings: &NodeSettings) {
    let there = [settings.memory_max, None].into_iter().filter_map(strain::memory_there).min();
    let told = there.and_then(|there| strain::too_much_cache(cache_memory(settings), there));
    if let Some(told) = told {
        tracing::warn!("{told}");
    }
}

/// For request bodies that are held back: well below what a node sheds at, since each costs its connection too.
fn body_memory(settings: &NodeSettings) -> u64 {
    part_of_memory(settings, 8)
}

/// One of so many parts.
fn part_of_memory(settings: &NodeSettings, parts: u64) -> u64 {
    const UNKNOWN: u64 = 64 << 20;
    strain::memory_there(settings.memory_max).map_or(UNKNOWN, |there| there / parts)
}

fn cache_disk(settings: &NodeSettings) -> Option<CacheDisk> {
    const MAX: u64 = 10 << 30;
    let dir = settings.cache_disk.clone()?;
    Some(CacheDisk { dir, max: settings.cache_disk_max.unwrap_or(MAX), least: CacheDisk::LEAST })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroUsize;

    use super::*;
    use crate::settings::{Host, Layers, resolve};

    fn settings(flags: &[(&'static str, &str)]) -> NodeSettings {
        let flags: BTreeMap<_, _> = flags.iter().map(|(k, v)| (*k, (*v).to_owned())).collect();
        let host = Host { name: "n1".into(), cores: NonZeroUsize::MIN };
        resolve(Layers { flags, variable: &|_| None, file: None }, &host).unwrap()
    }

    #[test]
    fn the_admin_address_others_read_is_one_they_can_reach() {
        let bound = "0.0.0.0:7480".parse().unwrap();
        let advertised = settings(&[("advertise", "[2001:db8::1]:7400")]);
        assert_eq!(advertised_admin(&advertised, bound), "[2001:db8::1]:7480");
        assert_eq!(advertised_admin(&settings(&[]), "127.0.0.1:7480".parse().unwrap()), "127.0.0.1:7480");
        assert!(certificate_hosts(&advertised, bound).contains(&"2001:db8::1".to_owned()));
    }

    #[test]
    fn only_a_founder_of_one_makes_a_key_for_itself() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().to_str().unwrap();
        for flags in
            [vec![("data-dir", data)], vec![("data-dir", data), ("bootstrap", "true"), ("join", "a:1")]]
        {
            let error = read_key(&settings(&flags)).err().unwrap().to_string();
            assert!(error.contains("--key-file"), "{error}");
        }
        let founder = settings(&[("data-dir", data), ("bootstrap", "true")]);
        assert!(read_key(&founder).unwrap().is_none(), "it is made as the node's user");
        let made = make_key(dir.path()).unwrap();
        for again in [&founder, &settings(&[("data-dir", data)])] {
            let read = read_key(again).unwrap().expect("the one that was made, with or without flags");
            assert_eq!(read.id(), made.id());
        }
    }
}
