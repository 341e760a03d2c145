//! The VIP lease protocol as a model, whose reachable states a checker visits one and all.
//!
//! What holds, in every state: **at most one node is an owner**, in real time. An owner is a node on
//! which the address is present and the fence open. `docs/vip.md` tells the protocol and why it holds;
//! this crate is the machine-checked half of that argument. The other half is the code itself under
//! simulation (`node/cluster/src/lease/core/simulation.rs`): a model proves the protocol, not the code.
//!
//! - [`rules`]: the rules of the protocol, each of which can be taken out, and how far the checker goes.
//! - [`state`]: nodes, guards, leaders, what is on the way.
//! - [`protocol`]: what can happen, and what it does.
//!
//! # What it abstracts from
//!
//! - **Time** is discrete. A real tick moves every node's clock by one; a node whose clock lags leaves
//!   one out: one node in a tick, never two ticks of a node within a TTL and a tick. That is the bound
//!   for drift. A TTL is two or three ticks and the bound one: much coarser than 1/100, the same relation
//!   between the two. All times in a state are what is left or has passed, so runs are not bounded in
//!   time.
//! - **Raft** is a committed owner with an epoch, and one true leader. Who was replaced need not know:
//!   it keeps its table and answers, but can't commit and no round of it succeeds. What it had proposed
//!   and not yet committed is kept by the next leader or lost. The true leader applies what it commits at
//!   once; who was replaced learns nothing more, which is the worse case.
//! - **Renewals** are sent only by a node that some table takes for the owner: any other is refused and
//!   may as well ask later. A refusal changes nothing at the holder, which keeps its lease to the end.
//! - **A node that hangs** takes no steps. As any step may be put off, that needs no state. A guard that
//!   is not frozen keeps its deadlines; a slow one counts as frozen.
//! - **A grant** that waits in the socket of a frozen guard is an answer still on the way.
//! - **A planned move** is not called off, and it is the only way to let go on purpose: a drain is one.
//! - **Address and fence** open and shut together. An address behind a shut fence is no owner's, so
//!   `valid_lft`, the third fence, is not needed and not modelled; nor is the second chance, which moves
//!   packets and not the right to the address.
//! - **A guard's write** and the look at the clock after it are one step; between its look before and
//!   the write it may freeze. [`Bounds::freeze_after_write`] takes that apart, and then two owners are
//!   found: see there.
//! - **A new guard** starts when the old one has ended. In life a frozen one may be left over; what it
//!   holds it holds under its own session, and its notice names that. What was asked for the old guard
//!   is not handed to the new one.
//!
//! # Bounds
//!
//! Every run is one of at most [`Bounds::faults`] faults (a change of leader, a freeze, a crash, a left
//! out tick, a planned move), in any mix and order. Delay, loss and reordering of messages cost nothing
//! and are not counted. Epochs, guard sessions and messages on the way are bounded as well. A violation
//! that needs more than that is not found.

#![forbid(unsafe_code)]

pub mod protocol;
pub mod rules;
pub mod state;

pub use protocol::{Action, Lease, ONE_OWNER};
pub use rules::{Bounds, Rules};
pub use state::State;
