//! The command line: what can be asked for, and how it ends.
//!
//! Exit codes: 0 done, 1 refused or failed, 2 wrong usage. Each command has an example in its help.

mod ban;
mod cache;
mod certificate;
mod cluster;
mod config;
mod firewall;
mod kernel;
mod keys;
mod member;
mod output;
mod route;
mod run;
mod views;

use std::ffi::OsString;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, FromArgMatches, Parser};

use crate::client::{Client, ClientError, Credentials, URL_DEFAULT};
use crate::{demo, key, sample};

pub(crate) use output::{Failure, Outcome, Output, complain};
pub(crate) use views::Status;

#[derive(Debug, Parser)]
#[command(
    name = "trestle",
    version,
    about = "A load balancer that is a cluster by design",
    max_term_width = 100
)]
#[command(
    after_help = "Examples:\n  trestle demo\n  trestle run --bootstrap --config web.yaml\n  trestle status\n\n\
                        Commands speak to the node at --admin (TRESTLE_ADMIN_URL), by default http://127.0.0.1:7480.\n\
                        Exit codes: 0 done, 1 refused or failed, 2 wrong usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run a node
    #[command(after_help = run::EXAMPLES)]
    Run(run::RunArgs),
    /// A whole cluster with sample backends on loopback, to try things out
    #[command(
        after_help = "Examples:\n  trestle demo\n  trestle demo --for 20s -o json\n\nCtrl-C ends all of it."
    )]
    Demo(demo::DemoArgs),
    /// Make the secret file of a new cluster
    #[command(after_help = "Example:\n  trestle keygen -o cluster.key")]
    Keygen(Keygen),
    /// The cluster's secret file, and how it gets a new key
    #[command(subcommand, after_help = "Example:\n  trestle key rotate --key-file cluster.key")]
    Key(keys::KeyCommand),
    /// Check config documents without a cluster
    #[command(after_help = "Example:\n  trestle validate web.yaml")]
    Validate(config::Validate),
    /// Put a config document in force
    #[command(
        after_help = "Examples:\n  trestle apply -f web.yaml --dry-run\n  trestle apply -f web.yaml --if-revision 7 -m 'canary to 5 %'"
    )]
    Apply(config::Apply),
    /// Print the config document
    #[command(after_help = "Example:\n  trestle get --revision 7 > web.yaml")]
    Get(config::Get),
    /// What changed between two revisions, or what a document would change
    #[command(after_help = "Examples:\n  trestle diff\n  trestle diff 5 7\n  trestle diff -f web.yaml")]
    Diff(config::DiffArgs),
    /// The last revisions: who, when, why
    #[command(after_help = "Example:\n  trestle history")]
    History(config::HistoryArgs),
    /// Put an earlier document in force again, as a new revision
    #[command(after_help = "Example:\n  trestle rollback 6 -m 'v2 was slow'")]
    Rollback(config::Rollback),
    /// About the config language
    #[command(subcommand, after_help = "Example:\n  trestle config schema > trestle.schema.json")]
    Config(ConfigCommand),
    /// A node and the cluster as it sees it
    #[command(after_help = "Examples:\n  trestle status\n  trestle status --wait --timeout 10s")]
    Status(cluster::StatusArgs),
    /// The cluster's nodes
    #[command(subcommand, after_help = "Example:\n  trestle node list")]
    Node(cluster::NodeCommand),
    /// The addresses that one node at a time holds
    #[command(subcommand, after_help = "Example:\n  trestle vip list")]
    Vip(cluster::VipCommand),
    /// The certificates
    #[command(subcommand, after_help = "Example:\n  trestle certificate list")]
    Certificate(certificate::CertificateCommand),
    /// Where requests go
    #[command(subcommand, after_help = "Example:\n  trestle route explain GET http://shop.example.com/api")]
    Route(route::RouteCommand),
    /// The pools' members
    #[command(subcommand, after_help = "Examples:\n  trestle member list\n  trestle member drain app a1")]
    Member(member::MemberCommand),
    /// The clients with most open connections and requests a second over the cluster, and their limits
    #[command(after_help = "Example:\n  trestle clients --most 5")]
    Clients(cluster::ClientsArgs),
    /// Shut a client out for a time, on all nodes
    #[command(after_help = ban::EXAMPLES)]
    Ban(ban::BanArgs),
    /// Rules about who is let in
    #[command(
        subcommand,
        after_help = "Examples:\n  trestle firewall list\n  trestle firewall add web deny 198.51.100.0/24"
    )]
    Firewall(firewall::FirewallCommand),
    /// What is cached
    #[command(subcommand, after_help = "Examples:\n  trestle cache stats\n  trestle cache purge --tag news")]
    Cache(cache::CacheCommand),
    /// What goes by the kernel
    #[command(subcommand, after_help = "Example:\n  trestle kernel show")]
    Kernel(kernel::KernelCommand),
    /// Completions for a shell
    #[command(after_help = "Example:\n  trestle completions bash > /etc/bash_completion.d/trestle")]
    Completions(Completions),
    /// Holds VIPs on behalf of a node, which starts it
    #[command(hide = true, after_help = "Example:\n  trestle vip-guard")]
    VipGuard,
    /// A backend to try things with
    #[command(
        hide = true,
        after_help = "Example:\n  trestle sample-backend --name app-1 --listen 127.0.0.1:9001"
    )]
    SampleBackend(sample::SampleArgs),
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Print the JSON Schema of the config language
    #[command(after_help = "Example:\n  trestle config schema > trestle.schema.json")]
    Schema(Schema),
}

