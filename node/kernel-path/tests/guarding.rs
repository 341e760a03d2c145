//! Who is let in by the kernel, and how much of it.
#![allow(clippy::unwrap_used)]

mod lan;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lan::{Lan, VIP4, VIP6, view};
use trestle_config::model::{Action, KernelMode, Ports};
use trestle_dataplane::{KernelGuard, KernelNetworks, KernelRate, KernelRule, KernelView, Ranges};
use trestle_kernel_path::{Census, Programmer, support};
use trestle_netlink::conntrack::Conntrack;
use trestle_netlink::testing::{Namespace, available};

const SHORT: Duration = Duration::from_millis(300);

fn guarded(change: impl Fn(&mut KernelGuard)) -> KernelView {
    let mut view = view(&[("a", 1)]);
    view.listeners.iter_mut().for_each(|listener| change(&mut listener.guard));
    view
}

fn connect(lan: &Lan, ip: IpAddr, port: u16) -> Result<TcpStream, ErrorKind> {
    let to = SocketAddr::new(ip, port);
    let connect = || TcpStream::connect_timeout(&to, SHORT).map_err(|error| error.kind());
    lan.client.enter(connect)
}

/// As often as it takes, until a moment.
fn connect_in_time(lan: &Lan, ip: IpAddr, port: u16) -> TcpStream {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        match connect(lan, ip, port) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn networks(name: Option<&str>, networks: &[&str]) -> KernelNetworks {
    let ranges: Ranges = networks.iter().map(|network| network.parse().unwrap()).collect();
    KernelNetworks { name: name.map(str::to_owned), ranges: Arc::new(ranges) }
}

#[test]
fn a_client_has_so_many_flows_and_gets_one_more_when_one_ends() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    lan.balancers[0].enter(|| {
        support::check(KernelMode::Nat, true).unwrap();
        let mut programmer = Programmer::open("one").unwrap();
        programmer.follow(&guarded(|guard| guard.per_client = Some(3))).unwrap();
        for (ip, port) in [(VIP4, 80), (VIP6, 80), (VIP4, 7003), (VIP6, 7001)] {
            // Of a range, only two ports are open at the member.
            let port = if port == 7003 { 7002 } else { port };
            let mut open: Vec<TcpStream> = (0..3).map(|_| connect(&lan, ip, port).unwrap()).collect();
            assert_eq!(connect(&lan, ip, port).unwrap_err(), ErrorKind::ConnectionRefused);
            open.pop();
            open.push(connect_in_time(&lan, ip, port));
            assert_eq!(connect(&lan, ip, port).unwrap_err(), ErrorKind::ConnectionRefused);
        }
        let refused = programmer.traffic().unwrap().listeners["web"].limited;
        assert!(refused >= 4, "{refused}");
        // Another limit begins to count anew, and none at all leaves nothing behind.
        for limit in [Some(1), None] {
            programmer.follow(&guarded(|guard| guard.per_client = limit)).unwrap();
            let open = [VIP4, VIP6].map(|ip| connect(&lan, ip, 80).unwrap());
            assert_eq!(connect(&lan, VIP4, 80).is_ok(), limit.is_none());
            drop(open);
        }
    });
}

#[test]
fn all_clients_together_have_so_many_flows_over_both_families() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    lan.balancers[0].enter(|| {
        let mut programmer = Programmer::open("one").unwrap();
        programmer.follow(&guarded(|guard| guard.connections = Some(4))).unwrap();
        let mut open: Vec<TcpStream> =
            [VIP4, VIP6, VIP4, VIP6].map(|ip| connect(&lan, ip, 80).unwrap()).into();
        for ip in [VIP4, VIP6] {
            assert_eq!(connect(&lan, ip, 80).unwrap_err(), ErrorKind::ConnectionRefused);
        }
        open.pop();
        open.push(connect_in_time(&lan, VIP4, 80));
        // Another listener has its own.
        connect(&lan, VIP4, 7001).unwrap();
    });
}

