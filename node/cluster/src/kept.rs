//! Flows of the kernel path that a node could not find by the hash alone, since they began under an older table:
//! each node asks the others for theirs once a second, so that any of them can carry such a flow on.
//!
//! A list is told whole, and not again to who has it. A node knows all flows to the addresses that it has: what it
//! does not tell of them is over. Of other addresses what was told once is kept for [`KEEP`], since the node that told it
//! may be the one that died. All that comes in is bounded: a list by
//! [`KEPT_MAX`], and so are all of them together; the latest come first.
//!
//! [`Memory`] decides, without clock and network; [`run`] is the task around it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use trestle_dataplane::{KEPT_MAX, KeptFlow, KeptHere, Plane};
use trestle_proto::v1::KeptFlowsReply;
use trestle_raft_store::types::NodeId;

use crate::raft::RaftNode;
use crate::telling::WITHIN;

/// Between two questions.
const EVERY: Duration = Duration::from_secs(1);

/// How long a flow that nobody tells of any more can be carried on: it may be silent for so long.
const KEEP: Duration = Duration::from_secs(3600);

const IPV6: u8 = 1;
const UDP: u8 = 2;

/// Until `stop`.
pub(crate) async fn run(raft: RaftNode, plane: Plane, stop: CancellationToken) {
    let mut memory = Memory::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(EVERY) => {}
        }
        if plane.carries_by_kernel() {
            let known = memory.versions();
            let replies = tokio::select! {
                () = stop.cancelled() => return,
                replies = raft.kept_flows(&known, WITHIN) => replies,
            };
            memory.take(replies, Instant::now());
        } else {
            memory = Memory::default();
        }
        plane.set_kernel_kept_elsewhere(memory.flows());
    }
}

/// What is told to who asks.
pub(crate) fn told(here: &KeptHere, known: &[u64]) -> KeptFlowsReply {
    let version = here.version;
    if known.contains(&version) {
        return KeptFlowsReply { version, known: true, ..KeptFlowsReply::default() };
    }
    let octets = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    };
    let addresses = here.addresses.iter().map(octets).collect();
    KeptFlowsReply { version, known: false, flows: encode(&here.flows).into(), addresses }
}

fn encode(flows: &[KeptFlow]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(flows.len() * 19);
    for flow in flows {
        let (v6, udp) = (u8::from(flow.client.is_ipv6()) * IPV6, u8::from(flow.protocol == 17) * UDP);
        bytes.push(v6 | udp);
        for at in [flow.client, flow.listener, flow.member] {
            match at.ip() {
                IpAddr::V4(ip) => bytes.extend(ip.octets()),
                IpAddr::V6(ip) => bytes.extend(ip.octets()),
            }
            bytes.extend(at.port().to_be_bytes());
        }
    }
    bytes
}

/// `None`: it is no list of flows, or longer than one may be.
fn decode(mut bytes: &[u8]) -> Option<Vec<KeptFlow>> {
    let mut flows = Vec::new();
    while let Some(kind) = take::<1>(&mut bytes) {
        if kind[0] > IPV6 | UDP || flows.len() == KEPT_MAX {
            return None;
        }
        let mut end = || -> Option<SocketAddr> {
            let ip: IpAddr = match kind[0] & IPV6 {
                0 => take::<4>(&mut bytes)?.into(),
                _ => take::<16>(&mut bytes)?.into(),
            };
            Some(SocketAddr::new(ip, u16::from_be_bytes(take::<2>(&mut bytes)?)))
        };
        let (client, listener, member) = (end()?, end()?, end()?);
        let protocol = if kind[0] & UDP == 0 { 6 } else { 17 };
        flows.push(KeptFlow { protocol, client, listener, member });
    }
    bytes.is_empty().then_some(flows)
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => Some(<[u8; 4]>::try_from(octets).ok()?.into()),
        _ => Some(<[u8; 16]>::try_from(octets).ok()?.into()),
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*first)
}

/// What the others have told.
#[derive(Debug, Default)]
struct Memory {
    lists: HashMap<NodeId, List>,
}

#[derive(Debug)]
struct List {
    version: u64,
    /// Of those that stood in it last, and of those that do not any more.
    flows: BTreeMap<KeptFlow, Instant>,
    told: Vec<KeptFlow>,
}

impl Memory {
    fn versions(&self) -> Vec<u64> {
        self.lists.values().map(|list| list.version).collect()
    }

    /// One that can't be read is as good as none: it is asked for again.
    fn take(&mut self, replies: Vec<(NodeId, Option<KeptFlowsReply>)>, now: Instant) {
        for (node, reply) in replies {
            let Some(reply) = reply else { continue };
            if reply.known {
                if let Some(list) = self.lists.get_mut(&node).filter(|list| list.version == reply.version) {
                    // Not those that another node has since said to be over.
                    let flows = &mut list.flows;
                    list.told.iter().for_each(|flow| {
                        flows.entry(*flow).and_modify(|at| *at = now);
                    });
                }
                continue;
            }
            let Some(told) = decode(&reply.flows) else {
                tracing::warn!(node, "flows of the kernel path that a node has told of can't be read");
                continue;
            };
            let over: BTreeSet<IpAddr> = reply.addresses.iter().filter_map(|ip| address(ip)).collect();
            for list in self.lists.values_mut() {
                list.flows.retain(|flow, _| !over.contains(&flow.listener.ip()));
            }
            let flows = self.lists.remove(&node).map(|list| list.flows).unwrap_or_default();
            let mut list = List { version: reply.version, flows, told };
            list.flows.extend(list.told.iter().map(|flow| (*flow, now)));
            self.lists.insert(node, list);
        }
        for list in self.lists.values_mut() {
            list.flows.retain(|_, at| now.duration_since(*at) < KEEP);
            if list.flows.len() > KEPT_MAX {
                let mut latest: Vec<(Instant, KeptFlow)> =
                    list.flows.iter().map(|(flow, at)| (*at, *flow)).collect();
                latest.sort_unstable_by(|a, b| b.cmp(a));
                list.flows = latest.into_iter().take(KEPT_MAX).map(|(at, flow)| (flow, at)).collect();
            }
        }
    }

