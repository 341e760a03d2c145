//! Clients on one network, members on another, balancers between them. The first balancer has the addresses
//! that clients come to and that members answer through.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use trestle_config::model::{Bind, KernelMode, KernelSettings, Protocol};
use trestle_dataplane::{KernelGuard, KernelListener, KernelMember, KernelView, KernelVip, KnownMember};
use trestle_netlink::nft::{Family, Nft, Table, TableFlags};
use trestle_netlink::testing::{Namespace, Segment};

pub(crate) const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 1, 100));
pub(crate) const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x198, 0x181, 0, 0, 0, 0, 0x100));
/// Where members answer datagrams at the VIP itself.
pub(crate) const DNS: u16 = 5354;
/// After which a member answers to `!`.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

pub(crate) struct Lan {
    pub(crate) balancers: Vec<Namespace>,
    pub(crate) client: Namespace,
    pub(crate) members: Vec<MemberHost>,
    _segment: Segment,
}

pub(crate) struct MemberHost {
    pub(crate) namespace: Namespace,
    services: Vec<Member>,
}

/// A service; ends when dropped.
pub(crate) struct Member(Arc<AtomicBool>);

/// Who answers, and whom it sees.
pub(crate) fn ask(stream: &mut TcpStream) -> (String, SocketAddr) {
    stream.write_all(b"?").unwrap();
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).unwrap();
    said(&answer[..length])
}

pub(crate) fn said(answer: &[u8]) -> (String, SocketAddr) {
    let text = String::from_utf8(answer.to_vec()).unwrap();
    let (name, peer) = text.split_once(' ').unwrap_or_else(|| panic!("{text:?}"));
    (name.to_owned(), peer.parse().unwrap())
}

pub(crate) fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream
}

impl Lan {
    pub(crate) fn new(balancers: usize, members: &[&str]) -> Self {
        let mut segment = Segment::new(balancers + 1 + members.len());
        let mut hosts = std::mem::take(&mut segment.hosts).into_iter();
        let balancers: Vec<Namespace> = hosts.by_ref().take(balancers).collect();
        for (number, balancer) in balancers.iter().enumerate() {
            balancer.sysctl("net.ipv4.ip_forward", "1");
            balancer.sysctl("net.ipv6.conf.all.forwarding", "1");
            // Hosts are on one segment: no redirects past us.
            balancer.sysctl("net.ipv4.conf.all.send_redirects", "0");
            balancer.sysctl("net.ipv4.conf.eth0.send_redirects", "0");
            let last = number + 1;
            balancer.ip(&format!("address add 198.18.1.{last}/24 dev eth0"));
            balancer.ip(&format!("address add 198.18.2.{last}/24 dev eth0"));
            balancer.ip(&format!("address add fd00:198:181::{last}/64 dev eth0 nodad"));
            balancer.ip(&format!("address add fd00:198:182::{last}/64 dev eth0 nodad"));
        }
        let client = hosts.next().unwrap();
        client.sysctl("net.ipv6.conf.eth0.accept_redirects", "0");
        client.ip("address add 198.18.1.50/24 dev eth0");
        client.ip("address add fd00:198:181::50/64 dev eth0 nodad");
        let members = hosts.zip(members).enumerate();
        let members = members.map(|(number, (host, name))| MemberHost::new(host, number, name)).collect();
        let lan = Self { balancers, client, members, _segment: segment };
        lan.give(0);
        lan
    }

    /// As if balancer `from` were gone.
    pub(crate) fn move_addresses(&self, from: usize, to: usize) {
        self.balancers[from].ip("link set eth0 down");
        self.give(to);
        for host in std::iter::once(&self.client).chain(self.members.iter().map(|member| &member.namespace)) {
            host.ip("neighbour flush all");
        }
    }

    fn give(&self, to: usize) {
        for address in ["198.18.1.100/24", "198.18.2.100/24"] {
            self.balancers[to].ip(&format!("address add {address} dev eth0"));
        }
        for address in ["fd00:198:181::100/64", "fd00:198:182::100/64"] {
            self.balancers[to].ip(&format!("address add {address} dev eth0 nodad"));
        }
    }
}

impl MemberHost {
    fn new(namespace: Namespace, number: usize, name: &str) -> Self {
        let last = number + 10;
        namespace.sysctl("net.ipv6.conf.eth0.accept_redirects", "0");
        namespace.ip(&format!("address add 198.18.2.{last}/24 dev eth0"));
        namespace.ip(&format!("address add fd00:198:182::{last}/64 dev eth0 nodad"));
        namespace.ip("route add default via 198.18.2.100");
        namespace.ip("-6 route add default via fd00:198:182::100");
        let services = namespace.enter(|| {
            let any = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            let tcp = [8080, 7001, 7002].map(|port| Member::listen(any, port, name));
            tcp.into_iter().chain([Member::answer(any, 5353, name)]).collect()
        });
        Self { namespace, services }
    }

    /// It has the VIP's addresses too, without a word on it, answers datagrams from there, and reaches clients by itself.
    pub(crate) fn hold_vips(&mut self, name: &str) {
        for (key, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
            self.namespace.sysctl(&format!("net.ipv4.conf.all.{key}"), value);
        }
        self.namespace.ip(&format!("address add {VIP4}/32 dev lo"));
        self.namespace.ip(&format!("-6 address add {VIP6}/128 dev lo nodad"));
        self.forget_gateway();
        self.namespace.ip("route add 198.18.1.0/24 dev eth0");
        self.namespace.ip("-6 route add fd00:198:181::/64 dev eth0");
        let answering = self.namespace.enter(|| [VIP4, VIP6].map(|vip| Member::answer(vip, DNS, name)));
        self.services.extend(answering);
    }

