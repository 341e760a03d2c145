//! What the kernel should hold, as a value: sets, chains and their rules, made from what the data plane wants.
//!
//! A packet's way, by chain:
//!
//! | chain | hook | what it does |
//! | --- | --- | --- |
//! | `arrive` | prerouting, NAT | finds the listener by address, protocol and port, and goes to its chain |
//! | `to4.NAME`, `to6.NAME` | | a flow that another node has told of goes to its member; else picks a slot by the client's hash, and rewrites the destination |
//! | `to4r.NAME`, `to6r.NAME` | | the same for ranges: the port stays |
//! | `first` | prerouting, before NAT | drops what banned clients send to listeners; counts what comes from clients and from members; a flow's first packet goes to its listener's guard |
//! | `leave` | postrouting, NAT | full-nat: rewrites the source; answers of flows that another node carried: from the listener's address |
//! | `last` | postrouting, after NAT | counts what goes to members and to clients |
//! | `stray_in`, `stray_on` | input, forward | drops what belongs to no flow, rather than have somebody reset one |
//!
//! NAT chains see the first packet of a flow that this machine knows; the flow's others are rewritten alike.

mod counts;
mod direct;
mod guards;
mod kept;
mod offenders;
mod patch;

pub(crate) use counts::Counts;
pub(crate) use kept::{Keepers, goes_on};
pub(crate) use offenders::offenders_of;
pub use patch::Patch;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use trestle_config::model::{Bind, KernelMode};
use trestle_dataplane::{KernelListener, KernelMember, KernelView, Ranges, maglev};
use trestle_netlink::nft::{DataType, Object, ObjectKind};

use crate::rule::{Ports, Rule, Then, octets};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ruleset {
    pub sets: BTreeMap<String, Set>,
    pub chains: BTreeMap<String, Chain>,
    pub objects: BTreeMap<String, Object>,
    /// What can't be as one would wish, in words for operators.
    pub remarks: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    pub key: DataType,
    /// Keys stand for all up to the next end.
    pub interval: bool,
    /// Of a map.
    pub value: Option<DataType>,
    /// Of a map to objects.
    pub objects: Option<ObjectKind>,
    /// Packets add to it, up to so many elements; what is in it is not ours to keep.
    pub metered: Option<u32>,
    /// Elements end by themselves.
    pub timeout: bool,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    Elements(BTreeMap<Vec<u8>, Value>),
    /// Addresses of the family.
    Ranges(Arc<Ranges>, Family),
    /// From 0 on: the member of each slot.
    Slots(Arc<SlotTable>),
    /// Flows, each with its member.
    Kept(BTreeMap<Vec<u8>, Value>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    None,
    Bytes(Vec<u8>),
    /// None: an interval ends before it.
    End,
    /// The chain to go to.
    Chain(String),
    /// The object to apply.
    Object(String),
}

/// A pool's Maglev table, for members of one family.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotTable {
    pub pool: String,
    pub family: Family,
    pub members: Vec<KernelMember>,
    /// Of each slot, a place in `members`.
    pub slots: Box<[u32]>,
    /// For direct server return: values are ways, whose device is not said yet.
    pub direct: bool,
}

impl Set {
    pub(crate) fn empty(key: DataType, value: Option<DataType>) -> Self {
        let content = Content::Elements(BTreeMap::new());
        Self { key, interval: false, value, objects: None, metered: None, timeout: false, content }
    }

    pub(crate) fn of_slots(table: Arc<SlotTable>) -> Self {
        let family = table.family;
        let value = match table.direct {
            false => family.endpoint_type(),
            true => family.way_type(),
        };
        let (value, content) = (Some(value), Content::Slots(table));
        Self {
            key: DataType::NUMBER,
            interval: false,
            value,
            objects: None,
            metered: None,
            timeout: false,
            content,
        }
    }
}

impl Content {
    /// Each set of which changes in pieces: its parts are right one by one.
    pub(crate) fn is_in_pieces(&self) -> bool {
        !matches!(self, Self::Elements(_))
    }

    /// First and last addresses, as numbers.
    pub(crate) fn ranges(&self) -> Box<dyn Iterator<Item = (u128, u128)> + '_> {
        match self {
            Self::Ranges(ranges, Family::V4) => {
                Box::new(ranges.v4().map(|(first, last)| (first.into(), last.into())))
            }
            Self::Ranges(ranges, Family::V6) => Box::new(ranges.v6()),
            Self::Elements(_) | Self::Slots(_) | Self::Kept(_) => Box::new(std::iter::empty()),
        }
    }
}

