//! Commands around the cache.

use http::Method;
use serde_json::json;
use trestle_cluster::PurgeOrder;

use super::output::{Failure, Outcome, Output, table};
use super::views::{CacheStats, Purged};
use super::{Target, run_async};
use crate::client::Call;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum CacheCommand {
    /// What the asked node's cache has, and what became of requests
    #[command(after_help = "Example:\n  trestle cache stats --admin http://192.0.2.2:7480")]
    Stats(Stats),
    /// Throw cached responses away, on all nodes
    #[command(after_help = "Examples:\n  trestle cache purge https://shop.example.com/cart.js\n  \
        trestle cache purge --prefix https://shop.example.com/img/\n  trestle cache purge --tag product-17 --tag news\n  \
        trestle cache purge --all\n\nIt returns once no node serves any of it. A node that is away serves nothing from \
        its cache, but what a member says is still good, until it has heard of it.\n\nHow much was kept is not counted: it \
        stays where it is until it is next asked for, or others need its room, and is held against the purge then. So a URL \
        under which nothing was kept is purged as any other.")]
    Purge(Purge),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Stats {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true).args(["urls", "prefixes", "tags", "all"]))]
pub(crate) struct Purge {
    /// With scheme and host, and of the query what is in the key, in the order in which clients send it
    #[arg(value_name = "URL")]
    urls: Vec<String>,
    /// All URLs that begin so
    #[arg(long = "prefix", value_name = "URL")]
    prefixes: Vec<String>,
    /// All that members have answered with this `Cache-Tag` or `Surrogate-Key`
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Everything
    #[arg(long, conflicts_with_all = ["urls", "prefixes", "tags"])]
    all: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(command: &CacheCommand) -> Outcome {
    match command {
        CacheCommand::Stats(args) => stats(args),
        CacheCommand::Purge(args) => purge(args),
    }
}

fn stats(args: &Stats) -> Outcome {
    let answer = run_async(args.target.client()?.send(&Call::get("/v1/cache")))?;
    if args.output.json() {
        return args.output.value(&answer.json::<serde_json::Value>()?);
    }
    args.output.text(&render(&answer.json()?))
}

fn render(stats: &CacheStats) -> String {
    let asked = stats.hits + stats.misses + stats.coalesced + stats.revalidated + stats.stale;
    let share = |count: u64| match asked {
        0 => String::new(),
        asked => format!("{:.1} %", 100.0 * count as f64 / asked as f64),
    };
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let row = |what: &str, count: u64| vec![what.to_owned(), count.to_string(), share(count)];
    let plain = |what: &str, value: String| vec![what.to_owned(), value, String::new()];
    let mut rows = vec![
        plain("entries", stats.entries.to_string()),
        plain("memory", format!("{} of {}", mib(stats.bytes), mib(stats.bytes_max))),
        row("hits", stats.hits),
        row("coalesced", stats.coalesced),
        row("revalidated", stats.revalidated),
        row("stale", stats.stale),
        row("misses", stats.misses),
        plain("passed", stats.passed.to_string()),
        plain("evicted", stats.evicted.to_string()),
        plain("last purge", stats.purged.to_string()),
    ];
    if let Some(disk) = &stats.disk {
        let of = |share: u64, all: u64| format!("{} of {}", mib(share), mib(all));
        rows.extend([
            plain("on disk", disk.objects.to_string()),
            plain("disk", of(disk.bytes, disk.bytes_max)),
            plain("served from disk", disk.served.to_string()),
            plain("written to disk", disk.written.to_string()),
            plain("evicted from disk", disk.evicted.to_string()),
            plain("not kept on disk", disk.not_kept.to_string()),
            plain("not read from disk", disk.not_read.to_string()),
            plain("corrupt", disk.corrupt.to_string()),
        ]);
    }
    let mut text = table(&["CACHE", "", ""], &rows);
    if let Some(disk) = &stats.disk {
        if !disk.indexed {
            text += "disk: what lies there is not known yet; until then nothing more is written\n";
        }
        if let Some(problem) = &disk.problem {
            text += &format!("disk: nothing is written for now: {problem}\n");
        }
    }
    if !stats.trusted {
        text += "nothing is served from it unasked: the node has no seat, or has not heard of all purges\n";
    }
    text
}

/// What is wrong with it is wrong usage; the node looks at it again.
fn check(args: &Purge) -> Result<(), Failure> {
    let Purge { urls, prefixes, tags, all, .. } = args;
    let (urls, prefixes, tags) = (urls.clone(), prefixes.clone(), tags.clone());
    let order = PurgeOrder { urls, prefixes, tags, all: *all, author: String::new() };
    order.check().map_err(|why| {
        Failure::Usage(format!("trestle: {why}\nFor more information, try 'trestle cache purge --help'."))
    })
}

fn purge(args: &Purge) -> Outcome {
    check(args)?;
    let order = json!({ "urls": args.urls, "prefixes": args.prefixes, "tags": args.tags, "all": args.all });
    let call = Call::new(Method::POST, "/v1/cache/purge").body(order.to_string());
    let answer = run_async(args.target.client()?.send(&call))?;
    if args.output.json() {
        return args.output.value(&answer.json::<serde_json::Value>()?);
    }
    args.output.text(&told(&answer.json()?))
}

fn told(purged: &Purged) -> String {
    let targets = purged.targets.join(", ");
    let mut text = format!("purged on {}: {targets}", purged.nodes.join(", "));
    if !purged.silent.is_empty() {
        text += &format!(
            "\nnot heard of: {}; without a seat a node serves nothing from its cache unasked until it has heard of it",
            purged.silent.join(", ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::views::CacheDisk;
    use super::*;

    #[test]
    fn shares_are_of_what_was_looked_up() {
        let stats = CacheStats { hits: 3, misses: 1, passed: 7, trusted: true, ..CacheStats::default() };
        let text = render(&stats);
        assert!(text.lines().any(|line| line.split_whitespace().eq(["hits", "3", "75.0", "%"])), "{text}");
        assert!(!text.contains("seat"), "{text}");
        let problem = Some("No space left on device".to_owned());
        let disk = Some(CacheDisk { objects: 7, problem, indexed: true, ..CacheDisk::default() });
        let text = render(&CacheStats { trusted: false, disk, ..stats });
        assert!(text.contains("no seat") && text.contains("for now: No space left"), "{text}");
        assert!(text.lines().any(|line| line.split_whitespace().eq(["on", "disk", "7"])), "{text}");
    }

    #[test]
    fn a_node_that_has_not_heard_is_named() {
        let purged =
            Purged { nodes: vec!["n1".into()], silent: vec!["n3".into()], targets: vec!["tag a".into()] };
        let text = told(&purged);
        assert!(text.starts_with("purged on n1: tag a\nnot heard of: n3;"), "{text}");
    }
}
