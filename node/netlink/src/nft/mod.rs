//! nf_tables over netlink: tables, chains, rules, sets and elements, in transactions that take effect as a
//! whole or not at all.
//!
//! A [`Batch`] collects changes, [`Batch::finish`] makes bytes of it, [`Nft::commit`] sends them and says
//! which of the changes failed. The same bytes may be sent any number of times. A table with the
//! flag `owner` belongs to the socket that made it: only that [`Nft`] can change it.
//!
//! Packets see the ruleset before or after a transaction (a generation bit is switched). So an element
//! that is added, deleted and added again in one has its new time-out, on kernels that take a new
//! time-out for a live element (6.12 and later) and on those that ignore it. While the kernel carries such a
//! transaction out, a list may miss the element, and before 6.17 a packet on another core may, too;
//! where the kernel takes new time-outs, adding alone has no such moment.
//!
//! Sources: `linux/netfilter/nf_tables.h`, `linux/netfilter/nfnetlink.h`, nft(8).

mod event;
mod expression;
mod list;

use std::{net::IpAddr, time::Duration};

pub use event::{Event, Watch};
pub use expression::{End, Expression, Field, Flow, Meter, Refusal, Register, Verdict};
pub use list::{ChainInfo, Counted, CountedElement, ListedElement, RuleInfo, TableInfo};

use crate::{
    socket::{Error, Protocol, Socket, next_sequence},
    wire::{self, Builder, Message, Open},
};

pub(crate) const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// enum nf_tables_msg_types
pub(crate) mod msg {
    pub(crate) const NEWTABLE: u16 = 0;
    pub(crate) const GETTABLE: u16 = 1;
    pub(crate) const DELTABLE: u16 = 2;
    pub(crate) const NEWCHAIN: u16 = 3;
    pub(crate) const GETCHAIN: u16 = 4;
    pub(crate) const DELCHAIN: u16 = 5;
    pub(crate) const NEWRULE: u16 = 6;
    pub(crate) const GETRULE: u16 = 7;
    pub(crate) const DELRULE: u16 = 8;
    pub(crate) const NEWSET: u16 = 9;
    pub(crate) const DELSET: u16 = 11;
    pub(crate) const NEWSETELEM: u16 = 12;
    pub(crate) const GETSETELEM: u16 = 13;
    pub(crate) const DELSETELEM: u16 = 14;
    pub(crate) const NEWGEN: u16 = 15;
    pub(crate) const NEWOBJ: u16 = 18;
    pub(crate) const GETOBJ: u16 = 19;
    pub(crate) const DELOBJ: u16 = 20;
}

/// Elements of one message: far under the 64 KiB of a nest, at the largest key and value.
const ELEMENTS_A_MESSAGE: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    Inet,
    Netdev,
}

impl Family {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Netdev => 5,
        }
    }
}

/// The name of a table and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Table<'a> {
    pub family: Family,
    pub name: &'a str,
}

/// Flags of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableFlags(pub u32);

impl TableFlags {
    pub const NONE: Self = Self(0);
    /// Only the socket that made it may change it (5.12 and later); without `PERSIST` it goes with it.
    pub const OWNER: Self = Self(2);
    /// Outlives its owner, and may then be taken by another (6.9 and later).
    pub const OWNER_PERSIST: Self = Self(2 | 4);

    #[must_use]
    pub fn owner(self) -> bool {
        self.0 & 2 != 0
    }

    #[must_use]
    pub fn persist(self) -> bool {
        self.0 & 4 != 0
    }
}

/// Where a base chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook<'a> {
    /// As it comes from a device, before everything but packet sockets.
    Ingress { device: &'a str },
    /// As it goes to a device (5.16 and later); packet sockets pass here, too.
    Egress { device: &'a str },
    /// An `inet` hook (NF_INET_*: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting).
    Inet { hook: u32 },
}

/// What a set's keys or a map's values are: enough for the kernel (length) and for `nft list` (type).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataType {
    number: u32,
    length: u32,
}

impl DataType {
    pub const IPV4: Self = Self { number: 7, length: 4 };
    pub const IPV6: Self = Self { number: 8, length: 16 };
    /// A port; takes four bytes, as each part of a key does.
    pub const PORT: Self = Self { number: 13, length: 4 };

