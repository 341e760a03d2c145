//! What this node does about each VIP: a pure function of what it hears.
//!
//! ```text
//! state (who owns what) ─┐                         ┌─► guard: hold until, let go, keep silently
//! leases (until when)   ─┼─► Owner ─ decides ──────┼─► leases: what to renew, what was let go of
//! guard (what is true)  ─┤                         ├─► plane: end the connections to these addresses
//! readiness             ─┘                         └─► whoever is to be told
//! ```
//!
//! Invariants:
//! - The guard is told to hold a VIP only until the end of a lease of the very epoch that was given to
//!   its session, and only with the fence that the epoch was given for.
//! - The leader is told that an epoch was let go of only after the guard has said so, or after a new
//!   guard has swept what a dead one had left. It is never held again under that epoch.
//! - `on_quorum_loss: hold` is the one exception to the first, and shown as such.

mod failure;
mod vip;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use trestle_raft_store::types::{NodeId, State, VipRecord};
use trestle_vip_guard::protocol::{FromGuard, ToGuard, VipSpec, Why};
use uuid::Uuid;

use self::vip::{Chance, Forwards, Phase, Rival, Stood, Stranger, Unseen, Usable, Vip, nanos, release};
use crate::lease::clock::BootTime;
use crate::lease::vips::{LetGo, NodeReport, VipLeases, VipName, VipReport, VipWishes};

/// Epochs of one VIP that the leader still has to hear of; more can't be told apart any more.
const GONE_MAX: usize = 8;
/// A VIP whose address a stranger has is not tried again before.
const TAKEN_PAUSE: Duration = Duration::from_secs(10);
/// So long a machine that announced a VIP held here is shown.
const RIVAL_SHOWN: Duration = Duration::from_secs(60);
/// The new owner forwards a little longer than the old one serves.
const CHANCE_GRACE: Duration = Duration::from_secs(1);
/// So long after another node has become the owner, neighbours have heard of it, and new connections
/// go there.
const TAKEN_OVER: Duration = Duration::from_millis(300);
/// So long after that, the last stragglers have come.
const STRAGGLERS: Duration = Duration::from_secs(1);
/// A guard that has not answered a renewal for half a TTL, within these bounds, is stuck, and ended.
const STUCK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

/// A VIP as the config has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VipConfig {
    pub addresses: Vec<(IpAddr, u8)>,
    pub interface: Option<String>,
    pub ttl: Duration,
    /// Kept when there is no quorum to renew it.
    pub hold: bool,
    pub notify: Option<PathBuf>,
}

/// What happened to a VIP here, for people and for the program that is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// This node owns it.
    Owner,
    /// It goes away by plan; what began here is served to its end.
    Draining,
    /// This node does not hold it any more.
    Released,
}