#[derive(Debug, clap::Args)]
struct Schema {
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct Keygen {
    /// Where to; a file that exists is never overwritten [default: standard output]
    #[arg(short, long = "out", value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print nothing but errors
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, clap::Args)]
struct Completions {
    /// Which shell
    shell: clap_complete::Shell,
}

/// Which node, and as whom.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The node's admin API; several, separated by commas, are tried in turn
    #[arg(long, value_name = "URL", env = "TRESTLE_ADMIN_URL", default_value = URL_DEFAULT)]
    admin: String,
    /// The cluster's key: shows who we are, and that the node is of this cluster
    #[arg(long, value_name = "FILE", env = "TRESTLE_KEY_FILE")]
    key_file: Option<String>,
    /// Without the key: the CERTIFICATE part of it, to know the cluster by
    #[arg(long, value_name = "FILE", env = "TRESTLE_CA_FILE")]
    ca_file: Option<String>,
    /// Without the key: the admin token
    #[arg(long, value_name = "FILE", env = "TRESTLE_TOKEN_FILE")]
    token_file: Option<String>,
}

impl Target {
    pub(crate) fn key_file(&self) -> Option<&Path> {
        given(self.key_file.as_deref())
    }

    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        // An empty variable is a container's way to leave one out.
        let urls = if self.admin.is_empty() { URL_DEFAULT } else { &self.admin };
        Client::new(
            urls,
            Credentials {
                key_file: given(self.key_file.as_deref()),
                ca_file: given(self.ca_file.as_deref()),
                token_file: given(self.token_file.as_deref()),
            },
        )
    }
}

fn given(path: Option<&str>) -> Option<&Path> {
    path.filter(|path| !path.is_empty()).map(Path::new)
}

