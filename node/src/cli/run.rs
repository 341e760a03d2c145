//! `trestle run`: its flags are those of [`crate::settings::KEYS`].

use std::collections::BTreeMap;
use std::path::Path;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::output::{Failure, Outcome};
use crate::run;
use crate::settings::{Host, KEYS, Layers, NODE_FILE_VARIABLE, NodeFile, resolve};
use crate::telemetry::Telemetry;

pub(super) const EXAMPLES: &str = "\
Examples:
  trestle run --bootstrap --config web.yaml
  trestle run --name node-2 --key-file cluster.key --cluster 192.0.2.2:7400 --join 192.0.2.1:7400
  trestle run --node-file /etc/trestle/node.yaml

Every option may also stand in the node file, under its name, or in the environment. A flag beats a
variable, a variable beats the file. A node that starts again with its data folder needs neither
--bootstrap nor --join.

SIGTERM and SIGINT drain, then end; a second one ends at once. SIGHUP opens the
access log's file anew and reads `log` from the node file. SIGUSR2 puts the program
on disk into this one's place; VIPs and what the kernel carries stay
(docs/operating.md).";

/// What was given on the command line, unchecked.
#[derive(Debug, Default)]
pub(super) struct RunArgs {
    flags: BTreeMap<&'static str, String>,
    node_file: Option<String>,
    ends_with: Option<u32>,
}

impl clap::Args for RunArgs {
    fn augment_args(command: Command) -> Command {
        let command = command.arg(
            Arg::new("node-file")
                .long("node-file")
                .value_name("FILE")
                .help(format!("Options of this node as YAML [env: {NODE_FILE_VARIABLE}]")),
        );
        let command = KEYS.iter().fold(command, |command, key| {
            let arg =
                Arg::new(key.name).long(key.name).help(format!("{} [env: {}]", key.help, key.variable()));
            command.arg(if key.value.is_empty() {
                arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("BOOL")
            } else {
                arg.value_name(key.value)
            })
        });
        command.arg(
            Arg::new("ends-with")
                .long("ends-with")
                .value_name("PID")
                .hide(true)
                .value_parser(value_parser!(u32))
                .help("End when this process does"),
        )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for RunArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let text = |name: &str| matches.get_one::<String>(name).cloned();
        Ok(RunArgs {
            flags: KEYS.iter().filter_map(|key| Some((key.name, text(key.name)?))).collect(),
            node_file: text("node-file"),
            ends_with: matches.get_one("ends-with").copied(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

pub(super) fn run(args: &RunArgs) -> Outcome {
    let variable = |name: &str| std::env::var(name).ok();
    let node_file =
        args.node_file.clone().or_else(|| variable(NODE_FILE_VARIABLE).filter(|file| !file.is_empty()));
    let file = node_file.map(|path| NodeFile::read(Path::new(&path))).transpose().map_err(usage)?;
    let layers = Layers { flags: args.flags.clone(), variable: &variable, file };
    let settings = resolve(layers, &Host::this()).map_err(usage)?;
    let telemetry = Telemetry::start(settings.log_format, settings.log.as_deref());
    Ok(run::run(settings, &telemetry, args.ends_with)?)
}

fn usage(mistakes: crate::settings::Mistakes) -> Failure {
    Failure::Usage(format!("{mistakes}\nFor more information, try 'trestle run --help'."))
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    fn parse(args: &[&str]) -> RunArgs {
        let matches = RunArgs::augment_args(Command::new("run")).try_get_matches_from(args).unwrap();
        RunArgs::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn every_option_of_a_node_is_a_flag() {
        for key in KEYS {
            let flag = format!("--{}=x", key.name);
            assert_eq!(parse(&["run", &flag]).flags.get(key.name).map(String::as_str), Some("x"));
        }
    }

    #[test]
    fn a_switch_needs_no_value_and_takes_one() {
        assert_eq!(parse(&["run", "--bootstrap", "--name", "a"]).flags["bootstrap"], "true");
        assert_eq!(parse(&["run", "--bootstrap=false"]).flags["bootstrap"], "false");
        assert!(!parse(&["run"]).flags.contains_key("bootstrap"));
    }

    #[test]
    fn help_names_the_variable_of_every_option() {
        let help = RunArgs::augment_args(Command::new("run")).render_long_help().to_string();
        for key in KEYS {
            assert!(help.contains(&key.variable()), "{} is missing", key.variable());
        }
    }
}