#[test]
fn new_flows_come_at_a_rate() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    for by_client in [true, false] {
        lan.balancers[0].enter(|| {
            let mut programmer = Programmer::open("one").unwrap();
            let rate =
                KernelRate { by_client, count: 6, each: Duration::from_secs(60), burst: 3, prefix_v6: 64 };
            programmer.follow(&guarded(|guard| guard.rates = vec![rate.clone()])).unwrap();
            let admitted = (0..6).filter(|_| connect(&lan, VIP4, 80).is_ok()).count();
            assert!((3..=4).contains(&admitted), "{admitted} of 6, by client: {by_client}");
            // Who comes by IPv6 is somebody else.
            assert_eq!(connect(&lan, VIP6, 80).is_ok(), by_client);
            programmer.sweep().unwrap();
        });
    }
}

#[test]
fn the_firewall_lets_in_and_turns_away_by_network_and_port() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    let client = ["198.18.1.50/32", "fd00:198:181::/64"];
    let deny = |from: Option<KernelNetworks>, ports: Vec<Ports>, action| KernelRule {
        from: from.map(|from| vec![from]),
        ports,
        action,
        hits: 1,
    };
    lan.balancers[0].enter(|| {
        let mut programmer = Programmer::open("one").unwrap();
        let mut expect = |rules: Vec<KernelRule>, default, outcome: Result<(), ErrorKind>| {
            let guard = |guard: &mut KernelGuard| (guard.rules, guard.default) = (rules.clone(), default);
            programmer.follow(&guarded(guard)).unwrap();
            for (ip, port) in [(VIP4, 80), (VIP6, 80), (VIP4, 7001)] {
                assert_eq!(connect(&lan, ip, port).map(drop), outcome, "{ip} {port} {rules:?}");
            }
        };
        let set = || Some(networks(Some("bad"), &client));
        expect(vec![deny(set(), vec![], Action::Deny)], Action::Allow, Err(ErrorKind::TimedOut));
        expect(vec![deny(set(), vec![], Action::Reject)], Action::Allow, Err(ErrorKind::ConnectionRefused));
        // The first that fits decides.
        let others = || Some(networks(None, &["203.0.113.0/24", "2001:db8::/32"]));
        let rules = vec![
            deny(others(), vec![], Action::Deny),
            deny(set(), vec![], Action::Allow),
            deny(None, vec![], Action::Deny),
        ];
        expect(rules, Action::Reject, Ok(()));
        expect(
            vec![deny(others(), vec![], Action::Allow)],
            Action::Reject,
            Err(ErrorKind::ConnectionRefused),
        );
        // By the port that the client came to.
        let ports = vec![Ports { first: 1, last: 79 }, Ports { first: 7003, last: 9000 }];
        expect(vec![deny(None, ports, Action::Deny)], Action::Allow, Ok(()));
        let ports = vec![Ports { first: 80, last: 80 }, Ports { first: 7000, last: 7009 }];
        expect(vec![deny(None, ports, Action::Reject)], Action::Allow, Err(ErrorKind::ConnectionRefused));
        let traffic = programmer.traffic().unwrap();
        assert!(traffic.listeners["web"].denied >= 6, "{traffic:?}");
    });
}

/// What rules and defaults of firewalls have decided.
#[derive(Default)]
struct Hits(HashMap<u64, u64>);

impl Hits {
    /// Of these counters, all in all.
    fn read<const N: usize>(&mut self, programmer: &mut Programmer, ids: [u64; N]) -> [u64; N] {
        programmer.traffic().unwrap();
        for (id, more) in programmer.take_hits() {
            *self.0.entry(id).or_default() += more;
        }
        ids.map(|id| self.0.get(&id).copied().unwrap_or(0))
    }
}

/// So many datagrams of one session.
fn send(lan: &Lan, ip: IpAddr, port: u16, count: usize) {
    lan.client.enter(|| {
        let socket = UdpSocket::bind(SocketAddr::new(lan::client_ip(ip), 0)).unwrap();
        (0..count).for_each(|_| _ = socket.send_to(b"?", SocketAddr::new(ip, port)).unwrap());
    });
}