    /// Of each client's flow the member that was told last, sorted.
    fn flows(&self) -> Vec<KeptFlow> {
        let mut latest: BTreeMap<(u8, SocketAddr, SocketAddr), (Instant, SocketAddr)> = BTreeMap::new();
        for (flow, at) in self.lists.values().flat_map(|list| &list.flows) {
            let key = (flow.protocol, flow.client, flow.listener);
            let entry = latest.entry(key).or_insert((*at, flow.member));
            *entry = (*entry).max((*at, flow.member));
        }
        let mut flows: Vec<(Instant, KeptFlow)> = latest
            .into_iter()
            .map(|((protocol, client, listener), (at, member))| {
                (at, KeptFlow { protocol, client, listener, member })
            })
            .collect();
        if flows.len() > KEPT_MAX {
            flows.sort_unstable_by(|a, b| b.cmp(a));
            flows.truncate(KEPT_MAX);
        }
        let mut flows: Vec<KeptFlow> = flows.into_iter().map(|(_, flow)| flow).collect();
        flows.sort_unstable();
        flows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(client: &str, member: &str) -> KeptFlow {
        let listener = if client.starts_with('[') { "[2001:db8::1]:90" } else { "198.18.0.100:90" };
        let at = |text: &str| text.parse().unwrap();
        KeptFlow { protocol: 6, client: at(client), listener: at(listener), member: at(member) }
    }

    fn reply(version: u64, flows: &[KeptFlow]) -> Option<KeptFlowsReply> {
        Some(told(&KeptHere { version, flows: flows.to_vec(), ..KeptHere::default() }, &[]))
    }

    #[test]
    fn flows_are_read_as_they_were_told_and_what_is_cut_off_is_not() {
        let udp = KeptFlow { protocol: 17, ..flow("198.18.0.7:53", "198.19.9.1:53") };
        let flows =
            [flow("198.18.0.1:1000", "198.19.9.1:80"), flow("[2001:db8::7]:9", "[2001:db8::8]:80"), udp];
        let bytes = encode(&flows);
        assert_eq!(decode(&bytes), Some(flows.to_vec()));
        for length in (1..bytes.len()).filter(|length| ![19, 19 + 55].contains(length)) {
            assert_eq!(decode(&bytes[..length]), None, "{length}");
        }
        assert_eq!(decode(&[4; 19]), None, "of a kind that there is not");
        assert_eq!(decode(&[0; 19 * (KEPT_MAX + 1)]), None, "too many");
    }

    #[test]
    fn a_flow_is_kept_after_its_node_died_and_for_a_time_after_it_left_the_list() {
        let (a, b) = (flow("198.18.0.1:1", "198.19.9.1:80"), flow("198.18.0.1:2", "198.19.9.1:80"));
        let (mut memory, begin) = (Memory::default(), Instant::now());
        memory.take(vec![(1, reply(7, &[a, b]))], begin);
        assert_eq!((memory.versions(), memory.flows()), (vec![7], vec![a, b]));
        // It has the list: told again without it, it counts as told.
        let half = begin + KEEP / 2;
        memory.take(
            vec![(1, Some(told(&KeptHere { version: 7, flows: vec![a, b], ..KeptHere::default() }, &[7])))],
            half,
        );
        memory.take(vec![(1, reply(8, &[b]))], half);
        memory.take(vec![(1, None)], begin + KEEP);
        assert_eq!(memory.flows(), [a, b], "the node is dead");
        memory.take(vec![(1, reply(8, &[b]))], begin + KEEP);
        memory.take(vec![(1, None)], half + KEEP);
        assert_eq!(memory.flows(), [b]);
        memory.take(vec![(1, None)], begin + KEEP + KEEP);
        assert_eq!(memory.flows(), []);
    }

    #[test]
    fn who_has_the_address_knows_which_flows_are_over() {
        let (a, b) = (flow("198.18.0.1:1", "198.19.9.1:80"), flow("198.18.0.1:2", "198.19.9.1:80"));
        let elsewhere = flow("[2001:db8::7]:9", "[2001:db8::8]:80");
        let (mut memory, now) = (Memory::default(), Instant::now());
        memory.take(vec![(1, reply(7, &[a, b, elsewhere]))], now);
        let addresses = vec!["198.18.0.100".parse().unwrap()];
        let owner = told(&KeptHere { version: 8, flows: vec![b], addresses }, &[]);
        memory.take(vec![(2, Some(owner)), (1, None)], now);
        assert_eq!(memory.flows(), [b, elsewhere]);
    }

    #[test]
    fn who_told_last_is_right_about_the_member() {
        let (old, new) = (flow("198.18.0.1:1", "198.19.9.2:80"), flow("198.18.0.1:1", "198.19.9.1:80"));
        let (mut memory, now) = (Memory::default(), Instant::now());
        memory.take(vec![(1, reply(7, &[old]))], now);
        memory.take(vec![(2, reply(9, &[new]))], now + EVERY);
        assert_eq!(memory.flows(), [new]);
    }
}
