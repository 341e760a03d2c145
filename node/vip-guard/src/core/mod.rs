//! What the guard decides, as a function of state, event and `now`: no clock, no socket, no thread.
//!
//! On the way in a VIP is fenced and shut, then added, then opened, then announced; on the way out it is shut
//! first, then removed. Each step waits for the answer to the one before it, and deadlines are looked at
//! before every event: what comes too late finds the VIP let go.
//!
//! Effects must be carried out in order, and their answers given back in order, before the next event; and
//! before each event comes [`Event::Time`], so that what the time has ended is gone by then.

mod answers;
mod effect;
mod orders;
mod picture;
mod vip;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

pub use effect::{Done, Effect, Effects, Event, MOVE_MAX, Refused, Settings, VipId};
pub use picture::{AddedBy, Address, Link, Mac, NoPlace, Picture, Place};

use self::vip::{Announcing, Lease, Phase, Vip};
use crate::protocol::{FromGuard, ToGuard, VIPS_MAX, VipSpec, Why};

/// Fence 2 on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fence {
    /// Not asked for yet.
    Unknown,
    Stands,
    /// It never stood: VIPs are held without it.
    Absent,
    /// It stood, and the lease counts on it: nothing is held until it stands again.
    Lost {
        why: String,
        retry: u64,
    },
}

/// The node is gone.
#[derive(Debug)]
struct Ending {
    copies: u32,
    /// `None`: not everything is gone yet.
    next: Option<u64>,
    give_up: u64,
}

#[derive(Debug)]
pub struct Core {
    settings: Settings,
    session: [u8; 16],
    /// What this process may not do, in a sentence.
    incapable: Option<String>,
    unprotected: Vec<String>,
    weak: Vec<String>,
    swept: Vec<IpAddr>,
    started: bool,
    /// A `Configure` is being carried out.
    configuring: bool,
    picture: Picture,
    fence: Fence,
    /// What the fence was last asked to be.
    links: Vec<(u32, String)>,
    fenced: Vec<IpAddr>,
    vips: Vec<Vip>,
    /// Name, epoch and ended epoch of VIPs that left the config: what was ended stays so when the name comes
    /// back. At most [`VIPS_MAX`], the latest.
    departed: VecDeque<(String, u64, u64)>,
    next_id: u32,
    notices: Vec<(SocketAddr, Vec<u8>)>,
    ending: Option<Ending>,
}

impl Core {
    /// `unprotected`: what this process could not have for its protection. `incapable`: what it lacks to hold
    /// anything.
    #[must_use]
    pub fn new(
        settings: Settings,
        session: [u8; 16],
        unprotected: Vec<String>,
        incapable: Option<String>,
    ) -> Self {
        Self {
            settings,
            session,
            incapable,
            unprotected,
            weak: Vec::new(),
            swept: Vec::new(),
            started: false,
            configuring: false,
            picture: Picture::default(),
            fence: Fence::Unknown,
            links: Vec::new(),
            fenced: Vec::new(),
            vips: Vec::new(),
            departed: VecDeque::new(),
            next_id: 0,
            notices: Vec::new(),
            ending: None,
        }
    }

    /// What was swept before anything was configured.
    pub fn note_swept(&mut self, addresses: Vec<IpAddr>) {
        self.swept.extend(addresses);
    }

    /// What to send for [`Effect::Notices`].
    #[must_use]
    pub fn notices(&self) -> &[(SocketAddr, Vec<u8>)] {
        &self.notices
    }

    /// When [`Event::Time`] is due at the latest.
    #[must_use]
    pub fn next_wake(&self) -> Option<u64> {
        let ending = self.ending.as_ref().map(|ending| ending.next.unwrap_or(ending.give_up));
        let fence = match &self.fence {
            Fence::Lost { retry, .. } if self.ending.is_none() => Some(*retry),
            _ => None,
        };
        self.vips.iter().filter_map(Vip::next_wake).chain(ending).chain(fence).min()
    }

    /// Deadlines first, then the event.
    pub fn handle(&mut self, event: Event, now: u64, effects: &mut Effects) {
        self.pass_time(now, effects);
        match event {
            Event::Done(done) => self.done(done, now, effects),
            Event::Time => {}
            _ if self.ending.is_some() => {}
            Event::NodeGone => self.node_gone(now, effects),
            Event::FromNode(message) => self.message(message, now, effects),
            Event::Picture(picture) => self.see(picture, now, effects),
            Event::FenceLost(why) => self.fence_lost(why, now, effects),
            Event::Heard { link, address, mac } => {
                if !self.picture.is_own_mac(mac) {
                    let fenced = self.stands();
                    for vip in &mut self.vips {
                        vip.strange(link, address, mac, now, fenced, effects);
                    }
                }
            }
        }
        self.go_on_ending(now, effects);
    }

