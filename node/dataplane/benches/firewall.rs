//! What it costs to look a client up in a set of 100,000 networks, and in bans. Run by hand:
//!
//! ```sh
//! cargo bench -p trestle-dataplane --bench firewall
//! ```
//!
//! Clients are spread over all of the set at random, which is the worst case for caches: the search of one is
//! timed among others that overlap with it as far as the processor looks ahead. Every second client is in the
//! set. Time is that of the processor, since others use it too.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use trestle_config::model::{Action, Firewall, FirewallRule, NetworkRef, NetworkSet};
use trestle_config::{Config, Source};
use trestle_dataplane::bench::{Banned, Compiled, timed};

const SIZES: [u32; 4] = [10, 1_000, 10_000, 100_000];
const CLIENTS: usize = 200_000;
/// The fastest counts.
const ROUNDS: usize = 10;

fn main() {
    println!("networks   compile   IPv4 set   IPv6 set   ten rules of IPv4   bans");
    for size in SIZES {
        let (v4, v6) = (networks_v4(size), networks_v6(size));
        let (one, compile) = timed(|| Compiled::new(&config(&v4, 1)));
        let times = [
            judge(&one, &clients(&v4)),
            judge(&Compiled::new(&config(&v6, 1)), &clients(&v6)),
            judge(&Compiled::new(&config(&v4, 10)), &clients(&v4)),
            look_up(&v4),
        ];
        let texts = times.map(|time| format!("{time:>6.1} ns"));
        println!("{size:<8} {:>7.1} ms  {}", compile.as_secs_f64() * 1e3, texts.join("   "));
    }
}

/// No two touch: each stays a range of its own.
fn networks_v4(count: u32) -> Vec<IpNet> {
    (0..count).map(|n| net(Ipv4Addr::from_bits(0x0a00_0000 + n * 8).into(), 30)).collect()
}

fn networks_v6(count: u32) -> Vec<IpNet> {
    let base = 0x2001_0db8_u128 << 96;
    (0..count).map(|n| net(Ipv6Addr::from_bits(base + (u128::from(n) << 65)).into(), 64)).collect()
}

fn net(ip: IpAddr, prefix: u8) -> IpNet {
    IpNet::new(ip, prefix).expect("a length")
}

/// A listener whose firewall has so many rules, each with a set of all of these that is its own.
fn config(networks: &[IpNet], rules: usize) -> Config {
    let text = "listeners: { web: { bind: \":80\", protocol: tcp, pool: app } }\npools: { app: { members: [\"192.0.2.1:80\"] } }\n";
    let parsed = trestle_config::parse(Source { name: "bench", text });
    let mut config = Config::clone(parsed.expect("a valid document").config());
    let rule = |n: usize| FirewallRule {
        from: vec![NetworkRef::Set(format!("set-{n}"))],
        ports: Vec::new(),
        // Where nobody is denied all rules are gone through.
        action: Action::Deny,
    };
    for n in 0..rules {
        // Only the last has them as they are: all of it is gone through.
        let moved = |net: &IpNet| if n + 1 == rules { *net } else { shifted(*net) };
        let set = NetworkSet { entries: networks.iter().map(moved).collect(), file: None };
        config.networks.insert(format!("set-{n}"), set);
    }
    let firewall = Firewall { rules: (0..rules).map(rule).collect(), default: Action::Allow };
    config.listeners.get_mut("web").expect("the listener").firewall = Some(firewall);
    config
}

/// The gap behind it.
fn shifted(net: IpNet) -> IpNet {
    let ip = match net.addr() {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() + 4).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() + (1 << 64)).into(),
    };
    self::net(ip, net.prefix_len())
}

/// Half of them within, half in the gaps.
fn clients(networks: &[IpNet]) -> Vec<IpAddr> {
    let mut random = StdRng::seed_from_u64(7);
    let mut one = |n: usize| {
        let net = networks[random.random_range(0..networks.len())];
        if n.is_multiple_of(2) { net.addr() } else { shifted(net).addr() }
    };
    (0..CLIENTS).map(&mut one).collect()
}

/// Nanoseconds of one client, on average.
fn judge(compiled: &Compiled, clients: &[IpAddr]) -> f64 {
    let gate = compiled.gate("web").expect("the listener has a firewall");
    let denied = clients.iter().filter(|client| !gate.lets_in(**client)).count();
    assert!(denied >= clients.len() / 2, "half are in the last set");
    fastest(|| clients.iter().for_each(|client| _ = black_box(gate.lets_in(black_box(*client)))))
}

fn look_up(networks: &[IpNet]) -> f64 {
    let banned = Banned::new(networks);
    let clients = clients(networks);
    fastest(|| clients.iter().for_each(|client| _ = black_box(banned.has(black_box(*client)))))
}

fn fastest(work: impl Fn()) -> f64 {
    let rounds = (0..ROUNDS).map(|_| timed(&work).1);
    rounds.min().unwrap_or_default().as_secs_f64() * 1e9 / CLIENTS as f64
}
