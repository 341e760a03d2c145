//! Who is turned away is counted, for whoever bans.
#![allow(clippy::unwrap_used)]

mod lan;

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use lan::{Lan, VIP4, VIP6, client_ip, view};
use trestle_config::model::KernelMode;
use trestle_dataplane::{KernelGuard, KernelOffence, KernelOffences, KernelRate, KernelView};
use trestle_kernel_path::{Programmer, support};
use trestle_netlink::testing::available;

fn guarded(change: impl Fn(&mut KernelGuard)) -> KernelView {
    let mut view = view(&[("a", 1)]);
    view.listeners.truncate(1);
    view.listeners.iter_mut().for_each(|listener| change(&mut listener.guard));
    view
}

/// So many tries; those that were let in.
fn come(lan: &Lan, ip: IpAddr, tries: usize) -> Vec<TcpStream> {
    let to = SocketAddr::new(ip, 80);
    let come = || TcpStream::connect_timeout(&to, Duration::from_millis(300)).ok();
    lan.client.enter(|| (0..tries).filter_map(|_| come()).collect())
}

fn of(ip: IpAddr, tries: u64) -> KernelOffence {
    // A network of IPv6 is one client.
    let client = if ip.is_ipv6() { "fd00:198:181::".parse().unwrap() } else { client_ip(ip) };
    KernelOffence { listener: "web".to_owned(), client, tries }
}

#[test]
fn a_client_that_is_turned_away_for_what_it_does_itself_is_told_once() {
    if !available(&[]) {
        return;
    }
    let lan = Lan::new(1, &["a"]);
    lan.balancers[0].enter(|| {
        support::check(KernelMode::Nat, false).unwrap();
        let mut programmer = Programmer::open("one").unwrap();
        let offences = Some(KernelOffences { prefix_v6: 64, of_limit: true });
        let limited = |guard: &mut KernelGuard| (guard.per_client, guard.offences) = (Some(3), offences);
        programmer.follow(&guarded(limited)).unwrap();
        assert_eq!(programmer.offences().unwrap(), []);
        for ip in [VIP4, VIP6] {
            let open = come(&lan, ip, 10);
            assert_eq!(open.len(), 3);
            assert_eq!(programmer.offences().unwrap(), [of(ip, 7)]);
            assert_eq!(programmer.offences().unwrap(), []);
            come(&lan, ip, 2);
            assert_eq!(programmer.offences().unwrap(), [of(ip, 2)]);
        }
        assert_eq!(programmer.traffic().unwrap().listeners["web"].limited, 18);
        // What is above a part of a limit is turned away, and held against nobody.
        let offences = Some(KernelOffences { prefix_v6: 64, of_limit: false });
        let each = Duration::from_secs(60);
        let rate = KernelRate { by_client: true, count: 1, each, burst: 2, prefix_v6: 64 };
        programmer
            .follow(&guarded(|guard| {
                (guard.per_client, guard.offences) = (Some(1), offences);
                guard.rates = vec![rate.clone()];
            }))
            .unwrap();
        let open = come(&lan, VIP4, 2);
        assert_eq!((open.len(), programmer.offences().unwrap()), (1, Vec::new()));
        // But what comes too often is.
        let tries = come(&lan, VIP4, 5).len();
        assert_eq!((tries, programmer.offences().unwrap()), (0, vec![of(VIP4, 5)]));
        // What all clients share is nobody's own.
        let all = KernelRate { by_client: false, ..rate.clone() };
        programmer
            .follow(&guarded(|guard| (guard.offences, guard.rates) = (offences, vec![all.clone()])))
            .unwrap();
        come(&lan, VIP4, 5);
        assert_eq!(programmer.offences().unwrap(), []);
    });
}
