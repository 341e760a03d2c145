//! What listeners and members have carried, from what the kernel's counters say.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use trestle_netlink::nft::Counted;

use crate::ruleset::Counts;

/// By listener and by member. A member that stands in several pools is one, and one at a range of ports counts as a
/// whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub listeners: BTreeMap<String, Carried>,
    pub members: BTreeMap<SocketAddr, Carried>,
}

/// Packets are those of IP, and so are bytes: headers count. What is refused counts as received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Begun, or taken over from another node.
    pub flows: u64,
    /// From clients.
    pub received: Counted,
    /// To clients.
    pub sent: Counted,
    /// Flows, or tries, that the firewall turned away.
    pub denied: u64,
    /// Those that were too much.
    pub limited: u64,
}

impl Traffic {
    /// What another table has carried, too.
    pub fn add(&mut self, other: Traffic) {
        for (name, carried) in other.listeners {
            self.listeners.entry(name).or_default().add(&carried);
        }
        for (member, carried) in other.members {
            self.members.entry(member).or_default().add(&carried);
        }
    }
}

impl Carried {
    fn add(&mut self, other: &Carried) {
        let sum = |a: &mut Counted, b: &Counted| {
            a.packets += b.packets;
            a.bytes += b.bytes;
        };
        self.flows += other.flows;
        sum(&mut self.received, &other.received);
        sum(&mut self.sent, &other.sent);
        self.denied += other.denied;
        self.limited += other.limited;
    }
}

/// Sums that go on when a counter begins anew, as all do when the table is replaced. As many entries as there
/// are counters.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    counters: HashMap<String, Entry>,
    /// What firewalls' counters have counted since it was last taken.
    hits: HashMap<u64, u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Of counters before this one.
    before: Counted,
    now: Counted,
}

impl Tally {
    /// All that there are; others are forgotten.
    pub(crate) fn take(&mut self, counters: Vec<(String, Counted)>) {
        self.follow(counters);
    }

    /// Before some end: none is forgotten.
    pub(crate) fn take_last(&mut self, counters: Vec<(String, Counted)>) {
        let others = self.follow(counters);
        self.counters.extend(others);
    }

    /// Those that are not among them.
    fn follow(&mut self, counters: Vec<(String, Counted)>) -> HashMap<String, Entry> {
        let mut last = std::mem::take(&mut self.counters);
        for (name, now) in counters {
            let mut entry = last.remove(&name).unwrap_or_default();
            if now.packets < entry.now.packets || now.bytes < entry.now.bytes {
                entry.end();
            }
            if let Some(Counts::Hits(id)) = Counts::of(&name) {
                let more = now.packets - entry.now.packets;
                if more > 0 {
                    *self.hits.entry(id).or_default() += more;
                }
            }
            entry.now = now;
            self.counters.insert(name, entry);
        }
        last
    }

    /// These have ended: one of the same name begins anew.
    pub(crate) fn end(&mut self, ended: impl Fn(&str) -> bool) {
        let ended = self.counters.iter_mut().filter(|(name, _)| ended(name));
        ended.for_each(|(_, entry)| entry.end());
    }

    /// By counter, what is new since the last call.
    pub(crate) fn take_hits(&mut self) -> HashMap<u64, u64> {
        std::mem::take(&mut self.hits)
    }

    pub(crate) fn traffic(&self) -> Traffic {
        let mut traffic = Traffic::default();
        for (name, Entry { before, now }) in &self.counters {
            let sum = Counted { packets: before.packets + now.packets, bytes: before.bytes + now.bytes };
            let Some(counts) = Counts::of(name) else { continue };
            let carried = match counts {
                Counts::In(listener)
                | Counts::Out(listener)
                | Counts::Begun(listener)
                | Counts::Denied(listener)
                | Counts::Limited(listener) => traffic.listeners.entry(listener.to_owned()).or_default(),
                Counts::To(member) | Counts::From(member) | Counts::Flows(member) => {
                    traffic.members.entry(member).or_default()
                }
                Counts::Hits(_) => continue,
            };
            match counts {
                Counts::In(_) | Counts::To(_) => carried.received = sum,
                Counts::Out(_) | Counts::From(_) => carried.sent = sum,
                Counts::Begun(_) | Counts::Flows(_) => carried.flows = sum.packets,
                Counts::Denied(_) => carried.denied = sum.packets,
                Counts::Limited(_) => carried.limited = sum.packets,
                Counts::Hits(_) => {}
            }
        }
        traffic
    }
}

impl Entry {
    fn end(&mut self) {
        self.before.packets += self.now.packets;
        self.before.bytes += self.now.bytes;
        self.now = Counted::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_go_on_when_counters_begin_anew() {
        let mut tally = Tally::default();
        let of = |packets| Counted { packets, bytes: packets * 100 };
        for packets in [3, 5, 2] {
            tally.take(vec![
                ("in.web".to_owned(), of(packets)),
                ("flows.[fd00::1]:80".to_owned(), of(packets)),
                ("in.".to_owned(), of(1)),
                ("else".to_owned(), of(9)),
            ]);
        }
        let traffic = tally.traffic();
        assert_eq!(traffic.listeners["web"].received, of(7));
        assert_eq!(traffic.members[&"[fd00::1]:80".parse().unwrap()].flows, 7);
        tally.take(Vec::new());
        assert_eq!(tally.traffic(), Traffic::default(), "who is gone is forgotten");
    }

    #[test]
    fn hits_are_told_once_also_of_a_counter_that_began_anew() {
        let mut tally = Tally::default();
        let of = |one: u64, two: u64| {
            [("hits.1", one), ("hits.2", two), ("hits.x", 7)]
                .map(|(name, packets)| (name.to_owned(), Counted { packets, bytes: packets * 60 }))
                .to_vec()
        };
        tally.take(of(3, 0));
        tally.take(of(4, 2));
        assert_eq!(tally.take_hits(), HashMap::from([(1, 4), (2, 2)]));
        tally.take(of(4, 2));
        assert_eq!(tally.take_hits(), HashMap::new());
        // One is read for the last time, and comes again with a count that is higher than the last one.
        tally.take_last(of(5, 2)[..1].to_vec());
        tally.end(|name| name == "hits.1");
        tally.take(of(9, 2));
        assert_eq!(tally.take_hits(), HashMap::from([(1, 10)]));
        // What began anew without a word is seen by a count that is lower.
        tally.take(of(1, 2));
        assert_eq!(tally.take_hits(), HashMap::from([(1, 1)]));
    }
}
