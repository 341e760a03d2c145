//! Direct server return against the kernel: members on the balancers' network have the VIP too, and answer clients
//! themselves.
#![allow(clippy::unwrap_used)]

mod lan;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lan::{DNS, Lan, VIP4, VIP6, ask, connect, direct_view, said};
use trestle_config::model::{Action, KernelMode};
use trestle_dataplane::{KernelNetworks, KernelRate, KernelRule, KernelView};
use trestle_kernel_path::{Carrier, Direct, support};
use trestle_netlink::clock;
use trestle_netlink::fence::{Fence, Ownership};
use trestle_netlink::testing::{Namespace, available};

const SECOND: Duration = Duration::from_secs(1);
const WEB: u16 = 8080;

fn datagram(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(SocketAddr::new(lan::client_ip(to.ip()), 0)).unwrap();
    socket.set_read_timeout(Some(3 * SECOND)).unwrap();
    socket.connect(to).unwrap();
    socket
}

fn ask_datagram(socket: &UdpSocket) -> (String, SocketAddr) {
    socket.send(b"?").unwrap();
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer).unwrap();
    said(&answer[..length])
}

fn start(balancers: usize, members: &[&str]) -> Lan {
    let mut lan = Lan::new(balancers, members);
    for (host, name) in lan.members.iter_mut().zip(members) {
        host.hold_vips(name);
    }
    // Nothing here is routed: a packet that is not passed on goes nowhere.
    for balancer in &lan.balancers {
        balancer.sysctl("net.ipv4.ip_forward", "0");
        balancer.sysctl("net.ipv6.conf.all.forwarding", "0");
    }
    lan
}

fn program(balancer: &Namespace, view: &KernelView) -> Direct {
    balancer.enter(|| {
        let mut direct = Direct::open("some").unwrap();
        direct.follow(view).unwrap();
        assert_eq!(direct.remarks(), Vec::<String>::new());
        direct
    })
}

/// Packets from the VIPs that the balancer sees or sends.
fn watch_answers(balancer: &Namespace) {
    for command in [
        "add table netdev seen",
        "add counter netdev seen answers",
        "add chain netdev seen in { type filter hook ingress device eth0 priority -600; }",
        "add chain netdev seen out { type filter hook egress device eth0 priority 600; }",
    ] {
        balancer.run("nft", command);
    }
    for (chain, family, vip) in
        [("in", "ip", VIP4), ("out", "ip", VIP4), ("in", "ip6", VIP6), ("out", "ip6", VIP6)]
    {
        // Discovery of neighbours is no answer.
        let rule = format!(
            "add rule netdev seen {chain} meta pkttype host {family} saddr {vip} meta l4proto {{ tcp, udp }} counter name answers"
        );
        let rule = if chain == "out" { rule.replace("meta pkttype host ", "") } else { rule };
        balancer.run("nft", &rule);
    }
}

