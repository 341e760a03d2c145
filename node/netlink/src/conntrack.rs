//! Connection tracking: the flows that the kernel knows, and ends put to some.
//!
//! A list of all flows is walked, never kept: a machine may have millions. Reading one takes some 1 µs of the
//! kernel's time and as much of ours.
//!
//! Sources: `linux/netfilter/nfnetlink_conntrack.h`, `nf_conntrack_common.h`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustix::io::Errno;

use crate::socket::{Error, Protocol, Socket, next_sequence};
use crate::wire::{self, Attributes, Builder, Message};

const SUBSYSTEM: u16 = 1 << 8;
/// enum cntl_msg_types
const NEW: u16 = 0;
const GET: u16 = 1;
const DELETE: u16 = 2;

/// Of flows in one message to the kernel.
const ENDS_A_MESSAGE: usize = 64;

/// A direction of a flow, as its packets have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// A flow of TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TrackedFlow {
    /// Of IP: 6 or 17.
    pub protocol: u8,
    /// Of the packet with which it began here.
    pub original: Tuple,
    pub reply: Tuple,
    /// `IPS_*`.
    pub status: u32,
    /// The kernel's own; it tells apart flows that have the same addresses one after the other.
    pub id: u32,
    /// For TCP: its connection has an end on both sides, or never began.
    pub is_closed: bool,
    /// Until it is forgotten if nothing more is seen of it.
    pub seconds_left: u32,
}

impl TrackedFlow {
    const SEEN_REPLY: u32 = 1 << 1;
    const SOURCE_NAT: u32 = 1 << 4;
    const DESTINATION_NAT: u32 = 1 << 5;

    /// Packets of both directions were seen.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.status & Self::SEEN_REPLY != 0
    }

    #[must_use]
    pub fn is_rewritten(&self) -> bool {
        self.status & (Self::SOURCE_NAT | Self::DESTINATION_NAT) != 0
    }

    /// It began with a packet whose destination was rewritten.
    #[must_use]
    pub fn has_new_destination(&self) -> bool {
        self.status & Self::DESTINATION_NAT != 0
    }
}

