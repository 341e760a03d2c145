//! What is kept, by key: entries, what their variants are told apart by, and which keys are not worth a wait.
//!
//! moka keeps what is asked for often (TinyLFU), within a weight in bytes; a lookup takes no lock that workers share. It
//! works its bookkeeping off in small steps on the threads that use it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::header::COOKIE;
use moka::notification::RemovalCause;
use moka::sync::Cache;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::disk::{Disk, Loaded, OnDisk};
use super::entry::{Body, Entry, Stem};
use super::key::Secret;
use super::vary::{Spec, VARIANTS_MAX};
use crate::budget::Budget;
use crate::metrics::Counter;

const TURNS: usize = 32;

/// For how long requests for something that was not to be kept do not wait for each other.
const APART: Duration = Duration::from_secs(10);

/// Of what is no entry.
const SMALL: u32 = 256;
const VARIED: u32 = 1024 + 16 * VARIANTS_MAX as u32;

#[derive(Clone, Debug)]
enum Slot {
    Entry(Arc<Entry>),
    /// Look further, by more of the request.
    Varied(Arc<Varied>),
    Apart(Apart),
}

#[derive(Clone, Debug)]
struct Apart {
    whom: Whom,
    /// Until then they ask by themselves.
    until: Instant,
    /// When the request was sent whose answer said so.
    sent: Instant,
    /// What was kept before stays for as long as nothing whole has come in its place: it is not served, unless members fail.
    stale: Option<Arc<Entry>>,
}

/// Whom an answer that is not kept is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    All,
    /// Those who send cookies.
    Cookied,
}

impl Whom {
    pub(crate) fn has(self, cookie: bool) -> bool {
        self == Whom::All || cookie
    }
}

impl Slot {
    fn entry(&self) -> Option<&Arc<Entry>> {
        match self {
            Slot::Entry(entry) => Some(entry),
            Slot::Apart(apart) => apart.stale.as_ref(),
            Slot::Varied(_) => None,
        }
    }

    /// A member has said something else since this request was sent.
    fn is_newer_than(&self, stem: &Stem) -> bool {
        match self {
            Slot::Entry(entry) => entry.stem.is_newer_than(stem),
            Slot::Apart(apart) => apart.whom == Whom::All && !stem.was_asked_after(apart.sent),
            Slot::Varied(_) => false,
        }
    }
}

#[derive(Debug)]
struct Varied {
    spec: Spec,
    /// The oldest first.
    variants: Mutex<VecDeque<u128>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Store {
    slots: Cache<u128, Slot, ahash::RandomState>,
    /// Of a key's hash: whoever changes what is kept there takes turns. A lookup does not.
    turns: Arc<[Mutex<()>; TURNS]>,
    evicted: Arc<Counter>,
    /// What is there holds the heads of what is on disk, as far as they were asked for.
    disk: Option<Arc<Disk>>,
}

/// What is known of a request's key.
#[derive(Debug)]
pub(crate) struct Found {
    /// The key, or that of the variant.
    pub(crate) at: u128,
    /// There are variants.
    pub(crate) varied: bool,
    pub(crate) what: Kept,
}

#[derive(Debug)]
pub(crate) enum Kept {
    Entry(Arc<Entry>),
    Apart(Option<Arc<Entry>>),
    /// Not served before its member has said that it still holds.
    Doubted(Arc<Entry>),
    Nothing,
}

impl Store {
    /// `most`: bytes.
    pub(crate) fn new(most: u64, disk: Option<Arc<Disk>>) -> Self {
        let evicted = Arc::<Counter>::default();
        let count = Arc::clone(&evicted);
        let slots = Cache::builder()
            .max_capacity(most)
            .weigher(|_, slot: &Slot| match slot {
                Slot::Entry(entry) => entry.weight(),
                Slot::Varied(_) => VARIED,
                Slot::Apart(apart) => SMALL + apart.stale.as_ref().map_or(0, |entry| entry.weight()),
            })
            .eviction_listener(move |_, slot, cause| {
                if cause == RemovalCause::Size && matches!(slot, Slot::Entry(_)) {
                    count.inc();
                }
            })
            .build_with_hasher(ahash::RandomState::new());
        Self { slots, turns: Arc::default(), evicted, disk }
    }

