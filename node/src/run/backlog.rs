//! Connections that the kernel has made and that nobody has accepted yet, and what it dropped for want of
//! room for them.
//!
//! Read from procfs when it is asked for: the queues of listening sockets stand first in its tables, so that
//! reading ends before the connections, of which there may be a million.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use trestle_dataplane::{BACKLOG, BoundListener};

/// That sockets ask for; `net.core.somaxconn` may lower it.
const WANTED: u64 = BACKLOG as u64;
/// Of a socket's state, in hexadecimal.
const LISTENS: &str = "0A";

/// What the kernel has counted in this network namespace, whichever program listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dropped {
    /// Connections that were complete, and found the queue full.
    pub(crate) full: u64,
    /// SYNs that were dropped for want of room, a full queue among the reasons.
    pub(crate) syns: u64,
    /// SYNs that were answered by a cookie.
    pub(crate) cookies: u64,
}

/// Connections that wait at each listener, in the order of these.
pub(crate) fn waiting(listeners: &[BoundListener]) -> Vec<u64> {
    let mut queues = Vec::new();
    for table in ["/proc/self/net/tcp", "/proc/self/net/tcp6"] {
        // Without IPv6 there is no second one.
        if let Ok(file) = File::open(table) {
            queues.extend(queues_of(BufReader::new(file)).unwrap_or_default());
        }
    }
    listeners.iter().map(|listener| of_listener(listener, &queues)).collect()
}

fn of_listener(listener: &BoundListener, queues: &[(SocketAddr, u64)]) -> u64 {
    let Ok(address) = listener.state else { return 0 };
    let last = address.port().saturating_add(listener.bind.more);
    let is_its = |(local, _): &&(SocketAddr, u64)| {
        let at = local.ip().to_canonical();
        (address.port()..=last).contains(&local.port())
            && (at == address.ip().to_canonical() || address.ip().is_unspecified() && at.is_unspecified())
    };
    queues.iter().filter(is_its).map(|(_, waiting)| waiting).sum()
}

/// Addresses and queues of the listening sockets at a table's beginning.
fn queues_of(table: impl BufRead) -> io::Result<Vec<(SocketAddr, u64)>> {
    let mut queues = Vec::new();
    for line in table.lines().skip(1) {
        let line = line?;
        let mut words = line.split_ascii_whitespace().skip(1);
        let (Some(local), Some(_), Some(state), Some(bytes)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        if state != LISTENS {
            break;
        }
        let waiting = bytes.split_once(':').and_then(|(_, waiting)| u64::from_str_radix(waiting, 16).ok());
        queues.extend(socket_address(local).zip(waiting));
    }
    Ok(queues)
}

/// `0100007F:1F90`: words of 32 bits in the machine's own order.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..ip.len()).step_by(8) {
        bytes.extend(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

pub(crate) fn dropped() -> Option<Dropped> {
    dropped_of(&fs::read_to_string("/proc/self/net/netstat").ok()?)
}

/// Pairs of lines: names, and values in their order.
fn dropped_of(text: &str) -> Option<Dropped> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let of = |wanted: &str| {
        let mut pairs = names.split_ascii_whitespace().zip(values.split_ascii_whitespace());
        pairs.find(|(name, _)| *name == wanted).and_then(|(_, value)| value.parse().ok())
    };
    Some(Dropped {
        full: of("ListenOverflows")?,
        syns: of("ListenDrops")? + of("TCPReqQFullDrop").unwrap_or(0),
        cookies: of("SyncookiesSent").unwrap_or(0),
    })
}

/// What an operator may mend, in words.
pub(crate) fn warnings() -> Vec<String> {
    let setting = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let most = setting("/proc/sys/net/core/somaxconn").filter(|most| *most < WANTED);
    let most = most.map(|most| {
        format!(
            "net.core.somaxconn is {most}: of a burst of new connections so many wait for a listener, and the \
             rest is dropped; {WANTED} or more is better"
        )
    });
    let cookies = setting("/proc/sys/net/ipv4/tcp_syncookies").filter(|cookies| *cookies == 0);
    let cookies =
        cookies.map(|_| "net.ipv4.tcp_syncookies is 0: a flood of SYNs shuts new clients out".to_owned());
    most.into_iter().chain(cookies).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_stand_before_the_connections() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
             \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000003 00:00000000 00000000     0        0 1\n\
             \x20  1: 00000000:0050 00000000:0000 0A 00000000:00000010 00:00000000 00000000     0        0 2\n\
             \x20  2: 0100007F:1F90 0100007F:9C40 01 00000000:00000007 00:00000000 00000000     0        0 3\n";
        let queues = queues_of(table.replace("0100007F", &hex([127, 0, 0, 1])).as_bytes()).expect("readable");
        assert_eq!(queues, [("127.0.0.1:8080".parse().unwrap(), 3), ("0.0.0.0:80".parse().unwrap(), 16)]);
        let six =
            format!("{}{}{}{}:01BB", hex([0x20, 1, 0xd, 0xb8]), hex([0; 4]), hex([0; 4]), hex([0, 0, 0, 1]));
        assert_eq!(socket_address(&six), Some("[2001:db8::1]:443".parse().unwrap()));
        assert_eq!(socket_address("0100007F00:1"), None);
    }

    fn hex(bytes: [u8; 4]) -> String {
        format!("{:08X}", u32::from_ne_bytes(bytes))
    }

    #[test]
    fn what_the_kernel_counts_is_found_by_name() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 3 4 5\nIpExt: X\nIpExt: 1\n";
        assert_eq!(dropped_of(text), Some(Dropped { full: 4, syns: 5, cookies: 3 }));
        assert_eq!(dropped_of("TcpExt: Other\nTcpExt: 1\n"), None);
        assert!(dropped().is_some(), "as this machine has it");
    }

    #[test]
    fn connections_that_nobody_accepts_are_counted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let address = listener.local_addr().expect("bound");
        let bound = BoundListener {
            listener: "web".to_owned(),
            index: 0,
            bind: trestle_config::model::Bind { ip: Some(address.ip()), port: 0, more: 0 },
            protocol: trestle_config::model::Protocol::Tcp,
            by_kernel: false,
            state: Ok(address),
        };
        let _clients: Vec<_> =
            (0..3).map(|_| std::net::TcpStream::connect(address).expect("connects")).collect();
        assert_eq!(waiting(&[bound]), [3]);
    }
}
