//! Commands around pools' members.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Method;
use serde_json::json;

use super::config::{Entry, report};
use super::output::{Outcome, Output, table};
use super::views::{DnsName, Member, MemberOrder, Pools};
use super::{Target, run_async};
use crate::client::{Call, Client, encode};

/// How often `drain --wait` looks again.
const POLL: Duration = Duration::from_millis(300);

#[derive(Debug, clap::Subcommand)]
pub(crate) enum MemberCommand {
    /// Pools, their members, and what the cluster holds of them
    #[command(after_help = "Examples:\n  trestle member list\n  trestle member list app -o json")]
    List(List),
    /// Send a member nothing new, on any node; what is under way there ends by itself
    #[command(
        after_help = "Examples:\n  trestle member drain app a1\n  trestle member drain app a1 --all --wait\n  trestle member drain db d2 --deadline 10m\n  trestle member drain app a1 \
                      --undo\n\nClients that stick to it by a cookie still come, unless --all says otherwise. It holds until --undo, \
                      whatever is applied, or until the member leaves the config. A member by DNS name drains with all addresses that \
                      the name stands for, and will; one of them alone by the name that `member list` shows."
    )]
    Drain(Drain),
    /// Give a member another weight than the config does
    #[command(
        after_help = "Examples:\n  trestle member weight app a1 3\n  trestle member weight app a1 --reset\n\nIt holds until --reset, \
                      whatever is applied, or until the member leaves the config. At 0 it gets nothing new, but for clients that \
                      stick to it by a cookie. Of a member by DNS name each address has it, in place of SRV records' weights, too."
    )]
    Weight(Weight),
    /// Add a member to a pool of the config: a new revision
    #[command(
        after_help = "Examples:\n  trestle member add app 192.0.2.13:80\n  trestle member add app 192.0.2.13:80 --name a3 --weight 2 \
                      -m 'one more'"
    )]
    Add(Add),
    /// Take a member out of a pool of the config: a new revision; what is under way there goes on
    #[command(after_help = "Example:\n  trestle member remove app a3")]
    Remove(Remove),
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Of this pool alone
    pool: Option<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

