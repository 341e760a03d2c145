//! The flows that are open, counted by walking the kernel's connection tracking; and the end of those whose member
//! is not to have any.
//!
//! A walk costs about 1 µs a flow, so it is for its caller to let time pass between two ([`Census::pause`]).

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use trestle_dataplane::{KEPT_MAX, KeptFlow, KernelOpen, KernelView};
use trestle_netlink::conntrack::{Conntrack, TrackedFlow};
use trestle_netlink::nudge::nudge;
use trestle_netlink::route::Route;

use crate::chooser::{Choosers, Tables};
use crate::own::Error;
use crate::places::Places;
use crate::ruleset::{Family, Keepers};
use crate::shares::Shares;

/// Most flows that one walk ends: what it takes to remember them is some 10 MiB.
const ENDS_MAX: usize = 131_072;

/// Walks take this part of the time at most.
const SHARE: u32 = 50;
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Most clients that are told.
const CLIENTS_MAX: usize = 8_192;

/// Flows open now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Open {
    pub listeners: HashMap<String, u64>,
    pub members: HashMap<SocketAddr, u64>,
    /// The heaviest.
    pub clients: Vec<(IpAddr, u32)>,
    /// Above this node's share of a limit of which other nodes have theirs.
    pub above: Vec<KernelOpen>,
    /// All of them.
    pub flows: u64,
    /// Flows that were cut, since their member is not to have any.
    pub cut: u64,
    /// Flows that another node would not find by the tables in force, but for what it is told of them.
    pub kept: Vec<KeptFlow>,
    /// More of them, for which there was no room.
    pub left_out: u64,
    /// Addresses of listeners that are here.
    pub addresses: Vec<IpAddr>,
    pub took: Duration,
}

/// How long flows are kept that came to an address which went elsewhere: it may come right back. What is silent for so
/// long is gone then too.
const KEPT_AWAY: Duration = Duration::from_secs(10);

/// What an answered session of UDP has left to be heard of again, where one answer is all that it gets.
const AFTER_ANSWER: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Census {
    conntrack: Conntrack,
    route: Route,
    /// Listeners' addresses that flows came to and that are not here now, and since when that is known.
    away: HashMap<IpAddr, Instant>,
    kept_away: Duration,
}

impl Census {
    /// # Errors
    /// No netlink.
    pub fn open() -> Result<Self, Error> {
        Self::keeping(KEPT_AWAY)
    }

    /// As [`Self::open`]; flows to an address that is elsewhere are kept for so long.
    ///
    /// # Errors
    /// No netlink.
    pub fn keeping(kept_away: Duration) -> Result<Self, Error> {
        let (conntrack, route) = (Conntrack::open()?, Route::open()?);
        Ok(Self { conntrack, route, away: HashMap::new(), kept_away })
    }

