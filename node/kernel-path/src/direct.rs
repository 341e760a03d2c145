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
use std::time::Duration;

use trestle_dataplane::KernelView;
use trestle_netlink::nft::{self, Batch, Element, Hook, ListedElement, Nft, Table, TableFlags};
use trestle_netlink::route::Route;
use trestle_netlink::socket;

use crate::change::put_whole;
use crate::chooser::Tables;
use crate::own::{Error, Held, InForce, OwnTable, PAUSE};
use crate::rule::{Rule, put_entry};
use crate::ruleset::{Family, Ruleset, Set};
use crate::traffic::Traffic;
use flows::Away;
use picture::Picture;

/// Behind the fence of VIPs and their second chance, before other chains.
const PRIORITY: i32 = -480;

const FAMILY: nft::Family = nft::Family::Netdev;

/// Flows that are taken over in one transaction.
const FLOWS_A_PIECE: usize = 1_024;

/// The one who programs this node's table. Blocks while the kernel works.
#[derive(Debug)]
pub struct Direct {
    own: OwnTable<Layout>,
    route: Route,
    away: Away,
}

type Wanted = Held<Layout>;

/// Where rules stand, and where packets go.
#[derive(Debug)]
struct Layout {
    picture: Picture,
    ways: BTreeMap<IpAddr, u32>,
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
        let own = OwnTable::open(FAMILY, "trestle_direct", node)?;
        Ok(Self { own, route: Route::open()?, away: Away::default() })
    }

    /// The kernel follows the view, all of whose listeners are of mode `dsr`, and this machine's interfaces. Whether
    /// there was something to do.
    ///
    /// # Errors
    /// What was in force is, but perhaps for some slots; the next call makes all of it anew.
    pub fn follow(&mut self, view: &KernelView) -> Result<bool, Error> {
        let picture = Picture::take(&mut self.route)?;
        let Some(from) = &self.own.held else {
            return self.begin(wanted(view, picture, None)).map(|()| true);
        };
        let Layout { picture: before, ways, .. } = &from.more;
        // A member that goes or comes back changes a few sets.
        if *before == picture
            && from.view.vips == view.vips
            && let Some(patch) = from.rules.patch_direct(&from.view, view, ways)
        {
            return self.own.follow_by(patch, view);
        }
        let to = wanted(view, picture, Some(from));
        let hooks = hooks(&self.own.name(), &from.more.entries, &to.more.entries);
        self.own.follow_to(to, Some(hooks).filter(|hooks| !hooks.is_empty()))
    }

    /// Everything anew, in place of what is there, and with the flows that it has.
    fn begin(&mut self, to: Wanted) -> Result<(), Error> {
        // Who ended while it made a new one left one without hooks.
        let old = self.own.make_way(|chain| chain.hook.is_some())?;
        self.own.make(&to.rules, None)?;
        let name = self.own.name();
        let mut last = hooks(&name, &BTreeSet::new(), &to.more.entries);
        if let Some(old) = &old {
            self.take_over(old, &name)?;
            last.delete_table(table(old));
        }
        if !last.is_empty() {
            self.own.commit_one(last)?;
        }
        self.own.hold(to)
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

    /// What can't be as one would wish, in words for operators.
    pub fn remarks(&self) -> Vec<String> {
        let held = self.own.held.iter();
        held.flat_map(|held| held.more.remarks.iter().chain(&held.rules.remarks)).cloned().collect()
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

    /// As [`Programmer::take_hits`](crate::Programmer::take_hits).
    pub fn take_hits(&mut self) -> HashMap<u64, u64> {
        self.own.tally.take_hits()
    }

    /// Flows that one table has remembered, to another. What begins meanwhile goes by the hash. What came to an address
    /// that is elsewhere by now goes on there, and may end there.
    fn take_over(&mut self, from: &str, to: &str) -> Result<(), Error> {
        let here: HashSet<IpAddr> = self.route.addresses()?.into_iter().map(|a| a.address).collect();
        for family in Family::ALL {
            let of = family.flows();
            for map in [of.open, of.ending] {
                let elements = self.own.nft.elements(table(from), map)?.unwrap_or_default();
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
                    self.own.commit_one(batch)?;
                    std::thread::sleep(PAUSE);
                }
            }
        }
        Ok(())
    }
}

fn wanted(view: &KernelView, picture: Picture, before: Option<&Wanted>) -> Wanted {
    let known = view.known.values().flatten().map(|member| member.address.ip());
    let ways = picture.ways(known, &view.vips);
    let rules = Ruleset::direct(view, before.map(|held| &held.rules), &ways);
    let entries = picture.entries(&view.listeners, &view.vips).into_iter();
    let mut entries: BTreeSet<(u32, String)> =
        entries.map(|(index, name)| (index, name.to_owned())).collect();
    if view.listeners.is_empty() {
        // What is remembered goes on.
        entries.extend(before.into_iter().flat_map(|held| held.more.entries.iter().cloned()));
    }
    let remarks = picture.remarks(view);
    Held { view: view.clone(), rules, more: Layout { picture, ways, entries, remarks } }
}

fn table(name: &str) -> Table<'_> {
    Table { family: FAMILY, name }
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
