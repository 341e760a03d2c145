//! A table of the kernel's that this process owns: made in place of what a dead process of the same name left, changed in
//! transactions, compared with what it should be, and its counters read.
//!
//! Invariant: what is `held` is what the kernel has. After a transaction of which that is not known nothing is held, and
//! all of it is to be made anew.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use trestle_dataplane::KernelView;
use trestle_netlink::nft::{self, Batch, Nft, Table, TableFlags};
use trestle_netlink::socket;

use crate::change::Change;
use crate::chooser::Tables;
use crate::ruleset::{Family, Patch, Ruleset};
use crate::traffic::{Tally, Traffic};

/// How long the kernel may take for one transaction, when others are at it too.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two transactions, for others that have something to change.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);

/// How long a table that is owned is taken to be as it was made. Nobody else can change it, and a look at a thousand
/// listeners takes longer than most changes.
const OWNED_STAYS: Duration = Duration::from_secs(1);

/// What a socket must hold beside the transaction itself.
const SLACK: usize = 64 * 1024;

/// Longest part of a node's name in its table's name: the kernel's limit is 255 bytes for all.
const NAME_MAX: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Netlink(#[from] socket::Error),
    #[error("table {0} belongs to another process: is a node of the same name running?")]
    OwnedByAnother(String),
}

#[derive(Debug)]
pub(crate) struct OwnTable<T> {
    pub(crate) nft: Nft,
    family: nft::Family,
    /// One that takes the place of another has the other name.
    names: [Arc<str>; 2],
    name: Arc<str>,
    pub(crate) held: Option<Held<T>>,
    shape: Option<Shape>,
    /// When the shape was last compared.
    looked: Option<Instant>,
    pub(crate) tally: Tally,
}

/// What the kernel has, and what it follows from.
#[derive(Debug)]
pub(crate) struct Held<T> {
    pub(crate) view: KernelView,
    pub(crate) rules: Ruleset,
    pub(crate) more: T,
}

/// By handle: whatever somebody else replaces has another.
type Shape = (Option<nft::TableInfo>, Vec<nft::ChainInfo>, Vec<nft::RuleInfo>);

/// Read from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InForce {
    pub table: String,
    /// Nobody else may change it.
    pub owned: bool,
    pub chains: usize,
    pub rules: usize,
    pub tables: Vec<TableInForce>,
}

/// A table of a pool as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInForce {
    pub pool: String,
    pub slots: usize,
    pub ipv6: bool,
    pub members: Vec<Share>,
}

/// Slots of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    pub address: SocketAddr,
    pub slots: usize,
}

impl<T> OwnTable<T> {
    /// Changes nothing yet. `prefix`: what its name begins with, before the node's.
    pub(crate) fn open(family: nft::Family, prefix: &str, node: &str) -> Result<Self, Error> {
        let mut nft = Nft::open()?;
        nft.socket().set_patience(PATIENCE);
        let node: String = node.chars().take(NAME_MAX).collect();
        let name: Arc<str> = format!("{prefix}_{node}").into();
        let names = [Arc::clone(&name), format!("{name}.2").into()];
        let (held, shape, looked, tally) = (None, None, None, Tally::default());
        Ok(Self { nft, family, names, name, held, shape, looked, tally })
    }