#[test]
fn each_rule_counts_the_flows_that_it_decides_about_and_goes_on_when_other_things_change() {
    if !available(&[]) {
        return;
    }
    const DENY: u64 = 11;
    const ALLOW: u64 = 12;
    const DEFAULT: u64 = 13;
    const REJECT: u64 = 14;
    let lan = Lan::new(1, &["a", "b"]);
    let client = ["198.18.1.50/32", "fd00:198:181::50/128"];
    let rule = |hits, name: Option<&str>, from: &[&str], ports: &[u16], action| KernelRule {
        from: (!from.is_empty()).then(|| vec![networks(name, from)]),
        ports: ports.iter().map(|port| Ports { first: *port, last: *port }).collect(),
        action,
        hits,
    };
    let deny = || rule(DENY, None, &[], &[7001], Action::Deny);
    let allow = |networks: &[&str]| rule(ALLOW, Some("good"), networks, &[], Action::Allow);
    let view = |members: &[(&str, u32)], rules: &[KernelRule], default| {
        let mut view = view(members);
        for listener in &mut view.listeners {
            let guard = &mut listener.guard;
            (guard.rules, guard.default, guard.default_hits) = (rules.to_vec(), default, Some(DEFAULT));
        }
        view
    };
    lan.balancers[0].enter(|| {
        let (mut programmer, mut hits) = (Programmer::open("one").unwrap(), Hits::default());
        let all = [DENY, ALLOW, DEFAULT, REJECT];
        programmer.follow(&view(&[("a", 1)], &[deny(), allow(&client)], Action::Reject)).unwrap();
        for ip in [VIP4, VIP6] {
            assert_eq!(connect(&lan, ip, 7001).unwrap_err(), ErrorKind::TimedOut);
            for _ in 0..2 {
                let mut stream = connect(&lan, ip, 80).unwrap();
                (0..3).for_each(|_| ask(&mut stream));
            }
            // Nobody waits for an answer: all these datagrams are of a flow that is new.
            send(&lan, ip, 53, 20);
        }
        assert_eq!(hits.read(&mut programmer, all), [2, 6, 0, 0]);

        // The pool and the set are others, another rule comes first: counts go on, now of the default, too.
        let others = ["203.0.113.0/24", "2001:db8::/32"];
        let reject = || rule(REJECT, None, &[], &[7002], Action::Reject);
        let members = [("a", 3), ("b", 1)];
        programmer.follow(&view(&members, &[reject(), deny(), allow(&others)], Action::Reject)).unwrap();
        assert_eq!(hits.read(&mut programmer, all), [2, 6, 0, 0], "nothing came meanwhile");
        for ip in [VIP4, VIP6] {
            for port in [80, 7002] {
                assert_eq!(connect(&lan, ip, port).unwrap_err(), ErrorKind::ConnectionRefused);
            }
            assert_eq!(connect(&lan, ip, 7001).unwrap_err(), ErrorKind::TimedOut);
        }
        assert_eq!(hits.read(&mut programmer, all), [4, 6, 2, 2]);

        // A rule that goes is read a last time; a default that lets in counts as well.
        assert_eq!(connect(&lan, VIP6, 7002).unwrap_err(), ErrorKind::ConnectionRefused);
        programmer.follow(&view(&members, &[deny()], Action::Allow)).unwrap();
        for ip in [VIP4, VIP6] {
            drop(connect(&lan, ip, 80).unwrap());
            drop(connect(&lan, ip, 7002).unwrap());
        }
        assert_eq!(hits.read(&mut programmer, all), [4, 6, 6, 3]);

        // All of it is made anew: sums go on.
        programmer.sweep().unwrap();
        programmer.follow(&view(&members, &[deny()], Action::Allow)).unwrap();
        drop(connect(&lan, VIP4, 80).unwrap());
        assert_eq!(hits.read(&mut programmer, all), [4, 6, 7, 3]);
    });
}

#[test]
fn a_rate_is_one_of_flows_and_not_of_the_datagrams_that_nobody_answers() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    lan.balancers[0].enter(|| {
        let mut programmer = Programmer::open("one").unwrap();
        let rate = KernelRate {
            by_client: true,
            count: 1,
            each: Duration::from_secs(3_600),
            burst: 2,
            prefix_v6: 64,
        };
        let mut view = guarded(|guard| guard.rates = vec![rate.clone()]);
        // Nobody listens there.
        view.pools.get_mut("dns").unwrap().iter_mut().for_each(|member| member.address.set_port(5354));
        view.known.get_mut("dns").unwrap().iter_mut().for_each(|member| member.address.set_port(5354));
        programmer.follow(&view).unwrap();
        for ip in [VIP4, VIP6] {
            send(&lan, ip, 53, 20);
        }
        let dns = programmer.traffic().unwrap().listeners["dns"];
        assert_eq!((dns.flows, dns.limited, dns.received.packets), (2, 0, 40));
    });
}

