//! What can happen, and what it does. One action is one atomic step of one part: a message arrives, a
//! table decides, a guard writes, a fault strikes, a tick passes.

use stateright::{Model, Property};

use crate::state::{ASKS_MAX, Ask, Guard, Held, Proposal, Release, Stage, State, Table, Via, Write};
use crate::{Bounds, Rules};

/// Ticks by which a clock may be late over a TTL, and which a leader waits on top of it.
pub const DRIFT: u8 = 1;
/// Name of the property that all is about.
pub const ONE_OWNER: &str = "at most one owner";
/// Proposer of a change whose term is over (only where proposals are not bound to their term).
const OF_A_TERM_THAT_ENDED: u8 = u8::MAX;

/// The model over `N` nodes.
#[derive(Clone, Copy, Debug)]
pub struct Lease<const N: usize> {
    pub rules: Rules,
    pub bounds: Bounds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Real time goes on; the clock of `late` leaves this tick out (a fault).
    Tick {
        late: Option<u8>,
    },
    /// A node sends a renewal.
    Ask {
        node: u8,
    },
    /// A renewal of `node` arrives at `leader`, and a round for it succeeds.
    Arrive {
        node: u8,
        ask: usize,
        leader: u8,
    },
    /// The leader's table decides on it, with what it knows then.
    Decide {
        node: u8,
        ask: usize,
    },
    /// The grant reaches node and guard, which looks at the clock and writes.
    Hold {
        node: u8,
        ask: usize,
    },
    /// As before, but the guard freezes between look and write (a fault).
    HoldLater {
        node: u8,
        ask: usize,
    },
    /// Renewal or answer is lost.
    Lose {
        node: u8,
        ask: usize,
    },
    /// The leader proposes to give the address to `node`.
    Propose {
        node: u8,
    },
    Commit,
    /// `node` leads from now on (a fault, unless nobody does). `keep`: its log has what the last leader
    /// had proposed.
    Elect {
        node: u8,
        keep: bool,
    },
    /// A planned move is committed as an intent (a fault).
    Intend,
    /// The owner has heard of it, shuts its fence and then tells that it has let go.
    Silence {
        node: u8,
    },
    /// The leader hears that an epoch was given up. What is never heard is lost.
    Hear {
        release: usize,
    },
    /// Of the guard (a fault).
    Freeze {
        node: u8,
    },
    Thaw {
        node: u8,
    },
    /// Writes what it was about to, and freezes again (a fault).
    ThawForAMoment {
        node: u8,
    },
    /// The node's process dies, its guard lives (a fault).
    CrashNode {
        node: u8,
    },
    /// (a fault)
    CrashGuard {
        node: u8,
    },
    /// (a fault)
    CrashBoth {
        node: u8,
    },
    /// The guard of a dead node removes the address, sends its notice and ends.
    LetGo {
        node: u8,
    },
    /// What is down is started; the new guard sweeps what the old one left.
    Restart {
        node: u8,
    },
}

impl<const N: usize> Lease<N> {
    fn nodes() -> std::ops::Range<u8> {
        0..N as u8
    }

    /// Of the state's leader, that can commit.
    fn table(state: &State<N>) -> Option<(u8, Table)> {
        let leader = state.leader?;
        Some((leader, state.nodes[leader as usize].table?))
    }

    fn asking(&self, state: &State<N>, node: u8, actions: &mut Vec<Action>) {
        let n = &state.nodes[node as usize];
        let free = n.asks.iter().flatten().count() < self.bounds.asks;
        // Who nobody takes for the owner is refused whenever it asks: it may as well ask later.
        let could_be_granted = self.is_owner(state.committed, node, n.session)
            || state.nodes.iter().filter_map(|n| n.table).any(|t| self.is_owner(t.known, node, n.session));
        if n.up && n.guard != Guard::Down && free && could_be_granted {
            actions.push(Action::Ask { node });
        }
        for (ask, Ask { stage, .. }) in n.asks.iter().enumerate().filter_map(|(i, a)| Some((i, (*a)?))) {
            actions.push(Action::Lose { node, ask });
            match stage {
                Stage::Sent => {
                    let confirms = |leader: &u8| {
                        state.leader == Some(*leader)
                            // Joins a round that had succeeded while it still led.
                            || !self.rules.round_after_arrival && state.nodes[*leader as usize].table.is_some()
                    };
                    actions.extend(Self::nodes().filter(confirms).map(|leader| Action::Arrive {
                        node,
                        ask,
                        leader,
                    }));
                }
                Stage::Confirmed { .. } => actions.push(Action::Decide { node, ask }),
                Stage::Granted { .. } if n.guard == Guard::Up => {
                    actions.extend([Action::Hold { node, ask }, Action::HoldLater { node, ask }]);
                }
                Stage::Granted { .. } => {}
            }
        }
    }

