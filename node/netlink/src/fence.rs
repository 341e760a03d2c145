//! The fence: an address is silent on this machine's network unless its lease is alive.
//!
//! Table `netdev trestle_vip`. Sets `vips4`/`vips6` hold what is fenced, `live4`/`live6` what is open,
//! `quiet4`/`quiet6` what is kept silently; the elements of the last four end by themselves, with every
//! process frozen. Two chains a device (`ingress_DEV`, `egress_DEV`) drop:
//!
//! | direction | what | unless the address is |
//! | --- | --- | --- |
//! | in | ARP whose target it is (but for ARP that a VIP's owner sends about itself) | live |
//! | in | neighbour solicitation whose target it is | live |
//! | in | IP to it | live or quiet |
//! | out | ARP whose sender it is | live |
//! | out | neighbour advertisement whose target, solicitation whose source it is | live (see below for quiet) |
//! | out | IP from it | live or quiet |
//!
//! A fence of ARP replies alone would leak: a kernel that retransmits from the address asks for its
//! neighbours with it as sender, and their caches move.
//!
//! A quiet address still has to find the neighbours that it answers. For IPv4 that wants `arp_announce=2`
//! on the interface (the kernel then asks with an address of its own). IPv6 has no such switch and asks
//! with the packet's source: such a solicitation leaves with the interface's link-local address in its
//! place, where there is one when the chains are made.
//!
//! Invariant: no element outlives its deadline by more than the time from the kernel's taking it to the
//! look at the clock that follows. Deadlines are absolute, time-outs are not: after each write the clock is read
//! again, and what could outlive its deadline is written anew or deleted. Time-outs run on jiffies,
//! which stand still in suspend.
//!
//! The table is owned by the [`Fence`]'s socket where the kernel has that (nobody else's flush touches
//! it) and outlives the process; on older kernels it is plain, and [`Fence::is_intact`], prompted by
//! [`nft::Watch`](crate::nft::Watch), tells when somebody changed it.

mod follow;

pub use follow::{Follower, State};

use std::{net::IpAddr, time::Duration};

use rustix::io::Errno;

use crate::{
    clock,
    nft::{
        Batch, ChainInfo, DataType, Element, Expression as X, Family, Field, Hook, Key, Nft, Prepared,
        Register, RuleInfo, Set, Table, TableFlags, TableInfo, Verdict,
    },
    route::{Link, Route, read_ip},
    socket,
};

pub const TABLE: Table<'static> = Table { family: Family::Netdev, name: "trestle_vip" };
/// Before other chains of the hooks.
const PRIORITY: i32 = -500;
/// Taken off a time-out: the kernel rounds up to its jiffies, and a write takes a moment. Doubled at each
/// further try, for a machine that is slow just now.
pub const MARGIN: Duration = Duration::from_millis(20);
/// The kernel's longest.
const JIFFY: Duration = Duration::from_millis(10);
/// Writes until a late one is given up.
const TRIES: usize = 3;
/// Addresses of a fence; more are refused.
pub const ADDRESSES_MAX: usize = 4096;
/// Devices of a fence; more are refused.
pub const DEVICES_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Netlink(#[from] socket::Error),
    /// The deadline has passed, or too little of it is left; the address is shut.
    #[error("too late for {0}: its deadline has passed")]
    Passed(IpAddr),
    #[error("{0} is not fenced")]
    Unknown(IpAddr),
    #[error("more than {ADDRESSES_MAX} addresses or {DEVICES_MAX} devices")]
    TooMany,
}

impl Error {
    /// Whether another process owns the table.
    #[must_use]
    pub fn owned_by_another(&self) -> bool {
        matches!(self, Self::Netlink(error) if error.is(Errno::PERM))
    }
}

/// Whom the table belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// This process, and it outlives it; plain where the kernel can't.
    Best,
    /// Anybody may change it.
    Plain,
}

/// An address and the deadline (CLOCK_BOOTTIME, nanoseconds) of its element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timed {
    pub address: IpAddr,
    pub until: u64,
}

/// Who is live and who is quiet, by the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    pub fenced: Vec<IpAddr>,
    pub live: Vec<Timed>,
    pub quiet: Vec<Timed>,
}

