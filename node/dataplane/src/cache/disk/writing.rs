//! Bodies on their way to files: workers hand pieces over, one thread writes them.
//!
//! Who hands over never waits: if the queue is full, there is no memory for it, or the thread has met an error, the body
//! is given up, and goes on to clients as if there were no disk. A body becomes a file's once it is whole: it is written
//! under another name, and its head last.
//!
//! Bounds: [`WRITES_MAX`] bodies at a time, one for a key; orders and bytes that wait, see [`super`].

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release,
};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TrySendError};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::Instant;

use super::chunk::{CHUNK, DATA, SUM, file_length, place};
use super::head::{Head, Life, MARK_AT, PREFIX, Prefix, ROOM_MAX, encode, read, room};
use super::index::{Object, Room, WEIGHT, cost};
use super::{Chore, OnDisk, Settling, Shared};
use crate::budget::Hold;
use crate::cache::entry::{Entry, PIECE, Stem};
use crate::cache::store::Store;
use crate::cache::vary::Spec;
use crate::wall_clock;

const WRITES_MAX: usize = 64;
/// How often it is looked for bodies that were given up, if nothing else happens.
const SWEEP: Duration = Duration::from_secs(1);
/// Room is taken in these steps for a body of unknown length.
const STEP: u64 = 1 << 20;

/// What the thread is told.
pub(super) enum Order {
    Begin(Arc<Ticket>),
    Piece(Arc<Ticket>, Bytes, [Hold; 2]),
    End(Arc<Ticket>, Box<Ending>),
    Freshen(Arc<Object>, Arc<Stem>),
    /// There are chores, or something was given up.
    Wake,
}

/// A body that is being written.
#[derive(Debug)]
pub(super) struct Ticket {
    id: u64,
    at: u128,
    primary: u128,
    slot: u16,
    length: Option<u64>,
    /// For the head.
    room: u32,
    given_up: AtomicBool,
    pub(super) since: Instant,
}

/// What makes a body that has come whole a response.
pub(crate) struct Ending {
    pub(crate) stem: Arc<Stem>,
    pub(crate) spec: Spec,
    pub(crate) trailers: Option<HeaderMap>,
    /// The response, if all of it is in memory.
    pub(crate) entry: Option<Arc<Entry>>,
    /// Where it is found from then on. A coded form is found by its body.
    pub(crate) store: Option<Store>,
}

/// A body that may turn out long enough.
#[derive(Debug)]
pub(crate) struct Offer {
    shared: Arc<Shared>,
    key: (u128, u128, u16),
    room: u32,
    length: Option<u64>,
}

/// A worker's end of a body that is being written. Dropped, it is given up.
#[derive(Debug)]
pub(crate) struct Writing {
    shared: Arc<Shared>,
    ticket: Option<Arc<Ticket>>,
}

impl Offer {
    /// `key`: that of the variant, that of which it is one, and its URL's slot. `None`: its head is too long.
    pub(super) fn new(
        shared: &Arc<Shared>,
        key: (u128, u128, u16),
        stem: &Stem,
        length: Option<u64>,
    ) -> Option<Self> {
        // It takes more room in memory.
        let room = u32::try_from(room(stem.weight)).ok().filter(|room| *room as usize <= ROOM_MAX)?;
        Some(Self { shared: Arc::clone(shared), key, room, length })
    }

    /// Whether a body of so many bytes is to be written.
    pub(crate) fn is_for(&self, length: u64) -> bool {
        self.shared.is_for(length)
    }

    /// `None`: it can't be written now.
    pub(crate) fn take(self) -> Option<Writing> {
        let Self { shared, key: (at, primary, slot), room, length } = self;
        let given_up = AtomicBool::new(false);
        let (id, since) = (rand::random(), Instant::now());
        let ticket = Ticket { id, at, primary, slot, length, room, given_up, since };
        match shared.may_write().then(|| begin(&shared, ticket)).flatten() {
            Some(ticket) => Some(Writing { shared, ticket: Some(ticket) }),
            None => {
                shared.counts.not_kept.inc();
                None
            }
        }
    }
}