impl Change {
    pub fn name(self) -> &'static str {
        match self {
            Change::Owner => "owner",
            Change::Draining => "draining",
            Change::Released => "released",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Tell(ToGuard),
    /// Tell connections to these addresses to go, cut them at the deadline, and say so.
    Drain {
        vip: VipName,
        addresses: Vec<IpAddr>,
        within: Duration,
    },
    Changed {
        vip: VipName,
        change: Change,
        epoch: u64,
        /// What it is about: with a new config in between, not the present addresses.
        addresses: Vec<(IpAddr, u8)>,
        notify: Option<PathBuf>,
    },
    /// The guard does not answer: another one is to take its place.
    EndGuard,
}

/// A VIP as this node shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VipView {
    /// The guard holds it, under a lease.
    pub held: bool,
    /// Under which; 0: it does not.
    pub epoch: u64,
    /// It is kept silently for what began here.
    pub quiet: bool,
    /// It is held although nobody could renew it: another node may hold it too.
    pub without_quorum: bool,
    pub interface: Option<String>,
    pub fenced: bool,
    /// Why this node can't hold it, or others should rather; the leader hears the same.
    pub problem: Option<String>,
    /// Another machine announced one of its addresses lately, while it was held here.
    pub rival: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub struct Owner {
    me: NodeId,
    /// Of a guard that has swept what was left, and listens.
    guard: Option<Uuid>,
    /// Why there is none, for people.
    no_guard: Option<String>,
    /// What the one that is starting said last: if it ends, that is why.
    complaint: Option<String>,
    ready: bool,
    leaving: bool,
    strained: bool,
    drain: Duration,
    /// Of the config.
    revision: u64,
    vips: BTreeMap<VipName, Vip>,
    gone: BTreeMap<VipName, Vec<LetGo>>,
    /// What a guard that another program had before says that it holds, until it is taken up.
    resumed: BTreeMap<VipName, u64>,
    /// What it says that it let go of before it has said who it is.
    ended: BTreeMap<VipName, u64>,
    /// VIPs that left the config while the guard had them, until it has let go.
    departed: BTreeMap<VipName, (Stood, Option<PathBuf>)>,
}

impl Owner {
    pub fn new(me: NodeId) -> Self {
        Self {
            me,
            guard: None,
            no_guard: None,
            complaint: None,
            ready: false,
            leaving: false,
            strained: false,
            drain: Duration::from_secs(30),
            revision: 0,
            vips: BTreeMap::new(),
            gone: BTreeMap::new(),
            resumed: BTreeMap::new(),
            ended: BTreeMap::new(),
            departed: BTreeMap::new(),
        }
    }

    /// The VIPs that there are, and how long connections may go on where they are left.
    pub fn configure(
        &mut self,
        revision: u64,
        vips: BTreeMap<VipName, VipConfig>,
        drain: Duration,
    ) -> Vec<Effect> {
        (self.revision, self.drain) = (revision, drain);
        let mut before = std::mem::take(&mut self.vips);
        for (name, config) in vips {
            let vip = match before.remove(&name) {
                Some(vip) => vip.with(config),
                None => Vip::new(config),
            };
            self.vips.insert(name, vip);
        }
        // What is left of `before` the guard lets go of, and says so.
        for (name, vip) in before {
            self.departed.extend(vip.stood.map(|stood| (name, (stood, vip.config.notify))));
        }
        self.tell_config()
    }

    fn tell_config(&self) -> Vec<Effect> {
        let spec = |(name, vip): (&VipName, &Vip)| VipSpec {
            name: name.to_string(),
            addresses: vip.config.addresses.clone(),
            interface: vip.config.interface.clone(),
            ttl: nanos(vip.config.ttl),
        };
        vec![Effect::Tell(ToGuard::Configure { vips: self.vips.iter().map(spec).collect() })]
    }

    /// There is a guard to talk to.
    pub fn guard_came(&mut self) -> Vec<Effect> {
        self.complaint = None;
        self.tell_config()
    }

    /// There is one that the program before this one in its process had. What it holds it goes on holding, as long
    /// as its leases last.
    pub fn guard_resumes(&mut self) -> Vec<Effect> {
        self.complaint = None;
        // Nothing is known of the config yet: that would end what it holds.
        let config = if self.revision > 0 { self.tell_config() } else { Vec::new() };
        [vec![Effect::Tell(ToGuard::Resume)], config].concat()
    }

    /// Of a guard that has not said yet what it has.
    pub fn is_resuming(&self) -> bool {
        self.guard.is_none()
    }

    /// The guard is dead, or there is none. What it held ends with its lease, by the kernel's time.
    pub fn guard_went(&mut self, why: String) -> Vec<Effect> {
        self.guard = None;
        self.resumed.clear();
        self.ended.clear();
        self.no_guard = Some(why);
        self.no_guard = self.no_guard();
        self.complaint = None;
        let mut effects = Vec::new();
        for (name, vip) in &mut self.vips {
            if let Phase::Held { epoch, there: true, .. } | Phase::Quiet { epoch, .. } = vip.phase {
                effects.extend(vip.changed(name, Change::Released, epoch));
            }
            *vip = Vip {
                record: std::mem::take(&mut vip.record),
                unseen: vip.unseen,
                failure: vip.failure.take(),
                ..Vip::new(vip.config.clone())
            };
        }
        for (vip, (stood, notify)) in std::mem::take(&mut self.departed) {
            effects.push(stood.changed(vip, Change::Released, notify));
        }
        effects
    }