    /// Counts flows of these listeners that come to an address of this machine, and cuts those of members that are
    /// over. What an address that went elsewhere has left is no flow of ours: after a while it is forgotten, lest it
    /// count for limits when the address comes back.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn take(&mut self, view: &KernelView) -> Result<Open, Error> {
        self.take_by(view, None)
    }

    /// As [`Self::take`], and finds those that these tables, which are in force, would not give their member.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn take_by(&mut self, view: &KernelView, tables: Option<&Tables>) -> Result<Open, Error> {
        let began = Instant::now();
        let here: HashSet<IpAddr> = self.route.addresses()?.into_iter().map(|a| a.address).collect();
        let places = Places::new(view);
        let over = over(view);
        // Flows that came with an address of another node and are silent since: still of use to the next one.
        let mut unseen: HashMap<(u8, SocketAddr, SocketAddr), SocketAddr> = (view.kept.iter())
            .filter(|flow| here.contains(&flow.listener.ip()))
            .map(|flow| ((flow.protocol, flow.client, flow.listener), flow.member))
            .collect();
        let finding = tables.map(|tables| (Choosers::new(view, tables), Keepers::new(view)));
        let mut counts: Vec<u64> = vec![0; view.listeners.len()];
        let mut clients: HashMap<IpAddr, u32> = HashMap::new();
        let mut shares = Shares::new(view);
        let (mut ends, mut left) = (Vec::new(), Vec::new());
        let (mut leaving, mut answered) = (Vec::new(), Vec::new());
        let mut open = Open::default();
        self.away.retain(|ip, _| !here.contains(ip));
        for family in Family::ALL {
            self.conntrack.walk(family == Family::V6, |flow| {
                let Some(ends_of) = Ends::of(flow) else { return };
                let Some(listener) = places.find(flow.protocol, ends_of.listener) else { return };
                if over.contains(&ends_of.member) {
                    if ends.len() < ENDS_MAX {
                        ends.push(*flow);
                    }
                    return;
                }
                let ip = ends_of.listener.ip();
                if !here.contains(&ip) {
                    // As many as listeners have.
                    let since = *self.away.entry(ip).or_insert(began);
                    if began.duration_since(since) >= self.kept_away && left.len() < ENDS_MAX {
                        left.push(*flow);
                    } else if since == began && !flow.is_closed && leaving.len() < ENDS_MAX {
                        leaving.push(*flow);
                    }
                    return;
                }
                if flow.is_closed {
                    return;
                }
                if ends_of.is_answered(flow)
                    && view.listeners[listener].guard.udp_ends_answered
                    && u64::from(flow.seconds_left) > AFTER_ANSWER.as_secs()
                    && answered.len() < ENDS_MAX
                {
                    answered.push(*flow);
                }
                counts[listener] += 1;
                open.flows += 1;
                *open.members.entry(ends_of.member).or_default() += 1;
                *clients.entry(ends_of.client.ip()).or_default() += 1;
                shares.count(listener, ends_of.client.ip());
                let Some((choosers, keepers)) = &finding else { return };
                let Ends { client, listener: at, member, .. } = ends_of;
                unseen.remove(&(flow.protocol, client, at));
                if choosers.finds(listener, client, member) || !keepers.may_have(listener, member) {
                    return;
                }
                if open.kept.len() == KEPT_MAX {
                    open.left_out += 1;
                    return;
                }
                open.kept.push(KeptFlow { protocol: flow.protocol, client, listener: at, member });
            })?;
        }
        if finding.is_some() {
            open.addresses = own_addresses(view, &here);
            let unseen = unseen.into_iter().take(KEPT_MAX.saturating_sub(open.kept.len()));
            open.kept.extend(unseen.map(|((protocol, client, listener), member)| KeptFlow {
                protocol,
                client,
                listener,
                member,
            }));
        }
        open.above = shares.above(&counts);
        open.listeners =
            view.listeners.iter().zip(counts).map(|(l, count)| (l.name.clone(), count)).collect();
        open.clients = heaviest(clients);
        self.conntrack.end(&left)?;
        // Should the address come back before: what ended elsewhere is silent, and counts no more then.
        self.conntrack.end_if_silent(&leaving, self.kept_away)?;
        self.conntrack.end_if_silent(&answered, AFTER_ANSWER)?;
        self.conntrack.end(&ends)?;
        open.cut = ends.len() as u64;
        let of_tcp = ends.iter().filter(|flow| flow.protocol == 6 && !flow.is_closed);
        let local = |ends: &Ends| here.contains(&ends.listener.ip());
        let mut clients: Vec<_> =
            of_tcp.filter_map(Ends::of).filter(local).map(|ends| (ends.client, ends.listener)).collect();
        // Who sends is reset by whom it meets next; who only listens has to be made to.
        if let Err(error) = nudge(&mut clients) {
            tracing::warn!(%error, "kernel path: clients of flows that were cut hear of it when they send next");
        }
        open.took = began.elapsed();
        Ok(open)
    }

    /// Until the next walk, by how long one took.
    pub fn pause(took: Duration) -> Duration {
        (took * SHARE).max(PAUSE_MIN)
    }
}

/// Who is to have no flows; not who has some by another pool.
pub fn over(view: &KernelView) -> HashSet<SocketAddr> {
    let known = || view.known.values().flatten();
    let goes_on: HashSet<SocketAddr> = known().filter(|m| !m.is_over).map(|m| m.address).collect();
    known().filter(|m| m.is_over).map(|m| m.address).filter(|address| !goes_on.contains(address)).collect()
}

/// Of listeners; all of the machine where one listens at all.
pub(crate) fn own_addresses(view: &KernelView, here: &HashSet<IpAddr>) -> Vec<IpAddr> {
    let binds = || view.listeners.iter().flat_map(|listener| &listener.binds);
    let given: Option<HashSet<IpAddr>> =
        binds().map(|bind| bind.ip.filter(|ip| !ip.is_unspecified())).collect();
    match given {
        Some(given) => given.intersection(here).copied().collect(),
        None => here.iter().copied().collect(),
    }
}

pub(crate) fn heaviest(clients: HashMap<IpAddr, u32>) -> Vec<(IpAddr, u32)> {
    let mut clients: Vec<(IpAddr, u32)> = clients.into_iter().collect();
    let order = |(ip, count): &(IpAddr, u32)| (std::cmp::Reverse(*count), *ip);
    if clients.len() > CLIENTS_MAX {
        clients.select_nth_unstable_by_key(CLIENTS_MAX, order);
        clients.truncate(CLIENTS_MAX);
    }
    clients.sort_unstable_by_key(order);
    clients
}

/// Of a flow, whichever side it was first heard from.
struct Ends {
    client: SocketAddr,
    listener: SocketAddr,
    member: SocketAddr,
    /// Known by an answer.
    began_answered: bool,
}

impl Ends {
    /// Of UDP.
    fn is_answered(&self, flow: &TrackedFlow) -> bool {
        flow.protocol == 17 && (self.began_answered || flow.is_answered())
    }

    fn of(flow: &TrackedFlow) -> Option<Self> {
        if flow.has_new_destination() {
            let (client, listener) = (flow.original.source, flow.original.destination);
            return Some(Self { client, listener, member: flow.reply.source, began_answered: false });
        }
        // An answer that another node's flow was picked up by.
        flow.is_rewritten().then_some(Self {
            client: flow.original.destination,
            listener: flow.reply.destination,
            member: flow.original.source,
            began_answered: true,
        })
    }
}
