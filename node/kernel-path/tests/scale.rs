//! What a small change costs where there is much. With `TRESTLE_POOLS=1000` in the environment as much as the docs
//! tell of, which takes its time; without, a part of it.
#![allow(clippy::unwrap_used)]

#[allow(unused)]
mod lan;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use lan::{Lan, VIP4, longest_wait, view};
use trestle_config::model::{Bind, KernelMode};
use trestle_dataplane::{KernelListener, KernelMember, KernelView, KnownMember};
use trestle_kernel_path::{Direct, Programmer};
use trestle_netlink::testing::{Namespace, available};

const MEMBERS: usize = 10;

fn many(pools: usize) -> KernelView {
    let one = view(&[]).listeners.remove(0);
    let name = |at: usize| format!("pool{at}");
    let listener = |at: usize| KernelListener {
        name: name(at),
        binds: vec![Bind { ip: Some(VIP4), port: 10_000 + at as u16, more: 0 }],
        pool: name(at),
        ..one.clone()
    };
    let address = |at: usize, n: usize| {
        let number = at * MEMBERS + n;
        SocketAddr::new(IpAddr::from([198, 19, (number / 250) as u8, (number % 250 + 1) as u8]), 80)
    };
    let member = |at, n| KernelMember { name: format!("m{n}"), address: address(at, n), weight: 1 };
    let known = |at, n| KnownMember { name: format!("m{n}"), address: address(at, n), is_over: false };
    KernelView {
        listeners: (0..pools).map(listener).collect(),
        pools: (0..pools).map(|at| (name(at), (0..MEMBERS).map(|n| member(at, n)).collect())).collect(),
        known: (0..pools).map(|at| (name(at), (0..MEMBERS).map(|n| known(at, n)).collect())).collect(),
        ..view(&[])
    }
}

/// Loads them, and lets one member of one pool go and come.
fn one_goes_and_comes(host: &Namespace, all: &KernelView, mut follow: impl FnMut(&KernelView) -> bool) {
    let began = Instant::now();
    follow(all);
    let (pools, members) = (all.pools.len(), all.pools.len() * MEMBERS);
    println!("{members} members in {pools} pools are loaded in {:?}", began.elapsed());
    let mut fewer = all.clone();
    fewer.pools.get_mut("pool7").unwrap().remove(3);
    let mut took = Vec::new();
    let waited = longest_wait(host, || {
        for view in [&fewer, all].repeat(10) {
            let began = Instant::now();
            assert!(follow(view));
            took.push(began.elapsed());
        }
    });
    took.sort_unstable();
    println!("one goes or comes: {:?} to {:?}, median {:?}", took[0], took[19], took[10]);
    println!("another program waits {waited:?} at most");
    assert!(took[10] < Duration::from_millis(200), "{took:?}");
}

#[test]
fn a_member_that_goes_down_among_thousands_is_followed_at_once() {
    if !available(&[]) {
        return;
    }
    let pools = std::env::var("TRESTLE_POOLS").ok().map_or(50, |pools| pools.parse().unwrap());
    let lan = Lan::new(1, &[]);
    let host = &lan.balancers[0];
    host.enter(|| {
        let mut programmer = Programmer::open("one").unwrap();
        one_goes_and_comes(host, &many(pools), |view| {
            assert!(programmer.check().unwrap());
            programmer.follow(view).unwrap()
        });
        let mut view = many(pools);
        view.listeners.iter_mut().for_each(|listener| listener.settings.mode = KernelMode::Dsr);
        let mut direct = Direct::open("one").unwrap();
        one_goes_and_comes(host, &view, |view| {
            assert!(direct.check().unwrap());
            direct.follow(view).unwrap()
        });
    });
}