    /// `strained`: the node refuses clients, so what is held is better off where there is room.
    pub fn set_strained(&mut self, strained: bool) {
        self.strained = strained;
    }

    /// `ready`: the data plane works and serves. `leaving`: what is held should move.
    pub fn set_ready(&mut self, ready: bool, leaving: bool) -> Vec<Effect> {
        (self.ready, self.leaving) = (ready, leaving);
        if ready {
            return Vec::new();
        }
        self.give_up(self.vips.keys().cloned().collect())
    }

    /// What is held ends. A guard that was told nothing yet has nothing to answer.
    fn give_up(&mut self, names: Vec<VipName>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for name in names {
            let (Some(vip), Some(session)) = (self.vips.get_mut(&name), self.guard) else { continue };
            let Phase::Held { epoch, asked: asked @ false, .. } = &mut vip.phase else { continue };
            *asked = true;
            let epoch = *epoch;
            if vip.granted.is_none() {
                vip.phase = Phase::Idle;
                self.let_go(&name, LetGo { session, epoch });
            }
            effects.push(Effect::Tell(release(&name)));
        }
        effects
    }

    /// Lets everything go, also what is kept silently.
    pub fn release_all(&mut self) -> Vec<Effect> {
        let quiet = self.vips.iter().filter(|(_, vip)| matches!(vip.phase, Phase::Quiet { .. }));
        let quiet: Vec<_> = quiet.map(|(name, _)| Effect::Tell(release(name))).collect();
        let held = self.give_up(self.vips.keys().cloned().collect());
        [quiet, held].concat()
    }

    /// Nothing is held or kept.
    pub fn idle(&self) -> bool {
        self.vips.values().all(|vip| vip.phase == Phase::Idle)
    }

    /// Others own what was held here, and are known to do so; something may be kept silently.
    pub fn handed_over(&self, now: BootTime) -> bool {
        self.vips.values().all(|vip| match vip.phase {
            Phase::Idle => true,
            Phase::Held { .. } => false,
            Phase::Quiet { succeeded, .. } => succeeded.is_some_and(|since| now.since(since) >= TAKEN_OVER),
        })
    }

    /// What is agreed on has changed, or who is our guard.
    pub fn agreed(&mut self, state: &State, now: BootTime) -> Vec<Effect> {
        let mut effects = Vec::new();
        let epoch_of = |vip: &str| state.vips.get(vip).map_or(0, |record| record.epoch());
        self.gone.retain(|vip, gone| {
            gone.retain(|gone| gone.epoch == epoch_of(vip));
            !gone.is_empty()
        });
        let names: Vec<VipName> = self.vips.keys().cloned().collect();
        for name in names {
            let record = state.vips.get(&*name).cloned().unwrap_or_default();
            self.owned(&name, &record, state.revision_number(), &mut effects);
            if let Some(vip) = self.vips.get_mut(&name)
                && let Phase::Quiet { epoch, succeeded: succeeded @ None, .. } = &mut vip.phase
                && record.owner.is_some()
                && record.epoch() != *epoch
            {
                *succeeded = Some(now);
            }
            self.comes_round(&name, &record, &mut effects);
            self.moves(&name, &record, now, &mut effects);
            if let Some(vip) = self.vips.get_mut(&name) {
                let addresses = vip.addresses();
                vip.ours = state.vips.values().any(|record| record.holds_any(&addresses));
                vip.note_owner(&record, self.me, now);
                vip.record = record;
                effects.extend(vip.look(&name));
            }
        }
        self.sweep_unconfigured(state);
        effects
    }