    /// It stands there, or would.
    pub(crate) fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    pub(crate) fn at<'a>(&self, name: &'a str) -> Table<'a> {
        Table { family: self.family, name }
    }

    /// Whether there was something to do.
    pub(crate) fn follow_by(&mut self, patch: Patch, view: &KernelView) -> Result<bool, Error> {
        let Some(held) = &self.held else { return Ok(false) };
        let change = Change::patch(self.at(&self.name), &held.rules, &patch);
        let has_changed = !change.0.is_empty();
        self.commit(change)?;
        if let Some(held) = &mut self.held {
            held.rules.apply(patch);
            held.view = view.clone();
        }
        Ok(has_changed)
    }

    /// From what is held. `hooks`: what is to change beside the rules. Whether there was something to do.
    pub(crate) fn follow_to(&mut self, to: Held<T>, hooks: Option<Batch>) -> Result<bool, Error> {
        let Some(from) = &self.held else { return Ok(false) };
        // Handles stay as they are where no rule changes: reading them all takes longer than the change.
        let changes_shape = hooks.is_some() || from.rules.chains != to.rules.chains;
        let mut change = Change::delta(self.at(&self.name), &from.rules, &to.rules);
        change.0.extend(hooks);
        if change.0.is_empty() {
            self.held = Some(to);
            return Ok(false);
        }
        let before = from.rules.objects.keys();
        let ending: HashSet<String> =
            before.filter(|name| !to.rules.objects.contains_key(*name)).cloned().collect();
        if !ending.is_empty() {
            self.count_last(&self.name());
        }
        self.commit(change)?;
        self.tally.end(|name| ending.contains(name));
        self.held = Some(to);
        if changes_shape {
            self.shape = Some(self.read_shape()?);
        }
        Ok(true)
    }

    /// Before a new one is made: of two that are there one goes, which somebody did not finish, and a name is chosen.
    /// The one that is there still.
    pub(crate) fn make_way(
        &mut self,
        is_of_finished: impl Fn(&nft::ChainInfo) -> bool,
    ) -> Result<Option<Arc<str>>, Error> {
        let mut there = self.there()?;
        if let [first, second] = &there[..] {
            let is_finished = self.nft.chains(self.at(first))?.iter().any(is_of_finished);
            let unfinished = Arc::clone(if is_finished { second } else { first });
            self.delete(&unfinished)?;
            there.retain(|name| *name != unfinished);
        }
        let old = there.pop();
        // What a dead process has counted is not this one's.
        if let Some(own) = old.as_ref().filter(|_| self.shape.is_some()) {
            self.count_last(own);
        }
        let free = self.names.iter().find(|name| Some(*name) != old.as_ref());
        self.name = Arc::clone(free.unwrap_or(&self.names[0]));
        Ok(old)
    }

    /// `instead_of`: goes in the same transaction.
    pub(crate) fn make(&mut self, to: &Ruleset, instead_of: Option<&str>) -> Result<(), Error> {
        let name = self.name();
        let (at, old) = (self.at(&name), instead_of.map(|old| self.at(old)));
        match self.commit(Change::anew(at, TableFlags::OWNER_PERSIST, old, to)) {
            // Older kernels: the table is anybody's, and looked after.
            Err(Error::Netlink(error)) if error.is(Errno::OPNOTSUPP) || error.is(Errno::INVAL) => {
                self.commit(Change::anew(at, TableFlags::NONE, old, to))
            }
            result => result,
        }
    }

    /// It is made.
    pub(crate) fn hold(&mut self, made: Held<T>) -> Result<(), Error> {
        self.tally.end(|_| true);
        self.held = Some(made);
        self.shape = Some(self.read_shape()?);
        Ok(())
    }

    /// Whether it is as it was made. If not, nothing is held any more.
    pub(crate) fn check(&mut self) -> Result<bool, Error> {
        if self.held.is_none() {
            return Ok(true);
        }
        let info = self.shape.as_ref().and_then(|(info, ..)| info.as_ref());
        let is_owned = info.is_some_and(|info| info.flags.owner());
        if is_owned && self.looked.is_some_and(|at| at.elapsed() < OWNED_STAYS) {
            return Ok(true);
        }
        let shape = self.read_shape()?;
        let intact = self.shape == Some(shape);
        self.looked = Some(Instant::now());
        if !intact {
            self.held = None;
        }
        Ok(intact)
    }

    /// Takes away what has one of its names. Whether something had.
    pub(crate) fn sweep(&mut self) -> Result<bool, Error> {
        self.held = None;
        let there = self.there()?;
        for name in &there {
            self.delete(name)?;
        }
        Ok(!there.is_empty())
    }

    /// By which members are chosen; `None`: nothing is in force, as far as is known.
    pub(crate) fn tables(&self) -> Option<Tables> {
        let held = self.held.as_ref()?;
        Some(held.rules.tables().map(|(name, table)| (name.to_owned(), Arc::clone(table))).collect())
    }

    /// What the kernel has, by its own word; `None`: no table of this node.
    pub(crate) fn in_force(&mut self) -> Result<Option<InForce>, Error> {
        let name = self.name();
        let at = self.at(&name);
        let Some(info) = self.nft.table(at)? else { return Ok(None) };
        let (chains, rules) = (self.nft.chains(at)?.len(), self.nft.rules(at)?.len());
        let tables = match &self.held {
            Some(held) => shares(&mut self.nft, at, &held.rules)?,
            None => Vec::new(),
        };
        Ok(Some(InForce { table: name.to_string(), owned: info.flags.owner(), chains, rules, tables }))
    }

    /// What was carried since this process began, as the kernel has counted it: one list of all counters, and nothing of
    /// flows.
    pub(crate) fn traffic(&mut self) -> Result<Traffic, Error> {
        if self.held.is_some() {
            let counters = self.nft.counters(self.at(&self.name))?;
            self.tally.take(counters);
        }
        Ok(self.tally.traffic())
    }

    /// Of counters that are about to end. Where they can't be read, what was read before has to do.
    fn count_last(&mut self, name: &str) {
        if let Ok(counters) = self.nft.counters(self.at(name)) {
            self.tally.take_last(counters);
        }
    }

    /// Names of ours that tables have.
    fn there(&mut self) -> Result<Vec<Arc<str>>, Error> {
        let mut there = Vec::new();
        for name in self.names.clone() {
            if self.nft.table(self.at(&name))?.is_some() {
                there.push(name);
            }
        }
        Ok(there)
    }

    fn delete(&mut self, name: &str) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.delete_table(self.at(name));
        self.commit_one(batch)
    }

    fn commit(&mut self, change: Change) -> Result<(), Error> {
        for (number, batch) in change.0.into_iter().enumerate() {
            if number > 0 {
                std::thread::sleep(PAUSE);
            }
            self.commit_one(batch)?;
        }
        Ok(())
    }

    pub(crate) fn commit_one(&mut self, batch: Batch) -> Result<(), Error> {
        let length = batch.length();
        self.nft.socket().set_send_buffer(length * 2 + SLACK)?;
        self.nft.commit(&batch.finish()).map_err(|error| {
            // Whether it was done is not known if the answer was late.
            self.held = None;
            match error.is(Errno::PERM) {
                true => Error::OwnedByAnother(self.name.to_string()),
                false => Error::Netlink(error),
            }
        })
    }

    fn read_shape(&mut self) -> Result<Shape, Error> {
        let name = self.name();
        let at = self.at(&name);
        let (info, mut chains, mut rules) = (self.nft.table(at)?, self.nft.chains(at)?, self.nft.rules(at)?);
        chains.sort();
        rules.sort();
        Ok((info, chains, rules))
    }
}

/// What the kernel has of these rules' tables of pools.
fn shares(nft: &mut Nft, at: Table<'_>, held: &Ruleset) -> Result<Vec<TableInForce>, Error> {
    let mut tables = Vec::new();
    for (set, table) in held.tables() {
        let elements = nft.elements(at, set)?.unwrap_or_default();
        let mut shares: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        let values = elements.iter().filter_map(|element| element.value.as_deref());
        for address in values.filter_map(|value| table.member(value)) {
            *shares.entry(address).or_default() += 1;
        }
        let members = shares.into_iter().map(|(address, slots)| Share { address, slots }).collect();
        let (pool, ipv6) = (table.pool.clone(), table.family == Family::V6);
        tables.push(TableInForce { pool, slots: elements.len(), ipv6, members });
    }
    Ok(tables)
}