/// Which member.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// The pool's name in the config
    pool: String,
    /// Its name, or its address; of a DNS name all addresses, or one as `member list` shows it
    member: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Drain {
    #[command(flatten)]
    which: Which,
    /// End its drain
    #[arg(long, conflicts_with = "all")]
    undo: bool,
    /// Clients that stick to it go elsewhere, too
    #[arg(long)]
    all: bool,
    /// Cut connections and sessions of tcp, tls and udp that are still there after this time
    #[arg(long, value_name = "TIME", value_parser = crate::durations::parse, conflicts_with = "undo")]
    deadline: Option<Duration>,
    /// Wait until nothing is under way there any more, on any node
    #[arg(long, conflicts_with = "undo")]
    wait: bool,
    /// With --wait: fail after this time
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = crate::durations::parse)]
    timeout: Duration,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Weight {
    #[command(flatten)]
    which: Which,
    /// Its share against the other members; 0: none
    #[arg(value_name = "N", required_unless_present = "reset", conflicts_with = "reset")]
    weight: Option<u32>,
    /// As the config has it
    #[arg(long)]
    reset: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Add {
    /// The pool's name in the config
    pool: String,
    /// Where it is, HOST:PORT
    address: String,
    /// Unique in the pool [default: its address]
    #[arg(long)]
    name: Option<String>,
    /// Its share against the other members [default: 1]
    #[arg(long, value_name = "N")]
    weight: Option<u32>,
    /// Where it stands, for pools that are zone_aware
    #[arg(long)]
    zone: Option<String>,
    /// Its tier: used while no lower one has a usable member [default: 0]
    #[arg(long, value_name = "TIER")]
    backup: Option<u32>,
    /// What each node puts upon it at once, at most; 0: no limit [default: 0]
    #[arg(long, value_name = "N")]
    max_connections: Option<u32>,
    #[command(flatten)]
    entry: Entry,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Remove {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    entry: Entry,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

impl Which {
    fn path(&self) -> String {
        format!("/v1/pools/{}/members/{}", encode(&self.pool), encode(&self.member))
    }
}

pub(crate) fn run(command: &MemberCommand) -> Outcome {
    match command {
        MemberCommand::List(args) => list(args),
        MemberCommand::Drain(args) => drain(args),
        MemberCommand::Weight(args) => weight(args),
        MemberCommand::Add(args) => add(args),
        MemberCommand::Remove(args) => remove(args),
    }
}

fn list(args: &List) -> Outcome {
    let mut call = Call::get("/v1/members");
    if let Some(pool) = &args.pool {
        call = call.query("pool", pool);
    }
    let answer = run_async(args.target.client()?.send(&call))?;
    if args.output.json() {
        return args.output.value(&answer.json::<serde_json::Value>()?);
    }
    args.output.text(&render(&answer.json()?))
}

fn drain(args: &Drain) -> Outcome {
    let method = if args.undo { Method::DELETE } else { Method::POST };
    let mut call = Call::new(method, &format!("{}/drain", args.which.path()));
    if args.all {
        call = call.query("all", "true");
    }
    if let Some(deadline) = args.deadline {
        call = call.query("deadline_ms", &deadline.as_millis().to_string());
    }
    if !args.wait {
        return order(&call, &args.target, args.output);
    }
    let client = args.target.client()?;
    let member = run_async(async {
        let ordered: MemberOrder = client.send(&call).await?.json()?;
        warn(&ordered, args.output);
        args.output.note(&told(&ordered));
        match tokio::time::timeout(args.timeout, emptied(&client, &ordered, args.output)).await {
            Ok(member) => member,
            Err(_) => Err(anyhow::anyhow!(
                "something is still under way at {} after {:?}; it goes on to drain, `trestle member list {}` shows it",
                ordered.member,
                args.timeout,
                ordered.pool
            )),
        }
    })?;
    if args.output.json() {
        return args.output.value(&member);
    }
    args.output.text(&format!("member {} of {} is empty", args.which.member, args.which.pool))
}

/// The member, or each address of one by DNS name, as it is listed, once nothing is under way there.
async fn emptied(
    client: &Client,
    ordered: &MemberOrder,
    output: Output,
) -> anyhow::Result<serde_json::Value> {
    let call = Call::get("/v1/members").query("pool", &ordered.pool);
    let mut shown = None;
    loop {
        let list: serde_json::Value = client.send(&call).await?.json()?;
        let listed = list["pools"][0]["members"].as_array().into_iter().flatten();
        let name = Some(ordered.member.as_str());
        let is_meant = |member: &&serde_json::Value| match ordered.addresses {
            None => member["name"].as_str() == name,
            Some(_) => member["of"].as_str() == name,
        };
        let raw: Vec<_> = listed.filter(is_meant).cloned().collect();
        let members = raw.iter().map(|member| serde_json::from_value(member.clone()));
        let members: Vec<Member> = members.collect::<Result<_, _>>()?;
        let names = list["pools"][0]["names"].as_array().into_iter().flatten();
        let named: Vec<DnsName> =
            names.map(|name| serde_json::from_value(name.clone())).collect::<Result<_, _>>()?;
        // What DNS brings in a moment may not have been told of yet.
        let whole = named.iter().find(|named| ordered.addresses.is_some() && Some(&*named.member) == name);
        anyhow::ensure!(
            whole.is_some() || ordered.addresses.is_none() && !members.is_empty(),
            "member {} has left the config",
            ordered.member
        );
        let ends = |drain: Option<&str>| drain == Some("off");
        anyhow::ensure!(
            !whole.is_some_and(|whole| ends(whole.drain.as_deref()))
                && !members.iter().any(|member| whole.is_none() && ends(member.drain.as_deref())),
            "the drain of {} was ended",
            ordered.member
        );
        let left = members.iter().try_fold((0, 0), |(here, elsewhere), member| {
            Some((here + member.in_flight?, elsewhere + member.in_flight_elsewhere?))
        });
        if left == Some((0, 0)) {
            return Ok(match ordered.addresses {
                None => raw.into_iter().next().unwrap_or_default(),
                Some(_) => json!({ "member": ordered.member, "members": raw }),
            });
        }
        if shown != left
            && let Some((here, elsewhere)) = left
        {
            output.note(&format!("under way: {here} on this node, {elsewhere} on others"));
            shown = left;
        }
        tokio::time::sleep(POLL).await;
    }
}

fn weight(args: &Weight) -> Outcome {
    let path = format!("{}/weight", args.which.path());
    let call = match args.weight.filter(|_| !args.reset) {
        Some(weight) => Call::new(Method::PUT, &path).body(json!({ "weight": weight }).to_string()),
        None => Call::new(Method::DELETE, &path),
    };
    order(&call, &args.target, args.output)
}

fn order(call: &Call, target: &Target, output: Output) -> Outcome {
    let answer = run_async(target.client()?.send(call))?;
    let ordered: MemberOrder = answer.json()?;
    warn(&ordered, output);
    if output.json() {
        return output.value(&answer.json::<serde_json::Value>()?);
    }
    output.text(&told(&ordered))
}

fn warn(ordered: &MemberOrder, output: Output) {
    ordered.warnings.iter().for_each(|warning| output.note(&format!("warning: {warning}")));
}

fn told(MemberOrder { pool, member, drain, cut_at_ms, weight, addresses, .. }: &MemberOrder) -> String {
    let of = match addresses.as_deref() {
        None => String::new(),
        Some([]) => ", which has no address now,".to_owned(),
        Some(addresses) => format!(" ({}, and whatever else it will stand for)", addresses.join(", ")),
    };
    let cut = match cut_at_ms {
        Some(at) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let left = Duration::from_millis(*at).saturating_sub(now);
            format!(
                "; what is carried there is cut in {:?}",
                Duration::from_secs(left.as_secs_f64().round() as u64)
            )
        }
        None => String::new(),
    };
    match drain.as_str() {
        "new" => format!(
            "member {member} of {pool}{of} is draining (weight {weight}): nothing new goes there, but from clients that stick to it{cut}"
        ),
        "all" => {
            format!(
                "member {member} of {pool}{of} is draining (weight {weight}): nothing new goes there{cut}"
            )
        }
        _ => format!("member {member} of {pool}{of} takes part with weight {weight}"),
    }
}

fn add(args: &Add) -> Outcome {
    let mut member = serde_json::Map::from_iter([("address".to_owned(), args.address.clone().into())]);
    let numbers =
        [("weight", args.weight), ("backup", args.backup), ("max_connections", args.max_connections)];
    let texts = [("name", &args.name), ("zone", &args.zone)];
    member.extend(texts.into_iter().filter_map(|(key, text)| Some((key.to_owned(), text.clone()?.into()))));
    member.extend(numbers.into_iter().filter_map(|(key, number)| Some((key.to_owned(), number?.into()))));
    let order =
        json!({ "member": member, "message": args.entry.message, "if_revision": args.entry.if_revision });
    let call = Call::new(Method::POST, &format!("/v1/pools/{}/members", encode(&args.pool)));
    let answer = run_async(args.target.client()?.send(&call.body(order.to_string())))?;
    report((answer.json()?, answer.json()?), args.output)
}

fn remove(args: &Remove) -> Outcome {
    let call = args.entry.in_query(Call::new(Method::DELETE, &args.which.path()));
    let answer = run_async(args.target.client()?.send(&call))?;
    report((answer.json()?, answer.json()?), args.output)
}

fn render(pools: &Pools) -> String {
    let number = |n: Option<u32>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let weight = |member: &Member| match (member.weight, member.configured_weight) {
        (Some(weight), Some(configured)) if weight != configured => {
            format!("{weight} (config: {configured})")
        }
        (weight, _) => number(weight),
    };
    let in_flight = |member: &Member| match member.in_flight_elsewhere {
        Some(elsewhere) => format!("{} + {elsewhere}", number(member.in_flight)),
        None => number(member.in_flight),
    };
    let mut rows = Vec::new();
    for pool in &pools.pools {
        for member in &pool.members {
            let probers: Vec<_> = member.probers.iter().map(render_prober).collect();
            rows.push(vec![
                pool.pool.clone(),
                member.name.clone(),
                member.address.clone(),
                state(pool.panic, member),
                weight(member),
                in_flight(member),
                probers.join(" "),
            ]);
        }
        for name in pool.names.iter().filter(|name| name.addresses == 0) {
            let cells = [&pool.pool, &name.member, "-", &without_address(name), "-", "-", ""];
            rows.push(cells.map(str::to_owned).to_vec());
        }
    }
    table(&["POOL", "MEMBER", "ADDRESS", "STATE", "WEIGHT", "IN FLIGHT", "PROBERS"], &rows)
}

fn state(pool_panics: bool, member: &Member) -> String {
    let trouble = member.trouble(pool_panics);
    match (member.drains(), trouble) {
        (true, Some(trouble)) => format!("draining, {trouble}"),
        (true, None) => "draining".to_owned(),
        (false, Some(trouble)) => trouble,
        (false, None) => "up".to_owned(),
    }
}

/// A member by DNS name that stands for nothing now.
fn without_address(name: &DnsName) -> String {
    let why = name.problem.as_deref().map_or_else(String::new, |why| format!(": {why}"));
    let drains = if matches!(name.drain.as_deref(), Some("new" | "all")) { "draining, " } else { "" };
    format!("{drains}no address{why}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_show_their_state_with_its_cause_and_who_saw_what() {
        let pools: Pools =
            serde_json::from_value(json!({"pools": [{"pool": "app", "panic": true, "members": [
            {"name": "a", "address": "192.0.2.1:80", "up": true, "ejected": true, "weight": 1, "in_flight": 3,
             "ejection": {"cause": "failures", "reason": "5 failures in a row", "left_ms": 28_001},
             "probers": [{"node": "n1", "up": true}, {"node": "n2", "up": null}]},
            {"name": "b", "up": true, "drain": "new", "weight": 0, "configured_weight": 4, "in_flight": 2, "in_flight_elsewhere": 5},
            {"name": "c", "up": false, "drain": "all", "reason": "connection refused"},
            {"name": "d", "up": false, "drain": "off"},
            {"name": "e", "up": true, "ejected": true, "drain": "new"},
            {"name": "h", "up": false, "ejected": true, "reason": "timeout"}],
            "names": [{"member": "f", "addresses": 0, "problem": "no such name", "drain": "all"}, {"member": "g", "addresses": 1}]}]}))
            .unwrap();
        let text = render(&pools);
        let lines: Vec<_> = text.lines().collect();
        for (line, parts) in [
            (1, &["ejected here: 5 failures in a row, 29 s left", "n1:up n2:?"][..]),
            (2, &[" draining ", "0 (config: 4)", "2 + 5"]),
            (3, &["draining, down by check: connection refused "]),
            (4, &["down by check, used all the same"]),
            (5, &["draining, ejected here "]),
            (6, &["down by check: timeout; ejected here "]),
            (7, &[" f ", " draining, no address: no such name "]),
        ] {
            assert!(parts.iter().all(|part| lines[line].contains(part)), "{line}: {text}");
        }
        assert_eq!(lines.len(), 8, "{text}");
    }

    #[test]
    fn an_order_about_a_dns_name_is_told_with_its_addresses() {
        let ordered = |addresses: &[&str]| MemberOrder {
            pool: "app".into(),
            member: "two".into(),
            drain: "all".into(),
            cut_at_ms: None,
            weight: 1,
            addresses: Some(addresses.iter().map(|&name| name.to_owned()).collect()),
            warnings: Vec::new(),
        };
        let text = told(&ordered(&["two/192.0.2.1:80", "two/192.0.2.2:80"]));
        assert!(
            text.starts_with("member two of app (two/192.0.2.1:80, two/192.0.2.2:80, and whatever else it will stand for) is draining"),
            "{text}"
        );
        assert!(told(&ordered(&[])).starts_with("member two of app, which has no address now, is draining"));
    }
}
