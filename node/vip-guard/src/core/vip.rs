//! One VIP: where it stands between free and held, and what moves it.
//!
//! Invariant: a VIP is open only in [`Phase::Held`] with no stranger seen, and what may be on an interface or
//! open in the fence is in a phase that has a deadline and a [`Place`] to clear.

use std::{net::IpAddr, sync::Arc};

use super::{
    effect::{Effect, Effects, Settings, VipId},
    nanos,
    picture::{Mac, NoPlace, Place},
};
use crate::protocol::{FromGuard, VipSpec, Why};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) epoch: u64,
    pub(super) sent: u64,
    pub(super) deadline: u64,
}

/// When neighbours are told next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announcing {
    base: u64,
    step: usize,
    pub(super) next: u64,
}

impl Announcing {
    /// From now on; the first is to be sent by the caller at once.
    pub(super) fn begin(now: u64, settings: &Settings) -> Self {
        let mut announcing = Self { base: now, step: 0, next: now };
        announcing.advance(now, settings);
        announcing
    }

    pub(super) fn advance(&mut self, now: u64, settings: &Settings) {
        while self.next <= now {
            self.next = match settings.announce_after.get(self.step) {
                Some(after) => self.base.saturating_add(nanos(*after)),
                None => now.saturating_add(nanos(settings.announce_every)).max(now + 1),
            };
            self.step += 1;
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    Free,
    /// First take-over: nothing is added until the probes went unanswered.
    Probing {
        lease: Lease,
    },
    /// Being added and opened.
    Taking {
        lease: Lease,
        place: Arc<Place>,
    },
    Held {
        lease: Lease,
        place: Arc<Place>,
        announcing: Announcing,
        /// A stranger was seen then; the fence is shut.
        shut: Option<u64>,
    },
    /// Kept silently; `told`: the node knows.
    Quiet {
        until: u64,
        place: Arc<Place>,
        told: bool,
    },
    /// Being removed; `retry`: the kernel refused, and is asked again then.
    Leaving {
        place: Arc<Place>,
        why: Why,
        retry: Option<u64>,
    },
}

/// Probes under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Probing {
    pub(super) place: Arc<Place>,
    pub(super) left: u32,
    pub(super) next: u64,
    /// The node asked for an answer.
    pub(super) asked: bool,
}

#[derive(Debug)]
pub(super) struct Vip {
    pub(super) id: VipId,
    pub(super) spec: VipSpec,
    /// Not in the config any more; forgotten when it is free.
    pub(super) gone: bool,
    /// This machine has had one of its addresses for its own since before it was configured: the fence
    /// would cut the machine off. One that appears later stays shut with the rest.
    pub(super) clashes: bool,
    pub(super) place: Result<Arc<Place>, NoPlace>,
    /// The last [`FromGuard::Usable`].
    pub(super) told: Option<FromGuard>,
    /// The highest that was granted.
    pub(super) epoch: u64,
    /// The highest epoch that it was let go of or went silent in. The leader hears so and may give the VIP to
    /// somebody else at once, so that epoch is never taken again, whatever is granted for it.
    pub(super) ended: u64,
    pub(super) phase: Phase,
    /// When a stranger shut the fence last.
    pub(super) stranger: Option<u64>,
    pub(super) probing: Option<Probing>,
    /// The end of the second chance that is armed.
    pub(super) chance: Option<(u64, Arc<Place>)>,
}

impl Vip {
    pub(super) fn new(id: VipId, spec: VipSpec, place: Result<Arc<Place>, NoPlace>) -> Self {
        Self {
            id,
            spec,
            gone: false,
            clashes: false,
            place,
            told: None,
            epoch: 0,
            ended: 0,
            phase: Phase::Free,
            stranger: None,
            probing: None,
            chance: None,
        }
    }

    pub(super) fn name(&self) -> String {
        self.spec.name.clone()
    }

    pub(super) fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.spec.addresses.iter().map(|(address, _)| *address)
    }

    /// Where its addresses are or may be.
    pub(super) fn standing(&self) -> Option<&Arc<Place>> {
        match &self.phase {
            Phase::Free | Phase::Probing { .. } => None,
            Phase::Taking { place, .. }
            | Phase::Held { place, .. }
            | Phase::Quiet { place, .. }
            | Phase::Leaving { place, .. } => Some(place),
        }
    }

    /// When it must be let go.
    pub(super) fn deadline(&self) -> Option<u64> {
        match &self.phase {
            Phase::Probing { lease } | Phase::Taking { lease, .. } | Phase::Held { lease, .. } => {
                Some(lease.deadline)
            }
            Phase::Quiet { until, .. } => Some(*until),
            Phase::Free | Phase::Leaving { .. } => None,
        }
    }

    /// When something is due.
    pub(super) fn next_wake(&self) -> Option<u64> {
        let phase = match &self.phase {
            Phase::Held { announcing, shut: None, .. } => Some(announcing.next),
            Phase::Leaving { retry, .. } => *retry,
            _ => None,
        };
        let others = [
            self.deadline(),
            phase,
            self.probing.as_ref().map(|probing| probing.next),
            self.chance.as_ref().map(|(until, _)| *until),
        ];
        others.into_iter().flatten().min()
    }

    pub(super) fn released(&self, why: Why) -> Effect {
        Effect::Send(FromGuard::Released { vip: self.name(), epoch: self.epoch, why })
    }

