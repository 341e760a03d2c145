//! Limits that hold over the cluster: what each node holds of them, told to the others.
//!
//! The data plane counts and keeps to allowances ([`trestle_dataplane::limits`]); [`core`] decides what these
//! are and says so to other nodes; this file is the task around it. It runs beside chitchat over the same
//! sealed socket, in datagrams of its own: each gossip interval a round, in between answers, and what comes
//! near its allowance is spoken of within [`PRESSED_PAUSE`].
//!
//! Only keys that somebody uses beyond the share of a node are spoken of, at most [`MAX_KEYS`] of a node, and
//! as many of rates. A key that finds no place has its share on each node.

mod by_kernel;
mod core;
mod exact;
mod log;
mod peer;
mod rates;
#[cfg(test)]
mod rates_simulation;
#[cfg(test)]
mod simulation;
mod wire;
#[cfg(test)]
mod world;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trestle_dataplane::limits::{AboveShare, Limits};
use trestle_dataplane::rates::{Flow, Rates, WHOLE, is_rate};
use trestle_dataplane::{LimitOf, LimitView};
use trestle_raft_store::types::{NodeId, State};

use self::core::{Core, Look, Meter, Outbox, Surroundings};
use self::exact::Slots;
use crate::gossip::Gossip;
use crate::gossip::metrics::{family, sample};
use crate::lease::Seats;
use crate::views::ClientLimit;

/// Keys that a node speaks of.
pub const MAX_KEYS: usize = 8_192;
/// Nodes whose claims are held.
const MAX_PEERS: usize = 256;
/// Between two looks at what comes near its allowance.
const PRESSED_PAUSE: Duration = Duration::from_millis(2);

/// What the data plane keeps to: limits on what is open, and on what comes in a time.
#[derive(Clone, Default)]
pub(crate) struct Meters {
    pub(crate) limits: Arc<Limits>,
    pub(crate) rates: Arc<Rates>,
}

impl Meter for Meters {
    fn look(&self, key: u64) -> Look {
        let known = self.limits.look(key);
        Look { used: known.open, peak: known.peak, limit: known.limit, refused: known.refused }
    }

    fn used(&self, key: u64) -> u32 {
        self.limits.open(key)
    }

    fn allow(&self, key: u64, most: u32) -> u32 {
        self.limits.allow(key, most)
    }

    fn allow_share(&self, key: u64) {
        if is_rate(key) {
            self.rates.allow_share(key, self.rates.now());
        } else {
            self.limits.allow_share(key);
        }
    }

    fn spent(&self, key: u64, spent: bool) {
        self.limits.set_spent(key, spent);
    }

    fn turn_away(&self, key: u64) {
        self.limits.turn_away_hopeful(key);
    }

    fn tell_when_free(&self, key: u64) {
        self.limits.tell_when_free(key);
    }

    fn set_others_give(&self, others_give: bool) {
        self.limits.set_others_give(others_give);
    }

    fn set_nodes(&self, nodes: u32, young: bool) {
        self.limits.set_nodes(nodes, young);
        self.rates.set_nodes(nodes, young);
    }

    fn flow(&self, key: u64) -> Flow {
        self.rates.flow(key, self.rates.now())
    }

    fn divide(&self, key: u64, part: u32, fill: u32) -> u32 {
        self.rates.allow(key, part, f64::from(fill) / 1e3, self.rates.now())
    }

    fn give(&self, key: u64, units: u32) {
        self.rates.give(key, units);
    }

    fn keeps_shares(&self) -> bool {
        self.limits.keeps_shares()
    }

    fn above_shares(&self) -> Arc<[AboveShare]> {
        self.limits.above_shares()
    }
}

impl Meters {
    /// Waits until a key comes near what it may use.
    async fn pressed(&self) {
        tokio::select! {
            () = self.limits.pressed() => {}
            () = self.rates.pressed() => {}
        }
    }

    fn take_pressed(&self) -> Vec<u64> {
        let mut keys = self.limits.take_pressed();
        keys.extend(self.rates.take_pressed());
        keys
    }
}

