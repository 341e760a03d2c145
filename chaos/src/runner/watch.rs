//! Watches who leads, for the timeline. It samples; what must never be missed is others' business.

use std::time::Duration;

use super::witness::{Stage, Witness};

const PERIOD: Duration = Duration::from_millis(100);

pub(super) struct Leaders;

impl Witness for Leaders {
    fn watch(&mut self, stage: &Stage<'_>) {
        while !stage.over() {
            let statuses = stage.map.statuses();
            let leads = statuses.iter().filter(|(_, s)| s.quorum).max_by_key(|(_, s)| s.term);
            match leads {
                Some((_, status)) => stage.recorder.leader(status.leader_name(), status.term),
                // Nobody is in touch with a majority: nobody leads, in the newest term that is known.
                None => {
                    let term = statuses.iter().map(|(_, s)| s.term).max().unwrap_or_default();
                    stage.recorder.leader(None, term);
                }
            }
            std::thread::sleep(PERIOD);
        }
    }
}