    /// Epochs of an earlier guard of ours of VIPs that are in no config any more.
    fn sweep_unconfigured(&mut self, state: &State) {
        let Some(guard) = self.guard else { return };
        for (name, record) in &state.vips {
            if let Some((epoch, owner)) = &record.owner
                && owner.node == self.me
                && owner.session != guard
                && !self.vips.contains_key(name.as_str())
            {
                self.let_go(&VipName::from(name.as_str()), LetGo { session: owner.session, epoch: *epoch });
            }
        }
    }

    fn owned(&mut self, name: &VipName, record: &VipRecord, revision: u64, effects: &mut Vec<Effect>) {
        let Some(vip) = self.vips.get_mut(name) else { return };
        let own = record.owner.as_ref().filter(|(_, owner)| owner.node == self.me);
        match (own, self.guard) {
            (Some((epoch, owner)), Some(guard))
                if owner.session == guard && self.resumed.get(name) == Some(epoch) =>
            {
                let same = vip.addresses() == owner.addresses;
                let fenced = vip.usable.as_ref().map(|usable| usable.fenced || !owner.fenced);
                match fenced {
                    Some(true) if same && self.ready => {
                        self.resumed.remove(name);
                        vip.phase = Phase::Held { epoch: *epoch, there: false, asked: false };
                    }
                    // It is held: the leader hears that it is not once the guard says so.
                    Some(false) => effects.push(Effect::Tell(release(name))),
                    Some(true) if !same && self.revision >= revision => {
                        effects.push(Effect::Tell(release(name)));
                    }
                    // Nothing serves yet, or the config is behind. If that takes too long, the lease ends.
                    _ => {}
                }
            }
            (Some((epoch, owner)), Some(guard)) if owner.session == guard => {
                let gone = self.gone.get(name).is_some_and(|gone| gone.iter().any(|g| g.epoch == *epoch));
                let known = matches!(vip.phase, Phase::Held { epoch: held, .. } if held == *epoch);
                let fenced = vip.usable.as_ref().is_some_and(|usable| usable.fenced);
                let same = vip.addresses() == owner.addresses;
                if gone || known {
                } else if !same && self.revision < revision {
                    // Our config is behind. What it says may be somebody else's by now.
                } else if !same {
                    // It was given before they changed.
                    self.let_go(name, LetGo { session: guard, epoch: *epoch });
                } else if (owner.fenced && !fenced) || !self.ready {
                    // What the guarantee was to rest on is not there any more, or nothing would serve.
                    self.let_go(name, LetGo { session: guard, epoch: *epoch });
                } else {
                    vip.phase = Phase::Held { epoch: *epoch, there: false, asked: false };
                    (vip.granted, vip.without_quorum, vip.stood) = (None, false, None);
                    vip.held_since = None;
                }
            }
            // The guard that is there now has swept what this one held.
            (Some((epoch, owner)), Some(_)) => {
                self.let_go(name, LetGo { session: owner.session, epoch: *epoch });
            }
            (Some(_), None) => {}
            (None, _) => {
                effects.extend(self.give_up(vec![name.clone()]));
            }
        }
    }

    /// The VIP is back where this node forwards to: what it passes on would come round to here again.
    fn comes_round(&mut self, name: &VipName, record: &VipRecord, effects: &mut Vec<Effect>) {
        let Some(vip) = self.vips.get_mut(name) else { return };
        let owner = record.owner.as_ref().map(|(_, owner)| owner.node);
        // While it comes to here, it is from there by intent.
        if let Some(forwards) = vip.forwards
            && vip.chance == Chance::None
            && owner == Some(forwards.to)
        {
            effects.push(vip.end_chance(name));
        }
    }

