//! Direct server return: packets to a listener go to its member as they are, by layer 2, and members answer clients
//! themselves. A table of the netdev family, named for the node.
//!
//! It stands at the ingress of the interfaces that have listeners' addresses, behind the fence of VIPs: what a node may
//! not have does not get here. Connection tracking comes later and sees nothing, so the table keeps its own flows.
//!
//! Invariants, beside those of the crate:
//! - What a dead process of this name remembered is taken over before its table goes, in the transaction in which
//!   the new one gets its hooks.
//! - Without listeners, flows that are remembered go on.

mod flows;
mod picture;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use trestle_dataplane::KernelView;
use trestle_netlink::nft::{self, Batch, Element, Hook, ListedElement, Nft, Table, TableFlags};
use trestle_netlink::route::Route;
use trestle_netlink::socket;

use crate::change::{Change, put_whole};
use crate::chooser::Tables;
use crate::programmer::{Error, InForce, NAME_MAX, OWNED_STAYS, PATIENCE, PAUSE, SLACK, shares};
use crate::rule::{Rule, put_entry};
use crate::ruleset::{Family, Patch, Ruleset, Set};
use crate::traffic::{Tally, Traffic};
use flows::Away;
use picture::Picture;

/// Behind the fence of VIPs and their second chance, before other chains.
const PRIORITY: i32 = -480;

/// Flows that are taken over in one transaction.
const FLOWS_A_PIECE: usize = 1_024;

/// The one who programs this node's table. Blocks while the kernel works.
#[derive(Debug)]
pub struct Direct {
    nft: Nft,
    route: Route,
    names: [Arc<str>; 2],
    name: Arc<str>,
    /// What the kernel holds; `None`: unknown, so all of it is made anew.
    held: Option<Wanted>,
    shape: Option<Shape>,
    /// When the shape was last compared.
    looked: Option<Instant>,
    tally: Tally,
    away: Away,
}

/// By handle: whatever somebody else replaces has another.
type Shape = (Option<nft::TableInfo>, Vec<nft::ChainInfo>, Vec<nft::RuleInfo>);

/// What should be, and of what it follows.
#[derive(Debug)]
struct Wanted {
    view: KernelView,
    picture: Picture,
    ways: BTreeMap<IpAddr, u32>,
    rules: Ruleset,
    /// Where packets come in: index and name.
    entries: BTreeSet<(u32, String)>,
    remarks: Vec<String>,
}

impl Direct {
    /// Changes nothing yet.
    ///
    /// # Errors
    /// No netlink.
    pub fn open(node: &str) -> Result<Self, Error> {
        let (mut nft, route) = (Nft::open()?, Route::open()?);
        nft.socket().set_patience(PATIENCE);
        let name: String = node.chars().take(NAME_MAX).collect();
        let name: Arc<str> = format!("trestle_direct_{name}").into();
        let names = [Arc::clone(&name), format!("{name}.2").into()];
        Ok(Self {
            nft,
            route,
            names,
            name,
            held: None,
            shape: None,
            looked: None,
            tally: Tally::default(),
            away: Away::default(),
        })
    }

    /// The kernel follows the view, all of whose listeners are of mode `dsr`, and this machine's interfaces. Whether
    /// there was something to do.
    ///
    /// # Errors
    /// What was in force is, but perhaps for some slots; the next call makes all of it anew.
    pub fn follow(&mut self, view: &KernelView) -> Result<bool, Error> {
        let picture = Picture::take(&mut self.route)?;
        let Some(from) = &self.held else {
            let to = Wanted::new(view, picture, None);
            return self.begin(to).map(|()| true);
        };
        // A member that goes or comes back changes a few sets.
        if from.picture == picture
            && from.view.vips == view.vips
            && let Some(patch) = from.rules.patch_direct(&from.view, view, &from.ways)
        {
            return self.follow_by(patch, view);
        }
        let to = Wanted::new(view, picture, Some(from));
        let mut change = Change::delta(table(&self.name), &from.rules, &to.rules);
        let hooks = hooks(&self.name, &from.entries, &to.entries);
        let changes_hooks = !hooks.is_empty();
        if changes_hooks {
            change.0.push(hooks);
        }
        if change.0.is_empty() {
            self.held = Some(to);
            return Ok(false);
        }
        let before = from.rules.objects.keys();
        let ending: HashSet<String> =
            before.filter(|name| !to.rules.objects.contains_key(*name)).cloned().collect();
        let changes_shape = changes_hooks || from.rules.chains != to.rules.chains;
        if !ending.is_empty() {
            self.count_last(&self.name.clone());
        }
        self.commit(change)?;
        self.tally.end(|name| ending.contains(name));
        self.held = Some(to);
        if changes_shape {
            self.shape = Some(self.read_shape()?);
        }
        Ok(true)
    }

