//! The flows that the table remembers: they are counted, and those of members that are not to have any are forgotten,
//! so that what comes of them next meets another member, which resets it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use trestle_dataplane::{KEPT_MAX, KeptFlow, KernelView};
use trestle_netlink::nft::{Batch, Element};
use trestle_netlink::nudge::nudge;

use super::{Direct, FLOWS_A_PIECE, table};
use crate::census::{self, Open};
use crate::chooser::Choosers;
use crate::own::Error;
use crate::places::Places;
use crate::ruleset::{Family, goes_on};

/// How long flows are remembered that came to an address which went elsewhere: it may come right back, and meanwhile
/// they may have ended unseen.
const KEPT_AWAY: Duration = Duration::from_secs(10);

/// Listeners' addresses that flows came to and that are not here now, and since when that is known.
pub(super) type Away = HashMap<IpAddr, Instant>;

struct Remembered {
    client: SocketAddr,
    listener: SocketAddr,
    protocol: u8,
    member: IpAddr,
}

impl Remembered {
    /// As rules write it.
    fn read(key: &[u8], way: &[u8]) -> Option<Self> {
        // Behind a port and a device.
        let (_, member) = way.split_first_chunk::<8>()?;
        let length = member.len();
        if key.len() != 2 * length + 12 {
            return None;
        }
        let port = |at: usize| u16::from_be_bytes([key[at], key[at + 1]]);
        let (client, listener) = (ip(&key[..length])?, ip(&key[length + 4..2 * length + 4])?);
        Some(Self {
            client: SocketAddr::new(client, port(length)),
            listener: SocketAddr::new(listener, port(2 * length + 8)),
            protocol: key[2 * length + 4],
            member: ip(member)?,
        })
    }
}

/// Of a remembered flow's key.
pub(super) fn listener_of(key: &[u8]) -> Option<IpAddr> {
    let length = key.len().checked_sub(12)? / 2;
    ip(key.get(length + 4..2 * length + 4)?)
}

/// By its length.
fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(<[u8; 4]>::try_from(bytes).ok()?.into()),
        16 => Some(<[u8; 16]>::try_from(bytes).ok()?.into()),
        _ => None,
    }
}

/// Of a listener: its pool's members by their addresses, and whose flows may be told and taken.
struct Members {
    by_ip: HashMap<IpAddr, SocketAddr>,
    keeps: BTreeSet<IpAddr>,
}