    fn living(&self, state: &State<N>, node: u8, actions: &mut Vec<Action>) {
        let n = &state.nodes[node as usize];
        match n.guard {
            Guard::Up => {
                actions.extend([Action::Freeze { node }, Action::CrashGuard { node }]);
                if !n.up {
                    actions.push(Action::LetGo { node });
                } else if n.epoch > n.forgotten && state.intent == Some(n.epoch) {
                    actions.push(Action::Silence { node });
                }
            }
            Guard::Frozen { write } => {
                actions.extend([Action::Thaw { node }, Action::CrashGuard { node }]);
                if self.bounds.freeze_after_write && write.is_some() {
                    actions.push(Action::ThawForAMoment { node });
                }
            }
            Guard::Down if n.session + 1 < self.bounds.sessions => actions.push(Action::Restart { node }),
            Guard::Down => {}
        }
        if n.up {
            actions.push(Action::CrashNode { node });
            if n.guard != Guard::Down {
                actions.push(Action::CrashBoth { node });
            }
            actions.push(Action::Elect { node, keep: false });
            if state.tail.is_some() {
                actions.push(Action::Elect { node, keep: true });
            }
        }
    }

    fn leading(&self, state: &State<N>, actions: &mut Vec<Action>) {
        if state.tail.is_some() {
            actions.push(Action::Commit);
        }
        for (release, r) in state.releases.iter().enumerate().filter_map(|(i, r)| Some((i, (*r)?))) {
            if Self::table(state).is_some_and(|(_, table)| self.is_about(r, table.known)) {
                actions.push(Action::Hear { release });
            }
        }
        let Some((_, table)) = Self::table(state) else { return };
        if state.intent.is_none() && !table.pending && table.known.epoch < self.bounds.epochs {
            actions.push(Action::Intend);
        }
        if self.may_change(state, table) {
            actions.extend(Self::nodes().map(|node| Action::Propose { node }));
        }
    }

    /// Rule 3.
    fn may_change(&self, state: &State<N>, table: Table) -> bool {
        let ended = table.wait == 0;
        let hurried = !self.rules.release_before_give && state.intent == Some(table.known.epoch);
        !table.pending
            && state.tail.is_none()
            && table.known.epoch < self.bounds.epochs
            && (ended || hurried || table.released.is_some())
    }

    fn is_about(&self, release: Release, held: Held) -> bool {
        // A notice is about whatever its session was given, also while it was on its way.
        let epoch = release.via == Via::Noticed || release.epoch == held.epoch;
        epoch && self.is_owner(held, release.node, release.session)
    }

    /// Rule 4.
    fn is_owner(&self, held: Held, node: u8, session: u8) -> bool {
        held.node == node && (held.session == session || !self.rules.guard_session)
    }

    fn leader_waits(&self) -> u8 {
        self.bounds.ttl + if self.rules.allow_for_drift { DRIFT } else { 0 }
    }

