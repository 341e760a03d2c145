//! Second chance: after a planned move, TCP that began at the old owner is forwarded to it.
//!
//! Table `netdev trestle_chance`, on the new owner. Maps `old4`/`old6` go from a VIP to the old owner's
//! own address on that segment; their elements end by themselves at the move's deadline. `seen4`/`seen6`
//! hold the flows (client address and port, VIP and port) whose SYN came here; `any4`/`any6` ports of VIPs
//! whose flows may go on here, wherever they began (the kernel path's). One chain a device, behind the
//! fence, for TCP to a VIP of the map:
//!
//! 0. what goes to one of those ports is let in;
//! 1. a SYN is remembered and let in (let in also where the set is full: it began here all the same);
//! 2. what belongs to a flow that was remembered is let in;
//! 3. the rest is forwarded to the old owner (layer 2, the packet stays as it is), which answers straight
//!    to the client, its fence being quiet.
//!
//! Only TCP, and only packets that carry its header: later fragments go to the old owner. A flow that
//! is not remembered because the set was full is forwarded, and the old owner resets it. A flow is
//! forgotten when no chance is armed any more, or after [`CHANCE_MAX`], the longest that one lasts.
//!
//! Invariant: with no element in the maps, no packet is touched. The table goes with the process that
//! made it where the kernel has owners.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use rustix::io::Errno;

use crate::{
    clock,
    fence::{self, IPV4, IPV6},
    nft::{
        Batch, DataType, Element, Expression as X, Family, Field, Hook, Key, Nft, Register, Set, Table,
        TableFlags, Verdict,
    },
    socket::Error,
};

pub const TABLE: Table<'static> = Table { family: Family::Netdev, name: "trestle_chance" };
/// Behind the fence, before other chains.
const PRIORITY: i32 = -490;
/// Flows a family that are remembered.
pub const FLOWS_MAX: u32 = 262_144;
/// Ports of [`Move::except`], all in all; what lies beyond is forwarded like the others.
pub const EXCEPT_MAX: usize = 4096;
/// The longest that a chance lasts; a later deadline is cut to it.
pub const CHANCE_MAX: Duration = Duration::from_secs(3600);

/// A VIP that has moved here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move<'a> {
    pub vips: &'a [IpAddr],
    /// The old owner's own addresses on the segment; a VIP of a family that has none gets no chance.
    pub old: &'a [IpAddr],
    /// First and last of ports whose flows are not forwarded.
    pub except: &'a [(u16, u16)],
    /// Name and index of the interface.
    pub device: (&'a str, u32),
    /// CLOCK_BOOTTIME, nanoseconds.
    pub until: u64,
}

#[derive(Debug)]
pub struct Chance {
    nft: Nft,
    /// Devices that have a chain, by name, with the index it forwards to.
    devices: BTreeMap<String, u32>,
    armed: BTreeMap<IpAddr, u64>,
    /// Keys of `any4` and `any6`, by VIP.
    excepted: BTreeMap<IpAddr, Vec<Vec<u8>>>,
    flows: u32,
}

impl Chance {
    /// An empty table, in place of what a dead process left.
    pub fn install() -> Result<Self, Error> {
        Self::with_flows(FLOWS_MAX)
    }

    /// With another bound on remembered flows.
    pub fn with_flows(flows: u32) -> Result<Self, Error> {
        let mut nft = Nft::open()?;
        let there = nft.table(TABLE)?.is_some();
        let mut install = |flags| {
            nft.change(|batch| {
                if there {
                    batch.delete_table(TABLE);
                }
                batch.table(TABLE, flags);
                put_sets(batch, flows);
            })
        };
        match install(TableFlags::OWNER) {
            Err(error) if error.is(Errno::OPNOTSUPP) || error.is(Errno::INVAL) => install(TableFlags::NONE)?,
            result => result?,
        }
        Ok(Self { nft, devices: BTreeMap::new(), armed: BTreeMap::new(), excepted: BTreeMap::new(), flows })
    }

    /// Flows a family that are remembered at most.
    #[must_use]
    pub fn flows(&self) -> u32 {
        self.flows
    }

