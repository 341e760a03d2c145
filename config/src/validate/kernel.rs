//! Rules about listeners whose traffic the kernel carries: what it can't do for them is refused, whether they
//! must go by it or may.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::build::protocol;
use crate::check::Sink;
use crate::model::{
    AcceptProxy, Balance, Bind, Breaker, Config, DnsName, KernelMode, KernelSettings, LimitBy, LimitMode,
    Listener, OnLimit, Pool, Protocol, Queue, TcpSettings, Via,
};
use crate::problem::{Fault, shown};
use crate::tree::Place;
use crate::value::Fields;

/// Largest limits that the kernel counts to; docs/kernel-path.md has what they cost.
const PER_CLIENT_MAX: u32 = 1_000;
const CONNECTIONS_MAX: u32 = 10_000;

pub(super) fn errors(root: &Fields, config: &Config, sink: &mut Sink) {
    let mut tables: BTreeMap<(&str, u32), ()> = BTreeMap::new();
    for (name, value) in root.map("listeners") {
        let (Some(fields), Some(listener)) = (value.as_object(), config.listeners.get(name)) else {
            continue;
        };
        if listener.via == Via::Proxy {
            if listener.kernel != KernelSettings::default()
                && let Some(kernel) = fields.at("kernel")
            {
                let fault = Fault::new("this listener's traffic does not go by the kernel");
                sink.report(Place::Key(kernel.node), fault.help("set `via: kernel`, or `via: auto`"));
            }
            continue;
        }
        of_listener(fields, listener, config, sink);
        slots(fields, listener, sink);
        if listener.kernel.mode == KernelMode::Dsr {
            of_direct(fields, listener, sink);
        }
        let Some((name, pool)) = listener.pool.as_ref().and_then(|name| config.pools.get_key_value(name))
        else {
            continue;
        };
        of_pool(fields, name, pool, sink);
        few_slots(fields, name, listener, pool, sink);
        if listener.kernel.mode == KernelMode::Dsr {
            of_direct_pool(fields, name, listener, pool, sink);
        }
        tables.insert((name, listener.kernel.slots), ());
        let sum =
            |tables: &BTreeMap<(&str, u32), ()>| tables.keys().map(|(_, slots)| u64::from(*slots)).sum();
        let (all, most): (u64, _) = (sum(&tables), u64::from(KernelSettings::SLOTS_MAX));
        if all > most && all - u64::from(listener.kernel.slots) <= most {
            let fault = Fault::new(format!("the tables of the kernel path have more than {most} slots"));
            let place = fields.at("kernel").or_else(|| fields.at("via")).map_or(value.node, |v| v.node);
            sink.report(Place::Key(place), fault.help("set `kernel: { slots: 1021 }`, or another prime"));
        }
    }
}

