//! Sends rulesets to the kernel, and reads what is in force there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use trestle_dataplane::{KernelOffence, KernelView};
use trestle_netlink::nft::{self, Batch, Nft, Table, TableFlags};
use trestle_netlink::socket;

use crate::change::Change;
use crate::chooser::Tables;
use crate::machine;
use crate::offences::Offences;
use crate::ruleset::{Patch, Ruleset, offenders_of};
use crate::traffic::{Tally, Traffic};

/// How long the kernel may take for one transaction, when others are at it too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Between two transactions, for others that have something to change.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);

/// How long a table that is owned is taken to be as it was made. Nobody else can change it, and a look at a thousand
/// listeners takes longer than most changes.
pub(crate) const OWNED_STAYS: Duration = Duration::from_secs(1);

/// What a socket must hold beside the transaction itself.
pub(crate) const SLACK: usize = 64 * 1024;

/// Longest part of a node's name in its table's name: the kernel's limit is 255 bytes for all.
pub(crate) const NAME_MAX: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Netlink(#[from] socket::Error),
    #[error("table {0} belongs to another process: is a node of the same name running?")]
    OwnedByAnother(String),
}

/// The one who programs this node's table. Blocks while the kernel works.
#[derive(Debug)]
pub struct Programmer {
    nft: Nft,
    /// Of the table; a new one that takes its place has the other name.
    names: [Arc<str>; 2],
    name: Arc<str>,
    /// What the kernel holds; `None`: unknown, so all of it is made anew.
    held: Option<Held>,
    shape: Option<Shape>,
    /// When the shape was last compared.
    looked: Option<Instant>,
    /// What could not be set on this machine.
    findings: Vec<String>,
    tally: Tally,
    offences: Offences,
}

/// What was last made, and of what.
#[derive(Debug)]
struct Held {
    view: KernelView,
    ruleset: Ruleset,
}

/// By handle: whatever somebody else replaces has another.
type Shape = (Option<nft::TableInfo>, Vec<nft::ChainInfo>, Vec<nft::RuleInfo>);

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

impl Programmer {
    /// Changes nothing yet.
    ///
    /// # Errors
    /// No netlink.
    pub fn open(node: &str) -> Result<Self, Error> {
        let mut nft = Nft::open()?;
        nft.socket().set_patience(PATIENCE);
        let name: String = node.chars().take(NAME_MAX).collect();
        let name: Arc<str> = format!("trestle_kernel_{name}").into();
        let names = [Arc::clone(&name), format!("{name}.2").into()];
        Ok(Self {
            nft,
            names,
            name,
            held: None,
            shape: None,
            looked: None,
            findings: Vec::new(),
            tally: Tally::default(),
            offences: Offences::default(),
        })
    }

    /// The kernel follows the view: by what differs from what it was last told, or, the first time and after a
    /// failure, anew in place of what is there. Whether there was something to do.
    ///
    /// # Errors
    /// What was in force is, but perhaps for some slots; the next call makes all of it anew.
    pub fn follow(&mut self, view: &KernelView) -> Result<bool, Error> {
        let Some(held) = &self.held else { return self.begin(view).map(|()| true) };
        if let Some(patch) = held.ruleset.patch(&held.view, view) {
            return self.follow_by(patch, view);
        }
        let to = Ruleset::new(view, Some(&held.ruleset));
        let change = Change::delta(table(&self.name), &held.ruleset, &to);
        let ending: HashSet<String> =
            held.ruleset.objects.keys().filter(|name| !to.objects.contains_key(*name)).cloned().collect();
        // Handles stay as they are where no rule changes: reading them all takes longer than the change.
        let shape_changes = held.ruleset.chains != to.chains;
        let has_changed = !change.0.is_empty();
        if !ending.is_empty() {
            self.count_last(&self.name.clone());
        }
        self.commit(change)?;
        self.tally.end(|name| ending.contains(name));
        self.held = Some(Held { view: view.clone(), ruleset: to });
        if shape_changes {
            self.shape = Some(self.read_shape()?);
        }
        Ok(has_changed)
    }

