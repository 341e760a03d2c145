//! The kernel path against the kernel: balancers, members and a client in namespaces of their own.
#![allow(clippy::unwrap_used)]

mod lan;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lan::{Lan, Member, VIP4, VIP6, ask, connect, said, view};
use trestle_config::model::{KernelHash, KernelMode};
use trestle_dataplane::KernelView;
use trestle_kernel_path::{Census, Programmer, support};
use trestle_netlink::testing::{Namespace, available};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn clients_reach_members_and_are_seen_by_their_own_addresses() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a", "b"]);
    let view = view(&[("a", 1), ("b", 1)]);
    lan.balancers[0].enter(|| {
        support::check(KernelMode::Nat, false).unwrap();
        support::check(KernelMode::Nat, true).unwrap();
        let mut programmer = Programmer::open("one").unwrap();
        assert!(programmer.follow(&view).unwrap());
        assert!(!programmer.follow(&view).unwrap(), "nothing has changed");
        lan.client.enter(|| {
            for ip in [VIP4, VIP6] {
                let mut seen: BTreeMap<String, u32> = BTreeMap::new();
                for _ in 0..24 {
                    let mut stream = connect(SocketAddr::new(ip, 80));
                    let own = stream.local_addr().unwrap();
                    let (name, peer) = ask(&mut stream);
                    assert_eq!(peer, own);
                    *seen.entry(name).or_default() += 1;
                }
                assert_eq!(seen.len(), 2, "{seen:?}");

                let mut seen: BTreeMap<String, u32> = BTreeMap::new();
                for _ in 0..24 {
                    let socket = UdpSocket::bind(SocketAddr::new(lan::client_ip(ip), 0)).unwrap();
                    socket.set_read_timeout(Some(3 * SECOND)).unwrap();
                    socket.connect(SocketAddr::new(ip, 53)).unwrap();
                    socket.send(b"?").unwrap();
                    let mut answer = [0; 64];
                    let length = socket.recv(&mut answer).unwrap();
                    let (name, peer) = said(&answer[..length]);
                    assert_eq!(peer, socket.local_addr().unwrap());
                    *seen.entry(name).or_default() += 1;
                }
                assert_eq!(seen.len(), 2, "{seen:?}");

                // A range: the member is asked at the port of the same number.
                let mut stream = connect(SocketAddr::new(ip, 7002));
                let (_, peer) = ask(&mut stream);
                assert_eq!(peer, stream.local_addr().unwrap());
            }
        });
        let in_force = programmer.in_force().unwrap().unwrap();
        assert_eq!(in_force.table, "trestle_kernel_one");
        let table = in_force.tables.iter().find(|table| table.pool == "web" && !table.ipv6).unwrap();
        assert_eq!(table.slots, 1021);
        assert_eq!(table.members.iter().map(|share| share.slots).sum::<usize>(), 1021);
        assert!(table.members.iter().all(|share| (500..=521).contains(&share.slots)), "{table:?}");
    });
}

