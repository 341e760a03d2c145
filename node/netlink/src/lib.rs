//! What this machine's kernel is told and asked about links, addresses, neighbours, nf_tables and
//! announcements: netlink and packet sockets, synchronous, without a runtime and without programs.
//!
//! Made for a process that must be able to let go while everything around it hangs: a request is one
//! send and one answer, each wait has a deadline, and what must be quick ([`Prepared`](nft::Prepared),
//! [`route::PreparedRemoval`]) is built ahead and sent without allocating. What can't be bounded from
//! here is the kernel's own work inside a send (it takes the rtnl or nf_tables mutex).
//!
//! From the bottom up: [`wire`] builds and reads messages and never panics on any bytes, [`socket`] sends
//! them, [`route`], [`nft`] and [`conntrack`] give them meaning, [`packet`] speaks ARP and neighbour discovery,
//! [`nudge`] makes TCP speak,
//! [`fence`] is the table that keeps an address silent where its lease is not alive, and [`chance`]
//! forwards connections that began elsewhere.
#![deny(unsafe_code)]

mod sys;

pub mod clock;
pub mod wire;

pub mod socket;

pub mod conntrack;
pub mod nft;
pub mod nudge;
pub mod packet;
pub mod route;

pub mod chance;
pub mod fence;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use socket::Error;
