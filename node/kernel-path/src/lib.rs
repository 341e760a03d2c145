//! The kernel path: listeners whose packets the kernel rewrites and passes on, while this program decides
//! where to.
//!
//! The data plane says what should be (a [`KernelView`](trestle_dataplane::KernelView): which listeners, which
//! members, with what weight). From that follows a [`Ruleset`](ruleset::Ruleset), a plain value; from two of
//! them follows a transaction ([`change`]), small where little changed; a [`Programmer`] sends it. What the
//! kernel can't do shows before that ([`support`]). What it carries is read from its counters ([`Traffic`]) and,
//! now and then, from its flows ([`Census`]).
//!
//! Invariants:
//! - All of it stands in one table (two, while one takes the other's place), named for the node; nothing else of the machine's ruleset is touched.
//! - The ruleset is a function of what the cluster agrees on: every node makes the same choice for a flow, so
//!   that another node can carry it on.
//! - What must fit together changes in one transaction; slots of a table, each of which is right by itself, go
//!   ahead of it in pieces, since a VIP's guard must not wait long for the kernel. What the kernel did not take
//!   is asked for again from the ground up.
//! - Flows that are established are not cut by a change: their rewriting is theirs to the end, as long as the
//!   table's chains stand.
//!
//! Left to others: who holds an address and who is fenced off (the VIP's guard), health (the cluster).
#![forbid(unsafe_code)]

pub mod ruleset;

mod carrier;
mod census;
pub mod change;
mod chooser;
mod direct;
pub mod machine;
mod offences;
mod own;
mod places;
mod programmer;
mod rule;
mod shares;
pub mod support;
pub mod surroundings;
mod traffic;

pub use carrier::{Carrier, Parts};
pub use census::{Census, Open, over};
pub use chooser::Tables;
pub use direct::Direct;
pub use own::{Error, InForce, Share, TableInForce};
pub use programmer::Programmer;
pub use ruleset::families;
pub use traffic::{Carried, Traffic};
pub use trestle_netlink::nft::Counted;
