//! `/v1/kernel`: what this node's kernel carries, read from the kernel; and the same as metrics.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Serialize;
use trestle_dataplane::{KernelListener, KernelView};
use trestle_kernel_path::{InForce, Open, TableInForce, Traffic, machine};

use super::{Api, ApiError};

#[derive(Serialize)]
struct Kernel {
    listeners: Vec<Listener>,
    /// Absent where there is none.
    table: Option<Table>,
    /// The same of direct server return.
    #[serde(skip_serializing_if = "Option::is_none")]
    direct_table: Option<Table>,
    pools: Vec<Pool>,
    /// Flows that the machine's connection tracking holds, whoever's they are.
    tracked_flows: Option<u64>,
    tracked_flows_max: Option<u64>,
    /// What stands in the way.
    warnings: Vec<String>,
    /// Why what should be in force is not.
    problem: Option<String>,
}

/// What a listener or member has carried.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Carried {
    /// Begun, or taken over from another node.
    flows: u64,
    /// When they were last counted.
    open: u64,
    /// IP packets from clients, and their bytes.
    received_packets: u64,
    received_bytes: u64,
    /// To clients.
    sent_packets: u64,
    sent_bytes: u64,
    /// Of listeners: tries that the firewall turned away, and those above a limit or rate.
    #[serde(skip_serializing_if = "is_zero")]
    denied: u64,
    #[serde(skip_serializing_if = "is_zero")]
    limited: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Carried {
    pub(super) fn new(carried: Option<&trestle_kernel_path::Carried>, open: Option<&u64>) -> Self {
        let trestle_kernel_path::Carried { flows, received, sent, denied, limited } =
            carried.copied().unwrap_or_default();
        Self {
            flows,
            open: open.copied().unwrap_or(0),
            received_packets: received.packets,
            received_bytes: received.bytes,
            sent_packets: sent.packets,
            sent_bytes: sent.bytes,
            denied,
            limited,
        }
    }
}

#[derive(Serialize)]
struct Listener {
    listener: String,
    bind: Vec<String>,
    protocol: &'static str,
    mode: &'static str,
    hash: &'static str,
    slots: u32,
    pool: String,
    carried: Carried,
}

#[derive(Serialize)]
struct Table {
    name: String,
    /// Nobody else may change it.
    owned: bool,
    chains: usize,
    rules: usize,
}

#[derive(Serialize)]
struct Pool {
    pool: String,
    family: &'static str,
    slots: usize,
    members: Vec<Member>,
}

#[derive(Serialize)]
struct Member {
    address: SocketAddr,
    /// 0: it gets nothing new.
    slots: usize,
    /// By all its pools.
    carried: Carried,
}

pub(super) async fn show(State(api): State<Arc<Api>>) -> Result<Response, ApiError> {
    let kernel = &api.node.kernel;
    let in_force = kernel.clone().in_force().await.map_err(|why| {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "kernel", format!("the kernel does not tell: {why}"))
    })?;
    let told = kernel.told();
    let (traffic, open) = (kernel.clone().traffic().await, kernel.open());
    let mut tables = Vec::new();
    let [table, direct_table] = in_force.map(|in_force| {
        let InForce { table: name, owned, chains, rules, tables: more } = in_force?;
        tables.extend(more);
        Some(Table { name, owned, chains, rules })
    });
    let tracked = machine::tracked().filter(|_| table.is_some());
    let shown = Kernel {
        listeners: told
            .view
            .listeners
            .iter()
            .map(|listener| Listener::new(listener, &traffic, &open))
            .collect(),
        table,
        direct_table,
        pools: tables.into_iter().map(|table| Pool::new(table, &told.view, &traffic, &open)).collect(),
        tracked_flows: tracked.map(|(count, _)| count),
        tracked_flows_max: tracked.map(|(_, most)| most),
        warnings: kernel.warnings(),
        problem: told.problem.clone(),
    };
    Ok(Json(shown).into_response())
}

impl Listener {
    fn new(listener: &KernelListener, traffic: &Traffic, open: &Open) -> Self {
        let KernelListener { name, binds, protocol, settings, pool, guard: _ } = listener;
        Self {
            listener: name.clone(),
            bind: binds.iter().map(ToString::to_string).collect(),
            protocol: super::health::protocol_text(*protocol),
            mode: settings.mode.text(),
            hash: settings.hash.text(),
            slots: settings.slots,
            pool: pool.clone(),
            carried: Carried::new(traffic.listeners.get(name), open.listeners.get(name)),
        }
    }
}

