//! `trestle route explain`: which rule takes a request, and why the others do not.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use http::Method;
use trestle_dataplane::explain::{Asked, Explanation, explain as think};

use super::output::Output;
use super::{Outcome, Target, config, run_async};
use crate::client::Call;

/// Rules shown beside the winner.
const SHOWN: usize = 20;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum RouteCommand {
    /// Which rule takes a request, and why the others do not
    #[command(
        after_help = "Examples:\n  trestle route explain GET http://shop.example.com/api -H 'x-tenant: acme'\n  trestle route explain POST https://shop.example.com/ -f web.yaml\n\n\
                      A node answers by the revision that it serves. With a file all routes are equally old."
    )]
    Explain(Explain),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    method: String,
    /// http://HOST[:PORT]/PATH[?QUERY], or https://
    url: String,
    /// A header of the request, `name: value`; may be given again. `host: NAME` is the host that is asked for
    #[arg(short = 'H', long = "header", value_name = "LINE")]
    headers: Vec<String>,
    /// The client's address
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    client: IpAddr,
    /// The listener that the request comes to; else those of its scheme at the URL's port, else all of its scheme
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// Ask this document rather than a node; - is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn route(command: &RouteCommand) -> Outcome {
    let RouteCommand::Explain(args) = command;
    let asked = Asked {
        method: args.method.clone(),
        url: args.url.clone(),
        headers: args.headers.clone(),
        client: Some(args.client),
        listener: args.listener.clone(),
    };
    let explained = match &args.file {
        Some(file) => {
            let (document, contents) = config::routed(file)?;
            let question = asked.question().map_err(anyhow::Error::from)?;
            args.output.note("note: by a file all routes are equally old; a node knows which came first");
            think(document.config(), &contents, &BTreeMap::new(), &question).map_err(anyhow::Error::from)?
        }
        None => {
            let body = serde_json::to_vec(&asked)?;
            let call = Call::new(Method::POST, "/v1/routes/explain").body(body);
            run_async(args.target.client()?.send(&call))?.json::<Explanation>()?
        }
    };
    if args.output.json() {
        return args.output.value(&serde_json::to_value(&explained)?);
    }
    args.output.text(&render(&explained))
}

fn render(explained: &Explanation) -> String {
    // Writing to a String can't fail.
    let mut out =
        format!("{} {}://{}{}\n", explained.method, explained.scheme, explained.host, explained.path);
    for at in &explained.listeners {
        let _ = match &at.winner {
            Some(winner) => {
                writeln!(out, "at {}: {}/{} takes it; it {}", at.listener, winner.route, winner.rule, at.does)
            }
            None => writeln!(out, "at {}: it {}", at.listener, at.does),
        };
        let (elsewhere, near): (Vec<_>, Vec<_>) = at.others.iter().partition(|other| other.elsewhere);
        for other in near.iter().take(SHOWN) {
            let name = format!("{}/{}", other.name.route, other.name.rule);
            let fits = if other.fits { "fits, but " } else { "" };
            let _ = writeln!(out, "  not {name}: {fits}{}", other.why);
        }
        if near.len() > SHOWN {
            let _ = writeln!(out, "  and {} more (-o json has all)", near.len() - SHOWN);
        }
        let _ = match elsewhere.len() {
            0 => Ok(()),
            1 => writeln!(out, "  and 1 rule of other hosts (-o json has it)"),
            n => writeln!(out, "  and {n} rules of other hosts (-o json has them)"),
        };
    }
    out.truncate(out.trim_end().len());
    out
}

#[cfg(test)]
mod tests {
    use trestle_dataplane::explain::{AtListener, Other, RuleName};

    use super::*;

    #[test]
    fn near_misses_come_first_and_other_hosts_are_one_line() {
        let other = |rule: &str, fits, elsewhere, why: &str| Other {
            name: RuleName { route: "r".into(), rule: rule.into() },
            fits,
            elsewhere,
            why: why.into(),
        };
        let mut others = vec![
            other("a", true, false, "r/w names a method"),
            other("b", false, false, "the path is not /b"),
        ];
        others.extend((0..40).map(|n| other(&n.to_string(), false, true, "the host is not x")));
        let at = AtListener {
            listener: "web".into(),
            winner: Some(RuleName { route: "r".into(), rule: "w".into() }),
            does: "goes to app".into(),
            others,
        };
        let explained = Explanation {
            method: "GET".into(),
            scheme: "https".into(),
            host: "y".into(),
            path: "/p".into(),
            listeners: vec![at],
        };
        assert_eq!(
            render(&explained),
            "GET https://y/p\nat web: r/w takes it; it goes to app\n  not r/a: fits, but r/w names a method\n  \
             not r/b: the path is not /b\n  and 40 rules of other hosts (-o json has them)"
        );
    }
}
