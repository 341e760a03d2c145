//! Both of a node's tables as one: that of listeners whose packets are rewritten, and that of those whose packets go to
//! their member as they are.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use trestle_config::model::KernelMode;
use trestle_dataplane::{KEPT_MAX, KernelOffence, KernelView};

use crate::census::{Open, heaviest};
use crate::direct::Direct;
use crate::own::{Error, InForce};
use crate::programmer::Programmer;
use crate::traffic::Traffic;

/// The one who programs this node's tables. Blocks while the kernel works.
#[derive(Debug)]
pub struct Carrier {
    rewriting: Programmer,
    direct: Direct,
    /// Each was asked for something that still stands, or was looked at for what a dead process left.
    is_used: [bool; 2],
}

/// The listeners that each of both has, and what these need.
pub struct Parts<'a> {
    pub rewriting: Cow<'a, KernelView>,
    pub direct: Cow<'a, KernelView>,
}

impl<'a> Parts<'a> {
    /// Nothing is copied where there is one kind of them.
    pub fn of(view: &'a KernelView) -> Self {
        let is_direct = |mode: KernelMode| mode == KernelMode::Dsr;
        let count = view.listeners.iter().filter(|listener| is_direct(listener.settings.mode)).count();
        let part = |direct: bool| {
            let mut part = KernelView { listeners: Vec::new(), ..view.clone() };
            let listeners = view.listeners.iter().filter(|l| is_direct(l.settings.mode) == direct);
            part.listeners = listeners.cloned().collect();
            let pools: HashSet<&String> = part.listeners.iter().map(|listener| &listener.pool).collect();
            part.pools.retain(|name, _| pools.contains(name));
            part.known.retain(|name, _| pools.contains(name));
            Cow::Owned(part)
        };
        let none = || {
            let (banned, vips) = (view.banned.clone(), view.vips.clone());
            Cow::Owned(KernelView {
                revision: view.revision,
                seed: view.seed,
                banned,
                vips,
                ..Default::default()
            })
        };
        match count {
            0 => Self { rewriting: Cow::Borrowed(view), direct: none() },
            all if all == view.listeners.len() => Self { rewriting: none(), direct: Cow::Borrowed(view) },
            _ => Self { rewriting: part(false), direct: part(true) },
        }
    }
}

impl Carrier {
    /// Changes nothing yet.
    ///
    /// # Errors
    /// No netlink.
    pub fn open(node: &str) -> Result<Self, Error> {
        let (rewriting, direct) = (Programmer::open(node)?, Direct::open(node)?);
        Ok(Self { rewriting, direct, is_used: [false; 2] })
    }

    /// As [`Programmer::follow`]. A table that no listener was ever in is not made; what a dead process left there is
    /// taken away.
    ///
    /// # Errors
    /// The same.
    pub fn follow(&mut self, view: &KernelView) -> Result<bool, Error> {
        let parts = Parts::of(view);
        let mut did = false;
        if self.is_used[0] || !parts.rewriting.listeners.is_empty() {
            self.is_used[0] = true;
            did |= self.rewriting.follow(&parts.rewriting)?;
        }
        if self.is_used[1] || !parts.direct.listeners.is_empty() {
            self.is_used[1] = true;
            did |= self.direct.follow(&parts.direct)?;
        }
        Ok(did)
    }

    /// Of a table in which this process has nothing: what a dead one of this name left there goes. Whether there was
    /// something.
    ///
    /// # Errors
    /// It belongs to another process, or the kernel does not answer.
    pub fn sweep(&mut self) -> Result<bool, Error> {
        let mut swept = false;
        if !self.is_used[0] {
            swept |= self.rewriting.sweep()?;
        }
        if !self.is_used[1] {
            swept |= self.direct.sweep()?;
        }
        Ok(swept)
    }

    /// Whether both are as they were made here.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn check(&mut self) -> Result<bool, Error> {
        let (rewriting, direct) = (self.rewriting.check()?, self.direct.check()?);
        Ok(rewriting && direct)
    }

    /// What can't be as one would wish, in words for operators.
    pub fn remarks(&self) -> Vec<String> {
        [self.rewriting.remarks(), self.direct.remarks()].concat()
    }

    /// By the kernel's own word; `None`: no such table of this node. The second is that of direct server return.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn in_force(&mut self) -> Result<[Option<InForce>; 2], Error> {
        Ok([self.rewriting.in_force()?, self.direct.in_force()?])
    }

    /// As [`Programmer::traffic`].
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn traffic(&mut self) -> Result<Traffic, Error> {
        let mut traffic = self.rewriting.traffic()?;
        traffic.add(self.direct.traffic()?);
        Ok(traffic)
    }

    /// As [`Programmer::take_hits`].
    pub fn take_hits(&mut self) -> HashMap<u64, u64> {
        let mut hits = self.rewriting.take_hits();
        for (id, count) in self.direct.take_hits() {
            *hits.entry(id).or_default() += count;
        }
        hits
    }

    /// As [`Programmer::offences`]; in direct server return nothing counts for a ban.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn offences(&mut self) -> Result<Vec<KernelOffence>, Error> {
        self.rewriting.offences()
    }

    /// The part of [`Parts`] whose packets are not rewritten: flows that its table remembers.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn direct_flows(&mut self, view: &KernelView) -> Result<Open, Error> {
        self.direct.take_flows(view)
    }

    /// By which members of the others are chosen.
    pub fn tables(&self) -> Option<crate::Tables> {
        self.rewriting.tables()
    }
}

impl Open {
    /// Those of another table as well.
    pub fn add(&mut self, other: Open) {
        self.listeners.extend(other.listeners);
        for (member, count) in other.members {
            *self.members.entry(member).or_default() += count;
        }
        let mut clients: HashMap<IpAddr, u32> = self.clients.drain(..).collect();
        for (client, count) in other.clients {
            *clients.entry(client).or_default() += count;
        }
        self.clients = heaviest(clients);
        self.flows += other.flows;
        self.cut += other.cut;
        let room = KEPT_MAX.saturating_sub(self.kept.len());
        self.left_out += other.left_out + other.kept.len().saturating_sub(room) as u64;
        self.kept.extend(other.kept.into_iter().take(room));
        self.addresses.extend(other.addresses);
        self.addresses.sort_unstable();
        self.addresses.dedup();
        self.took += other.took;
    }
}