#[test]
fn what_is_open_goes_on_when_its_client_is_shut_out_and_when_it_is_picked_up_beyond_a_limit() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(2, &["a"]);
    let guard = |guard: &mut KernelGuard| {
        guard.per_client = Some(8);
        guard.connections = Some(8);
        let rate =
            KernelRate { by_client: true, count: 1, each: Duration::from_secs(60), burst: 8, prefix_v6: 64 };
        guard.rates = vec![rate.clone(), KernelRate { by_client: false, ..rate }];
    };
    let tight = |guard: &mut KernelGuard| {
        (guard.per_client, guard.connections) = (Some(1), Some(1));
        guard.rates = vec![KernelRate {
            by_client: true,
            count: 1,
            each: Duration::from_secs(3_600),
            burst: 1,
            prefix_v6: 64,
        }];
    };
    let follow = |at: usize, view: KernelView| {
        lan.balancers[at].enter(|| {
            let mut programmer = Programmer::open("some").unwrap();
            programmer.follow(&view).unwrap();
            programmer
        })
    };
    let _first = follow(0, guarded(guard));
    let second = follow(1, guarded(tight));
    let mut open: Vec<TcpStream> = (0..6).map(|_| connect(&lan, VIP4, 80).unwrap()).collect();
    open.iter_mut().for_each(ask);
    lan.move_addresses(0, 1);
    open.iter_mut().for_each(ask);
    assert_eq!(connect(&lan, VIP4, 80).unwrap_err(), ErrorKind::ConnectionRefused);
    drop(second);
    let denied = guarded(|guard| guard.default = Action::Deny);
    let _third = follow(1, denied);
    open.iter_mut().for_each(ask);
    assert_eq!(connect(&lan, VIP4, 80).unwrap_err(), ErrorKind::TimedOut);
}

#[test]
fn what_an_address_left_behind_counts_no_more_when_it_comes_back() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    let view = guarded(|guard| guard.per_client = Some(2));
    lan.balancers[0].enter(|| {
        let mut programmer = Programmer::open("one").unwrap();
        let mut census = Census::keeping(Duration::from_millis(200)).unwrap();
        programmer.follow(&view).unwrap();
        let open = [(); 2].map(|()| connect(&lan, VIP4, 80).unwrap());
        assert_eq!(census.take(&view).unwrap().listeners["web"], 2);
        lan.balancers[0].ip("address del 198.18.1.100/24 dev eth0");
        // Their ends are seen by somebody else.
        drop(open);
        let until = Instant::now() + Duration::from_secs(2);
        let mut left = 2;
        while left > 0 {
            assert!(Instant::now() < until);
            assert_eq!(census.take(&view).unwrap().listeners["web"], 0, "they are not this node's");
            left = 0;
            Conntrack::open().unwrap().walk(false, |flow| left += u32::from(flow.is_rewritten())).unwrap();
            thread::sleep(Duration::from_millis(20));
        }
        lan.balancers[0].ip("address add 198.18.1.100/24 dev eth0");
        let _open = [(); 2].map(|()| connect_in_time(&lan, VIP4, 80));
    });
}

#[test]
fn what_ended_while_an_address_was_away_for_a_moment_counts_no_more_and_the_rest_goes_on() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    let view = guarded(|guard| guard.per_client = Some(2));
    lan.balancers[0].enter(|| {
        let mut programmer = Programmer::open("one").unwrap();
        let mut census = Census::keeping(Duration::from_secs(2)).unwrap();
        programmer.follow(&view).unwrap();
        let (mut goes_on, ends) = (connect(&lan, VIP4, 80).unwrap(), connect(&lan, VIP4, 80).unwrap());
        ask(&mut goes_on);
        lan.balancers[0].ip("address del 198.18.1.100/24 dev eth0");
        assert_eq!(census.take(&view).unwrap().listeners["web"], 0);
        // Its end is seen by nobody here, and not said again.
        rustix::net::sockopt::set_socket_linger(&ends, Some(Duration::ZERO)).unwrap();
        lan.client.ip("route add blackhole 198.18.1.100/32");
        drop(ends);
        lan.client.ip("route del blackhole 198.18.1.100/32");
        lan.balancers[0].ip("address add 198.18.1.100/24 dev eth0");
        ask(&mut goes_on);
        assert_eq!(connect(&lan, VIP4, 80).unwrap_err(), ErrorKind::ConnectionRefused, "both count yet");
        let until = Instant::now() + Duration::from_secs(6);
        while census.take(&view).unwrap().listeners["web"] != 1 {
            assert!(Instant::now() < until, "{:?}", census.take(&view).unwrap().listeners);
            ask(&mut goes_on);
            thread::sleep(Duration::from_millis(100));
        }
        ask(&mut goes_on);
        let _open = connect_in_time(&lan, VIP4, 80);
    });
}

