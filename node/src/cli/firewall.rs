//! Commands around firewalls.

use http::Method;
use serde_json::json;

use super::config::{Entry, report};
use super::output::{Outcome, Output, table};
use super::views::{Firewall, FirewallHits, Firewalls};
use super::{Target, run_async};
use crate::client::{Call, encode};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum FirewallCommand {
    /// The rules in force, and whom they have decided about on each node
    #[command(after_help = "Examples:\n  trestle firewall list\n  trestle firewall list web -o json")]
    List(List),
    /// Add a rule to the config: a new revision
    #[command(
        after_help = "Examples:\n  trestle firewall add web deny 198.51.100.0/24 @bad\n  trestle firewall add mail allow 192.0.2.0/24 --ports \
                      25,587 --at 1\n  trestle firewall add policy:edge reject 2001:db8::/32 -m 'scans'\n\nThe first rule that fits \
                      decides; a new one comes first, unless --at says otherwise. What is open already goes on, but for further \
                      requests of http: `trestle ban` cuts it."
    )]
    Add(Add),
    /// Take a rule out of the config: a new revision
    #[command(after_help = "Example:\n  trestle firewall remove web 0 --if-revision 7")]
    Remove(Remove),
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Of this place alone: a listener's name, route:NAME, rule:ROUTE/NAME or policy:NAME
    place: Option<String>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Add {
    /// Where: a listener's name, route:NAME, rule:ROUTE/NAME or policy:NAME
    place: String,
    /// What becomes of clients: `deny` closes, `reject` resets, requests get 403
    #[arg(value_parser = ["allow", "deny", "reject"])]
    action: String,
    /// Networks, or @SET; may be left out beside --ports: everybody
    #[arg(required_unless_present = "ports")]
    from: Vec<String>,
    /// Ports of ours that the client comes to, 25 or 8000-8999 [default: any]
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    ports: Vec<String>,
    /// Its place in the list; 0: before all others
    #[arg(long, value_name = "N", default_value_t = 0)]
    at: usize,
    #[command(flatten)]
    entry: Entry,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Remove {
    /// Where: a listener's name, route:NAME, rule:ROUTE/NAME or policy:NAME
    place: String,
    /// The rule's place in the list, as `firewall list` shows it
    index: usize,
    #[command(flatten)]
    entry: Entry,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(command: &FirewallCommand) -> Outcome {
    match command {
        FirewallCommand::List(args) => list(args),
        FirewallCommand::Add(args) => add(args),
        FirewallCommand::Remove(args) => remove(args),
    }
}

fn list(args: &List) -> Outcome {
    let mut call = Call::get("/v1/firewall");
    if let Some(place) = &args.place {
        call = call.query("place", place);
    }
    let answer = run_async(args.target.client()?.send(&call))?;
    if args.output.json() {
        return args.output.value(&answer.json::<serde_json::Value>()?);
    }
    let firewalls: Firewalls = answer.json()?;
    if !firewalls.silent.is_empty() {
        let silent = firewalls.silent.join(", ");
        args.output.note(&format!("warning: not counted: {silent} (not heard, or at another revision)"));
    }
    args.output.text(&render(&firewalls.firewalls))
}

fn add(args: &Add) -> Outcome {
    let mut rule = json!({ "action": args.action, "from": args.from, "ports": args.ports });
    if let Some(rule) = rule.as_object_mut() {
        rule.retain(|_, value| value.as_array().is_none_or(|list| !list.is_empty()));
    }
    let order = json!({
        "rule": rule, "at": args.at, "message": args.entry.message, "if_revision": args.entry.if_revision,
    });
    let call = Call::new(Method::POST, &format!("/v1/firewall/{}", encode(&args.place)));
    let answer = run_async(args.target.client()?.send(&call.body(order.to_string())))?;
    report((answer.json()?, answer.json()?), args.output)
}

fn remove(args: &Remove) -> Outcome {
    let call = Call::new(Method::DELETE, &format!("/v1/firewall/{}/{}", encode(&args.place), args.index));
    let answer = run_async(args.target.client()?.send(&args.entry.in_query(call)))?;
    report((answer.json()?, answer.json()?), args.output)
}

fn render(firewalls: &[Firewall]) -> String {
    let hits = |hits: &FirewallHits| {
        let nodes: Vec<_> = hits.nodes.iter().map(|(node, count)| format!("{node}:{count}")).collect();
        [hits.hits.to_string(), nodes.join(" ")]
    };
    let list = |items: &[String], none: &str| match items {
        [] => none.to_owned(),
        items => items.join(","),
    };
    let mut rows: Vec<Vec<String>> = Vec::new();
    for Firewall { place, of, rules, default } in firewalls {
        let place = match of {
            Some(policy) => format!("{place} (policy:{policy})"),
            None => place.clone(),
        };
        for rule in rules {
            let cells = [
                place.clone(),
                rule.index.to_string(),
                rule.action.clone(),
                list(&rule.from, "everybody"),
                list(&rule.ports, "any"),
            ];
            rows.push(cells.into_iter().chain(hits(&rule.hits)).collect());
        }
        let cells =
            [place, "default".to_owned(), default.action.clone(), "others".to_owned(), "any".to_owned()];
        rows.push(cells.into_iter().chain(hits(&default.hits)).collect());
    }
    table(&["PLACE", "RULE", "ACTION", "FROM", "PORTS", "HITS", "NODES"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_stand_in_their_order_with_what_each_node_has_counted() {
        let firewalls: Firewalls = serde_json::from_value(json!({ "firewalls": [
            { "place": "listener:web", "of": "edge", "rules": [
                { "index": 0, "action": "deny", "from": ["@bad", "192.0.2.0/24"], "ports": [], "hits": 3,
                  "nodes": { "n1": 1, "n2": 2 } },
                { "index": 1, "action": "reject", "ports": ["25"], "hits": 0, "nodes": {} }],
              "default": { "action": "allow", "hits": 7, "nodes": { "n1": 7 } } }]}))
        .unwrap();
        let text = render(&firewalls.firewalls);
        let lines: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            lines[1][1..],
            ["(policy:edge)", "0", "deny", "@bad,192.0.2.0/24", "any", "3", "n1:1", "n2:2"]
        );
        assert_eq!(lines[2][2..], ["1", "reject", "everybody", "25", "0"]);
        assert_eq!(lines[3][2..], ["default", "allow", "others", "any", "7", "n1:7"]);
    }
}