    pub(crate) fn disk(&self) -> Option<&Arc<Disk>> {
        self.disk.as_ref()
    }

    fn set(&self, at: u128, slot: Slot) {
        let _turn = self.turn(at);
        self.slots.insert(at, slot);
    }

    /// Unless something newer is there.
    fn set_entry(&self, at: u128, entry: Arc<Entry>) {
        let _turn = self.turn(at);
        if !self.has_newer(at, &entry.stem) {
            self.slots.insert(at, Slot::Entry(entry));
        }
    }

    /// Whether a member has answered otherwise to a later request.
    pub(crate) fn has_newer(&self, at: u128, stem: &Stem) -> bool {
        self.slots.get(&at).is_some_and(|slot| slot.is_newer_than(stem))
    }

    /// Puts in the place of what is there what `change` makes of it, and nothing that has come meanwhile is lost.
    /// `None`: it stays. Whether there is something else now.
    fn change(&self, at: u128, change: impl FnOnce(Slot) -> Option<Slot>) -> bool {
        let _turn = self.turn(at);
        let new = self.slots.get(&at).and_then(change);
        new.map(|slot| self.slots.insert(at, slot)).is_some()
    }

    fn turn(&self, at: u128) -> MutexGuard<'_, ()> {
        self.turns[at as usize % TURNS].lock()
    }

    fn forget(&self, at: u128) {
        let turn = self.turn(at);
        self.slots.invalidate(&at);
        drop(turn);
        self.disk.iter().for_each(|disk| disk.forget(at));
    }

    pub(crate) fn look(&self, secret: &Secret, key: u128, request: &HeaderMap, now: Instant) -> Found {
        let is_apart = |apart: &Apart| now < apart.until && apart.whom.has(request.contains_key(COOKIE));
        let (at, varied, slot) = match self.slots.get(&key) {
            Some(Slot::Varied(varied)) => {
                let at = varied.spec.variant(secret, key, request);
                (at, true, self.slots.get(&at))
            }
            slot => (key, false, slot),
        };
        let what = match slot {
            Some(Slot::Entry(entry)) => Kept::Entry(entry),
            Some(Slot::Apart(apart)) if is_apart(&apart) => Kept::Apart(apart.stale),
            Some(Slot::Apart(Apart { stale: Some(stale), .. })) => Kept::Doubted(stale),
            _ => Kept::Nothing,
        };
        Found { at, varied, what }
    }

    /// What responses for this key vary by, as far as is known, and by what this one does. `None`: by too much.
    pub(crate) fn spec(&self, key: u128, own: &Spec) -> Option<Spec> {
        match self.slots.get(&key) {
            Some(Slot::Varied(varied)) => varied.spec.with(own),
            _ => match self.disk.as_ref().and_then(|disk| disk.spec(key)) {
                Some(spec) => spec.with(own),
                None => Some(own.clone()),
            },
        }
    }

    /// Keeps an entry: under its key, or, if there is something to tell variants apart by, that of its variant.
    pub(crate) fn put(&self, key: u128, spec: &Spec, at: u128, entry: Arc<Entry>) {
        // It was another response, or is the same one that the disk does not take now.
        self.disk.iter().for_each(|disk| match disk.is_for(entry.body.len()) {
            true => disk.doubt(at),
            false => disk.forget(at),
        });
        self.put_slot(key, spec, at, entry);
    }

    pub(super) fn put_slot(&self, key: u128, spec: &Spec, at: u128, entry: Arc<Entry>) {
        if !spec.is_empty() {
            let varied = self.varied(key, spec);
            let mut variants = varied.variants.lock();
            if !variants.contains(&at) {
                variants.push_back(at);
                if variants.len() > VARIANTS_MAX
                    && let Some(oldest) = variants.pop_front()
                {
                    self.forget(oldest);
                }
            }
        }
        self.set_entry(at, entry);
    }

    /// The variants of a key; with another way to tell them apart, there are none.
    fn varied(&self, key: u128, spec: &Spec) -> Arc<Varied> {
        let known = self.slots.get(&key);
        if let Some(Slot::Varied(varied)) = &known {
            if varied.spec == *spec {
                return Arc::clone(varied);
            }
            varied.variants.lock().drain(..).for_each(|variant| self.forget(variant));
        }
        let varied = Arc::new(Varied { spec: spec.clone(), variants: Mutex::default() });
        self.set(key, Slot::Varied(Arc::clone(&varied)));
        varied
    }

