//! Sends the rulesets of the modes that rewrite packets to the kernel, and reads what is in force there.

use std::collections::HashMap;

use trestle_dataplane::{KernelOffence, KernelView};
use trestle_netlink::nft;

use crate::chooser::Tables;
use crate::machine;
use crate::offences::Offences;
use crate::own::{Error, Held, InForce, OwnTable};
use crate::ruleset::{Ruleset, offenders_of};
use crate::traffic::Traffic;

/// The one who programs this node's table. Blocks while the kernel works.
#[derive(Debug)]
pub struct Programmer {
    own: OwnTable<()>,
    /// What could not be set on this machine.
    findings: Vec<String>,
    offences: Offences,
}

impl Programmer {
    /// Changes nothing yet.
    ///
    /// # Errors
    /// No netlink.
    pub fn open(node: &str) -> Result<Self, Error> {
        let own = OwnTable::open(nft::Family::Inet, "trestle_kernel", node)?;
        Ok(Self { own, findings: Vec::new(), offences: Offences::default() })
    }

    /// The kernel follows the view: by what differs from what it was last told, or, the first time and after a
    /// failure, anew in place of what is there. Whether there was something to do.
    ///
    /// # Errors
    /// What was in force is, but perhaps for some slots; the next call makes all of it anew.
    pub fn follow(&mut self, view: &KernelView) -> Result<bool, Error> {
        let Some(held) = &self.own.held else { return self.begin(view).map(|()| true) };
        if let Some(patch) = held.rules.patch(&held.view, view) {
            return self.own.follow_by(patch, view);
        }
        let rules = Ruleset::new(view, Some(&held.rules));
        self.own.follow_to(Held { view: view.clone(), rules, more: () }, None)
    }

    /// Everything anew, in place of what a dead process left: its table goes in the transaction in which the new
    /// one gets its chains, so that what it rewrote goes on being rewritten.
    fn begin(&mut self, view: &KernelView) -> Result<(), Error> {
        let rules = Ruleset::new(view, None);
        let old = self.own.make_way(|_| true)?;
        self.own.make(&rules, old.as_deref())?;
        self.own.hold(Held { view: view.clone(), rules, more: () })?;
        self.findings = machine::prepare_picking_up();
        Ok(())
    }

    /// Whether the table is as it was made here. If not, the next [`Self::follow`] makes it anew.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn check(&mut self) -> Result<bool, Error> {
        self.own.check()
    }

    /// Takes away what a node of this name left here, if it is there. Whether it was.
    ///
    /// # Errors
    /// It belongs to another process, or the kernel does not answer.
    pub fn sweep(&mut self) -> Result<bool, Error> {
        self.own.sweep()
    }

    /// Has something been programmed that still stands?
    pub fn is_active(&self) -> bool {
        self.own.held.is_some()
    }

    /// What can't be as one would wish, in words for operators.
    pub fn remarks(&self) -> Vec<String> {
        let held = self.own.held.iter().flat_map(|held| held.rules.remarks.iter().cloned());
        self.findings.iter().cloned().chain(held).collect()
    }

    /// By which members are chosen; `None`: nothing is in force, as far as is known.
    pub fn tables(&self) -> Option<Tables> {
        self.own.tables()
    }

    /// What the kernel has, by its own word; `None`: no table of this node.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn in_force(&mut self) -> Result<Option<InForce>, Error> {
        self.own.in_force()
    }

    /// What was carried since this process began, as the kernel has counted it.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn traffic(&mut self) -> Result<Traffic, Error> {
        self.own.traffic()
    }

    /// What rules and defaults of firewalls have decided, by their counters' numbers, since the last call; as far as
    /// [`Self::traffic`] and changes have read it.
    pub fn take_hits(&mut self) -> HashMap<u64, u64> {
        self.own.tally.take_hits()
    }

    /// Tries that were turned away since the last call, by client, of listeners that want to know of them.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn offences(&mut self) -> Result<Vec<KernelOffence>, Error> {
        let sets = self.own.held.iter().flat_map(|held| held.rules.sets.keys());
        let sets: Vec<String> = sets.filter(|set| offenders_of(set).is_some()).cloned().collect();
        let name = self.own.name();
        let at = self.own.at(&name);
        let mut counted = Vec::with_capacity(sets.len());
        for set in sets {
            let elements = self.own.nft.counted(at, &set)?.unwrap_or_default();
            counted.push((set, elements));
        }
        Ok(self.offences.follow(counted))
    }
}