impl SlotTable {
    /// The address and port of a slot's member, as the map's value.
    pub(crate) fn value(&self, slot: usize) -> Vec<u8> {
        let address = self.members[self.slots[slot] as usize].address;
        match self.direct {
            false => endpoint(address),
            true => direct::way(address.port(), 0, address.ip()),
        }
    }

    /// From a value.
    pub(crate) fn member(&self, value: &[u8]) -> Option<SocketAddr> {
        let (ip, port) = match self.direct {
            false => value.split_at_checked(self.family.length())?,
            true => (value.get(8..)?, value),
        };
        let ip: IpAddr = match ip.len() {
            4 => <[u8; 4]>::try_from(ip).ok()?.into(),
            16 => <[u8; 16]>::try_from(ip).ok()?.into(),
            _ => return None,
        };
        let port = port.first_chunk::<2>()?;
        Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub hook: Option<Base>,
    pub rules: Vec<Rule>,
}

/// A hook of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    Arrive,
    Leave,
    StrayIn,
    StrayOn,
    First,
    Last,
}

/// Of a listener's ports and answers that stand one by one in a map.
const ANSWERS_MAX: usize = 65_536;

impl Ruleset {
    /// Tables of `before` whose pool has not changed are taken over.
    pub fn new(view: &KernelView, before: Option<&Ruleset>) -> Self {
        let mut making = Making { view, before, made: Self::default() };
        for family in Family::ALL {
            making.add_banned(family);
            making.add_family(family);
            making.add_kept(family);
        }
        making.add_hooks();
        making.add_counts();
        making.add_guards();
        making.made
    }

    pub fn tables(&self) -> impl Iterator<Item = (&str, &Arc<SlotTable>)> {
        self.sets.iter().filter_map(|(name, set)| match &set.content {
            Content::Slots(table) => Some((name.as_str(), table)),
            Content::Elements(_) | Content::Ranges(..) | Content::Kept(_) => None,
        })
    }
}

/// Those that clients of these listeners come by, as far as an address says so.
pub fn families(view: &KernelView) -> Vec<Family> {
    let binds = || view.listeners.iter().flat_map(|listener| &listener.binds);
    // All addresses: who has IPv4 alone is served as well.
    let of = |bind: &Bind| bind.ip.filter(|ip| !ip.is_unspecified()).map_or(Family::V4, Family::of);
    Family::ALL.into_iter().filter(|family| binds().any(|bind| of(bind) == *family)).collect()
}

/// Sets and maps of a family, by what they are for.
struct Names {
    by_address: &'static str,
    by_port: &'static str,
    own: &'static str,
    own_ports: &'static str,
    masked: &'static str,
    masked_ports: &'static str,
    answers: &'static str,
    banned: &'static str,
    kept: &'static str,
}

impl Family {
    pub(crate) const ALL: [Family; 2] = [Family::V4, Family::V6];

    fn names(self) -> Names {
        match self {
            Self::V4 => Names {
                by_address: "by_address4",
                by_port: "by_port4",
                own: "own4",
                own_ports: "own_ports4",
                masked: "masked4",
                masked_ports: "masked_ports4",
                answers: "answers4",
                banned: "banned4",
                kept: "kept4",
            },
            Self::V6 => Names {
                by_address: "by_address6",
                by_port: "by_port6",
                own: "own6",
                own_ports: "own_ports6",
                masked: "masked6",
                masked_ports: "masked_ports6",
                answers: "answers6",
                banned: "banned6",
                kept: "kept6",
            },
        }
    }

    fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }

    pub(crate) fn data_type(self) -> DataType {
        match self {
            Self::V4 => DataType::IPV4,
            Self::V6 => DataType::IPV6,
        }
    }

    /// Of an address and a port.
    pub(crate) fn endpoint_type(self) -> DataType {
        DataType::concat(&[self.data_type(), DataType::PORT])
    }

    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// The name of the map that has a listener's table.
pub(crate) fn table_of(listener: &KernelListener, family: Family) -> String {
    format!("slots{}.{}.{}", family.digit(), listener.settings.slots, listener.pool)
}

