//! What the machine around the rules must do, by its sysctls: forward packets, and let connection tracking pick
//! up flows in the middle.

use std::fs;

use crate::ruleset::Family;

/// Above which a look-up goes through too many of them.
const FLOWS_A_BUCKET: u64 = 8;

const ROOT: &str = "/proc/sys/";

/// As sysctl(8) names it.
pub fn forwarding_key(family: Family) -> &'static str {
    match family {
        Family::V4 => "net.ipv4.ip_forward",
        Family::V6 => "net.ipv6.conf.all.forwarding",
    }
}

/// `None`: not to be told.
pub fn forwards(family: Family) -> Option<bool> {
    Some(read(forwarding_key(family))? != 0)
}

/// What makes a flow go on where it did not begin: its packets are taken for part of one although its beginning
/// was not seen, nor its windows.
const PICKING_UP: [(&str, u64); 2] =
    [("net.netfilter.nf_conntrack_tcp_loose", 1), ("net.netfilter.nf_conntrack_tcp_be_liberal", 1)];

/// Sets what it takes to pick flows up, where it may. What it could not, in words for operators.
pub fn prepare_picking_up() -> Vec<String> {
    let mut findings = Vec::new();
    for (key, wanted) in PICKING_UP {
        match read(key) {
            Some(value) if value == wanted => {}
            Some(value) => match fs::write(path(key), wanted.to_string()) {
                Ok(()) => tracing::info!(key, before = value, now = wanted, "sysctl set for the kernel path"),
                Err(error) => findings.push(format!(
                    "flows that another node carried are not picked up: set the sysctl {key} to {wanted} ({error})"
                )),
            },
            None => findings.push(format!("{key} can't be read: is connection tracking there?")),
        }
    }
    findings
}

/// What stands in the way of traffic, in words for operators.
pub fn findings(families: &[Family]) -> Vec<String> {
    let mut findings = Vec::new();
    for family in families {
        if forwards(*family) == Some(false) {
            let key = forwarding_key(*family);
            findings.push(format!("packets are not forwarded: set the sysctl {key} to 1"));
        }
    }
    for (key, wanted) in PICKING_UP {
        if let Some(value) = read(key).filter(|value| *value != wanted) {
            findings.push(format!(
                "flows that another node carried are not picked up: {key} is {value}, set it to {wanted}"
            ));
        }
    }
    if let Some((count, most)) = tracked()
        && count.saturating_mul(10) >= most.saturating_mul(9)
    {
        findings.push(format!(
            "connection tracking is nearly full, {count} of {most} flows: raise net.netfilter.nf_conntrack_max"
        ));
    }
    let buckets = read("net.netfilter.nf_conntrack_buckets");
    if let (Some(buckets), Some((_, most))) = (buckets, tracked())
        && most > buckets.saturating_mul(FLOWS_A_BUCKET)
    {
        findings.push(format!(
            "connection tracking looks flows up slowly once they are many: {most} may be tracked over {buckets} \
             buckets; raise net.netfilter.nf_conntrack_buckets to a quarter of that"
        ));
    }
    findings
}

/// Flows that connection tracking holds in this network namespace, whoever's they are, and the most it may.
pub fn tracked() -> Option<(u64, u64)> {
    Some((read("net.netfilter.nf_conntrack_count")?, read("net.netfilter.nf_conntrack_max")?))
}

fn read(key: &str) -> Option<u64> {
    read_path(&key.replace('.', "/"))
}

/// As a path: names of interfaces may have dots.
pub(crate) fn read_path(path: &str) -> Option<u64> {
    fs::read_to_string(format!("{ROOT}{path}")).ok()?.trim().parse().ok()
}

fn path(key: &str) -> String {
    format!("{ROOT}{}", key.replace('.', "/"))
}