    /// A number in the machine's order.
    pub const NUMBER: Self = Self { number: 19, length: 4 };
    /// An interface's index, in the machine's order.
    pub const INTERFACE: Self = Self { number: 20, length: 4 };
    /// The protocol above IP; takes four bytes.
    pub const PROTOCOL: Self = Self { number: 12, length: 4 };
    /// As a map's value: the chain to go to.
    pub const CHAIN: Self = Self { number: 0xffff_ff00, length: 16 };

    /// Several keys behind one another, at most five.
    #[must_use]
    pub fn concat(parts: &[Self]) -> Self {
        parts.iter().fold(Self { number: 0, length: 0 }, |whole, part| Self {
            number: whole.number << 6 | part.number,
            length: whole.length + part.length,
        })
    }

    #[must_use]
    pub fn length(self) -> usize {
        self.length as usize
    }
}

/// A set or map.
#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    pub name: &'a str,
    pub key: DataType,
    /// A map's values.
    pub value: Option<DataType>,
    /// Elements may have a time-out.
    pub timeout: bool,
    /// Rules add to it.
    pub dynamic: bool,
    /// Keys stand for all up to the next that is an end ([`Element::end`]); they don't overlap.
    pub interval: bool,
    /// Most elements.
    pub size: Option<u32>,
    /// A map to objects of this kind.
    pub objects: Option<ObjectKind>,
}

impl<'a> Set<'a> {
    #[must_use]
    pub fn new(name: &'a str, key: DataType) -> Self {
        Self {
            name,
            key,
            value: None,
            timeout: false,
            dynamic: false,
            interval: false,
            size: None,
            objects: None,
        }
    }
}

/// What has a name in a table and is used by rules and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    Counter,
    /// Time-outs of flows.
    Timeout,
}

impl ObjectKind {
    /// NFT_OBJECT_*
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Counter => 1,
            Self::Timeout => 7,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// From zero.
    Counter,
    /// A flow of UDP ends when nothing of it was seen for this long; rounded up to seconds.
    UdpTimeout { ipv6: bool, idle: Duration },
    /// A flow of TCP ends when it was not established so long after its last packet; rounded up to seconds. All else is
    /// as the machine has it when this is made.
    TcpTimeout { ipv6: bool, half_open: Duration },
}

impl Object {
    #[must_use]
    pub fn kind(&self) -> ObjectKind {
        match self {
            Self::Counter => ObjectKind::Counter,
            Self::UdpTimeout { .. } | Self::TcpTimeout { .. } => ObjectKind::Timeout,
        }
    }
}

/// An element to add or delete.
#[derive(Debug, Clone, Copy)]
pub struct Element<'a> {
    pub key: &'a [u8],
    pub value: Option<&'a [u8]>,
    /// In a map of chains: the one to go to.
    pub chain: Option<&'a str>,
    /// In a map to objects: the one that it names.
    pub object: Option<&'a str>,
    /// In a set of intervals: the first key behind one.
    pub ends: bool,
    /// It ends by itself after this. Rounded down to milliseconds, at least one.
    pub timeout: Option<Duration>,
}

impl<'a> Element<'a> {
    #[must_use]
    pub fn new(key: &'a [u8]) -> Self {
        Self { key, value: None, chain: None, object: None, ends: false, timeout: None }
    }

    #[must_use]
    pub fn lasting(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The end of an interval.
    #[must_use]
    pub fn end(key: &'a [u8]) -> Self {
        Self { ends: true, ..Self::new(key) }
    }

    #[must_use]
    pub fn going_to(mut self, chain: &'a str) -> Self {
        self.chain = Some(chain);
        self
    }

    #[must_use]
    pub fn naming(mut self, object: &'a str) -> Self {
        self.object = Some(object);
        self
    }

    #[must_use]
    pub fn with(mut self, value: &'a [u8]) -> Self {
        self.value = Some(value);
        self
    }
}

/// An address as the key of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    bytes: [u8; 16],
    length: usize,
}