    pub(super) fn heard(&self) -> Effect {
        Effect::Send(FromGuard::Heard { vip: self.name() })
    }

    pub(super) fn problem(&self, text: impl Into<String>) -> Effect {
        Effect::Send(FromGuard::Problem { vip: Some(self.name()), text: text.into() })
    }

    /// The fence first, then the address; `Released` follows when it is gone. Nothing here can fail.
    pub(super) fn let_go(&mut self, why: Why, fenced: bool, effects: &mut Effects) {
        self.ended = self.epoch;
        self.end_chance(effects);
        self.probing = None;
        match self.standing().cloned() {
            _ if matches!(self.phase, Phase::Leaving { .. }) => {}
            Some(place) => {
                if fenced {
                    effects.push_back(Effect::Shut(vec![(self.id, place.clone())]));
                }
                effects.push_back(Effect::Remove { vip: self.id, place: place.clone() });
                self.phase = Phase::Leaving { place, why, retry: None };
            }
            None => {
                self.phase = Phase::Free;
                effects.push_back(self.released(why));
            }
        }
    }

    pub(super) fn end_chance(&mut self, effects: &mut Effects) {
        if let Some((_, place)) = self.chance.take() {
            effects.push_back(Effect::EndChance(place));
        }
    }

    /// Adds the addresses; what follows comes with the answer.
    pub(super) fn take(&mut self, lease: Lease, place: Arc<Place>, now: u64, effects: &mut Effects) {
        let seconds = seconds_left(lease.deadline, now);
        effects.push_back(Effect::Add { vip: self.id, place: place.clone(), seconds });
        self.phase = Phase::Taking { lease, place };
    }

    pub(super) fn begin_probing(
        &mut self,
        place: Arc<Place>,
        asked: bool,
        now: u64,
        settings: &Settings,
        effects: &mut Effects,
    ) {
        effects.push_back(Effect::Probe(place.clone()));
        let next = now.saturating_add(nanos(settings.probe_gap));
        self.probing = Some(Probing { place, left: settings.probes.saturating_sub(1), next, asked });
    }

    /// Sends the next probe, or ends: the address is free.
    pub(super) fn go_on_probing(&mut self, now: u64, settings: &Settings, effects: &mut Effects) {
        let Some(probing) = self.probing.as_mut().filter(|probing| probing.next <= now) else { return };
        if probing.left > 0 {
            probing.left -= 1;
            probing.next = now.saturating_add(nanos(settings.probe_gap));
            effects.push_back(Effect::Probe(probing.place.clone()));
            return;
        }
        self.end_probing(None, effects);
        if let Phase::Probing { lease } = self.phase {
            match &self.place {
                Ok(place) => self.take(lease, place.clone(), now, effects),
                Err(no) => {
                    let why = Why::Failed(no.why.clone());
                    self.let_go(why, false, effects);
                }
            }
        }
    }

    fn end_probing(&mut self, taken_by: Option<(IpAddr, Mac)>, effects: &mut Effects) {
        if self.probing.take().is_some_and(|probing| probing.asked) {
            effects.push_back(Effect::Send(FromGuard::Probed { vip: self.name(), taken_by }));
        }
    }

    /// A stranger has `address`.
    pub(super) fn strange(
        &mut self,
        link: u32,
        address: IpAddr,
        mac: Mac,
        now: u64,
        fenced: bool,
        effects: &mut Effects,
    ) {
        if !self.ips().any(|ip| ip == address) {
            return;
        }
        let nobodys = matches!(self.phase, Phase::Free | Phase::Probing { .. });
        if nobodys && self.probing.as_ref().is_some_and(|probing| probing.place.link == link) {
            self.end_probing(Some((address, mac)), effects);
            if matches!(self.phase, Phase::Probing { .. }) {
                self.let_go(Why::Taken(mac), fenced, effects);
            }
            return;
        }
        let recent = self.stranger.is_some_and(|at| now < at.saturating_add(self.spec.ttl));
        let Phase::Held { place, shut, .. } = &mut self.phase else { return };
        if place.link != link || shut.is_some() || recent {
            return;
        }
        *shut = Some(now);
        self.stranger = Some(now);
        let place = place.clone();
        // Without a fence there is one way to be silent.
        effects.push_back(if fenced {
            Effect::Shut(vec![(self.id, place)])
        } else {
            Effect::Remove { vip: self.id, place }
        });
        effects.push_back(Effect::Send(FromGuard::Stranger { vip: self.name(), address, mac, at: now }));
    }

    pub(super) fn announce_if_due(&mut self, now: u64, settings: &Settings, effects: &mut Effects) {
        if let Phase::Held { place, announcing, shut: None, .. } = &mut self.phase
            && announcing.next <= now
        {
            effects.push_back(Effect::Announce(place.clone()));
            announcing.advance(now, settings);
        }
    }
}

/// Whole seconds, rounded up: fence 3 must not end a lease that is alive.
pub(super) fn seconds_left(deadline: u64, now: u64) -> u32 {
    let seconds = deadline.saturating_sub(now).div_ceil(1_000_000_000);
    // The largest value means for ever.
    u32::try_from(seconds).unwrap_or(u32::MAX).clamp(1, u32::MAX - 1)
}
