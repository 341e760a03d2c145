//! Copies of requests for other pools, whose answers nobody sees.
//!
//! A copy never delays the request that it is of: it is sent by a task of its own, after the request has been
//! handed on, or once its body has gone by. What would have to wait for room is not sent.
//!
//! Each copy that was due is counted with its pool: as sent, or as dropped for a [`Dropped`].
//!
//! Bounds: [`COPIES_MAX`] copies under way a worker; each for at most [`PATIENCE`], with a body of at most
//! what a rule keeps ([`BODY_MAX`]).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body::Body;
use hyper::body::Incoming;
use rand::Rng;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};
use trestle_config::model;

use super::body::Upload;
use super::forward;
use crate::pool::{FailureKind, Picked, Pool, Refusal};
use crate::proxy_protocol::{Ends, Facts};
use crate::upstream::{Target, Upstream};
use crate::worker::Worker;

const COPIES_MAX: usize = 256;
const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const BODY_MAX: usize = 64 << 10;

/// Why a copy was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// As many copies as may be are under way.
    Busy,
    /// The body was longer than what is kept, or had not come as a whole.
    Body,
    /// Nobody of the pool is usable.
    NoMember,
    /// The pool has as much as it may have.
    Limit,
}

impl Dropped {
    pub(crate) const ALL: [Dropped; 4] = [Dropped::Busy, Dropped::Body, Dropped::NoMember, Dropped::Limit];
    pub(crate) const COUNT: usize = Self::ALL.len();

    pub(crate) fn label(self) -> &'static str {
        match self {
            Dropped::Busy => "busy",
            Dropped::Body => "body",
            Dropped::NoMember => "no_member",
            Dropped::Limit => "limit",
        }
    }
}

impl From<Refusal> for Dropped {
    fn from(refusal: Refusal) -> Dropped {
        match refusal {
            Refusal::NoMember => Dropped::NoMember,
            Refusal::Full | Refusal::Breaker | Refusal::Adaptive => Dropped::Limit,
        }
    }
}

/// A pool that gets a share of a rule's requests.
#[derive(Debug)]
pub(crate) struct Mirror {
    pool: Arc<Pool>,
    share: f64,
}

impl Mirror {
    pub(crate) fn new(settings: &model::Mirror, pool: &Arc<Pool>) -> Self {
        Self { pool: Arc::clone(pool), share: settings.share }
    }
}

/// A request that is to be copied.
#[derive(Debug)]
pub(crate) struct Draft {
    pools: Vec<Arc<Pool>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    /// Of the client.
    ends: Ends,
}

impl Draft {
    /// `None`: it is nobody's turn.
    pub(crate) fn of(
        mirrors: &[Mirror],
        (method, uri, headers): (&Method, &Uri, &HeaderMap),
        ends: impl FnOnce() -> Ends,
    ) -> Option<Draft> {
        if mirrors.is_empty() {
            return None;
        }
        let mut random = rand::rng();
        let pools = mirrors.iter().filter(|mirror| random.random::<f64>() < mirror.share);
        let pools: Vec<_> = pools.map(|mirror| Arc::clone(&mirror.pool)).collect();
        (!pools.is_empty()).then(|| Draft {
            pools,
            method: method.clone(),
            uri: uri.clone(),
            headers: headers.clone(),
            ends: ends(),
        })
    }

    /// The body can't be sent along.
    pub(crate) fn without_body(self) {
        self.pools.iter().for_each(|pool| drop_copy(pool, Dropped::Body));
    }

    /// Sends the copies, with what is known of the body.
    pub(crate) fn send(self, worker: &Rc<Worker>, body: &[Bytes]) {
        for pool in &self.pools {
            let picked = match worker.copies.take(COPIES_MAX) {
                Some(copy) => {
                    pool.pick(&[], None, Instant::now()).map(|picked| (copy, picked)).map_err(Into::into)
                }
                None => Err(Dropped::Busy),
            };
            let (copy, picked) = match picked {
                Ok(picked) => picked,
                Err(why) => {
                    drop_copy(pool, why);
                    continue;
                }
            };
            pool.counters().mirrored.inc();
            let mut request = Request::new(match body {
                [] => Upload::None,
                pieces => Upload::Pieces(pieces.iter().cloned().collect::<VecDeque<_>>()),
            });
            *request.method_mut() = self.method.clone();
            *request.uri_mut() = self.uri.clone();
            *request.headers_mut() = self.headers.clone();
            let (pool, worker, ends) = (Arc::clone(pool), Rc::clone(worker), self.ends);
            // Ends with its answer, or when its time is over.
            spawn_local(async move {
                let _copy = copy;
                match timeout(PATIENCE, ask(&pool, &picked, &worker, ends, request)).await {
                    Ok(Ok(status)) => picked.answered(status),
                    Ok(Err(kind)) => picked.failed(kind),
                    Err(_) => picked.failed(FailureKind::Timeout),
                }
            });
        }
    }
}

fn drop_copy(pool: &Pool, why: Dropped) {
    pool.counters().mirror_dropped[why as usize].inc();
}

/// Reads the answer to its end, so that the connection can be kept.
async fn ask(
    pool: &Pool,
    picked: &Picked,
    worker: &Worker,
    ends: Ends,
    request: Request<Upload>,
) -> Result<u16, FailureKind> {
    let (response, mut upstream, target) = begin(pool, picked, worker, ends, request).await?;
    let keep = pool.settings().timeout.pool_idle;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    while !body.is_end_stream() {
        match poll_fn(|cx| upstream.poll(cx, |cx| Pin::new(&mut body).poll_frame(cx))).await {
            Some(Ok(_)) => {}
            Some(Err(_)) => return Err(FailureKind::Broken),
            None => break,
        }
    }
    if target.is_for_one() {
        // Nobody else can use it.
        worker.upstreams.forget(&target);
    } else {
        worker.upstreams.put(target, upstream, Instant::now(), keep);
    }
    Ok(status)
}

/// Sends a request for which nobody waits, and answers with the head of what comes.
pub(super) async fn begin(
    pool: &Pool,
    picked: &Picked,
    worker: &Worker,
    ends: Ends,
    mut request: Request<Upload>,
) -> Result<(Response<Incoming>, Upstream, Target), FailureKind> {
    let target = Target::of(pool, picked.member(), || worker.next_serial()).ok_or(FailureKind::Connect)?;
    let mut upstream = match worker.upstreams.take(target, false) {
        Some(upstream) => upstream,
        None => {
            let said = (ends, Facts::default());
            let connecting = worker.upstreams.connect(pool, picked.member(), (target, &said), false);
            let connected = timeout(pool.settings().timeout.connect, connecting).await;
            connected.map_err(|_| FailureKind::ConnectTimeout)?.map_err(|_| FailureKind::Connect)?
        }
    };
    upstream.detach();
    if !poll_fn(|cx| upstream.poll_ready(cx)).await {
        return Err(FailureKind::Broken);
    }
    let tls = pool.tls().is_some();
    forward::dress(&mut request, upstream.is_http2(), tls, false).map_err(|_| FailureKind::Broken)?;
    let began = Instant::now();
    let mut sent = pin!(upstream.send(request));
    let response = poll_fn(|cx| upstream.poll(cx, |cx| sent.as_mut().poll(cx))).await;
    let response = response.map_err(|_| FailureKind::Broken)?;
    pool.heard(picked, Some(began).filter(|_| !response.status().is_server_error()));
    Ok((response, upstream, target))
}
