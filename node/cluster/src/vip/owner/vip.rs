//! One VIP as the owner's side sees it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use trestle_raft_store::types::{NodeId, VipRecord};
use trestle_vip_guard::protocol::ToGuard;

use super::super::in_order;
use super::failure::Failure;
use super::{Change, Effect, VipConfig};
use crate::lease::clock::BootTime;
use crate::lease::vips::VipName;

/// Below this a VIP needs the kernel's fence: an address alone lives for whole seconds.
const TTL_MIN_UNFENCED: Duration = Duration::from_secs(1);
/// A new owner has looked for strangers by then, and let go if it found one.
const SETTLED: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    /// The epoch is ours. `there`: the guard has it; `asked`: it was told to let go or to go silent, and is
    /// granted nothing more: what it answers to that ends the epoch, and must not cross a grant.
    ///
    Held {
        epoch: u64,
        there: bool,
        asked: bool,
    },
    /// Handed over; kept silently.
    Quiet {
        epoch: u64,
        /// Nothing that began here is left.
        drained: bool,
        /// Since when somebody else owns it.
        succeeded: Option<BootTime>,
    },
}

/// Readiness to take over by plan, from the owner of this epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chance {
    None,
    Asked(u64),
    Ready(u64),
}

/// The guard forwards what did not begin here to the node that had the VIP before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Forwards {
    pub(super) to: NodeId,
    pub(super) until: BootTime,
}

/// Whether a stranger may have the address: looked for while nobody of ours has it, so that a
/// take-over need not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stranger {
    Unknown,
    /// The guard looks.
    Asked,
    /// None was found, or one of ours had it since.
    None,
    /// This machine has it; to be looked for again then.
    Found {
        mac: [u8; 6],
        again: BootTime,
    },
}

/// Whether one of ours had its addresses, so that nobody need look for a stranger in a take-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unseen {
    No,
    /// They came with a new config.
    Yes,
    /// Another node was given them: seen, if it still has them then.
    Until(BootTime),
}

/// Another machine that announced an address of a VIP held here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rival {
    pub(super) address: IpAddr,
    pub(super) mac: [u8; 6],
    pub(super) seen: BootTime,
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was announced by another machine ({})", self.address, mac(self.mac))
    }
}

/// What the guard was told to hold, which may not be what the config says by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stood {
    pub(super) addresses: Vec<(IpAddr, u8)>,
    pub(super) epoch: u64,
}

impl Stood {
    pub(super) fn changed(self, vip: VipName, change: Change, notify: Option<PathBuf>) -> Effect {
        Effect::Changed { vip, change, epoch: self.epoch, addresses: self.addresses, notify }
    }
}

#[derive(Debug)]
pub(super) struct Vip {
    pub(super) config: VipConfig,
    pub(super) record: VipRecord,
    /// A node of ours may hold one of its addresses, under whatever name.
    pub(super) ours: bool,
    pub(super) phase: Phase,
    /// What the guard was told last: when the renewal was sent, and until when.
    pub(super) granted: Option<(BootTime, BootTime)>,
    pub(super) without_quorum: bool,
    /// Since when a renewal that the guard was told waits for its answer.
    pub(super) unanswered: Option<BootTime>,
    pub(super) chance: Chance,
    pub(super) forwards: Option<Forwards>,
    pub(super) usable: Option<Usable>,
    pub(super) stranger: Stranger,
    pub(super) unseen: Unseen,
    pub(super) rival: Option<Rival>,
    /// Of the phase, since the first grant.
    pub(super) stood: Option<Stood>,
    /// Of the phase: since when the guard has held it.
    pub(super) held_since: Option<BootTime>,
    /// The last time that it could not be held.
    pub(super) failure: Option<Failure>,
}

#[derive(Debug)]
pub(super) struct Usable {
    pub(super) interface: Option<String>,
    pub(super) via: Vec<IpAddr>,
    pub(super) fenced: bool,
    pub(super) problem: Option<String>,
}

impl Vip {
    pub(super) fn new(config: VipConfig) -> Self {
        Self {
            config,
            record: VipRecord::default(),
            ours: false,
            phase: Phase::Idle,
            granted: None,
            without_quorum: false,
            unanswered: None,
            chance: Chance::None,
            forwards: None,
            usable: None,
            stranger: Stranger::Unknown,
            unseen: Unseen::No,
            rival: None,
            stood: None,
            held_since: None,
            failure: None,
        }
    }