struct Making<'a> {
    view: &'a KernelView,
    before: Option<&'a Ruleset>,
    made: Ruleset,
}

impl Making<'_> {
    /// Always there: who is banned changes without a word on listeners.
    fn add_banned(&mut self, family: Family) {
        let banned = Arc::new(self.view.banned.iter().copied().collect());
        let content = Content::Ranges(banned, family);
        let set = Set { interval: true, content, ..Set::empty(family.data_type(), None) };
        self.made.sets.insert(family.names().banned.to_owned(), set);
    }

    fn add_family(&mut self, family: Family) {
        let view = self.view;
        for listener in &view.listeners {
            let binds: Vec<Bind> =
                listener.binds.iter().copied().filter(|bind| is_of(bind, family)).collect();
            if binds.is_empty() {
                continue;
            }
            let table = self.add_table(listener, family);
            for keeps_port in [false, true] {
                let binds = || binds.iter().filter(move |bind| (bind.more > 0) == keeps_port);
                if binds().next().is_none() {
                    continue;
                }
                let chain = self.add_chain(listener, family, table.as_ref(), keeps_port);
                for bind in binds() {
                    self.add_bind(listener, family, bind, &chain);
                }
            }
            if listener.settings.mode == KernelMode::Nat {
                self.add_answers(listener, family, &binds);
            }
        }
    }

    /// The name of its map; `None`: there is nobody to go to.
    fn add_table(&mut self, listener: &KernelListener, family: Family) -> Option<String> {
        let slots = listener.settings.slots;
        let name = table_of(listener, family);
        if self.made.sets.contains_key(&name) {
            return Some(name);
        }
        let of_family = |member: &&KernelMember| Family::of(member.address.ip()) == family;
        let all = self.view.pools.get(&listener.pool).map(Vec::as_slice).unwrap_or_default();
        let members: Vec<KernelMember> = all.iter().filter(of_family).cloned().collect();
        if members.is_empty() {
            return None;
        }
        let before = self.before.and_then(|before| before.sets.get(&name)).map(|set| &set.content);
        let table = match before {
            Some(Content::Slots(table)) if table.members == members => Arc::clone(table),
            _ => {
                let named: Vec<(&str, u32)> = members.iter().map(|m| (m.name.as_str(), m.weight)).collect();
                let slots = maglev(slots, &named);
                let direct = listener.settings.mode == KernelMode::Dsr;
                Arc::new(SlotTable { pool: listener.pool.clone(), family, members, slots, direct })
            }
        };
        self.made.sets.insert(name.clone(), Set::of_slots(table));
        Some(name)
    }

    fn add_chain(
        &mut self,
        listener: &KernelListener,
        family: Family,
        table: Option<&String>,
        keeps_port: bool,
    ) -> String {
        let ranged = if keeps_port { "r" } else { "" };
        let name = format!("to{}{ranged}.{}", family.digit(), listener.name);
        let mut rules = self.resume(listener, family);
        // Where nobody is to go to, this machine's own stack refuses.
        if let Some(table) = table {
            let choose = Rule::Choose {
                family,
                table: table.clone(),
                slots: listener.settings.slots,
                seed: self.view.seed,
                hash: listener.settings.hash,
                keeps_port,
            };
            rules.insert(0, Rule::Count(counts::begun_by(&listener.name)));
            rules.extend([choose, Rule::Drop]);
        }
        self.made.chains.insert(name.clone(), Chain { hook: None, rules });
        name
    }

    fn add_bind(&mut self, listener: &KernelListener, family: Family, bind: &Bind, chain: &str) {
        let address = bind.ip.filter(|ip| !ip.is_unspecified());
        let names = family.names();
        let full = listener.settings.mode == KernelMode::FullNat;
        for transport in transports(listener) {
            if bind.more > 0 {
                let last = *bind.ports().end();
                let to = Ports { family, address, transport, first: bind.port, last };
                let goes = Rule::ToPorts { to: to.clone(), then: Then::Goto(chain.to_owned()) };
                let stray = Rule::ToPorts { to: to.clone(), then: Then::DropStray };
                let banned = Then::DropBanned(family.names().banned);
                self.chain(Base::First).push(Rule::ToPorts { to: to.clone(), then: banned });
                self.chain(Base::Arrive).push(goes);
                self.chain(Base::StrayIn).push(stray);
                if full {
                    self.chain(Base::Leave).push(Rule::MasqueradePorts { to });
                }
                continue;
            }
            let (chains, own, masked) = match address {
                Some(_) => (names.by_address, names.own, names.masked),
                None => (names.by_port, names.own_ports, names.masked_ports),
            };
            let key = key(address, transport, bind.port);
            let kind = key_type(address.map(|_| family));
            self.add(chains, kind, Some(DataType::CHAIN), key.clone(), Value::Chain(chain.to_owned()));
            self.add(own, kind, None, key.clone(), Value::None);
            if full {
                self.add(masked, kind, None, key, Value::None);
            }
        }
    }

    /// From where answers of each member come, as clients know it; also of one that gets nothing new, since what it
    /// has goes on. An address in a network of the member's own is not what clients from elsewhere came to.
    fn add_answers(&mut self, listener: &KernelListener, family: Family, binds: &[Bind]) {
        let given: Vec<(IpAddr, &Bind)> = binds
            .iter()
            .filter_map(|bind| Some((bind.ip.filter(|ip| !ip.is_unspecified())?, bind)))
            .collect();
        let members = kept::goes_on(self.view, listener);
        let names = family.names();
        let value = Some(family.endpoint_type());
        let mut count = 0usize;
        for member in members.into_iter().filter(|member| Family::of(member.ip()) == family) {
            let is_near = |ip: IpAddr| self.view.is_beside(ip, member.ip());
            let (near, far): (Vec<_>, Vec<_>) = given.iter().partition(|(ip, _)| is_near(*ip));
            for (ip, bind) in if far.is_empty() { near } else { far } {
                for port in bind.ports() {
                    let from = if bind.more > 0 { port } else { member.port() };
                    for transport in transports(listener) {
                        count += 1;
                        if count > ANSWERS_MAX {
                            self.made.remarks.push(format!(
                                "listener {}: more than {ANSWERS_MAX} ports of members: some flows do not \
                                 outlive the node that carries them",
                                listener.name
                            ));
                            return;
                        }
                        let key = key(Some(member.ip()), transport, from);
                        let value_of = Value::Bytes(endpoint(SocketAddr::new(ip, port)));
                        self.add_answer(listener, names.answers, (family, value), key, value_of, member);
                    }
                }
            }
        }
    }

    fn add_answer(
        &mut self,
        listener: &KernelListener,
        name: &'static str,
        (family, value): (Family, Option<DataType>),
        key: Vec<u8>,
        of: Value,
        member: SocketAddr,
    ) {
        self.count_answered(listener, family, key.clone());
        let set = self.set(name, key_type(Some(family)), value);
        let Content::Elements(elements) = &mut set.content else { return };
        match elements.get(&key) {
            Some(there) if *there != of => {
                let remark = format!(
                    "listener {}: member {member} is reached by another address and port too: flows by one of them do \
                     not outlive the node that carries them",
                    listener.name
                );
                if !self.made.remarks.contains(&remark) {
                    self.made.remarks.push(remark);
                }
            }
            _ => _ = elements.insert(key, of),
        }
    }

    /// Rules that look in maps, before those of ranges.
    fn add_hooks(&mut self) {
        for base in [Base::Arrive, Base::Leave, Base::StrayIn, Base::StrayOn, Base::First, Base::Last] {
            let mut rules = Vec::new();
            let has = |name: &str| self.made.sets.contains_key(name);
            // An address that is given beats all addresses, as it does with sockets.
            for family in Family::ALL {
                let names = family.names();
                match base {
                    Base::Arrive if has(names.by_address) => {
                        rules.push(Rule::ByAddress { family, chains: names.by_address });
                    }
                    Base::StrayIn if has(names.own) => {
                        rules.push(Rule::DropStray { family, own: names.own, any_address: false });
                    }
                    Base::First if has(names.own) => {
                        let (banned, own) = (names.banned, names.own);
                        rules.push(Rule::DropBanned { family, banned, own, any_address: false });
                    }
                    Base::StrayOn if has(names.answers) => {
                        rules.push(Rule::DropStrayAnswer { family, sources: names.answers });
                    }
                    Base::Leave => {
                        for (own, any_address) in [(names.masked, false), (names.masked_ports, true)] {
                            if has(own) {
                                rules.push(Rule::Masquerade { family, own, any_address });
                            }
                        }
                        if has(names.answers) {
                            let sources = names.answers;
                            let answer = |transport| Rule::Answer { family, transport, sources };
                            rules.extend([answer(Transport::Tcp), answer(Transport::Udp)]);
                        }
                    }
                    _ => {}
                }
            }
            let (at_address, elsewhere): (Vec<_>, Vec<_>) =
                std::mem::take(self.chain(base)).into_iter().partition(has_address);
            rules.extend(at_address);
            let has = |name: &str| self.made.sets.contains_key(name);
            for family in Family::ALL.into_iter().filter(|family| has(family.names().by_port)) {
                let names = family.names();
                match base {
                    Base::Arrive => rules.push(Rule::ByPort { family, chains: names.by_port }),
                    Base::StrayIn => {
                        rules.push(Rule::DropStray { family, own: names.own_ports, any_address: true });
                    }
                    Base::First => {
                        let (banned, own) = (names.banned, names.own_ports);
                        rules.push(Rule::DropBanned { family, banned, own, any_address: true });
                    }
                    Base::Leave | Base::StrayOn | Base::Last => {}
                }
            }
            rules.extend(elsewhere);
            *self.chain(base) = rules;
        }
    }

    fn chain(&mut self, base: Base) -> &mut Vec<Rule> {
        let chain = self.made.chains.entry(base.name().to_owned());
        &mut chain.or_insert(Chain { hook: Some(base), rules: Vec::new() }).rules
    }

    fn set(&mut self, name: &str, key: DataType, value: Option<DataType>) -> &mut Set {
        self.made.sets.entry(name.to_owned()).or_insert_with(|| Set::empty(key, value))
    }

    fn add(&mut self, name: &str, kind: DataType, value: Option<DataType>, key: Vec<u8>, of: Value) {
        if let Content::Elements(elements) = &mut self.set(name, kind, value).content {
            elements.insert(key, of);
        }
    }
}

