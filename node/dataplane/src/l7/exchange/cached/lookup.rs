//! What is kept for a request, and what that is worth: decided without waiting.

use std::sync::Arc;

use http::HeaderMap;
use tokio::time::Instant;

use super::is_of_member;
use super::served::Served;
use crate::cache::Cache;
use crate::cache::directives::OfRequest;
use crate::cache::disk::{Disk, Ready};
use crate::cache::entry::{Entry, Stem};
use crate::cache::fill::Fill;
use crate::cache::flights::Landing;
use crate::cache::key::Key;
use crate::cache::rules::{Asked, Reuse};
use crate::cache::status::{Fwd, Outcome, Status};
use crate::cache::store::{Found, Kept};
use crate::metrics::Reason;
use crate::snapshot::Split;

pub(super) struct Lookup<'a> {
    pub(super) cache: &'a Cache,
    pub(super) key: Key,
    pub(super) asked: Asked,
    /// When the request came.
    pub(super) came: Instant,
    pub(super) request: &'a HeaderMap,
    pub(super) is_get: bool,
    /// The rule edits bodies: the client gets the whole of each.
    pub(super) edited: bool,
    /// The rule has responses compressed.
    pub(super) coded: bool,
    /// Of the rule.
    pub(super) split: &'a Split,
}

pub(super) enum Decision {
    Serve(Box<Served>),
    /// And have it validated.
    ServeMeanwhile(Box<Served>, At),
    Ask(Miss),
}

/// An entry and where it is kept.
pub(super) struct At {
    pub(super) at: u128,
    pub(super) entry: Arc<Entry>,
}

pub(super) struct Miss {
    pub(super) at: u128,
    pub(super) fwd: Fwd,
    /// What may still hold.
    pub(super) entry: Option<Arc<Entry>>,
    /// Answers for this key are not for all.
    apart: bool,
}

/// What follows from somebody else's answer.
pub(super) enum After {
    Serve(Box<Served>),
    Fail(Reason),
    Again,
    Alone,
}