    /// What an action does; `None` where it can't take place.
    fn step(&self, state: &mut State<N>, action: Action) -> Option<()> {
        if action.is_fault(state) {
            if state.faults == self.bounds.faults {
                return None;
            }
            state.faults += 1;
        }
        match action {
            Action::Tick { late } => self.tick(state, late)?,
            Action::Ask { node } => {
                let slot = state.nodes[node as usize].asks.iter_mut().find(|ask| ask.is_none())?;
                *slot = Some(Ask { age: 0, stage: Stage::Sent });
            }
            Action::Arrive { node, ask, leader } => {
                let known = state.nodes[leader as usize].table?.known;
                let held = (!self.rules.look_again_after_round).then_some(known);
                state.nodes[node as usize].asks[ask].as_mut()?.stage = Stage::Confirmed { leader, held };
            }
            Action::Decide { node, ask } => self.decide(state, node, ask)?,
            Action::Hold { node, ask } => self.hold(state, node, ask, false)?,
            Action::HoldLater { node, ask } => self.hold(state, node, ask, true)?,
            Action::Lose { node, ask } => state.nodes[node as usize].asks[ask] = None,
            Action::Propose { node } => self.propose(state, node)?,
            Action::Commit => Self::commit(state)?,
            Action::Elect { node, keep } => self.elect(state, node, keep)?,
            Action::Intend => state.intent = Some(Self::table(state)?.1.known.epoch),
            Action::Silence { node } => {
                let n = &mut state.nodes[node as usize];
                n.open = 0;
                if self.rules.forget_released_epochs {
                    n.forgotten = n.epoch;
                }
                let release = Release { node, session: n.session, epoch: n.epoch, via: Via::Moved };
                state.tell(release);
            }
            Action::Hear { release } => {
                let via = state.releases[release]?.via;
                state.nodes[state.leader? as usize].table.as_mut()?.released = Some(via);
            }
            Action::Freeze { node } => state.nodes[node as usize].guard = Guard::Frozen { write: None },
            Action::Thaw { node } => self.thaw(state, node),
            Action::ThawForAMoment { node } => {
                let n = &mut state.nodes[node as usize];
                let Guard::Frozen { write: Some(write) } = n.guard else { return None };
                n.open = n.open.max(write.read);
                n.guard = Guard::Frozen { write: None };
            }
            Action::CrashNode { node } => self.crash(state, node),
            Action::CrashGuard { node } => {
                let n = &mut state.nodes[node as usize];
                n.guard = Guard::Down;
                n.asks = [None; ASKS_MAX];
            }
            Action::CrashBoth { node } => {
                state.nodes[node as usize].guard = Guard::Down;
                self.crash(state, node);
            }
            Action::LetGo { node } => self.let_go(state, node),
            Action::Restart { node } => {
                let n = &mut state.nodes[node as usize];
                (n.up, n.guard, n.session) = (true, Guard::Up, n.session + 1);
                (n.epoch, n.forgotten, n.open) = (0, 0, 0);
            }
        }
        self.tidy(state);
        Some(())
    }

    // === time ===

    fn tick(&self, state: &mut State<N>, late: Option<u8>) -> Option<()> {
        for (id, n) in state.nodes.iter_mut().enumerate() {
            if late == Some(id as u8) {
                if n.steady > 0 {
                    return None;
                }
                n.steady = self.bounds.ttl;
                continue;
            }
            n.steady = n.steady.saturating_sub(1);
            if self.rules.fence_timeout || n.guard == Guard::Up {
                n.open = n.open.saturating_sub(1);
            }
            if let Guard::Frozen { write: Some(write) } = &mut n.guard {
                write.left = write.left.saturating_sub(1);
            }
            if let Some(table) = &mut n.table {
                table.wait = table.wait.saturating_sub(1);
            }
            for slot in &mut n.asks {
                let Some(ask) = slot else { continue };
                ask.age = (ask.age + 1).min(self.bounds.ttl);
                if ask.age == self.bounds.ttl && self.rules.count_from_sending {
                    // Nothing could be left of its lease.
                    *slot = None;
                }
            }
        }
        Some(())
    }

    // === the leader's table ===

    fn decide(&self, state: &mut State<N>, node: u8, ask: usize) -> Option<()> {
        let slot = &mut state.nodes[node as usize].asks[ask];
        let Stage::Confirmed { leader, held } = slot.as_ref()?.stage else { return None };
        let session = state.nodes[node as usize].session;
        let leads = state.leader == Some(leader);
        let waits = self.leader_waits();
        let table = state.nodes[leader as usize].table.as_mut()?;
        let held = held.unwrap_or(table.known);
        let own = self.is_owner(held, node, session);
        // Who let go is taken off at once, so a release freezes like a change.
        let frozen = self.rules.freeze_on_change && (table.pending || table.released.is_some());
        if own && !frozen {
            if self.rules.record_grants && leads {
                table.wait = waits;
            }
            state.nodes[node as usize].asks[ask].as_mut()?.stage = Stage::Granted { epoch: held.epoch };
        } else {
            state.nodes[node as usize].asks[ask] = None;
        }
        Some(())
    }

