//! Commands around bans.

use std::time::Duration;

use http::Method;
use serde_json::json;
use trestle_config::model::BAN_MAX;

use super::output::{Outcome, Output, table};
use super::views::{Ban, Bans};
use super::{Target, run_async};
use crate::client::{Call, encode};

pub(crate) const EXAMPLES: &str = "Examples:\n  trestle ban 198.51.100.7 --for 10m --reason 'tries passwords'\n  trestle ban 2001:db8:7::/48 --for 24h\n  \
    trestle ban list\n  trestle ban remove 198.51.100.7\n\nIt holds on all nodes and listeners within a second, whatever is applied, \
    until it is over. What is open of the client is cut.";

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct BanArgs {
    #[command(subcommand)]
    command: Option<BanCommand>,
    #[command(flatten)]
    add: Add,
}

#[derive(Debug, clap::Subcommand)]
enum BanCommand {
    /// Who is banned, until when and why
    #[command(after_help = "Example:\n  trestle ban list")]
    List(List),
    /// End a ban
    #[command(after_help = "Example:\n  trestle ban remove 198.51.100.7")]
    Remove(Remove),
}

#[derive(Debug, clap::Args)]
struct Add {
    /// Address or network
    #[arg(value_name = "ADDRESS", required = true)]
    network: Option<String>,
    /// For how long, in ms, s, m or h, at most 720h
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = length)]
    length: String,
    /// Why, for whoever lists bans
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// Although it hits a node, a VIP, loopback, a proxy that is trusted, or a large part of the Internet
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct List {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct Remove {
    /// Address or network, as it was banned
    #[arg(value_name = "ADDRESS")]
    network: String,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

/// Checked here, so that a slip is wrong usage; the node reads it again.
fn length(text: &str) -> Result<String, String> {
    let (hours, days) = (BAN_MAX.as_secs() / 3_600, BAN_MAX.as_secs() / 86_400);
    crate::durations::parse(text)
        .map(|_| text.to_owned())
        .map_err(|why| format!("{why}; a ban lasts at most {hours}h ({days} days)"))
}

pub(crate) fn run(args: &BanArgs) -> Outcome {
    match &args.command {
        None => add(&args.add),
        Some(BanCommand::List(args)) => list(args),
        Some(BanCommand::Remove(args)) => remove(args),
    }
}

fn add(args: &Add) -> Outcome {
    let order = json!({
        "network": args.network, "for": args.length, "reason": args.reason, "force": args.force,
    });
    let call = Call::new(Method::POST, "/v1/bans").body(order.to_string());
    let answer = run_async(args.target.client()?.send(&call))?;
    if args.output.json() {
        return args.output.value(&answer.json::<serde_json::Value>()?);
    }
    let ban: Ban = answer.json()?;
    args.output.text(&format!("{} is banned until {}", ban.network, ban.until))
}

fn list(args: &List) -> Outcome {
    let answer = run_async(args.target.client()?.send(&Call::get("/v1/bans")))?;
    if args.output.json() {
        return args.output.value(&answer.json::<serde_json::Value>()?);
    }
    args.output.text(&render(&answer.json()?))
}

fn render(bans: &Bans) -> String {
    let row = |ban: &Ban| {
        let by = if ban.automatic { format!("policy on {}", ban.by) } else { ban.by.clone() };
        vec![ban.network.clone(), left(ban.left_ms), ban.until.clone(), by, ban.reason.clone()]
    };
    let rows: Vec<_> = bans.bans.iter().map(row).collect();
    table(&["CLIENT", "LEFT", "UNTIL", "BY", "REASON"], &rows)
}

/// To the second, or to the minute where it is long.
fn left(ms: u64) -> String {
    let seconds = Duration::from_millis(ms).as_secs_f64().ceil() as u64;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds.div_ceil(60)),
        _ => format!("{}h{}m", seconds / 3_600, seconds % 3_600 / 60),
    }
}

fn remove(args: &Remove) -> Outcome {
    let call = Call::new(Method::DELETE, &format!("/v1/bans/{}", encode(&args.network)));
    let answer = run_async(args.target.client()?.send(&call))?;
    if args.output.json() {
        return args.output.value(&answer.json::<serde_json::Value>()?);
    }
    args.output.text(&format!("{} is not banned any more", args.network))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bans_show_how_long_they_last_and_who_laid_them_on() {
        let bans: Bans = serde_json::from_value(json!({ "bans": [
            { "network": "198.51.100.7", "left_ms": 61_001, "until": "2026-11-28T10:00:00.000Z", "by": "alice",
              "reason": "tries passwords" },
            { "network": "2001:db8::/64", "left_ms": 600_000, "by": "n2", "automatic": true }]}))
        .unwrap();
        let text = render(&bans);
        let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!((lines[1][1], &lines[1][3..]), ("62s", &["alice", "tries", "passwords"][..]), "{text}");
        assert_eq!((lines[2][1], &lines[2][2..]), ("10m", &["policy", "on", "n2"][..]), "{text}");
        assert_eq!([left(1), left(119_999), left(86_400_000)], ["1s", "2m", "24h0m"]);
    }
}