fn begin(shared: &Shared, ticket: Ticket) -> Option<Arc<Ticket>> {
    let mut open = shared.open.lock();
    if open.len() >= WRITES_MAX || open.contains_key(&ticket.at) {
        return None;
    }
    let ticket = Arc::new(ticket);
    shared.orders.try_send(Order::Begin(Arc::clone(&ticket))).ok()?;
    open.insert(ticket.at, Arc::clone(&ticket));
    Some(ticket)
}

impl Shared {
    /// It is not written on; what there is of it goes. `lost`: it would have been kept.
    pub(super) fn give_up(&self, ticket: &Arc<Ticket>, lost: bool) {
        if !ticket.given_up.swap(true, Release) && lost {
            self.counts.not_kept.inc();
        }
        self.close(ticket);
    }

    fn close(&self, ticket: &Arc<Ticket>) {
        let mut open = self.open.lock();
        if open.get(&ticket.at).is_some_and(|there| Arc::ptr_eq(there, ticket)) {
            open.remove(&ticket.at);
        }
    }
}

impl Writing {
    pub(crate) fn is_going_on(&self) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| !ticket.given_up.load(Relaxed))
    }

    pub(crate) fn push(&mut self, data: &Bytes) {
        let Some(ticket) = self.ticket.as_ref().filter(|ticket| !ticket.given_up.load(Acquire)) else {
            return self.give_up(true);
        };
        let size = data.len() + PIECE;
        let holds = self.shared.queued.hold(size).zip(self.shared.budget.hold(size));
        let sent = holds.is_some_and(|(queued, memory)| {
            let order = Order::Piece(Arc::clone(ticket), data.clone(), [queued, memory]);
            self.shared.orders.try_send(order).is_ok()
        });
        if !sent {
            self.give_up(true);
        }
    }

    /// The body is whole. It is found from now on, as long as nothing else is put in its place.
    pub(crate) fn finish(mut self, ending: Ending) {
        let Some(ticket) = self.ticket.take() else { return };
        let settling = Settling { stem: Arc::clone(&ending.stem), entry: ending.entry.clone() };
        self.shared.settling.lock().insert(ticket.at, settling);
        let order = Order::End(Arc::clone(&ticket), Box::new(ending));
        let sent = self.shared.orders.try_send(order);
        if let Err(
            TrySendError::Full(Order::End(_, ending)) | TrySendError::Disconnected(Order::End(_, ending)),
        ) = sent
        {
            self.shared.keep_in_memory(&ticket, *ending);
            self.ticket = Some(ticket);
            self.give_up(true);
        }
    }

    fn give_up(&mut self, lost: bool) {
        if let Some(ticket) = self.ticket.take() {
            self.shared.give_up(&ticket, lost);
            let _ = self.shared.orders.try_send(Order::Wake);
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.give_up(false);
    }
}

/// A file that is being written.
struct Open {
    ticket: Arc<Ticket>,
    file: File,
    room: Room,
    /// For how many bytes of the file there is room.
    room_for: u64,
    chunk: Vec<u8>,
    index: u64,
    written: u64,
}

/// What keeps a body from being written.
enum Fault {
    Io(std::io::Error),
    /// It is too long, or its head is.
    NoRoom,
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Fault::Io(error)
    }
}

