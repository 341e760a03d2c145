//! Following the fence from another process: the state after each transaction, not samples of it.

use std::{
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
};

use super::{Listing, TABLE, Timed};
use crate::{
    clock,
    nft::{Event, ListedElement, Nft, Watch},
    route::read_ip,
    socket::Error,
};

/// Changes of one transaction; what is beyond makes it read everything anew.
const PENDING_MAX: usize = 16_384;

/// A state of the fence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// When it was read, by CLOCK_BOOTTIME: it took effect before.
    pub at: u64,
    /// `None`: there is no fence.
    pub listing: Option<Listing>,
    /// Whether states before it may be missing: events were lost, or it is the first.
    pub gap: bool,
}

/// Keeps the fence's state by the kernel's events. Elements that ended by themselves stay in it: what is
/// live at a moment is what [`Timed::until`] says.
#[derive(Debug)]
pub struct Follower {
    watch: Watch,
    nft: Nft,
    listing: Option<Listing>,
    pending: Vec<Event>,
}

impl Follower {
    /// From this network namespace, with the first state.
    pub fn start() -> Result<(Self, State), Error> {
        let (watch, mut nft) = (Watch::start()?, Nft::open()?);
        let listing = Listing::read(&mut nft)?;
        let state = State { at: clock::now(), listing: listing.clone(), gap: true };
        Ok((Self { watch, nft, listing, pending: Vec::new() }, state))
    }

    /// The states since the last call, without waiting; empty if nothing has changed.
    pub fn read(&mut self) -> Result<Vec<State>, Error> {
        let events = match self.watch.read() {
            Ok(events) => events,
            Err(Error::EventsLost) => return self.read_anew(),
            Err(error) => return Err(error),
        };
        let mut states = Vec::new();
        for event in events {
            if matches!(event, Event::Generation { .. }) {
                if self.settle() {
                    states.push(State { at: clock::now(), listing: self.listing.clone(), gap: false });
                }
            } else if event.table() == Some(TABLE.name) {
                if self.pending.len() == PENDING_MAX {
                    return self.read_anew();
                }
                self.pending.push(event);
            }
        }
        Ok(states)
    }

    fn read_anew(&mut self) -> Result<Vec<State>, Error> {
        self.pending.clear();
        self.listing = Listing::read(&mut self.nft)?;
        Ok(vec![State { at: clock::now(), listing: self.listing.clone(), gap: true }])
    }

    /// Takes the changes of a transaction over; `false` if there were none.
    fn settle(&mut self) -> bool {
        let now = clock::now();
        let any = !self.pending.is_empty();
        for event in self.pending.drain(..) {
            apply(&mut self.listing, event, now);
        }
        any
    }
}

impl AsFd for Follower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

fn apply(listing: &mut Option<Listing>, event: Event, now: u64) {
    match event {
        Event::TableAdded(_) => _ = listing.get_or_insert_default(),
        Event::TableDeleted(_) => *listing = None,
        Event::ElementsAdded { set, elements, .. } => {
            let listing = listing.get_or_insert_default();
            for element in elements {
                let Some(address) = read_ip(&element.key) else { continue };
                remove(listing, &set, Some(address));
                add(listing, &set, address, &element, now);
            }
        }
        Event::ElementsDeleted { set, elements, .. } => {
            let Some(listing) = listing else { return };
            if elements.is_empty() {
                remove(listing, &set, None);
            }
            for address in elements.iter().filter_map(|element| read_ip(&element.key)) {
                remove(listing, &set, Some(address));
            }
        }
        Event::SetDeleted { set, .. } => {
            if let Some(listing) = listing {
                remove(listing, &set, None);
            }
        }
        _ => {}
    }
}

fn add(listing: &mut Listing, set: &str, address: IpAddr, element: &ListedElement, now: u64) {
    let left = element.expires.or(element.timeout);
    let timed = Timed { address, until: left.map_or(u64::MAX, |left| clock::after(now, left)) };
    match set {
        "vips4" | "vips6" => listing.fenced.push(address),
        "live4" | "live6" => listing.live.push(timed),
        "quiet4" | "quiet6" => listing.quiet.push(timed),
        _ => {}
    }
}

/// One address of a set, or all.
fn remove(listing: &mut Listing, set: &str, address: Option<IpAddr>) {
    let ipv6 = set.ends_with('6');
    let goes = |found: IpAddr| address.map_or(found.is_ipv6() == ipv6, |address| address == found);
    match set {
        "vips4" | "vips6" => listing.fenced.retain(|address| !goes(*address)),
        "live4" | "live6" => listing.live.retain(|timed| !goes(timed.address)),
        "quiet4" | "quiet6" => listing.quiet.retain(|timed| !goes(timed.address)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn elements(set: &str, addresses: &[[u8; 4]], added: bool) -> Event {
        let (table, set) = (TABLE.name.to_owned(), set.to_owned());
        let timeout = Some(Duration::from_nanos(5));
        let element =
            |key: &[u8; 4]| ListedElement { key: key.to_vec(), value: None, timeout, expires: None };
        let elements = addresses.iter().map(element).collect();
        if added {
            Event::ElementsAdded { table, set, elements }
        } else {
            Event::ElementsDeleted { table, set, elements }
        }
    }

    #[test]
    fn an_extended_element_is_there_once_and_a_flush_takes_all() {
        let mut listing = None;
        let address = [198, 18, 0, 1];
        for added in [true, false, true, true] {
            apply(&mut listing, elements("live4", &[address], added), 10);
        }
        let live = Timed { address: address.into(), until: 15 };
        assert_eq!(listing.as_ref().unwrap().live, [live]);
        apply(&mut listing, elements("quiet4", &[[198, 18, 0, 2]], true), 10);
        apply(&mut listing, elements("live4", &[], false), 10);
        let listing = listing.unwrap();
        assert!(listing.live.is_empty() && listing.quiet.len() == 1);
    }
}