/// Parses the arguments, does what they say, and yields the exit code.
pub fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match arguments.get(1).and_then(|command| command.to_str()) {
        // Without a parser, which it does not need: it should be small.
        Some("vip-guard") if arguments.len() == 2 => return trestle_vip_guard::main(),
        // A container's first process: the guard, which outlives the node and lets its VIPs go.
        Some("run")
            if std::process::id() == 1 && std::env::var_os(trestle_vip_guard::spawn::FD).is_none() =>
        {
            let mut node = arguments;
            node[0] = std::env::current_exe().map_or_else(|_| node[0].clone(), Into::into);
            return trestle_vip_guard::run_as_init(&node);
        }
        _ => {}
    }
    let matches = Cli::command()
        .try_get_matches_from(&arguments)
        .unwrap_or_else(|error| with_whole_usage(error, &arguments).exit());
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    match dispatch(&cli.command) {
        Ok(()) | Err(Failure::ClosedPipe) => ExitCode::SUCCESS,
        Err(Failure::Told) => ExitCode::from(1),
        Err(Failure::Usage(why)) => {
            complain(&why);
            ExitCode::from(2)
        }
        Err(Failure::Failed(e)) => {
            if wants_json(&matches) {
                // For programs; a closed pipe means that none reads it.
                let _ = Output::print_json(&error_json(&e));
            }
            complain(&explain(&e));
            ExitCode::from(1)
        }
    }
}

/// The parser would show as usage what was given, and what the environment has as if it were required.
fn with_whole_usage(mut error: clap::Error, arguments: &[OsString]) -> clap::Error {
    if error.get(ContextKind::Usage).is_some() {
        let mut root = Cli::command();
        root.build();
        let mut command = &root;
        for word in arguments.iter().skip(1) {
            let Some(inner) = command.find_subcommand(word) else { break };
            command = inner;
        }
        error.insert(ContextKind::Usage, ContextValue::StyledStr(command.clone().render_usage()));
    }
    error
}

fn dispatch(command: &Command) -> Outcome {
    match command {
        Command::Run(args) => run::run(args),
        Command::Demo(args) => demo::demo(args),
        Command::Keygen(args) => keygen(args),
        Command::Key(command) => keys::run(command),
        Command::Validate(args) => config::validate(args),
        Command::Apply(args) => config::apply(args),
        Command::Get(args) => config::get(args),
        Command::Diff(args) => config::diff(args),
        Command::History(args) => config::history(args),
        Command::Rollback(args) => config::rollback(args),
        Command::Config(ConfigCommand::Schema(args)) => config::schema(args.output),
        Command::Status(args) => cluster::status(args),
        Command::Node(command) => cluster::node(command),
        Command::Vip(command) => cluster::vip(command),
        Command::Route(command) => route::route(command),
        Command::Certificate(command) => certificate::run(command),
        Command::Member(command) => member::run(command),
        Command::Clients(args) => cluster::clients(args),
        Command::Ban(args) => ban::run(args),
        Command::Cache(command) => cache::run(command),
        Command::Firewall(command) => firewall::run(command),
        Command::Kernel(command) => kernel::run(command),
        Command::Completions(args) => completions(args),
        Command::VipGuard => Err(Failure::Usage("`trestle vip-guard` takes no options".to_owned())),
        Command::SampleBackend(args) => sample::run(args),
    }
}

fn wants_json(matches: &clap::ArgMatches) -> bool {
    let here = matches.try_get_one::<output::Format>("format").ok().flatten();
    here == Some(&output::Format::Json) || matches.subcommand().is_some_and(|(_, inner)| wants_json(inner))
}

/// As the admin API tells errors.
fn error_json(error: &anyhow::Error) -> serde_json::Value {
    let (code, problems) = match error.downcast_ref::<ClientError>() {
        Some(ClientError::Refused(refused)) => (refused.code.as_str(), refused.problems.as_slice()),
        Some(ClientError::Unreachable(_)) => ("unreachable", &[][..]),
        Some(ClientError::Unknown { .. }) => ("outcome_unknown", &[][..]),
        Some(ClientError::Garbled(..)) | None => ("failed", &[][..]),
    };
    serde_json::json!({"error": {"code": code, "message": format!("{error:#}"), "problems": problems}})
}

/// An error with its causes; of a refused document, every problem first.
fn explain(error: &anyhow::Error) -> String {
    let mut out = String::new();
    if let Some(ClientError::Refused(refused)) = error.downcast_ref::<ClientError>() {
        refused.problems.iter().for_each(|problem| out += &format!("{problem}\n"));
    }
    out + &format!("trestle: {error:#}")
}