fn ask(stream: &mut TcpStream) {
    use std::io::{Read, Write};
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    stream.write_all(b"?").unwrap();
    assert!(stream.read(&mut [0; 64]).unwrap() > 0);
}

#[test]
fn a_session_of_udp_ends_when_nothing_is_seen_of_it() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    lan.balancers[0].enter(|| {
        let (mut programmer, mut census) = (Programmer::open("one").unwrap(), Census::open().unwrap());
        let view = guarded(|guard| guard.udp_idle = Duration::from_secs(3));
        programmer.follow(&view).unwrap();
        lan.client.enter(|| {
            for ip in [VIP4, VIP6] {
                let socket = UdpSocket::bind(SocketAddr::new(lan::client_ip(ip), 0)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
                socket.connect(SocketAddr::new(ip, 53)).unwrap();
                socket.send(b"?").unwrap();
                socket.recv(&mut [0; 64]).unwrap();
            }
        });
        let began = Instant::now();
        assert_eq!(census.take(&view).unwrap().listeners["dns"], 2);
        while census.take(&view).unwrap().listeners["dns"] > 0 {
            assert!(began.elapsed() < Duration::from_secs(12));
            thread::sleep(Duration::from_millis(50));
        }
    });
}

#[test]
fn a_session_that_gets_one_answer_ends_soon_after_it() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    lan.balancers[0].enter(|| {
        let (mut programmer, mut census) = (Programmer::open("one").unwrap(), Census::open().unwrap());
        let view = guarded(|guard| guard.udp_ends_answered = true);
        programmer.follow(&view).unwrap();
        let asks = lan.client.enter(|| {
            let connect = |(ip, port)| {
                let socket = UdpSocket::bind(SocketAddr::new(lan::client_ip(ip), 0)).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
                socket.connect(SocketAddr::new(ip, port)).unwrap();
                socket
            };
            [(VIP4, 53), (VIP6, 53), (VIP4, 53)].map(connect)
        });
        let ask = |socket: &UdpSocket| {
            socket.send(b"?").unwrap();
            socket.recv(&mut [0; 64]).unwrap();
        };
        asks.iter().for_each(ask);
        let began = Instant::now();
        assert_eq!(census.take(&view).unwrap().listeners["dns"], 3);
        // One goes on asking.
        while census.take(&view).unwrap().listeners["dns"] > 1 {
            assert!(began.elapsed() < Duration::from_secs(4));
            ask(&asks[2]);
            thread::sleep(Duration::from_millis(50));
        }
        let began = Instant::now();
        while census.take(&view).unwrap().listeners["dns"] > 0 {
            assert!(began.elapsed() < Duration::from_secs(4));
            thread::sleep(Duration::from_millis(50));
        }
    });
}

/// The longest that a transaction of another's may wait for one of ours.
const OTHERS_WAIT: Duration = Duration::from_millis(500);