impl Listing {
    /// Reads the fence of this network namespace, whoever's it is; `None`: there is none. Set by set: to
    /// see each state as a whole, use a [`Follower`].
    pub fn read(nft: &mut Nft) -> Result<Option<Self>, socket::Error> {
        let mut listing = Self::default();
        for (set, into) in
            [("vips4", 0), ("vips6", 0), ("live4", 1), ("live6", 1), ("quiet4", 2), ("quiet6", 2)]
        {
            let Some(elements) = nft.elements(TABLE, set)? else { return Ok(None) };
            let now = clock::now();
            for element in elements {
                let Some(address) = read_ip(&element.key) else { continue };
                let until = element.expires.map_or(u64::MAX, |left| clock::after(now, left));
                match into {
                    0 => listing.fenced.push(address),
                    1 => listing.live.push(Timed { address, until }),
                    _ => listing.quiet.push(Timed { address, until }),
                }
            }
        }
        Ok(Some(listing))
    }

    #[must_use]
    pub fn is_live(&self, address: IpAddr) -> bool {
        self.live.iter().any(|timed| timed.address == address)
    }

    #[must_use]
    pub fn is_quiet(&self, address: IpAddr) -> bool {
        self.quiet.iter().any(|timed| timed.address == address)
    }
}

/// The closing of some addresses, ready to be sent.
#[derive(Debug, Clone)]
pub struct Closing {
    all: Prepared,
    /// For the case that an element ends while all of it is sent, which voids the whole (older kernels).
    each: Vec<Prepared>,
}

/// What the table was made of, by handle.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    table: Option<TableInfo>,
    chains: Vec<ChainInfo>,
    rules: Vec<RuleInfo>,
}

#[derive(Debug)]
pub struct Fence {
    nft: Nft,
    route: Route,
    flags: TableFlags,
    /// Whether adding an element again extends it; else it is deleted and added.
    extends: bool,
    devices: Vec<String>,
    addresses: Vec<IpAddr>,
    shape: Shape,
}

impl Fence {
    /// Stands with everything shut, in place of what a dead process left. In one transaction: no packet
    /// passes in between that neither would have let through.
    pub fn install(devices: &[&str], addresses: &[IpAddr], ownership: Ownership) -> Result<Self, Error> {
        check(devices, addresses)?;
        let (mut nft, mut route) = (Nft::open()?, Route::open()?);
        let there = nft.table(TABLE)?.is_some();
        let own = link_locals(&mut route, devices)?;
        let mut install = |flags| {
            nft.change(|batch| {
                if there {
                    batch.delete_table(TABLE);
                }
                batch.table(TABLE, flags);
                put_sets(batch, addresses);
                devices.iter().zip(&own).for_each(|(device, own)| put_chains(batch, device, *own));
            })
        };
        let mut flags =
            if ownership == Ownership::Best { TableFlags::OWNER_PERSIST } else { TableFlags::NONE };
        match install(flags) {
            // An owner without persist takes the fence with it when it dies: worse than none.
            Err(error) if flags.owner() && (error.is(Errno::OPNOTSUPP) || error.is(Errno::INVAL)) => {
                flags = TableFlags::NONE;
                install(flags)?;
            }
            result => result?,
        }
        // Nobody's address, and not fenced.
        let extends = nft.extends_elements(TABLE, "quiet4", &[0; 4])?;
        let shape = read_shape(&mut nft)?;
        let devices = devices.iter().map(ToString::to_string).collect();
        Ok(Self { nft, route, flags, extends, devices, addresses: addresses.to_vec(), shape })
    }

    /// The flags that the kernel took.
    #[must_use]
    pub fn flags(&self) -> TableFlags {
        self.flags
    }

    /// How long each answer of the kernel may take.
    pub fn set_patience(&mut self, patience: Duration) {
        self.nft.socket().set_patience(patience);
    }

    /// The chains are made anew for exactly these devices; what is live stays so. To be called again when
    /// one of them is renamed, comes anew, or gets another link-local address: whether a chain
    /// still sits on a device does not show in the ruleset (newer kernels keep one whose device went).
    pub fn set_devices(&mut self, devices: &[&str]) -> Result<(), Error> {
        check(devices, &self.addresses)?;
        let chains = self.nft.chains(TABLE)?;
        let own = link_locals(&mut self.route, devices)?;
        self.nft.change(|batch| {
            chains.iter().for_each(|chain| batch.delete_chain(TABLE, &chain.name));
            devices.iter().zip(&own).for_each(|(device, own)| put_chains(batch, device, *own));
        })?;
        self.devices = devices.iter().map(ToString::to_string).collect();
        self.shape = read_shape(&mut self.nft)?;
        Ok(())
    }

    #[must_use]
    pub fn devices(&self) -> &[String] {
        &self.devices
    }