/// What stands on the listener itself.
fn of_listener(fields: &Fields, listener: &Listener, config: &Config, sink: &mut Sink) {
    let mut refuse = |key: &str, fault: Fault| {
        if let Some(value) = fields.at(key).or_else(|| fields.at("via")) {
            sink.report(Place::Key(value.node), fault);
        }
    };
    if protocol(fields).is_some_and(|p| !matches!(p, Protocol::Tcp | Protocol::Udp | Protocol::TcpUdp)) {
        let word = fields.word("protocol").unwrap_or_default();
        let fault = Fault::new(format!("a listener of protocol {} goes by the proxy alone", shown(word)));
        return refuse("via", fault.help("the kernel passes tcp and udp on"));
    }
    if listener.bind.iter().any(|bind| bind.port == 0) {
        refuse(
            "bind",
            Fault::new("the kernel path needs a port that is given").help("port 0 is for the proxy"),
        );
    }
    let bytes = "the kernel passes packets on and looks at no byte in them: use `via: proxy`";
    for (key, is_set) in [
        ("tls", listener.tls.is_some()),
        ("proxy_protocol", listener.proxy_protocol.accept != AcceptProxy::Off),
        ("ftp", listener.ftp.is_some()),
        ("tcp", listener.tcp != TcpSettings::default()),
    ] {
        if is_set {
            refuse(key, Fault::new(format!("`{key}` can't stand beside `via: kernel`")).help(bytes));
        }
    }
    let (limits, udp) = (listener.limits.as_ref(), &listener.udp);
    let is_direct = listener.kernel.mode == KernelMode::Dsr;
    for (key, is_set, what) in [
        ("udp", udp.replies > 1, "`replies` above 1 beside `via: kernel`: packets are not counted"),
        ("udp", udp.replies > 0 && is_direct, "`replies` in `mode: dsr`: answers are not seen"),
        ("limits", limits.is_some_and(|l| l.mode == LimitMode::Exact), "`mode: exact` beside `via: kernel`"),
        (
            "limits",
            limits.is_some_and(|l| !l.wait.is_zero()),
            "`wait` beside `via: kernel`: packets don't wait",
        ),
    ] {
        if is_set {
            let fault = Fault::new(format!("not supported: {what}"));
            refuse(key, fault.help("use `via: proxy`"));
        }
    }
    // The kernel looks at all that a count holds when it adds to it.
    for (name, most, value) in [
        ("connections_per_client", PER_CLIENT_MAX, limits.map_or(0, |l| l.connections_per_client)),
        ("connections", CONNECTIONS_MAX, limits.map_or(0, |l| l.connections)),
    ] {
        if value > most {
            let fault = Fault::new(format!("the kernel path counts at most {most} `{name}`, not {value}"));
            refuse("limits", fault.help("use `via: proxy`, or a lower limit"));
        }
    }
    if listener.on_limit != OnLimit::default() {
        let fault = Fault::new("`on_limit` beside `via: kernel` is not supported yet");
        refuse("on_limit", fault.help("use `via: proxy`"));
    }
    let has_rate = listener.rate_limits.iter().any(|rate| rate.by == LimitBy::Client);
    let has_limit = limits.is_some_and(|l| l.connections_per_client > 0) && is_at_one_vip(listener, config);
    if listener.policies.ban.is_some() && is_direct {
        let fault = Fault::new("`ban` in `mode: dsr` is not supported yet");
        refuse("ban", fault.help("use `mode: nat`; `trestle ban` holds in any mode"));
    } else if listener.policies.ban.is_some() && !has_rate && !has_limit {
        let fault = Fault::new("nothing counts for this `ban` beside `via: kernel`");
        refuse(
            "ban",
            fault.help("add `rate_limits` by client, or `connections_per_client` where `bind` is one VIP's addresses"),
        );
    }
}

/// Whether one node at a time has all of the listener, and all of its limits: others have none of it.
fn is_at_one_vip(listener: &Listener, config: &Config) -> bool {
    config.vips.values().any(|vip| {
        let is_of_vip = |ip: IpAddr| vip.addresses.iter().any(|address| address.ip == ip.to_canonical());
        listener.bind.iter().all(|bind| bind.ip.is_some_and(is_of_vip))
    })
}

/// What takes connection tracking, which sees nothing of a packet that is passed on as it comes in.
fn of_direct(fields: &Fields, listener: &Listener, sink: &mut Sink) {
    let limits = listener.limits.as_ref();
    let counts = limits.is_some_and(|limits| limits.connections > 0 || limits.connections_per_client > 0);
    if let Some(limits) = fields.at("limits").filter(|_| counts) {
        let fault =
            Fault::new("open connections can't be counted in `mode: dsr`: the node does not see their end");
        let help = "use `rate_limits`, or `mode: nat`";
        sink.report(Place::Key(limits.node), fault.help(help));
    }
    let given = |bind: &Bind| bind.ip.is_some_and(|ip| !ip.is_unspecified());
    if let Some(bind) = fields.at("bind").filter(|_| !listener.bind.iter().all(given)) {
        let fault = Fault::new("`mode: dsr` needs an address that members have too");
        sink.report(Place::Key(bind.node), fault.help("name it: `\"@VIP:PORT\"`"));
    }
}

