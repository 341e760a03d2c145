//! Spans on their way to a collector: OTLP over gRPC.
//!
//! One task of the control runtime, owned by the node's life: it takes what the plane hands on, gathers it for
//! up to [`GATHER`] or [`SPANS`], and sends one request after the other. It ends with the plane, after what
//! was left is sent; whoever waits for that does so for [`END`] at most.
//!
//! Bounds: what waits is bounded by the plane's queue; a request is tried [`ATTEMPTS`] times, each for
//! [`PATIENCE`]. While a collector does not take them, spans are lost and counted, here or in the plane; that
//! it began, and that it is over, is logged once each.

mod channel;
mod message;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use trestle_dataplane::SpanQueue;

use crate::settings::Otlp;

/// Spans that a request has, or a few more.
const SPANS: usize = 512;
/// How long they are waited for.
const GATHER: Duration = Duration::from_secs(1);
/// For one attempt to send them.
const PATIENCE: Duration = Duration::from_secs(5);
const ATTEMPTS: u32 = 3;
/// Before the second attempt; twice as long before the third.
const BACKOFF: Duration = Duration::from_millis(500);

/// How long the end of a node waits for what is left to be sent.
pub(crate) const END: Duration = Duration::from_secs(2);

/// What came of spans.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) exported: AtomicU64,
    /// No attempt went well, or the collector refused them.
    pub(crate) failed: AtomicU64,
    pub(crate) failing: AtomicBool,
}

pub(crate) struct Exporter {
    client: TraceServiceClient<Channel>,
    settings: Otlp,
    resource: Resource,
    queue: SpanQueue,
    counts: Arc<Counts>,
}

impl Exporter {
    /// Nothing is connected to before there are spans.
    ///
    /// # Errors
    /// If no certificates of authorities can be had.
    pub(crate) fn new(settings: Otlp, node: &str, queue: SpanQueue) -> anyhow::Result<Self> {
        let client = TraceServiceClient::new(channel::open(&settings)?);
        let resource = message::resource(&settings, node);
        Ok(Self { client, settings, resource, queue, counts: Arc::default() })
    }

    pub(crate) fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Until the plane has ended.
    pub(crate) async fn run(mut self) {
        while let Some(first) = self.queue.next().await {
            let until = Instant::now() + GATHER;
            let mut spans: Vec<Span> = first.iter().map(message::span).collect();
            // Its end is found again by the loop.
            while spans.len() < SPANS
                && let Ok(Some(batch)) = timeout_at(until, self.queue.next()).await
            {
                spans.extend(batch.iter().map(message::span));
            }
            self.export(spans).await;
        }
    }

    async fn export(&mut self, spans: Vec<Span>) {
        let all = spans.len() as u64;
        let outcome = self.send(message::request(&self.resource, spans)).await;
        let refused = match &outcome {
            Ok(refused) => (*refused).min(all),
            Err(_) => all,
        };
        self.counts.exported.fetch_add(all - refused, Relaxed);
        self.counts.failed.fetch_add(refused, Relaxed);
        let (endpoint, failing) = (&self.settings.endpoint, outcome.is_err());
        if self.counts.failing.swap(failing, Relaxed) == failing {
            return;
        }
        match outcome {
            Ok(_) => tracing::info!(%endpoint, "spans are exported again"),
            Err(status) => {
                let (code, error) = (status.code(), status.message());
                tracing::warn!(%endpoint, ?code, error, "spans can't be exported");
            }
        }
    }

    /// How many spans the collector has refused.
    async fn send(&mut self, message: ExportTraceServiceRequest) -> Result<u64, Status> {
        let mut backoff = BACKOFF;
        for attempt in 1.. {
            let mut request = Request::new(message.clone());
            let headers = self.settings.headers.iter().cloned();
            let mut metadata = std::mem::take(request.metadata_mut()).into_headers();
            metadata.extend(headers);
            *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(metadata);
            let late = |_| Err(Status::deadline_exceeded("no answer in time"));
            match timeout(PATIENCE, self.client.export(request)).await.unwrap_or_else(late) {
                Ok(response) => {
                    let refused = response.into_inner().partial_success.map(|partial| partial.rejected_spans);
                    return Ok(refused.and_then(|refused| u64::try_from(refused).ok()).unwrap_or(0));
                }
                Err(status) if attempt == ATTEMPTS || !may_pass(status.code()) => return Err(status),
                Err(_) => {
                    sleep(backoff.mul_f64(rand::random_range(0.5..=1.0))).await;
                    backoff *= 2;
                }
            }
        }
        Err(Status::internal("no attempt was made"))
    }
}

/// Whether trying again makes sense, by OTLP's specification.
fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}

#[cfg(test)]
mod tests;
