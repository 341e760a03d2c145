//! Whether the machine's interfaces let traffic of the kernel path through: a picture of them is taken, and what it
//! says is a pure function of the picture.

use std::fs;
use std::net::IpAddr;

use ipnet::IpNet;
use trestle_config::model::KernelMode;
use trestle_dataplane::KernelView;
use trestle_netlink::route::Route;

use crate::machine;

/// Members that stand wrong and are told of one by one.
const TOLD_MAX: usize = 3;

#[derive(Clone, Debug, Default)]
struct Interface {
    name: String,
    networks: Vec<IpNet>,
    addresses: Vec<IpAddr>,
    /// The default route of IPv4 leaves by it.
    is_way_out: bool,
    /// Of IPv4. `None`: not to be told.
    forwards: Option<bool>,
    rp_filter: u64,
    send_redirects: bool,
}

/// What stands in the way of traffic of these listeners, in words for operators; nothing where the machine does not
/// tell.
pub fn findings(view: &KernelView) -> Vec<String> {
    let interfaces = interfaces().unwrap_or_default();
    [of_interfaces(view, &interfaces), of_members(view)].concat()
}

fn interfaces() -> Option<Vec<Interface>> {
    let mut route = Route::open().ok()?;
    let (links, addresses) = (route.links().ok()?, route.addresses().ok()?);
    let way_out = fs::read_to_string("/proc/net/route").unwrap_or_default();
    // Name, destination, gateway, flags, and, eighth, the mask.
    let is_default = |line: &&str| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some("00000000") && words.nth(5) == Some("00000000")
    };
    let ways_out: Vec<&str> =
        way_out.lines().filter(is_default).filter_map(|line| line.split_whitespace().next()).collect();
    let of = |link: trestle_netlink::route::Link| {
        let own = || addresses.iter().filter(|address| address.link == link.index);
        let setting = |of: &str, what: &str| machine::read_path(&format!("net/ipv4/conf/{of}/{what}"));
        let either = |what| [setting("all", what), setting(&link.name, what)].into_iter().flatten();
        Interface {
            networks: own().filter_map(|a| IpNet::new(a.address, a.prefix).ok()).map(|n| n.trunc()).collect(),
            addresses: own().map(|address| address.address).collect(),
            is_way_out: ways_out.contains(&link.name.as_str()),
            forwards: setting(&link.name, "forwarding").map(|value| value != 0),
            rp_filter: either("rp_filter").max().unwrap_or(0),
            send_redirects: either("send_redirects").any(|value| value != 0),
            name: link.name,
        }
    };
    Some(links.into_iter().filter(|link| !link.loopback && link.up).map(of).collect())
}

fn of_interfaces(view: &KernelView, interfaces: &[Interface]) -> Vec<String> {
    let mut findings = Vec::new();
    let given = || view.listeners.iter().flat_map(|listener| &listener.binds).filter_map(|bind| bind.ip);
    let members = || view.known.values().flatten().map(|member| member.address.ip());
    let is_nat = view.listeners.iter().any(|listener| listener.settings.mode == KernelMode::Nat);
    let has_way_out = interfaces.iter().any(|interface| interface.is_way_out);
    for interface in interfaces {
        let Interface { name, networks, .. } = interface;
        let is_near = |ip: IpAddr| networks.iter().any(|network| network.contains(&ip));
        // Clients come by it, members stand behind it.
        let serves = given().any(|ip| interface.addresses.contains(&ip) && ip.is_ipv4());
        let has_members = members().any(|ip| ip.is_ipv4() && is_near(ip));
        if (serves || has_members) && interface.forwards == Some(false) {
            findings.push(format!(
                "packets that come by {name} are not forwarded: set the sysctl net.ipv4.conf.{name}.forwarding to 1"
            ));
        }
        // Behind a router they come from anywhere, and the way to anywhere is another.
        if serves && !has_members && has_way_out && !interface.is_way_out && interface.rp_filter == 1 {
            findings.push(format!(
                "clients from other networks that come by {name} are dropped: its reverse path filter is strict \
                 (net.ipv4.conf.{name}.rp_filter, or that of `all`, is 1), and the default route leaves elsewhere; \
                 set it to 2 or 0"
            ));
        }
        let clients_too = interface.is_way_out
            || given().any(|ip| {
                let beside_members = members().any(|member| view.is_beside(ip, member));
                interface.addresses.contains(&ip) && !beside_members
            });
        if is_nat && has_members && clients_too && interface.send_redirects {
            findings.push(format!(
                "members are told of ways past this node, since clients come by {name} too: set the sysctls \
                 net.ipv4.conf.{name}.send_redirects and net.ipv4.conf.all.send_redirects to 0"
            ));
        }
    }
    findings
}