#[test]
fn a_change_leaves_established_flows_and_moves_new_ones() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a", "b"]);
    lan.balancers[0].enter(|| {
        let mut programmer = Programmer::open("one").unwrap();
        programmer.follow(&view(&[("a", 1), ("b", 1)])).unwrap();
        let mut open: Vec<(TcpStream, String)> = lan.client.enter(|| {
            let open = (0..16).map(|_| {
                let mut stream = connect(SocketAddr::new(VIP4, 80));
                let (name, _) = ask(&mut stream);
                (stream, name)
            });
            open.collect()
        });
        let mut go_on = |when: &str| {
            for (stream, name) in &mut open {
                assert_eq!(ask(stream).0, *name, "{when}");
            }
        };
        let new = |count: usize| -> Vec<String> {
            lan.client.enter(|| (0..count).map(|_| ask(&mut connect(SocketAddr::new(VIP4, 80))).0).collect())
        };

        programmer.follow(&view(&[("b", 1)])).unwrap();
        assert!(new(12).iter().all(|name| name == "b"));
        go_on("a gets nothing new");

        programmer.follow(&view(&[])).unwrap();
        let refused = lan.client.enter(|| TcpStream::connect_timeout(&SocketAddr::new(VIP4, 80), SECOND));
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        go_on("nobody gets anything new");

        programmer.follow(&view(&[("a", 1)])).unwrap();
        assert!(new(12).iter().all(|name| name == "a"));

        // The process dies, and another takes its place.
        drop(programmer);
        go_on("nobody programs");
        let mut programmer = Programmer::open("one").unwrap();
        assert!(programmer.follow(&view(&[("b", 1)])).unwrap());
        assert!(new(12).iter().all(|name| name == "b"));
        go_on("what was left is replaced");

        // Somebody flushes everything.
        let flushed = lan.balancers[0].run("nft", "flush ruleset");
        assert_eq!(flushed, "");
        if !programmer.check().unwrap() {
            programmer.follow(&view(&[("b", 1)])).unwrap();
        }
        assert!(new(12).iter().all(|name| name == "b"));
        go_on("all was flushed");

        assert!(programmer.sweep().unwrap());
        assert!(!programmer.sweep().unwrap());
        assert_eq!(programmer.in_force().unwrap(), None);
    });
}

#[test]
fn weights_are_kept_and_a_client_keeps_its_member() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a", "b"]);
    lan.balancers[0].enter(|| {
        let mut programmer = Programmer::open("one").unwrap();
        let mut by_client = view(&[("a", 1), ("b", 3)]);
        by_client.listeners.iter_mut().for_each(|listener| listener.settings.hash = KernelHash::Client);
        programmer.follow(&by_client).unwrap();
        let in_force = programmer.in_force().unwrap().unwrap();
        let table = in_force.tables.iter().find(|table| table.pool == "web" && !table.ipv6).unwrap();
        assert!((250..=261).contains(&table.members[0].slots), "{table:?}");
        let names: Vec<String> =
            lan.client.enter(|| (0..12).map(|_| ask(&mut connect(SocketAddr::new(VIP4, 80))).0).collect());
        assert!(names.iter().all(|name| *name == names[0]), "{names:?}");
    });
}

#[test]
fn full_nat_needs_no_way_back_through_us() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    lan.members[0].forget_gateway();
    lan.balancers[0].enter(|| {
        let mut programmer = Programmer::open("one").unwrap();
        let mut full = view(&[("a", 1)]);
        full.listeners.iter_mut().for_each(|listener| listener.settings.mode = KernelMode::FullNat);
        programmer.follow(&full).unwrap();
        lan.client.enter(|| {
            for (ip, port) in [(VIP4, 80), (VIP6, 80), (VIP4, 7001)] {
                let (name, peer) = ask(&mut connect(SocketAddr::new(ip, port)));
                assert_eq!(name, "a");
                assert!(lan::is_balancer(peer.ip(), 0), "{peer}");
            }
        });
    });
}

#[test]
fn established_connections_go_on_at_another_balancer() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(2, &["a", "b", "c"]);
    let view = view(&[("a", 1), ("b", 2), ("c", 1)]);
    let mut programmers: Vec<Programmer> = lan
        .balancers
        .iter()
        .map(|balancer| {
            balancer.enter(|| {
                let mut programmer = Programmer::open("some").unwrap();
                programmer.follow(&view).unwrap();
                assert_eq!(programmer.remarks(), Vec::<String>::new());
                programmer
            })
        })
        .collect();
    let mut open: Vec<(TcpStream, String)> = lan.client.enter(|| {
        let open = (0..120).map(|n| {
            let mut stream = connect(SocketAddr::new(if n % 2 == 0 { VIP4 } else { VIP6 }, 80));
            let (name, _) = ask(&mut stream);
            (stream, name)
        });
        open.collect()
    });
    // The members speak first to every other one, once the first balancer is gone.
    for (stream, _) in open.iter_mut().step_by(2) {
        stream.write_all(b"!").unwrap();
    }
    std::thread::sleep(lan::PAUSE / 2);
    let began = Instant::now();
    lan.move_addresses(0, 1);
    for (stream, name) in open.iter_mut().step_by(2) {
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).unwrap();
        assert_eq!(said(&answer[..length]).0, *name);
    }
    for (stream, name) in &mut open {
        for _ in 0..3 {
            assert_eq!(ask(stream).0, *name);
        }
    }
    assert!(began.elapsed() < 10 * SECOND, "{:?}", began.elapsed());
    // Each counts at its listener, whoever was heard first.
    let traffic = lan.balancers[1].enter(|| programmers[1].traffic().unwrap());
    assert_eq!(traffic.listeners["web"].flows, open.len() as u64, "{traffic:?}");
    assert_eq!(traffic.members.values().map(|member| member.flows).sum::<u64>(), open.len() as u64);
}