/// Members get packets as clients sent them.
fn of_direct_pool(fields: &Fields, name: &str, listener: &Listener, pool: &Pool, sink: &mut Sink) {
    let Some(place) = fields.at("pool") else { return };
    let is_port = |port: u16| listener.bind.iter().any(|bind| bind.ports().contains(&port));
    // Of a range, members' ports are for health checks.
    if listener.bind.iter().any(|bind| bind.more > 0) {
        return;
    }
    let ports = pool.members.iter().map(|member| (member.address.to_string(), member.address.port()));
    let named = pool.named.iter().filter_map(|member| match &member.dns {
        DnsName::Host { port, .. } => Some((member.dns.to_string(), *port)),
        DnsName::Srv(_) => None,
    });
    if let Some((member, port)) = ports.chain(named).find(|(_, port)| !is_port(*port)) {
        let fault = Fault::new(format!(
            "member {} of pool {} has port {port}, and in `mode: dsr` packets keep the listener's",
            shown(&member),
            shown(name)
        ));
        sink.report(
            Place::Value(place.node),
            fault.help("give the member the listener's port, or use `mode: nat`"),
        );
    }
}

/// What the listener's pool wants and the kernel can't give.
fn of_pool(fields: &Fields, name: &str, pool: &Pool, sink: &mut Sink) {
    let Some(place) = fields.at("pool") else { return };
    let mut refuse = |what: &str, why: &str| {
        let fault = Fault::new(format!("pool {} has `{what}`, which {why}", shown(name)));
        let help = "give this listener `via: proxy`, or a pool of its own";
        sink.report(Place::Value(place.node), fault.help(help));
    };
    for (key, is_set) in [("tls", pool.tls.is_some()), ("proxy_protocol", pool.proxy_protocol.is_some())] {
        if is_set {
            refuse(key, "takes bytes that the kernel does not send");
        }
    }
    if !matches!(pool.balance, Balance::RoundRobin | Balance::Random | Balance::Maglev) {
        refuse("balance", "the kernel can't do: it spreads clients evenly by weight, by a Maglev table");
    }
    for (key, is_set) in [
        ("sticky", pool.sticky.is_some()),
        ("breaker", pool.breaker != Breaker::default()),
        ("queue", pool.queue != Queue::default()),
        ("slow_start", !pool.slow_start.is_zero()),
        ("zone_aware", pool.zone_aware),
    ] {
        if is_set {
            refuse(key, "the kernel path does not have");
        }
    }
    let limited = pool.members.iter().any(|member| member.max_connections > 0)
        || pool.named.iter().any(|member| member.max_connections > 0);
    if limited {
        refuse("max_connections", "is not supported yet beside `via: kernel`");
    }
}

/// Maglev's permutations visit every slot only if their number is a prime.
fn slots(fields: &Fields, listener: &Listener, sink: &mut Sink) {
    let slots = listener.kernel.slots;
    let Some(value) = fields.object("kernel").and_then(|kernel| kernel.at("slots")) else { return };
    if !is_prime(slots) {
        let next = (slots..).find(|n| is_prime(*n)).unwrap_or(65_537);
        let fault = Fault::new(format!("{slots} is no prime"));
        sink.report(Place::Value(value.node), fault.help(format!("the next one is {next}")));
    }
}

/// Each member needs a slot, or gets nothing.
fn few_slots(fields: &Fields, name: &str, listener: &Listener, pool: &Pool, sink: &mut Sink) {
    let (slots, members) = (listener.kernel.slots, pool.members.len() + pool.named.len());
    let Some(value) = fields.object("kernel").and_then(|kernel| kernel.at("slots")) else { return };
    if u64::from(slots) < members as u64 {
        let fault = Fault::new(format!("{slots} slots for {members} members of pool {}", shown(name)));
        let help = "some would get nothing: a hundred slots a member spread evenly (1021, 10007, 65537)";
        sink.report(Place::Value(value.node), fault.help(help));
    }
}

fn is_prime(n: u32) -> bool {
    n > 1 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}
