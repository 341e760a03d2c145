//! Config documents as this crate handles them: parsed off the async threads, with the files that they
//! name, and the one in force.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use trestle_cluster::{Draft, Files, problems_of_files};
use trestle_config::{Document, Flawed, Problem, Problems, Source};
use trestle_raft_store::types::{Revision, State};

/// The media type of a [`Parcel`].
pub(crate) const PARCEL: &str = "application/vnd.trestle.draft+json";

/// A document on its way to a node, with the files that it names.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Parcel {
    /// As it was written, YAML or JSON.
    pub(crate) document: String,
    /// Base64 by the path that the document names.
    #[serde(default)]
    files: BTreeMap<PathBuf, String>,
}

impl Parcel {
    pub(crate) fn new(document: String, files: &Files) -> Self {
        let files = files.iter().map(|(path, bytes)| (path.to_owned(), BASE64_STANDARD.encode(bytes)));
        Self { document, files: files.collect() }
    }

    /// # Errors
    /// The path of a file that is no base64. Says nothing of what is in it.
    pub(crate) fn files(&self) -> Result<Files, String> {
        let decode = |(path, text): (&PathBuf, &String)| match BASE64_STANDARD.decode(text) {
            Ok(bytes) => Ok((path.clone(), Arc::from(bytes))),
            Err(_) => Err(format!("files: {} is no base64", path.display())),
        };
        self.files.iter().map(decode).collect::<Result<_, _>>()
    }
}

/// A document on this machine, with the files that it names.
///
/// # Errors
/// Everything that is wrong with it; if a file can't be read, or the document is not valid, also what is wrong
/// with the files that can.
pub(crate) fn read(name: &str, text: &str, folder: &Path) -> Result<Draft, Vec<Problem>> {
    match trestle_config::parse_as_far(Source { name, text }) {
        Ok(document) => Draft::read(document, folder),
        Err(Flawed { problems, rest }) => {
            let mut problems = Vec::from_iter(problems);
            problems.extend(rest.iter().flat_map(|rest| problems_of_files(rest, folder)));
            Err(problems)
        }
    }
}

/// Where the files of the document at `path` lie.
pub(crate) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Parses without holding up other tasks: a document may have megabytes.
pub(crate) async fn parse(name: String, text: String) -> anyhow::Result<Result<Document, Problems>> {
    let parsed =
        tokio::task::spawn_blocking(move || trestle_config::parse(Source { name: &name, text: &text }));
    Ok(parsed.await?)
}

/// The document of an agreed revision; of none: the empty one.
///
/// # Errors
/// A revision that this release can't read: it was written by a newer one.
pub(crate) async fn of(revision: Option<&Arc<Revision>>) -> anyhow::Result<Document> {
    let Some(revision) = revision else { return Ok(Document::empty()) };
    let name = format!("revision {}", revision.number);
    let text = std::str::from_utf8(&revision.document)?.to_owned();
    parse(name, text).await?.map_err(|problems| anyhow::anyhow!("revision {}: {problems}", revision.number))
}

/// A revision by its number.
pub(crate) fn find(state: &State, number: u64) -> Option<&Arc<Revision>> {
    let newest = state.revision_number();
    let from_the_end = newest.checked_sub(number)?;
    let index = state.revisions.len().checked_sub(1)?.checked_sub(usize::try_from(from_the_end).ok()?)?;
    state.revisions.get(index)
}

/// The oldest and the newest number that is kept.
pub(crate) fn kept(state: &State) -> (u64, u64) {
    (state.revisions.first().map_or(0, |r| r.number), state.revision_number())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parcel_arrives_as_it_was_sent() {
        let files: Files = [(PathBuf::from("a/b.key"), Arc::from(&[0u8, 255, 7][..]))].into_iter().collect();
        let sent = serde_json::to_string(&Parcel::new("pools: {}".to_owned(), &files)).unwrap();
        let arrived: Parcel = serde_json::from_str(&sent).unwrap();
        assert_eq!((arrived.document.as_str(), arrived.files().unwrap()), ("pools: {}", files));
        let bad: Parcel = serde_json::from_str(r#"{"document": "", "files": {"a.key": "se cret"}}"#).unwrap();
        assert_eq!(bad.files().unwrap_err(), "files: a.key is no base64");
    }

    #[test]
    fn problems_of_files_are_told_beside_those_of_the_document() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b.pem"), "no PEM").unwrap();
        std::fs::write(dir.path().join("b.key"), "no key").unwrap();
        std::fs::write(dir.path().join("ca.pem"), "no PEM").unwrap();
        let text = "listeners:\n  web:\n    bind: \":443\"\n    protocl: https\n    tls:\n      certificates: [a, b]\n      \
                    client:\n        mode: required\n        ca_file: ca.pem\n\
                    certificates:\n  a:\n    chain_file: a.pem\n    key_file: a.key\n  b:\n    chain_file: b.pem\n    key_file: b.key\n";
        let found = |text: &str| {
            let problems = read("web.yaml", text, dir.path()).unwrap_err();
            problems
                .iter()
                .map(|problem| format!("{}: {}", problem.path, problem.message))
                .collect::<Vec<_>>()
        };
        let of_files = [
            "listeners.web.tls.client.ca_file: there is no certificate in it",
            "certificates.a.chain_file: can't read `a.pem`",
            "certificates.a.key_file: can't read `a.key`",
            "certificates.b.chain_file: there is no certificate in it",
            "certificates.b.key_file: there is no private key in it",
        ];
        let check = |found: &[String], expected: &[&str]| {
            assert_eq!(found.len(), expected.len(), "{found:#?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.starts_with(expected), "{found:?} is not {expected:?}");
            }
        };
        check(&found(&text.replace("protocl", "protocol")), &of_files);
        let all = found(text);
        let (structure, files) = all.split_at(all.len() - of_files.len());
        assert!(
            structure.iter().any(|problem| problem.starts_with("listeners.web.protocl: unknown key")),
            "{all:#?}"
        );
        check(files, &of_files);
    }

    #[test]
    fn files_lie_beside_their_document() {
        for (path, folder) in [("web.yaml", "."), ("a/web.yaml", "a"), ("/etc/web.yaml", "/etc")] {
            assert_eq!(folder_of(Path::new(path)), Path::new(folder));
        }
    }

    #[test]
    fn a_revision_is_found_by_its_number_also_when_older_ones_are_gone() {
        let revision = |number| {
            let document = Arc::from(Vec::new());
            let (author, message) = (String::new(), String::new());
            Arc::new(Revision { number, document, uses: Vec::new(), author, message, at_ms: 0 })
        };
        let state = State { revisions: (41..=140).map(revision).collect(), ..State::default() };
        for number in [41, 77, 140] {
            assert_eq!(find(&state, number).map(|r| r.number), Some(number));
        }
        for number in [0, 40, 141, u64::MAX] {
            assert!(find(&state, number).is_none(), "{number}");
        }
        assert!(find(&State::default(), 0).is_none());
        assert_eq!(kept(&state), (41, 140));
    }
}
