//! Faults that are hard on leases: whoever counts on one stalls, or is cut off, while the leader
//! changes, TTLs that are far apart follow each other, and answers are long on their way.

use std::sync::Arc;
use std::time::Duration;

use trestle_raft_store::simulated::Dice;

use super::World;
use crate::host::Host;

/// Far apart; of the longest the drift is longer than a leader takes to change an owner. Only hasty
/// runs have the first: no quorum round may take longer than the shortest TTL.
const TTLS_MS: [u64; 3] = [250, 1_000, 8_000];

pub(super) fn ttl_ms(dice: &mut Dice, hasty: bool) -> u64 {
    let from = usize::from(!hasty);
    TTLS_MS[from + dice.below((TTLS_MS.len() - from) as u64) as usize]
}

impl World {
    pub(super) async fn faults_of_leases(&mut self) -> Result<(), String> {
        for _ in 0..4 + self.dice.below(4) {
            self.trouble().await?;
        }
        Ok(())
    }

    /// One story: somebody who counts on a lease is in trouble, the others go on, and all is well
    /// again.
    async fn trouble(&mut self) -> Result<(), String> {
        let Some(victim) = self.victim() else { return self.pause(200, 500).await };
        // Its answers are late, or all that it says and hears.
        let late = Duration::from_millis([2, 30, 150, 400][self.dice.below(4) as usize]);
        self.note(format!("{} is reached in up to {late:?}", victim.name));
        self.count("slow links");
        self.cable.slow_to(&victim.name, late);
        if self.dice_coin() {
            self.cable.slow_from(&victim.name, late);
        }
        if self.dice_coin() {
            self.write(false).await?;
        }
        self.pause(20, 1_500).await?;
        // Not for long, or for longer than the longest lease.
        let long = self.dice_coin();
        let longest = if long { 30_000 } else { 1_000 };
        match self.dice.below(6) {
            0..=1 => self.freeze(&victim, longest),
            2 => self.silence(&victim),
            3 => self.partition(&victim),
            // It wakes up to what was on the way to it, and hears nothing newer.
            _ => {
                self.freeze(&victim, longest);
                self.pause(1, 150).await?;
                self.isolate(&victim);
            }
        }
        self.pause(1, 300).await?;
        if self.dice_coin() {
            self.write(false).await?;
            self.pause(1, 300).await?;
        }
        match self.dice.below(4) {
            0 => self.transfer(),
            1 => self.move_vip(),
            2 => self.start_one(),
            _ => {}
        }
        let (least, most) = if long { (8_300, 10_000) } else { (200, 3_000) };
        self.pause(least, most).await?;
        self.note("that trouble ends");
        self.cable.calm();
        if let Some(process) = victim.process() {
            process.thaw();
        }
        self.pause(100, 2_000).await
    }

    /// The leader, or whoever counts on a VIP.
    fn victim(&mut self) -> Option<Arc<Host>> {
        let leads = self.dice_coin();
        let mut hosts = self.running();
        hosts.retain(|host| match leads {
            true => host.raft().is_some_and(|raft| raft.is_leader()),
            false => !host.counts_on().is_empty(),
        });
        self.any(&hosts)
    }
}