#[test]
fn a_hundred_thousand_networks_are_followed_while_others_change_theirs() {
    if !available(&[]) {
        return;
    }
    let host = Namespace::new("networks");
    host.enter(|| {
        // Every other /24 from 1.0.0.0 on; `at` moves some of them.
        let of = |count: u32, moved: u32| {
            let network = |n: u32| {
                let ip =
                    std::net::Ipv4Addr::from_bits(0x0100_0000 + n * 512 + if n < moved { 256 } else { 0 });
                ipnet::IpNet::new(ip.into(), 24).unwrap()
            };
            let ranges = Arc::new((0..count).map(network).collect::<Ranges>());
            let from = vec![KernelNetworks { name: Some("bad".to_owned()), ranges }];
            guarded(|guard| {
                let from = Some(from.clone());
                guard.rules = vec![KernelRule { from, ports: Vec::new(), action: Action::Deny, hits: 1 }];
            })
        };
        let mut programmer = Programmer::open("one").unwrap();
        let mut before = None;
        for (what, view) in [
            ("100,000 networks", of(100_000, 0)),
            ("one of them changed", of(100_000, 1)),
            ("10,000 of them changed", of(100_000, 10_000)),
            ("one left", of(1, 0)),
        ] {
            let began = Instant::now();
            let mut longest = lan::longest_wait(&host, || _ = programmer.follow(&view).unwrap());
            println!("{what}: {:?}; others wait {longest:?}", began.elapsed());
            for _ in 0..2 {
                if longest < OTHERS_WAIT {
                    break;
                }
                // Who waits may have stood still by itself.
                programmer.sweep().unwrap();
                before.iter().for_each(|before| _ = programmer.follow(before).unwrap());
                longest = lan::longest_wait(&host, || _ = programmer.follow(&view).unwrap());
            }
            assert!(longest < OTHERS_WAIT, "{longest:?}");
            before = Some(view);
        }
    });
}

#[test]
fn a_new_flow_costs_little_also_where_many_are_counted() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    lan.balancers[0].enter(|| {
        let mut programmer = Programmer::open("one").unwrap();
        let to = SocketAddr::new(VIP4, 53);
        // Sending a datagram takes it all the way to the member's socket. Each is a flow of its own.
        let new_flows = |count: usize| {
            lan.client.enter(|| {
                let began = Instant::now();
                for _ in 0..count {
                    UdpSocket::bind("198.18.1.50:0").unwrap().send_to(b"", to).unwrap();
                }
                began.elapsed() / count as u32
            })
        };
        let mut costs = Vec::new();
        for (what, per_client, connections, open) in [
            ("without limits", None, None, 0),
            ("the 1st to the 200th of a client's 1,000", Some(1_000), None, 0),
            ("the 800th to the 1,000th", Some(1_000), None, 800),
            ("the 1st to the 200th of all clients' 10,000", None, Some(10_000), 0),
            ("the 9,800th to the 10,000th", None, Some(10_000), 9_800),
        ] {
            let view = guarded(|guard| (guard.per_client, guard.connections) = (per_client, connections));
            programmer.follow(&view).unwrap();
            if open > 0 {
                new_flows(open);
            }
            let cost = new_flows(200);
            println!("a new flow, {what}: {cost:?}");
            costs.push(cost);
            programmer.sweep().unwrap();
        }
        assert!(costs.iter().all(|cost| *cost < Duration::from_millis(5)), "{costs:?}");
        let seen = Census::open().unwrap().take(&guarded(|_| {})).unwrap();
        println!("{} flows are counted in {:?}", seen.flows, seen.took);
        assert!(seen.flows > 9_000 && Census::pause(seen.took) >= seen.took * 50, "{seen:?}");
    });
}

#[test]
fn a_packet_costs_little_more_than_one_that_is_routed() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    lan.client.ip("route add 198.18.2.0/24 via 198.18.1.100");
    lan.balancers[0].enter(|| {
        // Sending a datagram takes it all the way to the member's socket; some are answered.
        let packets = |to: SocketAddr| {
            lan.client.enter(|| {
                let socket = UdpSocket::bind("198.18.1.50:0").unwrap();
                socket.connect(to).unwrap();
                let round = |count: u32| {
                    let began = Instant::now();
                    (0..count).for_each(|_| _ = socket.send(b"12345678").unwrap());
                    began.elapsed() / count
                };
                round(1_000);
                // The least disturbed of some.
                (0..8).map(|_| round(2_000)).min().unwrap()
            })
        };
        let routed = packets("198.18.2.10:5353".parse().unwrap());
        let mut programmer = Programmer::open("one").unwrap();
        programmer.follow(&guarded(|guard| guard.per_client = Some(9))).unwrap();
        let carried = packets(SocketAddr::new(VIP4, 53));
        println!("a packet of a flow: routed {routed:?}, by the kernel path {carried:?}");
        assert!(carried < routed * 6, "{routed:?} {carried:?}");
    });
}
