//! What the node asks for one VIP.

use super::{
    Core,
    effect::{Effect, Effects, MOVE_MAX},
    nanos,
    vip::{Lease, Phase, seconds_left},
};
use crate::protocol::{FromGuard, Why};

impl Core {
    pub(super) fn grant(&mut self, at: usize, lease: Lease, probe: bool, now: u64, effects: &mut Effects) {
        let fenced = self.stands();
        let problem = self.problem(&self.vips[at]);
        let vip = &mut self.vips[at];
        let overtaken = lease.epoch < vip.epoch || lease.epoch <= vip.ended;
        // Also one that comes too late: what is said from here on is of this epoch.
        vip.epoch = vip.epoch.max(lease.epoch);
        if lease.deadline <= now || overtaken {
            effects.push_back(vip.heard());
            return;
        }
        if let Some(problem) = problem
            && matches!(vip.phase, Phase::Free)
        {
            vip.ended = vip.epoch;
            effects.push_back(vip.released(Why::Failed(problem)));
            return;
        }
        // Within an epoch an answer that was overtaken takes nothing back.
        let renew = |held: &Lease| match held.epoch == lease.epoch {
            true => Lease {
                deadline: held.deadline.max(lease.deadline),
                sent: held.sent.max(lease.sent),
                ..*held
            },
            false => lease,
        };
        match &mut vip.phase {
            // Renewed again after it is gone: what is being removed is not held by the way.
            Phase::Leaving { .. } => {}
            Phase::Free => {
                let Ok(place) = vip.place.clone() else { return effects.push_back(vip.heard()) };
                if probe && place.mac.is_some() {
                    vip.phase = Phase::Probing { lease };
                    match &mut vip.probing {
                        Some(_) => {}
                        None => vip.begin_probing(place, false, now, &self.settings, effects),
                    }
                } else {
                    vip.take(lease, place, now, effects);
                }
            }
            Phase::Probing { lease: held } | Phase::Taking { lease: held, .. } => *held = renew(held),
            Phase::Held { lease: held, place, shut, .. } => {
                let (before, renewed) = (*held, renew(held));
                let place = place.clone();
                *held = renewed;
                let shut = *shut;
                match shut {
                    Some(seen) if lease.sent <= seen => {
                        // Still shut, but the address lives on with its lease.
                        if fenced && renewed.deadline != before.deadline {
                            let seconds = seconds_left(renewed.deadline, now);
                            effects.push_back(Effect::Add { vip: vip.id, place, seconds });
                        }
                        effects.push_back(vip.heard());
                    }
                    // A sight that is behind it: opened again, and neighbours are told.
                    Some(_) => vip.take(renewed, place, now, effects),
                    None if before.epoch != renewed.epoch => vip.take(renewed, place, now, effects),
                    // The lease became shorter: this one ends no later than what was granted before.
                    None if before.deadline == renewed.deadline => effects.push_back(vip.heard()),
                    None => {
                        let seconds = seconds_left(renewed.deadline, now);
                        effects.push_back(Effect::Add { vip: vip.id, place, seconds });
                    }
                }
            }
            // The move did not come about, and the VIP was given back.
            Phase::Quiet { place, .. } => {
                let place = place.clone();
                vip.take(lease, place, now, effects);
            }
        }
    }

    pub(super) fn silence(&mut self, at: usize, until: u64, now: u64, effects: &mut Effects) {
        let fenced = self.stands();
        let vip = &mut self.vips[at];
        vip.ended = vip.epoch;
        let until = until.min(now.saturating_add(nanos(MOVE_MAX)));
        match &vip.phase {
            Phase::Free => effects.push_back(vip.released(Why::Ended)),
            Phase::Leaving { .. } => {}
            Phase::Probing { .. } => vip.let_go(Why::Ended, fenced, effects),
            _ if until <= now => vip.let_go(Why::Asked, fenced, effects),
            _ if !fenced => {
                let why = "it can't be kept silently: nf_tables is not available".to_owned();
                vip.let_go(Why::Failed(why), fenced, effects);
            }
            Phase::Taking { place, .. } | Phase::Held { place, .. } | Phase::Quiet { place, .. } => {
                let place = place.clone();
                let seconds = seconds_left(until, now);
                effects.push_back(Effect::Add { vip: vip.id, place: place.clone(), seconds });
                vip.phase = Phase::Quiet { until, place, told: false };
            }
        }
    }

    pub(super) fn probe(&mut self, at: usize, now: u64, effects: &mut Effects) {
        let problem = self.problem(&self.vips[at]);
        let vip = &mut self.vips[at];
        if let Some(probing) = &mut vip.probing {
            probing.asked = true;
            return;
        }
        match (&vip.phase, problem, vip.place.clone()) {
            (Phase::Free, None, Ok(place)) if place.mac.is_some() => {
                vip.begin_probing(place, true, now, &self.settings, effects);
            }
            (Phase::Free, Some(problem), _) => {
                effects.push_back(vip.problem(format!("no probe: {problem}")));
            }
            // It is here, or there are no neighbours: no stranger has it.
            _ => effects.push_back(Effect::Send(FromGuard::Probed { vip: vip.name(), taken_by: None })),
        }
    }
}