#[test]
fn flows_that_began_under_an_older_table_go_on_where_they_are_told_of() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(2, &["a", "b", "c"]);
    let (before, after) = (view(&[("a", 1), ("b", 1)]), view(&[("a", 1), ("b", 1), ("c", 2)]));
    let (mut first, mut census) = lan.balancers[0].enter(|| {
        let mut programmer = Programmer::open("some").unwrap();
        programmer.follow(&before).unwrap();
        (programmer, Census::open().unwrap())
    });
    let mut open: Vec<(TcpStream, String)> = lan.client.enter(|| {
        let open = (0..80).map(|n| {
            let port = if n % 4 < 2 { 80 } else { 7001 };
            let mut stream = connect(SocketAddr::new(if n % 2 == 0 { VIP4 } else { VIP6 }, port));
            let (name, _) = ask(&mut stream);
            (stream, name)
        });
        open.collect()
    });
    let kept = lan.balancers[0].enter(|| {
        let seen = census.take_by(&before, first.tables().as_ref()).unwrap();
        assert_eq!((seen.flows, seen.kept), (80, Vec::new()), "each is where its hash says");
        first.follow(&after).unwrap();
        let seen = census.take_by(&after, first.tables().as_ref()).unwrap();
        assert!(seen.addresses.contains(&VIP4) && seen.addresses.contains(&VIP6), "{seen:?}");
        seen.kept
    });
    // Half of the slots are another member's now.
    assert!((20..60).contains(&kept.len()), "{}", kept.len());
    let told = KernelView { kept: Arc::new(kept.clone()), ..after.clone() };
    let (mut second, mut census) = lan.balancers[1].enter(|| {
        let mut programmer = Programmer::open("some").unwrap();
        programmer.follow(&told).unwrap();
        (programmer, Census::open().unwrap())
    });
    // Members speak first to some.
    for (stream, _) in open.iter_mut().step_by(3) {
        stream.write_all(b"!").unwrap();
    }
    std::thread::sleep(lan::PAUSE / 2);
    lan.move_addresses(0, 1);
    for (stream, name) in open.iter_mut().step_by(3) {
        let mut answer = [0; 64];
        let length = stream.read(&mut answer).unwrap();
        assert_eq!(said(&answer[..length]).0, *name);
    }
    for (stream, name) in open.iter_mut().take(40) {
        assert_eq!(ask(stream).0, *name);
    }
    lan.balancers[1].enter(|| {
        // The next one has to hear of them, too, also of those that were silent.
        let mut seen = census.take_by(&told, second.tables().as_ref()).unwrap().kept;
        seen.sort_unstable();
        let mut kept = kept.clone();
        kept.sort_unstable();
        assert_eq!(seen, kept);
        second.follow(&after).unwrap();
        second.follow(&told).unwrap();
    });
    for (stream, name) in open.iter_mut() {
        assert_eq!(ask(stream).0, *name);
    }
}

