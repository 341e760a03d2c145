//! What node and guard say to each other: one message a datagram over a SOCK_SEQPACKET socket pair,
//! as postcard behind a version byte. The node's end closing is the signal that the node has died.
//!
//! Times are nanoseconds of CLOCK_BOOTTIME: both ends are on one machine, so they are absolute.
//!
//! Invariant: [`decode`] takes any bytes without a panic, and what it gives is within the bounds below.

mod link;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use link::{GuardLink, Link, LinkError, NodeLink, pair};

/// First byte of each message. Both ends are the same binary; an upgrade in place may mix them once.
pub const VERSION: u8 = 1;
/// Largest message; both ends refuse longer ones.
pub const MESSAGE_MAX: usize = 60 * 1024;
/// VIPs of one guard.
pub const VIPS_MAX: usize = 64;
/// Addresses of one VIP.
pub const ADDRESSES_MAX: usize = 16;
/// Ranges of ports of a [`ToGuard::Chance`].
pub const PORTS_MAX: usize = 256;
/// Bytes of a VIP's or an interface's name.
pub const NAME_MAX: usize = 255;
/// Datagrams of one [`ToGuard::Notice`].
pub const DATAGRAMS_MAX: usize = 1024;

/// A VIP as the config has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipSpec {
    pub name: String,
    /// Address and prefix length.
    pub addresses: Vec<(IpAddr, u8)>,
    /// `None`: the interface whose subnet holds the addresses.
    pub interface: Option<String>,
    /// Life of its lease, nanoseconds: the pace of things that go by it.
    pub ttl: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuard {
    /// All VIPs there are; what is not listed any more is let go at once. Sent first, and after each
    /// change. The guard sweeps addresses and fence state that a dead process left before it
    /// answers the first one with `Started`.
    Configure { vips: Vec<VipSpec> },
    /// The lease of `vip` under `epoch` was renewed: the renewal was sent at `sent` and the lease ends
    /// at `deadline`. The guard holds the address until then: adds it and opens the fence if it is not
    /// there, extends otherwise. `probe`: first take-over of this VIP ever; look for a stranger first.
    /// Does nothing but answer `Heard` if the deadline has passed, the epoch is lower than one granted before,
    /// or the guard has let go or gone silent in it: it may be granted to somebody else by now.
    Grant { vip: String, epoch: u64, sent: u64, deadline: u64, probe: bool },
    /// Sealed datagrams that say that this guard has let go of everything it held. Sent as they are,
    /// after everything was let go, when the node's end closes. Replaces the last ones.
    Notice { datagrams: Vec<(SocketAddr, Vec<u8>)> },
    /// Let go now: close the fence, remove the address. Answered by `Released`, also if it is not held.
    Release { vip: String },
    /// Planned move away: no ARP or ND for it from here on, but what arrives is served and answered
    /// until `until` at the latest. Answered by `Silent`, or by `Released` where it is not held or can't
    /// be kept silently. Ends early with `Release`.
    Silence { vip: String, until: u64 },
    /// Planned move to here, prepared before the grant: forward what did not begin here to `old`, the
    /// old owner's own addresses on that segment (one a family at most), until `until`. Answered by
    /// `ChanceReady`, or by `Problem` where it can't be done.
    /// Flows to the ports in `except` (first and last) are not forwarded.
    Chance { vip: String, old: Vec<IpAddr>, except: Vec<(u16, u16)>, until: u64 },
    /// The old owner has nothing left: end it.
    EndChance { vip: String },
    /// Look for a stranger with the VIP's addresses (RFC 5227 probes). Answered by `Probed`, or by
    /// `Problem` where it can't be done. Only while nobody owns it.
    Probe { vip: String },
    /// Another program has taken the node's place in its process and has this end of the socket now. Answered by
    /// what it can't know: `Usable` of each VIP, `Holding` where there is a lease, `Released` with the last epoch
    /// that was let go of where there was one; and then `Started`.
    Resume,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromGuard {
    /// Once, after the first `Configure` was carried out; and after each `Resume`.
    Started {
        /// Drawn anew by each guard process: leases belong to it.
        session: [u8; 16],
        /// Protection of its memory and pace that it does without, in words.
        unprotected: Vec<String>,
        /// What it could not do to the interfaces, in words.
        weak: Vec<String>,
        /// Addresses that a dead process had left and that were swept.
        swept: Vec<IpAddr>,
    },
    /// After each `Configure`, and when it changes (a link appears, a fence is flushed): whether the
    /// VIP could be held here.
    Usable {
        vip: String,
        /// Interface it goes to.
        interface: Option<String>,
        /// This machine's own addresses there, one a family at most, that others could forward to.
        via: Vec<IpAddr>,
        /// Whether fence 2 (nf_tables) stands.
        fenced: bool,
        /// Why it can't be held; `None`: it can.
        problem: Option<String>,
    },
    /// The address is there, the fence open, and the neighbours told. Said again for each renewal, as a
    /// sign of life.
    Holding {
        vip: String,
        epoch: u64,
    },
    /// A `Grant` was heard and changed nothing: it came too late, or ends before what was granted already, or
    /// a stranger was seen after it was sent. A sign of life.
    Heard {
        vip: String,
    },
    /// The address is gone (or was not there).
    Released {
        vip: String,
        epoch: u64,
        why: Why,
    },
    Silent {
        vip: String,
    },
    ChanceReady {
        vip: String,
    },
    /// Somebody else announces an address of a VIP that is held here: its fence is shut until a renewal
    /// sent after `at` is granted.
    Stranger {
        vip: String,
        address: IpAddr,
        mac: [u8; 6],
        at: u64,
    },
    /// `taken_by`: a stranger that has one of the addresses.
    Probed {
        vip: String,
        taken_by: Option<(IpAddr, [u8; 6])>,
    },
    /// Something did not work; for status and log.
    Problem {
        vip: Option<String>,
        text: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// It was told to.
    Asked,
    /// The lease ended.
    Ended,
    /// It was not in the config any more.
    Unconfigured,
    /// The fence was flushed, the link went, or the kernel refused.
    Failed(String),
    /// A stranger has the address (first take-over).
    Taken([u8; 6]),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a message of {0} bytes; the most is {MESSAGE_MAX}")]
    TooLong(usize),
    #[error("an empty message")]
    Empty,
    #[error("a message of version {0}; this is version {VERSION}")]
    Version(u8),
    #[error("not a message: {0}")]
    Malformed(#[from] postcard::Error),
    #[error("{0} bytes behind the message")]
    Trailing(usize),
    #[error("{what}: {found}; the most is {most}")]
    Bound { what: &'static str, found: usize, most: usize },
}

/// One of the two kinds of messages.
pub trait Message: Serialize + DeserializeOwned {
    /// Within the bounds of this protocol?
    fn check(&self) -> Result<(), WireError>;
}

impl Message for ToGuard {
    fn check(&self) -> Result<(), WireError> {
        match self {
            Self::Configure { vips } => {
                bound("VIPs", vips.len(), VIPS_MAX)?;
                for vip in vips {
                    name(&vip.name)?;
                    vip.interface.as_deref().map_or(Ok(()), name)?;
                    bound("addresses of a VIP", vip.addresses.len(), ADDRESSES_MAX)?;
                    for (address, prefix) in &vip.addresses {
                        let most = if address.is_ipv4() { 32 } else { 128 };
                        bound("prefix length", usize::from(*prefix), most)?;
                    }
                }
                Ok(())
            }
            Self::Notice { datagrams } => bound("datagrams", datagrams.len(), DATAGRAMS_MAX),
            Self::Resume => Ok(()),
            Self::Chance { vip, old, except, .. } => {
                bound("ranges of ports", except.len(), PORTS_MAX)?;
                bound("addresses of the old owner", old.len(), ADDRESSES_MAX)?;
                name(vip)
            }
            Self::Grant { vip, .. }
            | Self::Release { vip }
            | Self::Silence { vip, .. }
            | Self::EndChance { vip }
            | Self::Probe { vip } => name(vip),
        }
    }
}

impl Message for FromGuard {
    fn check(&self) -> Result<(), WireError> {
        match self {
            // What is in them came from one of the messages above, or is cut to its size by the guard.
            Self::Usable { vip, .. }
            | Self::Holding { vip, .. }
            | Self::Heard { vip }
            | Self::Released { vip, .. }
            | Self::Silent { vip }
            | Self::ChanceReady { vip }
            | Self::Stranger { vip, .. }
            | Self::Probed { vip, .. } => name(vip),
            Self::Started { .. } | Self::Problem { .. } => Ok(()),
        }
    }
}

fn name(name: &str) -> Result<(), WireError> {
    bound("bytes of a name", name.len(), NAME_MAX)
}

fn bound(what: &'static str, found: usize, most: usize) -> Result<(), WireError> {
    if found <= most { Ok(()) } else { Err(WireError::Bound { what, found, most }) }
}

pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, WireError> {
    message.check()?;
    let bytes = postcard::to_extend(message, vec![VERSION])?;
    if bytes.len() <= MESSAGE_MAX { Ok(bytes) } else { Err(WireError::TooLong(bytes.len())) }
}

pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, WireError> {
    if bytes.len() > MESSAGE_MAX {
        return Err(WireError::TooLong(bytes.len()));
    }
    let (version, body) = bytes.split_first().ok_or(WireError::Empty)?;
    if *version != VERSION {
        return Err(WireError::Version(*version));
    }
    let (message, rest) = postcard::take_from_bytes::<M>(body)?;
    if !rest.is_empty() {
        return Err(WireError::Trailing(rest.len()));
    }
    message.check()?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(name: &str) -> VipSpec {
        VipSpec {
            name: name.to_owned(),
            addresses: vec![("198.18.0.100".parse().unwrap(), 24), ("2001:db8::1".parse().unwrap(), 64)],
            interface: None,
            ttl: 1_000_000_000,
        }
    }

    fn to_guard() -> Vec<ToGuard> {
        let vip = || "front".to_owned();
        vec![
            ToGuard::Configure { vips: vec![spec("front"), spec("back")] },
            ToGuard::Grant { vip: vip(), epoch: 7, sent: 1, deadline: u64::MAX, probe: true },
            ToGuard::Notice { datagrams: vec![("198.18.0.1:7400".parse().unwrap(), vec![1; 300])] },
            ToGuard::Release { vip: vip() },
            ToGuard::Silence { vip: vip(), until: 9 },
            ToGuard::Chance {
                vip: vip(),
                old: vec!["198.18.0.2".parse().unwrap()],
                except: vec![(90, 99)],
                until: 9,
            },
            ToGuard::EndChance { vip: vip() },
            ToGuard::Probe { vip: vip() },
            ToGuard::Resume,
        ]
    }

    fn from_guard() -> Vec<FromGuard> {
        let vip = || "front".to_owned();
        let address: IpAddr = "198.18.0.100".parse().unwrap();
        vec![
            FromGuard::Started {
                session: [7; 16],
                unprotected: vec!["no lock".to_owned()],
                weak: Vec::new(),
                swept: vec![address],
            },
            FromGuard::Usable {
                vip: vip(),
                interface: Some("eth0".to_owned()),
                via: vec![address],
                fenced: true,
                problem: Some("none".to_owned()),
            },
            FromGuard::Holding { vip: vip(), epoch: 3 },
            FromGuard::Heard { vip: vip() },
            FromGuard::Released { vip: vip(), epoch: 3, why: Why::Failed("gone".to_owned()) },
            FromGuard::Released { vip: vip(), epoch: 3, why: Why::Taken([1; 6]) },
            FromGuard::Silent { vip: vip() },
            FromGuard::ChanceReady { vip: vip() },
            FromGuard::Stranger { vip: vip(), address, mac: [2; 6], at: 5 },
            FromGuard::Probed { vip: vip(), taken_by: Some((address, [2; 6])) },
            FromGuard::Problem { vip: None, text: "text".to_owned() },
        ]
    }

    #[test]
    fn each_message_is_read_as_it_was_written() {
        for message in to_guard() {
            assert_eq!(decode::<ToGuard>(&encode(&message).unwrap()).unwrap(), message);
        }
        for message in from_guard() {
            assert_eq!(decode::<FromGuard>(&encode(&message).unwrap()).unwrap(), message);
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_by_both_ends() {
        let many = |count| vec![spec("v"); count];
        let mut wide = spec("wide");
        wide.addresses[0].1 = 33;
        let mut crowd = spec("crowd");
        crowd.addresses = vec![crowd.addresses[0]; ADDRESSES_MAX + 1];
        let to: std::net::SocketAddr = "198.18.0.1:1".parse().unwrap();
        let cases = [
            ("VIPs", ToGuard::Configure { vips: many(VIPS_MAX + 1) }),
            ("addresses of a VIP", ToGuard::Configure { vips: vec![crowd] }),
            ("prefix length", ToGuard::Configure { vips: vec![wide] }),
            ("bytes of a name", ToGuard::Release { vip: "v".repeat(NAME_MAX + 1) }),
            ("datagrams", ToGuard::Notice { datagrams: vec![(to, Vec::new()); DATAGRAMS_MAX + 1] }),
        ];
        for (expected, message) in cases {
            let bytes = postcard::to_extend(&message, vec![VERSION]).unwrap();
            for result in [encode(&message).map(|_| ()), decode::<ToGuard>(&bytes).map(|_| ())] {
                match result {
                    Err(WireError::Bound { what, .. }) => assert_eq!(what, expected),
                    other => panic!("{expected}: {other:?}"),
                }
            }
        }
        let long = ToGuard::Notice { datagrams: vec![(to, vec![0; MESSAGE_MAX])] };
        assert!(matches!(encode(&long), Err(WireError::TooLong(_))));
        assert!(matches!(decode::<ToGuard>(&vec![VERSION; MESSAGE_MAX + 1]), Err(WireError::TooLong(_))));
    }

    #[test]
    fn another_version_and_bytes_behind_the_message_are_refused() {
        let mut bytes = encode(&ToGuard::Probe { vip: "v".to_owned() }).unwrap();
        bytes.push(0);
        assert_eq!(decode::<ToGuard>(&bytes), Err(WireError::Trailing(1)));
        bytes[0] = VERSION + 1;
        assert_eq!(decode::<ToGuard>(&bytes), Err(WireError::Version(VERSION + 1)));
        assert_eq!(decode::<ToGuard>(&[]), Err(WireError::Empty));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_a_panic(
            version in prop_oneof![Just(VERSION), any::<u8>()],
            body in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let bytes = [&[version][..], &body].concat();
            let _ = decode::<ToGuard>(&bytes);
            let _ = decode::<FromGuard>(&bytes);
        }

        #[test]
        fn a_damaged_message_is_decoded_without_a_panic(
            which in 0usize..9, at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = encode(&to_guard()[which]).unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = decode::<ToGuard>(&bytes);
            let _ = decode::<ToGuard>(&bytes[..cut.index(bytes.len())]);
        }
    }
}