    /// Fences exactly these; new ones are shut, and so is what stays but is not live. What is no longer
    /// among them is unfenced: remove it from its interface first.
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        check(&[], addresses)?;
        self.retry(|batch| {
            for ipv6 in [false, true] {
                batch.flush_set(TABLE, name("vips", ipv6));
            }
            put_addresses(batch, addresses);
        })?;
        // Elements of the ones that left end here, or by themselves: they open nothing that is not fenced.
        let gone: Vec<_> = self.addresses.iter().filter(|a| !addresses.contains(a)).copied().collect();
        self.addresses = addresses.to_vec();
        self.close_all(&gone)
    }

    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Opens the address, or keeps it open, until the deadline. It is then not quiet.
    pub fn open(&mut self, address: IpAddr, deadline: u64) -> Result<(), Error> {
        self.hold(address, deadline, "live", "quiet")
    }

    /// Keeps the address silently until the deadline: IP passes, ARP and neighbour discovery do not.
    pub fn quiet(&mut self, address: IpAddr, deadline: u64) -> Result<(), Error> {
        self.hold(address, deadline, "quiet", "live")
    }

    /// Shuts the address; it may be shut already.
    pub fn close(&mut self, address: IpAddr) -> Result<(), Error> {
        self.close_all(&[address])
    }

    /// Makes the closing of these addresses ready.
    #[must_use]
    pub fn prepare_closing(&self, addresses: &[IpAddr]) -> Closing {
        prepare_closing(addresses)
    }

    /// One send (and where an element ends just then, on older kernels, one more an address).
    pub fn send_closing(&mut self, closing: &Closing) -> Result<(), Error> {
        send_closing(&mut self.nft, closing)
    }

    pub fn listing(&mut self) -> Result<Option<Listing>, Error> {
        Ok(Listing::read(&mut self.nft)?)
    }

    /// Whether the table, its chains and its rules are those that were made here, and the addresses are
    /// still fenced. If not, install anew.
    pub fn is_intact(&mut self) -> Result<bool, Error> {
        if read_shape(&mut self.nft)? != self.shape {
            return Ok(false);
        }
        let Some(listing) = Listing::read(&mut self.nft)? else { return Ok(false) };
        Ok(self.addresses.iter().all(|address| listing.fenced.contains(address)))
    }

    /// Deletes the table: nothing is fenced any more. Remove the addresses first.
    pub fn remove(mut self) -> Result<(), Error> {
        Ok(self.nft.change(|batch| batch.delete_table(TABLE))?)
    }

    fn hold(&mut self, address: IpAddr, deadline: u64, into: &str, out_of: &str) -> Result<(), Error> {
        if !self.addresses.contains(&address) {
            return Err(Error::Unknown(address));
        }
        let (key, ipv6) = (Key::from(address), address.is_ipv6());
        let extends = self.extends;
        let result = hold_until(deadline, |timeout| {
            self.retry(|batch| {
                let element = Element::new(key.as_ref()).lasting(timeout);
                if extends {
                    batch.add_elements(TABLE, name(into, ipv6), &[element]);
                } else {
                    batch.renew(TABLE, name(into, ipv6), element);
                }
                batch.expel(TABLE, name(out_of, ipv6), element);
            })
        });
        match result {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.close(address)?;
                Err(Error::Passed(address))
            }
            Err(error) => {
                // Whether it was written is unknown (no answer in time): shut is the safe side.
                let _ = self.close(address);
                Err(error.into())
            }
        }
    }

    fn close_all(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        if addresses.is_empty() {
            return Ok(());
        }
        let closing = prepare_closing(addresses);
        self.send_closing(&closing)
    }

    /// Again where an element ended between two steps of the transaction (older kernels).
    fn retry(&mut self, build: impl Fn(&mut Batch)) -> Result<(), socket::Error> {
        retry(&mut self.nft, build)
    }
}

/// Commits, and again where an element ended between two steps of the transaction (older kernels).
pub(crate) fn retry(nft: &mut Nft, build: impl Fn(&mut Batch)) -> Result<(), socket::Error> {
    let mut tries = 0;
    loop {
        tries += 1;
        match nft.change(&build) {
            Err(error) if error.is(Errno::NOENT) && tries < TRIES => {}
            result => return result,
        }
    }
}

