//! Commands around nodes, VIPs and clients.

use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::output::{Failure, Outcome, Output, Paint, table};
use super::views::{Adaptive, Clients, Member, Moved, Node, Pool, Status, Vip, Vips};
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

pub(super) async fn fetch(client: &Client) -> Result<(Status, serde_json::Value), ClientError> {
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
            for warning in vip_list_warnings(&answer) {
                ask.output.note(&format!("warning: {warning}"));
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

/// The cause comes first.
fn vip_list_warnings(answer: &Vips) -> Vec<String> {
    let stale = "owners are as they were agreed on last";
    let cause = match &answer.problem {
        Some(problem) => Some(format!("{problem}; {stale}")),
        None => (!answer.quorum).then(|| format!("no quorum: {stale}")),
    };
    let waits = answer.vips.iter().filter_map(|vip| vip.waits.clone());
    cause.into_iter().chain(waits).collect()
}

pub(crate) fn clients(args: &ClientsArgs) -> Outcome {
    let call = Call::get("/v1/clients").query("most", &args.most.to_string());
    let answer = run_async(args.target.client()?.send(&call))?;
    if args.output.json() {
        return args.output.value(&answer.json::<serde_json::Value>()?);
    }
    let clients: Clients = answer.json()?;
    if !clients.silent.is_empty() {
        let silent = clients.silent.join(", ");
        args.output.note(&format!("warning: of limits, what is open at {silent} is not counted (not heard)"));
    }
    args.output.text(&render_clients(&clients))
}

// === for people ===

fn render_status(status: &Status, paint: Paint) -> String {
    let ready = match (status.ready, &status.reason) {
        (true, _) => paint.good("ready"),
        (false, Some(why)) => paint.bad(&format!("not ready ({why})")),
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
    match status.bans {
        0 => {}
        1 => out += "1 client is banned: `trestle ban list`\n",
        n => out += &format!("{n} clients are banned: `trestle ban list`\n"),
    }
    for warning in &status.warnings {
        out += &format!("{} {warning}\n", paint.bad("warning:"));
    }
    if !status.nodes.is_empty() {
        out += &format!("\n{}", render_nodes(&status.nodes));
    }
    if !status.listeners.is_empty() {
        let row = |l: &super::views::Listener| {
            let last = last_of_range(&l.bind);
            let at = match (&l.address, &l.error) {
                (Some(address), _) if l.via.is_some() => {
                    let open = l.carried.as_ref().map(|carried| format!(", {} flows", carried.open));
                    format!("{address}{last} (by the kernel{})", open.unwrap_or_default())
                }
                (Some(address), _) => format!("{address}{last}"),
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
        let row = |pool: &Pool| {
            let up = pool.members.iter().filter(|member| member.up).count();
            vec![pool.pool.clone(), format!("{up} of {}", pool.members.len()), pool_notes(pool).join("; ")]
        };
        let rows: Vec<_> = status.pools.iter().map(row).collect();
        out += &format!("\n{}", table(&["POOL", "UP", ""], &rows));
    }
    out
}

/// What a person should know of a pool.
/// `-6063` of `:6000-6063`: addresses name the first port.
fn last_of_range(bind: &str) -> &str {
    let ports = bind.rfind(':').map_or("", |colon| &bind[colon..]);
    ports.find('-').map_or("", |dash| &ports[dash..])
}

fn pool_notes(pool: &Pool) -> Vec<String> {
    /// Members that are told of; `member list` has all.
    const TOLD_MAX: usize = 3;
    let mut notes = Vec::new();
    if pool.panic {
        notes.push("all are used: too many are down".to_owned());
    }
    if pool.names.iter().any(|name| name.problem.is_some()) {
        notes.push("not all its DNS names resolve".to_owned());
    }
    // That all are used is said above.
    let trouble = |member: &Member| Some((member.name.clone(), member.trouble(false)?));
    let in_trouble: Vec<_> = pool.members.iter().filter_map(trouble).collect();
    notes.extend(in_trouble.iter().take(TOLD_MAX).map(|(name, trouble)| format!("{name} {trouble}")));
    if in_trouble.len() > TOLD_MAX {
        notes.push(format!("{} more: `trestle member list {}`", in_trouble.len() - TOLD_MAX, pool.pool));
    }
    match pool.members.iter().filter(|member| member.drains()).count() {
        0 => {}
        1 => notes.push("1 member drains".to_owned()),
        n => notes.push(format!("{n} members drain")),
    }
    if let Some(Adaptive { limit, waiting }) = &pool.adaptive {
        notes.push(format!("adaptive limit {limit}, {waiting} wait for an answer"));
    }
    notes
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
    let own = status.nodes.iter().find(|node| node.id == status.node).and_then(|node| node.key.as_ref());
    let key = match own.map(|key| (&key.current, &key.other)) {
        None => String::new(),
        Some((current, None)) => format!(", key {current}"),
        Some((current, Some(other))) => format!(", keys {current} (in use) and {other}"),
    };
    format!(
        "cluster {}: leader {leader}, term {}, {quorum}, {seat}{drain}\n{addresses}{key}\n",
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
            (Some(owner), _) if vip.lease_left_ms.is_some() => format!("{owner}, not heard"),
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

/// `listener web: 57 of 100 connections`, `rule api/login: 30 of 10/m requests`.
fn limit(limit: &super::views::ClientLimit) -> String {
    format!("{}: {} of {} {}", limit.at, limit.used, limit.limit, limit.of)
}

fn render_clients(clients: &Clients) -> String {
    let row = |row: &super::views::ClientRow| {
        let nodes: Vec<_> = row.nodes.iter().map(|(node, count)| format!("{node}:{count}")).collect();
        let limits: Vec<_> = row.limits.iter().map(limit).collect();
        let rate = if row.rate > 0 { format!("{}/s", row.rate) } else { "-".to_owned() };
        let ban = match &row.ban {
            Some(ban) => format!("{:?}", Duration::from_secs(ban.left_ms.div_ceil(1_000))),
            None => "-".to_owned(),
        };
        vec![row.client.clone(), row.total.to_string(), rate, ban, nodes.join(" "), limits.join(", ")]
    };
    let rows: Vec<_> = clients.clients.iter().map(row).collect();
    table(&["CLIENT", "CONNECTIONS", "RATE", "BANNED", "NODES", "LIMITS"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_listed_with_their_rates_and_limits() {
        let clients: Clients = serde_json::from_value(serde_json::json!({ "clients": [
            {"client": "192.0.2.1", "total": 57, "rate": 230, "nodes": {"n1": 50, "n2": 7}, "limits": [
                {"at": "listener web", "of": "connections", "limit": "100", "used": 57},
                {"at": "rule api/login", "of": "requests", "limit": "10/m", "used": 300},
            ]},
            {"client": "192.0.2.2", "total": 1, "rate": 0, "nodes": {"n1": 1}, "limits": [], "ban": {"left_ms": 59_100}},
        ]}))
        .expect("clients");
        let text = render_clients(&clients);
        let lines: Vec<_> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            lines,
            [
                "CLIENT CONNECTIONS RATE BANNED NODES LIMITS",
                "192.0.2.1 57 230/s - n1:50 n2:7 listener web: 57 of 100 connections, rule api/login: 300 of 10/m requests",
                "192.0.2.2 1 - 60s n1:1",
            ]
        );
    }

    #[test]
    fn status_tells_what_an_operator_looks_for_first() {
        let status: Status = serde_json::from_value(serde_json::json!({
            "ready": false, "reason": "draining: this node is about to stop", "name": "node-1", "node": 0,
            "role": "follower", "revision": 4, "cluster_id": "0190", "quorum": false, "leader": 5, "term": 3,
            "nodes": [{"id": 5, "name": "node-2", "leader": true, "alive": true, "membership": "voter", "revision": 4}],
            "listeners": [{"listener": "web", "protocol": "http", "bind": ":80", "error": "permission denied"},
                {"listener": "rtp", "protocol": "udp", "bind": "[::1]:6000-6063", "address": "[::1]:6000"},
                {"listener": "raw", "protocol": "tcp", "bind": "a-b:7000", "address": "127.0.0.1:7000"}],
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
            "[::1]:6000-6063\n",
            "127.0.0.1:7000\n",
            "1 of 2",
            "all are used",
        ] {
            assert!(text.contains(part), "{part:?} is missing in:\n{text}");
        }
    }

    #[test]
    fn a_pool_tells_whom_it_does_not_use_and_why() {
        let pool: Pool = serde_json::from_value(serde_json::json!({"pool": "app", "members": [
            {"name": "a", "up": true}, {"name": "b", "reason": "timeout"}, {"name": "c", "drain": "all", "up": true},
            {"name": "d", "up": true, "ejected": true,
             "ejection": {"cause": "latency", "reason": "answers take 9.0 times the pool's median", "left_ms": 1}},
            {"name": "e"}, {"name": "f"}, {"name": "g"}],
            "adaptive": {"limit": 4, "waiting": 3}}))
        .unwrap();
        assert_eq!(
            pool_notes(&pool),
            [
                "b down by check: timeout",
                "d ejected here: answers take 9.0 times the pool's median, 1 s left",
                "e down by check",
                "2 more: `trestle member list app`",
                "1 member drains",
                "adaptive limit 4, 3 wait for an answer",
            ]
        );
        let well: Pool = serde_json::from_value(
            serde_json::json!({"pool": "app", "members": [{"name": "a", "up": true}]}),
        )
        .unwrap();
        assert!(pool_notes(&well).is_empty());
    }

    #[test]
    fn an_owner_that_is_not_heard_is_no_plain_owner() {
        let vips: Vips = serde_json::from_value(serde_json::json!({"vips": [
            {"vip": "a", "owner": "n1"}, {"vip": "b", "owner": "n2", "lease_left_ms": 8_000}, {"vip": "c"}]}))
        .unwrap();
        let text = render_vips(&vips.vips);
        let row = |vip: &str| text.lines().find(|line| line.starts_with(vip)).unwrap_or_default().to_owned();
        assert!(row("b").contains("n2, not heard") && !row("a").contains("not heard"), "{text}");
        assert!(row("c").contains("nobody"), "{text}");
    }

    #[test]
    fn a_list_of_vips_says_first_why_it_may_be_old() {
        let waits = Vip { waits: Some("VIP a waits".to_owned()), ..Vip::default() };
        let full = Vips { vips: vec![waits], quorum: false, problem: Some("the disk is full".to_owned()) };
        let stale = "owners are as they were agreed on last";
        assert_eq!(
            vip_list_warnings(&full),
            [format!("the disk is full; {stale}"), "VIP a waits".to_owned()]
        );
        let cut = Vips { problem: None, ..full };
        assert_eq!(vip_list_warnings(&cut)[0], format!("no quorum: {stale}"));
        assert!(vip_list_warnings(&Vips { quorum: true, ..Vips::default() }).is_empty());
    }
}
