//! Members that answer clients themselves: they stand on the nodes' own network, and have the VIP too.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use super::{FLOWS, Lan, in_namespace, ip, sysctl, wait_open};

/// Answers datagrams at each of these addresses with its name, from there.
const ANSWERS: &str = "import select, socket, sys\n\
    name, port, *addresses = sys.argv[1:]\n\
    sockets = []\n\
    for address in addresses:\n    \
        family = socket.AF_INET6 if ':' in address else socket.AF_INET\n    \
        sockets.append(socket.socket(family, socket.SOCK_DGRAM))\n    \
        sockets[-1].bind((address, int(port)))\n\
    print('open', flush=True)\n\
    while True:\n    \
        for one in select.select(sockets, [], [])[0]:\n        \
            one.sendto(name.encode(), one.recvfrom(64)[1])\n";

/// One datagram, and what is answered.
const ASKS: &str = "import socket, sys\n\
    host, port = sys.argv[1], int(sys.argv[2])\n\
    one = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET, socket.SOCK_DGRAM)\n\
    one.settimeout(2)\n\
    one.connect((host, port))\n\
    one.send(b'?')\n\
    print(one.recv(64).decode())\n";

impl Lan {
    /// Members beside the nodes: 198.18.0.6N, 2001:db8:18::6N and so on, each with a service at 9000 that is `mN`, over
    /// TCP and UDP. They have these addresses too, as docs/kernel-path.md says, and do not say so.
    pub fn beside_nodes(&mut self, members: usize, vips: &[&str]) {
        for number in 1..=members {
            let name = format!("m{number}");
            let namespace = self.host(&name, &format!("198.18.0.{}", 60 + number));
            sysctl(&namespace, "net/ipv4/conf/all/arp_ignore", "1");
            sysctl(&namespace, "net/ipv4/conf/all/arp_announce", "2");
            for vip in vips {
                let prefix = if vip.contains(':') { 128 } else { 32 };
                ip(&format!("-n {namespace} addr add {vip}/{prefix} dev lo"));
            }
            let start = |args: &[&str]| {
                let mut command = in_namespace(&namespace, Path::new("python3"));
                command
                    .args(args)
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .spawn()
                    .expect("python3 starts")
            };
            let datagrams = [&["-c", ANSWERS, &name, "9000"], vips].concat();
            self.members.extend([start(&[FLOWS, "serve", &name, "", "9000"]), start(&datagrams)]);
        }
        // Each is up before somebody asks whether it is.
        self.members.iter_mut().for_each(wait_open);
    }

    /// Who answers a datagram of the client's.
    pub fn ask_datagram(&self, host: &str, port: u16) -> anyhow::Result<String> {
        let output = self.client("python3").args(["-c", ASKS, host, &port.to_string()]).output()?;
        ensure!(output.status.success(), "{host}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// From now on, TCP and UDP from these addresses is counted that a node gets or sends.
    pub fn watch_answers(&self, node: usize, from: &[&str]) {
        let mut rules = "add table netdev seen; add counter netdev seen answers".to_owned();
        for (hook, priority) in [("ingress", -600), ("egress", 600)] {
            rules += &format!(
                "; add chain netdev seen {hook} {{ type filter hook {hook} device eth0 priority {priority}; }}"
            );
            for ip in from {
                let family = if ip.contains(':') { "ip6" } else { "ip" };
                // What a switch floods is for somebody else.
                let to_us = if hook == "ingress" { "meta pkttype host " } else { "" };
                rules += &format!(
                    "; add rule netdev seen {hook} {to_us}{family} saddr {ip} \
                     meta l4proto {{ tcp, udp }} th sport 9000 counter name answers"
                );
            }
        }
        nft(self.beside(node, "nft"), &rules).expect("answers are watched");
    }

    pub fn answers_seen(&self, node: usize) -> u64 {
        let text =
            nft(self.beside(node, "nft"), "list counter netdev seen answers").expect("they are counted");
        let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{text}"))
    }
}

fn nft(mut command: Command, rules: &str) -> anyhow::Result<String> {
    let output = command.arg(rules).output().context("nft runs")?;
    ensure!(output.status.success(), "{rules}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
