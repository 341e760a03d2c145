//! Copies of requests for other pools, whose answers nobody sees.
//!
//! A copy never delays the request that it is of: it is sent by a task of its own, after the request has been
//! handed on, or once its body has gone by. What would have to wait for room is not sent.
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
use http::{HeaderMap, Method, Request, Uri};
use http_body::Body;
use rand::Rng;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};
use trestle_config::model;

use super::body::Upload;
use super::forward;
use crate::pool::{FailureKind, Picked, Pool};
use crate::upstream::Target;
use crate::worker::Worker;

const COPIES_MAX: usize = 256;
const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const BODY_MAX: usize = 64 << 10;

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
}

impl Draft {
    /// `None`: it is nobody's turn.
    pub(crate) fn of(mirrors: &[Mirror], method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Draft> {
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
        })
    }

    /// Sends the copies, with what is known of the body.
    pub(crate) fn send(self, worker: &Rc<Worker>, body: &[Bytes]) {
        for pool in &self.pools {
            let Some(copy) = worker.copies.take(COPIES_MAX) else { return };
            let Ok(picked) = pool.pick(&[], None, Instant::now()) else { continue };
            let mut request = Request::new(match body {
                [] => Upload::None,
                pieces => Upload::Pieces(pieces.iter().cloned().collect::<VecDeque<_>>()),
            });
            *request.method_mut() = self.method.clone();
            *request.uri_mut() = self.uri.clone();
            *request.headers_mut() = self.headers.clone();
            let (pool, worker) = (Arc::clone(pool), Rc::clone(worker));
            // Ends with its answer, or when its time is over.
            spawn_local(async move {
                let _copy = copy;
                match timeout(PATIENCE, ask(&pool, &picked, &worker, request)).await {
                    Ok(Ok(status)) => picked.answered(status),
                    Ok(Err(kind)) => picked.failed(kind),
                    Err(_) => picked.failed(FailureKind::Timeout),
                }
            });
        }
    }
}

/// Reads the answer to its end, so that the connection can be kept.
async fn ask(
    pool: &Pool,
    picked: &Picked,
    worker: &Worker,
    mut request: Request<Upload>,
) -> Result<u16, FailureKind> {
    let target = Target::of(pool, picked.address()).ok_or(FailureKind::Connect)?;
    let keep = pool.settings().timeout.pool_idle;
    let mut upstream = match worker.upstreams.take(target, false) {
        Some(upstream) => upstream,
        None => {
            let connecting = worker.upstreams.connect(pool, target, false);
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
    let mut sent = pin!(upstream.send(request));
    let response = poll_fn(|cx| upstream.poll(cx, |cx| sent.as_mut().poll(cx))).await;
    let response = response.map_err(|_| FailureKind::Broken)?;
    let status = response.status().as_u16();
    let mut body = response.into_body();
    while !body.is_end_stream() {
        match poll_fn(|cx| upstream.poll(cx, |cx| Pin::new(&mut body).poll_frame(cx))).await {
            Some(Ok(_)) => {}
            Some(Err(_)) => return Err(FailureKind::Broken),
            None => break,
        }
    }
    worker.upstreams.put(target, upstream, Instant::now(), keep);
    Ok(status)
}