    fn follow_by(&mut self, patch: Patch, view: &KernelView) -> Result<bool, Error> {
        let Some(held) = &self.held else { return Ok(false) };
        let change = Change::patch(table(&self.name), &held.rules, &patch);
        let has_changed = !change.0.is_empty();
        self.commit(change)?;
        if let Some(held) = &mut self.held {
            held.rules.apply(patch);
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

    /// What can't be as one would wish, in words for operators.
    pub fn remarks(&self) -> Vec<String> {
        let held = self.held.iter();
        held.flat_map(|held| held.remarks.iter().chain(&held.rules.remarks)).cloned().collect()
    }

    /// By which members are chosen; `None`: nothing is in force, as far as is known.
    pub fn tables(&self) -> Option<Tables> {
        let held = self.held.as_ref()?;
        Some(held.rules.tables().map(|(name, table)| (name.to_owned(), Arc::clone(table))).collect())
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
            Some(held) => shares(&mut self.nft, at, &held.rules)?,
            None => Vec::new(),
        };
        Ok(Some(InForce { table: self.name.to_string(), owned: info.flags.owner(), chains, rules, tables }))
    }

    /// What was carried since this process began, as the kernel has counted it.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn traffic(&mut self) -> Result<Traffic, Error> {
        if self.held.is_some() {
            let counters = self.nft.counters(table(&self.name))?;
            self.tally.take(counters);
        }
        Ok(self.tally.traffic())
    }

    /// As [`Programmer::take_hits`](crate::Programmer::take_hits).
    pub fn take_hits(&mut self) -> HashMap<u64, u64> {
        self.tally.take_hits()
    }

    /// Everything anew, in place of what is there, and with the flows that it has.
    fn begin(&mut self, to: Wanted) -> Result<(), Error> {
        let mut there = self.there()?;
        if let [first, second] = &there[..] {
            // Somebody ended while it made a new one, which has no hooks yet.
            let hooks = self.nft.chains(table(first))?.iter().filter(|chain| chain.hook.is_some()).count();
            let unfinished = if hooks == 0 { first.clone() } else { second.clone() };
            self.delete(&unfinished)?;
            there.retain(|name| *name != unfinished);
        }
        let old = there.pop();
        if let Some(own) = old.clone().filter(|_| self.shape.is_some()) {
            self.count_last(&own);
        }
        let free = self.names.iter().find(|name| Some(*name) != old.as_ref());
        self.name = free.unwrap_or(&self.names[0]).clone();
        let name = self.name.clone();
        let anew = |flags| Change::anew(table(&name), flags, None, &to.rules);
        match self.commit(anew(TableFlags::OWNER_PERSIST)) {
            // Older kernels: the table is anybody's, and looked after.
            Err(Error::Netlink(error)) if error.is(Errno::OPNOTSUPP) || error.is(Errno::INVAL) => {
                self.commit(anew(TableFlags::NONE))?;
            }
            result => result?,
        }
        if let Some(old) = &old {
            self.take_over(old, &name)?;
        }
        let mut last = hooks(&name, &BTreeSet::new(), &to.entries);
        if let Some(old) = &old {
            last.delete_table(table(old));
        }
        if !last.is_empty() {
            self.commit_one(last)?;
        }
        self.tally.end(|_| true);
        self.held = Some(to);
        self.shape = Some(self.read_shape()?);
        Ok(())
    }

