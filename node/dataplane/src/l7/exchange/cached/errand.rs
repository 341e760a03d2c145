//! What a member is asked on behalf of all, and what is made of its answer.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::header::DATE;
use http::{HeaderMap, HeaderValue, Method, Response};
use http_body::Body;
use tokio::time::Instant;

use super::is_failure;
use super::lookup::Lookup;
use super::served::Served;
use crate::budget::Hold;
use crate::cache::conditional::{Question, confirms, describes, refresh};
use crate::cache::entry::{Entry, Origin, Stem};
use crate::cache::fill::Variant;
use crate::cache::flights::{Landing, Lead};
use crate::cache::key::Key;
use crate::cache::rules::{Asked, Came, Terms, Why, judge};
use crate::cache::status::Status;
use crate::cache::store::Whom;
use crate::cache::vary::Spec;
use crate::cache::{Cache, Policy};
use crate::l7::forward;
use crate::l7::record::{Record, RuleAt, rule_at};
use crate::metrics::Reason;
use crate::worker::{ListenerRef, Worker};

/// Everything about a request that outlives it.
pub(super) struct Errand {
    pub(super) worker: Rc<Worker>,
    pub(super) listener: ListenerRef,
    pub(super) rule: RuleAt,
    pub(super) key: Key,
    /// Where something is kept, or would be as far as is known.
    pub(super) at: u128,
    asked: Asked,
    /// As the client sent them.
    pub(super) headers: HeaderMap,
    pub(super) origin: Origin,
    /// Whose member was asked.
    pub(super) pool: Box<str>,
    /// `None`: nobody waits for it.
    pub(super) lead: Option<Lead>,
    /// What may still hold.
    pub(super) entry: Option<Arc<Entry>>,
    pub(super) edited: bool,
}

/// An answer that may be kept once its body has come.
pub(super) struct Prospect {
    pub(super) stem: Arc<Stem>,
    /// Its memory.
    pub(super) hold: Hold,
    pub(super) variant: Variant,
    pub(super) most: u64,
    pub(super) length: Option<u64>,
}

impl Errand {
    pub(super) fn new(
        record: &Record,
        lookup: &Lookup<'_>,
        origin: Origin,
        (at, entry): (u128, Option<Arc<Entry>>),
    ) -> Self {
        Self {
            worker: Rc::clone(&record.conn.client.worker),
            listener: Rc::clone(&record.listener),
            rule: record.rule.unwrap_or(RuleAt::Fallback),
            key: lookup.key,
            at,
            asked: lookup.asked,
            headers: lookup.request.clone(),
            origin,
            pool: Box::default(),
            lead: None,
            entry,
            edited: lookup.edited,
        }
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.worker.cache
    }

    fn policy(&self) -> Option<&Policy> {
        rule_at(&self.listener, self.rule)?.cache.as_deref()
    }

    pub(super) fn question(&self) -> Question {
        self.entry.as_ref().map_or(Question::Whole, |entry| Question::about(&entry.stem.head))
    }

    pub(super) fn land(&self, landing: Landing) {
        self.lead.iter().for_each(|lead| lead.land(landing.clone()));
    }

    /// No answer came, or none that is worth anything.
    pub(super) fn failed(&self, reason: Option<Reason>) {
        match reason {
            Some(reason) if !super::is_of_member(reason) => self.land(Landing::Again),
            reason => self.land(Landing::Failed(reason)),
        }
    }

    /// What may be served in place of an error.
    pub(super) fn stands_in(&self, now: Instant) -> Option<Arc<Entry>> {
        let entry = self.entry.as_ref()?;
        let (stem, cache) = (&entry.stem, self.cache());
        let holds = cache.is_trusted()
            && stem.generation == cache.invalidations.generation(self.key.slot)
            && !cache.purges.has(&stem.mark, stem.named());
        (holds && stem.terms.may_stand_in(stem.age(now))).then(|| Arc::clone(entry))
    }

    /// What is kept could have been served without asking.
    fn is_fresh(&self, now: Instant) -> bool {
        let lives = |entry: &Arc<Entry>| {
            let Stem { terms, .. } = &*entry.stem;
            !terms.validate && entry.stem.age(now) < terms.lifetime
        };
        self.stands_in(now).is_some_and(|entry| lives(&entry))
    }

    pub(super) fn serve(&self, entry: Arc<Entry>, record: &Record, mut status: Status) -> Box<Served> {
        let now = Instant::now();
        status.ttl = Some(entry.stem.terms.ttl(entry.stem.age(now)));
        let request = (!self.edited).then_some(&self.headers);
        let mut served = Served::kept(&entry, request, record.method == Method::GET, now, status);
        served.edited_by = record.rule().and_then(|rule| rule.split.edited_by(&entry.stem.pool));
        served.place = Some((self.at, entry));
        served
    }

    fn came(&self, now: Instant) -> Came {
        let wall = Duration::from_nanos(self.worker.unix_ns(now));
        Came { wall, delay: now.saturating_duration_since(self.origin.sent) }
    }