pub(super) fn run(shared: &Arc<Shared>, orders: &Receiver<Order>) {
    let mut open: HashMap<u64, Open> = HashMap::new();
    let mut swept = std::time::Instant::now();
    while !shared.stop.load(Acquire) {
        let order = match orders.recv_timeout(SWEEP) {
            Ok(order) => order,
            Err(RecvTimeoutError::Timeout) => Order::Wake,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        // A full queue has no room for who says so.
        let sweeps = matches!(order, Order::Wake) || swept.elapsed() > SWEEP;
        act(shared, &mut open, order);
        if sweeps {
            swept = std::time::Instant::now();
            let gone = open.extract_if(|_, open| open.ticket.given_up.load(Acquire));
            gone.for_each(|(_, open)| shared.throw_away(open));
        }
        shared.do_chores();
    }
    // Nobody hands over more by now.
    while let Ok(order) = orders.try_recv() {
        act(shared, &mut open, order);
    }
    shared.do_chores();
    open.into_values().for_each(|open| shared.throw_away(open));
}

fn act(shared: &Arc<Shared>, open: &mut HashMap<u64, Open>, order: Order) {
    match order {
        Order::Begin(ticket) => match shared.begin(&ticket) {
            Ok(new) => {
                open.insert(ticket.id, new);
            }
            Err(fault) => shared.failed(&ticket, &fault),
        },
        Order::Piece(ticket, data, _holds) => {
            let Some(there) = open.get_mut(&ticket.id) else { return };
            let given_up = ticket.given_up.load(Acquire);
            let written = if given_up { Ok(()) } else { shared.append(there, &data) };
            if let Err(fault) = &written {
                shared.failed(&ticket, fault);
            }
            if (given_up || written.is_err())
                && let Some(there) = open.remove(&ticket.id)
            {
                shared.throw_away(there);
            }
        }
        Order::End(ticket, ending) => {
            match open.remove(&ticket.id) {
                Some(there) => shared.finish(there, *ending),
                None => shared.keep_in_memory(&ticket, *ending),
            }
            shared.close(&ticket);
        }
        Order::Freshen(object, stem) => match shared.freshen(&object, &stem) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => {
                shared.corrupt(&object, &error.to_string());
            }
            Err(error) => shared.fails(&error.to_string()),
        },
        Order::Wake => {}
    }
}

impl Shared {
    fn do_chores(&self) {
        let chores = std::mem::take(&mut *self.chores.lock());
        chores.iter().for_each(|chore| self.do_chore(chore));
    }

    fn do_chore(&self, chore: &Chore) {
        match chore {
            Chore::Remove(id) => self.folder.remove(*id),
            Chore::Mark(object) => {
                let file = File::options().write(true).open(self.folder.whole(object.id));
                // If it is not there, it need not be marked.
                let _ = file.and_then(|file| file.write_all_at(&[1], MARK_AT));
            }
        }
    }

    fn failed(&self, ticket: &Arc<Ticket>, fault: &Fault) {
        self.give_up(ticket, true);
        if let Fault::Io(error) = fault {
            self.fails(&error.to_string());
        }
    }

    fn throw_away(&self, open: Open) {
        self.folder.give_up(open.ticket.id);
        self.index.lock().give_back(open.room);
        self.close(&open.ticket);
    }

    /// Room for so many bytes of a file; others go for it.
    fn reserve(&self, room: &mut Room, room_for: &mut u64, length: u64) -> Result<(), Fault> {
        if length <= *room_for {
            return Ok(());
        }
        let mut out = Vec::new();
        let fits = self.index.lock().reserve(room, cost(length) - cost(*room_for), &mut out);
        self.evict(&out);
        *room_for = if fits { cost(length) } else { *room_for };
        fits.then_some(()).ok_or(Fault::NoRoom)
    }

    fn evict(&self, out: &[Arc<Object>]) {
        self.counts.evicted.add(out.len() as u64);
        for object in out {
            self.folder.remove(object.id);
            let forms = self.forget_forms(&mut self.index.lock(), object);
            forms.for_each(|form| self.folder.remove(form.id));
        }
    }

    fn begin(&self, ticket: &Arc<Ticket>) -> Result<Open, Fault> {
        let (mut room, mut room_for) = (Room::default(), 0);
        let length = ticket.length.unwrap_or(STEP);
        let reserved = self.reserve(&mut room, &mut room_for, file_length(ticket.room, length));
        let file = reserved.and_then(|()| Ok(self.folder.create(ticket.id)?));
        match file {
            Ok(file) => Ok(Open {
                ticket: Arc::clone(ticket),
                file,
                room,
                room_for,
                chunk: Vec::with_capacity(CHUNK),
                index: 0,
                written: 0,
            }),
            Err(fault) => {
                self.index.lock().give_back(room);
                Err(fault)
            }
        }
    }