    fn stands(&self) -> bool {
        self.fence == Fence::Stands
    }

    fn pass_time(&mut self, now: u64, effects: &mut Effects) {
        let fenced = self.stands();
        for vip in &mut self.vips {
            if vip.deadline().is_some_and(|deadline| deadline <= now) {
                vip.let_go(Why::Ended, fenced, effects);
            }
        }
        for vip in &mut self.vips {
            vip.go_on_probing(now, &self.settings, effects);
            vip.announce_if_due(now, &self.settings, effects);
            if vip.chance.as_ref().is_some_and(|(until, _)| *until <= now) {
                vip.end_chance(effects);
            }
            let id = vip.id;
            if let Phase::Leaving { place, retry, .. } = &mut vip.phase
                && retry.is_some_and(|at| at <= now)
            {
                *retry = None;
                effects.push_back(Effect::Remove { vip: id, place: place.clone() });
            }
        }
        if self.ending.is_none()
            && let Fence::Lost { retry, .. } = &mut self.fence
            && *retry <= now
        {
            *retry = u64::MAX;
            self.ask_for_fence(now, effects);
        }
    }

    fn message(&mut self, message: ToGuard, now: u64, effects: &mut Effects) {
        match message {
            ToGuard::Configure { vips } => self.configure(vips, effects),
            ToGuard::Notice { datagrams } => self.notices = datagrams,
            ToGuard::Resume => self.resume(effects),
            ToGuard::Grant { vip, epoch, sent, deadline, probe } => {
                let lease = Lease { epoch, sent, deadline };
                self.with(&vip, effects, |core, at, effects| core.grant(at, lease, probe, now, effects));
            }
            ToGuard::Release { vip } => self.with(&vip, effects, |core, at, effects| {
                let fenced = core.stands();
                let vip = &mut core.vips[at];
                vip.let_go(Why::Asked, fenced, effects);
            }),
            ToGuard::Silence { vip, until } => {
                self.with(&vip, effects, |core, at, effects| core.silence(at, until, now, effects));
            }
            ToGuard::Chance { vip, old, except, until } => self.with(&vip, effects, |core, at, effects| {
                let vip = &mut core.vips[at];
                let until = until.min(now.saturating_add(nanos(MOVE_MAX)));
                match &vip.place {
                    _ if until <= now => effects.push_back(vip.problem("its second chance is over already")),
                    Err(no) => effects.push_back(vip.problem(format!("no second chance: {}", no.why))),
                    Ok(place) => {
                        let place = place.clone();
                        vip.chance = Some((until, place.clone()));
                        effects.push_back(Effect::Chance { vip: vip.id, place, old, except, until });
                    }
                }
            }),
            ToGuard::EndChance { vip } => {
                self.with(&vip, effects, |core, at, effects| core.vips[at].end_chance(effects));
            }
            ToGuard::Probe { vip } => {
                self.with(&vip, effects, |core, at, effects| core.probe(at, now, effects));
            }
        }
    }

    /// Before the first configuration there is nothing to tell, and what answers that tells it.
    fn resume(&mut self, effects: &mut Effects) {
        if !self.started {
            return;
        }
        self.tell_usable(true, effects);
        let released = |vip: &str, epoch| FromGuard::Released { vip: vip.to_owned(), epoch, why: Why::Asked };
        for vip in &self.vips {
            let told = match &vip.phase {
                Phase::Probing { lease } | Phase::Taking { lease, .. } | Phase::Held { lease, .. } => {
                    Some(FromGuard::Holding { vip: vip.name(), epoch: lease.epoch })
                }
                // It says so once it is gone.
                Phase::Leaving { .. } => None,
                Phase::Free | Phase::Quiet { .. } => {
                    (vip.ended > 0).then(|| released(&vip.spec.name, vip.ended))
                }
            };
            effects.extend(told.map(Effect::Send));
        }
        let departed = self.departed.iter().filter(|(_, _, ended)| *ended > 0);
        effects.extend(departed.map(|(name, _, ended)| Effect::Send(released(name, *ended))));
        effects.push_back(Effect::Send(self.started()));
    }

    fn started(&mut self) -> FromGuard {
        FromGuard::Started {
            session: self.session,
            unprotected: std::mem::take(&mut self.unprotected),
            weak: self.weak.clone(),
            swept: std::mem::take(&mut self.swept),
        }
    }

    /// A message about a VIP that is not configured crossed a change of config; the node hears so.
    fn with(&mut self, name: &str, effects: &mut Effects, act: impl FnOnce(&mut Self, usize, &mut Effects)) {
        match self.vips.iter().position(|vip| !vip.gone && vip.spec.name == name) {
            Some(at) => act(self, at, effects),
            None => effects.push_back(Effect::Send(FromGuard::Problem {
                vip: Some(name.to_owned()),
                text: "it is not configured at the guard".to_owned(),
            })),
        }
    }

