//! The network of the simulation (`sim/`), in place of TCP, TLS and HTTP/2, and what else the real
//! code needs to run there. The gRPC clients and servers on both ends are the real ones.
//!
//! A channel has one connection: made by a round trip, bound to the process at its end, lost when
//! that is gone or when an answer does not come for as long as the keep-alive allows. What a
//! [`Switch`] loses is as lost as on a cut cable: no error comes back.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;
use trestle_raft_store::simulated::{Process, Runtime};
use trestle_raft_store::types::{LeaseTimes, NodeId, State};
use uuid::Uuid;

use crate::feed::{longest_leases, parse, rules as rules_of, ttls};
use crate::identity::{NodeIdentity, PeerIdentity};
use crate::lease::core::{Rules, TtlHistory};
use crate::lease::vips::VipName;
use crate::raft::{Caller, DialError, Peers};
use crate::rt::{sleep, timeout};
use crate::vip::choice::VipRules;

/// As [`crate::raft`] has them.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const KEEPALIVE: Duration = Duration::from_secs(4);
/// The wall clock of the simulation begins here.
const EPOCH_MS: u64 = 1_700_000_000_000;

type Instant = <Runtime as openraft::AsyncRuntime>::Instant;
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What the cable between two processes, by name, does to a message now.
pub trait Switch: Send + Sync {
    /// How long it is on its way; none: it is lost.
    fn pass(&self, from: &str, to: &str) -> Option<Duration>;
}

thread_local! {
    static SWITCH: RefCell<Option<Arc<dyn Switch>>> = const { RefCell::new(None) };
    static PORTS: RefCell<BTreeMap<String, Open>> = const { RefCell::new(BTreeMap::new()) };
    static LAST_PORT: Cell<u64> = const { Cell::new(0) };
    static RULES: Cell<Rules> = const { Cell::new(Rules::ALL) };
}

/// A new network on this thread, without anybody on it.
pub fn install(switch: Arc<dyn Switch>) {
    SWITCH.with(|present| *present.borrow_mut() = Some(switch));
    PORTS.with(|ports| ports.borrow_mut().clear());
}

/// Takes a rule out of the lease protocol on this thread, by its field's name; none: all hold.
///
/// # Panics
/// There is no such rule.
pub fn take_out(rule: Option<&str>) {
    let mut rules = Rules::ALL;
    if let Some(name) = rule {
        *match name {
            "count_from_sending" => &mut rules.count_from_sending,
            "start_round_after_arrival" => &mut rules.start_round_after_arrival,
            "look_again_after_round" => &mut rules.look_again_after_round,
            "record_grants" => &mut rules.record_grants,
            "freeze_on_change" => &mut rules.freeze_on_change,
            "wait_out_predecessor" => &mut rules.wait_out_predecessor,
            "keep_longer_ttl" => &mut rules.keep_longer_ttl,
            "allow_for_drift" => &mut rules.allow_for_drift,
            "forget_released_epochs" => &mut rules.forget_released_epochs,
            other => panic!("there is no rule {other:?}"),
        } = false;
    }
    RULES.with(|present| present.set(rules));
}

pub(crate) fn rules() -> Rules {
    RULES.with(Cell::get)
}

/// Virtual time since the run began; none outside of one.
pub fn elapsed() -> Option<Duration> {
    Instant::try_now().map(Instant::elapsed_since_start)
}

/// The wall clock, inside of the simulation.
pub(crate) fn wall_ms() -> Option<u64> {
    let now = elapsed()?;
    Some(EPOCH_MS + now.as_millis() as u64)
}

/// The TTLs and rules that a state's revisions rule, as the node's feeder reads them.
#[derive(Clone, Debug)]
pub struct Rulebook {
    pub ttl: TtlHistory,
    pub rules: (u64, BTreeMap<VipName, VipRules>),
    pub voters: u32,
}

impl Default for Rulebook {
    fn default() -> Self {
        let defaults = trestle_config::Document::empty();
        let cluster = &defaults.config().cluster;
        Rulebook { ttl: TtlHistory::new(cluster.seat), rules: Default::default(), voters: cluster.voters }
    }
}