    /// A planned move to here, or one that is off.
    fn moves(&mut self, name: &VipName, record: &VipRecord, now: BootTime, effects: &mut Vec<Effect>) {
        let (me, drain, guard) = (self.me, self.drain, self.guard);
        let Some(vip) = self.vips.get_mut(name) else { return };
        let from = record.owner.as_ref().filter(|(_, owner)| owner.node != me);
        // What began here before still comes here: it must not be sent back. The move waits until it is
        // let go of, which ends what the guard has prepared for the move as well.
        let serving = matches!(vip.phase, Phase::Quiet { .. });
        let coming = from.filter(|_| record.moving_to == Some(me) && guard.is_some() && !serving);
        match (coming, vip.chance) {
            (Some((epoch, _)), Chance::Asked(asked) | Chance::Ready(asked)) if asked == *epoch => {}
            (Some((epoch, owner)), _) => {
                let fenced = vip.usable.as_ref().is_some_and(|usable| usable.fenced);
                if owner.via.is_empty() || !fenced {
                    vip.chance = Chance::Ready(*epoch);
                } else {
                    vip.chance = Chance::Asked(*epoch);
                    let until = now + drain + CHANCE_GRACE;
                    vip.forwards = Some(Forwards { to: owner.node, until });
                    let until = nanos(until.since_boot());
                    let (vip, old) = (name.to_string(), owner.via.clone());
                    // What the kernel carries is known to the one who sends this.
                    let except = Vec::new();
                    effects.push(Effect::Tell(ToGuard::Chance { vip, old, except, until }));
                }
            }
            (None, Chance::None) => {}
            (None, _) => {
                // With the VIP ours the guard goes on forwarding until its time is over.
                if from.is_some() {
                    effects.push(vip.end_chance(name));
                }
                vip.chance = Chance::None;
            }
        }
    }

    /// Leases were renewed, or lost.
    pub fn leased(&mut self, leases: &VipLeases, now: BootTime) -> Vec<Effect> {
        let mut effects = Vec::new();
        let drain = self.drain;
        let mut lost = Vec::new();
        for (name, vip) in &mut self.vips {
            let Phase::Held { epoch, there, asked } = vip.phase else { continue };
            let Some(lease) = leases.get(name).filter(|lease| lease.epoch == epoch) else { continue };
            if lease.until == BootTime::default() {
                if lease.sent == BootTime::default() && vip.granted.is_none() && !there {
                    // Nothing was granted yet.
                    continue;
                }
                lost.push(name.clone());
                continue;
            }
            let newer = vip.granted.is_none_or(|(sent, _)| lease.sent > sent);
            if newer && now < lease.until && !asked {
                vip.granted = Some((lease.sent, lease.until));
                vip.unanswered = vip.unanswered.or(Some(now));
                vip.without_quorum = false;
                effects.push(vip.grant(name, epoch));
            }
            if lease.yields && there && !asked {
                let fenced = vip.usable.as_ref().is_some_and(|usable| usable.fenced);
                vip.phase = Phase::Held { epoch, there, asked: true };
                if fenced {
                    let until = nanos((now + drain).since_boot());
                    // Straight back: that one has nothing left of before, and passes on to here from now on.
                    if let Some(forwards) = vip.forwards
                        && vip.record.moving_to == Some(forwards.to)
                    {
                        effects.push(vip.end_chance(name));
                    }
                    effects.push(Effect::Tell(ToGuard::Silence { vip: name.to_string(), until }));
                } else {
                    effects.push(Effect::Tell(release(name)));
                }
            }
        }
        effects.extend(self.give_up(lost));
        effects
    }