/// What the exchange needs.
pub(crate) struct ClaimSettings {
    pub(crate) gossip: Gossip,
    pub(crate) members: watch::Receiver<BTreeSet<NodeId>>,
    pub(crate) state: watch::Receiver<Arc<State>>,
    pub(crate) seats: Seats,
    pub(crate) meters: Meters,
}

/// Handle of a running exchange. Cheap to clone; ends with the [`Gossip`] that it runs over.
#[derive(Clone)]
pub struct Claims {
    core: Arc<Mutex<Core>>,
    slots: Slots,
    tasks: TaskTracker,
}

#[derive(Debug, thiserror::Error)]
pub enum ClaimsError {
    #[error("claims on limits are exchanged over this gossip already")]
    AlreadyRuns,
}

impl Claims {
    /// One a [`Gossip`]; must be called within a tokio runtime.
    pub(crate) fn start(settings: ClaimSettings) -> Result<Claims, ClaimsError> {
        let inbox = settings.gossip.take_claims_inbox().ok_or(ClaimsError::AlreadyRuns)?;
        let cancel = settings.gossip.cancelled();
        let core = Core::new(settings.gossip.node(), crate::gossip::generation());
        let core = Arc::new(Mutex::new(core));
        let (state, seats) = (settings.state.clone(), settings.seats.clone());
        let limits = Arc::clone(&settings.meters.limits);
        let slots = Slots::start(&settings.gossip, state, seats, limits).ok_or(ClaimsError::AlreadyRuns)?;
        let claims = Claims { core: Arc::clone(&core), slots, tasks: TaskTracker::new() };
        let exchange = Exchange { settings, core };
        claims.tasks.spawn(exchange.run(inbox, cancel));
        claims.tasks.close();
        Ok(claims)
    }

    /// What is known of a client's limits over the cluster: those of which something is used. `elsewhere`: what
    /// is open at other nodes, by key.
    pub(crate) fn of_client(
        &self,
        limits: Vec<LimitView>,
        elsewhere: &HashMap<u64, u64>,
    ) -> Vec<ClientLimit> {
        let core = self.core.lock();
        let used = |view: LimitView| {
            let (limit, used) = match view.limit {
                LimitOf::Open { most, here } => {
                    (most.to_string(), u64::from(here) + elsewhere.get(&view.key).copied().unwrap_or(0))
                }
                LimitOf::Rate(rate) => {
                    let per_unit = f64::from(rate.count) / f64::from(WHOLE);
                    (rate.to_string(), (core.demand(view.key) as f64 * per_unit).round() as u64)
                }
            };
            (used > 0).then_some(ClientLimit { at: view.at, of: view.of, limit, used })
        };
        limits.into_iter().filter_map(used).collect()
    }

    /// Returns when the tasks have ended.
    pub async fn stopped(&self) {
        self.tasks.wait().await;
        self.slots.stopped().await;
    }

    pub fn render_metrics(&self, out: &mut String) {
        self.slots.render_metrics(out);
        let (stats, (own, held), young) = {
            let core = self.core.lock();
            (core.stats(), core.sizes(), core.is_young())
        };
        let messages = "trestle_limits_messages_total";
        family(out, messages, "counter", "Messages of the exchange of claims on limits.");
        sample(out, messages, "{direction=\"in\"}", stats.received);
        sample(out, messages, "{direction=\"out\"}", stats.sent);
        for (name, help, value) in [
            (
                "trestle_limits_sent_bytes_total",
                "Bytes of such messages, before they are sealed.",
                stats.sent_bytes,
            ),
            (
                "trestle_limits_messages_refused_total",
                "Such messages not understood, or of no member.",
                stats.refused,
            ),
            ("trestle_limits_resyncs_total", "Peers' tables of claims that began anew.", stats.resyncs),
            ("trestle_limits_grown_total", "Times that this node took more of a limit.", stats.grown),
            (
                "trestle_limits_given_back_total",
                "Times that it gave back what it did not use.",
                stats.given_back,
            ),
            (
                "trestle_limits_left_out_total",
                "Times that a client found no place among those that nodes speak of, and had its share.",
                stats.left_out,
            ),
        ] {
            family(out, name, "counter", help);
            sample(out, name, "", value);
        }
        family(out, "trestle_limits_claims", "gauge", "Clients and listeners that nodes speak of.");
        sample(out, "trestle_limits_claims", "{of=\"self\"}", own);
        sample(out, "trestle_limits_claims", "{of=\"others\"}", held);
        family(out, "trestle_limits_young", "gauge", "1: what other nodes hold is not known yet.");
        sample(out, "trestle_limits_young", "", u8::from(young));
    }
}