impl Base {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Arrive => "arrive",
            Self::Leave => "leave",
            Self::StrayIn => "stray_in",
            Self::StrayOn => "stray_on",
            Self::First => "first",
            Self::Last => "last",
        }
    }
}

fn has_address(rule: &Rule) -> bool {
    match rule {
        Rule::ToPorts { to, .. } | Rule::MasqueradePorts { to } => to.address.is_some(),
        _ => true,
    }
}

/// All addresses are those of both families.
fn is_of(bind: &Bind, family: Family) -> bool {
    match bind.ip {
        Some(ip) if ip.is_unspecified() && ip.is_ipv6() => true,
        Some(ip) => Family::of(ip) == family,
        None => true,
    }
}

pub(crate) fn transports(listener: &KernelListener) -> impl Iterator<Item = Transport> {
    let tcp = listener.protocol.has_tcp().then_some(Transport::Tcp);
    let udp = listener.protocol.has_udp().then_some(Transport::Udp);
    tcp.into_iter().chain(udp)
}

pub(crate) fn key_type(family: Option<Family>) -> DataType {
    match family {
        Some(family) => DataType::concat(&[family.data_type(), DataType::PROTOCOL, DataType::PORT]),
        None => DataType::concat(&[DataType::PROTOCOL, DataType::PORT]),
    }
}

fn key(address: Option<IpAddr>, transport: Transport, port: u16) -> Vec<u8> {
    let mut key = Vec::with_capacity(24);
    match address {
        Some(IpAddr::V4(address)) => key.extend(address.octets()),
        Some(IpAddr::V6(address)) => key.extend(address.octets()),
        None => {}
    }
    key.extend(transport.number());
    key.extend([0; 3]);
    key.extend(port.to_be_bytes());
    key.extend([0; 2]);
    key
}

/// An address and port as a map's value.
fn endpoint(address: SocketAddr) -> Vec<u8> {
    let mut value = Vec::with_capacity(20);
    match address.ip() {
        IpAddr::V4(address) => value.extend(address.octets()),
        IpAddr::V6(address) => value.extend(address.octets()),
    }
    value.extend(address.port().to_be_bytes());
    value.extend([0; 2]);
    value
}

#[cfg(test)]
mod tests;