#[test]
fn who_is_banned_is_shut_out_and_what_is_open_stops() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    lan.balancers[0].enter(|| {
        let mut programmer = Programmer::open("one").unwrap();
        let free = view(&[("a", 1)]);
        programmer.follow(&free).unwrap();
        for (vip, banned) in [(VIP4, "198.18.1.48/30"), (VIP6, "fd00:198:181::/64")] {
            let mut open: Vec<TcpStream> =
                lan.client.enter(|| [80, 7001].map(|port| connect(SocketAddr::new(vip, port)))).into();
            open.iter_mut().for_each(|stream| _ = ask(stream));
            // The last address there is ends no interval.
            let others = ["203.0.113.0/25", "203.0.113.128/25", "255.255.255.0/24"];
            let networks = others.into_iter().chain([banned]).map(|network| network.parse().unwrap());
            programmer.follow(&KernelView { banned: networks.collect(), ..free.clone() }).unwrap();
            let connects = || {
                let to = SocketAddr::new(vip, 80);
                lan.client.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)))
            };
            assert_eq!(connects().unwrap_err().kind(), std::io::ErrorKind::TimedOut);
            for stream in &mut open {
                stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                stream.write_all(b"?").unwrap();
                assert!(stream.read(&mut [0; 8]).is_err(), "nothing more comes through");
            }
            programmer.follow(&free).unwrap();
            assert!(connects().is_ok());
        }
    });
}

#[test]
fn the_largest_table_is_followed_while_others_change_theirs() {
    if !available(&[]) {
        return;
    }
    let host = Namespace::new("large");
    host.enter(|| {
        let names: Vec<String> = ('a'..='j').map(|name| name.to_string()).collect();
        let sized = |weight: u32| {
            let weights: Vec<(&str, u32)> = names.iter().map(|n| (n.as_str(), 1)).collect();
            let mut view = view(&[&weights[..9], &[("j", weight)]].concat());
            view.listeners.truncate(1);
            view.listeners[0].settings.slots = 65_537;
            view
        };
        let mut programmer = Programmer::open("one").unwrap();
        let mut took = Vec::new();
        let mut longest = Duration::MAX;
        // Who waits may stand still by itself.
        for _ in 0..3 {
            programmer.sweep().unwrap();
            took.clear();
            longest = longest.min(lan::longest_wait(&host, || {
                for weight in [1, 2] {
                    let began = Instant::now();
                    programmer.follow(&sized(weight)).unwrap();
                    took.push(began.elapsed());
                }
            }));
            if longest < Duration::from_millis(500) {
                break;
            }
        }
        println!(
            "two tables of 65,537: {:?}; one of ten weights doubled: {:?}; others wait {longest:?}",
            took[0], took[1]
        );
        assert!(longest < Duration::from_millis(500), "{longest:?}");
        let tables = programmer.in_force().unwrap().unwrap().tables;
        assert_eq!(tables.iter().map(|table| table.slots).collect::<Vec<_>>(), [65_537, 65_537]);
        for table in tables {
            let last = table.members.last().unwrap().slots as f64;
            assert!((last / 65_537.0 - 2.0 / 11.0).abs() < 0.002, "{table:?}");
        }
    });
}

#[test]
fn what_is_not_of_ours_is_left_alone() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    lan.balancers[0].enter(|| {
        lan.balancers[0].run("nft", "add table inet others");
        lan.balancers[0].run("nft", "add chain inet others some");
        let own = Member::listen(IpAddr::from([0, 0, 0, 0]), 81, "own");
        let mut programmer = Programmer::open("one").unwrap();
        programmer.follow(&view(&[("a", 1)])).unwrap();
        let (name, _) = lan.client.enter(|| ask(&mut connect(SocketAddr::new(VIP4, 81))));
        assert_eq!(name, "own");
        programmer.sweep().unwrap();
        assert!(lan.balancers[0].run("nft", "list ruleset").contains("chain some"));
        drop(own);
    });
}