    fn propose(&self, state: &mut State<N>, node: u8) -> Option<()> {
        let (leader, table) = Self::table(state)?;
        let n = &state.nodes[node as usize];
        let (known, session) = (table.known, n.session);
        if !n.up || n.guard == Guard::Down || (node, session) == (known.node, known.session) {
            return None;
        }
        let via = table.released.unwrap_or(Via::Waited);
        let to = Held { epoch: known.epoch + 1, node, session, via };
        state.tail = Some(Proposal { by: leader, to });
        state.nodes[leader as usize].table.as_mut()?.pending = true;
        Some(())
    }

    /// Whoever leads applies it at once; that it may still be on the way is what `pending` is for.
    fn commit(state: &mut State<N>) -> Option<()> {
        let Proposal { to, .. } = state.tail.take()?;
        if to.epoch == state.committed.epoch + 1 {
            (state.committed, state.intent) = (to, None);
        }
        let table = state.nodes[state.leader? as usize].table.as_mut()?;
        (table.known, table.released, table.pending) = (state.committed, None, false);
        Some(())
    }

    fn elect(&self, state: &mut State<N>, node: u8, keep: bool) -> Option<()> {
        if let Some(old) = state.leader {
            let old = &mut state.nodes[old as usize];
            old.table = old.table.map(Table::replaced);
            state.leader = None;
        }
        match state.tail {
            Some(Proposal { to, .. }) if keep => {
                (state.committed, state.intent, state.tail) = (to, None, None);
            }
            Some(Proposal { to, .. }) if !self.rules.bind_proposals => {
                state.tail = Some(Proposal { by: OF_A_TERM_THAT_ENDED, to });
            }
            _ => state.tail = None,
        }
        state.leader = Some(node);
        self.forget_asks_at(state, node);
        let waits = if self.rules.wait_out_predecessor { self.leader_waits() } else { 0 };
        state.nodes[node as usize].table = Some(Table::new(state.committed, waits));
        Some(())
    }

    /// The table that would have answered is gone.
    fn forget_asks_at(&self, state: &mut State<N>, node: u8) {
        let here = |ask: &Ask| matches!(ask.stage, Stage::Confirmed { leader, .. } if leader == node);
        for slot in state.nodes.iter_mut().flat_map(|n| &mut n.asks) {
            *slot = slot.filter(|ask| !here(ask));
        }
    }

    // === node and guard ===

    fn hold(&self, state: &mut State<N>, node: u8, ask: usize, later: bool) -> Option<()> {
        let n = &mut state.nodes[node as usize];
        let Ask { age, stage } = n.asks[ask].take()?;
        let Stage::Granted { epoch } = stage else { return None };
        let left = self.bounds.ttl - if self.rules.count_from_sending { age } else { 0 };
        if left == 0 || epoch <= n.forgotten || epoch < n.epoch {
            return if later { None } else { Some(()) };
        }
        n.epoch = epoch;
        if later {
            n.guard = Guard::Frozen { write: Some(Write { read: left, left }) };
        } else {
            n.open = n.open.max(left);
        }
        Some(())
    }

    fn thaw(&self, state: &mut State<N>, node: u8) {
        let n = &mut state.nodes[node as usize];
        if let Guard::Frozen { write: Some(Write { read, left }) } = n.guard {
            n.open = n.open.max(if self.rules.look_at_clock_after_write { left } else { read });
        } else if !self.rules.fence_timeout {
            n.open = 0;
        }
        n.guard = Guard::Up;
    }

    fn crash(&self, state: &mut State<N>, node: u8) {
        let n = &mut state.nodes[node as usize];
        n.up = false;
        n.asks = [None; ASKS_MAX];
        n.table = None;
        self.forget_asks_at(state, node);
        if state.leader == Some(node) {
            state.leader = None;
        }
    }

