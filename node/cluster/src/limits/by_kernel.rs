//! Shares that kernels keep to: of limits and rates of listeners that some nodes may carry by the kernel, others by
//! the proxy.
//!
//! A kernel counts by itself and can't be told another allowance for each client. So a node whose kernel carries
//! such listeners says nothing of their keys: that means its share, for all who hear it, and is true at any time.
//! It goes on to be true while the node has no seat, and while its process is dead, since its kernel goes on; so
//! such a node counts with its share even then. Who keeps to shares is said once, by a key of its own.
//!
//! What a kernel has open above the share, as after flows came here from another node, is said as a claim: nobody
//! takes it, and who has more than it uses gives way.
//!
//! Invariant: what all nodes hold of a key together, kernels with their shares among them, grows by no rule above
//! the limit, but for the rounding of shares.

use std::collections::BTreeMap;

use trestle_dataplane::limits::{has_fixed_shares, share};
use trestle_raft_store::types::NodeId;

use super::MAX_KEYS;
#[cfg(test)]
use super::core::Fault;
use super::core::{Core, Meter};
use super::peer::Peer;
use super::wire::{Claim, Flow, Want};

/// Of a node that speaks of it, the kernel keeps to shares. No hash that is a key of anything else has so few bits.
pub(super) const KEEPS_SHARES: u64 = 0b100;

/// What was said of this node's kernel.
#[derive(Debug, Default)]
pub(super) struct Told {
    keeps_shares: bool,
    above: BTreeMap<u64, Claim>,
}

impl Core {
    /// Once a round.
    pub(super) fn tell_of_kernel(&mut self, meter: &impl Meter) {
        let keeps = meter.keeps_shares();
        if keeps != self.kernel.keeps_shares {
            self.kernel.keeps_shares = keeps;
            self.log.put(KEEPS_SHARES, keeps.then_some(claim_of(0, 0)));
            if keeps { self.fall_silent(meter) } else { self.answer(meter) }
        }
        self.tell_above(meter);
    }

    /// What was given away before the kernel began to carry is not given any more.
    fn fall_silent(&mut self, meter: &impl Meter) {
        for key in self.own_keys() {
            if has_fixed_shares(key) && meter.used(key) == 0 {
                self.forget(key, meter);
            }
        }
    }

    /// What others have said of keys on which this node has kept silent.
    fn answer(&mut self, meter: &impl Meter) {
        let of =
            |(node, peer): (&NodeId, &Peer)| (*node, peer.keys().filter(|k| has_fixed_shares(*k)).collect());
        let known: Vec<(NodeId, Vec<u64>)> = self.peers.iter().map(of).collect();
        for (node, mut keys) in known {
            keys.sort_unstable();
            keys.into_iter().for_each(|key| self.heard_of(node, key, meter));
        }
    }

    fn tell_above(&mut self, meter: &impl Meter) {
        let (above, nodes) = (meter.above_shares(), self.nodes);
        if nodes == 0 || above.is_empty() && self.kernel.above.is_empty() {
            return;
        }
        let counts = above.iter().filter(|above| above.open > share(above.limit, nodes));
        let now: BTreeMap<u64, Claim> =
            counts.take(MAX_KEYS).map(|above| (above.key, claim_of(above.open, above.limit))).collect();
        let before = std::mem::take(&mut self.kernel.above);
        for key in before.keys().filter(|key| !now.contains_key(key)) {
            self.log.put(*key, None);
        }
        for (key, claim) in now.iter().filter(|(key, claim)| before.get(key) != Some(claim)) {
            self.log.put(*key, Some(*claim));
        }
        self.kernel.above = now;
    }

    /// Whether nothing is said of a key that others speak of, since the kernel keeps to the share. But the proxy of this
    /// node may speak of it: where the kernel can't carry all listeners that it may.
    pub(super) fn keeps_silent(&self, key: u64, meter: &impl Meter) -> bool {
        #[cfg(test)]
        if self.has(Fault::LentByKernel) {
            return false;
        }
        has_fixed_shares(key) && meter.keeps_shares() && !self.own.contains_key(&key)
    }

    /// What a peer says of a key, and what it holds of it, by a word or without one; `None`: it does not count.
    pub(super) fn of_peer<'a>(
        &self,
        peer: &'a Peer,
        key: u64,
        share: u32,
    ) -> Option<(Option<&'a Claim>, u32)> {
        if peer.counts() {
            let claim = peer.claim(key);
            return Some((claim, claim.map_or(share, |claim| claim.holds)));
        }
        #[cfg(test)]
        if self.has(Fault::DeadKernel) {
            return None;
        }
        (has_fixed_shares(key) && peer.may_keep_shares()).then_some((None, share))
    }
}

fn claim_of(holds: u32, limit: u32) -> Claim {
    Claim { holds, limit, want: Want::Nothing, flow: Flow::default() }
}