/// Writes with what is left of the deadline until the clock, read again, says that the write can't
/// outlive it. `false`: it can, or nothing is left.
pub(crate) fn hold_until<E>(
    deadline: u64,
    mut write: impl FnMut(Duration) -> Result<(), E>,
) -> Result<bool, E> {
    for tried in 0..TRIES {
        let timeout = clock::left(deadline, clock::now()).saturating_sub(MARGIN * (1 << tried));
        if timeout < Duration::from_millis(1) {
            return Ok(false);
        }
        write(timeout)?;
        // Counted from after the write at the latest, and a jiffy longer than asked.
        if !could_outlive(deadline, timeout, clock::now()) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn could_outlive(deadline: u64, timeout: Duration, written: u64) -> bool {
    clock::after(written, timeout + JIFFY) > deadline
}

fn check(devices: &[&str], addresses: &[IpAddr]) -> Result<(), Error> {
    let fits = devices.len() <= DEVICES_MAX && addresses.len() <= ADDRESSES_MAX;
    if fits { Ok(()) } else { Err(Error::TooMany) }
}

fn read_shape(nft: &mut Nft) -> Result<Shape, socket::Error> {
    let (table, mut chains, mut rules) = (nft.table(TABLE)?, nft.chains(TABLE)?, nft.rules(TABLE)?);
    chains.sort();
    rules.sort();
    Ok(Shape { table, chains, rules })
}

fn prepare_closing(addresses: &[IpAddr]) -> Closing {
    let prepare = |addresses: &[IpAddr]| {
        let mut batch = Batch::new();
        for address in addresses {
            let key = Key::from(*address);
            // Never seen: it is deleted again in the same transaction.
            let element = Element::new(key.as_ref()).lasting(Duration::from_secs(1));
            for set in ["live", "quiet"] {
                batch.expel(TABLE, name(set, address.is_ipv6()), element);
            }
        }
        batch.finish()
    };
    Closing { all: prepare(addresses), each: addresses.chunks(1).map(prepare).collect() }
}

fn send_closing(nft: &mut Nft, closing: &Closing) -> Result<(), Error> {
    match nft.commit(&closing.all) {
        Err(error) if error.is(Errno::NOENT) => {}
        result => return Ok(result?),
    }
    let mut failed = None;
    for one in &closing.each {
        let mut tries = 0;
        loop {
            tries += 1;
            match nft.commit(one) {
                Err(error) if error.is(Errno::NOENT) && tries < TRIES => {}
                Err(error) => {
                    failed = Some(error);
                    break;
                }
                Ok(()) => break,
            }
        }
    }
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// The set of a family.
fn name(stem: &str, ipv6: bool) -> &'static str {
    match (stem, ipv6) {
        ("vips", false) => "vips4",
        ("vips", true) => "vips6",
        ("live", false) => "live4",
        ("live", true) => "live6",
        ("quiet", false) => "quiet4",
        (_, true) => "quiet6",
        (_, false) => "quiet4",
    }
}

fn put_sets(batch: &mut Batch, addresses: &[IpAddr]) {
    for ipv6 in [false, true] {
        let key = if ipv6 { DataType::IPV6 } else { DataType::IPV4 };
        batch.set(TABLE, &Set::new(name("vips", ipv6), key));
        for stem in ["live", "quiet"] {
            batch.set(TABLE, &Set { timeout: true, ..Set::new(name(stem, ipv6), key) });
        }
    }
    put_addresses(batch, addresses);
}

fn put_addresses(batch: &mut Batch, addresses: &[IpAddr]) {
    for ipv6 in [false, true] {
        let keys: Vec<Key> =
            addresses.iter().filter(|a| a.is_ipv6() == ipv6).map(|a| Key::from(*a)).collect();
        let elements: Vec<_> = keys.iter().map(|key| Element::new(key.as_ref())).collect();
        batch.add_elements(TABLE, name("vips", ipv6), &elements);
    }
}

pub(crate) const ARP: [u8; 2] = [0x08, 0x06];
pub const IPV4: [u8; 2] = [0x08, 0x00];
pub const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: [u8; 1] = [58];
const SOLICITATION: [u8; 1] = [135];
const ADVERTISEMENT: [u8; 1] = [136];
const R: Register = Register(0);

/// The link-local address of each device, where it has one.
fn link_locals(route: &mut Route, devices: &[&str]) -> Result<Vec<Option<[u8; 16]>>, socket::Error> {
    let (links, addresses) = (route.links()?, route.addresses()?);
    let own = |link: &Link| {
        addresses.iter().filter(|address| address.link == link.index).find_map(|address| {
            match address.address {
                IpAddr::V6(address) if address.is_unicast_link_local() => Some(address.octets()),
                _ => None,
            }
        })
    };
    Ok(devices.iter().map(|device| links.iter().find(|link| link.name == *device).and_then(own)).collect())
}

fn put_chains(batch: &mut Batch, device: &str, own: Option<[u8; 16]>) {
    let ingress = format!("ingress_{device}");
    batch.base_chain(TABLE, &ingress, Hook::Ingress { device }, PRIORITY);
    // The owner's announcement names its address as target, too: a client's cache must hear it.
    let mut rule = vec![X::LoadEthertype(R), X::Equal(R, &ARP), X::Load(Field::ARP_SENDER, R)];
    rule.extend([X::In { set: "vips4", key: R, not: false }, X::Decide(Verdict::Accept)]);
    batch.rule(TABLE, &ingress, &rule);
    put_drop(batch, &ingress, &ARP, None, Field::ARP_TARGET, false);
    put_drop(batch, &ingress, &IPV4, None, Field::IPV4_DESTINATION, true);
    put_drop(batch, &ingress, &IPV6, Some(&SOLICITATION), Field::ND_TARGET, false);
    put_drop(batch, &ingress, &IPV6, None, Field::IPV6_DESTINATION, true);

    let egress = format!("egress_{device}");
    batch.base_chain(TABLE, &egress, Hook::Egress { device }, PRIORITY);
    put_drop(batch, &egress, &ARP, None, Field::ARP_SENDER, false);
    put_drop(batch, &egress, &IPV4, None, Field::IPV4_SOURCE, true);
    put_drop(batch, &egress, &IPV6, Some(&ADVERTISEMENT), Field::ND_TARGET, false);
    if let Some(own) = own {
        let mut rule = Vec::from(discovery(&SOLICITATION));
        rule.extend([X::Load(Field::IPV6_SOURCE, R), X::In { set: "vips6", key: R, not: false }]);
        rule.push(X::In { set: "quiet6", key: R, not: false });
        rule.extend([X::LoadBytes(&own, R), X::Store(Field::IPV6_SOURCE, R), X::Decide(Verdict::Accept)]);
        batch.rule(TABLE, &egress, &rule);
    }
    put_drop(batch, &egress, &IPV6, Some(&SOLICITATION), Field::IPV6_SOURCE, false);
    put_drop(batch, &egress, &IPV6, None, Field::IPV6_SOURCE, true);
}

/// Matches neighbour discovery of this kind.
fn discovery(kind: &[u8]) -> [X<'_>; 6] {
    [
        X::LoadEthertype(R),
        X::Equal(R, &IPV6),
        X::LoadProtocol(R),
        X::Equal(R, &ICMPV6),
        X::Load(Field::ICMPV6_TYPE, R),
        X::Equal(R, kind),
    ]
}

/// Drops what has a fenced address in `field` that is not live (nor, where that is enough, quiet).
fn put_drop(
    batch: &mut Batch,
    chain: &str,
    ethertype: &[u8],
    icmpv6: Option<&[u8]>,
    field: Field,
    quiet_passes: bool,
) {
    let ipv6 = ethertype == IPV6;
    let mut rule = match icmpv6 {
        Some(kind) => Vec::from(discovery(kind)),
        None => vec![X::LoadEthertype(R), X::Equal(R, ethertype)],
    };
    rule.extend([X::Load(field, R), X::In { set: name("vips", ipv6), key: R, not: false }]);
    rule.push(X::In { set: name("live", ipv6), key: R, not: true });
    if quiet_passes {
        rule.push(X::In { set: name("quiet", ipv6), key: R, not: true });
    }
    rule.push(X::Decide(Verdict::Drop));
    batch.rule(TABLE, chain, &rule);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_write_is_late_when_what_it_wrote_could_outlive_the_deadline() {
        let timeout = Duration::from_millis(488);
        assert!(!could_outlive(500 * MS, timeout, 2 * MS));
        assert!(could_outlive(500 * MS, timeout, 3 * MS));
    }

    #[test]
    fn a_writer_that_stood_still_writes_again_with_what_is_left() {
        let deadline = clock::after(clock::now(), Duration::from_secs(5));
        let mut written = Vec::new();
        let held = hold_until(deadline, |timeout| {
            if written.is_empty() {
                std::thread::sleep(Duration::from_millis(40));
            }
            written.push(timeout);
            Ok::<_, ()>(())
        });
        assert_eq!(held, Ok(true));
        assert!(written.len() >= 2 && written[1] <= written[0] - Duration::from_millis(40), "{written:?}");
    }

    #[test]
    fn nothing_is_written_past_the_deadline() {
        let held = hold_until(clock::now(), |_| Err("written"));
        assert_eq!(held, Ok(false));
    }
}
