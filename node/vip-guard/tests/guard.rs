//! The guard as a process, with a kernel and neighbours that are real: network namespaces, so root.
#![allow(clippy::unwrap_used)]

mod harness;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::Duration,
};

use harness::{Guard, MS, Neighbour, PATIENCE, VIP, after, segment, sleep_until, spec, until, vip};
use rustix::process::Signal;
use trestle_netlink::{
    clock,
    fence::Listing,
    nft::Nft,
    route::{NewAddress, Route},
    testing::Namespace,
};
use trestle_vip_guard::{
    protocol::{FromGuard, ToGuard, VipSpec, Why},
    spawn,
};

fn released(message: &FromGuard) -> bool {
    matches!(message, FromGuard::Released { .. })
}

fn connects(client: &Namespace, port: u16) -> bool {
    let to = SocketAddr::new(vip(), port);
    client.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(300))).is_ok()
}

fn serve(host: &Namespace) -> (TcpListener, u16) {
    let listener = host.enter(|| TcpListener::bind("0.0.0.0:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn a_granted_address_is_announced_and_reached_and_gone_at_the_deadline() {
    let Some(segment) = segment(&[]) else { return };
    let (host, client) = (&segment.hosts[0], &segment.hosts[1]);
    let (neighbour, (_listener, port)) = (Neighbour::on(client), serve(host));
    let mut guard = Guard::configured(host);
    assert!(!guard.has_address());

    let deadline = guard.hold(1, 3000);
    assert!(neighbour.hears_claim(PATIENCE).is_some(), "it is announced");
    assert!(guard.has_address());
    assert!(connects(client, port));
    let listing = host.enter(|| Listing::read(&mut Nft::open().unwrap()).unwrap().unwrap());
    let live = listing.live.iter().find(|timed| timed.address == vip()).unwrap();
    assert!(live.until <= deadline, "the fence shuts by itself no later than the lease ends");

    sleep_until(deadline - 60 * MS);
    assert!(guard.has_address() || clock::now() >= deadline, "it is there until then");
    let gone_late = |guard: &mut Guard, deadline: u64| {
        until("gone", PATIENCE, || !guard.has_address());
        clock::now().saturating_sub(deadline)
    };
    let mut late = gone_late(&mut guard, deadline);
    assert!(!neighbour.is_answered());
    assert!(!connects(client, port));
    let message = guard.wait_for("Released", released);
    assert_eq!(message, FromGuard::Released { vip: "front".to_owned(), epoch: 1, why: Why::Ended });
    // Who looks may stand still for as long; the guard has a priority of its own.
    for epoch in 2..=5 {
        if late < 50 * MS {
            break;
        }
        let deadline = guard.hold(epoch, 1000);
        late = late.min(gone_late(&mut guard, deadline));
        guard.wait_for("Released", released);
    }
    assert!(late < 50 * MS, "gone {late} ns after the deadline");
    assert!(guard.close().success());
}

#[test]
fn where_the_machine_has_no_address_the_vip_brings_its_route_for_as_long_as_its_lease() {
    let Some(segment) = segment(&[]) else { return };
    let host = &segment.hosts[0];
    let mut guard = Guard::start(host);
    let addresses = vec![("198.19.0.100".parse().unwrap(), 24), ("2001:db8::100".parse().unwrap(), 64)];
    let spec = VipSpec { addresses, interface: Some("eth0".to_owned()), ..spec() };
    guard.send(ToGuard::Configure { vips: vec![spec] });
    guard.wait_for("Usable", |m| matches!(m, FromGuard::Usable { problem: None, .. }));
    let routes = || host.ip("route show dev eth0") + &host.ip("-6 route show dev eth0");
    guard.hold(1, 2000);
    let held = routes();
    assert!(held.contains("198.19.0.0/24") && held.contains("2001:db8::/64"), "{held}");
    guard.send(ToGuard::Release { vip: "front".to_owned() });
    guard.wait_for("Released", released);
    assert!(!routes().contains("198.19.0.0/24"), "{}", routes());
    // The kernel lets an IPv6 route live for as long as its address would have.
    let left = routes();
    assert!(!left.contains("2001:db8::/64") || left.contains("expires"), "{left}");
}

#[test]
fn another_interface_on_the_segment_neither_answers_for_it_nor_names_it() {
    let Some(segment) = segment(&[]) else { return };
    let host = &segment.hosts[0];
    let mut guard = Guard::configured(host);
    guard.hold(1, 60_000);
    // One that was there, and one that comes.
    host.ip("link add late type veth peer name late-peer");
    host.ip("link set late up");
    // The larger one of all interfaces' value and its own counts.
    let of = |device: &str, key: &str| -> u8 {
        let value = |of: &str| -> u8 {
            let path = format!("/proc/sys/net/ipv4/conf/{of}/{key}");
            host.enter(move || std::fs::read_to_string(path)).unwrap().trim().parse().unwrap()
        };
        value("all").max(value(device))
    };
    until("it is kept from answering", PATIENCE, || of("late", "arp_ignore") == 1);
    until("and from naming it", PATIENCE, || of("late", "arp_announce") == 2);
    assert_eq!((of("eth0", "arp_ignore"), of("eth0", "arp_announce")), (0, 2));
}

#[test]
fn renewals_keep_it() {
    let Some(segment) = segment(&[]) else { return };
    let neighbour = Neighbour::on(&segment.hosts[1]);
    let mut guard = Guard::configured(&segment.hosts[0]);
    guard.hold(1, 3000);
    let end = after(4500);
    while clock::now() < end {
        sleep_until(after(300));
        guard.grant(1, 3000);
    }
    guard.drain();
    assert!(!guard.seen.iter().any(released), "{:?}", guard.seen);
    assert!(guard.has_address() && neighbour.is_answered());
}

#[test]
fn a_frozen_guard_is_silent_at_the_deadline_and_a_thaw_brings_nothing_back() {
    let Some(segment) = segment(&[]) else { return };
    let (host, client) = (&segment.hosts[0], &segment.hosts[1]);
    let (neighbour, (_listener, port)) = (Neighbour::on(client), serve(host));
    let mut guard = Guard::configured(host);
    let deadline = guard.hold(1, 3000);
    assert!(neighbour.is_answered());
    guard.signal(Signal::STOP);
    // A renewal that it will find when it is thawed, and that is over by then.
    let (front, sent) = ("front".to_owned(), clock::now());
    let stale = ToGuard::Grant { vip: front, epoch: 1, sent, deadline: deadline + 10 * MS, probe: false };
    guard.send(stale);
    sleep_until(deadline + 20 * MS);
    // The address may still be there, as far as `valid_lft` goes; nobody hears of it.
    assert!(!neighbour.is_answered());
    assert!(!connects(client, port));
    neighbour.forget();
    guard.signal(Signal::CONT);
    let message = guard.wait_for("Released", released);
    assert_eq!(message, FromGuard::Released { vip: "front".to_owned(), epoch: 1, why: Why::Ended });
    assert!(!guard.has_address());
    assert_eq!(neighbour.hears_claim(Duration::from_millis(300)), None);
    guard.drain();
    assert!(!guard.seen.iter().any(|message| matches!(message, FromGuard::Holding { .. })));
}

#[test]
fn the_nodes_end_closed_takes_it_away_in_milliseconds_and_tells_the_others() {
    let Some(segment) = segment(&[]) else { return };
    let (host, other) = (&segment.hosts[0], &segment.hosts[1]);
    let inbox = other.enter(|| UdpSocket::bind("198.18.0.2:0")).unwrap();
    inbox.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut guard = Guard::configured(host);
    guard.send(ToGuard::Notice { datagrams: vec![(inbox.local_addr().unwrap(), b"let go".to_vec())] });
    guard.hold(1, 60_000);
    let mut route = host.enter(|| Route::open().unwrap());
    let mut there = || route.addresses().unwrap().iter().any(|a| a.address == vip());
    assert!(there());

    let spawned = guard.spawned.take().unwrap();
    let mut process = spawned.process;
    let closed = clock::now();
    drop(spawned.link);
    until("gone", PATIENCE, || !there());
    let took = clock::now() - closed;
    let mut buffer = [0; 100];
    for _ in 0..3 {
        let (length, _) = inbox.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"let go");
    }
    assert!(harness::wait(&mut process).success());
    assert!(took < 20 * MS, "{took} ns");
    // Nothing of it is left behind.
    assert!(host.enter(|| Listing::read(&mut Nft::open().unwrap()).unwrap()).is_none());
}

#[test]
fn what_a_dead_guard_left_is_swept_first() {
    let Some(segment) = segment(&[]) else { return };
    let host = &segment.hosts[0];
    host.enter(|| {
        let mut route = Route::open().unwrap();
        let link = route.link("eth0").unwrap().unwrap().index;
        // By its mark on any interface.
        let lo = route.link("lo").unwrap().unwrap().index;
        route.set_address(&NewAddress::new(lo, "198.18.9.9".parse().unwrap(), 32).by(0x54)).unwrap();
        route.set_address(&NewAddress::new(link, vip(), 24).lasting(3600).by(0x54)).unwrap();
    });
    let mut guard = Guard::start(host);
    let mut route = host.enter(|| Route::open().unwrap());
    until("what bears its mark is gone before anything is configured", PATIENCE, || {
        !route.addresses().unwrap().iter().any(|there| there.protocol == Some(0x54))
    });
    assert!(!guard.has_address());
    guard.send(ToGuard::Configure { vips: vec![spec()] });
    let started = guard.wait_for("Started", |m| matches!(m, FromGuard::Started { .. }));
    let FromGuard::Started { mut swept, session, unprotected, weak } = started else { unreachable!() };
    swept.sort_unstable();
    assert_eq!(swept, [vip(), "198.18.9.9".parse().unwrap()]);
    assert_ne!(session, [0; 16]);
    // What this machine does not allow is said with what it takes.
    assert!(unprotected.iter().all(|text| text.contains("CAP_")), "{unprotected:?}");
    assert_eq!(weak, [""; 0]);
    assert!(host.ip("address show dev eth0").contains("198.18.0.1/24"), "the machine's own stays");
}

#[test]
fn an_address_of_the_machine_stays_and_works_when_a_vip_is_given_the_same() {
    let Some(segment) = segment(&[]) else { return };
    let (host, neighbour) = (&segment.hosts[0], Neighbour::on(&segment.hosts[1]));
    host.ip(&format!("address add {VIP}/24 dev eth0"));
    let mut guard = Guard::start(host);
    guard.send(ToGuard::Configure { vips: vec![spec()] });
    let usable = guard.wait_for("Usable", |m| matches!(m, FromGuard::Usable { .. }));
    let FromGuard::Usable { problem: Some(problem), .. } = usable else { panic!("{usable:?}") };
    assert!(problem.contains("198.18.0.100 is this machine's own address on eth0"), "{problem}");
    guard.grant(1, 60_000);
    guard.wait_for("Released", |m| matches!(m, FromGuard::Released { why: Why::Failed(_), .. }));
    assert!(neighbour.is_answered(), "the fence does not cut it off");
    guard.send(ToGuard::Configure { vips: Vec::new() });
    drop(guard);
    let shown = host.ip("address show dev eth0");
    assert!(shown.contains("198.18.0.100/24") && shown.contains("valid_lft forever"), "{shown}");
    assert!(neighbour.is_answered());
}

#[test]
fn a_guard_killed_while_it_holds_is_followed_by_one_that_starts_clean() {
    let Some(segment) = segment(&[]) else { return };
    let (host, neighbour) = (&segment.hosts[0], Neighbour::on(&segment.hosts[1]));
    let mut first = Guard::configured(host);
    first.hold(1, 60_000);
    first.signal(Signal::KILL);
    first.ended();
    let mut second = Guard::configured(host);
    assert!(!second.has_address());
    assert!(!neighbour.is_answered());
    second.hold(2, 5000);
    assert!(neighbour.is_answered());
}

#[test]
fn another_programs_flush_does_not_touch_the_fence() {
    let Some(segment) = segment(&["nft"]) else { return };
    let (host, neighbour) = (&segment.hosts[0], Neighbour::on(&segment.hosts[1]));
    let mut guard = Guard::configured(host);
    let deadline = guard.hold(1, 4000);
    host.run("nft", "flush ruleset");
    assert!(neighbour.is_answered());
    guard.signal(Signal::STOP);
    sleep_until(deadline + 20 * MS);
    assert!(!neighbour.is_answered(), "the fence still stands");
    guard.signal(Signal::CONT);
}

#[test]
fn a_plain_fence_that_was_flushed_means_letting_go() {
    let Some(segment) = segment(&["nft"]) else { return };
    let host = &segment.hosts[0];
    let mut guard = Guard::plain(host);
    guard.configure();
    guard.hold(1, 60_000);
    host.run("nft", "flush ruleset");
    let message = guard.wait_for("Released", released);
    assert!(matches!(message, FromGuard::Released { why: Why::Failed(_), .. }), "{message:?}");
    assert!(!guard.has_address());
    guard.wait_for("the problem", |m| matches!(m, FromGuard::Usable { problem: Some(_), .. }));
    guard.wait_for("a new fence", |m| matches!(m, FromGuard::Usable { problem: None, fenced: true, .. }));
    guard.hold(2, 5000);
}

#[test]
fn a_stranger_silences_it_until_a_newer_grant() {
    let Some(segment) = segment(&[]) else { return };
    let (host, neighbour) = (&segment.hosts[0], Neighbour::on(&segment.hosts[1]));
    let mut guard = Guard::configured(host);
    guard.hold(1, 60_000);
    assert!(neighbour.is_answered());
    neighbour.announce();
    let message = guard.wait_for("Stranger", |m| matches!(m, FromGuard::Stranger { .. }));
    let FromGuard::Stranger { address, mac, at, .. } = message else { unreachable!() };
    assert_eq!((address, mac), (vip(), neighbour.mac.0));
    assert!(!neighbour.is_answered());
    let front = || "front".to_owned();
    guard.send(ToGuard::Grant { vip: front(), epoch: 1, sent: at, deadline: after(60_000), probe: false });
    assert!(!neighbour.is_answered(), "a grant that is no newer opens nothing");
    neighbour.forget();
    guard.hold(1, 60_000);
    assert!(neighbour.hears_claim(PATIENCE).is_some(), "it is announced anew");
    assert!(neighbour.is_answered());
}

#[test]
fn a_first_take_over_finds_who_has_the_address() {
    let Some(segment) = segment(&[]) else { return };
    let (host, stranger) = (&segment.hosts[0], &segment.hosts[1]);
    let mac = Neighbour::on(stranger).mac.0;
    let mut guard = Guard::configured(host);
    let (front, probed) = (|| "front".to_owned(), |m: &FromGuard| matches!(m, FromGuard::Probed { .. }));
    guard.send(ToGuard::Probe { vip: front() });
    let message = guard.wait_for("Probed", probed);
    assert_eq!(message, FromGuard::Probed { vip: front(), taken_by: None });

    stranger.ip(&format!("address add {VIP}/24 dev eth0"));
    guard.send(ToGuard::Probe { vip: front() });
    let message = guard.wait_for("Probed", probed);
    assert_eq!(message, FromGuard::Probed { vip: front(), taken_by: Some((vip(), mac)) });
    let (sent, deadline) = (clock::now(), after(5000));
    guard.send(ToGuard::Grant { vip: front(), epoch: 1, sent, deadline, probe: true });
    let message = guard.wait_for("Released", released);
    assert_eq!(message, FromGuard::Released { vip: front(), epoch: 1, why: Why::Taken(mac) });
    assert!(!guard.has_address());
}

#[test]
fn silence_keeps_a_connection_going_while_arp_is_dead() {
    let Some(segment) = segment(&[]) else { return };
    let (host, client) = (&segment.hosts[0], &segment.hosts[1]);
    let (neighbour, (listener, port)) = (Neighbour::on(client), serve(host));
    let mut guard = Guard::configured(host);
    guard.hold(1, 20_000);
    let mut ours = client.enter(|| TcpStream::connect((vip(), port))).unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();

    let until_then = after(5000);
    guard.send(ToGuard::Silence { vip: "front".to_owned(), until: until_then });
    guard.wait_for("Silent", |m| matches!(m, FromGuard::Silent { .. }));
    assert!(!neighbour.is_answered());
    let mut echoed = 0;
    while clock::now() < until_then - 3000 * MS {
        let mut buffer = [0; 4];
        ours.write_all(b"ping").unwrap();
        theirs.read_exact(&mut buffer).unwrap();
        theirs.write_all(&buffer).unwrap();
        ours.read_exact(&mut buffer).unwrap();
        echoed += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(echoed > 5, "{echoed}");
    assert!(!neighbour.is_answered());
    let message = guard.wait_for("Released", released);
    assert!(clock::now() >= until_then, "{message:?}");
    assert!(!guard.has_address());
}

#[test]
fn a_second_guard_in_the_namespace_is_refused() {
    let Some(segment) = segment(&[]) else { return };
    let host = &segment.hosts[0];
    let mut first = Guard::configured(host);
    first.hold(1, 60_000);
    let mut second = Guard::start(host);
    let message = second.wait_for("Problem", |m| matches!(m, FromGuard::Problem { .. }));
    let FromGuard::Problem { text, .. } = message else { unreachable!() };
    assert!(
        text.contains(&format!(
            "another guard runs in this network namespace (process {})",
            first.pid().as_raw_pid()
        )),
        "{text}"
    );
    assert_eq!(second.ended().code(), Some(3));
    assert!(first.has_address());
}

#[test]
fn a_guard_waits_for_an_earlier_one_of_its_node_that_hangs_and_says_so() {
    let Some(segment) = segment(&[]) else { return };
    let host = &segment.hosts[0];
    let lock = std::env::temp_dir().join(format!("guard-of-one-node-{}", std::process::id()));
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trestle-vip-guard"));
        command.env(spawn::LOCK, &lock);
        Guard::start_with(host, command)
    };
    let mut first = start();
    first.configure();
    // As one that waits in the kernel, it can't end.
    first.signal(Signal::STOP);
    let mut second = start();
    let message = second.wait_for("Problem", |m| matches!(m, FromGuard::Problem { .. }));
    let FromGuard::Problem { text, .. } = message else { unreachable!() };
    let who = format!("the earlier guard of this node (process {})", first.pid().as_raw_pid());
    assert!(text.contains(&who), "{text}");
    first.signal(Signal::KILL);
    second.configure();
    std::fs::remove_file(&lock).unwrap();
}

#[test]
fn a_second_guard_is_refused_however_often_it_is_tried() {
    let Some(segment) = segment(&["python3"]) else { return };
    let host = &segment.hosts[0];
    let mut first = Guard::configured(host);
    first.hold(1, 60_000);
    // As many as would have been refused in a long time, at once.
    let script = "import socket\nheld = []\ntry:\n  while True:\n    s = socket.socket(socket.AF_UNIX); s.setblocking(False)\n    \
                  s.connect(chr(0) + 'trestle-vip-guard'); held.append(s)\nexcept BlockingIOError: pass\n\
                  print('full', flush=True); input()";
    let mut crowd = host.enter(|| {
        let mut command = Command::new("python3");
        command.args(["-c", script]).uid(65534).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    });
    let mut line = String::new();
    BufReader::new(crowd.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "full\n");
    let mut second = Guard::start(host);
    let message = second.wait_for("Problem", |m| matches!(m, FromGuard::Problem { .. }));
    let FromGuard::Problem { text, .. } = message else { unreachable!() };
    assert!(text.contains("another guard runs in this network namespace"), "{text}");
    assert_eq!(second.ended().code(), Some(3));
    assert!(first.has_address());
    drop(crowd.stdin.take());
    harness::wait(&mut crowd);
}

#[test]
fn who_is_no_guard_does_not_keep_one_away_by_taking_its_name() {
    let Some(segment) = segment(&["python3"]) else { return };
    let host = &segment.hosts[0];
    let script = "import socket; s = socket.socket(socket.AF_UNIX); s.bind(chr(0) + 'trestle-vip-guard'); \
                  s.listen(); print('up', flush=True); input()";
    let mut squatter = host.enter(|| {
        let mut command = Command::new("python3");
        command.args(["-c", script]).uid(65534).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().unwrap()
    });
    let mut line = String::new();
    BufReader::new(squatter.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let mut guard = Guard::configured(host);
    let message = guard.wait_for("Problem", |m| matches!(m, FromGuard::Problem { .. }));
    let FromGuard::Problem { text, .. } = message else { unreachable!() };
    assert!(text.contains(&format!("taken by process {} of user 65534", squatter.id())), "{text}");
    guard.hold(1, 60_000);
    // Its input ends, and so does it.
    drop(squatter.stdin.take());
    harness::wait(&mut squatter);
}

#[test]
fn a_link_that_goes_down_lets_go_and_is_usable_again_when_it_is_back() {
    let Some(segment) = segment(&[]) else { return };
    let host = &segment.hosts[0];
    let mut guard = Guard::configured(host);
    guard.hold(1, 60_000);
    segment.switch().ip("link set port1 down");
    let message = guard.wait_for("Released", released);
    assert!(matches!(&message, FromGuard::Released { why: Why::Failed(why), .. } if why.contains("carrier")));
    guard.wait_for("the problem", |m| matches!(m, FromGuard::Usable { problem: Some(_), .. }));
    assert!(!guard.has_address());
    segment.switch().ip("link set port1 up");
    guard.wait_for("usable", |m| matches!(m, FromGuard::Usable { problem: None, fenced: true, .. }));
    guard.hold(2, 5000);
    // Another device under the same name.
    host.ip("link del eth0");
    guard.wait_for("Released", released);
    host.ip("link add eth0 type veth peer name peer0");
    host.ip("address add 198.18.0.1/24 dev eth0");
    host.ip("link set peer0 up");
    host.ip("link set eth0 up");
    guard.wait_for("usable", |m| matches!(m, FromGuard::Usable { problem: None, fenced: true, .. }));
    guard.hold(3, 5000);
}

#[test]
fn it_keeps_arp_requests_from_carrying_the_address() {
    let Some(segment) = segment(&[]) else { return };
    let host = &segment.hosts[0];
    host.sysctl("net.ipv4.conf.all.arp_announce", "0");
    let _guard = Guard::configured(host);
    let value = host.run("cat", "/proc/sys/net/ipv4/conf/eth0/arp_announce");
    assert_eq!(value.trim(), "2");
}

#[test]
fn signals_do_not_end_it_while_its_node_lives() {
    let Some(segment) = segment(&[]) else { return };
    let mut guard = Guard::configured(&segment.hosts[0]);
    guard.hold(1, 60_000);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        guard.signal(signal);
    }
    guard.hold(2, 60_000);
    assert!(guard.has_address());
}

#[test]
fn without_its_capabilities_it_says_what_to_do() {
    let Some(segment) = segment(&["setpriv"]) else { return };
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-net_admin,-net_raw", "--inh-caps", "-net_admin,-net_raw"]);
    command.arg(env!("CARGO_BIN_EXE_trestle-vip-guard"));
    let mut guard = Guard::start_with(&segment.hosts[0], command);
    guard.send(ToGuard::Configure { vips: vec![spec()] });
    let usable = guard.wait_for("Usable", |m| matches!(m, FromGuard::Usable { .. }));
    let FromGuard::Usable { problem: Some(problem), fenced, .. } = usable else { panic!("{usable:?}") };
    assert!(problem.contains("CAP_NET_ADMIN") && problem.contains("cap_add"), "{problem}");
    assert!(!fenced);
    guard.grant(1, 1000);
    guard.wait_for("Released", released);
}

#[test]
fn ipv6_moves_along() {
    let Some(segment) = segment(&[]) else { return };
    let (host, client) = (&segment.hosts[0], &segment.hosts[1]);
    let listener = host.enter(|| TcpListener::bind("[::]:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guard = Guard::start(host);
    let ipv6 = "fd00:198:18::100".parse().unwrap();
    let mut both = spec();
    both.addresses.push((ipv6, 64));
    guard.send(ToGuard::Configure { vips: vec![both] });
    guard.wait_for("Usable", |m| matches!(m, FromGuard::Usable { problem: None, .. }));
    let deadline = guard.hold(1, 4000);
    let connects = || {
        let to = SocketAddr::new(ipv6, port);
        client.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(300))).is_ok()
    };
    assert!(connects());
    sleep_until(deadline);
    guard.wait_for("Released", released);
    assert!(!connects());
}

#[test]
fn a_planned_move_cuts_no_connection() {
    if !trestle_netlink::testing::available(&[]) {
        return;
    }
    let segment = trestle_netlink::testing::Segment::new(3);
    let [old, new, client] = &segment.hosts[..] else { unreachable!() };
    let (listener, port) = serve(old);
    let _new_listener = new.enter(|| TcpListener::bind(("0.0.0.0", port))).unwrap();
    let (mut from, mut to) = (Guard::configured(old), Guard::configured(new));
    from.hold(1, 20_000);
    let mut ours = client.enter(|| TcpStream::connect((vip(), port))).unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    for stream in [&ours, &theirs] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    let front = || "front".to_owned();
    let forward_to = vec!["198.18.0.1".parse().unwrap()];
    to.send(ToGuard::Chance { vip: front(), old: forward_to, except: Vec::new(), until: after(10_000) });
    to.wait_for("ChanceReady", |m| matches!(m, FromGuard::ChanceReady { .. }));
    from.send(ToGuard::Silence { vip: front(), until: after(10_000) });
    from.wait_for("Silent", |m| matches!(m, FromGuard::Silent { .. }));
    to.hold(2, 20_000);
    until("the client's cache has moved", PATIENCE, || {
        let mut route = client.enter(|| Route::open().unwrap());
        let link = route.link("eth0").unwrap().unwrap().index;
        route.neighbour(link, vip()).unwrap() == Some(Neighbour::on(new).mac)
    });
    for _ in 0..5 {
        let mut buffer = [0; 4];
        ours.write_all(b"ping").unwrap();
        theirs.read_exact(&mut buffer).unwrap();
        theirs.write_all(&buffer).unwrap();
        ours.read_exact(&mut buffer).unwrap();
    }
    // What begins now begins at the new one.
    assert!(connects(client, port));
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
    to.send(ToGuard::EndChance { vip: front() });
    from.send(ToGuard::Release { vip: front() });
    let message = from.wait_for("Released", released);
    assert_eq!(message, FromGuard::Released { vip: front(), epoch: 1, why: Why::Asked });
}

#[test]
fn its_memory_is_locked_and_small() {
    let Some(segment) = segment(&[]) else { return };
    let mut guard = Guard::start(&segment.hosts[0]);
    guard.send(ToGuard::Configure { vips: vec![spec()] });
    let started = guard.wait_for("Started", |m| matches!(m, FromGuard::Started { .. }));
    let FromGuard::Started { weak, .. } = started else { unreachable!() };
    if weak.iter().any(|text| text.contains("CAP_IPC_LOCK")) {
        eprintln!("skipped: {weak:?}");
        return;
    }
    let id = guard.pid().as_raw_nonzero();
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // What it is made of is in memory; what its allocator has set aside is not.
    let text = std::fs::metadata(env!("CARGO_BIN_EXE_trestle-vip-guard")).unwrap().len() / 1024;
    assert!(kib("VmLck:") > 0);
    assert!(kib("VmRSS:") < text + 16 * 1024, "{status}");
    // All of its code: nothing of it is read from a disk on the way out.
    let maps = std::fs::read_to_string(format!("/proc/{id}/smaps")).unwrap();
    let code = maps.split_once("r-xp").unwrap().1;
    let field = |name: &str| code.lines().find(|line| line.starts_with(name)).unwrap();
    let value = |line: &str| line.split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(value(field("Rss:")), value(field("Size:")));
}