#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::open(Protocol::Netfilter)?;
        socket.set_patience(Duration::from_secs(20));
        // A list comes faster than it is read.
        let _ = socket.set_receive_buffer(1024 * 1024);
        Ok(Self { socket })
    }

    /// Tells every flow of TCP and UDP. What begins or ends meanwhile may be left out.
    pub fn walk(&mut self, ipv6: bool, mut each: impl FnMut(&TrackedFlow)) -> Result<(), Error> {
        let sequence = next_sequence();
        let mut builder = Builder::with_capacity(64);
        let open = builder.message(SUBSYSTEM | GET, wire::REQUEST | wire::DUMP, sequence);
        builder.raw(&[family(ipv6), 0, 0, 0]);
        builder.end_message(open);
        self.socket.ask::<()>(builder.bytes(), sequence, "list flows", |_, message| {
            if let Some(flow) = read(message) {
                each(&flow);
            }
        })?;
        Ok(())
    }

    /// Forgets these flows; what comes of them next is taken for something new. One that is gone by itself is
    /// no error.
    pub fn end(&mut self, flows: &[TrackedFlow]) -> Result<(), Error> {
        self.change(DELETE, flows, "end a flow", |builder, flow| builder.be32(12, flow.id))
    }

    /// Has these flows forgotten in so long (whole seconds, at least one), unless a packet of theirs comes before: one
    /// that does gives a flow its usual time again.
    pub fn end_if_silent(&mut self, flows: &[TrackedFlow], within: Duration) -> Result<(), Error> {
        let seconds = u32::try_from(within.as_secs().max(1)).unwrap_or(u32::MAX);
        self.change(NEW, flows, "shorten the time of a flow", |builder, _| builder.be32(7, seconds))
    }

    fn change(
        &mut self,
        kind: u16,
        flows: &[TrackedFlow],
        what: &'static str,
        how: impl Fn(&mut Builder, &TrackedFlow),
    ) -> Result<(), Error> {
        for some in flows.chunks(ENDS_A_MESSAGE) {
            let mut builder = Builder::with_capacity(128 * some.len());
            let mut last = 0;
            for (at, flow) in some.iter().enumerate() {
                last = next_sequence();
                let flags = if at + 1 == some.len() { wire::REQUEST | wire::ACK } else { wire::REQUEST };
                let open = builder.message(SUBSYSTEM | kind, flags, last);
                builder.raw(&[family(flow.original.source.is_ipv6()), 0, 0, 0]);
                put_tuple(&mut builder, flow);
                how(&mut builder, flow);
                builder.end_message(open);
            }
            match self.socket.transact(builder.bytes(), last, |_| what) {
                Err(error) if !error.is(Errno::NOENT) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

fn family(ipv6: bool) -> u8 {
    if ipv6 { 10 } else { 2 }
}

fn put_tuple(builder: &mut Builder, flow: &TrackedFlow) {
    let Tuple { source, destination } = flow.original;
    let tuple = builder.nest(1);
    let ip = builder.nest(1);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            builder.attribute(1, &source.octets());
            builder.attribute(2, &destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            builder.attribute(3, &source.octets());
            builder.attribute(4, &destination.octets());
        }
        // The kernel has no such flow.
        _ => {}
    }
    builder.end_nest(ip);
    let ports = builder.nest(2);
    builder.attribute(1, &[flow.protocol]);
    builder.attribute(2, &source.port().to_be_bytes());
    builder.attribute(3, &destination.port().to_be_bytes());
    builder.end_nest(ports);
    builder.end_nest(tuple);
}

fn read(message: &Message<'_>) -> Option<TrackedFlow> {
    if message.kind != SUBSYSTEM | NEW {
        return None;
    }
    let (_, attributes) = message.split::<4>()?;
    let (protocol, original) = read_tuple(attributes.find(1)?.nested())?;
    let (_, reply) = read_tuple(attributes.find(2)?.nested())?;
    // CTA_PROTOINFO, CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE
    let state = attributes.find(4).and_then(|info| info.nested().find(1)?.nested().find(1));
    let state = state.and_then(|state| state.value.first().copied());
    // From TCP_CONNTRACK_TIME_WAIT on.
    let is_closed = state.is_some_and(|state| state >= 7);
    let number = |kind| attributes.find(kind).and_then(|a| a.be32()).unwrap_or(0);
    let (status, id, seconds_left) = (number(3), number(12), number(7));
    Some(TrackedFlow { protocol, original, reply, status, id, is_closed, seconds_left })
}

/// With its protocol; `None`: it has no ports.
fn read_tuple(tuple: Attributes<'_>) -> Option<(u8, Tuple)> {
    let (ip, ports) = (tuple.find(1)?.nested(), tuple.find(2)?.nested());
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        let four = || Some(<[u8; 4]>::try_from(ip.find(v4)?.value).ok()?.into());
        let six = || Some(<[u8; 16]>::try_from(ip.find(v6)?.value).ok()?.into());
        four().or_else(six)
    };
    let port = |kind| Some(u16::from_be_bytes(*ports.find(kind)?.value.first_chunk()?));
    let protocol = *ports.find(1)?.value.first()?;
    let source = SocketAddr::new(address(1, 3)?, port(2)?);
    let destination = SocketAddr::new(address(2, 4)?, port(3)?);
    matches!(protocol, 6 | 17).then_some((protocol, Tuple { source, destination }))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;
    use crate::nft::{Expression, Family, Flow, Hook, Nft, Register, Table, TableFlags};
    use crate::testing::{Namespace, available};

    #[test]
    fn flows_are_read_and_forgotten() {
        if !available(&[]) {
            return;
        }
        Namespace::new("flows").enter(|| {
            // Connection tracking sleeps until somebody asks it something.
            let (table, mut nft) = (Table { family: Family::Inet, name: "some" }, Nft::open().unwrap());
            nft.change(|batch| {
                batch.table(table, TableFlags::NONE);
                batch.base_chain(table, "in", Hook::Inet { hook: 0 }, 0);
                batch.rule(table, "in", &[Expression::LoadFlow(Flow::State, Register(0))]);
            })
            .unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let mut conntrack = Conntrack::open().unwrap();
            let mut flows = |seen: &mut Vec<TrackedFlow>| {
                seen.clear();
                conntrack.walk(false, |flow| seen.push(*flow)).unwrap();
                conntrack.end(seen).unwrap();
                conntrack.end(seen).unwrap();
            };
            let mut seen = Vec::new();
            flows(&mut seen);
            let [flow] = seen[..] else { panic!("{seen:?}") };
            assert_eq!(flow.original.source, stream.local_addr().unwrap());
            assert_eq!(flow.reply.source, stream.peer_addr().unwrap());
            assert_eq!((flow.protocol, flow.is_closed, flow.is_rewritten()), (6, false, false));
            flows(&mut seen);
            assert_eq!(seen, []);
        });
    }

    proptest! {
        #[test]
        fn flows_of_any_bytes_are_read(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let message = Message { kind: SUBSYSTEM, flags: 0, sequence: 0, port: 0, payload: &payload };
            let _ = read(&message);
        }
    }
}