#[test]
fn flows_of_a_member_that_is_over_are_reset_and_no_others() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a", "b"]);
    lan.balancers[0].enter(|| {
        let (mut programmer, mut census) = (Programmer::open("one").unwrap(), Census::open().unwrap());
        programmer.follow(&view(&[("a", 1), ("b", 1)])).unwrap();
        let open: Vec<(TcpStream, String)> = lan.client.enter(|| {
            let open = (0..32).map(|n| {
                let mut stream = connect(SocketAddr::new(if n % 2 == 0 { VIP4 } else { VIP6 }, 80));
                let (name, _) = ask(&mut stream);
                (stream, name)
            });
            open.collect()
        });
        let mut without = view(&[("b", 1)]);
        without.known = view(&[("a", 1), ("b", 1)]).known;
        let known = without.known.values_mut().flatten();
        known.for_each(|member| member.is_over = member.name.starts_with('a'));
        programmer.follow(&without).unwrap();
        let seen = census.take(&without).unwrap();
        let of = |name: &str| open.iter().filter(|(_, member)| member == name).count() as u64;
        assert_eq!((seen.cut, seen.listeners["web"]), (of("a"), of("b")));
        for (mut stream, name) in open {
            // Clients wait and say nothing themselves.
            if name == "b" {
                assert_eq!(ask(&mut stream).0, "b");
                continue;
            }
            let ended = stream.read(&mut [0; 8]).unwrap_err();
            assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
        }
        assert_eq!(census.take(&without).unwrap().cut, 0);
    });
}

#[test]
fn what_goes_each_way_is_counted_by_listener_and_member() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    lan.balancers[0].enter(|| {
        let mut programmer = Programmer::open("one").unwrap();
        let mut view = view(&[("a", 1)]);
        programmer.follow(&view).unwrap();
        let mut open: Vec<TcpStream> = lan.client.enter(|| {
            let of = |(ip, port): (IpAddr, u16)| {
                let mut stream = connect(SocketAddr::new(ip, port));
                (0..3).for_each(|_| _ = ask(&mut stream));
                stream
            };
            [(VIP4, 80), (VIP4, 80), (VIP6, 80), (VIP4, 7001), (VIP6, 7002)].map(of).into()
        });
        for name in ["web", "range"] {
            let traffic = programmer.traffic().unwrap();
            let (listener, flows) = (traffic.listeners[name], if name == "web" { 3 } else { 2 });
            assert_eq!(listener.flows, flows, "{traffic:?}");
            // Of each: SYN, ACK, and three questions, at least.
            assert!(listener.received.packets >= 5 * flows, "{traffic:?}");
            assert!(listener.sent.packets >= 4 * flows, "{traffic:?}");
            assert!(listener.sent.bytes > listener.received.packets * 40, "{traffic:?}");
            let port = if name == "web" { 8080 } else { 7000 };
            let members = ["198.18.2.10", "fd00:198:182::10"].map(|ip| ip.parse::<IpAddr>().unwrap());
            let [four, six] = members.map(|ip| traffic.members[&SocketAddr::new(ip, port)]);
            assert_eq!(four.flows + six.flows, flows, "{traffic:?}");
            assert_eq!(four.received.packets + six.received.packets, listener.received.packets);
            assert_eq!(four.sent.bytes + six.sent.bytes, listener.sent.bytes);
        }

        let mut census = Census::open().unwrap();
        let seen = census.take(&view).unwrap();
        assert_eq!((seen.listeners["web"], seen.listeners["range"], seen.flows), (3, 2, 5));
        assert_eq!(seen.members[&"198.18.2.10:8080".parse().unwrap()], 2);
        let of_client = |ip| seen.clients.iter().find(|(client, _)| *client == ip).unwrap().1;
        assert_eq!((of_client(lan::client_ip(VIP4)), of_client(lan::client_ip(VIP6))), (3, 2));
        assert!(seen.took < SECOND && seen.cut == 0, "{seen:?}");

        // Counts are the process's, whatever becomes of the table.
        let before = programmer.traffic().unwrap();
        assert!(programmer.sweep().unwrap());
        programmer.follow(&view).unwrap();
        assert!(
            programmer.traffic().unwrap().listeners["web"].received.packets
                >= before.listeners["web"].received.packets
        );

        // A listener that goes takes its counts along.
        view.listeners.retain(|listener| listener.name != "web");
        programmer.follow(&view).unwrap();
        let traffic = programmer.traffic().unwrap();
        assert!(!traffic.listeners.contains_key("web") && traffic.listeners.contains_key("range"));
        open.clear();
    });
}
