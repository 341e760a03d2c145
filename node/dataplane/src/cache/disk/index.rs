//! What lies on the disk, by key, within its bounds.
//!
//! Who goes first: objects stand in a queue in the order in which they came. The oldest goes, unless it was asked for
//! since it was last looked at: then it is put at the end, up to [`USED_MAX`] times (the clock algorithm). So nothing is
//! moved when an object is served, only a number changed.
//!
//! Invariants:
//! - bytes, whole blocks, of what is indexed and of what is being written never pass the bound, nor does the number of
//!   objects;
//! - a key has one object, the newest.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};

use crate::budget::Hold;
use crate::cache::vary::Spec;

const BLOCK: u64 = 4096;
/// How often an object is passed over.
const USED_MAX: u8 = 3;
/// Of memory, an object.
pub(super) const WEIGHT: usize = 320;

/// A response on the disk.
#[derive(Debug)]
pub(crate) struct Object {
    pub(super) id: u64,
    pub(crate) at: u128,
    pub(super) primary: u128,
    pub(super) slot: u16,
    pub(super) room: u32,
    /// Of its body.
    pub(crate) length: u64,
    /// Of its slot when its request was sent: see [`crate::cache::Invalidations`].
    pub(super) generation: AtomicU32,
    /// It was invalidated: it is asked for before it is served.
    pub(super) invalid: AtomicBool,
    /// All of it was written by this process, or has been held against its sums.
    pub(super) verified: AtomicBool,
    pub(super) used: AtomicU8,
    pub(super) gone: AtomicBool,
    pub(super) _hold: Hold,
}

impl Object {
    pub(super) fn touch(&self) {
        let used = self.used.load(Relaxed);
        if used < USED_MAX {
            self.used.store(used + 1, Relaxed);
        }
    }

    fn cost(&self) -> u64 {
        cost(super::chunk::file_length(self.room, self.length))
    }
}

/// Bytes that a file takes.
pub(super) fn cost(length: u64) -> u64 {
    length.next_multiple_of(BLOCK)
}

/// Room for something that is being written.
#[derive(Debug, Default)]
pub(super) struct Room(u64);

#[derive(Debug)]
pub(super) struct Index {
    bytes_max: u64,
    count_max: usize,
    /// Of objects, and of rooms.
    bytes: u64,
    rooms: u64,
    objects: HashMap<u128, Arc<Object>, ahash::RandomState>,
    /// Also such as are gone.
    queue: VecDeque<Arc<Object>>,
    /// What the responses of a key vary by, and of how many objects that is known.
    specs: HashMap<u128, (Spec, usize), ahash::RandomState>,
    slots: HashMap<u16, Vec<Arc<Object>>, ahash::RandomState>,
}