    pub(crate) fn forget_gateway(&self) {
        self.namespace.ip("route del default");
        self.namespace.ip("-6 route del default");
    }
}

impl Member {
    /// Tells its name and whom it sees, for every byte.
    pub(crate) fn listen(ip: IpAddr, port: u16, name: &str) -> Self {
        let listener = TcpListener::bind(SocketAddr::new(ip, port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (member, name) = (Self(Arc::default()), name.to_owned());
        let ended = Arc::clone(&member.0);
        thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let Ok((mut stream, peer)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(2));
                    continue;
                };
                let answer = format!("{name} {}", SocketAddr::new(peer.ip().to_canonical(), peer.port()));
                thread::spawn(move || {
                    stream.set_nonblocking(false).unwrap();
                    let mut byte = [0];
                    while stream.read(&mut byte).is_ok_and(|length| length > 0) {
                        if byte[0] == b'!' {
                            thread::sleep(PAUSE);
                        }
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        member
    }

    fn answer(ip: IpAddr, port: u16, name: &str) -> Self {
        let socket = UdpSocket::bind(SocketAddr::new(ip, port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let (member, name) = (Self(Arc::default()), name.to_owned());
        let ended = Arc::clone(&member.0);
        thread::spawn(move || {
            let mut question = [0; 64];
            while !ended.load(Ordering::Relaxed) {
                let Ok((_, peer)) = socket.recv_from(&mut question) else { continue };
                let seen = SocketAddr::new(peer.ip().to_canonical(), peer.port());
                let _ = socket.send_to(format!("{name} {seen}").as_bytes(), peer);
            }
        });
        member
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn client_ip(of: IpAddr) -> IpAddr {
    if of.is_ipv4() { "198.18.1.50".parse().unwrap() } else { "fd00:198:181::50".parse().unwrap() }
}

pub(crate) fn is_balancer(ip: IpAddr, number: usize) -> bool {
    let own = [format!("198.18.2.{}", number + 1), format!("fd00:198:182::{}", number + 1)];
    let shared = ["198.18.2.100", "fd00:198:182::100"].map(str::to_owned);
    own.iter().chain(&shared).any(|address| address.parse() == Ok(ip))
}

/// Listeners at both VIPs: 80 and 7000-7009 over TCP, 53 over UDP; members by number of their names.
pub(crate) fn view(members: &[(&str, u32)]) -> KernelView {
    let settings = KernelSettings { slots: 1021, ..KernelSettings::default() };
    let listener = |name: &str, protocol, port, more, pool: &str| KernelListener {
        name: name.to_owned(),
        binds: [VIP4, VIP6].map(|ip| Bind { ip: Some(ip), port, more }).to_vec(),
        protocol,
        settings,
        pool: pool.to_owned(),
        guard: KernelGuard {
            udp_idle: Duration::from_secs(60),
            half_open: Duration::from_secs(10),
            prefix_v6: 64,
            ..KernelGuard::default()
        },
    };
    let pool = |port: u16| -> Vec<KernelMember> {
        let member = |(name, weight): &(&str, u32)| {
            let last = u16::from(name.as_bytes()[0] - b'a') + 10;
            let v4 = SocketAddr::new(IpAddr::from([198, 18, 2, last as u8]), port);
            let v6: IpAddr = format!("fd00:198:182::{last}").parse().unwrap();
            [(v4, "4"), (SocketAddr::new(v6, port), "6")].map(|(address, family)| KernelMember {
                name: format!("{name}{family}"),
                address,
                weight: *weight,
            })
        };
        members.iter().flat_map(member).collect()
    };
    let pools: BTreeMap<String, Vec<KernelMember>> = [("web", 8080), ("dns", 5353), ("range", 7000)]
        .map(|(name, port)| (name.to_owned(), pool(port)))
        .into();
    let known = |member: &KernelMember| KnownMember {
        name: member.name.clone(),
        address: member.address,
        is_over: false,
    };
    KernelView {
        revision: 1,
        seed: 7,
        listeners: vec![
            listener("web", Protocol::Tcp, 80, 0, "web"),
            listener("dns", Protocol::Udp, 53, 0, "dns"),
            listener("range", Protocol::Tcp, 7000, 9, "range"),
        ],
        known: pools.iter().map(|(name, pool)| (name.clone(), pool.iter().map(known).collect())).collect(),
        pools,
        networks: Vec::new(),
        vips: Vec::new(),
        banned: Vec::new(),
        kept: Arc::default(),
    }
}

/// The same listeners at members' own ports, for direct server return.
pub(crate) fn direct_view(members: &[(&str, u32)]) -> KernelView {
    let vips = vec![KernelVip { addresses: vec![VIP4, VIP6], interface: None }];
    let mut view = KernelView { vips, ..view(members) };
    for listener in &mut view.listeners {
        listener.settings.mode = KernelMode::Dsr;
        let port = match listener.name.as_str() {
            "web" => 8080,
            "dns" => DNS,
            _ => continue,
        };
        listener.binds.iter_mut().for_each(|bind| bind.port = port);
    }
    view
}

/// Longest time that a transaction of another takes meanwhile: of a guard, say, whose lease is at stake.
pub(crate) fn longest_wait(host: &Namespace, work: impl FnOnce()) -> Duration {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            host.enter(|| {
                let (mut nft, mut longest) = (Nft::open().unwrap(), Duration::ZERO);
                let own = Table { family: Family::Inet, name: "other" };
                while !done.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    nft.change(|batch| batch.table(own, TableFlags::NONE)).unwrap();
                    longest = longest.max(began.elapsed());
                    thread::sleep(Duration::from_millis(5));
                }
                longest
            })
        });
        work();
        done.store(true, Ordering::Relaxed);
        other.join().unwrap()
    })
}