    /// Flows that one table has remembered, to another. What begins meanwhile goes by the hash. What came to an address
    /// that is elsewhere by now goes on there, and may end there.
    fn take_over(&mut self, from: &str, to: &str) -> Result<(), Error> {
        let here: HashSet<IpAddr> = self.route.addresses()?.into_iter().map(|a| a.address).collect();
        for family in Family::ALL {
            let of = family.flows();
            for map in [of.open, of.ending] {
                let elements = self.nft.elements(table(from), map)?.unwrap_or_default();
                let length = family.length();
                let fits = |element: &&ListedElement| {
                    element.key.len() == 2 * length + 12
                        && element.value.as_ref().is_some_and(|value| value.len() == length + 8)
                };
                let is_here = |element: &&ListedElement| {
                    flows::listener_of(&element.key).is_some_and(|listener| here.contains(&listener))
                };
                let fitting: Vec<&ListedElement> = elements.iter().filter(fits).filter(is_here).collect();
                for some in fitting.chunks(FLOWS_A_PIECE) {
                    let taken: Vec<Element<'_>> = some
                        .iter()
                        .map(|flow| {
                            let value = flow.value.as_deref().unwrap_or_default();
                            let left = flow.expires.unwrap_or(Duration::from_secs(1));
                            Element::new(&flow.key).with(value).lasting(left)
                        })
                        .collect();
                    let mut batch = Batch::new();
                    batch.add_elements(table(to), map, &taken);
                    self.commit_one(batch)?;
                    std::thread::sleep(PAUSE);
                }
            }
        }
        Ok(())
    }

    /// Of counters that are about to end. Where they can't be read, what was read before has to do.
    fn count_last(&mut self, name: &str) {
        if let Ok(counters) = self.nft.counters(table(name)) {
            self.tally.take_last(counters);
        }
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

impl Wanted {
    fn new(view: &KernelView, picture: Picture, before: Option<&Wanted>) -> Self {
        let known = view.known.values().flatten().map(|member| member.address.ip());
        let ways = picture.ways(known, &view.vips);
        let rules = Ruleset::direct(view, before.map(|held| &held.rules), &ways);
        let entries = picture.entries(&view.listeners, &view.vips).into_iter();
        let mut entries: BTreeSet<(u32, String)> =
            entries.map(|(index, name)| (index, name.to_owned())).collect();
        if view.listeners.is_empty() {
            // What is remembered goes on.
            entries.extend(before.into_iter().flat_map(|held| held.entries.iter().cloned()));
        }
        let remarks = picture.remarks(view);
        Self { view: view.clone(), picture, ways, rules, entries, remarks }
    }
}

fn table(name: &str) -> Table<'_> {
    Table { family: nft::Family::Netdev, name }
}

/// From one set of devices to another. A chain goes with its device, and is named for its index as well: a device that
/// comes back under the name is another one.
fn hooks(name: &str, from: &BTreeSet<(u32, String)>, to: &BTreeSet<(u32, String)>) -> Batch {
    let mut batch = Batch::new();
    let chain = |(index, device): &(u32, String)| format!("in{index}.{device}");
    for gone in from.difference(to) {
        batch.delete_chain(table(name), &chain(gone));
    }
    for new in to.difference(from) {
        put_hook(&mut batch, table(name), &chain(new), &new.1);
    }
    batch
}

fn put_hook(batch: &mut Batch, table: Table<'_>, chain: &str, device: &str) {
    batch.base_chain(table, chain, Hook::Ingress { device }, PRIORITY);
    for family in Family::ALL {
        put_entry(batch, table, chain, family, family.flows().entry);
    }
}

/// Whether this kernel takes such a table with these rules, and a map of slots for them: it is made at the loopback and
/// taken away in one transaction, so that no packet meets it.
///
/// # Errors
/// What the kernel says.
pub(crate) fn try_rules(
    nft: &mut Nft,
    family: Family,
    rules: Vec<Rule>,
    slots: (String, Set),
) -> Result<(), socket::Error> {
    let name = format!("trestle_trial_{}", std::process::id());
    let table = table(&name);
    let mut ruleset = Ruleset::direct(&KernelView::default(), None, &BTreeMap::new());
    ruleset.sets.extend([slots]);
    if let Some(entry) = ruleset.chains.get_mut(family.flows().entry) {
        entry.rules = rules;
    }
    let mut batch = Batch::new();
    batch.table(table, TableFlags::NONE);
    put_whole(&mut batch, table, &ruleset);
    put_hook(&mut batch, table, "in", "lo");
    batch.delete_table(table);
    nft.commit(&batch.finish())
}