impl Direct {
    /// Counts flows, all of whose listeners are of mode `dsr`, at addresses of this machine; forgets those of members
    /// that are over, and those to addresses that went elsewhere; finds those that the tables in force would not give
    /// their member.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn take_flows(&mut self, view: &KernelView) -> Result<Open, Error> {
        let began = Instant::now();
        let mut open = Open::default();
        let Some(tables) = self.tables() else { return Ok(open) };
        let here: HashSet<IpAddr> = self.route.addresses()?.into_iter().map(|a| a.address).collect();
        self.away.retain(|ip, _| !here.contains(ip));
        let over: HashSet<IpAddr> = census::over(view).into_iter().map(|member| member.ip()).collect();
        let (places, choosers) = (Places::new(view), Choosers::new(view, &tables));
        let members: Vec<Members> = view
            .listeners
            .iter()
            .map(|listener| {
                let known = view.known.get(&listener.pool).into_iter().flatten();
                let by_ip = known.map(|member| (member.address.ip(), member.address)).collect();
                let keeps = goes_on(view, listener).into_iter().map(|member| member.ip()).collect();
                Members { by_ip, keeps }
            })
            .collect();
        // Told by others and silent here since: still of use to the next one.
        let mut unseen: HashMap<(u8, SocketAddr, SocketAddr), SocketAddr> = (view.kept.iter())
            .filter(|flow| here.contains(&flow.listener.ip()))
            .filter(|flow| places.find(flow.protocol, flow.listener).is_some())
            .map(|flow| ((flow.protocol, flow.client, flow.listener), flow.member))
            .collect();
        let mut counts = vec![0; view.listeners.len()];
        let mut clients: HashMap<IpAddr, u32> = HashMap::new();
        let mut cut = Vec::new();
        for family in Family::ALL {
            let of = family.flows();
            for map in [of.open, of.ending] {
                let listed = self.own.nft.elements(table(&self.own.name()), map)?.unwrap_or_default();
                let mut gone = Vec::new();
                for element in listed {
                    let value = element.value.as_deref().unwrap_or_default();
                    let Some(flow) = Remembered::read(&element.key, value) else { continue };
                    if over.contains(&flow.member) {
                        if map == of.open {
                            open.cut += 1;
                            if flow.protocol == 6 {
                                cut.push((flow.client, flow.listener));
                            }
                        }
                        gone.push(element.key);
                        continue;
                    }
                    let at = flow.listener.ip();
                    if !here.contains(&at) {
                        let since = *self.away.entry(at).or_insert(began);
                        if began.duration_since(since) >= KEPT_AWAY {
                            gone.push(element.key);
                        }
                        continue;
                    }
                    let Some(listener) = places.find(flow.protocol, flow.listener) else { continue };
                    unseen.remove(&(flow.protocol, flow.client, flow.listener));
                    if map == of.ending {
                        continue;
                    }
                    counts[listener] += 1;
                    open.flows += 1;
                    *clients.entry(flow.client.ip()).or_default() += 1;
                    let Members { by_ip, keeps } = &members[listener];
                    let Some(member) = by_ip.get(&flow.member) else { continue };
                    *open.members.entry(*member).or_default() += 1;
                    if choosers.finds(listener, flow.client, *member) || !keeps.contains(&flow.member) {
                        continue;
                    }
                    if open.kept.len() == KEPT_MAX {
                        open.left_out += 1;
                        continue;
                    }
                    let Remembered { client, listener, protocol, .. } = flow;
                    open.kept.push(KeptFlow { protocol, client, listener, member: *member });
                }
                self.forget(map, &gone)?;
            }
        }
        let room = KEPT_MAX.saturating_sub(open.kept.len());
        open.kept.extend(
            unseen.into_iter().take(room).map(|((protocol, client, listener), member)| KeptFlow {
                protocol,
                client,
                listener,
                member,
            }),
        );
        open.addresses = census::own_addresses(view, &here);
        open.listeners =
            view.listeners.iter().zip(counts).map(|(l, count)| (l.name.clone(), count)).collect();
        open.clients = census::heaviest(clients);
        cut.retain(|(_, listener)| here.contains(&listener.ip()));
        if let Err(error) = nudge(&mut cut) {
            tracing::warn!(%error, "kernel path: clients of flows that were cut hear of it when they send next");
        }
        open.took = began.elapsed();
        Ok(open)
    }

    /// Some may have ended by themselves meanwhile.
    fn forget(&mut self, map: &str, keys: &[Vec<u8>]) -> Result<(), Error> {
        for some in keys.chunks(FLOWS_A_PIECE) {
            match self.forget_all(map, some) {
                Err(Error::Netlink(error)) if error.is(Errno::NOENT) => {
                    for one in some.chunks(1) {
                        match self.forget_all(map, one) {
                            Err(Error::Netlink(error)) if error.is(Errno::NOENT) => {}
                            result => result?,
                        }
                    }
                }
                result => result?,
            }
        }
        Ok(())
    }

    fn forget_all(&mut self, map: &str, keys: &[Vec<u8>]) -> Result<(), Error> {
        let elements: Vec<Element<'_>> = keys.iter().map(|key| Element::new(key)).collect();
        let mut batch = Batch::new();
        batch.delete_elements(table(&self.own.name()), map, &elements);
        Ok(self.own.nft.commit(&batch.finish())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_read_as_packets_write_it() {
        let key = [
            &[198, 18, 1, 50][..],
            &40_000u16.to_be_bytes(),
            &[0; 2],
            &[198, 18, 1, 100],
            &[6, 0, 0, 0],
            &80u16.to_be_bytes(),
            &[0; 2],
        ]
        .concat();
        let flow = Remembered::read(&key, &[0, 80, 0, 0, 2, 0, 0, 0, 198, 18, 1, 10]).unwrap();
        assert_eq!(flow.client, "198.18.1.50:40000".parse().unwrap());
        assert_eq!(flow.listener, "198.18.1.100:80".parse().unwrap());
        assert_eq!((flow.protocol, flow.member), (6, "198.18.1.10".parse::<IpAddr>().unwrap()));
        assert!(Remembered::read(&key, &[0; 24]).is_none());
        assert!(Remembered::read(&key[1..], &[0; 12]).is_none());
        assert!(Remembered::read(&[], &[]).is_none());
    }
}
