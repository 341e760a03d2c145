//! Commands around nodes, members and clients.

use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::output::{Failure, Outcome, Output, Paint, table};
use super::views::{Clients, Member, Moved, Node, Pools, Status, Vip, Vips};
use super::{Target, complain, run_async};
use crate::client::{Call, Client, ClientError, encode};

/// How often `status --wait` looks again.
const POLL: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Wait until the node is ready and all live nodes serve the same revision
    #[arg(long)]
    wait: bool,
    /// With --wait: fail after this time
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = crate::durations::parse)]
    timeout: Duration,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum NodeCommand {
    /// Who is in the cluster
    #[command(after_help = "Example:\n  trestle node list")]
    List(Ask),
    /// Take a node out for good; one that lives drains and ends
    #[command(after_help = "Example:\n  trestle node remove node-3")]
    Remove(NodeArgs),
    /// Make a learner a voter
    #[command(after_help = "Example:\n  trestle node promote node-6")]
    Promote(NodeArgs),
    /// Make a voter a learner, until it is promoted by hand
    #[command(after_help = "Example:\n  trestle node demote node-2")]
    Demote(NodeArgs),
    /// Keep a node free of VIPs and not ready, until --undo
    #[command(after_help = "Examples:\n  trestle node drain node-2\n  trestle node drain node-2 --undo")]
    Drain(DrainArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct DrainArgs {
    /// End its drain
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    node: NodeArgs,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum VipCommand {
    /// The VIPs and who owns each
    #[command(after_help = "Example:\n  trestle vip list")]
    List(Ask),
    /// Move a VIP to a node; connections that began at the old one go on there
    #[command(after_help = "Example:\n  trestle vip move front node-2")]
    Move(MoveArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct MoveArgs {
    /// Its name in the config
    vip: String,
    /// Name or id of the node that is to have it
    node: String,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    /// Its name or id
    node: String,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Ask {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum MemberCommand {
    /// Pools, their members, and what the cluster holds of them
    #[command(after_help = "Example:\n  trestle member list")]
    List(Ask),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ClientsArgs {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 20)]
    most: usize,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn status(args: &StatusArgs) -> Outcome {
    let client = args.target.client()?;
    let raw = run_async(async {
        if args.wait { settled(&client, args.timeout).await } else { Ok(fetch(&client).await?.1) }
    })?;
    let status: Status = serde_json::from_value(raw.clone())?;
    if args.output.json() {
        args.output.value(&raw)?;
    } else {
        args.output.text(&render_status(&status, Paint::stdout()))?;
    }
    // A health check looks at the exit code alone.
    if status.ready {
        return Ok(());
    }
    complain(&format!("trestle: not ready: {}", status.unready()));
    Err(Failure::Told)
}

async fn fetch(client: &Client) -> Result<(Status, serde_json::Value), ClientError> {
    let answer = client.send(&Call::get("/v1/status")).await?;
    Ok((answer.json()?, answer.json()?))
}

async fn settled(client: &Client, timeout: Duration) -> Result<serde_json::Value, Failure> {
    let deadline = Instant::now() + timeout;
    let mut last = "no answer yet".to_owned();
    loop {
        match tokio::time::timeout_at(deadline, fetch(client)).await {
            Ok(Ok((status, raw))) => match status.unsettled() {
                None => return Ok(raw),
                Some(why) => last = why,
            },
            // What a repeat can't mend: credentials, another kind of server.
            Ok(Err(e @ ClientError::Refused(_))) => return Err(e.into()),
            Ok(Err(e)) => last = e.to_string(),
            Err(_) => {}
        }
        if Instant::now() + POLL >= deadline {
            return Err(anyhow::anyhow!("not settled within {} s: {last}", timeout.as_secs_f64()).into());
        }
        tokio::time::sleep(POLL).await;
    }
}

pub(crate) fn node(command: &NodeCommand) -> Outcome {
    let (args, method, verb, done) = match command {
        NodeCommand::List(ask) => return nodes(ask),
        NodeCommand::Remove(args) => (args, Method::DELETE, "", "was removed"),
        NodeCommand::Promote(args) => (args, Method::POST, "/promote", "is a voter"),
        NodeCommand::Demote(args) => {
            (args, Method::POST, "/demote", "is a learner until it is promoted by hand")
        }
        NodeCommand::Drain(DrainArgs { undo: true, node }) => {
            (node, Method::DELETE, "/drain", "takes part again")
        }
        NodeCommand::Drain(DrainArgs { undo: false, node }) => {
            (node, Method::POST, "/drain", "is drained: its VIPs move, until `drain --undo`")
        }
    };
    let call = Call::new(method, &format!("/v1/nodes/{}{verb}", encode(&args.node)));
    let answer = run_async(args.target.client()?.send(&call))?;
    let raw: serde_json::Value = answer.json()?;
    if args.output.json() {
        return args.output.value(&raw);
    }
    args.output.text(&format!("{} {done}", args.node))?;
    if let Some(note) = raw["note"].as_str() {
        args.output.note(&format!("note: {note}"));
    }
    Ok(())
}

fn nodes(ask: &Ask) -> Outcome {
    #[derive(serde::Deserialize)]
    struct Nodes {
        nodes: Vec<Node>,
    }
    let answer = run_async(ask.target.client()?.send(&Call::get("/v1/nodes")))?;
    if ask.output.json() {
        return ask.output.value(&answer.json::<serde_json::Value>()?);
    }
    ask.output.text(&render_nodes(&answer.json::<Nodes>()?.nodes))
}

pub(crate) fn vip(command: &VipCommand) -> Outcome {
    match command {
        VipCommand::List(ask) => {
            let answer = run_async(ask.target.client()?.send(&Call::get("/v1/vips")))?;
            if ask.output.json() {
                return ask.output.value(&answer.json::<serde_json::Value>()?);
            }
            let answer = answer.json::<Vips>()?;
            if !answer.quorum {
                ask.output.note("warning: no quorum: owners are as they were agreed on last");
            }
            ask.output.text(&render_vips(&answer.vips))
        }
        VipCommand::Move(args) => {
            let path = format!("/v1/vips/{}/move", encode(&args.vip));
            let call = Call::new(Method::POST, &path).query("to", &args.node);
            let answer = run_async(args.target.client()?.send(&call))?;
            if args.output.json() {
                return args.output.value(&answer.json::<serde_json::Value>()?);
            }
            let moved = answer.json::<Moved>()?;
            moved.warnings.iter().for_each(|warning| args.output.note(&format!("warning: {warning}")));
            args.output.text(&format!("{} is owned by {}", args.vip, args.node))
        }
    }
}

pub(crate) fn member(command: &MemberCommand) -> Outcome {
    let MemberCommand::List(ask) = command;
    let answer = run_async(ask.target.client()?.send(&Call::get("/v1/members")))?;
    if ask.output.json() {
        return ask.output.value(&answer.json::<serde_json::Value>()?);
    }
    ask.output.text(&render_members(&answer.json()?))
}

pub(crate) fn clients(args: &ClientsArgs) -> Outcome {
    let call = Call::get("/v1/clients").query("most", &args.most.to_string());
    let answer = run_async(args.target.client()?.send(&call))?;
    if args.output.json() {
        return args.output.value(&answer.json::<serde_json::Value>()?);
    }
    args.output.text(&render_clients(&answer.json()?))
}

// === for people ===

fn render_status(status: &Status, paint: Paint) -> String {
    let ready = match (status.ready, &status.reason) {
        (true, _) => paint.good("ready"),
        (false, Some(why)) => paint.bad(why),
        (false, None) => paint.bad("not ready"),
    };
    let mut out = format!(
        "{} (id {}) is {ready}: {}, revision {}, up {} s, {} workers, {} connections, version {}\n",
        paint.strong(&status.name),
        status.node,
        if status.role.is_empty() { "not part of a cluster yet" } else { &status.role },
        status.revision,
        status.uptime_seconds,
        status.workers,
        status.open_connections,
        status.version,
    );
    if !status.cluster_id.is_empty() {
        out += &render_cluster(status, paint);
    }
    for warning in &status.warnings {
        out += &format!("{} {warning}\n", paint.bad("warning:"));
    }
    if !status.nodes.is_empty() {
        out += &format!("\n{}", render_nodes(&status.nodes));
    }
    if !status.listeners.is_empty() {
        let row = |l: &super::views::Listener| {
            let at = match (&l.address, &l.error) {
                (Some(address), _) => address.clone(),
                (None, Some(error)) => format!("not bound: {error}"),
                (None, None) => "not bound".to_owned(),
            };
            vec![l.listener.clone(), l.protocol.clone(), l.bind.clone(), at]
        };
        let rows: Vec<_> = status.listeners.iter().map(row).collect();
        out += &format!("\n{}", table(&["LISTENER", "PROTOCOL", "BIND", "ADDRESS"], &rows));
    }
    if !status.vips.is_empty() {
        out += &format!("\n{}", render_vips(&status.vips));
    }
    if !status.pools.is_empty() {
        let rows: Vec<_> = status
            .pools
            .iter()
            .map(|pool| {
                let up = pool.members.iter().filter(|member| member.up).count();
                let note = if pool.panic { "all are used: too many are down" } else { "" };
                vec![pool.pool.clone(), format!("{up} of {}", pool.members.len()), note.to_owned()]
            })
            .collect();
        out += &format!("\n{}", table(&["POOL", "UP", ""], &rows));
    }
    out
}

fn render_cluster(status: &Status, paint: Paint) -> String {
    let leader = status.leader.map_or_else(
        || "none".to_owned(),
        |id| {
            status
                .nodes
                .iter()
                .find(|node| node.id == id)
                .map_or_else(|| id.to_string(), |node| node.name.clone())
        },
    );
    let quorum =
        if status.quorum { paint.good("quorum") } else { paint.bad("no quorum: changes are refused") };
    let seat = if status.seat.seated {
        format!("seat held (epoch {}, {} ms left)", status.seat.epoch, status.seat.remaining_ms)
    } else {
        "no seat".to_owned()
    };
    let drain = if status.draining { ", draining" } else { "" };
    let addresses = format!("cluster {}, admin {}", status.cluster.as_deref().unwrap_or("-"), status.admin);
    format!(
        "cluster {}: leader {leader}, term {}, {quorum}, {seat}{drain}\n{addresses}\n",
        status.cluster_id, status.term
    )
}

fn render_nodes(nodes: &[Node]) -> String {
    let row = |node: &Node| {
        let role = if node.leader { "leader" } else { &node.membership };
        let state = match (node.alive, node.seated, node.drained) {
            (true, true, false) => "alive, seated",
            (true, false, false) => "alive",
            (true, _, true) => "alive, drained",
            (false, ..) => "not heard",
        };
        vec![
            node.name.clone(),
            node.id.to_string(),
            role.to_owned(),
            state.to_owned(),
            node.revision.map_or_else(|| "-".to_owned(), |revision| revision.to_string()),
            node.cluster.clone(),
            node.admin.clone(),
            node.version.clone(),
        ]
    };
    let rows: Vec<_> = nodes.iter().map(row).collect();
    table(&["NODE", "ID", "ROLE", "STATE", "REVISION", "CLUSTER", "ADMIN", "VERSION"], &rows)
}

fn render_vips(vips: &[Vip]) -> String {
    let row = |vip: &Vip| {
        let owner = match (&vip.owner, &vip.moving_to) {
            (Some(owner), Some(to)) => format!("{owner}, moves to {to}"),
            (Some(owner), None) => owner.clone(),
            (None, _) => "nobody".to_owned(),
        };
        let here = match (vip.held_here, vip.kept_here, &vip.problem) {
            (true, ..) if vip.without_quorum => "held without a quorum".to_owned(),
            (true, ..) => match &vip.rival {
                Some(rival) => format!("held, but {rival}"),
                None => "held".to_owned(),
            },
            (_, true, _) => "kept for what began here".to_owned(),
            (.., Some(problem)) => format!("can't: {problem}"),
            (.., None) => "-".to_owned(),
        };
        let at = vip.interface.as_deref().unwrap_or("-").to_owned();
        let epoch = if vip.epoch == 0 { "-".to_owned() } else { vip.epoch.to_string() };
        vec![vip.vip.clone(), vip.addresses.join(" "), owner, epoch, at, vip.fences.join(" "), here]
    };
    let rows: Vec<_> = vips.iter().map(row).collect();
    table(&["VIP", "ADDRESSES", "OWNER", "EPOCH", "INTERFACE", "FENCES", "HERE"], &rows)
}

fn render_members(pools: &Pools) -> String {
    let state = |pool_panics: bool, member: &Member| match (member.up, member.ejected) {
        (true, false) => "up",
        (true, true) => "ejected here",
        (false, _) if pool_panics => "down, used all the same",
        (false, _) => "down",
    };
    let number = |n: Option<u32>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let mut rows = Vec::new();
    for pool in &pools.pools {
        for member in &pool.members {
            let probers: Vec<_> = member.probers.iter().map(render_prober).collect();
            rows.push(vec![
                pool.pool.clone(),
                member.name.clone(),
                member.address.clone(),
                state(pool.panic, member).to_owned(),
                number(member.weight),
                number(member.in_flight),
                probers.join(" "),
            ]);
        }
    }
    table(&["POOL", "MEMBER", "ADDRESS", "STATE", "WEIGHT", "IN FLIGHT", "PROBERS"], &rows)
}

/// `node-1:up`.
fn render_prober(prober: &serde_json::Value) -> String {
    let saw = match prober["up"].as_bool() {
        Some(true) => "up",
        Some(false) => "down",
        None => "?",
    };
    format!("{}:{saw}", prober["node"].as_str().unwrap_or("?"))
}

fn render_clients(clients: &Clients) -> String {
    let row = |row: &super::views::ClientRow| {
        let nodes: Vec<_> = row.nodes.iter().map(|(node, count)| format!("{node}:{count}")).collect();
        vec![row.client.clone(), row.total.to_string(), nodes.join(" ")]
    };
    let rows: Vec<_> = clients.clients.iter().map(row).collect();
    table(&["CLIENT", "CONNECTIONS", "NODES"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_tells_what_an_operator_looks_for_first() {
        let status: Status = serde_json::from_value(serde_json::json!({
            "ready": false, "reason": "draining: this node is about to stop", "name": "node-1", "node": 0,
            "role": "follower", "revision": 4, "cluster_id": "0190", "quorum": false, "leader": 5, "term": 3,
            "nodes": [{"id": 5, "name": "node-2", "leader": true, "alive": true, "membership": "voter", "revision": 4}],
            "listeners": [{"listener": "web", "protocol": "http", "bind": ":80", "error": "permission denied"}],
            "pools": [{"pool": "app", "panic": true, "members": [{"name": "a", "up": false}, {"name": "b", "up": true}]}],
            "warnings": ["the clock is wrong"],
        }))
        .unwrap();
        let text = render_status(&status, Paint::stdout());
        for part in [
            "draining: this node is about to stop",
            "leader node-2",
            "no quorum",
            "warning: the clock is wrong",
            "not bound: permission denied",
            "1 of 2",
            "all are used",
        ] {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn members_show_their_state_and_who_saw_what() {
        let pools: Pools = serde_json::from_value(serde_json::json!({"pools": [{"pool": "app", "members": [
            {"name": "a", "address": "192.0.2.1:80", "up": true, "ejected": true, "weight": 1, "in_flight": 3,
             "probers": [{"node": "n1", "up": true}, {"node": "n2", "up": null}]}]}]}))
        .unwrap();
        let text = render_members(&pools);
        assert!(text.contains("ejected here") && text.contains("n1:up n2:?"), "{text}");
    }
}