    /// Whether an answer may be kept. Those who wait hear what they need: that it is not for them, or, later, that it
    /// comes.
    pub(super) fn judge<B: Body>(
        &mut self,
        response: &mut Response<B>,
        now: Instant,
    ) -> Result<Prospect, Why> {
        forward::clean(response.headers_mut());
        let came = self.came(now);
        date(response.headers_mut(), came.wall);
        let verdict = self.prospect(response, came, now);
        match &verdict {
            Ok(prospect) => {
                let Variant { spec, key } = &prospect.variant;
                self.cache().store.announce(self.key.primary, spec);
                let (at, origin) = (*key, self.origin.clone());
                self.lead.iter_mut().for_each(|lead| lead.also(at, &origin));
                self.at = at;
            }
            // A failure says nothing of what is kept, nor of the next answer.
            Err(_) if is_failure(response.status()) => self.land(Landing::Failed(Some(Reason::MemberFailed))),
            Err(why) => {
                let whom = why.whom();
                // What is fresh stays for others: the client has wished for another answer by itself.
                if let Some(whom) = whom.filter(|_| !self.is_fresh(now)) {
                    self.cache().store.set_apart(self.at, whom, self.origin.sent, self.stands_in(now));
                }
                self.land(Landing::Apart(whom.unwrap_or(Whom::All)));
            }
        }
        verdict
    }

    fn prospect<B: Body>(&self, response: &Response<B>, came: Came, now: Instant) -> Result<Prospect, Why> {
        let policy = self.policy().ok_or(Why::NoRoom)?;
        let (cache, head) = (self.cache(), response.headers());
        let terms = judge(&self.asked, response.status(), head, &policy.leave, came)?;
        let length = response.body().size_hint().exact();
        if length.is_some_and(|length| length > policy.max_object) {
            return Err(Why::TooLarge);
        }
        let variant = self.variant(policy, head).ok_or(Why::Vary)?;
        let stem = Stem::new(response.status(), head, terms, now, (&self.origin, &self.pool))?;
        let hold = cache.budget.hold(stem.weight).ok_or(Why::NoRoom)?;
        Ok(Prospect { stem: Arc::new(stem), hold, variant, most: policy.max_object, length })
    }

    /// Which of the responses for the key this one is. `None`: it can't be told whom it fits.
    fn variant(&self, policy: &Policy, head: &HeaderMap) -> Option<Variant> {
        let (cache, primary) = (self.cache(), self.key.primary);
        let own = Spec::of(head, |name| policy.fate(name))?;
        let spec = cache.store.spec(primary, &own)?;
        let key = match spec.is_empty() {
            true => primary,
            false => spec.variant(&cache.secret, primary, &self.headers),
        };
        Some(Variant { spec, key })
    }

    /// What a member's answer to a HEAD says of what is kept (RFC 9111, section 4.3.5): that it still holds, or that it does
    /// not.
    pub(super) fn heard(&mut self, told: &HeaderMap, now: Instant) {
        let Some(entry) = &self.entry else { return };
        match describes(told, &entry.stem.head, entry.body.len()) {
            Some(true) => drop(self.freshen(told.clone(), now)),
            Some(false) => self.cache().store.remove_entry(self.at, entry),
            None => {}
        }
    }

    /// What was kept, brought up to date by a member that says that it still holds. `None`: it says so of something else.
    pub(super) fn freshen(&mut self, mut confirmed: HeaderMap, now: Instant) -> Option<Arc<Entry>> {
        let entry = self.entry.take()?;
        if !confirms(&confirmed, &entry.stem.head) {
            self.cache().store.remove_entry(self.at, &entry);
            return None;
        }
        forward::clean(&mut confirmed);
        let came = self.came(now);
        date(&mut confirmed, came.wall);
        let mut head = entry.stem.head.clone();
        refresh(&mut head, &confirmed);
        let policy = self.policy();
        let leave = policy.map(|policy| policy.leave).unwrap_or_default();
        // It may vary by more now: what is kept does not fit all who would get it.
        let variant = policy.and_then(|policy| self.variant(policy, &head));
        let fits = variant.is_some_and(|variant| variant.key == self.at);
        let terms = judge(&self.asked, entry.stem.status, &head, &leave, came);
        let for_all = terms.as_ref().is_ok_and(Terms::is_for_all);
        let why = terms.as_ref().err().copied();
        let kept = why.is_none() && fits;
        // That this client is not to have it from what is kept, or leaves nothing to keep, is not about others.
        let goes = !fits || why.is_some_and(Why::is_of_response);
        let whom = why.and_then(Why::whom).unwrap_or(Whom::All);
        // What may be kept no longer goes out once more.
        let terms = terms.unwrap_or_else(|_| Terms { validate: true, ..entry.stem.terms.clone() });
        let stem = Stem::new(entry.stem.status, &head, terms, now, (&self.origin, &entry.stem.pool)).ok();
        let stem = stem.map_or_else(|| Arc::clone(&entry.stem), Arc::new);
        let hold = self.cache().budget.hold(stem.weight);
        let room = hold.is_some();
        let hold = hold.or_else(|| self.cache().budget.hold(0))?;
        let current = stem.generation == self.cache().invalidations.generation(self.key.slot);
        let fresh = Arc::new(Entry::new(stem, entry.body.clone(), hold));
        let store = &self.cache().store;
        if kept && room {
            store.replace(self.at, &fresh, current);
        } else if goes {
            store.remove_entry(self.at, &entry);
        }
        // Those whom it does not fit look further, one by one.
        self.land(if for_all && room { Landing::Again } else { Landing::Apart(whom) });
        Some(fresh)
    }
}

/// Whoever keeps a response that does not say when it was made says so (RFC 9110, section 6.6.1).
fn date(head: &mut HeaderMap, wall: Duration) {
    if !head.contains_key(DATE)
        && let Ok(value) =
            HeaderValue::from_maybe_shared(httpdate::fmt_http_date(UNIX_EPOCH + wall).into_bytes())
    {
        head.insert(DATE, value);
    }
}
