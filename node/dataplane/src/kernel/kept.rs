//! Flows that another node could not find by the hash alone, since they began under an older table of their pool:
//! those that this node carries, for the others to ask for, and those that the others carry.
//!
//! Both are bounded, and changed as a whole.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::Plane;

/// Most flows that a node tells, and most that it holds of all others together.
pub const KEPT_MAX: usize = 32_768;

/// Most addresses that it says it has.
const ADDRESSES_MAX: usize = 256;

/// A flow, and the member that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeptFlow {
    /// Of IP: 6 or 17.
    pub protocol: u8,
    pub client: SocketAddr,
    /// Where the client came to.
    pub listener: SocketAddr,
    pub member: SocketAddr,
}

/// What this node tells.
#[derive(Clone, Debug, Default)]
pub struct KeptHere {
    /// Another one for each list, of whatever process.
    pub version: u64,
    pub flows: Vec<KeptFlow>,
    /// Addresses that clients come to here: nobody else knows better what there is of their flows.
    pub addresses: Vec<IpAddr>,
}

#[derive(Default)]
pub(super) struct Kept {
    here: ArcSwap<KeptHere>,
    elsewhere: ArcSwap<Vec<KeptFlow>>,
}

impl Kept {
    pub(super) fn new() -> Self {
        let here = KeptHere { version: rand::random(), ..KeptHere::default() };
        Self { here: ArcSwap::from_pointee(here), elsewhere: ArcSwap::default() }
    }

    pub(super) fn set_here(&self, mut flows: Vec<KeptFlow>, mut addresses: Vec<IpAddr>) {
        flows.sort_unstable();
        flows.truncate(KEPT_MAX);
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(ADDRESSES_MAX);
        let told = self.here.load();
        if told.flows != flows || told.addresses != addresses {
            let version = told.version.wrapping_add(1);
            self.here.store(Arc::new(KeptHere { version, flows, addresses }));
        }
    }

    pub(super) fn here(&self) -> Arc<KeptHere> {
        self.here.load_full()
    }

    /// Whether they are others than before.
    pub(super) fn set_elsewhere(&self, mut flows: Vec<KeptFlow>) -> bool {
        flows.truncate(KEPT_MAX);
        let differs = **self.elsewhere.load() != flows;
        if differs {
            self.elsewhere.store(Arc::new(flows));
        }
        differs
    }

    pub(super) fn elsewhere(&self) -> Arc<Vec<KeptFlow>> {
        self.elsewhere.load_full()
    }
}

impl Plane {
    /// Whether the kernel carries any listener of the revision in force, or should.
    pub fn carries_by_kernel(&self) -> bool {
        self.inner.snapshot().is_some_and(|snapshot| !snapshot.carried.by_kernel.is_empty())
    }

    /// Flows that the kernel carries here and that another node would not find by the tables in force, for the
    /// others to ask for, at most [`KEPT_MAX`]; and those of listeners' addresses that are here.
    pub fn set_kernel_kept(&self, flows: Vec<KeptFlow>, addresses: Vec<IpAddr>) {
        self.inner.kernel.set_kept(flows, addresses);
    }

    /// What was said by [`Plane::set_kernel_kept`].
    pub fn kernel_kept(&self) -> Arc<KeptHere> {
        self.inner.kernel.kept()
    }

    /// What the other nodes have told of theirs, sorted; at most [`KEPT_MAX`].
    pub fn set_kernel_kept_elsewhere(&self, flows: Vec<KeptFlow>) {
        self.inner.kernel.set_kept_elsewhere(flows);
    }
}