    fn append(&self, open: &mut Open, mut data: &[u8]) -> Result<(), Fault> {
        while !data.is_empty() {
            let (now, rest) = data.split_at(data.len().min(DATA - open.chunk.len()));
            open.chunk.extend_from_slice(now);
            open.written += now.len() as u64;
            data = rest;
            if open.chunk.len() == DATA {
                self.flush(open)?;
            }
        }
        Ok(())
    }

    fn flush(&self, open: &mut Open) -> Result<(), Fault> {
        let end = place(open.ticket.room, open.index) + (open.chunk.len() + SUM) as u64;
        if end > open.room_for {
            self.reserve(&mut open.room, &mut open.room_for, end + STEP)?;
        }
        let sum = self.sums.of_chunk(open.ticket.id, open.index, &open.chunk);
        open.chunk.extend_from_slice(&sum);
        open.file.write_all_at(&open.chunk, place(open.ticket.room, open.index))?;
        open.index += 1;
        open.chunk.clear();
        Ok(())
    }

    fn finish(self: &Arc<Self>, mut open: Open, ending: Ending) {
        let ticket = Arc::clone(&open.ticket);
        let finished = match ticket.given_up.load(Acquire) {
            true => Ok(None),
            false => self.complete(&mut open, &ending),
        };
        match finished {
            Ok(Some(object)) => {
                self.works();
                self.put(object, open.room, ending);
                self.counts.written.inc();
            }
            Ok(None) => {
                self.throw_away(open);
                self.keep_in_memory(&ticket, ending);
            }
            Err(fault) => {
                self.failed(&ticket, &fault);
                self.throw_away(open);
                self.keep_in_memory(&ticket, ending);
            }
        }
    }

    /// Whether it is still the newest of its key. It settles no longer.
    fn settles(&self, at: u128, stem: &Arc<Stem>) -> bool {
        let mut settling = self.settling.lock();
        let is_newest = settling.get(&at).is_some_and(|there| Arc::ptr_eq(&there.stem, stem));
        if is_newest {
            settling.remove(&at);
        }
        is_newest
    }

    /// It does not come to lie on disk.
    fn keep_in_memory(&self, ticket: &Ticket, ending: Ending) {
        let Ending { stem, spec, entry, store, .. } = ending;
        if self.settles(ticket.at, &stem)
            && let Some((entry, store)) = entry.zip(store)
        {
            store.put_slot(ticket.primary, &spec, ticket.at, entry);
        }
    }

    /// `None`: there is no memory to know it by, or its length is not the one that was told.
    fn complete(&self, open: &mut Open, ending: &Ending) -> Result<Option<Object>, Fault> {
        let ticket = Arc::clone(&open.ticket);
        if ticket.length.is_some_and(|length| length != open.written) {
            return Ok(None);
        }
        if !open.chunk.is_empty() {
            self.flush(open)?;
        }
        let Some(realm) = self.realm.get().copied() else { return Ok(None) };
        let head = Head {
            realm,
            at: ticket.at,
            primary: ticket.primary,
            slot: ticket.slot,
            spec: ending.spec.clone(),
            trailers: ending.trailers.clone(),
            length: open.written,
            ..of(&ending.stem)
        };
        let bytes = encode(&head, ticket.id, ticket.room, false, &self.sums).ok_or(Fault::NoRoom)?;
        let Some(hold) = self.budget.hold(WEIGHT) else { return Ok(None) };
        open.file.write_all_at(&bytes, 0)?;
        self.folder.finish(ticket.id)?;
        self.newest.fetch_max(head.since.as_secs(), Relaxed);
        Ok(Some(Object {
            id: ticket.id,
            at: ticket.at,
            primary: ticket.primary,
            slot: ticket.slot,
            room: ticket.room,
            length: open.written,
            generation: AtomicU32::new(ending.stem.generation),
            invalid: AtomicBool::new(false),
            verified: AtomicBool::new(true),
            used: AtomicU8::new(0),
            gone: AtomicBool::new(false),
            _hold: hold,
        }))
    }