    /// Keeps the head of what is on disk at hand.
    pub(crate) fn put_loaded(&self, loaded: &Loaded, budget: &Arc<Budget>) -> Option<Arc<Entry>> {
        let Loaded { primary, spec, stem, body } = loaded;
        let at = body.object.at;
        // Who waited for it along with others finds it there.
        if let Some(Slot::Entry(entry)) = self.slots.get(&at) {
            return Some(entry);
        }
        let hold = budget.hold(stem.weight).or_else(|| budget.hold(0))?;
        let entry = Arc::new(Entry::new(Arc::clone(stem), Body::Disk(body.clone()), hold));
        self.put_slot(*primary, spec, at, Arc::clone(&entry));
        Some(entry)
    }

    /// A response lies on disk now.
    pub(super) fn put_written(
        &self,
        key: u128,
        spec: &Spec,
        (stem, body): (Arc<Stem>, OnDisk),
        budget: &Arc<Budget>,
    ) {
        // Without room for it, it is found where it lies.
        if let Some(hold) = budget.hold(stem.weight) {
            let at = body.object.at;
            self.put_slot(key, spec, at, Arc::new(Entry::new(stem, Body::Disk(body), hold)));
        }
    }

    /// Puts an entry in the place of what was kept there, with the same body, unless it is something else by now. `current`:
    /// nothing has invalidated it since its request was sent.
    pub(crate) fn replace(&self, at: u128, entry: &Arc<Entry>, current: bool) {
        let turn = self.turn(at);
        let there = self.slots.get(&at);
        let is_other = |slot: &Slot| {
            slot.is_newer_than(&entry.stem) || slot.entry().is_some_and(|there| !there.is(entry))
        };
        if there.as_ref().is_some_and(is_other) {
            return;
        }
        self.slots.insert(at, Slot::Entry(Arc::clone(entry)));
        drop(turn);
        match (&self.disk, &entry.body) {
            (Some(disk), Body::Disk(body)) => disk.freshen(body, &entry.stem, current),
            // That is on its way with the head that it had.
            (Some(disk), Body::Memory(_)) => disk.doubt(at),
            (None, _) => {}
        }
    }

    /// Has an entry weighed anew, since it has grown; not one that is no longer there.
    pub(crate) fn weigh(&self, at: u128, entry: &Arc<Entry>) {
        self.change(at, |kept| match kept {
            Slot::Entry(kept) if Arc::ptr_eq(&kept, entry) => Some(Slot::Entry(kept)),
            _ => None,
        });
    }

    /// Lets further requests be told apart by this before there is an entry. What is kept stays until that has come.
    pub(crate) fn announce(&self, key: u128, spec: &Spec) {
        let is_free = match self.slots.get(&key) {
            Some(Slot::Varied(varied)) => varied.variants.lock().is_empty(),
            Some(slot) => slot.entry().is_none(),
            None => true,
        };
        if !spec.is_empty() && is_free {
            self.varied(key, spec);
        }
    }

    /// Nothing is kept there for a while, since the answer to a request of `sent` said so; `stale` stays until
    /// [`Self::supersede`].
    pub(crate) fn set_apart(&self, at: u128, whom: Whom, sent: Instant, stale: Option<Arc<Entry>>) {
        let is_newer = |slot: &Slot| matches!(slot, Slot::Entry(there) if there.stem.was_asked_after(sent));
        if self.slots.get(&at).as_ref().is_some_and(is_newer) {
            return;
        }
        self.disk.iter().for_each(|disk| match stale {
            Some(_) => disk.doubt(at),
            None => disk.forget(at),
        });
        self.set(at, Slot::Apart(Apart { whom, until: Instant::now() + APART, sent, stale }));
    }

    /// What is there and was set apart.
    pub(crate) fn stale(&self, at: u128) -> Option<Arc<Entry>> {
        match self.slots.get(&at) {
            Some(Slot::Apart(apart)) => apart.stale,
            _ => None,
        }
    }

