//! What follows from how effects went: the next step on the way in, another try, or letting go.

use super::{
    Core, Fence,
    effect::{Done, Effect, Effects, Refused, VipId},
    nanos,
    vip::{Announcing, Phase, Vip},
};
use crate::protocol::{FromGuard, Why};

impl Core {
    pub(super) fn done(&mut self, done: Done, now: u64, effects: &mut Effects) {
        match done {
            Done::Swept(addresses) => {
                for address in addresses {
                    if self.started {
                        let text = format!("{address} was on an interface without a lease and is removed");
                        effects.push_back(Effect::Send(FromGuard::Problem { vip: None, text }));
                    } else if !self.swept.contains(&address) {
                        self.swept.push(address);
                    }
                }
                self.find_places();
                self.fit_fence(true, now, effects);
            }
            Done::Attended(weak) => {
                for text in weak.into_iter().filter(|text| !self.weak.contains(text)).collect::<Vec<_>>() {
                    if self.started {
                        effects.push_back(Effect::Send(FromGuard::Problem { vip: None, text: text.clone() }));
                    }
                    self.weak.push(text);
                }
            }
            Done::Fenced(result) => self.fenced(result, now, effects),
            Done::Added(id, result) => self.added(id, result, now, effects),
            Done::Opened(id, result) => self.opened(id, result, now, effects),
            Done::Quieted(id, result) => {
                let fenced = self.stands();
                let Some(vip) = self.by_id(id) else { return };
                let Phase::Quiet { told, .. } = &mut vip.phase else { return };
                match result {
                    Ok(()) if *told => {}
                    Ok(()) => {
                        *told = true;
                        let vip = vip.name();
                        effects.push_back(Effect::Send(FromGuard::Silent { vip }));
                    }
                    Err(Refused::Late) => vip.let_go(Why::Ended, fenced, effects),
                    Err(Refused::Failed(why)) => vip.let_go(Why::Failed(why), fenced, effects),
                }
            }
            Done::Shut(id, Err(why)) => {
                let fenced = self.stands();
                let Some(vip) = self.by_id(id) else { return };
                effects.push_back(vip.problem(format!("its fence could not be shut: {why}")));
                if matches!(vip.phase, Phase::Held { .. }) {
                    vip.let_go(Why::Failed(why), fenced, effects);
                }
            }
            Done::Shut(_, Ok(())) => {}
            Done::Removed(id, result) => self.removed(id, result, now, effects),
            Done::Chance(id, result) => {
                let Some(vip) = self.by_id(id) else { return };
                match result {
                    Ok(()) => {
                        let vip = vip.name();
                        effects.push_back(Effect::Send(FromGuard::ChanceReady { vip }));
                    }
                    Err(why) => {
                        vip.end_chance(effects);
                        effects.push_back(vip.problem(format!("no second chance: {why}")));
                    }
                }
            }
        }
    }

    fn by_id(&mut self, id: VipId) -> Option<&mut Vip> {
        self.vips.iter_mut().find(|vip| vip.id == id)
    }

    pub(super) fn fenced(&mut self, result: Result<(), String>, now: u64, effects: &mut Effects) {
        match (result, &self.fence) {
            (Ok(()), _) => self.fence = Fence::Stands,
            (Err(why), Fence::Unknown) => {
                self.fence = Fence::Absent;
                if self.incapable.is_none() {
                    let text = format!("nf_tables is not available, VIPs are held without it: {why}");
                    effects.push_back(Effect::Send(FromGuard::Problem { vip: None, text }));
                }
            }
            (Err(_), Fence::Absent) => {}
            (Err(why), Fence::Stands | Fence::Lost { .. }) => {
                let why = format!("the fence can't be set up: {why}");
                self.let_all_go(&Why::Failed(why.clone()), effects);
                let retry = now.saturating_add(nanos(self.settings.retry) * 10);
                self.fence = Fence::Lost { why, retry };
            }
        }
        if self.configuring && !self.started {
            self.started = true;
            let started = self.started();
            effects.push_back(Effect::Send(started));
        }
        let always = std::mem::take(&mut self.configuring);
        self.tell_usable(always, effects);
    }

    fn added(&mut self, id: VipId, result: Result<(), String>, now: u64, effects: &mut Effects) {
        let fenced = self.stands();
        let Some(vip) = self.by_id(id) else { return };
        if let Err(why) = result {
            if matches!(vip.phase, Phase::Taking { .. } | Phase::Held { .. } | Phase::Quiet { .. }) {
                vip.let_go(Why::Failed(why), fenced, effects);
            }
            return;
        }
        match &vip.phase {
            Phase::Taking { lease, place } | Phase::Held { lease, place, shut: None, .. } => {
                if fenced {
                    let (place, deadline) = (place.clone(), lease.deadline);
                    effects.push_back(Effect::Open { vip: id, place, deadline });
                } else {
                    self.opened(id, Ok(()), now, effects);
                }
            }
            Phase::Quiet { until, place, .. } => {
                effects.push_back(Effect::Quiet { vip: id, place: place.clone(), until: *until });
            }
            _ => {}
        }
    }

    fn opened(&mut self, id: VipId, result: Result<(), Refused>, now: u64, effects: &mut Effects) {
        let fenced = self.stands();
        let announcing = Announcing::begin(now, &self.settings);
        let Some(vip) = self.by_id(id) else { return };
        match (result, &vip.phase) {
            (Ok(()), Phase::Taking { lease, place }) => {
                let (lease, place) = (*lease, place.clone());
                effects.push_back(Effect::Announce(place.clone()));
                effects.push_back(Effect::Send(FromGuard::Holding { vip: vip.name(), epoch: lease.epoch }));
                vip.phase = Phase::Held { lease, place, announcing, shut: None };
            }
            // Each renewal is answered: a guard that does not is stuck, and the node starts another.
            (Ok(()), Phase::Held { lease, .. }) => {
                effects.push_back(Effect::Send(FromGuard::Holding { vip: vip.name(), epoch: lease.epoch }));
            }
            (Ok(()), _) => {}
            (Err(refused), Phase::Taking { .. } | Phase::Held { .. }) => {
                let why = match refused {
                    Refused::Late => Why::Ended,
                    Refused::Failed(why) => Why::Failed(why),
                };
                vip.let_go(why, fenced, effects);
            }
            (Err(_), _) => {}
        }
    }

    fn removed(&mut self, id: VipId, result: Result<(), String>, now: u64, effects: &mut Effects) {
        let retry_at = now.saturating_add(nanos(self.settings.retry));
        let fenced = self.stands();
        let Some(vip) = self.by_id(id) else { return };
        let failed = result.as_ref().err().map(|why| vip.problem(format!("it can't be removed: {why}")));
        match (result, &mut vip.phase) {
            (Ok(()), Phase::Leaving { why, .. }) => {
                let why = why.clone();
                vip.phase = Phase::Free;
                effects.push_back(vip.released(why));
                if vip.gone {
                    self.forget_the_gone();
                    if self.ending.is_none() {
                        self.fit_fence(false, now, effects);
                    }
                }
            }
            (Ok(()), _) => {}
            (Err(_), Phase::Leaving { retry, .. }) => {
                *retry = Some(retry_at);
                effects.extend(failed);
            }
            // A stranger was seen, there is no fence, and the address stays.
            (Err(why), _) => vip.let_go(Why::Failed(why), fenced, effects),
        }
    }
}