fn answers_seen(balancer: &Namespace) -> u64 {
    let text = balancer.run("nft", "list counter netdev seen answers");
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

/// Connections over both VIPs, and who has them.
fn open(lan: &Lan, count: usize) -> Vec<(TcpStream, String)> {
    lan.client.enter(|| {
        let open = (0..count).map(|n| {
            let port = if n % 4 < 2 { WEB } else { 7001 };
            let mut stream = connect(SocketAddr::new(if n % 2 == 0 { VIP4 } else { VIP6 }, port));
            let (name, _) = ask(&mut stream);
            (stream, name)
        });
        open.collect()
    })
}

fn go_on(open: &mut [(TcpStream, String)], when: &str) {
    for (stream, name) in open {
        assert_eq!(ask(stream).0, *name, "{when}");
    }
}

fn new(lan: &Lan, count: usize) -> Vec<String> {
    lan.client.enter(|| {
        let one = |n| ask(&mut connect(SocketAddr::new(if n % 2 == 0 { VIP4 } else { VIP6 }, WEB))).0;
        (0..count).map(one).collect()
    })
}

#[test]
fn members_answer_clients_past_the_balancer() {
    if !available(&["nft"]) {
        return;
    }
    let lan = start(1, &["a", "b"]);
    let balancer = &lan.balancers[0];
    balancer.enter(|| {
        support::check(KernelMode::Dsr, false).unwrap();
        support::check(KernelMode::Dsr, true).unwrap();
    });
    watch_answers(balancer);
    let view = direct_view(&[("a", 1), ("b", 1)]);
    let mut direct = program(balancer, &view);
    balancer.enter(|| assert!(!direct.follow(&view).unwrap(), "nothing has changed"));
    lan.client.enter(|| {
        for ip in [VIP4, VIP6] {
            let (mut by_tcp, mut by_udp) = (BTreeMap::new(), BTreeMap::new());
            for _ in 0..24 {
                let mut stream = connect(SocketAddr::new(ip, WEB));
                let (name, peer) = ask(&mut stream);
                assert_eq!(peer, stream.local_addr().unwrap());
                *by_tcp.entry(name).or_insert(0) += 1;
                let socket = datagram(SocketAddr::new(ip, DNS));
                let (name, peer) = ask_datagram(&socket);
                assert_eq!(peer, socket.local_addr().unwrap());
                assert_eq!(ask_datagram(&socket).0, name);
                *by_udp.entry(name).or_insert(0) += 1;
            }
            assert_eq!((by_tcp.len(), by_udp.len()), (2, 2), "{by_tcp:?}, {by_udp:?}");
            let mut stream = connect(SocketAddr::new(ip, 7002));
            assert_eq!(ask(&mut stream).1, stream.local_addr().unwrap());
        }
    });
    // Which lists all there is, our table as well.
    assert_eq!(answers_seen(balancer), 0);
    balancer.enter(|| {
        let in_force = direct.in_force().unwrap().unwrap();
        assert_eq!(in_force.table, "trestle_direct_some");
        let table = in_force.tables.iter().find(|table| table.pool == "web" && !table.ipv6).unwrap();
        assert_eq!(table.members.iter().map(|share| share.slots).sum::<usize>(), 1021);

        let traffic = direct.traffic().unwrap();
        let (web, dns) = (traffic.listeners["web"], traffic.listeners["dns"]);
        assert_eq!((web.flows, dns.flows), (48, 48));
        assert_eq!(dns.received.packets, 96);
        assert!(web.received.packets >= 4 * 48 && web.received.bytes >= 40 * web.received.packets, "{web:?}");
        assert_eq!((web.sent.packets, web.denied, web.limited), (0, 0, 0));
        let of = |port: u16| traffic.members.iter().filter(move |(address, _)| address.port() == port);
        assert_eq!(of(WEB).map(|(_, carried)| carried.flows).sum::<u64>(), 48);
        // The first packet of each is not yet its.
        let packets: u64 = of(WEB).map(|(_, carried)| carried.received.packets).sum();
        assert_eq!(packets, web.received.packets);

        let flows = direct.take_flows(&view).unwrap();
        assert_eq!((flows.listeners["dns"], flows.kept.len(), flows.cut), (48, 0, 0));
        assert!(flows.listeners["web"] <= 48);
    });
}

#[test]
fn a_change_leaves_established_flows_and_moves_new_ones() {
    if !available(&["nft"]) {
        return;
    }
    let lan = start(1, &["a", "b"]);
    let balancer = &lan.balancers[0];
    let (both, one, other) =
        (direct_view(&[("a", 1), ("b", 1)]), direct_view(&[("b", 1)]), direct_view(&[("a", 1)]));
    let mut direct = program(balancer, &both);
    let mut open = open(&lan, 24);
    let datagrams: Vec<(UdpSocket, String)> = lan.client.enter(|| {
        let one = |n| {
            let socket = datagram(SocketAddr::new(if n % 2 == 0 { VIP4 } else { VIP6 }, DNS));
            let (name, _) = ask_datagram(&socket);
            (socket, name)
        };
        (0..12).map(one).collect()
    });
    balancer.enter(|| direct.follow(&one).unwrap());
    assert!(new(&lan, 12).iter().all(|name| name == "b"));
    go_on(&mut open, "a gets nothing new");
    for (socket, name) in &datagrams {
        assert_eq!(ask_datagram(socket).0, *name);
    }

    balancer.enter(|| direct.follow(&direct_view(&[])).unwrap());
    let refused = lan.client.enter(|| TcpStream::connect_timeout(&SocketAddr::new(VIP4, WEB), SECOND));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    go_on(&mut open, "nobody gets anything new");

    balancer.enter(|| direct.follow(&other).unwrap());
    assert!(new(&lan, 12).iter().all(|name| name == "a"));

    // The process dies, and another takes its place, and what it knows.
    drop(direct);
    go_on(&mut open, "nobody programs");
    let mut direct = program(balancer, &one);
    assert!(new(&lan, 12).iter().all(|name| name == "b"));
    go_on(&mut open, "what was left is replaced");
    balancer.enter(|| {
        assert_eq!(direct.in_force().unwrap().unwrap().table, "trestle_direct_some.2");
        // Those of the dead process's flows whose slot is another's now.
        let kept = direct.take_flows(&one).unwrap().kept.len();
        assert!(kept < open.len(), "{kept}");
    });

    // Listeners leave, as they do when a node is stopped: what is open goes on.
    balancer.enter(|| direct.follow(&KernelView::default()).unwrap());
    go_on(&mut open, "all listeners are gone");
    let refused = lan.client.enter(|| TcpStream::connect_timeout(&SocketAddr::new(VIP4, WEB), SECOND));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);

    // Somebody flushes everything.
    balancer.enter(|| direct.follow(&other).unwrap());
    balancer.run("nft", "flush ruleset");
    balancer.enter(|| {
        if !direct.check().unwrap() {
            direct.follow(&other).unwrap();
        }
    });
    assert!(new(&lan, 12).iter().all(|name| name == "a"));
    balancer.enter(|| {
        assert!(direct.sweep().unwrap());
        assert!(!direct.sweep().unwrap());
        assert_eq!(direct.in_force().unwrap(), None);
    });
}

