//! Watches who leads and who owns the VIP, for the timeline. It samples: what must never be missed
//! (two owners) is the checkers' business.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::journal::{Journal, What};
use crate::env::{Map, VIP};

const PERIOD: Duration = Duration::from_millis(100);

/// Until it is told to stop.
pub(super) fn watch(map: &Map, journal: &Journal, stop: &AtomicBool) {
    let (mut leader, mut owner) = (None, None);
    while !stop.load(Ordering::Relaxed) {
        let statuses = map.statuses();
        let leads = statuses.iter().filter(|(_, s)| s.quorum).max_by_key(|(_, s)| s.term);
        let now = leads.map(|(_, s)| (s.leader_name().map(str::to_owned), s.term));
        if let Some((node, term)) = now.filter(|now| leader.as_ref() != Some(now)) {
            leader = Some((node.clone(), term));
            journal.note(What::Leader { node, term });
        }
        let newest = statuses.iter().max_by_key(|(_, s)| s.applied_index);
        let vip = newest.and_then(|(_, s)| s.vips.iter().find(|v| v.vip == VIP));
        let now = vip.map(|v| (v.owner.clone(), v.epoch));
        if let Some((node, epoch)) = now.filter(|now| owner.as_ref() != Some(now)) {
            owner = Some((node.clone(), epoch));
            journal.note(What::Owner { node, epoch });
        }
        std::thread::sleep(PERIOD);
    }
}