    /// From here on, what began elsewhere is forwarded; to be called before the VIP's fence opens. The VIPs
    /// that got a chance: `false` for one whose deadline has passed or that has no old owner of its
    /// family.
    pub fn arm(&mut self, moved: &Move<'_>) -> Result<Vec<(IpAddr, bool)>, Error> {
        let now = clock::now();
        let until = moved.until.min(clock::after(now, CHANCE_MAX));
        self.armed.retain(|_, end| *end > now);
        if self.armed.is_empty() {
            self.forget()?;
        }
        self.put_device(moved.device)?;
        let mut results = Vec::with_capacity(moved.vips.len());
        for vip in moved.vips {
            self.except(*vip, moved.except)?;
            let old = moved.old.iter().find(|old| old.is_ipv6() == vip.is_ipv6());
            let armed = match old {
                Some(old) => self.hold(*vip, *old, until)?,
                None => false,
            };
            if armed {
                self.armed.insert(*vip, until);
            }
            results.push((*vip, armed));
        }
        Ok(results)
    }

    /// Nothing of these VIPs is forwarded any more.
    pub fn disarm(&mut self, vips: &[IpAddr]) -> Result<(), Error> {
        for vip in vips {
            let key = Key::from(*vip);
            let deleted = self.nft.change(|batch| {
                batch.delete_elements(TABLE, map(vip.is_ipv6()), &[Element::new(key.as_ref())]);
            });
            // It may have ended by itself.
            deleted.or_else(|error| if error.is(Errno::NOENT) { Ok(()) } else { Err(error) })?;
            self.armed.remove(vip);
            self.except(*vip, &[])?;
        }
        if self.armed.is_empty() { self.forget() } else { Ok(()) }
    }

    /// Flows to these ports of the VIP, and to no others of it, go on here.
    fn except(&mut self, vip: IpAddr, ports: &[(u16, u16)]) -> Result<(), Error> {
        let key = |port: u16| [Key::from(vip).as_ref(), &port.to_be_bytes(), &[0; 2]].concat();
        let all = ports.iter().flat_map(|(first, last)| *first..=*last).take(EXCEPT_MAX);
        let now: Vec<Vec<u8>> = all.collect::<BTreeSet<_>>().into_iter().map(key).collect();
        let before = self.excepted.get(&vip).map(Vec::as_slice).unwrap_or_default();
        if now == before {
            return Ok(());
        }
        fn elements(keys: &[Vec<u8>]) -> Vec<Element<'_>> {
            keys.iter().map(|key| Element::new(key)).collect()
        }
        let set = any(vip.is_ipv6());
        let mut batch = Batch::new();
        batch.delete_elements(TABLE, set, &elements(before));
        batch.add_elements(TABLE, set, &elements(&now));
        self.nft.commit(&batch.finish())?;
        self.excepted.insert(vip, now);
        Ok(())
    }

    fn hold(&mut self, vip: IpAddr, old: IpAddr, until: u64) -> Result<bool, Error> {
        let (key, value) = (Key::from(vip), Key::from(old));
        let map = map(vip.is_ipv6());
        let held = fence::hold_until(until, |timeout| {
            // One that is there may name another old owner, which adding again would not change.
            let element = Element::new(key.as_ref()).with(value.as_ref()).lasting(timeout);
            let replaced = self.nft.change(|batch| {
                batch.delete_elements(TABLE, map, &[Element::new(key.as_ref())]);
                batch.add_elements(TABLE, map, &[element]);
            });
            match replaced {
                Err(error) if error.is(Errno::NOENT) => {
                    self.nft.change(|batch| batch.add_elements(TABLE, map, &[element]))
                }
                result => result,
            }
        })?;
        if !held {
            self.disarm(&[vip])?;
        }
        Ok(held)
    }

    /// Drops the remembered flows.
    fn forget(&mut self) -> Result<(), Error> {
        self.nft.change(|batch| {
            batch.flush_set(TABLE, "seen4");
            batch.flush_set(TABLE, "seen6");
        })
    }

    fn put_device(&mut self, (name, index): (&str, u32)) -> Result<(), Error> {
        let chain = format!("ingress_{name}");
        // A chain goes with its device; one that came back under the name has another index.
        let there = self.nft.chains(TABLE)?.iter().any(|info| info.name == chain);
        if there && self.devices.get(name) == Some(&index) {
            return Ok(());
        }
        self.nft.change(|batch| {
            if there {
                batch.delete_chain(TABLE, &chain);
            }
            batch.base_chain(TABLE, &chain, Hook::Ingress { device: name }, PRIORITY);
            put_rules(batch, &chain, index, false);
            put_rules(batch, &chain, index, true);
        })?;
        self.devices.insert(name.to_owned(), index);
        Ok(())
    }

    /// Deletes the table.
    pub fn remove(mut self) -> Result<(), Error> {
        self.nft.change(|batch| batch.delete_table(TABLE))
    }
}