/// Runs what a command waits for, on this thread.
pub(crate) fn run_async<T, E: Into<Failure>>(work: impl Future<Output = Result<T, E>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?
        .block_on(work)
        .map_err(Into::into)
}

fn keygen(args: &Keygen) -> Outcome {
    let all = Output { format: output::Format::Text, quiet: args.quiet };
    match &args.out {
        Some(path) => {
            let made = key::create(path)?;
            all.note(&format!(
                "made {} (key {}); give it to every node as --key-file, and to nobody else",
                path.display(),
                made.id()
            ));
            Ok(())
        }
        None => {
            let key = trestle_cluster::identity::ClusterKey::generate()?;
            Output { quiet: false, ..all }.text(&key.to_pem())
        }
    }
}

fn completions(args: &Completions) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "trestle", &mut script);
    let all = Output { format: output::Format::Text, quiet: false };
    all.text(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn leaves(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        for sub in command.get_subcommands() {
            let path = format!("{path} {}", sub.get_name());
            found.push((path.clone(), sub.clone()));
            leaves(sub, &path, found);
        }
    }

    fn all() -> Vec<(String, clap::Command)> {
        let mut found = Vec::new();
        leaves(&Cli::command(), "trestle", &mut found);
        found
    }

    #[test]
    fn every_command_shows_an_example_that_parses() {
        for (path, command) in all() {
            let help = command.get_after_help().map(|help| help.to_string()).unwrap_or_default();
            let example = help.lines().find(|line| line.trim_start().starts_with("trestle "));
            let example = example.unwrap_or_else(|| panic!("{path} has no example"));
            let words: Vec<String> = example
                .split(" > ")
                .next()
                .unwrap()
                .split_whitespace()
                .map(|word| word.replace('\'', ""))
                .collect();
            let leaf = command.get_subcommands().next().is_none();
            if leaf && !example.contains('\'') {
                assert!(example.trim_start().starts_with(&path), "{path}: {example}");
                Cli::try_parse_from(&words).unwrap_or_else(|e| panic!("{example}: {e}"));
            }
        }
    }

    #[test]
    fn every_command_with_a_result_takes_json_and_quiet() {
        for (path, command) in all() {
            let without = [
                "trestle run",
                "trestle keygen",
                "trestle completions",
                "trestle vip-guard",
                "trestle sample-backend",
            ];
            if command.has_subcommands() || without.contains(&path.as_str()) {
                continue;
            }
            for option in ["output", "quiet"] {
                assert!(
                    command.get_arguments().any(|arg| arg.get_long() == Some(option)),
                    "{path} lacks --{option}"
                );
            }
        }
    }

    #[test]
    fn wrong_usage_is_told_from_failure() {
        for wrong in [&["trestle", "aply"][..], &["trestle", "rollback"], &["trestle", "status", "--wat"]] {
            let error = Cli::try_parse_from(wrong).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong:?}");
        }
        assert_eq!(Cli::try_parse_from(["trestle", "--help"]).unwrap_err().exit_code(), 0);
    }

    #[test]
    fn problems_of_a_refused_document_are_all_printed() {
        let problem = |line| crate::client::Problem {
            file: "web.yaml".into(),
            line,
            column: 3,
            path: "pools.app".into(),
            message: "is bad".into(),
            help: Some("mend it".into()),
        };
        let refused = crate::client::Refused {
            status: http::StatusCode::BAD_REQUEST,
            code: "invalid_config".into(),
            message: "the document has 2 problems; nothing was changed".into(),
            problems: vec![problem(1), problem(7)],
        };
        assert_eq!(
            explain(&ClientError::Refused(refused).into()),
            "web.yaml:1:3: pools.app: is bad (mend it)\nweb.yaml:7:3: pools.app: is bad (mend it)\n\
             trestle: the document has 2 problems; nothing was changed"
        );
    }
}