impl From<IpAddr> for Key {
    fn from(address: IpAddr) -> Self {
        let mut key = Self { bytes: [0; 16], length: 16 };
        match address {
            IpAddr::V4(address) => {
                key.bytes[..4].copy_from_slice(&address.octets());
                key.length = 4;
            }
            IpAddr::V6(address) => key.bytes = address.octets(),
        }
        key
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// A transaction as bytes, ready to be sent.
#[derive(Debug, Clone)]
pub struct Prepared {
    bytes: Vec<u8>,
    /// What each message tries, by number.
    labels: Vec<(u32, &'static str)>,
}

/// A transaction in the making.
#[derive(Debug)]
pub struct Batch {
    builder: Builder,
    labels: Vec<(u32, &'static str)>,
    sets: u32,
    last: Option<usize>,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    #[must_use]
    pub fn new() -> Self {
        let mut batch = Self {
            builder: Builder::with_capacity(1024),
            labels: Vec::with_capacity(8),
            sets: 0,
            last: None,
        };
        batch.edge(BATCH_BEGIN);
        batch
    }

    /// Makes the table if it is not there.
    pub fn table(&mut self, table: Table<'_>, flags: TableFlags) {
        let open = self.begin(msg::NEWTABLE, wire::CREATE, table.family, "add a table");
        self.builder.name(1, table.name);
        if flags != TableFlags::NONE {
            self.builder.be32(2, flags.0);
        }
        self.builder.end_message(open);
    }

    /// With all that is in it; fails where there is none.
    pub fn delete_table(&mut self, table: Table<'_>) {
        let open = self.begin(msg::DELTABLE, 0, table.family, "delete a table");
        self.builder.name(1, table.name);
        self.builder.end_message(open);
    }

    /// A chain that is entered from others only.
    pub fn chain(&mut self, table: Table<'_>, name: &str) {
        let open = self.begin(msg::NEWCHAIN, wire::CREATE, table.family, "add a chain");
        self.builder.name(1, table.name);
        self.builder.name(3, name);
        self.builder.end_message(open);
    }

    /// A chain that a hook enters; what no rule decides is accepted. A lower priority comes first.
    pub fn base_chain(&mut self, table: Table<'_>, name: &str, hook: Hook<'_>, priority: i32) {
        self.hooked_chain(table, name, "filter", (hook, priority));
    }

    /// As [`Self::base_chain`], entered by the first packet of each flow only. What it rewrites is rewritten in
    /// all of the flow's packets as long as there is such a chain.
    pub fn nat_chain(&mut self, table: Table<'_>, name: &str, hook: Hook<'_>, priority: i32) {
        self.hooked_chain(table, name, "nat", (hook, priority));
    }

    fn hooked_chain(&mut self, table: Table<'_>, name: &str, kind: &str, (hook, priority): (Hook<'_>, i32)) {
        let open = self.begin(msg::NEWCHAIN, wire::CREATE, table.family, "add a chain");
        self.builder.name(1, table.name);
        self.builder.name(3, name);
        let nest = self.builder.nest(4);
        let (number, device) = match hook {
            Hook::Ingress { device } => (0, Some(device)),
            Hook::Egress { device } => (1, Some(device)),
            Hook::Inet { hook } => (hook, None),
        };
        self.builder.be32(1, number);
        self.builder.be32(2, priority.cast_unsigned());
        if let Some(device) = device {
            self.builder.name(3, device);
        }
        self.builder.end_nest(nest);
        self.builder.be32(5, Verdict::Accept.number());
        self.builder.name(7, kind);
        self.builder.end_message(open);
    }

    /// With its rules; fails where there is none.
    pub fn delete_chain(&mut self, table: Table<'_>, name: &str) {
        self.flush_chain(table, name);
        let open = self.begin(msg::DELCHAIN, 0, table.family, "delete a chain");
        self.builder.name(1, table.name);
        self.builder.name(3, name);
        self.builder.end_message(open);
    }

    pub fn flush_chain(&mut self, table: Table<'_>, name: &str) {
        let open = self.begin(msg::DELRULE, 0, table.family, "flush a chain");
        self.builder.name(1, table.name);
        self.builder.name(2, name);
        self.builder.end_message(open);
    }

    /// Behind the chain's other rules.
    pub fn rule(&mut self, table: Table<'_>, chain: &str, expressions: &[Expression<'_>]) {
        let open = self.begin(msg::NEWRULE, wire::CREATE | wire::APPEND, table.family, "add a rule");
        self.builder.name(1, table.name);
        self.builder.name(2, chain);
        let nest = self.builder.nest(4);
        for expression in expressions {
            expression.put(&mut self.builder);
        }
        self.builder.end_nest(nest);
        self.builder.end_message(open);
    }

    pub fn set(&mut self, table: Table<'_>, set: &Set<'_>) {
        let open = self.begin(msg::NEWSET, wire::CREATE, table.family, "add a set");
        self.sets += 1;
        self.builder.name(1, table.name);
        self.builder.name(2, set.name);
        let flags = u32::from(set.interval) << 2
            | u32::from(set.value.is_some()) << 3
            | u32::from(set.timeout) << 4
            | u32::from(set.dynamic) << 5
            | u32::from(set.objects.is_some()) << 6;
        self.builder.be32(3, flags);
        self.builder.be32(4, set.key.number);
        self.builder.be32(5, set.key.length);
        if let Some(value) = set.value {
            self.builder.be32(6, value.number);
            self.builder.be32(7, value.length);
        }
        if let Some(size) = set.size {
            let nest = self.builder.nest(9);
            self.builder.be32(1, size);
            self.builder.end_nest(nest);
        }
        self.builder.be32(10, self.sets);
        if let Some(kind) = set.objects {
            self.builder.be32(15, kind.number());
        }
        self.builder.end_message(open);
    }

    /// One that is there stays as it is.
    pub fn object(&mut self, table: Table<'_>, name: &str, object: &Object) {
        let open = self.begin(msg::NEWOBJ, wire::CREATE, table.family, "add an object");
        self.builder.name(1, table.name);
        self.builder.name(2, name);
        self.builder.be32(3, object.kind().number());
        let data = self.builder.nest(4);
        match object {
            Object::Counter => {}
            // IPPROTO_*; of each: before and after it was answered.
            Object::UdpTimeout { ipv6, idle } => self.timeout(*ipv6, 17, *idle),
            Object::TcpTimeout { ipv6, half_open } => self.timeout(*ipv6, 6, *half_open),
        }
        self.builder.end_nest(data);
        self.builder.end_message(open);
    }

    /// The first two states of a flow.
    fn timeout(&mut self, ipv6: bool, protocol: u8, timeout: Duration) {
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        let seconds = u32::try_from(seconds).unwrap_or(u32::MAX).max(1);
        let family: u16 = if ipv6 { 10 } else { 2 };
        self.builder.attribute(1, &family.to_be_bytes());
        self.builder.attribute(2, &[protocol]);
        let policy = self.builder.nest(3);
        self.builder.be32(1, seconds);
        self.builder.be32(2, seconds);
        self.builder.end_nest(policy);
    }

    /// Fails where something still names it.
    pub fn delete_object(&mut self, table: Table<'_>, name: &str, kind: ObjectKind) {
        let open = self.begin(msg::DELOBJ, 0, table.family, "delete an object");
        self.builder.name(1, table.name);
        self.builder.name(2, name);
        self.builder.be32(3, kind.number());
        self.builder.end_message(open);
    }

    pub fn delete_set(&mut self, table: Table<'_>, set: &str) {
        let open = self.begin(msg::DELSET, 0, table.family, "delete a set");
        self.builder.name(1, table.name);
        self.builder.name(2, set);
        self.builder.end_message(open);
    }

    /// One that is there stays; whether it takes the new time-out depends on the kernel
    /// ([`Nft::extends_elements`]); see [`Batch::renew`].
    pub fn add_elements(&mut self, table: Table<'_>, set: &str, elements: &[Element<'_>]) {
        self.elements(msg::NEWSETELEM, wire::CREATE, "add elements", table, set, elements);
    }

    /// Fails where one is not there.
    pub fn delete_elements(&mut self, table: Table<'_>, set: &str, elements: &[Element<'_>]) {
        self.elements(msg::DELSETELEM, 0, "delete elements", table, set, elements);
    }