struct Exchange {
    settings: ClaimSettings,
    core: Arc<Mutex<Core>>,
}

impl Exchange {
    async fn run(mut self, mut inbox: mpsc::Receiver<(SocketAddr, Vec<u8>)>, cancel: CancellationToken) {
        let mut live = self.settings.gossip.watch_live();
        let mut seat = self.settings.seats.seat();
        let meters = self.settings.meters.clone();
        let mut tick = tokio::time::interval(self.settings.gossip.interval());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        self.look_around();
        loop {
            let pressed = async {
                sleep_until(looked + PRESSED_PAUSE).await;
                meters.pressed().await;
            };
            let out = tokio::select! {
                () = cancel.cancelled() => return,
                _ = tick.tick() => {
                    self.look_around();
                    self.with_seat(|core, meters| core.round(meters))
                }
                Some((_, letter)) = inbox.recv() => {
                    self.with_seat(|core, meters| core.received(&letter, meters))
                }
                () = pressed => {
                    looked = Instant::now();
                    let keys = meters.take_pressed();
                    self.with_seat(|core, meters| {
                        keys.iter().for_each(|key| core.pressed(*key, meters));
                        core.tell()
                    })
                }
                Ok(()) = live.changed() => {
                    live.mark_unchanged();
                    self.look_around();
                    Outbox::new()
                }
                Ok(()) = seat.changed() => {
                    seat.mark_unchanged();
                    self.with_seat(|core, _| core.tell())
                }
                Ok(()) = self.settings.state.changed() => {
                    self.look_around();
                    self.with_seat(|core, _| core.tell())
                }
            };
            self.send(out).await;
        }
    }

    fn look_around(&self) {
        let seats = {
            let state = self.settings.state.borrow();
            state.seats.iter().map(|(node, seat)| (*node, seat.epoch)).collect()
        };
        let around = Surroundings {
            members: self.settings.members.borrow().clone(),
            seats,
            live: self.settings.gossip.live().as_ref().clone(),
        };
        self.core.lock().surroundings(&around, &self.settings.meters);
    }

    /// One event, with the seat as it is now.
    fn with_seat(&self, event: impl FnOnce(&mut Core, &Meters) -> Outbox) -> Outbox {
        let meters = &self.settings.meters;
        let epoch = self.settings.seats.seat().borrow().epoch;
        let seat = self.settings.seats.seated().then_some(epoch);
        let mut core = self.core.lock();
        core.seat(seat, meters);
        event(&mut core, meters)
    }

    async fn send(&self, out: Outbox) {
        if out.is_empty() {
            return;
        }
        let addresses = self.settings.gossip.peers();
        for (node, message) in out {
            // One that died a moment ago has no address any more, and needs no message.
            if let Some(address) = addresses.get(&node) {
                self.settings.gossip.send_claims(*address, &message).await;
            }
        }
    }
}

/// Entry for fuzzing: any bytes as a message of a peer.
pub(crate) fn fuzz_message(bytes: &[u8]) {
    let meters = Meters::default();
    let mut core = Core::new(1, 1);
    let nodes = BTreeSet::from([1, 2]);
    let seats = nodes.iter().map(|node| (*node, 7)).collect();
    core.surroundings(&Surroundings { members: nodes.clone(), seats, live: nodes }, &meters);
    core.seat(Some(7), &meters);
    core.received(bytes, &meters);
    core.round(&meters);
    exact::fuzz_message(bytes);
}
