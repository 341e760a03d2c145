//! How long it takes to find the rule of a request, with 10 hosts and with 10,000 of 10 rules each, and to compile
//! them. Run by hand:
//!
//! ```sh
//! cargo bench -p trestle-dataplane --bench router
//! ```
//!
//! Requests are spread over all hosts and rules at random, which is the worst case for caches: the difference
//! between few hosts and many is what memory costs. Host and path of a request are in the cache when it is
//! routed, since they were just read and checked: so they are written into the same memory, a batch after the
//! other, and what is timed are the look-ups alone. A look-up overlaps with the next ones as far as the processor
//! looks ahead. Time is that of the processor, since others use it too.

use std::hint::black_box;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use trestle_config::model::{HostPattern, PathMatch, Rule};
use trestle_config::{Config, Source};
use trestle_dataplane::bench::{Compiled, Table, timed};

const HOSTS: [usize; 4] = [10, 100, 1_000, 10_000];
const RULES: usize = 10;
/// Requests that are written and then looked up together.
const BATCH: usize = 250;
/// Batches of a round, and rounds: the fastest counts.
const BATCHES: usize = 200;
const ROUNDS: usize = 20;
/// Least work of a request around this: what a look-up costs more should be lost in it.
const REQUEST: Duration = Duration::from_micros(14);

fn main() {
    println!("hosts   compile    exact path  prefix      mixed       no rule");
    let mut first = None;
    for hosts in HOSTS {
        let config = config(hosts);
        let (compiled, compile) = timed(|| Compiled::new(&config));
        let table = compiled.table("web").expect("the listener is there");
        let times = ["e", "p", "m", "n"].map(|kind| lookup(&table, hosts, kind));
        let texts = times.map(|time| format!("{time:>6.1} ns"));
        println!("{hosts:<7} {:>7.1} ms  {}", compile.as_secs_f64() * 1e3, texts.join("   "));
        let first = first.get_or_insert(times[2]);
        if hosts == 10_000 {
            let more = times[2] - *first;
            let share = more / REQUEST.as_secs_f64() / 1e9 * 100.0;
            println!(
                "10,000 hosts against 10: {:.2} times, {more:.0} ns more, {share:.1} % of a request of {REQUEST:?}",
                times[2] / *first,
            );
            println!("compiled in under a second: {}", compile < Duration::from_secs(1));
        }
    }
}

/// A route for each host: half of its rules have exact paths, half prefixes.
fn config(hosts: usize) -> Config {
    let text = r#"
listeners: { web: { bind: ":80", protocol: http } }
pools: { app: { members: ["192.0.2.1:80"] } }
routes: { r: { rules: [{ match: [{ path: { prefix: /a } }], pools: [app] }] } }
"#;
    let parsed = trestle_config::parse(Source { name: "bench", text });
    let mut config = Config::clone(parsed.expect("a valid document").config());
    let route = config.routes.remove("r").expect("the route");
    for host in 0..hosts {
        let mut route = route.clone();
        route.hosts = vec![HostPattern::Exact(name(host))];
        let rule = |n: usize| {
            let mut rule: Rule = route.rules[0].clone();
            rule.name = n.to_string();
            rule.matches[0].path = Some(match n % 2 {
                0 => PathMatch::Exact(format!("/page/{n}")),
                _ => PathMatch::Prefix(format!("/service-{n}/v1")),
            });
            rule
        };
        route.rules = (0..RULES).map(rule).collect();
        config.routes.insert(format!("route-{host}"), route);
    }
    config
}

fn name(host: usize) -> String {
    format!("tenant-{host}.example.com")
}

/// Hosts and paths, one after the other.
#[derive(Default)]
struct Asked {
    text: String,
    /// Where each host and each path ends.
    ends: Vec<(usize, usize)>,
}

impl Asked {
    fn write(&mut self, random: &mut StdRng, hosts: usize, kind: &str) {
        self.text.clear();
        self.ends.clear();
        for _ in 0..BATCH {
            let (host, n) = (random.random_range(0..hosts), random.random_range(0..RULES / 2) * 2);
            let is_exact = kind == "e" || (kind == "m" && random.random());
            self.text.push_str(&name(host));
            let middle = self.text.len();
            self.text.push_str(&match (kind, is_exact) {
                ("n", _) => "/nothing/here".to_owned(),
                (_, true) => format!("/page/{n}"),
                (_, false) => format!("/service-{}/v1/orders/17", n + 1),
            });
            self.ends.push((middle, self.text.len()));
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.ends.iter().scan(0, |start, &(middle, end)| {
            let host = &self.text[std::mem::replace(start, end)..middle];
            Some((host, &self.text[middle..end]))
        })
    }
}

/// Nanoseconds of one look-up, on average.
fn lookup(table: &Table<'_>, hosts: usize, kind: &str) -> f64 {
    let mut asked = Asked::default();
    let mut random = StdRng::seed_from_u64(7);
    let mut batch = || {
        asked.write(&mut random, hosts, kind);
        let look_up = || {
            for (host, path) in asked.iter() {
                black_box(table.find(black_box(host), black_box(path)));
            }
        };
        timed(look_up).1
    };
    let rounds = (0..ROUNDS).map(|_| (0..BATCHES).map(|_| batch()).sum::<Duration>());
    let fastest = rounds.min().unwrap_or_default();
    fastest.as_secs_f64() * 1e9 / (BATCH * BATCHES) as f64
}
