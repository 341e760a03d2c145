//! Links, addresses and neighbours of this network namespace.
//!
//! What a VIP needs: its address is added with a life of whole seconds (which the kernel ends by itself,
//! up to 1.25 s late) and removed by bytes that were built when it was added. Removing the primary
//! IPv4 address of a subnet takes its secondary ones with it (unless `promote_secondaries` is set):
//! a VIP beside the machine's own address is a secondary one.
//!
//! Sources: rtnetlink(7), RFC 3549 section 3.1, `linux/rtnetlink.h`, `linux/if_link.h`,
//! `linux/if_addr.h`, `linux/neighbour.h`.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::io::Errno;

use crate::{
    socket::{Error, Groups, Protocol, Socket, next_sequence},
    wire::{self, Attributes, Builder, Message},
};

const NEWLINK: u16 = 16;
const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;
const GETNEIGH: u16 = 30;

/// Added without asking the network whether somebody has it (IPv6).
pub const NODAD: u32 = 0x02;
/// Duplicate address detection found it taken.
pub const DADFAILED: u32 = 0x08;
pub const TENTATIVE: u32 = 0x40;
/// Adds no route to its prefix.
pub const NOPREFIXROUTE: u32 = 0x200;

/// Addresses that a watch can tell apart; the ones beyond are reported as changed, not as added.
const KNOWN_MAX: usize = 65_536;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    pub const BROADCAST: Self = Self([0xff; 6]);
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `None` where it has no Ethernet address.
    pub mac: Option<Mac>,
    /// It is switched on.
    pub up: bool,
    /// It is on and has a carrier.
    pub running: bool,
    pub loopback: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Index of its link.
    pub link: u32,
    pub address: IpAddr,
    pub prefix: u8,
    /// IFA_F_*.
    pub flags: u32,
    /// IFA_PROTO: who added it; `None` on kernels before 5.18 or where nobody said.
    pub protocol: Option<u8>,
    /// Seconds left; `None`: for ever.
    pub valid: Option<u32>,
    pub preferred: Option<u32>,
}

/// An address to add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewAddress {
    pub link: u32,
    pub address: IpAddr,
    pub prefix: u8,
    pub flags: u32,
    pub protocol: Option<u8>,
    pub valid: Option<u32>,
    pub preferred: Option<u32>,
}

impl NewAddress {
    /// One that adds no route, is not asked for on the network, and lasts for ever.
    #[must_use]
    pub fn new(link: u32, address: IpAddr, prefix: u8) -> Self {
        let nodad = if address.is_ipv6() { NODAD } else { 0 };
        Self {
            link,
            address,
            prefix,
            flags: NOPREFIXROUTE | nodad,
            protocol: None,
            valid: None,
            preferred: None,
        }
    }

    /// Brings a route to its subnet along, which goes with it.
    #[must_use]
    pub fn with_route(mut self) -> Self {
        self.flags &= !NOPREFIXROUTE;
        self
    }

    /// With an end, in whole seconds.
    #[must_use]
    pub fn lasting(mut self, seconds: u32) -> Self {
        self.valid = Some(seconds);
        self.preferred = Some(seconds);
        self
    }

    #[must_use]
    pub fn by(mut self, protocol: u8) -> Self {
        self.protocol = Some(protocol);
        self
    }
}

/// The removal of an address, ready to be sent.
#[derive(Debug, Clone)]
pub struct PreparedRemoval {
    bytes: Vec<u8>,
    sequence: u32,
}

impl PreparedRemoval {
    #[must_use]
    pub fn new(link: u32, address: IpAddr, prefix: u8) -> Self {
        let sequence = next_sequence();
        let mut builder = Builder::with_capacity(96);
        let open = builder.message(DELADDR, wire::REQUEST | wire::ACK, sequence);
        builder.raw(&address_header(link, address, prefix, 0));
        put_address(&mut builder, address);
        builder.end_message(open);
        Self { bytes: builder.into_bytes(), sequence }
    }
}