#[test]
fn established_connections_go_on_at_another_balancer() {
    if !available(&[]) {
        return;
    }
    let lan = start(2, &["a", "b", "c"]);
    let (before, after) = (direct_view(&[("a", 1), ("b", 1)]), direct_view(&[("a", 1), ("b", 1), ("c", 2)]));
    let mut first = program(&lan.balancers[0], &before);
    let mut open = open(&lan, 80);
    let kept = lan.balancers[0].enter(|| {
        let seen = first.take_flows(&before).unwrap();
        assert_eq!((seen.flows, seen.kept), (80, Vec::new()), "each is where its hash says");
        first.follow(&after).unwrap();
        let seen = first.take_flows(&after).unwrap();
        assert!(seen.addresses.contains(&VIP4) && seen.addresses.contains(&VIP6), "{seen:?}");
        seen.kept
    });
    // Half of the slots are another member's now.
    assert!((20..60).contains(&kept.len()), "{}", kept.len());
    go_on(&mut open, "another member came");
    let told = KernelView { kept: Arc::new(kept.clone()), ..after.clone() };
    let mut second = program(&lan.balancers[1], &told);
    lan.move_addresses(0, 1);
    go_on(&mut open[..40], "the address moved");
    lan.balancers[1].enter(|| {
        // The next one has to hear of them, too, also of those that were silent.
        let mut seen = second.take_flows(&told).unwrap().kept;
        seen.sort_unstable();
        let mut kept = kept.clone();
        kept.sort_unstable();
        assert_eq!(seen, kept);
    });
    go_on(&mut open, "the address moved");
}

#[test]
fn nothing_is_passed_on_by_who_may_not_have_the_address() {
    if !available(&[]) {
        return;
    }
    let lan = start(2, &["a"]);
    let view = direct_view(&[("a", 1)]);
    let (first, second) = (&lan.balancers[0], &lan.balancers[1]);
    let programmers = [program(first, &view), program(second, &view)];
    let tries = || {
        let to = |ip| SocketAddr::new(ip, WEB);
        lan.client.enter(|| [VIP4, VIP6].map(|ip| TcpStream::connect_timeout(&to(ip), SECOND).is_ok()))
    };
    assert_eq!(tries(), [true; 2]);
    // Frames come to one that does not have the address.
    let link = second.ip("-br link show dev eth0");
    let mac = link.split_whitespace().nth(2).unwrap();
    for vip in [VIP4, VIP6] {
        lan.client.ip(&format!("neighbour replace {vip} lladdr {mac} dev eth0 nud permanent"));
    }
    assert_eq!(tries(), [false; 2]);
    // It has the address, and a fence before it.
    let mut fence = second.enter(|| Fence::install(&["eth0"], &[VIP4, VIP6], Ownership::Best).unwrap());
    second.ip(&format!("address add {VIP4}/24 dev eth0"));
    second.ip(&format!("address add {VIP6}/64 dev eth0 nodad"));
    assert_eq!(tries(), [false; 2]);
    let mut lease = |lasts: Duration| {
        second.enter(|| {
            let until = clock::after(clock::now(), lasts);
            for vip in [VIP4, VIP6] {
                fence.open(vip, until).unwrap();
            }
        });
    };
    lease(60 * SECOND);
    assert_eq!(tries(), [true; 2]);
    // And nothing more when the lease is over, whoever is frozen.
    lease(SECOND);
    std::thread::sleep(SECOND);
    assert_eq!(tries(), [false; 2]);
    drop(programmers);
}