    /// Time has passed; about ten in a TTL. Keeps what is to be held without a quorum.
    pub fn tick(&mut self, now: BootTime) -> Vec<Effect> {
        let mut effects = Vec::new();
        // One that waits for the kernel goes on by itself; what it holds ends with its lease in any case.
        let patience = |vip: &Vip| (vip.config.ttl / 2).clamp(STUCK.0, STUCK.1);
        let stuck = |vip: &Vip| vip.unanswered.is_some_and(|since| now.since(since) >= patience(vip));
        if self.vips.values().any(stuck) {
            effects.push(Effect::EndGuard);
        }
        for (name, vip) in &mut self.vips {
            if let Stranger::Found { again, .. } = vip.stranger
                && again <= now
            {
                vip.stranger = Stranger::Unknown;
            }
            if let Some(failure) = &mut vip.failure {
                failure.look(now);
            }
            vip.rival = vip.rival.take().filter(|rival| now.since(rival.seen) < RIVAL_SHOWN);
            if let Unseen::Until(settled) = vip.unseen
                && settled <= now
                && vip.record.owner.is_some()
            {
                vip.unseen = Unseen::No;
            }
            effects.extend(vip.look(name));
            vip.forwards = vip.forwards.filter(|forwards| now < forwards.until);
            // What began before it came here still comes by here.
            if let Phase::Quiet { drained: true, succeeded: Some(since), .. } = vip.phase
                && now.since(since) >= STRAGGLERS
                && vip.forwards.is_none()
            {
                effects.push(Effect::Tell(release(name)));
            }
            let Phase::Held { epoch, there: true, asked: false } = vip.phase else { continue };
            let Some((_, until)) = vip.granted else { continue };
            if vip.config.hold && until.since(now) < vip.config.ttl / 2 {
                vip.granted = Some((now, now + vip.config.ttl));
                vip.unanswered = vip.unanswered.or(Some(now));
                vip.without_quorum = true;
                effects.push(vip.grant(name, epoch));
            }
        }
        effects
    }

    /// The connections to a VIP that was handed over have ended. It is let go of when nothing more can
    /// come: a neighbour that has not heard of the new owner yet still sends here.
    pub fn drained(&mut self, name: &str) {
        if let Some(vip) = self.vips.get_mut(name)
            && let Phase::Quiet { drained, .. } = &mut vip.phase
        {
            *drained = true;
        }
    }

    /// What the guard says.
    pub fn heard(&mut self, message: FromGuard, now: BootTime) -> Vec<Effect> {
        match message {
            FromGuard::Started { session, .. } => {
                let session = Uuid::from_bytes(session);
                self.guard = Some(session);
                (self.no_guard, self.complaint) = (None, None);
                for (name, epoch) in std::mem::take(&mut self.ended) {
                    self.let_go(&name, LetGo { session, epoch });
                }
                Vec::new()
            }
            FromGuard::Usable { vip, interface, via, fenced, problem } => {
                if let Some(vip) = self.vips.get_mut(vip.as_str()) {
                    vip.note_usable(Usable { interface, via, fenced, problem });
                }
                Vec::new()
            }
            FromGuard::Holding { vip, epoch } if self.guard.is_none() => {
                self.resumed.insert(VipName::from(vip), epoch);
                Vec::new()
            }
            FromGuard::Released { vip, epoch, .. } if self.guard.is_none() => {
                let name = VipName::from(vip);
                self.resumed.remove(&name);
                self.ended.insert(name, epoch);
                Vec::new()
            }
            FromGuard::Holding { vip, epoch } => self.holds(&vip, epoch, now),
            FromGuard::Heard { vip } => {
                if let Some(vip) = self.vips.get_mut(vip.as_str()) {
                    vip.unanswered = None;
                }
                Vec::new()
            }
            FromGuard::Released { vip, epoch, why } => self.released(&VipName::from(vip), epoch, why, now),
            FromGuard::Silent { vip } => self.silent(&vip),
            FromGuard::ChanceReady { vip } => {
                self.chance_settled(&vip);
                Vec::new()
            }
            FromGuard::Problem { vip: Some(vip), .. } => {
                if let Some(vip) = self.vips.get_mut(vip.as_str()).filter(|v| v.stranger == Stranger::Asked) {
                    // It could not look; the first take-over will.
                    vip.stranger = Stranger::None;
                }
                // It comes without its second chance; what began elsewhere will end.
                self.chance_settled(&vip);
                Vec::new()
            }
            FromGuard::Probed { vip, taken_by } => {
                if let Some(vip) = self.vips.get_mut(vip.as_str()) {
                    // One of ours may have taken it meanwhile: that is who answered.
                    let taken_by = taken_by.filter(|_| !vip.ours);
                    let found = |(_, mac)| Stranger::Found { mac, again: now + TAKEN_PAUSE };
                    vip.stranger = taken_by.map_or(Stranger::None, found);
                }
                Vec::new()
            }
            FromGuard::Stranger { vip, address, mac, .. } => {
                if let Some(vip) = self.vips.get_mut(vip.as_str()) {
                    vip.rival = Some(Rival { address, mac, seen: now });
                }
                Vec::new()
            }
            FromGuard::Problem { vip: None, text } => {
                if self.guard.is_none() {
                    self.complaint = Some(text);
                }
                Vec::new()
            }
        }
    }