/// Requests about links, addresses and neighbours.
#[derive(Debug)]
pub struct Route {
    socket: Socket,
}

impl Route {
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(Protocol::Route)? })
    }

    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let sequence = next_sequence();
        let mut builder = Builder::with_capacity(64);
        let open = builder.message(GETLINK, wire::REQUEST | wire::DUMP, sequence);
        builder.raw(&[0; 16]);
        builder.end_message(open);
        self.socket.ask(builder.bytes(), sequence, "list links", |found, message| {
            found.extend((message.kind == NEWLINK).then(|| read_link(message)).flatten());
        })
    }

    /// `None`: there is no such link.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        Ok(self.links()?.into_iter().find(|link| link.name == name))
    }

    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let sequence = next_sequence();
        let mut builder = Builder::with_capacity(64);
        let open = builder.message(GETADDR, wire::REQUEST | wire::DUMP, sequence);
        builder.raw(&[0; 8]);
        builder.end_message(open);
        self.socket.ask(builder.bytes(), sequence, "list addresses", |found, message| {
            found.extend((message.kind == NEWADDR).then(|| read_address(message)).flatten());
        })
    }

    /// Adds the address, or gives it new lifetimes if it is there.
    pub fn set_address(&mut self, new: &NewAddress) -> Result<(), Error> {
        let sequence = next_sequence();
        let mut builder = Builder::with_capacity(128);
        let flags = wire::REQUEST | wire::ACK | wire::CREATE | wire::REPLACE;
        let open = builder.message(NEWADDR, flags, sequence);
        builder.raw(&address_header(new.link, new.address, new.prefix, new.flags as u8));
        put_address(&mut builder, new.address);
        builder.ne32(ifa::FLAGS, new.flags);
        if let Some(protocol) = new.protocol {
            builder.attribute(ifa::PROTO, &[protocol]);
        }
        let mut lifetimes = [0; 16];
        lifetimes[..4].copy_from_slice(&new.preferred.unwrap_or(u32::MAX).to_ne_bytes());
        lifetimes[4..8].copy_from_slice(&new.valid.unwrap_or(u32::MAX).to_ne_bytes());
        builder.attribute(ifa::CACHEINFO, &lifetimes);
        builder.end_message(open);
        self.socket.transact(builder.bytes(), sequence, |_| "add an address")
    }

    /// Whether it was there.
    pub fn remove_address(&mut self, link: u32, address: IpAddr, prefix: u8) -> Result<bool, Error> {
        self.send_removal(&PreparedRemoval::new(link, address, prefix))
    }

    /// Whether it was there (and the link, too). Allocates nothing unless the kernel refuses.
    pub fn send_removal(&mut self, prepared: &PreparedRemoval) -> Result<bool, Error> {
        match self.socket.transact(&prepared.bytes, prepared.sequence, |_| "remove an address") {
            Ok(()) => Ok(true),
            Err(error) if error.is(Errno::ADDRNOTAVAIL) || error.is(Errno::NODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The neighbour's MAC as the kernel has it now; it is not asked for on the network.
    pub fn neighbour(&mut self, link: u32, address: IpAddr) -> Result<Option<Mac>, Error> {
        let sequence = next_sequence();
        let mut builder = Builder::with_capacity(64);
        let open = builder.message(GETNEIGH, wire::REQUEST | wire::ACK, sequence);
        builder.raw(&neighbour_header(link, address, 0));
        put(&mut builder, nda::DST, address);
        builder.end_message(open);
        let found = self.socket.ask(builder.bytes(), sequence, "look a neighbour up", |found, message| {
            found.extend((message.kind == NEWNEIGH).then(|| read_neighbour(message)).flatten());
        });
        match found {
            Ok(found) => Ok(found.into_iter().next()),
            Err(error) if error.is(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a permanent entry.
    pub fn set_neighbour(&mut self, link: u32, address: IpAddr, mac: Mac) -> Result<(), Error> {
        let sequence = next_sequence();
        let mut builder = Builder::with_capacity(64);
        let flags = wire::REQUEST | wire::ACK | wire::CREATE | wire::REPLACE;
        let open = builder.message(NEWNEIGH, flags, sequence);
        builder.raw(&neighbour_header(link, address, nud::PERMANENT));
        put(&mut builder, nda::DST, address);
        builder.attribute(nda::LLADDR, &mac.0);
        builder.end_message(open);
        self.socket.transact(builder.bytes(), sequence, |_| "set a neighbour")
    }

    /// Whether it was there.
    pub fn remove_neighbour(&mut self, link: u32, address: IpAddr) -> Result<bool, Error> {
        let sequence = next_sequence();
        let mut builder = Builder::with_capacity(64);
        let open = builder.message(DELNEIGH, wire::REQUEST | wire::ACK, sequence);
        builder.raw(&neighbour_header(link, address, 0));
        put(&mut builder, nda::DST, address);
        builder.end_message(open);
        match self.socket.transact(builder.bytes(), sequence, |_| "remove a neighbour") {
            Ok(()) => Ok(true),
            Err(error) if error.is(Errno::NOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link is new or is not as it was.
    Link(Link),
    LinkRemoved {
        index: u32,
        name: String,
    },
    AddressAdded(Address),
    /// Other lifetimes or flags.
    AddressChanged(Address),
    AddressRemoved(Address),
}

/// Follows links and addresses.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
    known: HashSet<(u32, IpAddr, u8)>,
}

impl Watch {
    /// The watch, and what there is when it begins: nothing that happens afterwards is missed; what
    /// happens in between may be told twice.
    pub fn start() -> Result<(Self, Vec<Link>, Vec<Address>), Error> {
        let socket = Socket::listen(Protocol::Route, Groups::ADDRESSES)?;
        // Bursts of a machine with many links; where it is refused, the default holds some hundred events.
        let _ = socket.set_receive_buffer(1024 * 1024);
        let mut route = Route::open()?;
        let (links, addresses) = (route.links()?, route.addresses()?);
        let known = addresses.iter().take(KNOWN_MAX).map(|a| (a.link, a.address, a.prefix)).collect();
        Ok((Self { socket, known }, links, addresses))
    }

    /// What has happened, without waiting; empty if nothing has. After [`Error::EventsLost`]: start anew.
    pub fn read(&mut self) -> Result<Vec<Event>, Error> {
        let (socket, known) = (&mut self.socket, &mut self.known);
        let mut events = Vec::new();
        while events.len() < 1024 && socket.events(|message| events.extend(read_event(known, message)))? {}
        Ok(events)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn read_event(known: &mut HashSet<(u32, IpAddr, u8)>, message: &Message<'_>) -> Option<Event> {
    match message.kind {
        NEWLINK => read_link(message).map(Event::Link),
        // The bridge speaks of its ports in its own family; the link itself stays.
        DELLINK if message.payload.first() == Some(&0) => {
            read_link(message).map(|link| Event::LinkRemoved { index: link.index, name: link.name })
        }
        NEWADDR => {
            let address = read_address(message)?;
            let key = (address.link, address.address, address.prefix);
            let new = known.len() < KNOWN_MAX && known.insert(key);
            Some(if new { Event::AddressAdded(address) } else { Event::AddressChanged(address) })
        }
        DELADDR => {
            let address = read_address(message)?;
            known.remove(&(address.link, address.address, address.prefix));
            Some(Event::AddressRemoved(address))
        }
        _ => None,
    }
}

/// linux/if_addr.h
mod ifa {
    pub(super) const ADDRESS: u16 = 1;
    pub(super) const LOCAL: u16 = 2;
    pub(super) const CACHEINFO: u16 = 6;
    pub(super) const FLAGS: u16 = 8;
    pub(super) const PROTO: u16 = 11;
}

/// linux/neighbour.h
mod nda {
    pub(super) const DST: u16 = 1;
    pub(super) const LLADDR: u16 = 2;
}

/// linux/neighbour.h
mod nud {
    pub(super) const INCOMPLETE: u16 = 0x01;
    pub(super) const FAILED: u16 = 0x20;
    pub(super) const PERMANENT: u16 = 0x80;
}

fn family(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    family as u8
}

fn put(builder: &mut Builder, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => builder.attribute(kind, &address.octets()),
        IpAddr::V6(address) => builder.attribute(kind, &address.octets()),
    }
}

fn put_address(builder: &mut Builder, address: IpAddr) {
    put(builder, ifa::LOCAL, address);
    put(builder, ifa::ADDRESS, address);
}

fn address_header(link: u32, address: IpAddr, prefix: u8, flags: u8) -> [u8; 8] {
    let [a, b, c, d] = link.to_ne_bytes();
    [family(address), prefix, flags, 0, a, b, c, d]
}

fn neighbour_header(link: u32, address: IpAddr, state: u16) -> [u8; 12] {
    let [a, b, c, d] = link.to_ne_bytes();
    let [s, t] = state.to_ne_bytes();
    [family(address), 0, 0, 0, a, b, c, d, s, t, 0, 0]
}

fn read_link(message: &Message<'_>) -> Option<Link> {
    const ADDRESS: u16 = 1;
    const NAME: u16 = 3;
    let (fixed, attributes) = message.split::<16>()?;
    let flags = wire::ne32(&fixed[8..])?.cast_signed();
    let mac = attributes.find(ADDRESS).and_then(|attribute| attribute.value.try_into().ok()).map(Mac);
    Some(Link {
        index: wire::ne32(&fixed[4..])?,
        name: attributes.find(NAME)?.text(),
        mac,
        up: flags & libc::IFF_UP != 0,
        running: flags & libc::IFF_UP != 0 && flags & libc::IFF_RUNNING != 0,
        loopback: flags & libc::IFF_LOOPBACK != 0,
    })
}

fn read_address(message: &Message<'_>) -> Option<Address> {
    let (fixed, attributes) = message.split::<8>()?;
    // IFA_ADDRESS is the peer's on point-to-point links.
    let address = attributes.find(ifa::LOCAL).or_else(|| attributes.find(ifa::ADDRESS))?;
    let lifetimes = attributes.find(ifa::CACHEINFO).map(|attribute| attribute.value);
    let lifetime = |at: usize| {
        let seconds = wire::ne32(lifetimes?.get(at..)?)?;
        (seconds != u32::MAX).then_some(seconds)
    };
    Some(Address {
        link: wire::ne32(&fixed[4..])?,
        address: read_ip(address.value)?,
        prefix: fixed[1],
        flags: attributes.find(ifa::FLAGS).and_then(|a| a.ne32()).unwrap_or(u32::from(fixed[2])),
        protocol: attributes.find(ifa::PROTO).and_then(|a| a.value.first().copied()).filter(|p| *p != 0),
        preferred: lifetime(0),
        valid: lifetime(4),
    })
}

fn read_neighbour(message: &Message<'_>) -> Option<Mac> {
    let (fixed, attributes) = message.split::<12>()?;
    let state = wire::ne16(&fixed[8..])?;
    let known = state & (nud::INCOMPLETE | nud::FAILED) == 0;
    let attributes: Attributes<'_> = attributes;
    known.then(|| attributes.find(nda::LLADDR)?.value.try_into().ok().map(Mac)).flatten()
}

/// By its length.
pub(crate) fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn events_of_any_bytes_are_read(kind in 16u16..31, payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let message = Message { kind, flags: 0, sequence: 0, port: 0, payload: &payload };
            let _ = read_event(&mut HashSet::new(), &message);
            let _ = read_neighbour(&message);
        }
    }
}