    fn let_go(&self, state: &mut State<N>, node: u8) {
        let n = &mut state.nodes[node as usize];
        let release = Release { node, session: n.session, epoch: n.epoch, via: Via::Noticed };
        if self.rules.notice_after_removal {
            n.open = 0;
            n.guard = Guard::Down;
        } else {
            n.guard = Guard::Frozen { write: None };
        }
        state.tell(release);
    }

    /// States that can't be told apart by anything to come are made one.
    fn tidy(&self, state: &mut State<N>) {
        for id in 0..N {
            state.nodes[id].asks.sort_unstable();
            let leads = state.leader == Some(id as u8);
            let here = |ask: &Ask| matches!(ask.stage, Stage::Confirmed { leader, .. } if leader == id as u8);
            let needed = !self.rules.round_after_arrival
                || state.nodes.iter().flat_map(|n| &n.asks).flatten().any(here);
            if !leads && !needed {
                state.nodes[id].table = None;
            }
        }
        let committed = state.committed.epoch;
        for n in &mut state.nodes {
            if state.faults == self.bounds.faults {
                n.steady = 0;
            }
            let done = n.open == 0
                && n.epoch < committed
                && n.asks == [None; ASKS_MAX]
                && !matches!(n.guard, Guard::Frozen { write: Some(_) });
            if done && self.rules.round_after_arrival {
                // No grant of that epoch can come any more.
                (n.epoch, n.forgotten) = (0, 0);
            }
        }
        for slot in &mut state.releases {
            *slot = slot.filter(|release| release.via == Via::Noticed || release.epoch >= committed);
        }
        state.releases.sort_unstable();
    }
}

impl Action {
    fn is_fault<const N: usize>(self, state: &State<N>) -> bool {
        match self {
            Action::Tick { late } => late.is_some(),
            Action::Elect { .. } => state.leader.is_some(),
            Action::HoldLater { .. }
            | Action::Intend
            | Action::Freeze { .. }
            | Action::ThawForAMoment { .. }
            | Action::CrashNode { .. }
            | Action::CrashGuard { .. }
            | Action::CrashBoth { .. } => true,
            _ => false,
        }
    }
}

impl<const N: usize> Model for Lease<N> {
    type State = State<N>;
    type Action = Action;

    fn init_states(&self) -> Vec<State<N>> {
        Self::nodes().map(State::first).collect()
    }

    fn actions(&self, state: &State<N>, actions: &mut Vec<Action>) {
        actions.push(Action::Tick { late: None });
        actions.extend(Self::nodes().map(|node| Action::Tick { late: Some(node) }));
        for node in Self::nodes() {
            self.asking(state, node, actions);
            self.living(state, node, actions);
        }
        self.leading(state, actions);
        if state.faults == self.bounds.faults {
            actions.retain(|action| !action.is_fault(state));
        }
    }

    fn next_state(&self, state: &State<N>, action: Action) -> Option<State<N>> {
        let mut next = state.clone();
        self.step(&mut next, action)?;
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn took_over<const N: usize>(state: &State<N>, via: Via) -> bool {
            let Held { epoch, node, .. } = state.committed;
            let n = &state.nodes[node as usize];
            node != 0 && state.committed.via == via && n.epoch == epoch && n.open > 0
        }
        vec![
            Property::always(ONE_OWNER, |_, state: &State<N>| state.owners() <= 1),
            Property::sometimes("take-over after a lease", |_, s: &State<N>| took_over(s, Via::Waited)),
            Property::sometimes("planned move", |_, s: &State<N>| took_over(s, Via::Moved)),
            Property::sometimes("take-over by notice", |_, s: &State<N>| took_over(s, Via::Noticed)),
            Property::sometimes("a frozen guard with a shut fence beside a new owner", |_, s: &State<N>| {
                let frozen = |n: &crate::state::Node| matches!(n.guard, Guard::Frozen { .. }) && n.epoch == 1;
                took_over(s, Via::Waited) && frozen(&s.nodes[0])
            }),
        ]
    }
}
