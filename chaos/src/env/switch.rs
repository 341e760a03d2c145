//! The switch between the namespaces: a bridge in a namespace of its own, one port for each node,
//! backend and client.
//!
//! Links are hurt here, so that nodes see nothing of it but missing packets, and none of their own
//! rules is touched. Each cut and each loss is a table of its own (family bridge, hook forward),
//! whose counters prove that packets met it.

use std::net::Ipv4Addr;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::local::Site;
use crate::cleanup::{Item, Ledger, mark};
use crate::place::{Place, feed};

pub(super) const CLUSTER_PORT: u16 = 7_400;
pub(super) const ADMIN_PORT: u16 = 7_480;

const BRIDGE: &str = "br0";

/// What the port is called inside a namespace.
pub const INTERFACE: &str = "eth0";

#[derive(Clone, Debug)]
pub struct Switch {
    place: Place,
    run: String,
    chaos: std::path::PathBuf,
}

/// A hurt that is in force, named by its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hurt(String);

/// A port whose frames are late.
pub struct Delay {
    port: String,
    how: How,
}

enum How {
    /// The kernel has the discipline for it.
    Netem,
    /// Frames go through a process of ours.
    Relay(Child),
}

impl Switch {
    pub(super) fn build(ledger: &Ledger, chaos: &std::path::Path) -> anyhow::Result<Switch> {
        let namespace = namespace(ledger, "sw");
        make_namespace(ledger, &namespace)?;
        let switch = Switch {
            place: Place::Namespace(namespace),
            run: ledger.run().to_owned(),
            chaos: chaos.to_owned(),
        };
        switch.ip(&format!("link add name {BRIDGE} type bridge mcast_snooping 0\nlink set {BRIDGE} up\n"))?;
        Ok(switch)
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    fn ip(&self, batch: &str) -> anyhow::Result<()> {
        ip(&self.place, batch)
    }

    /// A namespace with these addresses, behind the port `port`.
    pub(super) fn attach(
        &self,
        ledger: &Ledger,
        port: &str,
        address: Ipv4Addr,
    ) -> anyhow::Result<(Place, [u8; 6])> {
        let (place, mac) = attach((&self.place, BRIDGE), ledger, port, port, address)?;
        let last = address.octets()[3];
        let batch = format!("addr add fd00:198:18::{last}/64 dev {INTERFACE} nodad\n");
        ip(&place, &batch)?;
        Ok((place, mac))
    }

    pub(super) fn site(&self, index: usize, ledger: &Ledger) -> anyhow::Result<Site> {
        let address = node_address(index);
        let port = format!("n{}", index + 1);
        let (place, mac) = self.attach(ledger, &port, address)?;
        Ok(Site {
            place,
            cluster: (address, CLUSTER_PORT).into(),
            admin: (Ipv4Addr::LOCALHOST, ADMIN_PORT).into(),
            port: Some(port),
            mac: Some(mac),
        })
    }

    /// Drops what goes from the first to the second port of each pair.
    ///
    /// # Errors
    /// The kernel does not take the rules.
    pub fn cut(&self, name: &str, pairs: &[(String, String)]) -> anyhow::Result<Hurt> {
        let rules =
            pairs.iter().map(|(from, to)| format!("iifname \"{from}\" oifname \"{to}\" counter drop"));
        self.table(name, rules.collect())
    }

    /// Drops so many of a thousand frames, each way, at random.
    ///
    /// # Errors
    /// The kernel does not take the rules.
    pub fn lose(&self, name: &str, ports: &[String], per_mille: u32) -> anyhow::Result<Hurt> {
        let rule = |side: &str, port: &str| {
            format!("{side} \"{port}\" numgen random mod 1000 < {per_mille} counter drop")
        };
        let rules = ports.iter().flat_map(|p| [rule("iifname", p), rule("oifname", p)]);
        self.table(name, rules.collect())
    }

    fn table(&self, name: &str, rules: Vec<String>) -> anyhow::Result<Hurt> {
        ensure!(!rules.is_empty(), "a cut without links");
        let rules = rules.join("\n    ");
        self.nft(&format!(
            "table bridge {name} {{\n  chain forward {{\n    type filter hook forward priority 0\n    {rules}\n  }}\n}}\n"
        ))?;
        Ok(Hurt(name.to_owned()))
    }

    /// Packets that met the rules of `hurt` so far.
    ///
    /// # Errors
    /// The table is gone.
    pub fn dropped(&self, hurt: &Hurt) -> anyhow::Result<u64> {
        let text = self.place.output("nft", &["-j", "list", "table", "bridge", &hurt.0])?;
        let list: Value = serde_json::from_str(&text)?;
        let rules = list["nftables"].as_array().context("a list of rules")?;
        let counters = rules.iter().filter_map(|r| r["rule"]["expr"].as_array()).flatten();
        Ok(counters.filter_map(|e| e["counter"]["packets"].as_u64()).sum())
    }

    /// # Errors
    /// The table is gone.
    pub fn heal(&self, hurt: &Hurt) -> anyhow::Result<()> {
        self.nft(&format!("delete table bridge {}\n", hurt.0))
    }

    fn nft(&self, text: &str) -> anyhow::Result<()> {
        feed(self.place.command("nft").args(["-f", "-"]), text).map(drop)
    }

    /// Pulls a cable, or puts it back.
    ///
    /// # Errors
    /// There is no such port.
    pub fn link(&self, port: &str, up: bool) -> anyhow::Result<()> {
        self.ip(&format!("link set {port} {}\n", if up { "up" } else { "down" }))
    }

    /// Makes all frames of a port late, each way. Takes netem where the kernel has it (one way only,
    /// towards the port, then twice as late), else a relay.
    ///
    /// # Errors
    /// Neither works.
    pub fn delay(&self, port: &str, delay: Duration) -> anyhow::Result<Delay> {
        let netem = format!("{}us", 2 * delay.as_micros());
        let args = ["qdisc", "add", "dev", port, "root", "netem", "delay", &netem];
        if self.place.output("tc", &args).is_ok() {
            return Ok(Delay { port: port.to_owned(), how: How::Netem });
        }
        let (inner, outer) = (format!("{port}-i"), format!("{port}-o"));
        let mut command = self.place.command(&self.chaos);
        command.args([crate::relay::COMMAND, "--left", port, "--right", &inner]);
        command.args(["--delay-us", &delay.as_micros().to_string()]);
        mark::mark(&mut command, &self.run, "relay");
        self.ip(&format!(
            "link add name {inner} type veth peer name {outer}\nlink set {inner} up\nlink set {outer} up\n"
        ))?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.context("can't start the relay")?;
        // It says so when it listens; only then may the port leave the bridge.
        let mut line = String::new();
        let ready = child.stdout.take().context("the relay's output")?;
        std::io::BufRead::read_line(&mut std::io::BufReader::new(ready), &mut line)?;
        ensure!(line.trim() == crate::relay::READY, "the relay did not start: {line:?}");
        self.ip(&format!("link set {port} nomaster\nlink set {outer} master {BRIDGE}\n"))?;
        Ok(Delay { port: port.to_owned(), how: How::Relay(child) })
    }

    /// # Errors
    /// The port is gone.
    pub fn undelay(&self, mut delay: Delay) -> anyhow::Result<()> {
        let port = &delay.port;
        match &mut delay.how {
            How::Netem => self.place.output("tc", &["qdisc", "del", "dev", port, "root"]).map(drop),
            How::Relay(child) => {
                self.ip(&format!("link del {port}-i\nlink set {port} master {BRIDGE}\n"))?;
                // Its device is gone; it may have ended by itself.
                let _ = child.kill();
                child.wait()?;
                Ok(())
            }
        }
    }
}

impl Delay {
    pub fn how(&self) -> &'static str {
        match self.how {
            How::Netem => "netem",
            How::Relay(_) => "relay (this kernel has no netem)",
        }
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        if let How::Relay(child) = &mut self.how {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn ip(place: &Place, batch: &str) -> anyhow::Result<()> {
    feed(place.command("ip").args(["-batch", "-"]), batch).map(drop)
}

/// A namespace of our own for `of`, by a cable whose other end is `port` of a bridge, which is named by
/// its place and its name.
pub(super) fn attach(
    bridge: (&Place, &str),
    ledger: &Ledger,
    of: &str,
    port: &str,
    address: Ipv4Addr,
) -> anyhow::Result<(Place, [u8; 6])> {
    let name = namespace(ledger, of);
    make_namespace(ledger, &name)?;
    let mac = hardware(address);
    let shown = mac.map(|b| format!("{b:02x}")).join(":");
    let (at, bridge) = bridge;
    ip(
        at,
        &format!(
            "link add name {port} type veth peer name {INTERFACE} netns {name} address {shown}\n\
             link set {port} master {bridge}\nlink set {port} up\n"
        ),
    )?;
    let place = Place::Namespace(name);
    // Without this a kernel may send ARP requests from a VIP that it is about to lose.
    place.run(|| std::fs::write(format!("/proc/sys/net/ipv4/conf/{INTERFACE}/arp_announce"), "2"))?;
    ip(&place, &format!("link set lo up\nlink set {INTERFACE} up\naddr add {address}/24 dev {INTERFACE}\n"))?;
    Ok((place, mac))
}

fn namespace(ledger: &Ledger, of: &str) -> String {
    format!("trestle-chaos-{}-{of}", ledger.run())
}

fn make_namespace(ledger: &Ledger, name: &str) -> anyhow::Result<()> {
    ledger.add(Item::Namespace(name.to_owned()))?;
    Place::Here.output("ip", &["netns", "add", name]).map(drop)
}

pub(super) fn node_address(index: usize) -> Ipv4Addr {
    address(if index < 9 { 11 + index } else { 110 + index })
}

pub(super) fn address(last: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 0, u8::try_from(last).unwrap_or(u8::MAX))
}

/// A hardware address that tells the address beside it: locally administered, then the IPv4 address.
fn hardware(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [2, 0, a, b, c, d]
}
