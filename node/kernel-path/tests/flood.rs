//! SYNs from very many forged addresses: who has a connection keeps it, and who wants one gets it.
#![allow(clippy::unwrap_used)]

mod lan;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lan::{Lan, VIP4, view};
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};
use trestle_config::model::KernelMode;
use trestle_kernel_path::{Programmer, support};
use trestle_netlink::conntrack::Conntrack;
use trestle_netlink::testing::{Namespace, available};

const ESTABLISHED: usize = 20;

/// A SYN to the VIP from 198.19.0.0/16, another one for each number.
fn syn(number: u32) -> [u8; 40] {
    let to = [198, 18, 1, 100];
    let [_, _, high, low] = number.to_be_bytes();
    let from = [198, 19, high, low];
    let port = 1_024 + (number >> 16) as u16;
    let mut bytes = [0; 40];
    bytes[0] = 0x45;
    bytes[2..4].copy_from_slice(&40u16.to_be_bytes());
    (bytes[8], bytes[9]) = (64, 6);
    bytes[12..16].copy_from_slice(&from);
    bytes[16..20].copy_from_slice(&to);
    bytes[20..22].copy_from_slice(&port.to_be_bytes());
    bytes[22..24].copy_from_slice(&80u16.to_be_bytes());
    bytes[24..28].copy_from_slice(&number.to_be_bytes());
    (bytes[32], bytes[33]) = (5 << 4, 0x02);
    bytes[34..36].copy_from_slice(&u16::MAX.to_be_bytes());
    let sum = |parts: &[&[u8]], begin: u32| {
        let pairs = parts.iter().flat_map(|part| part.chunks_exact(2));
        let mut sum = pairs.fold(begin, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    };
    let of_segment = sum(&[&bytes[12..20], &bytes[20..40]], 6 + 20);
    bytes[36..38].copy_from_slice(&of_segment.to_be_bytes());
    bytes
}

/// Sends SYNs until it is told to end; how many.
fn flood(host: &Namespace, most: u32, end: &AtomicBool) -> u32 {
    host.enter(|| {
        let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::RAW)).unwrap();
        let to = SocketAddr::new(VIP4, 0);
        (0..most)
            .take_while(|number| {
                if sendto(&socket, &syn(*number), SendFlags::empty(), &to).is_err() {
                    thread::sleep(Duration::from_millis(1));
                }
                !end.load(Ordering::Relaxed)
            })
            .count() as u32
    })
}

fn tracked(host: &Namespace) -> u32 {
    let path = "/proc/sys/net/netfilter/nf_conntrack_count";
    host.enter(|| std::fs::read_to_string(path).unwrap().trim().parse().unwrap())
}

/// Those that have not ended; what has ended is taken away when somebody comes by.
fn alive(host: &Namespace) -> usize {
    host.enter(|| {
        let mut count = 0;
        Conntrack::open().unwrap().walk(false, |_| count += 1).unwrap();
        count
    })
}

/// A byte there, and the member's answer back.
fn talk(stream: &mut TcpStream) -> std::io::Result<()> {
    let own = stream.local_addr()?;
    stream.write_all(b"?")?;
    let expected = format!("a {own}");
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer)?;
    assert_eq!(String::from_utf8_lossy(&answer), expected, "a byte of another connection");
    Ok(())
}

fn connect() -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(VIP4, 80), Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// What became of who is honest.
struct Seen {
    syns: u32,
    most: u32,
    honest: usize,
    served: usize,
    slowest: Duration,
}

/// Floods with so many, and goes on for a while.
fn under_flood(lan: &Lan, syns: u32, after: Duration) -> Seen {
    let (balancer, client) = (&lan.balancers[0], &lan.client);
    let end = AtomicBool::new(false);
    let mut held: Vec<TcpStream> = client.enter(|| (0..ESTABLISHED).map(|_| connect().unwrap()).collect());
    client.enter(|| held.iter_mut().for_each(|stream| talk(stream).unwrap()));
    let mut seen = Seen { syns: 0, most: 0, honest: 0, served: 0, slowest: Duration::ZERO };
    thread::scope(|scope| {
        let flooding = scope.spawn(|| flood(client, syns, &end));
        let mut until = Instant::now() + Duration::from_secs(60);
        let mut is_over = false;
        while Instant::now() < until {
            if flooding.is_finished() && !is_over {
                (is_over, until) = (true, Instant::now() + after);
            }
            seen.most = seen.most.max(tracked(balancer));
            let began = Instant::now();
            let served = client.enter(|| connect().and_then(|mut stream| talk(&mut stream)).is_ok());
            seen.slowest = seen.slowest.max(began.elapsed());
            seen.honest += 1;
            seen.served += usize::from(served);
            // None of them has lost a byte.
            held.iter_mut().for_each(|stream| talk(stream).expect("who has a connection keeps it"));
            thread::sleep(Duration::from_millis(20));
        }
        end.store(true, Ordering::Relaxed);
        seen.syns = flooding.join().unwrap();
    });
    let Seen { syns, most, honest, served, slowest } = seen;
    println!("{syns} SYNs, at most {most} flows; {served} of {honest} served, the slowest in {slowest:?}");
    seen
}

fn flooded(half_open: Duration) -> Lan {
    let lan = Lan::new(1, &["a"]);
    // What is answered to forged addresses goes to the client, which drops it.
    lan.balancers[0].ip("route add 198.19.0.0/16 via 198.18.1.50");
    lan.balancers[0].enter(|| {
        support::check(KernelMode::Nat, false).unwrap();
        let mut view = view(&[("a", 1)]);
        view.listeners.iter_mut().for_each(|listener| listener.guard.half_open = half_open);
        Programmer::open("one").unwrap().follow(&view).unwrap();
    });
    lan
}

#[test]
fn what_never_came_about_is_forgotten_soon() {
    if !available(&[]) {
        return;
    }
    let lan = flooded(Duration::from_secs(1));
    let seen = under_flood(&lan, 20_000, Duration::from_secs(3));
    assert_eq!(seen.syns, 20_000);
    assert!(seen.most > 2_000, "{} flows at once", seen.most);
    assert!(seen.served * 100 >= seen.honest * 95, "{} of {}", seen.served, seen.honest);
    // But for established connections and those of who was served a moment ago; and for what is in the member's
    // backlog, as long as the member answers it again.
    let most = ESTABLISHED + seen.honest + 50;
    let until = Instant::now() + Duration::from_secs(10);
    while alive(&lan.balancers[0]) > most {
        assert!(Instant::now() < until, "{} flows are left", alive(&lan.balancers[0]));
        thread::sleep(Duration::from_millis(100));
    }
}

/// All that connection tracking has room for; it belongs to the machine, so its size can't be another one here.
#[test]
fn a_full_table_keeps_what_is_established_and_takes_what_is_honest() {
    if !available(&[]) {
        return;
    }
    let room: u32 =
        std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap().trim().parse().unwrap();
    if room > 300_000 {
        println!("skipped: connection tracking has room for {room} flows, too many to fill");
        return;
    }
    let lan = flooded(Duration::from_secs(60));
    let seen = under_flood(&lan, room + room / 4, Duration::from_secs(3));
    assert!(seen.most >= room - room / 100, "{} of {room} flows", seen.most);
    assert!(seen.served * 100 >= seen.honest * 95, "{} of {}", seen.served, seen.honest);
}
