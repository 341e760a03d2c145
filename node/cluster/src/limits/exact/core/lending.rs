//! A node as a home: who holds how much of its keys, what is lent and what is asked back.

use std::collections::{BTreeMap, BTreeSet};

use trestle_dataplane::limits::reserved;
use trestle_raft_store::types::NodeId;

use super::super::peer::About;
use super::super::wire::{Ask, Grant};
use super::{Core, Lent, Loan, Meter};

/// Ticks for which what others don't use is waited for before anybody is denied.
const RECALL_TICKS: u32 = 2;

impl Core {
    /// A borrower's word.
    pub(super) fn asked(&mut self, borrower: NodeId, key: u64, view: u64, ask: Ask) {
        let lent = self.lent.entry(key).or_default();
        let loan = lent.loans.entry(borrower).or_default();
        if (loan.view, loan.ask.birth) != (view, ask.birth) {
            *loan = Loan { view, ..Loan::default() };
        }
        loan.ask = ask;
        // What it holds counts, also where nobody here knows of it.
        loan.granted = loan.granted.max(ask.seen);
        if ask.hard == 0 {
            loan.denied = false;
        }
        if loan.holds() == 0 && loan.is_told() && ask.hard == 0 && ask.soft == 0 {
            lent.loans.remove(&borrower);
            if lent.loans.is_empty() {
                self.lent.remove(&key);
            }
        }
    }

    pub(super) fn held(&self, lent: &Lent) -> u64 {
        let of_view = lent.loans.values().filter(|loan| loan.view == self.view);
        of_view.map(Loan::holds).sum()
    }

    /// What may be lent.
    pub(super) fn most(&self, key: u64, lent: &Lent) -> u32 {
        let own = self.own.get(&key).map(|own| own.said.limit).filter(|limit| *limit > 0);
        let asked = lent.loans.values().map(|loan| loan.ask.limit).filter(|limit| *limit > 0);
        let limit = own.or_else(|| asked.min()).unwrap_or(0);
        limit - reserved(limit)
    }

    pub(super) fn lend_all(&mut self, meter: &impl Meter) {
        let keys: Vec<u64> = self.lent.keys().copied().collect();
        keys.into_iter().for_each(|key| self.lend(key, meter));
    }

    /// Gives of this key what is wanted and may be given.
    pub(super) fn lend(&mut self, key: u64, meter: &impl Meter) {
        if !self.may_lend() {
            return;
        }
        let Some(lent) = self.lent.get(&key) else { return };
        let mut room = u64::from(self.most(key, lent)).saturating_sub(self.held(lent));
        let view = self.view;
        let Some(lent) = self.lent.get_mut(&key) else { return };
        let mut changed: BTreeSet<NodeId> = BTreeSet::new();
        let mut more: BTreeMap<NodeId, u32> = BTreeMap::new();
        let asking: Vec<(NodeId, Loan)> = lent.loans.iter().map(|(node, loan)| (*node, *loan)).collect();
        let seats = &self.around.seats;
        let may_have =
            |(node, loan): &(NodeId, Loan)| loan.view == view && loan.is_told() && seats.contains_key(node);
        let asking = asking.into_iter().filter(may_have);
        let asking: Vec<(NodeId, Loan)> = asking.collect();
        // One each in turn, first who holds least.
        let given = |more: &BTreeMap<NodeId, u32>, node: &NodeId| more.get(node).copied().unwrap_or(0);
        while room > 0 {
            let lacking = asking.iter().filter(|(node, loan)| given(&more, node) < loan.ask.hard);
            let next =
                lacking.min_by_key(|(node, loan)| (loan.holds() + u64::from(given(&more, node)), *node));
            let Some((node, _)) = next else { break };
            *more.entry(*node).or_default() += 1;
            room -= 1;
        }
        let lacks =
            |node: &NodeId, loan: &Loan, more: &BTreeMap<NodeId, u32>| given(more, node) < loan.ask.hard;
        let scarce = asking.iter().any(|(node, loan)| lacks(node, loan, &more));
        if !scarce {
            let wanting = asking.iter().filter(|(_, loan)| loan.ask.soft > 0).count() as u64;
            for (node, loan) in asking.iter().filter(|(_, loan)| loan.ask.soft > 0) {
                let part = room / (2 * wanting.max(1));
                let part = u32::try_from(part).unwrap_or(u32::MAX).min(loan.ask.soft);
                if part > 0 {
                    *more.entry(*node).or_default() += part;
                }
            }
        }
        // Who has not heard yet what it was given may lack nothing.
        let waits = lent.loans.values().any(|loan| loan.view == view && !loan.is_told());
        let was_scarce = lent.scarce;
        let scarce = scarce || was_scarce && waits;
        lent.scarce = scarce;
        if !scarce {
            lent.waited = 0;
            self.recalls.remove(&key);
        } else if !was_scarce {
            self.recalls.insert(key);
        }
        let waited = lent.waited >= RECALL_TICKS;
        for (node, loan) in lent.loans.iter_mut().filter(|(_, loan)| loan.view == view) {
            let given = given(&more, node);
            let denied = if loan.is_told() { waited && loan.ask.hard > 0 && given == 0 } else { loan.denied };
            if given > 0 || denied != loan.denied || scarce != loan.scarce {
                loan.granted += u64::from(given);
                (loan.denied, loan.scarce) = (denied, scarce);
                self.stats.lent += u64::from(given);
                changed.insert(*node);
            }
        }
        for node in changed {
            if node != self.node {
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.tell(About::Grant(key));
                }
            } else if let Some(grant) = self.grant_to(node, key) {
                self.granted(node, key, grant, meter);
            }
        }
    }

    pub(super) fn wait_for_recalled(&mut self, meter: &impl Meter) {
        let keys: Vec<u64> = self.recalls.iter().copied().collect();
        for key in keys {
            let waited = self.lent.get_mut(&key).map(|lent| {
                lent.waited += 1;
                lent.waited
            });
            if waited.is_none_or(|waited| waited >= RECALL_TICKS) {
                self.recalls.remove(&key);
                self.lend(key, meter);
            }
        }
    }

    pub(super) fn grant_to(&self, node: NodeId, key: u64) -> Option<Grant> {
        let loan = self.lent.get(&key)?.loans.get(&node)?;
        let others = self.held(self.lent.get(&key)?).saturating_sub(loan.holds());
        (loan.view == self.view).then_some(Grant {
            birth: loan.ask.birth,
            granted: loan.granted,
            others: u32::try_from(others).unwrap_or(u32::MAX),
            denied: loan.denied,
            scarce: loan.scarce,
        })
    }

    /// Borrowers hear what others have, if that has changed: for whoever asks them.
    pub(super) fn tell_totals(&mut self) {
        let view = self.view;
        for (key, lent) in &mut self.lent {
            let of_view = || lent.loans.iter().filter(|(_, loan)| loan.view == view);
            let held = of_view().map(|(_, loan)| loan.holds()).sum();
            if held == lent.told || of_view().count() < 2 {
                continue;
            }
            for (node, _) in of_view() {
                if let Some(peer) = self.peers.get_mut(node) {
                    peer.tell(About::Grant(*key));
                }
            }
            lent.told = held;
        }
    }
}