fn map(ipv6: bool) -> &'static str {
    if ipv6 { "old6" } else { "old4" }
}

fn any(ipv6: bool) -> &'static str {
    if ipv6 { "any6" } else { "any4" }
}

fn seen(ipv6: bool) -> &'static str {
    if ipv6 { "seen6" } else { "seen4" }
}

fn put_sets(batch: &mut Batch, flows: u32) {
    for ipv6 in [false, true] {
        let address = if ipv6 { DataType::IPV6 } else { DataType::IPV4 };
        let old = Set { value: Some(address), timeout: true, ..Set::new(map(ipv6), address) };
        batch.set(TABLE, &old);
        batch.set(TABLE, &Set::new(any(ipv6), DataType::concat(&[address, DataType::PORT])));
        let flow = DataType::concat(&[address, DataType::PORT, address, DataType::PORT]);
        let seen = Set { timeout: true, dynamic: true, size: Some(flows), ..Set::new(seen(ipv6), flow) };
        batch.set(TABLE, &seen);
    }
}

const TCP: [u8; 1] = [6];
const SYN: [u8; 1] = [0x02];
const SYN_ACK: [u8; 1] = [0x12];
const R: Register = Register(0);

fn put_rules(batch: &mut Batch, chain: &str, index: u32, ipv6: bool) {
    let (source, destination, width) = if ipv6 {
        (Field::IPV6_SOURCE, Field::IPV6_DESTINATION, 4)
    } else {
        (Field::IPV4_SOURCE, Field::IPV4_DESTINATION, 1)
    };
    // The flow lies in one run of registers: address, port, address, port.
    let flow = [
        X::Load(source, R),
        X::Load(Field::SOURCE_PORT, Register(width)),
        X::Load(destination, Register(width + 1)),
        X::Load(Field::DESTINATION_PORT, Register(2 * width + 1)),
    ];
    let old = Register(8);
    let device = Register(12);
    let ethertype: &[u8] = if ipv6 { &IPV6 } else { &IPV4 };
    let to_vip = [
        X::LoadEthertype(R),
        X::Equal(R, ethertype),
        X::LoadProtocol(R),
        X::Equal(R, &TCP),
        X::Load(destination, R),
        X::Map { map: map(ipv6), key: R, value: old },
    ];
    let syn = [X::Load(Field::TCP_FLAGS, R), X::Mask(R, &SYN_ACK), X::Equal(R, &SYN)];
    let accept = [X::Decide(Verdict::Accept)];
    let excepted = [
        X::Load(destination, R),
        X::Load(Field::DESTINATION_PORT, Register(width)),
        X::In { set: any(ipv6), key: R, not: false },
    ];
    let timeout_ms = CHANCE_MAX.as_millis() as u64;
    let remember = [X::Update { set: seen(ipv6), key: R, timeout_ms }];
    let known = [X::In { set: seen(ipv6), key: R, not: false }];
    let index = index.to_ne_bytes();
    let forward = [X::LoadBytes(&index, device), X::Forward { device, address: old, ipv6 }];

    batch.rule(TABLE, chain, &[&to_vip[..], &excepted, &accept].concat());
    batch.rule(TABLE, chain, &[&to_vip[..], &syn, &flow, &remember, &accept].concat());
    // Reached where the set was full.
    batch.rule(TABLE, chain, &[&to_vip[..], &syn, &accept].concat());
    batch.rule(TABLE, chain, &[&to_vip[..], &flow, &known, &accept].concat());
    batch.rule(TABLE, chain, &[&to_vip[..], &forward].concat());
}
