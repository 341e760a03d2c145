//! Commands around the kernel path.

use super::output::{Outcome, Output, table};
use super::views::{Carried, Kernel, KernelMember};
use super::{Target, run_async};
use crate::client::Call;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum KernelCommand {
    /// What the node's kernel carries: listeners, and each member's part of the clients
    #[command(
        after_help = "Examples:\n  trestle kernel show\n  trestle kernel show -o json\n\nIt is read from the kernel, not from what it \
                            was told. docs/kernel-path.md says what the columns mean."
    )]
    Show(Show),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(command: &KernelCommand) -> Outcome {
    let KernelCommand::Show(args) = command;
    let answer = run_async(args.target.client()?.send(&Call::get("/v1/kernel")))?;
    if args.output.json() {
        return args.output.value(&answer.json::<serde_json::Value>()?);
    }
    let kernel: Kernel = answer.json()?;
    kernel.problem.iter().for_each(|problem| args.output.note(&format!("error: {problem}")));
    kernel.warnings.iter().for_each(|warning| args.output.note(&format!("warning: {warning}")));
    args.output.text(&render(&kernel))
}

fn render(kernel: &Kernel) -> String {
    let tables = [("inet", &kernel.table), ("netdev", &kernel.direct_table)];
    let mut text = String::new();
    for (family, in_force) in tables {
        let Some(in_force) = in_force else { continue };
        let owned = if in_force.owned { ", owned by this node's process" } else { "" };
        let (name, chains, rules) = (&in_force.name, in_force.chains, in_force.rules);
        text += &format!("table {family} {name}: {chains} chains, {rules} rules{owned}\n");
    }
    if text.is_empty() {
        return "nothing goes by the kernel on this node\n".to_owned();
    }
    if let (Some(count), Some(most)) = (kernel.tracked_flows, kernel.tracked_flows_max) {
        text += &format!("flows tracked on this machine: {count} of {most}\n");
    }
    let rows: Vec<Vec<String>> = kernel
        .listeners
        .iter()
        .map(|one| {
            let cells = [&one.listener, &one.protocol, &one.bind.join(" "), &one.mode, &one.hash, &one.pool];
            [cells.map(Clone::clone).to_vec(), carried(&one.carried)].concat()
        })
        .collect();
    text += "\n";
    text += &table(
        &["LISTENER", "PROTOCOL", "BIND", "MODE", "HASH", "POOL", "OPEN", "FLOWS", "RECEIVED", "SENT"],
        &rows,
    );
    let mut rows = Vec::new();
    for pool in &kernel.pools {
        for KernelMember { address, slots, carried: counts } in &pool.members {
            let share = 100.0 * *slots as f64 / pool.slots.max(1) as f64;
            let of = format!("{slots} of {}", pool.slots);
            let cells = [pool.pool.clone(), address.clone(), of, format!("{share:.1} %")];
            rows.push([cells.to_vec(), carried(counts)].concat());
        }
    }
    text += "\n";
    text + &table(&["POOL", "MEMBER", "SLOTS", "SHARE", "OPEN", "FLOWS", "RECEIVED", "SENT"], &rows)
}

/// Open flows, all of them, and bytes each way.
fn carried(carried: &Carried) -> Vec<String> {
    let Carried { open, flows, received_bytes, sent_bytes } = carried;
    vec![open.to_string(), flows.to_string(), size(*received_bytes), size(*sent_bytes)]
}

/// As people read it.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, "B");
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_member_stands_with_its_share() {
        let kernel: Kernel = serde_json::from_value(json!({
            "listeners": [{ "listener": "sip", "bind": ["198.18.0.100:5060"], "protocol": "udp", "mode": "nat",
                            "hash": "client", "slots": 1021, "pool": "pbx",
                            "carried": { "flows": 9, "open": 2, "received_bytes": 1023, "sent_bytes": 1_572_864 } }],
            "table": { "name": "trestle_kernel_n1", "owned": true, "chains": 5, "rules": 4 },
            "pools": [{ "pool": "pbx", "family": "ipv4", "slots": 1021,
                        "members": [{ "address": "198.18.2.10:5060", "slots": 256 }] }],
            "direct_table": { "name": "trestle_direct_n1", "owned": false, "chains": 4, "rules": 9 },
            "tracked_flows": 7, "tracked_flows_max": 65536, "warnings": [], "problem": null }))
        .unwrap();
        let text = render(&kernel);
        let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0][..4], ["table", "inet", "trestle_kernel_n1:", "5"]);
        assert_eq!(lines[1][..5], ["table", "netdev", "trestle_direct_n1:", "4", "chains,"]);
        assert_eq!(lines[2][5..], ["7", "of", "65536"]);
        assert_eq!(lines[5][..6], ["sip", "udp", "198.18.0.100:5060", "nat", "client", "pbx"]);
        assert_eq!(lines[5][6..], ["2", "9", "1023", "B", "1.5", "MiB"]);
        assert_eq!(lines[8][..7], ["pbx", "198.18.2.10:5060", "256", "of", "1021", "25.1", "%"]);
    }
}