    fn chance_settled(&mut self, name: &str) {
        if let Some(vip) = self.vips.get_mut(name)
            && let Chance::Asked(epoch) = vip.chance
        {
            vip.chance = Chance::Ready(epoch);
        }
    }

    fn holds(&mut self, name: &str, epoch: u64, now: BootTime) -> Vec<Effect> {
        let Some((name, _)) = self.vips.get_key_value(name) else { return Vec::new() };
        let name = name.clone();
        let Some(vip) = self.vips.get_mut(&name) else { return Vec::new() };
        vip.unanswered = None;
        let Phase::Held { epoch: held, there: false, asked } = vip.phase else { return Vec::new() };
        if held != epoch {
            return Vec::new();
        }
        vip.phase = Phase::Held { epoch, there: true, asked };
        (vip.held_since, vip.unseen) = (Some(now), Unseen::No);
        if let Some(failure) = &mut vip.failure {
            failure.lift();
        }
        Vec::from_iter(vip.changed(&name, Change::Owner, epoch))
    }

    fn released(&mut self, name: &VipName, epoch: u64, why: Why, now: BootTime) -> Vec<Effect> {
        let guard = self.guard;
        let Some(vip) = self.vips.get_mut(name) else {
            // It is in no config any more.
            let departed = self.departed.remove(name);
            if let (Some(session), true) = (guard, epoch > 0) {
                self.let_go(name, LetGo { session, epoch });
            }
            let told = departed.map(|(stood, notify)| stood.changed(name.clone(), Change::Released, notify));
            return Vec::from_iter(told);
        };
        match why {
            Why::Taken(mac) => vip.stranger = Stranger::Found { mac, again: now + TAKEN_PAUSE },
            Why::Failed(text) => vip.failed(text, now),
            Why::Asked | Why::Ended | Why::Unconfigured => {}
        }
        if let Phase::Held { epoch: held, .. } = vip.phase
            && epoch != 0
            && epoch < held
        {
            // Of an epoch before this one.
            return Vec::new();
        }
        let resumed = self.resumed.remove(name);
        let phase = std::mem::replace(&mut vip.phase, Phase::Idle);
        (vip.granted, vip.without_quorum, vip.unanswered) = (None, false, None);
        let told = vip.changed(name, Change::Released, epoch);
        // The guard has ended what it forwarded, too.
        (vip.stood, vip.forwards) = (None, None);
        match (phase, guard) {
            (Phase::Held { epoch: held, there, .. }, Some(session)) => {
                self.let_go(name, LetGo { session, epoch: held });
                Vec::from_iter(told.filter(|_| there))
            }
            (Phase::Quiet { .. }, _) => Vec::from_iter(told),
            // Before this program took it up.
            (_, Some(session)) if resumed == Some(epoch) => {
                self.let_go(name, LetGo { session, epoch });
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn silent(&mut self, name: &str) -> Vec<Effect> {
        let (guard, drain) = (self.guard, self.drain);
        let Some((name, _)) = self.vips.get_key_value(name) else { return Vec::new() };
        let name = name.clone();
        let Some(vip) = self.vips.get_mut(&name) else { return Vec::new() };
        let (Phase::Held { epoch, .. }, Some(session)) = (vip.phase, guard) else { return Vec::new() };
        vip.phase = Phase::Quiet { epoch, drained: false, succeeded: None };
        (vip.granted, vip.unanswered) = (None, None);
        let stood = vip.stood.iter().flat_map(|stood| &stood.addresses);
        let addresses = stood.map(|(address, _)| *address).collect();
        let told = vip.changed(&name, Change::Draining, epoch);
        self.let_go(&name, LetGo { session, epoch });
        told.into_iter().chain([Effect::Drain { vip: name, addresses, within: drain }]).collect()
    }

    fn let_go(&mut self, name: &VipName, what: LetGo) {
        let gone = self.gone.entry(name.clone()).or_default();
        if !gone.contains(&what) {
            gone.push(what);
            if gone.len() > GONE_MAX {
                gone.remove(0);
            }
        }
    }

    // === what it says ===

    /// For the lease side.
    pub fn wishes(&self) -> VipWishes {
        let report = |vip: &Vip| {
            let usable = vip.usable.as_ref();
            let placed = usable.is_some() && vip.stranger == Stranger::None;
            VipReport {
                usable: vip.problem().is_none() && placed,
                fenced: usable.is_some_and(|usable| usable.fenced),
                via: usable.map_or_else(Vec::new, |usable| usable.via.clone()),
                chance_ready: matches!(vip.chance, Chance::Ready(epoch) if epoch == vip.record.epoch()),
                last_resort: vip.last_resort() && placed,
            }
        };
        let hold = self.vips.iter().filter_map(|(name, vip)| match vip.phase {
            Phase::Held { epoch, .. } => Some((name.clone(), epoch)),
            _ => None,
        });
        VipWishes {
            report: NodeReport {
                guard: self.guard,
                ready: self.ready,
                leaving: self.leaving,
                strained: self.strained,
                disk: Duration::ZERO,
                vips: self.vips.iter().map(|(name, vip)| (name.clone(), report(vip))).collect(),
            },
            hold: hold.collect(),
            gone: self.gone.clone(),
        }
    }

    /// The guard that has something to say for us if we die: it may hold something, or may have been given
    /// something that is on its way here.
    pub fn notice(&self) -> Option<Uuid> {
        let held = self.vips.values().any(|vip| matches!(vip.phase, Phase::Held { .. }));
        self.guard.filter(|_| held || self.ready)
    }

    /// The guard of a node that is not ready, once it holds nothing: as long as it is not, it takes nothing
    /// either.
    pub fn farewell(&self) -> Option<Uuid> {
        let held = self.vips.values().any(|vip| matches!(vip.phase, Phase::Held { .. }));
        self.guard.filter(|_| !held && !self.ready && self.departed.is_empty())
    }

    /// Why there is none, and what the one that starts has said of that.
    fn no_guard(&self) -> Option<String> {
        match (&self.no_guard, &self.complaint) {
            (Some(why), Some(complaint)) => Some(format!("{why}: {complaint}")),
            (why, complaint) => why.as_ref().or(complaint.as_ref()).cloned(),
        }
    }

    /// For people.
    pub fn views(&self) -> BTreeMap<VipName, VipView> {
        let epoch = |vip: &Vip| match vip.phase {
            Phase::Held { epoch, there: true, .. } => epoch,
            _ => 0,
        };
        let view = |vip: &Vip| VipView {
            held: matches!(vip.phase, Phase::Held { there: true, .. }),
            epoch: epoch(vip),
            quiet: matches!(vip.phase, Phase::Quiet { .. }),
            without_quorum: vip.without_quorum,
            interface: vip.usable.as_ref().and_then(|usable| usable.interface.clone()),
            fenced: vip.usable.as_ref().is_some_and(|usable| usable.fenced),
            problem: self.no_guard().or_else(|| vip.problem()),
            rival: vip.rival.as_ref().map(Rival::to_string),
        };
        self.vips.iter().map(|(name, vip)| (name.clone(), view(vip))).collect()
    }
}

#[cfg(test)]
mod tests;
