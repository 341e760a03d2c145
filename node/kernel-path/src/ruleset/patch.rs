//! From one view to the next when nothing but members' shares, bans and kept flows has changed: a few sets, rather than
//! all of it made anew. This is what a member that goes down or comes back takes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use trestle_dataplane::{KernelListener, KernelView};

use super::{Family, Making, Ruleset, Set, is_of, table_of};

/// Sets that stand in the place of those that there are; each is right one by one.
#[derive(Debug, PartialEq)]
pub struct Patch(pub(crate) Vec<(String, Set)>);

impl Ruleset {
    /// From `before`, of which this ruleset was made. `None`: more has changed, so it has to be made anew.
    pub fn patch(&self, before: &KernelView, view: &KernelView) -> Option<Patch> {
        self.patch_by(before, view, |making, family| making.add_kept(family))
    }

    /// The same of one for direct server return, with the same ways.
    pub(crate) fn patch_direct(
        &self,
        before: &KernelView,
        view: &KernelView,
        ways: &BTreeMap<IpAddr, u32>,
    ) -> Option<Patch> {
        self.patch_by(before, view, |making, family| making.add_told(family, ways))
    }

    fn patch_by(
        &self,
        before: &KernelView,
        view: &KernelView,
        add_kept: impl Fn(&mut Making<'_>, Family),
    ) -> Option<Patch> {
        if !is_alike(before, view) {
            return None;
        }
        let mut making = Making { view, before: Some(self), made: Self::default() };
        for family in Family::ALL {
            if before.banned != view.banned {
                making.add_banned(family);
            }
            if before.kept != view.kept {
                add_kept(&mut making, family);
            }
        }
        for listener in &view.listeners {
            if before.pools.get(&listener.pool) == view.pools.get(&listener.pool) {
                continue;
            }
            // A pool that has come to have nobody of a family, or somebody, takes another chain.
            for family in Family::ALL.into_iter().filter(|family| has_binds(listener, *family)) {
                let was_there = self.sets.contains_key(&table_of(listener, family));
                if making.add_table(listener, family).is_some() != was_there {
                    return None;
                }
            }
        }
        Some(Patch(making.made.sets.into_iter().collect()))
    }

    pub fn apply(&mut self, patch: Patch) {
        self.sets.extend(patch.0);
    }
}

/// But for what a patch is made of. Whose flows go on must be told by `known` alone.
fn is_alike(before: &KernelView, view: &KernelView) -> bool {
    let goes_on = |view: &KernelView, pool: &str| {
        let used = view.pools.get(pool).into_iter().flatten();
        let known = || view.known.get(pool).into_iter().flatten().filter(|member| !member.is_over);
        used.into_iter().all(|used| known().any(|known| known.address == used.address))
    };
    let changed = view.pools.iter().filter(|(name, members)| before.pools.get(*name) != Some(members));
    before.seed == view.seed
        && before.listeners == view.listeners
        && before.known == view.known
        && before.networks == view.networks
        && before.pools.len() == view.pools.len()
        && changed.into_iter().all(|(name, _)| goes_on(before, name) && goes_on(view, name))
}

fn has_binds(listener: &KernelListener, family: Family) -> bool {
    listener.binds.iter().any(|bind| is_of(bind, family))
}