    /// The element is there afterwards, with this time-out, whatever was before. For sets: in a map, one
    /// that is there with another value is refused (EEXIST).
    pub fn renew(&mut self, table: Table<'_>, set: &str, element: Element<'_>) {
        self.expel(table, set, element);
        self.add_elements(table, set, &[element]);
    }

    /// The element is not there afterwards, whether it was or not. On kernels before 6.9 it can fail
    /// with ENOENT if the element ends between the two steps: it is gone then, but the rest of the
    /// transaction did not happen.
    pub fn expel(&mut self, table: Table<'_>, set: &str, element: Element<'_>) {
        self.add_elements(table, set, &[element]);
        self.delete_elements(table, set, &[Element::new(element.key)]);
    }

    pub fn flush_set(&mut self, table: Table<'_>, set: &str) {
        let open = self.begin(msg::DELSETELEM, 0, table.family, "flush a set");
        self.builder.name(1, table.name);
        self.builder.name(2, set);
        self.builder.end_message(open);
    }

    /// Whether it holds no change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// How long it is so far.
    #[must_use]
    pub fn length(&self) -> usize {
        self.builder.bytes().len()
    }

    /// As bytes. The last change asks for the ack; failures are told unasked.
    #[must_use]
    pub fn finish(mut self) -> Prepared {
        let last = self.last;
        self.edge(BATCH_END);
        let mut bytes = self.builder.into_bytes();
        if let Some(at) = last {
            let flags = wire::ne16(&bytes[at + 6..]).unwrap_or(0) | wire::ACK;
            bytes[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
        }
        Prepared { bytes, labels: self.labels }
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        label: &'static str,
        table: Table<'_>,
        set: &str,
        elements: &[Element<'_>],
    ) {
        for some in elements.chunks(ELEMENTS_A_MESSAGE) {
            let open = self.begin(kind, flags, table.family, label);
            self.builder.name(1, table.name);
            self.builder.name(2, set);
            let list = self.builder.nest(3);
            for element in some {
                self.element(element);
            }
            self.builder.end_nest(list);
            self.builder.end_message(open);
        }
    }

    fn element(&mut self, element: &Element<'_>) {
        let nest = self.builder.nest(1);
        let key = self.builder.nest(1);
        self.builder.attribute(1, element.key);
        self.builder.end_nest(key);
        if element.ends {
            // NFT_SET_ELEM_INTERVAL_END
            self.builder.be32(3, 1);
        }
        if let Some(value) = element.value {
            let data = self.builder.nest(2);
            self.builder.attribute(1, value);
            self.builder.end_nest(data);
        }
        if let Some(chain) = element.chain {
            expression::put_verdict(&mut self.builder, 2, expression::GOTO, Some(chain));
        }
        if let Some(object) = element.object {
            self.builder.name(9, object);
        }
        if let Some(timeout) = element.timeout {
            let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
            self.builder.be64(4, ms);
            // Said as well, or an element that is there keeps its end where the time-out is the same.
            self.builder.be64(5, ms);
        }
        self.builder.end_nest(nest);
    }

    fn begin(&mut self, kind: u16, flags: u16, family: Family, label: &'static str) -> Open {
        let sequence = next_sequence();
        self.labels.push((sequence, label));
        self.last = Some(self.builder.bytes().len());
        let open = self.builder.message(SUBSYSTEM | kind, wire::REQUEST | flags, sequence);
        self.builder.raw(&[family.number(), 0, 0, 0]);
        open
    }

    /// The messages around a transaction name its subsystem.
    fn edge(&mut self, kind: u16) {
        let open = self.builder.message(kind, wire::REQUEST, next_sequence());
        let [high, low] = (SUBSYSTEM >> 8).to_be_bytes();
        self.builder.raw(&[0, 0, high, low]);
        self.builder.end_message(open);
    }
}

/// Requests about nf_tables, and the owner of the tables it makes with the flag.
#[derive(Debug)]
pub struct Nft {
    pub(crate) socket: Socket,
}

impl Nft {
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(Protocol::Netfilter)? })
    }

    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// All of it takes effect, or none and the error says what failed first. One send; allocates nothing
    /// unless something fails.
    pub fn commit(&mut self, prepared: &Prepared) -> Result<(), Error> {
        let Some((last, _)) = prepared.labels.last() else { return Ok(()) };
        self.socket.transact(&prepared.bytes, *last, |sequence| {
            let found = prepared.labels.iter().find(|(number, _)| *number == sequence);
            found.map_or("commit a transaction", |(_, label)| label)
        })
    }

    /// Whether adding an element that is there gives it the new time-out (6.12 and later). Tried with
    /// `key`, which must mean nothing in this set; it is gone afterwards.
    pub fn extends_elements(&mut self, table: Table<'_>, set: &str, key: &[u8]) -> Result<bool, Error> {
        const SHORT: Duration = Duration::from_secs(60);
        for timeout in [SHORT, SHORT * 10] {
            self.change(|batch| batch.add_elements(table, set, &[Element::new(key).lasting(timeout)]))?;
        }
        let listed = self.elements(table, set)?.unwrap_or_default();
        self.change(|batch| batch.delete_elements(table, set, &[Element::new(key)]))?;
        let tried = listed.iter().find(|element| element.key == key);
        Ok(tried.and_then(|element| element.expires).is_some_and(|left| left > SHORT))
    }

    /// Makes and sends a transaction.
    pub fn change(&mut self, build: impl FnOnce(&mut Batch)) -> Result<(), Error> {
        let mut batch = Batch::new();
        build(&mut batch);
        self.commit(&batch.finish())
    }
}

/// The message type within nf_tables.
pub(crate) fn kind_of(message: &Message<'_>) -> Option<u16> {
    (message.kind & 0xff00 == SUBSYSTEM).then_some(message.kind & 0xff)
}