    fn configure(&mut self, specs: Vec<VipSpec>, effects: &mut Effects) {
        let fenced = self.stands();
        for vip in self.vips.iter_mut().filter(|vip| !vip.gone) {
            let same = specs.iter().find(|spec| {
                (&spec.name, &spec.addresses, &spec.interface)
                    == (&vip.spec.name, &vip.spec.addresses, &vip.spec.interface)
            });
            match same {
                Some(spec) => vip.spec.ttl = spec.ttl,
                None => {
                    vip.gone = true;
                    if !matches!(vip.phase, Phase::Free) {
                        vip.let_go(Why::Unconfigured, fenced, effects);
                    }
                    vip.end_chance(effects);
                    self.departed.push_back((vip.name(), vip.epoch, vip.ended));
                    if self.departed.len() > VIPS_MAX {
                        self.departed.pop_front();
                    }
                }
            }
        }
        for spec in specs {
            if self.vips.iter().any(|vip| !vip.gone && vip.spec.name == spec.name) {
                continue;
            }
            let id = VipId(self.next_id);
            self.next_id = self.next_id.wrapping_add(1);
            let none = NoPlace { interface: None, why: "its interface is not known yet".to_owned() };
            // With other addresses it is another VIP, but its lease goes on under the same epochs.
            let before = self.departed.iter().filter(|(name, ..)| *name == spec.name);
            let (epoch, ended) = before.map(|(_, epoch, ended)| (*epoch, *ended)).max().unwrap_or((0, 0));
            let clashes = self.picture.clash(&spec).is_some();
            self.vips.push(Vip { epoch, ended, clashes, ..Vip::new(id, spec, Err(none)) });
        }
        self.forget_the_gone();
        self.configuring = true;
        let keep: Vec<_> =
            self.vips.iter().filter(|vip| vip.standing().is_some()).flat_map(Vip::ips).collect();
        let configured =
            self.vips.iter().flat_map(Vip::ips).filter(|address| !keep.contains(address)).collect();
        effects.push_back(Effect::Sweep { configured, keep });
    }

    fn forget_the_gone(&mut self) {
        self.vips.retain(|vip| !vip.gone || !matches!(vip.phase, Phase::Free));
    }

