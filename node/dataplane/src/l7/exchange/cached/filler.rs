//! Fetches a body for all who want it, and has it kept.
//!
//! One task a fill, on the worker whose request began it; it ends with the body, when that breaks off or takes too long,
//! when nobody wants the rest, or with its worker. The member counts as busy as long as the client is there whose request
//! it was.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use hyper::body::Incoming;
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::errand::{Errand, Prospect};
use crate::alarm::{Alarm, Elapsed};
use crate::budget::Hold;
use crate::cache::disk::Ending;
use crate::cache::entry::{Entry, Stem};
use crate::cache::fill::{Fill, Follow, Variant, Wanted, Writer};
use crate::cache::flights::Landing;
use crate::cache::store::Whom;
use crate::l7::exchange::attempt::{after, earlier};
use crate::l7::transfer::Deadline;
use crate::metrics::Reason;
use crate::pool::{FailureKind, MemberState};
use crate::upstream::{Target, Upstream};

/// While a member waits for those who follow.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where a body comes from.
pub(super) struct From {
    pub(super) upstream: Upstream,
    pub(super) target: Target,
    pub(super) body: Incoming,
    pub(super) deadline: Option<Deadline>,
    pub(super) keep: Duration,
    pub(super) idle: Duration,
    pub(super) member: Option<Arc<MemberState>>,
}

pub(super) struct Filler {
    errand: Errand,
    stem: Arc<Stem>,
    hold: Hold,
    variant: Variant,
    source: From,
}

enum Step {
    Frame(Frame<Bytes>),
    End,
    Broken,
    /// Nobody wants more.
    Left,
}

impl Filler {
    /// Lets everybody who waits have it. `anyway`: also if nobody does.
    pub(super) fn start(errand: Errand, prospect: Prospect, source: From, anyway: bool) -> Option<Follow> {
        let Prospect { stem, hold, variant, most, length } = prospect;
        let pieces = errand.cache().budget.hold(0)?;
        let (fill, mut writer) = Fill::begin(Arc::clone(&stem), length, variant.clone(), pieces, most);
        writer.anyway = anyway;
        let key = (variant.key, errand.key.primary, errand.key.slot);
        if let Some(offer) = errand.cache().store.disk().and_then(|disk| disk.offer(key, &stem, length)) {
            writer.offer(offer, errand.cache().budget.of_fill());
        }
        let follow = fill.follow();
        errand.land(if stem.terms.is_for_all() { Landing::Filling(fill) } else { Landing::Apart(Whom::All) });
        let filler = Self { errand, stem, hold, variant, source };
        if filler.source.body.is_end_stream() {
            filler.end(writer, None);
        } else {
            spawn_local(filler.run(writer));
        }
        follow
    }

    async fn run(mut self, mut writer: Writer) {
        let alarm = Alarm::default();
        loop {
            // How long followers take is their own affair, and that of those who wait for them.
            while alarm
                .within(Some(Instant::now() + LOOK_EVERY), poll_fn(|cx| writer.poll_wanted(cx)))
                .await
                .is_err()
            {
                writer.hurry();
            }
            let idle = after(Instant::now(), self.source.idle, Reason::Idle);
            let deadline = earlier(self.source.deadline, idle);
            let step = alarm.within(deadline.map(|(at, _)| at), self.step(&mut writer)).await;
            let failed = match step {
                Ok(Step::Frame(frame)) => match frame.into_data() {
                    Ok(data) => {
                        writer.push(data);
                        if !self.source.body.is_end_stream() {
                            continue;
                        }
                        return self.end(writer, None);
                    }
                    Err(frame) => return self.end(writer, frame.into_trailers().ok()),
                },
                Ok(Step::End) => return self.end(writer, None),
                Ok(Step::Left) => return writer.end_broken(Reason::ClientGone),
                Ok(Step::Broken) => (Reason::UpstreamBroken, FailureKind::Broken),
                Err(Elapsed) => (deadline.map_or(Reason::Idle, |(_, reason)| reason), FailureKind::Timeout),
            };
            self.source.member.iter().for_each(|member| member.failed(failed.1));
            return writer.end_broken(failed.0);
        }
    }

    async fn step(&mut self, writer: &mut Writer) -> Step {
        let From { upstream, body, .. } = &mut self.source;
        poll_fn(|cx| {
            if writer.poll_wanted(cx) == Poll::Ready(Wanted::Nothing) {
                return Poll::Ready(Step::Left);
            }
            let polled = upstream.poll(cx, |cx| Pin::new(&mut *body).poll_frame(cx));
            polled.map(|frame| match frame {
                Some(Ok(frame)) => Step::Frame(frame),
                Some(Err(_)) => Step::Broken,
                None => Step::End,
            })
        })
        .await
    }

    /// Its body has come. It is found before the flight ends, so that nobody asks between the two.
    fn end(self, writer: Writer, trailers: Option<HeaderMap>) {
        let Self { errand, stem, hold, variant, source } = self;
        let From { upstream, target, keep, .. } = source;
        let cache = errand.cache();
        // It must not take the place of what came after a purge, nor of a member's newer answer.
        let holds = !cache.purges.has(&stem.mark, stem.named())
            && stem.generation == cache.invalidations.generation(errand.key.slot)
            && ![errand.key.primary, variant.key].iter().any(|at| cache.store.has_newer(*at, &stem));
        let (body, writing) = writer.end(trailers.clone());
        if holds {
            let entry = body.map(|body| Arc::new(Entry::new(Arc::clone(&stem), body, hold)));
            let (primary, spec) = (errand.key.primary, variant.spec);
            match (writing, entry) {
                (Some(writing), entry) => {
                    cache.store.remove(variant.key);
                    let store = Some(cache.store.clone());
                    writing.finish(Ending { stem, spec, trailers, entry, store });
                }
                (None, Some(entry)) => cache.store.put(primary, &spec, variant.key, entry),
                (None, None) => {}
            }
        }
        if target.is_for_one() {
            // It goes with the client that it is for.
            drop(upstream);
        } else {
            errand.worker.upstreams.put(target, upstream, Instant::now(), keep);
        }
    }
}