    /// Lets it be found.
    fn put(self: &Arc<Self>, object: Object, room: Room, ending: Ending) {
        let Ending { stem, spec, trailers, store, .. } = ending;
        let object = Arc::new(object);
        let mut out = Vec::new();
        self.slots[usize::from(object.slot)].store(true, Release);
        self.index.lock().insert(Arc::clone(&object), &spec, room, &mut out);
        self.evict(&out);
        // It may have been invalidated while it was written.
        if self.invalidations.generation(object.slot) != stem.generation {
            self.mark(&object);
        }
        let trailers = trailers.map(Arc::new);
        let body = OnDisk { shared: Arc::clone(self), object: Arc::clone(&object), trailers };
        // Known there before it settles no longer, so that it is found at any time.
        if !self.settles(object.at, &stem) {
            self.drop_object(&object);
        } else if let Some(store) = store {
            store.put_written(object.primary, &spec, (stem, body), &self.budget);
        }
    }

    /// Writes another head to a file, if it has room for it.
    fn freshen(&self, object: &Arc<Object>, stem: &Stem) -> std::io::Result<()> {
        if object.gone.load(Relaxed) {
            return Ok(());
        }
        let file = File::options().read(true).write(true).open(self.folder.whole(object.id))?;
        let Some(old) = self.head_of(&file, object.id)? else { return Ok(()) };
        let head = Head {
            realm: old.realm,
            at: old.at,
            primary: old.primary,
            slot: old.slot,
            spec: old.spec,
            trailers: old.trailers,
            length: old.length,
            ..of(stem)
        };
        let marked = object.invalid.load(Acquire);
        if let Some(bytes) = encode(&head, object.id, object.room, marked, &self.sums) {
            file.write_all_at(&bytes, 0)?;
            self.newest.fetch_max(head.since.as_secs(), Relaxed);
        }
        Ok(())
    }

    /// `None`: it is not what it should be.
    pub(super) fn head_of(&self, file: &File, id: u64) -> std::io::Result<Option<Head>> {
        Ok(self.prefix_and_head_of(file, id)?.map(|(_, head)| head))
    }

    pub(super) fn prefix_and_head_of(&self, file: &File, id: u64) -> std::io::Result<Option<(Prefix, Head)>> {
        let mut bytes = [0; PREFIX];
        file.read_exact_at(&mut bytes, 0)?;
        let Some(prefix) = Prefix::parse(&bytes) else { return Ok(None) };
        let mut payload = vec![0; prefix.length];
        file.read_exact_at(&mut payload, PREFIX as u64)?;
        let whole = prefix.vouches_for(&self.sums, id, &payload);
        Ok(whole.then(|| read(&payload)).flatten().map(|head| (prefix, head)))
    }
}

/// What a stem knows of a head; the rest is nothing.
fn of(stem: &Stem) -> Head {
    let terms = &stem.terms;
    Head {
        realm: [0; 16],
        at: 0,
        primary: 0,
        slot: 0,
        spec: Spec::default(),
        url: stem.url.clone(),
        pool: stem.pool.clone(),
        tags: stem.tags.clone(),
        number: stem.mark.number(),
        since: wall_clock::now().saturating_sub(Instant::now().saturating_duration_since(stem.since)),
        life: Life {
            lifetime: terms.lifetime,
            age: terms.age,
            while_revalidate: terms.while_revalidate,
            if_error: terms.if_error,
            validate: terms.validate,
            strict: terms.strict,
        },
        status: stem.status,
        fields: stem.head.clone(),
        trailers: None,
        length: 0,
    }
}