    /// With another config: what stands, stands until the guard says otherwise.
    pub(super) fn with(self, config: VipConfig) -> Self {
        let place = |config: &VipConfig| (config.addresses.clone(), config.interface.clone());
        if place(&self.config) == place(&config) {
            return Self { config, ..self };
        }
        // What is known of neighbours is about the old addresses.
        let stranger = Stranger::Unknown;
        Self {
            config,
            stranger,
            unseen: Unseen::Yes,
            rival: None,
            failure: None,
            usable: None,
            forwards: None,
            ..self
        }
    }

    /// As they stand in the record of who was given it.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        in_order(self.config.addresses.iter().map(|(address, _)| *address))
    }

    /// The guard no longer passes on what began at the owner before.
    pub(super) fn end_chance(&mut self, name: &VipName) -> Effect {
        self.forwards = None;
        Effect::Tell(ToGuard::EndChance { vip: name.to_string() })
    }

    /// Who owns it as of now.
    pub(super) fn note_owner(&mut self, record: &VipRecord, me: NodeId, now: BootTime) {
        if self.ours && matches!(self.stranger, Stranger::Found { .. }) {
            // It was seen before we knew that one of ours has it.
            self.stranger = Stranger::None;
        }
        let Some((epoch, owner)) = &record.owner else { return };
        if owner.node == me {
            return;
        }
        if self.unseen != Unseen::No && *epoch != self.record.epoch() {
            self.unseen = Unseen::Until(now + SETTLED);
        }
    }

    pub(super) fn changed(&self, name: &VipName, change: Change, epoch: u64) -> Option<Effect> {
        let stood = Stood { epoch, ..self.stood.clone()? };
        Some(stood.changed(name.clone(), change, self.config.notify.clone()))
    }

    pub(super) fn grant(&mut self, name: &VipName, epoch: u64) -> Effect {
        let addresses = || self.config.addresses.clone();
        self.stood.get_or_insert_with(|| Stood { addresses: addresses(), epoch });
        let (sent, deadline) = self.granted.unwrap_or_default();
        let (sent, deadline) = (nanos(sent.since_boot()), nanos(deadline.since_boot()));
        // Nobody of ours had it before: if somebody answers for it, it is a stranger.
        let probe = self.record.previous.is_none() || self.unseen != Unseen::No;
        Effect::Tell(ToGuard::Grant { vip: name.to_string(), epoch, sent, deadline, probe })
    }

    /// Looks for a stranger, once, while nobody of ours has the address.
    pub(super) fn look(&mut self, name: &VipName) -> Option<Effect> {
        if self.stranger != Stranger::Unknown || self.usable.as_ref()?.problem.is_some() {
            return None;
        }
        if self.ours {
            // Who takes new addresses looks at that moment.
            self.stranger = Stranger::None;
            return None;
        }
        self.stranger = Stranger::Asked;
        Some(Effect::Tell(ToGuard::Probe { vip: name.to_string() }))
    }

    /// What the guard says of where it would go.
    pub(super) fn note_usable(&mut self, usable: Usable) {
        if let (Some(failure), Some(before)) = (&mut self.failure, &self.usable) {
            let moved = (&before.interface, &before.via) != (&usable.interface, &usable.via);
            let mended = before.problem.is_some() && usable.problem.is_none();
            // One that goes and comes is no reason to try again each time.
            if moved || (mended && failure.is_first()) {
                failure.lift();
            }
        }
        self.usable = Some(usable);
    }

    /// It could not be held, or not any more.
    pub(super) fn failed(&mut self, why: String, now: BootTime) {
        let held = self.held_since.map_or(Duration::ZERO, |since| now.since(since));
        self.failure = Some(Failure::new(why, held, self.failure.take(), now));
    }

    /// Why another node should hold it rather than this one.
    pub(super) fn problem(&self) -> Option<String> {
        self.unfit().or_else(|| self.failure.as_ref()?.why().cloned())
    }

    /// Nothing is known against it but that it failed lately, and the others may be no better.
    pub(super) fn last_resort(&self) -> bool {
        self.unfit().is_none() && self.failure.as_ref().is_some_and(Failure::last_resort)
    }

    /// Why it can't be held here.
    fn unfit(&self) -> Option<String> {
        if let Stranger::Found { mac: of, .. } = self.stranger {
            return Some(format!(
                "the address is used by another machine ({}): take it off there, or give the VIP another",
                mac(of)
            ));
        }
        let usable = self.usable.as_ref()?;
        if let Some(problem) = &usable.problem {
            return Some(problem.clone());
        }
        (!usable.fenced && self.config.ttl < TTL_MIN_UNFENCED).then(|| {
            format!(
                "a ttl of {:?} needs nf_tables, which this kernel does not offer: give it at least 1s",
                self.config.ttl
            )
        })
    }
}

pub(super) fn release(name: &VipName) -> ToGuard {
    ToGuard::Release { vip: name.to_string() }
}

fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
