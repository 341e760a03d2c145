//! The task of the exchange of slots. It runs over the sealed sockets of gossip, in datagrams of its own.
//!
//! What somebody waits for is asked for at once; what is not acknowledged is sent again after [`TICK`]. The task
//! gives this node's seat up [`CUT_BEFORE`] its lease ends, so that what is cut has gone when the leader takes
//! the seat back.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trestle_dataplane::limits::{Limits, SlotUse};
use trestle_raft_store::types::State;

use super::core::{Core, Meter, Outbox, Surroundings};
use crate::gossip::Gossip;
use crate::gossip::metrics::{family, sample};
use crate::lease::Seats;
use crate::lease::clock::{BootTime, Clock, SystemClock};

const TICK: Duration = Duration::from_millis(50);
/// Between two looks at what needs more: what comes at once is asked for at once.
const PRESSED_PAUSE: Duration = Duration::from_micros(100);
/// A fifth of the default life of a seat, after which it should have been renewed four times.
const CUT_BEFORE: Duration = Duration::from_millis(100);

impl Meter for Arc<Limits> {
    fn look(&self, key: u64) -> SlotUse {
        self.look_at_slots(key)
    }

    fn grant(&self, key: u64, more: u32) {
        Limits::grant(self, key, more);
    }

    fn give_up(&self, key: u64, spare: u32) -> u32 {
        Limits::give_up(self, key, spare)
    }

    fn forfeit(&self, key: u64) {
        Limits::forfeit(self, key);
    }

    fn turn_away(&self, key: u64) {
        Limits::turn_away(self, key);
    }

    fn deny(&self, key: u64) {
        Limits::deny(self, key);
    }

    fn may_ask(&self, key: u64) {
        Limits::may_ask(self, key);
    }

    fn revoke(&self) {
        let cut = Limits::revoke(self);
        if cut > 0 {
            tracing::warn!(
                cut,
                "this node has no seat any more (given up, or not renewed in time): the newest of what exact limits \
                 count were cut, down to its reserves"
            );
        }
    }

    fn set_reserves(&self, nodes: u32) -> Vec<(u64, u32)> {
        Limits::set_reserves(self, nodes)
    }

    fn set_alone(&self) {
        Limits::set_alone(self);
    }
}

/// Handle of a running exchange. Cheap to clone; ends with the [`Gossip`] that it runs over.
#[derive(Clone)]
pub(crate) struct Slots {
    core: Arc<Mutex<Core>>,
    tasks: TaskTracker,
}

impl Slots {
    /// `None`: one runs over this gossip already. Must be called within a tokio runtime.
    pub(crate) fn start(
        gossip: &Gossip,
        state: watch::Receiver<Arc<State>>,
        seats: Seats,
        limits: Arc<Limits>,
    ) -> Option<Slots> {
        let inbox = gossip.take_slots_inbox()?;
        let core = Arc::new(Mutex::new(Core::new(gossip.node(), crate::gossip::generation())));
        let slots = Slots { core: Arc::clone(&core), tasks: TaskTracker::new() };
        let exchange = Exchange { gossip: gossip.clone(), state, seats, limits, core };
        slots.tasks.spawn(exchange.run(inbox, gossip.cancelled()));
        slots.tasks.close();
        Some(slots)
    }

    /// Returns when the task has ended.
    pub(crate) async fn stopped(&self) {
        self.tasks.wait().await;
    }

    pub(crate) fn render_metrics(&self, out: &mut String) {
        let (stats, (borrowed, lent), lends, has_reserves) = {
            let core = self.core.lock();
            (core.stats(), core.sizes(), core.lends(), core.has_reserves())
        };
        let messages = "trestle_slots_messages_total";
        family(out, messages, "counter", "Messages of the exchange of slots of exact limits.");
        sample(out, messages, "{direction=\"in\"}", stats.received);
        sample(out, messages, "{direction=\"out\"}", stats.sent);
        for (name, help, value) in [
            (
                "trestle_slots_sent_bytes_total",
                "Bytes of such messages, before they are sealed.",
                stats.sent_bytes,
            ),
            (
                "trestle_slots_messages_refused_total",
                "Such messages not understood, or of no member.",
                stats.refused,
            ),
            ("trestle_slots_borrowed_total", "Slots that this node has borrowed.", stats.borrowed),
            ("trestle_slots_returned_total", "Slots that it gave back.", stats.returned),
            ("trestle_slots_lent_total", "Slots that it has lent, itself included.", stats.lent),
            (
                "trestle_slots_denied_total",
                "Times that there was none left of what it asked for.",
                stats.denied,
            ),
            (
                "trestle_slots_revoked_total",
                "Times that it lost its seat, and cut what it had above its reserves.",
                stats.revoked,
            ),
            (
                "trestle_slots_left_out_total",
                "Times that a client found no place among those that slots are borrowed for.",
                stats.left_out,
            ),
        ] {
            family(out, name, "counter", help);
            sample(out, name, "", value);
        }
        family(
            out,
            "trestle_slots_keys",
            "gauge",
            "Clients and listeners of exact limits, by what is known.",
        );
        sample(out, "trestle_slots_keys", "{of=\"borrower\"}", borrowed);
        sample(out, "trestle_slots_keys", "{of=\"home\"}", lent);
        family(out, "trestle_slots_lends", "gauge", "1: this node may lend slots of exact limits.");
        sample(out, "trestle_slots_lends", "", u8::from(lends));
        family(out, "trestle_slots_reserves", "gauge", "1: this node has reserves of exact limits.");
        sample(out, "trestle_slots_reserves", "", u8::from(has_reserves));
    }
}