    fn addresses(&self, of: impl Fn(&Vip) -> bool) -> Vec<IpAddr> {
        let mut addresses: Vec<_> = self.vips.iter().filter(|vip| of(vip)).flat_map(Vip::ips).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    fn find_places(&mut self) {
        let addresses = self.addresses(|_| true);
        for vip in self.vips.iter_mut().filter(|vip| !vip.gone) {
            vip.place = self.picture.place(&vip.spec, &addresses);
            vip.clashes &= self.picture.clash(&vip.spec).is_some();
        }
    }

    /// Asks for the fence and for ears where VIPs are or would go, if that is not what there is.
    fn fit_fence(&mut self, always: bool, now: u64, effects: &mut Effects) {
        let places = self.vips.iter().flat_map(|vip| [vip.place.as_ref().ok(), vip.standing()]);
        let mut links: Vec<_> = places.flatten().map(|place| (place.link, place.device.clone())).collect();
        let shut =
            self.vips.iter().filter(|vip| !vip.clashes).filter_map(|vip| self.picture.clash(&vip.spec));
        let shut = shut.filter_map(|address| self.picture.link(address.link));
        links.extend(shut.map(|link| (link.index, link.name.clone())));
        links.retain(|(index, _)| self.picture.link(*index).is_some());
        links.sort_unstable();
        links.dedup();
        let addresses = self.addresses(|vip| !vip.clashes);
        if links != self.links || always {
            effects.push_back(Effect::Attend(links.clone()));
        } else if addresses == self.fenced {
            return;
        }
        (self.links, self.fenced) = (links, addresses);
        self.ask_for_fence(now, effects);
    }

    fn ask_for_fence(&mut self, now: u64, effects: &mut Effects) {
        if self.fence == Fence::Absent {
            // One that came now would stand shut before addresses that are held without it.
            return self.fenced(Err("nf_tables is not available".to_owned()), now, effects);
        }
        effects.push_back(Effect::Fence { links: self.links.clone(), addresses: self.fenced.clone() });
    }

    fn see(&mut self, picture: Picture, now: u64, effects: &mut Effects) {
        self.picture = picture;
        self.find_places();
        let fenced = self.stands();
        for vip in &mut self.vips {
            // What is being added now is in the next picture.
            if matches!(vip.phase, Phase::Taking { .. }) {
                continue;
            }
            let Some(place) = vip.standing().cloned() else { continue };
            let failed = match self.picture.link(place.link) {
                None => Some(format!("interface {} is gone", place.device)),
                Some(link) => picture::unfit(link),
            };
            // What a stranger made it remove, without a fence, is meant to be away.
            let away = matches!(vip.phase, Phase::Held { shut: Some(_), .. }) && !fenced;
            let removed = place.ips().find(|ip| !away && !self.picture.has(place.link, *ip));
            let failed = failed.or_else(|| removed.map(|ip| format!("{ip} was removed by somebody else")));
            if let Some(why) = failed {
                vip.let_go(Why::Failed(why), fenced, effects);
                continue;
            }
            let mac = self.picture.link(place.link).and_then(|link| link.mac);
            if let Phase::Held { place, announcing, .. } = &mut vip.phase
                && place.mac != mac
            {
                // A bond that fell over to its other port.
                let old = &**place;
                *place = Arc::new(Place {
                    vip: old.vip.clone(),
                    device: old.device.clone(),
                    addresses: old.addresses.clone(),
                    bare: old.bare.clone(),
                    via: old.via.clone(),
                    link: old.link,
                    mac,
                });
                effects.push_back(Effect::Announce(place.clone()));
                *announcing = Announcing::begin(now, &self.settings);
            }
        }
        if self.started || self.configuring {
            self.fit_fence(false, now, effects);
            self.tell_usable(false, effects);
        }
    }

    fn fence_lost(&mut self, why: String, now: u64, effects: &mut Effects) {
        if !self.stands() {
            return;
        }
        self.fence = Fence::Lost { why: why.clone(), retry: u64::MAX };
        self.let_all_go(&Why::Failed(why), effects);
        self.tell_usable(false, effects);
        self.ask_for_fence(now, effects);
    }

    fn let_all_go(&mut self, why: &Why, effects: &mut Effects) {
        // All shut at once, before the first is removed.
        let standing = self.vips.iter().filter(|vip| !matches!(vip.phase, Phase::Leaving { .. }));
        let shut: Vec<_> =
            standing.filter_map(|vip| vip.standing().map(|place| (vip.id, place.clone()))).collect();
        if self.stands() && !shut.is_empty() {
            effects.push_back(Effect::Shut(shut));
        }
        for vip in &mut self.vips {
            if !matches!(vip.phase, Phase::Free) {
                vip.let_go(why.clone(), false, effects);
            }
            vip.end_chance(effects);
        }
    }

    fn node_gone(&mut self, now: u64, effects: &mut Effects) {
        self.let_all_go(&Why::Asked, effects);
        let give_up = now.saturating_add(nanos(self.settings.leave_within));
        self.ending = Some(Ending { copies: 0, next: None, give_up });
    }

    /// Notices say that everything is gone: they wait for that, and are not sent if it can't be had.
    fn go_on_ending(&mut self, now: u64, effects: &mut Effects) {
        let Some(ending) = &mut self.ending else { return };
        let free = self.vips.iter().all(|vip| matches!(vip.phase, Phase::Free));
        match ending.next {
            None if free => {}
            None if now < ending.give_up => return,
            None => {
                ending.next = Some(u64::MAX);
                effects.push_back(Effect::Exit);
                return;
            }
            Some(next) if now < next => return,
            Some(_) => {}
        }
        if ending.copies < self.settings.notices {
            ending.copies += 1;
            ending.next = Some(now.saturating_add(nanos(self.settings.notice_gap)));
            effects.push_back(Effect::Notices);
        } else if ending.next != Some(u64::MAX) {
            ending.next = Some(u64::MAX);
            effects.extend([Effect::Dismantle, Effect::Exit]);
        }
    }

    /// Why the VIP can't be held here.
    fn problem(&self, vip: &Vip) -> Option<String> {
        let lost = match &self.fence {
            Fence::Lost { why, .. } => Some(why.clone()),
            Fence::Unknown => Some("the guard is not set up yet".to_owned()),
            Fence::Stands | Fence::Absent => None,
        };
        self.incapable.clone().or_else(|| vip.place.as_ref().err().map(|no| no.why.clone())).or(lost)
    }

    fn tell_usable(&mut self, always: bool, effects: &mut Effects) {
        if !self.started || self.configuring {
            return;
        }
        for at in 0..self.vips.len() {
            let vip = &self.vips[at];
            if vip.gone {
                continue;
            }
            let (interface, via) = match &vip.place {
                Ok(place) => (Some(place.device.clone()), place.via.clone()),
                Err(no) => (no.interface.clone(), Vec::new()),
            };
            let usable = FromGuard::Usable {
                vip: vip.name(),
                interface,
                via,
                fenced: self.stands(),
                problem: self.problem(vip),
            };
            if always || vip.told.as_ref() != Some(&usable) {
                effects.push_back(Effect::Send(usable.clone()));
                self.vips[at].told = Some(usable);
            }
        }
    }
}

pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
