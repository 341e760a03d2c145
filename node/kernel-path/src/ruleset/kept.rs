//! Flows that other nodes have told of: they go to the member that has them, whatever the table says by now.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use trestle_config::model::KernelMode;
use trestle_dataplane::{KeptFlow, KernelListener, KernelView};
use trestle_netlink::nft::DataType;

use super::{Content, Family, Making, Set, Transport, Value, endpoint, octets, transports};
use crate::places::Places;
use crate::rule::Rule;

/// Members of a listener whose flows go on: those that get new ones, and those that drain or are down but keep what
/// they have.
pub(crate) fn goes_on(view: &KernelView, listener: &KernelListener) -> BTreeSet<SocketAddr> {
    let used = view.pools.get(&listener.pool).into_iter().flatten().map(|member| member.address);
    let known = view.known.get(&listener.pool).into_iter().flatten().filter(|member| !member.is_over);
    used.chain(known.map(|member| member.address)).collect()
}

/// Whose flows may be told and taken, by listener.
pub(crate) struct Keepers {
    /// A listener's members; `None`: its flows can't be kept. For ranges, members are so at any port.
    of: Vec<Option<(BTreeSet<SocketAddr>, bool)>>,
}

impl Keepers {
    pub(crate) fn new(view: &KernelView) -> Self {
        let keepers = |listener: &KernelListener| {
            let ranged = listener.binds.iter().any(|bind| bind.more > 0);
            (listener.settings.mode == KernelMode::Nat).then(|| (goes_on(view, listener), ranged))
        };
        Self { of: view.listeners.iter().map(keepers).collect() }
    }

    pub(crate) fn may_have(&self, listener: usize, member: SocketAddr) -> bool {
        let Some(Some((members, ranged))) = self.of.get(listener) else { return false };
        members.contains(&member) || *ranged && members.iter().any(|of| of.ip() == member.ip())
    }
}

impl Set {
    pub(crate) fn of_flows(family: Family, flows: BTreeMap<Vec<u8>, Value>) -> Self {
        let (address, port) = (family.data_type(), DataType::PORT);
        let key = DataType::concat(&[address, port, address, DataType::PROTOCOL, port]);
        Self { content: Content::Kept(flows), ..Set::empty(key, Some(family.endpoint_type())) }
    }
}

impl Making<'_> {
    /// Always there, so that rules do not change with the first flow.
    pub(super) fn add_kept(&mut self, family: Family) {
        let of_nat = |listener: &&KernelListener| listener.settings.mode == KernelMode::Nat;
        if !self.view.listeners.iter().any(|listener| of_nat(&listener)) {
            return;
        }
        let (places, keepers) = (Places::new(self.view), Keepers::new(self.view));
        let is_kept = |flow: &&KeptFlow| {
            let of_family = [flow.client, flow.listener, flow.member].map(|at| Family::of(at.ip()) == family);
            let listener = places.find(flow.protocol, flow.listener);
            of_family == [true; 3] && listener.is_some_and(|listener| keepers.may_have(listener, flow.member))
        };
        let flows = self.view.kept.iter().filter(is_kept);
        let elements: BTreeMap<Vec<u8>, Value> =
            flows.map(|flow| (key(flow), Value::Bytes(endpoint(flow.member)))).collect();
        self.made.sets.insert(family.names().kept.to_owned(), Set::of_flows(family, elements));
    }

    /// Before a member is chosen.
    pub(super) fn resume(&self, listener: &KernelListener, family: Family) -> Vec<Rule> {
        if listener.settings.mode != KernelMode::Nat {
            return Vec::new();
        }
        let flows = family.names().kept;
        transports(listener).map(|transport: Transport| Rule::Resume { family, transport, flows }).collect()
    }
}

pub(super) fn key(flow: &KeptFlow) -> Vec<u8> {
    let mut key = octets(flow.client.ip());
    key.extend(flow.client.port().to_be_bytes());
    key.extend([0; 2]);
    key.extend(octets(flow.listener.ip()));
    key.extend([flow.protocol, 0, 0, 0]);
    key.extend(flow.listener.port().to_be_bytes());
    key.extend([0; 2]);
    key
}