impl Lookup<'_> {
    pub(super) fn decide(&self, now: Instant) -> Decision {
        let Found { at, varied, what } = self.look(now);
        let missed = if varied { Fwd::VaryMiss } else { Fwd::UriMiss };
        let (stale, apart) = match what {
            Kept::Entry(entry) => return self.judge(at, entry, missed, now),
            Kept::Apart(stale) => (stale, true),
            Kept::Doubted(stale) => (Some(stale), false),
            Kept::Nothing => (None, false),
        };
        let entry = stale.filter(|entry| !self.cache.purges.has(&entry.stem.mark, entry.stem.named()));
        Decision::Ask(Miss { at, fwd: missed, entry, apart })
    }

    /// What lies on disk where memory has nothing. `None`: nothing that is of use.
    pub(super) async fn load(&self, disk: &Disk, miss: &Miss) -> Option<Decision> {
        if miss.apart || miss.entry.is_some() {
            return None;
        }
        let at = match disk.spec(self.key.primary) {
            // What is known in memory is as new.
            Some(spec) if miss.fwd != Fwd::VaryMiss => {
                spec.variant(&self.cache.secret, self.key.primary, self.request)
            }
            _ => miss.at,
        };
        if let Some(entry) = disk.settling(at) {
            return Some(self.judge(at, entry, miss.fwd, Instant::now()));
        }
        let loaded = disk.load(at).await?;
        // Purges have been counted anew since, or are not known of yet: nobody can say what it has seen.
        if loaded.stem.mark.number() > self.cache.purges.latest() {
            if self.cache.is_trusted() {
                self.cache.store.remove(at);
            }
            return None;
        }
        let entry = self.cache.store.put_loaded(&loaded, &self.cache.budget)?;
        Some(self.judge(at, entry, miss.fwd, Instant::now()))
    }

    fn judge(&self, at: u128, entry: Arc<Entry>, missed: Fwd, now: Instant) -> Decision {
        let stem = &entry.stem;
        if self.cache.purges.has(&stem.mark, stem.named()) {
            self.cache.store.remove(at);
            return Decision::Ask(Miss { at, fwd: missed, entry: None, apart: false });
        }
        let age = stem.age(now);
        let reuse = match self.holds(stem) {
            true => stem.terms.reuse(age, &self.wishes(stem)),
            false => Reuse::Validate,
        };
        let serve = |outcome| {
            let status = Status { ttl: Some(stem.terms.ttl(age)), ..Status::new(outcome, None) };
            self.serve((at, &entry), now, status)
        };
        match reuse {
            Reuse::Fresh => Decision::Serve(serve(Outcome::Hit)),
            Reuse::Stale => Decision::Serve(serve(Outcome::Stale)),
            Reuse::StaleMeanwhile => {
                let served = serve(Outcome::Stale);
                Decision::ServeMeanwhile(served, At { at, entry })
            }
            Reuse::Validate => {
                let fresh = age < stem.terms.lifetime && !stem.terms.validate && self.holds(stem);
                let fwd = if fresh { Fwd::Request } else { Fwd::Stale };
                Decision::Ask(Miss { at, fwd, entry: Some(entry), apart: false })
            }
        }
    }

    /// What can't be read from the disk is asked of a member: with others, if it is gone.
    pub(super) fn unread(&self, at: u128, ready: Ready) -> Miss {
        if ready == Ready::Gone {
            self.cache.store.remove(at);
        }
        Miss { at, fwd: Fwd::UriMiss, entry: None, apart: ready == Ready::Busy }
    }

    fn look(&self, now: Instant) -> Found {
        self.cache.store.look(&self.cache.secret, self.key.primary, self.request, now)
    }

    /// Whether nothing has happened to the resource since, as far as this node can know.
    fn holds(&self, stem: &Stem) -> bool {
        self.cache.is_trusted() && stem.generation == self.cache.invalidations.generation(self.key.slot)
    }

    fn serve(&self, (at, entry): (u128, &Arc<Entry>), now: Instant, status: Status) -> Box<Served> {
        let request = (!self.edited).then_some(self.request);
        let mut served = Served::kept(entry, request, self.is_get, now, status);
        served.place = self.coded.then(|| (at, Arc::clone(entry)));
        served.edited_by = self.split.edited_by(&entry.stem.pool);
        served
    }

    /// What the request wants of this answer. One that its member has given since the request came is as new as any.
    fn wishes(&self, stem: &Stem) -> OfRequest {
        match stem.since >= self.came {
            true => OfRequest { no_cache: false, max_age: None, min_fresh: None, ..self.asked.directives },
            false => self.asked.directives,
        }
    }

    /// Whether only an answer will do that is not there yet.
    pub(super) fn wants_newer(&self) -> bool {
        let OfRequest { no_cache, max_age, min_fresh, .. } = self.asked.directives;
        no_cache || max_age.is_some() || min_fresh.is_some()
    }

    /// Whether another's answer could do.
    pub(super) fn may_wait(&self, miss: &Miss) -> bool {
        let for_all = miss.entry.as_ref().is_none_or(|entry| entry.stem.terms.is_for_all());
        let own = self.asked.authorized || self.asked.directives.no_store;
        self.cache.is_trusted() && for_all && !miss.apart && !own
    }

    /// Whether something else is kept by now.
    pub(super) fn has_changed(&self, miss: &Miss) -> bool {
        match (self.look(Instant::now()).what, &miss.entry) {
            (Kept::Entry(now) | Kept::Doubted(now), Some(then)) => !Arc::ptr_eq(&now, then),
            (Kept::Nothing, None) => false,
            (Kept::Nothing, Some(_)) | (Kept::Entry(_) | Kept::Doubted(_) | Kept::Apart(_), _) => true,
        }
    }

    /// `None`: it has taken too long.
    pub(super) fn after(&self, landing: Option<Landing>, miss: &Miss, now: Instant) -> After {
        match landing {
            Some(Landing::Filling(fill)) => self.join(&fill, miss.fwd, now),
            Some(Landing::Again) => After::Again,
            Some(Landing::Failed(reason)) => match (self.stands_in(miss, now), reason) {
                (Some(served), _) => After::Serve(served),
                (None, Some(reason)) if is_of_member(reason) => After::Fail(reason),
                _ => After::Alone,
            },
            // One more asks, and the others go on waiting.
            None => After::Again,
            Some(Landing::Apart(whom)) if !whom.has(self.asked.cookie) => After::Again,
            Some(Landing::Pending | Landing::Apart(_)) => After::Alone,
        }
    }

    fn join(&self, fill: &Arc<Fill>, fwd: Fwd, now: Instant) -> After {
        let (stem, variant) = (&fill.stem, &fill.variant);
        let own = || variant.spec.variant(&self.cache.secret, self.key.primary, self.request);
        if !variant.spec.is_empty() && own() != variant.key {
            return After::Again;
        }
        if !self.holds(stem) || self.cache.purges.has(&stem.mark, stem.named()) {
            return After::Again;
        }
        let reuse = stem.terms.reuse(stem.age(now), &self.wishes(stem));
        if !matches!(reuse, Reuse::Fresh | Reuse::StaleMeanwhile) {
            return After::Alone;
        }
        match fill.follow() {
            Some(follow) => {
                let status = Status::new(Outcome::Coalesced, Some(fwd));
                let request = (!self.edited).then_some(self.request);
                let mut served = Served::joining(follow, stem, request, now, status);
                served.edited_by = self.split.edited_by(&stem.pool);
                After::Serve(served)
            }
            None => After::Alone,
        }
    }

    /// What a request gets whose member has failed another.
    fn stands_in(&self, miss: &Miss, now: Instant) -> Option<Box<Served>> {
        let entry = miss.entry.as_ref()?;
        let may = self.holds(&entry.stem) && entry.stem.terms.may_stand_in(entry.stem.age(now));
        may.then(|| self.serve((miss.at, entry), now, Status::new(Outcome::Stale, Some(miss.fwd))))
    }
}
