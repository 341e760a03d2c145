//! Validates in the background what was served stale (RFC 5861, section 3).
//!
//! One task a refresh; one refresh of a response at a time, over all workers; [`REFRESHES_MAX`] a worker: more are left to
//! later requests.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body::Body;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};

use super::errand::Errand;
use super::filler::{Filler, From};
use super::is_failure;
use crate::cache::flights::{Joining, Turn};
use crate::l7::body::Upload;
use crate::l7::exchange::{edit, key, prepare};
use crate::l7::head::Framing;
use crate::l7::mirror;
use crate::l7::record::Record;
use crate::pool::{FailureKind, Picked, Pool};
use crate::proxy_protocol::Ends;
use crate::snapshot::Rule;
use crate::worker::{Place, Worker};

const REFRESHES_MAX: usize = 64;

/// For the head of an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request that nobody waits for.
struct Refresh {
    errand: Errand,
    request: Request<Upload>,
    pool: Arc<Pool>,
    picked: Picked,
    ends: Ends,
    idle: Duration,
    _place: Place,
}

/// `uri`: as the client asked for it.
pub(super) fn begin(record: &mut Record, rule: &Rule, uri: &Uri, mut errand: Errand) {
    let worker = Rc::clone(&errand.worker);
    let cache = errand.cache();
    if !cache.is_trusted() {
        return;
    }
    let Some(place) = worker.refreshes.take(REFRESHES_MAX) else { return };
    let joining = Joining { origin: &errand.origin, wants_newer: false, has_time: true };
    let Turn::Lead(lead) = cache.flights.join(errand.at, joining, &cache.purges) else { return };
    errand.lead = Some(lead);
    record.question = Some(Box::new(errand.question()));
    let refresh = refresh(record, rule, uri, errand, place);
    record.question = None;
    if let Some(refresh) = refresh {
        spawn_local(refresh.run(worker));
    }
}

/// `None`: it can't be sent, or nobody is there to be asked.
fn refresh(record: &Record, rule: &Rule, uri: &Uri, mut errand: Errand, place: Place) -> Option<Refresh> {
    let (mut uri, mut headers) = (uri.clone(), errand.headers.clone());
    prepare(record, rule, &mut uri, &mut headers, Framing::None, false).ok()?;
    let (at, pool, picked) = rule.split.next().find_map(|at| {
        let pool = rule.split.pool(at)?;
        let picked = pool.pick(&[], key(pool, record, &headers), Instant::now()).ok()?;
        Some((at, Arc::clone(pool), picked))
    })?;
    errand.pool = pool.name().into();
    edit(record, &mut headers, rule.split.edits(at).and_then(|edits| edits.request.as_deref()));
    let ends = record.conn.client.ends_of(record.client());
    Some(Refresh {
        errand,
        request: request(uri, headers),
        pool,
        picked,
        ends,
        idle: rule.timeout.idle,
        _place: place,
    })
}

fn request(uri: Uri, headers: HeaderMap) -> Request<Upload> {
    let mut request = Request::new(Upload::None);
    *request.method_mut() = Method::GET;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request
}

impl Refresh {
    async fn run(self, worker: Rc<Worker>) {
        let Self { mut errand, request, pool, picked, ends, idle, _place } = self;
        let asked = mirror::begin(&pool, &picked, &worker, ends, request);
        let (mut response, upstream, target) = match timeout(PATIENCE, Box::pin(asked)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(kind)) => {
                picked.failed(kind);
                return errand.failed(None);
            }
            Err(_) => {
                picked.failed(FailureKind::Timeout);
                return errand.failed(None);
            }
        };
        let (now, status) = (Instant::now(), response.status());
        picked.answered(status.as_u16());
        let keep = pool.settings().timeout.pool_idle;
        if status == StatusCode::NOT_MODIFIED && errand.entry.is_some() {
            if response.body().is_end_stream() && !target.is_for_one() {
                worker.upstreams.put(target, upstream, now, keep);
            }
            errand.freshen(std::mem::take(response.headers_mut()), now);
            return;
        }
        if is_failure(status) && errand.stands_in(now).is_some() {
            return errand.failed(None);
        }
        match errand.judge(&mut response, now) {
            Ok(prospect) => {
                let member = Some(Arc::clone(picked.member()));
                let body = response.into_body();
                let source = From { upstream, target, body, deadline: None, keep, idle, member };
                drop(Filler::start(errand, prospect, source, true));
            }
            // Nobody reads the rest of it.
            Err(_) => errand.cache().store.supersede(errand.at),
        }
    }
}
