//! Commands around the config document.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use http::Method;
use serde_json::json;
use trestle_cluster::{Draft, Files, Offline, with_networks};
use trestle_config::{Contents, Document, Problem, Source};

use super::output::{Failure, Outcome, Output, Paint, complain, table};
use super::views::{Change, Diff, History};
use super::{Target, run_async};
use crate::client::{Call, Client};
use crate::documents::{self, PARCEL, Parcel};

/// Standard input, as an argument.
const STDIN: &str = "-";

#[derive(Debug, clap::Args)]
pub(crate) struct Validate {
    /// Documents to check, with the files that they name; `-` reads standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Apply {
    /// The document, YAML or JSON; `-` reads standard input. Files that it names are read here, relative to it
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Check it and print what would change
    #[arg(long)]
    dry_run: bool,
    /// Refuse unless this revision is in force
    #[arg(long, value_name = "N")]
    if_revision: Option<u64>,
    /// Why, for the history
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    message: String,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// Default: the one in force
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DiffArgs {
    /// From this revision [default: the one before B]
    #[arg(value_name = "A", conflicts_with = "file")]
    from: Option<u64>,
    /// To this revision [default: the one in force]
    #[arg(value_name = "B", conflicts_with = "file")]
    to: Option<u64>,
    /// What applying this document would change; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct HistoryArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

/// What a change is made on, and what the history says of it.
#[derive(Debug, clap::Args)]
pub(crate) struct Entry {
    /// Refuse unless this revision is in force
    #[arg(long, value_name = "N")]
    pub(crate) if_revision: Option<u64>,
    /// Why, for the history
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
}

impl Entry {
    /// Of a call without a body.
    pub(crate) fn in_query(&self, mut call: Call) -> Call {
        if let Some(message) = &self.message {
            call = call.query("message", message);
        }
        if let Some(revision) = self.if_revision {
            call = call.query("if_revision", &revision.to_string());
        }
        call
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Rollback {
    /// The revision whose document is to be in force again
    #[arg(value_name = "N")]
    to: u64,
    #[command(flatten)]
    entry: Entry,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn validate(args: &Validate) -> Outcome {
    let mut results = Vec::new();
    let mut valid = true;
    for file in &args.files {
        let (name, text) = read(file)?;
        let checked = check(&name, &text, file);
        valid &= checked.is_ok();
        if args.output.json() {
            results.push(verdict(&name, &checked));
            continue;
        }
        match checked {
            Ok(draft) => {
                let warnings = draft.document.warnings();
                warnings.iter().for_each(|warning| args.output.note(&format!("warning: {warning}")));
                args.output.text(&format!("{name}: valid"))?;
            }
            Err(problems) => tell(&problems),
        }
    }
    if args.output.json() {
        args.output.value(&json!({ "documents": results }))?;
    }
    if valid { Ok(()) } else { Err(Failure::Told) }
}

fn verdict(name: &str, checked: &Result<Draft, Vec<Problem>>) -> serde_json::Value {
    let place = |problem: &Problem| {
        json!({
            "file": problem.file, "line": problem.line, "column": problem.column,
            "path": problem.path, "message": problem.message, "help": problem.help,
        })
    };
    match checked {
        Ok(draft) => {
            let warnings: Vec<_> = draft.document.warnings().iter().map(place).collect();
            json!({ "file": name, "valid": true, "problems": [], "warnings": warnings })
        }
        Err(problems) => {
            let problems: Vec<_> = problems.iter().map(place).collect();
            json!({ "file": name, "valid": false, "problems": problems, "warnings": [] })
        }
    }
}

pub(crate) fn apply(args: &Apply) -> Outcome {
    let written = read_valid(&args.file)?;
    let client = args.target.client()?;
    let change = put(&client, written, args.if_revision, args.dry_run, &args.message, args.output)?;
    report(change, args.output)
}

/// The document was checked here, with the source at hand; the node checks it again.
fn put(
    client: &Client,
    written: Written,
    expected: Option<u64>,
    dry_run: bool,
    message: &str,
    output: Output,
) -> Result<(Change, serde_json::Value), Failure> {
    let Written { name, text, files } = written;
    let mut call = Call::new(Method::PUT, "/v1/config").query("source", &name).if_revision(expected);
    call = if files.is_empty() {
        call.body(text)
    } else {
        call.kind(PARCEL).body(serde_json::to_vec(&Parcel::new(text, &files))?)
    };
    if dry_run {
        call = call.query("dry_run", "true");
    }
    if !message.is_empty() {
        call = call.query("message", message);
    }
    let answer = run_async(client.send(&call))?;
    let change: Change = answer.json()?;
    change.warnings.iter().for_each(|warning| output.note(&format!("warning: {warning}")));
    Ok((change, answer.json()?))
}

pub(super) fn report((change, raw): (Change, serde_json::Value), output: Output) -> Outcome {
    if output.json() {
        return output.value(&raw);
    }
    let last = if change.unchanged {
        format!("unchanged: revision {} says the same", change.revision)
    } else if change.dry_run {
        format!("dry run: revision {} stays in force", change.revision)
    } else {
        format!("revision {}", change.revision)
    };
    output.text(&format!("{}{last}", Paint::stdout().diff(&change.diff)))
}

pub(crate) fn get(args: &Get) -> Outcome {
    let mut call = Call::get("/v1/config");
    if let Some(revision) = args.revision {
        call = call.query("revision", &revision.to_string());
    }
    if !args.output.json() {
        call = call.accept("application/yaml");
    }
    let answer = run_async(args.target.client()?.send(&call))?;
    if args.output.json() {
        return args.output.value(&answer.json::<serde_json::Value>()?);
    }
    args.output.text(&String::from_utf8_lossy(&answer.body))
}

pub(crate) fn diff(args: &DiffArgs) -> Outcome {
    let client = args.target.client()?;
    if let Some(file) = &args.file {
        let (change, raw) = put(&client, read_valid(file)?, None, true, "", args.output)?;
        return if args.output.json() {
            args.output.value(&raw)
        } else {
            args.output.text(&Paint::stdout().diff(&change.diff))
        };
    }
    let mut call = Call::get("/v1/config/diff");
    for (name, revision) in [("from", args.from), ("to", args.to)] {
        if let Some(revision) = revision {
            call = call.query(name, &revision.to_string());
        }
    }
    let answer = run_async(client.send(&call))?;
    if args.output.json() {
        return args.output.value(&answer.json::<serde_json::Value>()?);
    }
    args.output.text(&Paint::stdout().diff(&answer.json::<Diff>()?.diff))
}

pub(crate) fn history(args: &HistoryArgs) -> Outcome {
    let answer = run_async(args.target.client()?.send(&Call::get("/v1/config/history")))?;
    if args.output.json() {
        return args.output.value(&answer.json::<serde_json::Value>()?);
    }
    let rows: Vec<_> = answer
        .json::<History>()?
        .revisions
        .into_iter()
        .map(|row| vec![row.revision.to_string(), row.at, row.author, row.bytes.to_string(), row.message])
        .collect();
    args.output.text(&table(&["REVISION", "AT", "AUTHOR", "BYTES", "MESSAGE"], &rows))
}

pub(crate) fn rollback(args: &Rollback) -> Outcome {
    let order =
        json!({ "to": args.to, "if_revision": args.entry.if_revision, "message": args.entry.message });
    let call = Call::new(Method::POST, "/v1/config/rollback").body(order.to_string());
    let answer = run_async(args.target.client()?.send(&call))?;
    report((answer.json()?, answer.json()?), args.output)
}

pub(crate) fn schema(output: Output) -> Outcome {
    let schema = trestle_config::json_schema();
    if output.json() {
        return output.value(&schema);
    }
    output.text(&serde_json::to_string_pretty(&schema)?)
}

// === documents ===

/// A document and the name under which problems speak of it.
fn read(file: &PathBuf) -> Result<(String, String), Failure> {
    if file.as_os_str() == STDIN {
        let mut text = String::new();
        std::io::stdin().lock().read_to_string(&mut text).context("can't read standard input")?;
        return Ok(("stdin".to_owned(), text));
    }
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(|| format!("can't read {name}"))?;
    Ok((name, text))
}

/// What says where requests go: a valid document and its files of networks; or what is wrong with them on
/// stderr.
pub(super) fn routed(file: &PathBuf) -> Result<(Document, Contents), Failure> {
    let (name, text) = read(file)?;
    let parsed = trestle_config::parse(Source { name: &name, text: &text }).map_err(Vec::from_iter);
    let read = parsed.and_then(|document| with_networks(&document, &documents::folder_of(file)));
    read.map_err(|problems| {
        tell(&problems);
        Failure::Told
    })
}

/// A document as it was written, and its files.
struct Written {
    name: String,
    text: String,
    files: Files,
}

fn read_valid(file: &PathBuf) -> Result<Written, Failure> {
    let (name, text) = read(file)?;
    match check(&name, &text, file) {
        Ok(Draft { files, .. }) => Ok(Written { name, text, files }),
        Err(problems) => {
            tell(&problems);
            complain("nothing was changed");
            Err(Failure::Told)
        }
    }
}

/// All that can be found out about a document and its files without a cluster.
fn check(name: &str, text: &str, file: &Path) -> Result<Draft, Vec<Problem>> {
    let draft = documents::read(name, text, &documents::folder_of(file))?;
    draft.resolve(&Offline)?;
    Ok(draft)
}

fn tell(problems: &[Problem]) {
    for problem in problems {
        complain(&problem.to_string());
        problem.excerpt().into_iter().for_each(complain);
    }
}