    /// Something that is not kept has come whole in place of what was stale.
    pub(crate) fn supersede(&self, at: u128) {
        let superseded = self.change(at, |kept| match kept {
            Slot::Apart(apart) if apart.stale.is_some() => Some(Slot::Apart(Apart { stale: None, ..apart })),
            _ => None,
        });
        if superseded {
            self.disk.iter().for_each(|disk| disk.forget(at));
        }
    }

    pub(crate) fn remove(&self, at: u128) {
        self.forget(at);
    }

    /// Unless something else is there by now.
    pub(crate) fn remove_entry(&self, at: u128, entry: &Entry) {
        if self.slots.get(&at).is_none_or(|slot| slot.entry().is_none_or(|there| there.is(entry))) {
            self.forget(at);
        }
    }

    pub(crate) fn evicted(&self) -> u64 {
        self.evicted.value()
    }

    /// About.
    pub(crate) fn len(&self) -> u64 {
        self.slots.entry_count()
    }

    /// Does what is left to be done, so that numbers are exact.
    pub(crate) fn settle(&self) {
        self.slots.run_pending_tasks();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::HeaderValue;
    use http::header::VARY;

    use super::super::vary::Fate;
    use super::*;

    const KEY: u128 = 1;

    fn entry(budget: &Arc<Budget>, body: &'static str) -> Arc<Entry> {
        let hold = || budget.hold(0).expect("there is room");
        let body = Body::new([Bytes::from_static(body.as_bytes())].into(), None, 0, hold());
        Arc::new(Entry::new(Stem::of_a_minute(), body, hold()))
    }

    fn kept(store: &Store) -> Option<Arc<Entry>> {
        match store.look(&Secret::new(), KEY, &HeaderMap::new(), Instant::now()).what {
            Kept::Entry(entry) => Some(entry),
            _ => None,
        }
    }

    #[test]
    fn what_a_member_has_said_since_stays() {
        let (store, budget) = (Store::new(1 << 20, None), Budget::new(1 << 20));
        let (none, before) = (Spec::default(), Instant::now());
        let old = entry(&budget, "old");
        store.put(KEY, &none, KEY, Arc::clone(&old));
        let hold = budget.hold(0).expect("there is room");
        let confirmed = Arc::new(Entry::new(Stem::of_a_minute(), old.body.clone(), hold));
        let later = entry(&budget, "later");
        let new = entry(&budget, "new");
        store.put(KEY, &none, KEY, Arc::clone(&new));

        assert!(store.has_newer(KEY, &later.stem) && !store.has_newer(KEY, &new.stem));
        store.put(KEY, &none, KEY, later);
        store.replace(KEY, &confirmed, true);
        store.remove_entry(KEY, &old);
        store.set_apart(KEY, Whom::All, before, None);
        let vary = HeaderMap::from_iter([(VARY, HeaderValue::from_static("x-a"))]);
        store.announce(KEY, &Spec::of(&vary, |_| Fate::Sent).expect("a spec"));
        assert!(kept(&store).is_some_and(|kept| Arc::ptr_eq(&kept, &new)));

        store.set_apart(KEY, Whom::All, Instant::now(), None);
        assert!(store.has_newer(KEY, &new.stem));
        store.put(KEY, &none, KEY, new);
        assert!(kept(&store).is_none());
        let newest = entry(&budget, "newest");
        store.put(KEY, &none, KEY, Arc::clone(&newest));
        let hold = budget.hold(0).expect("there is room");
        let confirmed = Arc::new(Entry::new(Stem::of_a_minute(), newest.body.clone(), hold));
        store.replace(KEY, &confirmed, true);
        assert!(kept(&store).is_some_and(|kept| Arc::ptr_eq(&kept, &confirmed)));
    }

    #[test]
    fn who_sends_a_cookie_may_be_set_apart_alone() {
        let store = Store::new(1 << 20, None);
        store.set_apart(KEY, Whom::Cookied, Instant::now(), None);
        let cookie = HeaderMap::from_iter([(COOKIE, HeaderValue::from_static("a=1"))]);
        for (request, apart) in [(&HeaderMap::new(), false), (&cookie, true)] {
            let what = store.look(&Secret::new(), KEY, request, Instant::now()).what;
            assert_eq!(matches!(what, Kept::Apart(None)), apart);
        }
    }
}