    fn follow_by(&mut self, patch: Patch, view: &KernelView) -> Result<bool, Error> {
        let Some(held) = &self.held else { return Ok(false) };
        let change = Change::patch(table(&self.name), &held.ruleset, &patch);
        let has_changed = !change.0.is_empty();
        self.commit(change)?;
        if let Some(held) = &mut self.held {
            held.ruleset.apply(patch);
            held.view = view.clone();
        }
        Ok(has_changed)
    }

    /// Whether the table is as it was made here. If not, the next [`Self::follow`] makes it anew.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn check(&mut self) -> Result<bool, Error> {
        if self.held.is_none() {
            return Ok(true);
        }
        let is_owned =
            self.shape.as_ref().and_then(|(info, ..)| info.as_ref()).is_some_and(|info| info.flags.owner());
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

    /// Takes away what a node of this name left here, if it is there. Whether it was.
    ///
    /// # Errors
    /// It belongs to another process, or the kernel does not answer.
    pub fn sweep(&mut self) -> Result<bool, Error> {
        self.held = None;
        let there = self.there()?;
        for name in &there {
            self.delete(name)?;
        }
        Ok(!there.is_empty())
    }

    /// Has something been programmed that still stands?
    pub fn is_active(&self) -> bool {
        self.held.is_some()
    }

    /// What can't be as one would wish, in words for operators.
    pub fn remarks(&self) -> Vec<String> {
        let held = self.held.iter().flat_map(|held| held.ruleset.remarks.iter().cloned());
        self.findings.iter().cloned().chain(held).collect()
    }

    /// By which members are chosen; `None`: nothing is in force, as far as is known.
    pub fn tables(&self) -> Option<Tables> {
        let held = self.held.as_ref()?;
        Some(held.ruleset.tables().map(|(name, table)| (name.to_owned(), Arc::clone(table))).collect())
    }