impl Rulebook {
    /// Reads the revisions that it has not seen; whether there were any.
    pub fn learn(&mut self, state: &State) -> bool {
        let known = self.ttl.revision();
        let from = state.revisions.partition_point(|revision| revision.number <= known);
        let from = from.max(state.revisions.len().saturating_sub(TtlHistory::KEPT));
        let unseen = &state.revisions[from..];
        let read: Vec<_> = unseen.iter().map(|revision| (revision.number, parse(revision))).collect();
        if let Some((number, Ok(document))) = read.last() {
            self.rules = (*number, rules_of(document.config()));
            self.voters = document.config().cluster.voters;
        }
        let ttls = read.iter().map(|(number, document)| (*number, ttls(document.as_ref())));
        self.ttl = self.ttl.caught_up(longest_leases(state), ttls.collect());
        !read.is_empty()
    }
}

/// What a document says of leases; nothing if it can't be read.
pub fn lease_times(document: &[u8]) -> LeaseTimes {
    let text = std::str::from_utf8(document).unwrap_or_default();
    let document = trestle_config::parse(trestle_config::Source { name: "document", text });
    document.map(|document| crate::feed::lease_times(document.config())).unwrap_or_default()
}

/// A cluster port of the process that opens it.
pub struct Port(String);

#[derive(Clone)]
struct Open {
    number: u64,
    process: Process,
    identity: NodeIdentity,
    routes: Arc<Mutex<Routes>>,
}

impl Port {
    pub fn new(address: impl Into<String>) -> Port {
        Port(address.into())
    }

    pub(crate) async fn serve(self, identity: NodeIdentity, routes: Routes, stop: CancellationToken) {
        let process = Process::present().expect("a port is opened by a process");
        let number = LAST_PORT.with(|last| {
            last.set(last.get() + 1);
            last.get()
        });
        // What a killed process leaves is gone with its tasks.
        struct Closes(String, u64);
        impl Drop for Closes {
            fn drop(&mut self) {
                let Closes(address, number) = self;
                let _ = PORTS.try_with(|ports| {
                    let mut ports = ports.borrow_mut();
                    if ports.get(address).is_some_and(|open| open.number == *number) {
                        drop(ports.remove(address));
                    }
                });
            }
        }
        let open = Open { number, process, identity, routes: Arc::new(Mutex::new(routes.prepare())) };
        PORTS.with(|ports| drop(ports.borrow_mut().insert(self.0.clone(), open)));
        let _closes = Closes(self.0, number);
        stop.cancelled().await;
    }
}

fn open_at(address: &str) -> Option<Open> {
    PORTS.with(|ports| ports.borrow().get(address).filter(|open| !open.process.is_dead()).cloned())
}

fn pass(from: &str, to: &str) -> Option<Duration> {
    SWITCH.with(|switch| switch.borrow().as_ref().and_then(|switch| switch.pass(from, to)))
}

#[derive(Clone)]
enum Target {
    Member { peers: Peers, cluster: Uuid, node: NodeId },
    Stranger(String),
}

/// In place of tonic's channel.
#[derive(Clone)]
pub(crate) struct Channel {
    me: NodeIdentity,
    from: String,
    target: Target,
    connection: Arc<Mutex<Option<Connection>>>,
}

#[derive(Clone)]
struct Connection {
    /// What we showed when it was made.
    identity: PeerIdentity,
    open: Open,
}

impl Channel {
    fn new(me: NodeIdentity, target: Target) -> Channel {
        let from = Process::present().map_or_else(String::new, |process| process.name().to_owned());
        Channel { me, from, target, connection: Arc::default() }
    }

    pub(crate) fn to_member(peers: Peers, me: NodeIdentity, cluster: Uuid, node: NodeId) -> Channel {
        Channel::new(me, Target::Member { peers, cluster, node })
    }

    pub(crate) async fn to_stranger(me: NodeIdentity, address: &str) -> Result<Channel, DialError> {
        let channel = Channel::new(me, Target::Stranger(address.to_owned()));
        channel.connect().await?;
        Ok(channel)
    }

