//! What the core hears and what it wants done.

use std::{collections::VecDeque, net::IpAddr, sync::Arc, time::Duration};

use super::picture::{Mac, Picture, Place};
use crate::protocol::{FromGuard, ToGuard};

/// Names one VIP as long as its configuration stays the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VipId(pub u32);

/// Paces. Everything that goes by the lease comes with the lease.
#[derive(Debug, Clone)]
pub struct Settings {
    /// After the first announcement, which comes at once; rising.
    pub announce_after: Vec<Duration>,
    /// Then for as long as it is held: switches age entries out.
    pub announce_every: Duration,
    /// Probes before a first take-over, and how long an answer to the last is awaited.
    pub probes: u32,
    pub probe_gap: Duration,
    /// Between tries of what the kernel refused.
    pub retry: Duration,
    /// Copies of the notices when the node is gone.
    pub notices: u32,
    pub notice_gap: Duration,
    /// How long removals are tried again once the node is gone.
    pub leave_within: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            announce_after: vec![ms(100), ms(500), ms(2000)],
            announce_every: ms(30_000),
            probes: 3,
            probe_gap: ms(65),
            retry: ms(50),
            notices: 3,
            notice_gap: ms(5),
            leave_within: ms(2000),
        }
    }
}

/// The longest silence and the longest second chance; later ends are cut to it.
pub const MOVE_MAX: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    FromNode(ToGuard),
    /// The node's end is closed, or its process has ended.
    NodeGone,
    /// The time that was asked for by [`Core::next_wake`](super::Core::next_wake) may have come.
    Time,
    /// Links and addresses, read when no effect was pending.
    Picture(Picture),
    /// The fence is not what was set up.
    FenceLost(String),
    /// A neighbour says on `link` that `address` is at `mac` (ARP sender, advertisement, solicitation).
    Heard {
        link: u32,
        address: IpAddr,
        mac: Mac,
    },
    Done(Done),
}

/// How effects went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    Swept(Vec<IpAddr>),
    /// What could not be had, in words.
    Attended(Vec<String>),
    Fenced(Result<(), String>),
    Added(VipId, Result<(), String>),
    Opened(VipId, Result<(), Refused>),
    Quieted(VipId, Result<(), Refused>),
    Shut(VipId, Result<(), String>),
    Removed(VipId, Result<(), String>),
    Chance(VipId, Result<(), String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The deadline has passed; it is shut.
    Late,
    Failed(String),
}

/// In the order in which they are to be carried out. What answers is said with each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Send(FromGuard),
    /// Removes what a guard added from all interfaces, and of `configured` what one may have added, but for
    /// `keep`: [`Done::Swept`].
    Sweep {
        configured: Vec<IpAddr>,
        keep: Vec<IpAddr>,
    },
    /// Listens for ARP and neighbour discovery on exactly these links, and keeps the kernel's own ARP
    /// requests there from carrying a VIP: [`Done::Attended`].
    Attend(Vec<(u32, String)>),
    /// The fence stands on exactly these links for exactly these addresses; what is new is shut, what is open
    /// stays so: [`Done::Fenced`].
    Fence {
        links: Vec<(u32, String)>,
        addresses: Vec<IpAddr>,
    },
    /// Adds the addresses, or gives them a new life: [`Done::Added`].
    Add {
        vip: VipId,
        place: Arc<Place>,
        seconds: u32,
    },
    /// [`Done::Opened`].
    Open {
        vip: VipId,
        place: Arc<Place>,
        deadline: u64,
    },
    /// [`Done::Quieted`].
    Quiet {
        vip: VipId,
        place: Arc<Place>,
        until: u64,
    },
    /// In one transaction: [`Done::Shut`] for each.
    Shut(Vec<(VipId, Arc<Place>)>),
    /// [`Done::Removed`]; what was not there counts as removed.
    Remove {
        vip: VipId,
        place: Arc<Place>,
    },
    /// Once.
    Announce(Arc<Place>),
    /// Once.
    Probe(Arc<Place>),
    /// [`Done::Chance`].
    Chance {
        vip: VipId,
        place: Arc<Place>,
        old: Vec<IpAddr>,
        except: Vec<(u16, u16)>,
        until: u64,
    },
    EndChance(Arc<Place>),
    /// All of [`Core::notices`](super::Core::notices).
    Notices,
    /// The machine is left as if no guard had been there.
    Dismantle,
    Exit,
}

pub type Effects = VecDeque<Effect>;
