//! A state of the whole: what is committed, each node with its guard, fence and lease table, and what
//! is on the way.

/// Notices and releases on the way at once. Each costs a fault, so this is no bound of its own up to
/// that many faults; beyond it the newest is lost.
pub const RELEASES_MAX: usize = 3;
/// Room for renewals of a node; [`crate::Bounds::asks`] says how many are used.
pub const ASKS_MAX: usize = 3;

/// How the last change of the owner came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Via {
    /// It is the first.
    Start,
    /// No lease could be alive any more.
    Waited,
    /// The owner let go for a planned move.
    Moved,
    /// A guard told that it had let go.
    Noticed,
}

/// A committed owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Held {
    pub epoch: u8,
    pub node: u8,
    pub session: u8,
    pub via: Via,
}

/// A renewal, until its answer has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ask {
    /// Ticks of the sender's clock since it was sent, counted up to a TTL.
    pub age: u8,
    pub stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    Sent,
    /// It has arrived at `leader` and a round for it has succeeded. `held`: the owner at its arrival,
    /// where the rule that looks again is taken out.
    Confirmed {
        leader: u8,
        held: Option<Held>,
    },
    /// The answer is on the way.
    Granted {
        epoch: u8,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guard {
    Up,
    /// Does nothing. `write`: it had looked at the clock and was about to write.
    Frozen {
        write: Option<Write>,
    },
    Down,
}

/// A write to the fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// What was left of the lease when the guard looked at the clock.
    pub read: u8,
    /// What is left of it now.
    pub left: u8,
}

/// A leader's lease table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    /// Committed owner as far as it knows.
    pub known: Held,
    /// Ticks until all leases have ended: those that it granted, as recorded, and those of its
    /// predecessors.
    pub wait: u8,
    /// The known epoch was given up.
    pub released: Option<Via>,
    /// A change is proposed and its outcome unknown.
    pub pending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub up: bool,
    pub guard: Guard,
    /// Of the guard that runs, or ran last.
    pub session: u8,
    /// Epoch of the last lease of this session; 0: none yet.
    pub epoch: u8,
    /// This epoch and lower ones were given up.
    pub forgotten: u8,
    /// Ticks for which the address is still present and the fence open: the element's time-out.
    pub open: u8,
    /// Ticks before its clock may leave one out again.
    pub steady: u8,
    /// There if the node believes that it leads.
    pub table: Option<Table>,
    /// Sorted, since their order says nothing.
    pub asks: [Option<Ask>; ASKS_MAX],
}

/// An epoch was given up: a notice or a release on the way, to whoever leads. A notice is about all that its
/// session was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Release {
    pub node: u8,
    pub session: u8,
    pub epoch: u8,
    pub via: Via,
}

/// A change of the owner that is in the leader's log but not committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Proposal {
    pub by: u8,
    pub to: Held,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State<const N: usize> {
    pub committed: Held,
    /// Epoch whose owner is to be moved away.
    pub intent: Option<u8>,
    pub tail: Option<Proposal>,
    /// Who could commit now.
    pub leader: Option<u8>,
    pub nodes: [Node; N],
    pub releases: [Option<Release>; RELEASES_MAX],
    pub faults: u8,
}

impl<const N: usize> State<N> {
    /// Node 0 owns the address under epoch 1 and was granted nothing yet; `leader` has led for long.
    pub fn first(leader: u8) -> Self {
        let committed = Held { epoch: 1, node: 0, session: 0, via: Via::Start };
        let node = Node {
            up: true,
            guard: Guard::Up,
            session: 0,
            epoch: 0,
            forgotten: 0,
            open: 0,
            steady: 0,
            table: None,
            asks: [None; ASKS_MAX],
        };
        let mut state = Self {
            committed,
            intent: None,
            tail: None,
            leader: Some(leader),
            nodes: [node; N],
            releases: [None; RELEASES_MAX],
            faults: 0,
        };
        state.nodes[leader as usize].table = Some(Table::new(committed, 0));
        state
    }

    /// Nodes on which the address is present and the fence open.
    pub fn owners(&self) -> usize {
        self.nodes.iter().filter(|node| node.open > 0).count()
    }

    pub(crate) fn tell(&mut self, release: Release) {
        if self.releases.contains(&Some(release)) {
            return;
        }
        if let Some(slot) = self.releases.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(release);
        }
        self.releases.sort_unstable();
    }
}

impl Table {
    pub fn new(known: Held, wait: u8) -> Self {
        Self { known, wait, released: None, pending: false }
    }

    /// Who was replaced can't commit: of its table only what it grants by is of use.
    pub(crate) fn replaced(self) -> Self {
        Self { wait: 0, ..self }
    }
}