#[test]
fn flows_of_a_member_that_is_over_are_reset() {
    if !available(&[]) {
        return;
    }
    let lan = start(1, &["a", "b"]);
    let balancer = &lan.balancers[0];
    let mut direct = program(balancer, &direct_view(&[("a", 1)]));
    let mut open = open(&lan, 12);
    let mut view = direct_view(&[("b", 1)]);
    for (pool, gone) in direct_view(&[("a", 1)]).known {
        view.known.get_mut(&pool).unwrap().extend(gone);
    }
    balancer.enter(|| direct.follow(&view).unwrap());
    go_on(&mut open, "it drains");
    view.known.values_mut().flatten().for_each(|member| member.is_over = member.name.starts_with('a'));
    balancer.enter(|| {
        direct.follow(&view).unwrap();
        let seen = direct.take_flows(&view).unwrap();
        assert_eq!((seen.cut, seen.flows), (12, 0));
    });
    // Also who only listens.
    for (stream, _) in &mut open {
        let began = Instant::now();
        let error = stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "after {:?}", began.elapsed());
    }
    assert!(new(&lan, 8).iter().all(|name| name == "b"));
}

#[test]
fn firewall_bans_and_rates_hold_without_connection_tracking() {
    if !available(&[]) {
        return;
    }
    let lan = start(1, &["a"]);
    let balancer = &lan.balancers[0];
    let free = direct_view(&[("a", 1)]);
    let mut direct = program(balancer, &free);
    let mut open = open(&lan, 4);
    let tried = |ip: IpAddr| {
        let tried = TcpStream::connect_timeout(&SocketAddr::new(ip, WEB), SECOND);
        tried.map(drop).map_err(|error| error.kind())
    };
    let each = || lan.client.enter(|| [VIP4, VIP6].map(tried));
    let networks = |text: &[&str]| KernelNetworks {
        name: None,
        ranges: Arc::new(text.iter().map(|network| network.parse::<ipnet::IpNet>().unwrap()).collect()),
    };
    let rule = |action, hits| KernelRule {
        from: Some(vec![networks(&["198.18.1.0/24", "fd00:198:181::/64"])]),
        ports: Vec::new(),
        action,
        hits,
    };
    for (action, kind, hits) in
        [(Action::Deny, ErrorKind::TimedOut, 7), (Action::Reject, ErrorKind::ConnectionRefused, 8)]
    {
        let mut guarded = free.clone();
        guarded.listeners[0].guard.rules = vec![rule(action, hits)];
        guarded.listeners[0].guard.default_hits = Some(9);
        balancer.enter(|| direct.follow(&guarded).unwrap());
        assert_eq!(each(), [Err(kind); 2], "{action:?}");
        go_on(&mut open, "what is open goes on");
        balancer.enter(|| {
            let denied = direct.traffic().unwrap().listeners["web"].denied;
            assert!(denied >= 2, "{denied}");
            assert!(direct.take_hits()[&hits] >= 2);
        });
    }

    let mut limited = free.clone();
    let rate = KernelRate { by_client: true, count: 1, each: 600 * SECOND, burst: 3, prefix_v6: 64 };
    limited.listeners[0].guard.rates = vec![rate];
    balancer.enter(|| direct.follow(&limited).unwrap());
    let let_in: Vec<usize> = lan.client.enter(|| {
        let count = |ip| (0..8).filter(|_| tried(ip).is_ok()).count();
        [VIP4, VIP6].map(count).into()
    });
    // The burst, and the one that the rate itself gives.
    assert!(let_in.iter().all(|count| (3..=4).contains(count)), "{let_in:?}");
    assert_eq!(each(), [Err(ErrorKind::ConnectionRefused); 2]);
    go_on(&mut open, "what is open goes on");

    let banned = ["198.18.1.48/30", "fd00:198:181::/64"].map(|network| network.parse().unwrap()).to_vec();
    balancer.enter(|| direct.follow(&KernelView { banned, ..free.clone() }).unwrap());
    assert_eq!(each(), [Err(ErrorKind::TimedOut); 2]);
    for (stream, _) in &mut open {
        stream.set_read_timeout(Some(SECOND / 4)).unwrap();
        stream.write_all(b"?").unwrap();
        assert!(stream.read(&mut [0; 1]).is_err(), "what is open stops");
    }
}

/// From the client, as a router would: what came from there to here was too large.
const TOO_BIG: &str = r#"
import ipaddress, socket, struct, sys
client, client_port, vip, vip_port = sys.argv[1:]
ends = ipaddress.ip_address(vip).packed + ipaddress.ip_address(client).packed
ports = struct.pack("!HHI", int(vip_port), int(client_port), 0)
if ":" in vip:
    quoted = struct.pack("!IHBB", 6 << 28, 1460, 6, 64) + ends + ports
    kind, message = socket.AF_INET6, struct.pack("!BBHI", 2, 0, 0, 1280) + quoted
    protocol = socket.IPPROTO_ICMPV6