/// Members in mode nat that stand on the network to whose address clients come.
fn of_members(view: &KernelView) -> Vec<String> {
    let mut findings = Vec::new();
    for listener in view.listeners.iter().filter(|listener| listener.settings.mode == KernelMode::Nat) {
        let known = view.known.get(&listener.pool).into_iter().flatten();
        let wrong = known.filter(|member| {
            let ip = member.address.ip();
            let mut alike = listener.binds.iter().filter_map(|bind| bind.ip);
            let mut alike = alike.by_ref().filter(|vip| vip.is_ipv4() == ip.is_ipv4()).peekable();
            alike.peek().is_some() && alike.all(|vip| view.is_beside(vip, ip))
        });
        let wrong: Vec<String> = wrong.map(|member| member.address.to_string()).collect();
        if wrong.is_empty() {
            continue;
        }
        let more = wrong.len().saturating_sub(TOLD_MAX);
        let told = wrong[..wrong.len() - more].join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        findings.push(format!(
            "listener {}: members {told}{more} stand on the network of its address: clients on that network get \
             answers that don't come through this node; give it `kernel: {{ mode: full-nat }}`, or members another \
             network",
            listener.name
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use trestle_config::model::{Bind, KernelSettings, Protocol};
    use trestle_dataplane::{KernelGuard, KernelListener, KnownMember};

    use super::*;

    fn view(members: &[&str]) -> KernelView {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let member = |ip: &&str| KnownMember {
            name: (*ip).to_owned(),
            address: format!("{ip}:80").parse().unwrap(),
            is_over: false,
        };
        KernelView {
            listeners: vec![KernelListener {
                name: "web".to_owned(),
                binds: vec![Bind { ip: Some(ip("198.18.1.100")), port: 80, more: 0 }],
                protocol: Protocol::Tcp,
                settings: KernelSettings::default(),
                pool: "app".to_owned(),
                guard: KernelGuard::default(),
            }],
            known: BTreeMap::from([("app".to_owned(), members.iter().map(member).collect())]),
            networks: vec![(ip("198.18.1.100"), "198.18.1.0/24".parse().unwrap())],
            ..KernelView::default()
        }
    }

    fn interface(name: &str, networks: &[&str], address: &str) -> Interface {
        Interface {
            name: name.to_owned(),
            networks: networks.iter().map(|network| network.parse().unwrap()).collect(),
            addresses: vec![address.parse().unwrap()],
            forwards: Some(true),
            ..Interface::default()
        }
    }

    /// Clients and members on networks of their own, and nothing to say.
    fn two() -> [Interface; 2] {
        [
            Interface { is_way_out: true, ..interface("eth0", &["198.18.1.0/24"], "198.18.1.100") },
            interface("eth1", &["198.18.2.0/24"], "198.18.2.100"),
        ]
    }

    #[track_caller]
    fn check(interfaces: &[Interface], expected: &[&str]) {
        let found = of_interfaces(&view(&["198.18.2.10"]), interfaces);
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (finding, part) in found.iter().zip(expected) {
            assert!(finding.contains(part), "{finding}");
        }
    }

    #[test]
    fn a_strict_filter_is_in_the_way_where_the_default_route_leaves_elsewhere() {
        let [mut clients, mut members] = two();
        (clients.rp_filter, members.rp_filter) = (1, 1);
        check(&[clients.clone(), members.clone()], &[]);
        (clients.is_way_out, members.is_way_out) = (false, true);
        check(&[clients.clone(), members.clone()], &["net.ipv4.conf.eth0.rp_filter"]);
        clients.rp_filter = 2;
        check(&[clients, members], &[]);
    }

    #[test]
    fn an_interface_that_does_not_forward_is_told() {
        let [mut clients, mut members] = two();
        (clients.forwards, members.forwards) = (Some(false), Some(false));
        check(&[clients, members], &["conf.eth0.forwarding", "conf.eth1.forwarding"]);
    }

    #[test]
    fn redirects_matter_where_clients_and_members_come_by_one_interface() {
        let [mut clients, mut members] = two();
        (clients.send_redirects, members.send_redirects) = (true, true);
        check(&[clients, members], &[]);
        let mut one = interface("eth0", &["198.18.1.0/24", "198.18.2.0/24"], "198.18.1.100");
        one.send_redirects = true;
        check(&[one], &["net.ipv4.conf.eth0.send_redirects"]);
    }

    #[test]
    fn members_on_the_clients_network_are_named() {
        let found = of_members(&view(&["198.18.1.7", "198.18.2.10"]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("members 198.18.1.7:80 stand on"), "{}", found[0]);
        let mut full = view(&["198.18.1.7"]);
        full.listeners[0].settings.mode = KernelMode::FullNat;
        assert_eq!(of_members(&full), [] as [String; 0]);
        let many: Vec<String> = (1..9).map(|n| format!("198.18.1.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(of_members(&view(&many))[0].contains("198.18.1.3:80 and 5 more"));
    }

    #[test]
    fn this_machine_is_looked_at() {
        assert!(interfaces().is_some());
    }
}