    /// What the kernel has, by its own word; `None`: no table of this node.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn in_force(&mut self) -> Result<Option<InForce>, Error> {
        let at = table(&self.name);
        let Some(info) = self.nft.table(at)? else { return Ok(None) };
        let (chains, rules) = (self.nft.chains(at)?.len(), self.nft.rules(at)?.len());
        let tables = match &self.held {
            Some(held) => shares(&mut self.nft, at, &held.ruleset)?,
            None => Vec::new(),
        };
        Ok(Some(InForce { table: self.name.to_string(), owned: info.flags.owner(), chains, rules, tables }))
    }

    /// What was carried since this process began, as the kernel has counted it. One list of all counters, and
    /// nothing of flows.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn traffic(&mut self) -> Result<Traffic, Error> {
        if self.held.is_none() {
            return Ok(self.tally.traffic());
        }
        let counters = self.nft.counters(table(&self.name))?;
        self.tally.take(counters);
        Ok(self.tally.traffic())
    }

    /// What rules and defaults of firewalls have decided, by their counters' numbers, since the last call; as far as
    /// [`Self::traffic`] and changes have read it.
    pub fn take_hits(&mut self) -> HashMap<u64, u64> {
        self.tally.take_hits()
    }

    /// Tries that were turned away since the last call, by client, of listeners that want to know of them.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn offences(&mut self) -> Result<Vec<KernelOffence>, Error> {
        let sets = self.held.iter().flat_map(|held| held.ruleset.sets.keys());
        let sets: Vec<String> = sets.filter(|set| offenders_of(set).is_some()).cloned().collect();
        let mut counted = Vec::with_capacity(sets.len());
        for set in sets {
            let elements = self.nft.counted(table(&self.name), &set)?.unwrap_or_default();
            counted.push((set, elements));
        }
        Ok(self.offences.follow(counted))
    }

    /// Of counters that are about to end. Where they can't be read, what was read before has to do.
    fn count_last(&mut self, name: &str) {
        if let Ok(counters) = self.nft.counters(table(name)) {
            self.tally.take_last(counters);
        }
    }

    /// Everything anew, in place of what a dead process left: its table goes in the transaction in which the new
    /// one gets its chains, so that what it rewrote goes on being rewritten.
    fn begin(&mut self, view: &KernelView) -> Result<(), Error> {
        let to = Ruleset::new(view, None);
        let mut there = self.there()?;
        if let [first, second] = &there[..] {
            // Somebody ended while it made a new one, which has no chains yet.
            let chains = self.nft.chains(table(first))?.len();
            let unfinished = if chains == 0 { first.clone() } else { second.clone() };
            self.delete(&unfinished)?;
            there.retain(|name| *name != unfinished);
        }
        let old = there.pop();
        // What a dead process has counted is not this one's.
        if let Some(own) = old.clone().filter(|_| self.shape.is_some()) {
            self.count_last(&own);
        }
        let free = self.names.iter().find(|name| Some(*name) != old.as_ref());
        self.name = free.unwrap_or(&self.names[0]).clone();
        let (name, old) = (self.name.clone(), old.as_deref().map(table));
        match self.commit(Change::anew(table(&name), TableFlags::OWNER_PERSIST, old, &to)) {
            // Older kernels: the table is anybody's, and looked after.
            Err(Error::Netlink(error)) if error.is(Errno::OPNOTSUPP) || error.is(Errno::INVAL) => {
                self.commit(Change::anew(table(&name), TableFlags::NONE, old, &to))?;
            }
            result => result?,
        }
        self.tally.end(|_| true);
        self.held = Some(Held { view: view.clone(), ruleset: to });
        self.shape = Some(self.read_shape()?);
        self.findings = machine::prepare_picking_up();
        Ok(())
    }

    /// Names of ours that tables have.
    fn there(&mut self) -> Result<Vec<Arc<str>>, Error> {
        let mut there = Vec::new();
        for name in self.names.clone() {
            if self.nft.table(table(&name))?.is_some() {
                there.push(name);
            }
        }
        Ok(there)
    }

    fn delete(&mut self, name: &str) -> Result<(), Error> {
        let mut batch = Batch::new();
        batch.delete_table(table(name));
        self.commit(Change(vec![batch]))
    }

    fn commit(&mut self, change: Change) -> Result<(), Error> {
        let mut batches = change.0.into_iter();
        batches.next().map_or(Ok(()), |first| self.commit_one(first))?;
        batches.try_for_each(|batch| {
            std::thread::sleep(PAUSE);
            self.commit_one(batch)
        })
    }

    fn commit_one(&mut self, batch: Batch) -> Result<(), Error> {
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
        let at = table(&self.name);
        let (info, mut chains, mut rules) = (self.nft.table(at)?, self.nft.chains(at)?, self.nft.rules(at)?);
        chains.sort();
        rules.sort();
        Ok((info, chains, rules))
    }
}

fn table(name: &str) -> Table<'_> {
    Table { family: nft::Family::Inet, name }
}

/// What the kernel has of these rules' tables of pools.
pub(crate) fn shares(nft: &mut Nft, at: Table<'_>, held: &Ruleset) -> Result<Vec<TableInForce>, Error> {
    let mut tables = Vec::new();
    for (set, table) in held.tables() {
        let elements = nft.elements(at, set)?.unwrap_or_default();
        let mut shares: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        let values = elements.iter().filter_map(|element| element.value.as_deref());
        for address in values.filter_map(|value| table.member(value)) {
            *shares.entry(address).or_default() += 1;
        }
        let members = shares.into_iter().map(|(address, slots)| Share { address, slots }).collect();
        let (pool, ipv6) = (table.pool.clone(), table.family == crate::ruleset::Family::V6);
        tables.push(TableInForce { pool, slots: elements.len(), ipv6, members });
    }
    Ok(tables)
}
