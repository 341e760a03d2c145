//! Watches who leads and who owns the VIP, for the timeline. It samples: what must never be missed
//! (two owners) is the checkers' business.

use std::time::Duration;

use super::Verdict;
use super::journal::What;
use super::witness::{Record, Stage, Witness};
use crate::env::VIP;

const PERIOD: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct Roles {
    leader: Option<(Option<String>, u64)>,
    owner: Option<(Option<String>, u64)>,
}

impl Witness for Roles {
    fn name(&self) -> &'static str {
        "roles"
    }

    fn watch(&mut self, stage: &Stage<'_>) {
        while !stage.over() {
            let statuses = stage.map.statuses();
            let leads = statuses.iter().filter(|(_, s)| s.quorum).max_by_key(|(_, s)| s.term);
            let now = leads.map(|(_, s)| (s.leader_name().map(str::to_owned), s.term));
            if now.is_some() && self.leader != now {
                self.leader.clone_from(&now);
                let (node, term) = now.unwrap_or_default();
                stage.journal.note(What::Leader { node, term });
            }
            let newest = statuses.iter().max_by_key(|(_, s)| s.applied_index);
            let vip = newest.and_then(|(_, s)| s.vips.iter().find(|v| v.vip == VIP));
            let now = vip.map(|v| (v.owner.clone(), v.epoch));
            if now.is_some() && self.owner != now {
                self.owner.clone_from(&now);
                let (node, epoch) = now.unwrap_or_default();
                stage.journal.note(What::Owner { node, epoch });
            }
            std::thread::sleep(PERIOD);
        }
    }

    fn judge(&mut self, _: &Record<'_>) -> Vec<Verdict> {
        Vec::new()
    }
}