else:
    quoted = struct.pack("!BBHHHBBH", 0x45, 0, 1500, 1, 0x4000, 64, 6, 0) + ends + ports
    message = struct.pack("!BBHHH", 3, 4, 0, 0, 1200) + quoted
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    while total > 0xffff:
        total = (total & 0xffff) + (total >> 16)
    message = message[:2] + struct.pack("!H", ~total & 0xffff) + message[4:]
    kind, protocol = socket.AF_INET, socket.IPPROTO_ICMP
socket.socket(kind, socket.SOCK_RAW, protocol).sendto(message, (vip, 0))
"#;

#[test]
fn rewriting_and_passing_on_stand_side_by_side() {
    if !available(&[]) {
        return;
    }
    let lan = start(1, &["a", "b"]);
    let balancer = &lan.balancers[0];
    balancer.sysctl("net.ipv4.ip_forward", "1");
    balancer.sysctl("net.ipv6.conf.all.forwarding", "1");
    let mut both = direct_view(&[("a", 1), ("b", 1)]);
    let mut rewritten = lan::view(&[("a", 1)]).listeners.swap_remove(0);
    rewritten.name = "rewritten".to_owned();
    rewritten.settings.mode = KernelMode::FullNat;
    both.listeners.push(rewritten);
    balancer.enter(|| {
        let mut carrier = Carrier::open("some").unwrap();
        carrier.follow(&direct_view(&[("a", 1)])).unwrap();
        assert!(matches!(carrier.in_force().unwrap(), [None, Some(_)]), "the other is not made in vain");
        assert!(carrier.follow(&both).unwrap());
        assert!(!carrier.follow(&both).unwrap());
        let open = lan.client.enter(|| {
            [VIP4, VIP6].map(|ip| {
                let (mut passed, mut rewritten) =
                    (connect(SocketAddr::new(ip, WEB)), connect(SocketAddr::new(ip, 80)));
                for _ in 0..3 {
                    assert_eq!(ask(&mut passed).1, passed.local_addr().unwrap());
                    assert!(lan::is_balancer(ask(&mut rewritten).1.ip(), 0));
                }
                (passed, rewritten)
            })
        });
        let traffic = carrier.traffic().unwrap();
        assert_eq!((traffic.listeners["web"].flows, traffic.listeners["rewritten"].flows), (2, 2));
        assert_eq!(carrier.direct_flows(&both).unwrap().flows, 2);
        drop(open);
        assert!(matches!(carrier.in_force().unwrap(), [Some(_), Some(_)]));
        drop(carrier);
        // What a dead process left of one kind goes when the next one has nothing of it.
        let mut carrier = Carrier::open("some").unwrap();
        let rewriting = KernelView { listeners: both.listeners[3..].to_vec(), ..both.clone() };
        carrier.follow(&rewriting).unwrap();
        assert!(carrier.sweep().unwrap());
        assert!(matches!(carrier.in_force().unwrap(), [Some(_), None]));
    });
}

#[test]
fn an_error_about_what_a_member_sent_reaches_it() {
    if !available(&["python3"]) {
        return;
    }
    let lan = start(1, &["a", "b", "c"]);
    let _direct = program(&lan.balancers[0], &direct_view(&[("a", 1), ("b", 1), ("c", 1)]));
    let has_come = |member: usize, ipv6: bool| {
        let file = if ipv6 { "/proc/net/snmp6" } else { "/proc/net/snmp" };
        let text = lan.members[member].namespace.run("cat", file);
        let mut lines = text.lines();
        if ipv6 {
            let line = lines.find(|line| line.starts_with("Icmp6InPktTooBigs")).unwrap();
            line.split_whitespace().nth(1) != Some("0")
        } else {
            lines.any(|line| line.starts_with("IcmpMsg:") && line.contains("InType3"))
        }
    };
    for (stream, name) in open(&lan, 2) {
        let (client, vip) = (stream.local_addr().unwrap(), stream.peer_addr().unwrap());
        let member = usize::from(name.as_bytes()[0] - b'a');
        assert!(!has_come(member, vip.is_ipv6()));
        let ends = [client, vip].map(|end| format!("{} {}", end.ip(), end.port())).join(" ");
        let mut python = std::process::Command::new("python3");
        python.args(["-c", TOO_BIG]).args(ends.split(' '));
        let said = lan.client.enter(move || python.output().unwrap());
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        let began = Instant::now();
        while !has_come(member, vip.is_ipv6()) {
            assert!(began.elapsed() < 5 * SECOND, "{vip}: it has come to {name}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