    async fn connect(&self) -> Result<Connection, DialError> {
        // That the other end is gone is known by now: its kernel said so, or the keep-alive.
        let present = self.connection.lock().clone().filter(|present| !present.open.process.is_dead());
        if let Some(connection) = present {
            return Ok(connection);
        }
        let connection = match &self.target {
            Target::Stranger(address) => self.dial(address, None).await?,
            Target::Member { peers, cluster, node } => {
                let mut failure = DialError::NoAddress(*node);
                let mut made = None;
                for address in peers.candidates(*node)? {
                    match self.dial(&address, Some((*cluster, *node))).await {
                        Ok(connection) => {
                            peers.connected(*node, &address);
                            made = Some(connection);
                            break;
                        }
                        Err(error) => failure = error,
                    }
                }
                match made {
                    Some(connection) => connection,
                    None => {
                        peers.failed(*node, &failure);
                        return Err(failure);
                    }
                }
            }
        };
        *self.connection.lock() = Some(connection.clone());
        Ok(connection)
    }

    async fn dial(&self, address: &str, expected: Option<(Uuid, NodeId)>) -> Result<Connection, DialError> {
        let refused =
            |reason: &str| DialError::Connect { address: address.to_owned(), reason: reason.to_owned() };
        let to = address.split(':').next().unwrap_or(address);
        let (there, back) = (pass(&self.from, to), pass(to, &self.from));
        let (Some(there), Some(back)) = (there, back) else {
            sleep(CONNECT_TIMEOUT).await;
            return Err(refused("no answer in time"));
        };
        sleep(there + back).await;
        let open = open_at(address).ok_or_else(|| refused("connection refused"))?;
        if open.process.is_frozen() {
            // Its kernel takes the connection, but nobody answers the handshake.
            sleep(CONNECT_TIMEOUT).await;
            return Err(refused("no handshake in time"));
        }
        let identity = open.identity.present();
        if let Some((cluster, node)) = expected
            && (identity.cluster_id != Some(cluster) || identity.node() != Some(node))
        {
            let found = identity.to_string();
            return Err(DialError::WrongPeer { address: address.to_owned(), expected: node, found });
        }
        Ok(Connection { identity: self.me.present(), open })
    }

    async fn call(self, request: http::Request<Body>) -> Result<http::Response<Body>, BoxError> {
        let connection = self.connect().await?;
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let to = connection.open.process.name().to_owned();
        let (reply, answer) = oneshot::channel();
        let caller = Caller {
            identity: connection.identity.clone(),
            address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 1),
        };
        carry(pass(&self.from, &to), reply, {
            let (open, from) = (connection.open.clone(), self.from.clone());
            move |reply| {
                if open.process.is_dead() {
                    return;
                }
                let process = open.process.clone();
                drop(process.spawn(async move {
                    let response = serve(open, caller, head, body).await;
                    carry(pass(&to, &from), reply, move |reply| drop(reply.send(response)));
                }));
            }
        });
        let answer = timeout(KEEPALIVE, answer).await;
        let lost = |why: &str| {
            *self.connection.lock() = None;
            BoxError::from(std::io::Error::other(why.to_owned()))
        };
        match answer {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => Err(lost("the connection was reset")),
            Err(_) => Err(lost("nothing was heard for too long")),
        }
    }
}

type Reply = oneshot::Sender<Result<http::Response<Body>, BoxError>>;

/// Delivers after the delay, or never: then the asker's end stays open, and silent.
fn carry(delay: Option<Duration>, reply: Reply, deliver: impl FnOnce(Reply) + Send + 'static) {
    drop(Process::spawn_outside(async move {
        match delay {
            Some(delay) => {
                sleep(delay).await;
                deliver(reply);
            }
            None => {
                sleep(KEEPALIVE * 2).await;
                drop(reply);
            }
        }
    }));
}

async fn serve(
    open: Open,
    caller: Caller,
    head: http::request::Parts,
    body: Bytes,
) -> Result<http::Response<Body>, BoxError> {
    let mut request = http::Request::new(Body::new(Full::new(body)));
    *request.method_mut() = head.method;
    *request.uri_mut() = head.uri;
    *request.version_mut() = head.version;
    *request.headers_mut() = head.headers;
    request.extensions_mut().insert(caller);
    let call = open.routes.lock().call(request);
    let response = call.await.map_err(|never| BoxError::from(never.to_string()))?;
    let (head, body) = response.into_parts();
    let whole = body.collect().await?;
    Ok(http::Response::from_parts(head, Body::new(whole.map_err(|never: Infallible| match never {}))))
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.clone().call(request))
    }
}