impl Pool {
    /// Members that get nothing new have no slots, and stand behind the others.
    fn new(table: TableInForce, view: &KernelView, traffic: &Traffic, open: &Open) -> Self {
        let member = |address: SocketAddr, slots| {
            let carried = Carried::new(traffic.members.get(&address), open.members.get(&address));
            Member { address, slots, carried }
        };
        let in_use: BTreeSet<SocketAddr> = table.members.iter().map(|share| share.address).collect();
        let known = view.known.get(&table.pool).into_iter().flatten().map(|known| known.address);
        let idle = known.filter(|address| address.is_ipv6() == table.ipv6 && !in_use.contains(address));
        let used = table.members.iter().map(|share| member(share.address, share.slots));
        Self {
            family: if table.ipv6 { "ipv6" } else { "ipv4" },
            slots: table.slots,
            members: used.chain(idle.map(|address| member(address, 0))).collect(),
            pool: table.pool,
        }
    }
}

/// As Prometheus text, behind what is there.
pub(super) async fn render_metrics(kernel: &Arc<crate::run::Kernel>, out: &mut String) {
    let told = kernel.told();
    let (traffic, open) = (kernel.clone().traffic().await, kernel.open());
    let none = || trestle_kernel_path::Carried::default();
    let listeners: Vec<Sample> = told
        .view
        .listeners
        .iter()
        .map(|listener| {
            let name = &listener.name;
            let carried = traffic.listeners.get(name).copied().unwrap_or_else(none);
            (format!("{{listener=\"{name}\"}}"), carried, open.listeners.get(name).copied().unwrap_or(0))
        })
        .collect();
    let members =
        told.view.known.iter().flat_map(|(pool, members)| members.iter().map(move |member| (pool, member)));
    let members: Vec<Sample> = members
        .map(|(pool, member)| {
            let carried = traffic.members.get(&member.address).copied().unwrap_or_else(none);
            let labels = format!("{{pool=\"{pool}\",member=\"{}\"}}", member.name);
            (labels, carried, open.members.get(&member.address).copied().unwrap_or(0))
        })
        .collect();
    for (of, samples) in [("listener", &listeners), ("member", &members)] {
        let families = if of == "listener" { &FAMILIES[..] } else { &FAMILIES[..OF_MEMBERS] };
        for (what, kind, help, value) in families {
            let name = format!("trestle_kernel_{of}_{what}");
            // Writing to a String can't fail.
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
            for (labels, carried, open) in samples {
                let _ = writeln!(out, "{name}{labels} {}", value(carried, *open));
            }
        }
    }
    for (name, kind, help, value) in [
        ("trestle_kernel_cut_flows_total", "counter", "Flows cut with their member.", kernel.cut()),
        (
            "trestle_kernel_kept_flows",
            "gauge",
            "Flows that began under an older table and go on, told to other nodes.",
            open.kept.len() as u64,
        ),
        (
            "trestle_kernel_kept_elsewhere_flows",
            "gauge",
            "Those that other nodes have told of, and that could go on here.",
            kernel.told().view.kept.len() as u64,
        ),
        (
            "trestle_kernel_count_micros",
            "gauge",
            "How long the last count of flows took.",
            open.took.as_micros() as u64,
        ),
    ] {
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    }
}

/// Labels, counters and open flows.
type Sample = (String, trestle_kernel_path::Carried, u64);
type Value = fn(&trestle_kernel_path::Carried, u64) -> u64;

/// Those that members have as well.
const OF_MEMBERS: usize = 6;

const FAMILIES: [(&str, &str, &str, Value); 8] = [
    ("flows_total", "counter", "Flows that the kernel began to carry, or took over.", |c, _| c.flows),
    ("open", "gauge", "Flows open when they were last counted.", |_, open| open),
    ("received_packets_total", "counter", "IP packets from clients.", |c, _| c.received.packets),
    ("received_bytes_total", "counter", "Bytes of these, with headers.", |c, _| c.received.bytes),
    ("sent_packets_total", "counter", "IP packets to clients.", |c, _| c.sent.packets),
    ("sent_bytes_total", "counter", "Bytes of these, with headers.", |c, _| c.sent.bytes),
    ("denied_total", "counter", "Tries of clients that the firewall turned away.", |c, _| c.denied),
    ("limited_total", "counter", "Tries of clients above a limit or a rate.", |c, _| c.limited),
];
