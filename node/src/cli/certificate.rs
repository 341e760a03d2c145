//! Commands around certificates.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::Method;
use serde_json::json;
use trestle_cluster::read_file;

use super::config::{Entry, report};
use super::output::{Outcome, Output, table};
use super::views::Certificates;
use super::{Target, run_async};
use crate::client::{Call, encode};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum CertificateCommand {
    /// The certificates in force: for which names, until when, where they are used
    #[command(after_help = "Example:\n  trestle certificate list")]
    List(List),
    /// Add or replace a certificate in the config; connections that are open go on
    #[command(
        after_help = "Examples:\n  trestle certificate set shop --chain shop.pem --key shop.key\n  trestle certificate set shop \
                      --chain shop.pem --key shop.key --ocsp shop.ocsp -m 'renewed'"
    )]
    Set(Set),
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Set {
    /// Its name in the config
    name: String,
    /// PEM: the certificate, then those between it and its authority
    #[arg(long, value_name = "FILE")]
    chain: PathBuf,
    /// PEM: its private key; stored sealed, never shown again
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// DER: the OCSP response to staple
    #[arg(long, value_name = "FILE")]
    ocsp: Option<PathBuf>,
    #[command(flatten)]
    entry: Entry,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn run(command: &CertificateCommand) -> Outcome {
    match command {
        CertificateCommand::List(args) => list(args),
        CertificateCommand::Set(args) => set(args),
    }
}

fn list(args: &List) -> Outcome {
    let answer = run_async(args.target.client()?.send(&Call::get("/v1/certificates")))?;
    if args.output.json() {
        return args.output.value(&answer.json::<serde_json::Value>()?);
    }
    let rows: Vec<_> = answer
        .json::<Certificates>()?
        .certificates
        .into_iter()
        .map(|row| {
            let users =
                row.listeners.into_iter().chain(row.pools.into_iter().map(|pool| format!("pool {pool}")));
            let users: Vec<_> = users.collect();
            let left = row.days_left.to_string();
            vec![row.certificate, row.names.join(", "), row.not_after, left, users.join(", ")]
        })
        .collect();
    args.output.text(&table(&["CERTIFICATE", "NAMES", "NOT AFTER", "DAYS LEFT", "USED BY"], &rows))
}

fn set(args: &Set) -> Outcome {
    let order = json!({
        "chain": text(&args.chain)?,
        "key": text(&args.key)?,
        "ocsp": args.ocsp.as_deref().map(bytes).transpose()?.map(|bytes| BASE64_STANDARD.encode(bytes)),
        "message": args.entry.message,
        "if_revision": args.entry.if_revision,
    });
    let call = Call::new(Method::PUT, &format!("/v1/certificates/{}", encode(&args.name)));
    let answer = run_async(args.target.client()?.send(&call.body(order.to_string())))?;
    report((answer.json()?, answer.json()?), args.output)
}

fn bytes(path: &Path) -> anyhow::Result<Arc<[u8]>> {
    read_file(path).map_err(|why| anyhow::anyhow!("can't read {}: {why}", path.display()))
}

fn text(path: &Path) -> anyhow::Result<String> {
    String::from_utf8(bytes(path)?.to_vec()).map_err(|_| {
        anyhow::anyhow!("{} is no PEM text: `openssl` converts DER with `-outform PEM`", path.display())
    })
}