impl Index {
    pub(super) fn new(bytes_max: u64, count_max: usize) -> Self {
        Self {
            bytes_max,
            count_max,
            bytes: 0,
            rooms: 0,
            objects: HashMap::default(),
            queue: VecDeque::new(),
            specs: HashMap::default(),
            slots: HashMap::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn get(&self, at: u128) -> Option<&Arc<Object>> {
        self.objects.get(&at)
    }

    pub(super) fn spec(&self, primary: u128) -> Option<&Spec> {
        self.specs.get(&primary).map(|(spec, _)| spec)
    }

    /// Room for so much more. What had to go for it is put into `out`. False: there can't be so much; one object gets
    /// half of all at most.
    pub(super) fn reserve(&mut self, room: &mut Room, more: u64, out: &mut Vec<Arc<Object>>) -> bool {
        if room.0 + more > self.bytes_max / 2 || self.rooms + more > self.bytes_max {
            return false;
        }
        while self.bytes + more > self.bytes_max {
            let Some(oldest) = self.oldest() else { return false };
            self.remove(&oldest);
            out.push(oldest);
        }
        self.bytes += more;
        self.rooms += more;
        room.0 += more;
        true
    }

    pub(super) fn give_back(&mut self, room: Room) {
        self.bytes -= room.0;
        self.rooms -= room.0;
    }

    /// In place of its room. What goes for it is put into `out`.
    pub(super) fn insert(
        &mut self,
        object: Arc<Object>,
        spec: &Spec,
        room: Room,
        out: &mut Vec<Arc<Object>>,
    ) {
        self.give_back(room);
        if let Some(earlier) = self.objects.get(&object.at).cloned() {
            self.remove(&earlier);
            out.push(earlier);
        }
        while self.bytes + object.cost() > self.bytes_max || self.objects.len() >= self.count_max {
            let Some(oldest) = self.oldest() else {
                object.gone.store(true, Relaxed);
                return out.push(object);
            };
            self.remove(&oldest);
            out.push(oldest);
        }
        self.bytes += object.cost();
        if !spec.is_empty() {
            let (known, count) = self.specs.entry(object.primary).or_insert_with(|| (spec.clone(), 0));
            known.clone_from(spec);
            *count += 1;
        }
        self.slots.entry(object.slot).or_default().push(Arc::clone(&object));
        self.objects.insert(object.at, Arc::clone(&object));
        self.queue.push_back(object);
    }

    /// False: it was not there any more.
    pub(super) fn remove(&mut self, object: &Arc<Object>) -> bool {
        let is_there = self.objects.get(&object.at).is_some_and(|there| Arc::ptr_eq(there, object));
        if !is_there {
            return false;
        }
        self.objects.remove(&object.at);
        object.gone.store(true, Relaxed);
        self.bytes -= object.cost();
        if object.at != object.primary
            && let Some((_, count)) = self.specs.get_mut(&object.primary)
        {
            *count -= 1;
            if *count == 0 {
                self.specs.remove(&object.primary);
            }
        }
        if let Some(all) = self.slots.get_mut(&object.slot) {
            all.retain(|other| !Arc::ptr_eq(other, object));
            if all.is_empty() {
                self.slots.remove(&object.slot);
            }
        }
        if self.queue.len() > 2 * self.objects.len() + 64 {
            self.queue.retain(|object| !object.gone.load(Relaxed));
        }
        true
    }

    /// Who is to go next.
    fn oldest(&mut self) -> Option<Arc<Object>> {
        while let Some(object) = self.queue.pop_front() {
            if object.gone.load(Relaxed) {
                continue;
            }
            let used = object.used.load(Relaxed);
            if used == 0 {
                return Some(object);
            }
            object.used.store(used - 1, Relaxed);
            self.queue.push_back(object);
        }
        None
    }

    /// Marks what is of URLs of this slot; those that were not marked.
    pub(super) fn invalidate(&self, slot: u16) -> Vec<Arc<Object>> {
        let all = self.slots.get(&slot).into_iter().flatten();
        all.filter(|object| !object.invalid.swap(true, Relaxed)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::budget::Budget;

    fn object(at: u128, length: u64) -> Arc<Object> {
        Arc::new(Object {
            id: at as u64,
            at,
            primary: at,
            slot: at as u16 % 4,
            room: 4096,
            length,
            generation: AtomicU32::new(0),
            invalid: AtomicBool::new(false),
            verified: AtomicBool::new(true),
            used: AtomicU8::new(0),
            gone: AtomicBool::new(false),
            _hold: Budget::new(0).hold(0).expect("room for nothing"),
        })
    }

    fn put(index: &mut Index, object: &Arc<Object>) -> Vec<u128> {
        let (mut room, mut out) = (Room::default(), Vec::new());
        if index.reserve(&mut room, object.cost(), &mut out) {
            index.insert(Arc::clone(object), &Spec::default(), room, &mut out);
        }
        out.iter().map(|object| object.at).collect()
    }

    #[test]
    fn the_oldest_goes_unless_it_was_asked_for() {
        let mut index = Index::new(3 * 8192, 100);
        let all: Vec<_> = (0..5).map(|at| object(at, 4000)).collect();
        assert_eq!(all[0].cost(), 8192);
        assert!(all[..3].iter().all(|object| put(&mut index, object).is_empty()));
        all[0].touch();
        assert_eq!(put(&mut index, &all[3]), [1]);
        assert_eq!(put(&mut index, &all[4]), [2]);
        assert!(index.get(0).is_some() && all[1].gone.load(Relaxed));
        assert!(put(&mut index, &object(9, 1 << 20)).is_empty(), "too much at once");
        assert_eq!((index.len(), index.bytes()), (3, 3 * 8192));
    }

    #[test]
    fn a_key_has_one_object_and_a_slot_is_marked_once() {
        let mut index = Index::new(1 << 20, 2);
        let (old, new) = (object(4, 1), object(4, 2));
        put(&mut index, &old);
        assert_eq!(put(&mut index, &new), [4]);
        assert!(index.get(4).is_some_and(|there| Arc::ptr_eq(there, &new)) && !index.remove(&old));
        put(&mut index, &object(5, 1));
        assert_eq!((index.invalidate(0).len(), index.invalidate(0).len()), (1, 0));
        assert_eq!(put(&mut index, &object(6, 1)), [4], "no more than two");
    }

    proptest! {
        #[test]
        fn bounds_hold_whatever_comes(
            steps in prop::collection::vec((0u128..30, 1u64..200_000, any::<bool>()), 1..200),
        ) {
            let (most, count) = (1 << 20, 12);
            let mut index = Index::new(most, count);
            for (at, length, removes) in steps {
                match index.get(at).cloned() {
                    Some(object) if removes => prop_assert!(index.remove(&object)),
                    found => {
                        found.iter().for_each(|object| object.touch());
                        put(&mut index, &object(at, length));
                    }
                }
                prop_assert!(index.bytes() <= most && index.len() <= count);
                let sum: u64 = index.objects.values().map(|object| object.cost()).sum();
                prop_assert_eq!(sum, index.bytes());
                prop_assert!(index.queue.len() <= 2 * index.len() + 66);
                prop_assert_eq!(index.slots.values().map(Vec::len).sum::<usize>(), index.len());
            }
        }
    }
}