struct Exchange {
    gossip: Gossip,
    state: watch::Receiver<Arc<State>>,
    seats: Seats,
    limits: Arc<Limits>,
    core: Arc<Mutex<Core>>,
}

impl Exchange {
    async fn run(self, mut inbox: mpsc::Receiver<(SocketAddr, Vec<u8>)>, cancel: CancellationToken) {
        let mut live = self.gossip.watch_live();
        let (mut seat, mut state) = (self.seats.seat(), self.state.clone());
        let limits = Arc::clone(&self.limits);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        let out = self.look_around();
        self.send(out).await;
        loop {
            let pressed = async {
                sleep_until(looked + PRESSED_PAUSE).await;
                limits.pressed_slots().await;
            };
            let out = tokio::select! {
                () = cancel.cancelled() => return,
                () = self.seat_ends() => self.with_seat(|core, _| core.tell()),
                Some((_, letter)) = inbox.recv() => {
                    self.with_seat(|core, limits| core.received(&letter, limits))
                }
                () = pressed => {
                    looked = Instant::now();
                    let keys = limits.take_pressed_slots();
                    self.with_seat(|core, limits| {
                        keys.iter().for_each(|key| core.pressed(*key, limits));
                        core.tell()
                    })
                }
                _ = tick.tick() => {
                    self.live();
                    self.with_seat(|core, limits| core.tick(limits))
                }
                Ok(()) = seat.changed() => {
                    seat.mark_unchanged();
                    self.with_seat(|core, _| core.tell())
                }
                Ok(()) = state.changed() => {
                    state.mark_unchanged();
                    self.look_around()
                }
                Ok(()) = live.changed() => {
                    live.mark_unchanged();
                    self.live();
                    Outbox::new()
                }
            };
            self.send(out).await;
        }
    }

    /// Until when what hangs on this node's seat may be used.
    fn seat_until(&self) -> Option<(u64, BootTime)> {
        let seat = *self.seats.seat().borrow();
        let until = seat.until.since_boot().saturating_sub(CUT_BEFORE);
        let until = BootTime::from_boot(until);
        (seat.seated && SystemClock.now() < until).then_some((seat.epoch, until))
    }

    async fn seat_ends(&self) {
        match self.seat_until() {
            Some((_, until)) => SystemClock.sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    fn look_around(&self) -> Outbox {
        let around = {
            let state = self.state.borrow();
            Surroundings {
                members: state.nodes.keys().copied().collect(),
                seats: state.seats.iter().map(|(node, seat)| (*node, seat.epoch)).collect(),
            }
        };
        let live: BTreeSet<_> = self.gossip.live().as_ref().clone();
        self.with_seat(|core, limits| {
            let before = core.view();
            core.surroundings(&around, limits);
            core.live(&live);
            if core.view() == before { core.tell() } else { core.announce() }
        })
    }

    fn live(&self) {
        let live: BTreeSet<_> = self.gossip.live().as_ref().clone();
        self.core.lock().live(&live);
    }

    /// One event, with the seat as it is now.
    fn with_seat(&self, event: impl FnOnce(&mut Core, &Arc<Limits>) -> Outbox) -> Outbox {
        let mut core = self.core.lock();
        let seat = self.seat_until();
        core.seat(seat.map(|(epoch, _)| epoch), &self.limits);
        let out = event(&mut core, &self.limits);
        let until = seat.filter(|_| core.is_active());
        self.limits.set_slots_until(until.map_or(Duration::ZERO, |(_, until)| until.since_boot()));
        out
    }

    async fn send(&self, out: Outbox) {
        if out.is_empty() {
            return;
        }
        let addresses = self.gossip.peers();
        for (node, message) in out {
            // One that died a moment ago has no address any more, and needs no message.
            if let Some(address) = addresses.get(&node) {
                self.gossip.send_slots(*address, &message).await;
            }
        }
    }
}

/// Entry for fuzzing: any bytes as a message of a peer.
pub(crate) fn fuzz_message(bytes: &[u8]) {
    let limits = Arc::new(Limits::default());
    let mut core = Core::new(1, 1);
    let members = BTreeSet::from([1, 2]);
    let seats = members.iter().map(|node| (*node, 7)).collect();
    core.surroundings(&Surroundings { members: members.clone(), seats }, &limits);
    core.live(&members);
    core.seat(Some(7), &limits);
    core.received(bytes, &limits);
    core.tick(&limits);
}
